"""Names of bundled weights in place of files: their graphs are these weights', and every command takes them."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from enet_deploy import SAMPLE, InputError, console, open_runner
from enet_deploy.artifacts import graph_metadata
from enet_deploy.bundled import NAMES, graph_file, picture, weights_file
from enet_deploy.commands import evaluate, segment
from enet_deploy.data.scenes import street_scene
from enet_deploy.export import cli as export_cli
from enet_deploy.files import sha256
from enet_deploy.runners import artifact_files, backends_for


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_bundled_graph_is_of_the_bundled_weights(name: str) -> None:
    with open_runner(name, "ort") as graph, open_runner(name, "torch") as weights:
        assert graph.spec.weights_sha256 == sha256(weights_file(name)), "export it again, as bundled.py says"
        scenes = [street_scene(seed, graph.spec.size)[0][None] for seed in range(20, 24)]
        labels = [np.concatenate([runner.infer(scene) for scene in scenes]) for runner in (graph, weights)]
    assert (labels[0] == labels[1]).mean() >= 0.9999
    assert len(np.unique(labels[0])) > 6


@pytest.mark.slow
def test_bundled_graph_is_what_the_documented_command_makes(tmp_path: Path) -> None:
    name = NAMES[0]
    assert export_cli.main(["--weights", name, "--name", name, "--out", str(tmp_path)]) == 0
    graphs = [onnx.load(path).graph for path in (graph_file(name), tmp_path / graph_file(name).name)]
    assert [output.name for output in graphs[0].output] == [output.name for output in graphs[1].output]
    kinds = [Counter(node.op_type for node in graph.node) for graph in graphs]
    versions = graph_metadata(onnx.load(graph_file(name)), name).details["versions"]
    if versions["torch"] == torch.__version__ and versions["onnx"] == onnx.__version__:  # another exporter may differ
        assert kinds[0] == kinds[1], "export it again, as bundled.py says"


def test_a_name_is_a_graph_and_for_torch_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("enet-camvid").mkdir()  # as a folder of results may be called
    with open_runner("enet-camvid", "torch") as runner:
        assert runner.spec.artifact == weights_file("enet-camvid")
    with open_runner("enet-camvid-train", "ort") as runner:
        assert runner.spec.artifact == graph_file("enet-camvid-train")
    assert {"ort", "openvino", "torch"} <= set(backends_for("enet-camvid"))
    assert artifact_files("enet-camvid") == [weights_file("enet-camvid"), graph_file("enet-camvid")]
    with pytest.raises(InputError, match=r"enet-camvd.*enet-camvid-train"):
        open_runner("enet-camvd")


def test_the_sample_is_the_drawn_scene_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, _ = street_scene(3000, (720, 960))
    assert np.abs(cv2.imread(str(SAMPLE)).astype(int) - scene).mean() < 4  # JPEG, and its noise
    monkeypatch.chdir(tmp_path)
    assert picture("sample") == str(SAMPLE)
    Path("sample").mkdir()
    assert picture("sample") == "sample"


def test_names_are_taken_by_commands(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert segment.main(["enet-camvid", "sample", "--backend", "ort", "--labels", "labels.png"]) == 0
    assert len(np.unique(cv2.imread("labels.png", cv2.IMREAD_UNCHANGED))) > 6
    assert evaluate.main(["enet-camvid-train", "--backend", "ort", "--data", str(scenes)]) == 0
    assert segment.main(["sample", "enet-camvid"]) == 2


def test_progress_is_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(console, "FIRST_LINE", 4.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))  # a second per item
    assert list(console.progress(range(40), "comparing")) == list(range(40))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" after ")[0] for line in lines] == [f"comparing: {n} of 40" for n in (3, 11, 27)]
