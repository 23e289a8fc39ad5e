"""Which backend runs a file if nobody names one, and that a named one is never replaced."""

from __future__ import annotations

import logging
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import cv2
import onnx
import pytest
from helpers import ROOT, write_graph

from enet_deploy import ArtifactError, BackendError, InputError, open_runner
from enet_deploy.artifacts import save_graph
from enet_deploy.benchmarks.run import Run
from enet_deploy.runners import FASTEST_ON_CPU, backend_for, installed_backends


def install(patch: pytest.MonkeyPatch, *packages: str) -> None:
    """Let the machine have these packages of onnxruntime, openvino, tensorrt and OpenCV 5 alone."""
    for package in ("onnxruntime", "openvino", "tensorrt"):
        module = ModuleType(package)
        module.__spec__ = ModuleSpec(package, None)
        patch.setitem(sys.modules, package, module if package in packages else None)
    patch.setitem(sys.modules, "tensorrt_rtx", None)
    if "opencv5" in packages:
        patch.setattr(cv2.dnn, "ENGINE_NEW", 2, raising=False)
    else:
        patch.delattr(cv2.dnn, "ENGINE_NEW", raising=False)


def test_order_is_that_of_the_stored_run() -> None:
    results = Run.read(ROOT / "benchmarks" / "results" / "cpu-360x480.json").results
    for precision, order in FASTEST_ON_CPU.items():
        layouts = {result.qdq_layout for result in results if result.precision == precision}
        assert layouts
        for layout in layouts:
            measured = [r for r in results if (r.precision, r.qdq_layout) == (precision, layout) and r.backend in order]
            measured.sort(key=lambda result: result.ms_per_frame)
            assert [result.backend for result in measured] == [b for b in order if b != "opencv"]


@pytest.mark.parametrize(
    ("packages", "precision", "expected"),
    [
        (("onnxruntime", "openvino", "opencv5"), "fp32", "openvino"),
        (("onnxruntime", "openvino", "opencv5"), "int8", "openvino"),
        (("onnxruntime", "opencv5"), "fp32", "ort"),
        (("onnxruntime", "opencv5"), "int8", "ort"),
        (("opencv5",), "fp32", "opencv"),
        (("opencv5",), "fp16", "opencv"),
        (("opencv5",), "int8", "openvino"),  # which then says how to install it
        ((), "fp32", "openvino"),
    ],
)
def test_best_of_what_is_installed(
    packages: tuple[str, ...], precision: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, *packages)
    graph = write_graph(tmp_path / "a.onnx", precision)
    assert backend_for(graph) == backend_for(graph, "cpu") == expected
    assert backend_for(graph, precision="bf16") == "openvino"
    assert backend_for(graph, "cuda") == "ort"
    assert installed_backends(graph, "cuda") == (["ort"] if "onnxruntime" in packages else [])
    assert ("opencv" in installed_backends(graph)) == ("opencv5" in packages and precision != "int8")
    assert backend_for("a.safetensors") == backend_for("a.safetensors", precision="bf16") == "torch"
    assert backend_for("a.engine") == "trt"
    with pytest.raises(InputError, match="bf16"):
        backend_for("a.engine", precision="bf16")


def test_tensorrt_runs_nothing_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "onnxruntime", "tensorrt")
    graph = write_graph(tmp_path / "a.onnx")
    assert {device: "trt" in installed_backends(graph, device) for device in (None, "cpu", "cuda:1")} == {
        None: True, "cpu": False, "cuda:1": True,
    }  # fmt: skip


def test_file_that_cannot_be_read_has_a_backend_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "onnxruntime")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"\xff\xff")
    assert backend_for(damaged) == backend_for(tmp_path / "none.onnx") == "ort"


def test_choice_is_logged_and_a_named_backend_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if not hasattr(cv2.dnn, "ENGINE_NEW"):
        pytest.skip(f"OpenCV {cv2.__version__} is older than version 5")
    install(monkeypatch, "opencv5")
    graph = write_graph(tmp_path / "a.onnx")
    save_graph(onnx.load(graph), graph)
    caplog.set_level(logging.INFO, "enet_deploy")
    with open_runner(graph, "opencv"):
        assert not caplog.messages
    with open_runner(graph) as runner:
        (said,) = caplog.messages
        assert runner.backend == "opencv" and all(part in said for part in ("opencv", "openvino", "ort", "--backend"))
    for backend, package in (("ort", "onnxruntime"), ("openvino", "openvino")):
        with pytest.raises(BackendError, match=package):
            open_runner(graph, backend)


@pytest.mark.parametrize("backend", [None, "ort", "opencv"])
def test_pipe_in_place_of_a_graph_is_refused_at_once(tmp_path: Path, backend: str | None) -> None:
    os.mkfifo(tmp_path / "a.onnx")
    with pytest.raises(ArtifactError, match=r"a\.onnx is a folder or a device"):
        open_runner(tmp_path / "a.onnx", backend)
