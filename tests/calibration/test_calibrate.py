"""The command `enet-calibrate`."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from helpers import SIZE, least_graph
from int8_graphs import LAYERS, POINTS, Costs, in_int8, interrupt_at, small_record

from enet_deploy.artifacts import BUNDLED_WEIGHTS, graph_metadata
from enet_deploy.calibration import cli, ranges
from enet_deploy.calibration.scoring import Evaluator, Score
from enet_deploy.export import cli as export_cli
from enet_deploy.export.int8 import (
    FLOAT_LAYERS,
    layers,
    quantize,
    quantized_layers,
)
from enet_deploy.export.record import BUNDLED_RECORD, METHODS, Record, record_for
from enet_deploy.export.to_onnx import build_graph
from enet_deploy.files import sha256


def use(monkeypatch: pytest.MonkeyPatch, model: onnx.ModelProto) -> None:
    """Let the exporter return this graph at once, instead of building one at the trained size."""

    def made(*_args: object, **_options: object) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy

    monkeypatch.setattr(sys.modules[build_graph.__module__], "build_graph", made)


@pytest.fixture
def ready(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, model)


@pytest.fixture
def least(monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    model = least_graph()
    use(monkeypatch, model)
    return model


@pytest.mark.slow
@pytest.mark.usefixtures("ready")
def test_from_images_to_an_int8_graph(
    scenes: Path,
    weights: Path,
    model: onnx.ModelProto,
    images: list[Path],
    record: Record,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, cache = tmp_path / "new" / "record.json", tmp_path / "cache" / "enet.cache"
    arguments = [str(scenes), "--method", "minmax", "--images", "4", "--out", str(out), "--trt-cache", str(cache)]
    assert cli.main(arguments) == 0
    made, printed = Record.read(out), capsys.readouterr()
    assert made.weights_sha256 == sha256(weights) and made.method == "minmax"
    frames = ranges.frame_range(images, SIZE)
    known = {"count": 4, "split": "train", "sha256": ranges.digest_of_files(images), "of_outputs": 4, "frames": frames}
    assert made.images == known
    assert made.preprocessing["size"] == [*SIZE] and len(made.preprocessing["mean"]) == 3
    assert made.amax == pytest.approx(record.amax, rel=1e-5) and list(made.amax) == list(record.amax)
    assert made.float_layers == FLOAT_LAYERS and made.versions["onnx"] == onnx.__version__
    accuracy = made.accuracy
    assert (accuracy["measure"], accuracy["images"], accuracy["trained_on"]) == ("miou", 4, 0)
    assert "not trained on: none of the 4 images" in printed.out
    assert accuracy["tried"] == {"minmax": accuracy["int8"]} and 0 < accuracy["fp32"] < 1
    assert cache.read_text() == made.to_trt_cache("10.3.0")
    assert made.outputs.keys() == record.outputs.keys()
    of_ort = accuracy["ort"]
    assert f"in ONNX Runtime's layout (enet-export --int8 --target ort): {of_ort['int8']:.4f} (" in printed.out
    share = f"{len(quantized_layers(model.graph, FLOAT_LAYERS))} of {len(layers(model.graph))} layers in int8"
    assert f"{out}  minmax ranges of 4 images, {share}; miou on 4 images: fp32 0." in printed.out
    assert not printed.err and [file.name for file in out.parent.iterdir()] == ["record.json"]

    arguments = ["--int8", "--calibration", str(out), "--size", "96x128", "--max-disagreement", "1"]
    assert export_cli.main([*arguments, "--out", str(tmp_path / "export")]) == 0
    metadata = graph_metadata(onnx.load(tmp_path / "export" / "enet-int8.onnx"), "the graph")
    assert metadata.precision == "int8"
    calibration = {"sha256": sha256(out), "method": "minmax", "images": 4, "frames": made.images["frames"]}
    assert metadata.details["calibration"] == {**calibration, "target": "all"}

    assert export_cli.main([*arguments, "--target", "ort", "--out", str(tmp_path / "export")]) == 0
    metadata = graph_metadata(onnx.load(tmp_path / "export" / "enet-int8-ort.onnx"), "the graph")
    assert metadata.precision == "int8"
    assert metadata.details["calibration"] == {**calibration, "target": "ort"}


@pytest.mark.slow
@pytest.mark.usefixtures("least")
def test_all_methods_are_tried_and_the_best_is_kept(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a folder of images without labels; two runs give the same record."""
    monkeypatch.setitem(ranges.BINS, "entropy", 300)
    out = [tmp_path / name for name in ("first.json", "second.json")]
    for path in out:
        assert cli.main([str(scenes / "train"), "--images", "5", "--out", str(path)]) == 0
    assert out[0].read_bytes() == out[1].read_bytes()
    record, printed = Record.read(out[0]), capsys.readouterr().out
    tried = record.accuracy["tried"]
    assert list(tried) == list(METHODS) and tried[record.method] == max(tried.values())
    assert record.accuracy["chosen_by"] == "agreement" and f"{record.method} ranges, the best by agreement," in printed
    assert record.accuracy["int8"] == tried[record.method] < record.accuracy["fp32"] == 1
    assert record.accuracy["measure"] == "agreement"
    assert record.accuracy["images"] == 3  # not those that the ranges come from
    assert "agreement with fp32" in printed


@pytest.mark.usefixtures("least")
@pytest.mark.parametrize(
    ("trained_on", "chosen_by", "best"), [(None, "miou", "mse"), (0, "miou", "mse"), (1, "agreement", "minmax")]
)
def test_ranges_are_chosen_by_agreement_on_images_that_were_trained_on(
    trained_on: int | None,
    chosen_by: str,
    best: str,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scores = {"mse": Score(0.9, 30.0, 0.8), "minmax": Score(0.8, 30.0, 0.9)}
    monkeypatch.setattr("enet_deploy.export.record.METHODS", tuple(scores))
    monkeypatch.setattr(cli, "METHODS", tuple(scores))
    monkeypatch.setattr(Evaluator, "score", lambda _self, _model, title: scores.get(title, Score(0.95, 99.0, 1.0)))
    monkeypatch.setattr("enet_deploy.trained_on.count", lambda *_: trained_on)
    monkeypatch.setattr(cli, "_fit_confidence", lambda *_: {})
    assert cli.main([str(scenes), "--images", "4", "--out", str(tmp_path / "record.json")]) == 0
    record = Record.read(tmp_path / "record.json")
    assert record.method == best and record.accuracy["chosen_by"] == chosen_by
    assert record.accuracy["tried"] == {m: s.value if chosen_by == "miou" else s.agreement for m, s in scores.items()}
    assert f"{best} ranges, the best by {chosen_by}," in capsys.readouterr().out


@pytest.mark.slow
def test_sensitivity_and_a_budget(
    scenes: Path,
    least: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys.modules[Evaluator.__module__], "Evaluator", lambda *_: Costs(**POINTS))
    monkeypatch.setattr(cli, "_fit_confidence", lambda *_: {})  # `Costs` has no images
    made = [tmp_path / "record.json", tmp_path / "kept.json"]
    arguments = [str(scenes), "--images", "4", "--method", "minmax", "--sensitivity", str(tmp_path / "study")]
    assert cli.main([*arguments, "--out", str(made[0])]) == 0
    printed = capsys.readouterr().out
    assert Record.read(made[0]).float_layers == FLOAT_LAYERS
    assert "--max-drop 0.3" in printed
    assert "stage1.1                    -2.000 points of miou, logits at 38.0 dB" in printed
    assert {file.name for file in (tmp_path / "study").iterdir()} == {f"sensitivity.{s}" for s in ("json", "md", "png")}

    arguments = [str(scenes), "--images", "4", "--record", str(made[0]), "--max-drop", "0.6", "--out", str(made[1])]
    assert cli.main(arguments) == 0
    kept = Record.read(made[1])
    assert kept.amax == Record.read(made[0]).amax
    assert kept.accuracy["tried"] == Record.read(made[0]).accuracy["tried"] and kept.accuracy["chosen_by"] == "miou"
    assert list(kept.float_layers) == [*FLOAT_LAYERS, "stage1.1"] and kept.accuracy["int8"] == 0.795
    assert in_int8(quantize(least, kept)) == {"stage1.0.branch.0", "stage1.0.branch.2"}
    assert "2 of 5 layers in int8; miou on 4 images: fp32 0.8000, int8 0.7950 (-0.50 points)" in capsys.readouterr().out


def test_cache_for_tensorrt_needs_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = record_for(sha256(BUNDLED_WEIGHTS))
    assert cli.main(["--trt-cache", str(tmp_path / "enet.cache"), "--trt-version", "10.7.0"]) == 0
    assert (tmp_path / "enet.cache").read_text() == record.to_trt_cache("10.7.0")
    assert "calibration cache of TensorRT 10.7.0, 84 tensors" in capsys.readouterr().out
    cached = {line.rsplit(": ", 1)[0] for line in (tmp_path / "enet.cache").read_text().splitlines()[1:]}
    assert cached == record.amax.keys() - set(record.float_tensors)  # 84 of 94: no range, no int8
    assert "stage5.0.act/Relu" not in cached and "stage4.1.act/Relu" in cached


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where to write: nothing else is in the folder."""
    return tmp_path / "out" / "record.json"


def refused(arguments: Sequence[object], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on which the command refuses. It has written nothing."""
    try:
        code: object = cli.main([*map(str, arguments)])
    except SystemExit as stopped:  # by argparse
        code = stopped.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("enet-calibrate: error: ") and error.count("\n") == 1
    assert not out.parent.exists()
    return error


@pytest.mark.usefixtures("least")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "DATA"),
        (["{scenes}/none"], "/none has neither a folder 'train'"),
        (["{scenes}", "--split", "test"], "folder 'test'"),
        (["{scenes}", "--images", "2"], "2 images"),
        (["{scenes}", "--record", "{scenes}/none.json"], "none.json does not exist"),
        (["--trt-cache", "{out}2", "--weights", "none.safetensors"], "none.safetensors"),
        (["{scenes}", "--trt-cache", "{out}"], "record.json"),
        (["--trt-cache", "{out}2", "--trt-version", "11.0.0"], "11.0.0"),
        (["--trt-cache", "{out}2", "--record", "{scenes}/train/scene0000.png"], "scene0000.png"),
        (["{scenes}", "--record", "r.json", "--method", "mse"], "--method mse with --record r.json"),
        (["--trt-cache", "{out}2", "--max-drop", "1"], "--max-drop"),
        (["{scenes}", "--record", "{out}"], "record.json would write over "),
        (["{scenes}", "--max-drop", "-1"], "--max-drop -1.0"),
        (["{scenes}", "--out", ".", "--max-drop", "1"], "folder"),
        (["--trt-cache", "{out}2", "--size", "512x512"], "--size"),
        (["--trt-cache", "{out}2", "--images", "7"], "--images"),
        (["--trt-cache", "{out}2", "--out", "{out}"], "--out"),
        (["{scenes}", "--record", "BUNDLED", "--size", "96x128"], "--size 96x128 with --record"),
    ],
)
def test_refusals(
    arguments: list[str], message: str, scenes: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"BUNDLED": str(BUNDLED_RECORD)}
    filled = [named.get(argument, argument.format(scenes=scenes, out=out)) for argument in arguments]
    if arguments and "{scenes}" in arguments[0] and "--out" not in arguments:
        filled += ["--out", str(out)]
    assert message in refused(filled, out, capsys)


@pytest.mark.usefixtures("least")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # Found by this test: each was refused after all was measured, or not at all
        (["--trt-cache", "{cache}", "--trt-version", "11.0.0"], "11.0.0"),
        (["--sensitivity", "{file}/study"], "{file}/study"),
        (["--max-drop", "nan"], "--max-drop nan"),
    ],
)
def test_refusals_before_the_long_work(
    arguments: list[str],
    message: str,
    scenes: Path,
    tmp_path: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("measured first")

    monkeypatch.setattr(ranges, "find_ranges", measured)
    (tmp_path / "file").write_text("not a folder")
    filled = [argument.format(file=tmp_path / "file", cache=tmp_path / "enet.cache") for argument in arguments]
    assert message.format(file=tmp_path / "file") in refused([scenes, *filled, "--out", out], out, capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("option", ["--out", "--trt-cache"])
@pytest.mark.usefixtures("least")
def test_folder_that_cannot_be_made(
    option: str, scenes: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    arguments = [scenes, "--out", out, option, tmp_path / "file" / "folder" / "record"]
    assert f"{tmp_path}/file/folder/record" in refused(arguments, out, capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def spoil_one_image(data: Path) -> str:
    for image in sorted((data / "train").iterdir())[1:]:
        image.unlink()
    return "1 image "


def spoil_no_labels(data: Path) -> str:
    sorted((data / "valannot").iterdir())[1].unlink()
    return "scene1001.png"


def spoil_classes(data: Path) -> str:
    names = [f"class {i}" for i in range(12)]
    (data / "classes.json").write_text(json.dumps({"names": names, "colors": [[0, 0, i] for i in range(12)]}))
    return "class 0, class 1"


def spoil_an_image(data: Path) -> str:
    (data / "train" / "scene0000.png").write_bytes(b"no image")
    return "scene0000.png"


def spoil_a_label(data: Path) -> str:
    cv2.imwrite(str(data / "valannot" / "scene1000.png"), np.full(SIZE, 77, np.uint8))
    return "77"


@pytest.mark.usefixtures("least")
@pytest.mark.parametrize("spoil", [spoil_one_image, spoil_no_labels, spoil_classes, spoil_an_image, spoil_a_label])
def test_refused_data(
    spoil: Callable[[Path], str], scenes: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    message = spoil(data)
    assert message in refused([data, "--images", "4", "--out", out], out, capsys)


def test_scores_of_a_record_on_other_data(scenes: Path, least: onnx.ModelProto, tmp_path: Path) -> None:
    """Images are sampled only if val has no labels, and a temperature stays if none can be fitted."""
    record, out = tmp_path / "record.json", tmp_path / "out.json"
    earlier = dataclasses.replace(small_record(least), confidence={"temperature": 2.0})
    earlier.write(record)
    data = tmp_path / "data"
    for folder in ("val", "valannot"):
        shutil.copytree(scenes / folder, data / folder)
    assert cli.main([str(data), "--record", str(record), "--out", str(out)]) == 0
    assert Record.read(out).amax == earlier.amax and Record.read(out).accuracy["measure"] == "miou"
    assert cli.main([str(scenes / "val"), "--record", str(record), "--out", str(out)]) == 0
    assert Record.read(out).confidence == earlier.confidence and Record.read(out).accuracy["measure"] == "agreement"


def test_interrupted_study_is_reported_and_kept(
    scenes: Path,
    least: onnx.ModelProto,
    tmp_path: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small_record(least).write(tmp_path / "record.json")
    monkeypatch.setattr(
        cli.console, "progress", lambda items, title: interrupt_at(LAYERS[3])(items, "") if title == "layers" else items
    )
    arguments = [scenes, "--images", 4, "--record", tmp_path / "record.json", "--sensitivity", tmp_path / "study"]
    assert cli.main([*map(str, arguments), "--out", str(out)]) == 130
    assert "interrupted" in capsys.readouterr().err and not out.exists()
    kept = json.loads((tmp_path / "study" / "sensitivity.json").read_text())
    assert [layer["layer"] for layer in kept["layers"]] == LAYERS[:3]
