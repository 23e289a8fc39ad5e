"""A folder of engines with fleet.json. The stand-in of CUDA and TensorRT runs them; TensorRT-RTX really builds them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrt_standin as standin
from helpers import SIZE, one_line, write_graph
from tensorrt_standin import Gpu, write_engine

from enet_deploy import ArtifactError, BackendError, InputError, open_runner
from enet_deploy.artifacts import with_digest
from enet_deploy.commands import inspect
from enet_deploy.data.scenes import street_scene
from enet_deploy.export import cli, engines
from enet_deploy.files import sha256
from enet_deploy.runners import artifact_files
from enet_deploy.runners.tensorrt.card import EngineCard
from enet_deploy.runners.tensorrt.manifest import add_to_manifest, manifest_path, read_manifest


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    """A GPU of compute capability 8.6, on which no test leaves anything."""
    gpu = Gpu()
    with standin.installed(gpu, "cuda-bindings"):
        yield gpu
        assert (gpu.alive(), gpu.complaints, gpu.depth) == ({}, [], 0)


@pytest.fixture
def fleet(exported: Path, tmp_path: Path) -> Path:
    """Two engines: one for 7.5 and 8.9, one for 8.6, as of two runs of enet-export."""
    folder = tmp_path / "fleet"
    for name, capabilities in (("others-rtx", ("7.5", "8.9")), ("ours-rtx", ("8.6",))):
        engine = write_engine(
            exported, folder / f"{name}.engine", "trt-rtx", compute_capabilities=capabilities, gpu=None
        )
        add_to_manifest(engine)
    return folder


def edited(folder: Path, **changes: Any) -> Path:
    """The folder, with other values of the first engine in its manifest, and a digest that fits."""
    path = manifest_path(folder)
    value = json.loads(path.read_text())
    del value["content_sha256"]
    value["engines"][0] |= changes
    path.write_text(json.dumps(with_digest(value)))
    return folder


@pytest.mark.usefixtures("gpu")
def test_the_engine_for_this_gpu_runs(fleet: Path, exported: Path) -> None:
    image = street_scene(0, (120, 200))[0]
    with open_runner(fleet) as runner, open_runner(exported, "ort") as reference:
        assert (runner.spec.artifact, runner.backend) == (fleet / "ours-rtx.engine", "trt")
        assert np.array_equal(runner.segment(image), reference.segment(image))
    assert {path.name for path in artifact_files(fleet)} == {path.name for path in fleet.iterdir()}


@pytest.mark.usefixtures("gpu")
def test_an_engine_for_any_gpu_is_taken_if_none_is_for_this_one(exported: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"compute_capabilities": ("8.0",), "gpu": "NVIDIA A100"}
    add_to_manifest(write_engine(exported, tmp_path / "any.engine", "trt", hardware_compatible=True, **options))
    add_to_manifest(write_engine(exported, tmp_path / "a100.engine", "trt", **options))
    with open_runner(tmp_path) as runner:
        assert runner.spec.artifact == tmp_path / "any.engine"


def test_the_manifest_says_what_is_in_the_folder(fleet: Path, exported: Path) -> None:
    others, ours = read_manifest(fleet)
    assert (others.file, others.compute_capabilities) == ("others-rtx.engine", ("7.5", "8.9"))
    assert (ours.engine_sha256, ours.onnx_sha256) == (sha256(fleet / ours.file), sha256(exported))
    assert (ours.bytes, ours.size, ours.precision) == ((fleet / ours.file).stat().st_size, SIZE, "fp32")
    write_engine(exported, fleet / ours.file, "trt-rtx", compute_capabilities=("12.0",), gpu=None)
    add_to_manifest(fleet / ours.file)
    assert [each.compute_capabilities for each in read_manifest(fleet)] == [("7.5", "8.9"), ("12.0",)]


def replaced(fleet: Path, exported: Path) -> None:
    """Another engine with a card of its own: the card would let it load."""
    path = fleet / "ours-rtx.engine"
    write_engine(exported, path, "trt-rtx", gpu=None)
    path.write_bytes(path.read_bytes() + b"\0")
    card = json.loads(EngineCard.path(path).read_text())
    del card["content_sha256"]
    EngineCard.path(path).write_text(json.dumps(with_digest({**card, "engine_sha256": sha256(path)})))
    assert EngineCard.read(path).compute_capabilities == ("8.6",)


def changed(fleet: Path, exported: Path) -> None:
    path = fleet / "ours-rtx.engine"
    path.write_bytes(path.read_bytes()[:-1])


def twice(fleet: Path, exported: Path) -> None:
    add_to_manifest(write_engine(exported, fleet / "half-rtx.engine", "trt-rtx", gpu=None))


def without_ours(fleet: Path, exported: Path) -> None:
    edited(fleet, compute_capabilities=["7.5", "8.9", "8.7"])
    value = json.loads(manifest_path(fleet).read_text())
    manifest_path(fleet).write_text(json.dumps(with_digest({"schema": 1, "engines": value["engines"][:1]})))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("spoil", "values"),
    [
        (replaced, ["ours-rtx.engine", "SHA-256", "enet-export ours.onnx --engine trt-rtx --compute-capability 8.6"]),
        (changed, ["ours-rtx.engine"]),
        (lambda fleet, _: (fleet / "ours-rtx.engine").unlink(), ["ours-rtx.engine"]),
        (lambda fleet, _: (fleet / "ours-rtx.engine.json").unlink(), ["ours-rtx.engine.json"]),
        (twice, ["half-rtx.engine", "ours-rtx.engine"]),
        (
            without_ours,
            ["8.6", "7.5, 8.7, 8.9", "enet-export others.onnx --engine trt-rtx --compute-capability 7.5,8.9,8.7,8.6"],
        ),
        (lambda fleet, _: manifest_path(fleet).unlink(), ["fleet.json"]),
        (lambda fleet, _: manifest_path(fleet).write_text("{"), ["fleet.json"]),
        (lambda fleet, _: manifest_path(fleet).write_text("[]"), ["fleet.json"]),
        (lambda fleet, _: edited(fleet, file="../ours-rtx.engine"), ["../ours-rtx.engine"]),
        (lambda fleet, _: edited(fleet, file="ours-rtx.engine"), ["fleet.json", "once"]),
        (lambda fleet, _: edited(fleet, size=[100, 100]), ["100x100"]),
        (lambda fleet, _: edited(fleet, size=7), ["fleet.json"]),
        (lambda fleet, _: edited(fleet, bytes=True), ["bytes True"]),
        (lambda fleet, _: edited(fleet, flavour="tvm"), ["tvm"]),
        (lambda fleet, _: edited(fleet, compute_capabilities=[8.6]), ["8.6"]),
        (lambda fleet, _: edited(fleet, engine_sha256=None), ["engine_sha256 None"]),
        (lambda fleet, _: edited(fleet, other=1), ["other"]),
    ],
)
def test_what_does_not_fit_is_one_line(
    fleet: Path, exported: Path, spoil: Callable[[Path, Path], object], values: list[str]
) -> None:
    spoil(fleet, exported)
    with pytest.raises(ArtifactError) as caught:
        open_runner(fleet)
    assert "\n" not in str(caught.value)
    for value in values:
        assert value in str(caught.value)


@pytest.mark.usefixtures("gpu")
def test_a_changed_manifest_is_noticed(fleet: Path) -> None:
    path = manifest_path(fleet)
    path.write_text(path.read_text().replace("8.9", "8.8"))
    with pytest.raises(ArtifactError, match="SHA-256"):
        open_runner(fleet)


def test_a_fleet_needs_a_gpu_and_the_backend_trt(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="'cpu'"):
        open_runner(fleet, device="cpu")
    with pytest.raises(InputError, match="'ort'"):
        open_runner(fleet, "ort")


@pytest.mark.slow
def test_the_command_writes_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Really compiled, for GPUs that are not here."""
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    out = tmp_path / "fleet"
    for name, capabilities in (("small", "7.5"), ("large", "8.9"), ("small", "7.5,12.0")):
        graph = write_graph(tmp_path / f"{name}.onnx")
        options = ["--engine", "trt-rtx", "--compute-capability", capabilities, "--out", str(out)]
        assert cli.main([str(graph), *options]) == 0
        assert "fleet.json" in capsys.readouterr().out
    engines = {each.file: each for each in read_manifest(out)}
    assert {file: each.compute_capabilities for file, each in engines.items()} == {
        "large-rtx.engine": ("8.9",),
        "small-rtx.engine": ("7.5", "12.0"),
    }
    assert cli.main([str(graph), *options[:2], "--compute-capability", "8.6", "--out", str(out)]) == 2
    assert "--compute-capability 7.5,8.6,12.0" in one_line(capsys)  # it would be lost for the others
    assert all(each.engine_sha256 == sha256(out / each.file) for each in engines.values())
    manifest_path(out).write_text("{")
    assert cli.main([str(graph), *options]) == 2
    assert "fleet.json" in one_line(capsys)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("asked_for", [True, False])
def test_no_engine_for_this_gpu_takes_a_listed_one_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked_for: bool
) -> None:
    """With --engine it is refused before the build; without, the graph is written and a line says why no engine is."""
    monkeypatch.setattr("enet_deploy.runners.tensorrt.builder.require_buildable", lambda _: None)
    monkeypatch.setattr(engines, "write", lambda *_: pytest.fail("built"))
    graph, out = write_graph(tmp_path / "robot.onnx"), tmp_path / "fleet"
    add_to_manifest(write_engine(graph, out / "robot.engine", compute_capabilities=("8.7",), gpu="Orin"))
    if asked_for:
        assert cli.main([str(graph), "--engine", "trt", "--out", str(out)]) == 2
        said = one_line(capsys)
    else:
        engines.write_if_possible(cli.make_parser().parse_args(["--fp16", "--out", str(out)]), graph)
        said = capsys.readouterr().out
    assert f"{out / 'robot.engine'} serves compute capability 8.7 too" in said and said.count("\n") == 1


def test_inspect_shows_the_fleet_and_what_is_wrong_in_it(fleet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([str(fleet)]) == 0
    shown = capsys.readouterr().out
    assert "2 engines" in shown and "7.5, 8.9" in shown and "96x128" in shown and "MISSING" not in shown
    assert sha256(fleet / "ours-rtx.engine")[:16] in shown and len(shown.splitlines()) < 24
    (fleet / "others-rtx.engine").write_bytes(b"another")
    (fleet / "ours-rtx.engine").unlink()
    assert inspect.main([str(fleet)]) == 2
    shown, said = capsys.readouterr()
    assert "others-rtx.engine" in shown and "ANOTHER FILE" in shown and "MISSING" in shown
    assert "2 of 2 engines" in said
    manifest_path(fleet).unlink()
    assert inspect.main([str(fleet)]) == 2
    assert "fleet.json" in one_line(capsys)
