"""`enet-eval`: its figures, its JSON and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from enet_deploy import open_runner
from enet_deploy.classes import CAMVID
from enet_deploy.commands import evaluate
from enet_deploy.data import open_data
from enet_deploy.data.corruptions import CORRUPTIONS
from enet_deploy.metrics import ConfusionMatrix


@pytest.fixture(scope="module")
def expected(scenes: Path, exported: Path) -> ConfusionMatrix:
    confusion = ConfusionMatrix(CAMVID)
    with open_runner(exported) as runner:
        for image, labels in open_data(scenes, "val"):
            confusion.update(labels, runner.infer(image[None])[0])
    return confusion


@pytest.mark.parametrize("void_counts", [False, True])
def test_figures_of_a_graph(
    void_counts: bool,
    scenes: Path,
    exported: Path,
    expected: ConfusionMatrix,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "new" / "out.json"
    options = ["--backend", "ort", *(["--void-counts"] if void_counts else [])]
    assert evaluate.main([str(exported), "--data", str(scenes), "--json", str(path), *options]) == 0
    scores = expected.scores(void_counts)
    found = json.loads(path.read_text())
    assert {"processor", "commit", "packages"} <= found.pop("environment").keys()
    assert found == {
        "schema": 1,
        "artifact": str(exported),
        "backend": "ort",
        "precision": "fp32",
        "fit": "stretch",
        "split": "val",
        "images": 4,
        "trained_on": 0,
        "accuracy": json.loads(json.dumps(scores.to_json())),
    }
    printed = capsys.readouterr().out
    assert f"pixel accuracy {scores.pixel_accuracy:.4f}" in printed
    assert ("count as mistakes" if void_counts else "are left out") in printed


def test_figures_of_weights_and_an_absent_class(
    scenes: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    for label in (data / "valannot").iterdir():  # no sky in truth
        ids = cv2.imread(str(label), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(label), np.where(ids == 0, 11, ids).astype(np.uint8))
    path = tmp_path / "out.json"
    assert evaluate.main([str(weights), "--data", str(data), "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert result["backend"] == "torch" and result["accuracy"]["class_average"] > 0
    sky = result["accuracy"]["per_class"]["sky"]["iou"]
    assert sky == 0 or (sky is None and result["accuracy"]["absent"] == ["sky"])


@pytest.mark.slow
@pytest.mark.parametrize("void_counts", [False, True])
def test_corruptions(
    void_counts: bool,
    scenes: Path,
    exported: Path,
    expected: ConfusionMatrix,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "out.json"
    options = ["--corruptions", "--json", str(path), *(["--void-counts"] if void_counts else [])]
    assert evaluate.main([str(exported), "--data", str(scenes), *options]) == 0
    result = json.loads(path.read_text())
    clean = expected.scores(void_counts)
    assert result["schema"] == 1 and result["accuracy"] == json.loads(json.dumps(clean.to_json()))

    noisy = ConfusionMatrix(CAMVID)
    with open_runner(exported) as runner:
        for image, labels in open_data(scenes, "val"):
            noisy.update(labels, runner.infer(CORRUPTIONS["noise", 16](image)[None])[0])
    scores = noisy.scores(void_counts)
    assert [(entry["name"], entry["severity"]) for entry in result["corruptions"]] == list(CORRUPTIONS)
    assert {
        "name": "noise",
        "severity": 16,
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
    } in result["corruptions"]

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["clean", f"{clean.miou:.4f}", f"{clean.pixel_accuracy:.4f}"] in lines
    points = f"{100 * (scores.miou - clean.miou):+.2f}"
    assert ["noise", "16", f"{scores.miou:.4f}", points, f"{scores.pixel_accuracy:.4f}"] in lines


def test_picture_of_the_confusion(scenes: Path, exported: Path, expected: ConfusionMatrix, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "confusion.svg"
    assert evaluate.main([str(exported), "--data", str(scenes), "--confusion", str(path)]) == 0
    sky = expected.counts[0, :-1]
    text = path.read_text()
    assert all(text.count(f">{name}<") == 2 for name in CAMVID.names)
    assert f">{int(100 * sky[0] / sky.sum() + 0.5)}<" in text


def test_no_picture_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    picture = str(tmp_path / "confusion.png")
    assert evaluate.main(["none.onnx", "--data", "none", "--confusion", picture]) == 2  # before anything is opened
    assert capsys.readouterr().err == (
        "enet-eval: error: the package 'matplotlib' is not installed; pip install 'enet-deploy[report]'\n"
    )


def test_data_of_other_classes_is_refused(
    scenes: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    names = [f"class {i}" for i in range(12)]
    (data / "classes.json").write_text(json.dumps({"names": names, "colors": [[0, 0, i] for i in range(12)]}))
    assert evaluate.main([str(exported), "--data", str(data)]) == 2
    *_, error = capsys.readouterr().err.splitlines()  # behind the backend that was chosen
    assert "has the classes class 0, class 1" in error and "knows sky, building" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{exported}", "--data", "{scenes}", "--split", "test"], "test is not a folder"),
        (["{scenes}/none.onnx", "--data", "{scenes}"], "none.onnx does not exist"),
        (["{exported}", "--data", "{scenes}", "--backend", "torch"], "expected a .safetensors file"),
        (["{exported}", "--data", "{scenes}", "--json", "{exported}/x.json"], "cannot write"),
        (["none.onnx", "--data", "none", "--confusion", "{exported}/x.png"], "not a writable folder"),
        (["none.onnx", "--data", "none", "--confusion", "x.gif"], "the suffix '.gif', expected .png or .svg"),
    ],
)
def test_refusals(
    options: list[str], message: str, exported: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([option.format(exported=exported, scenes=scenes) for option in options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("enet-eval: error: ") and message in error
