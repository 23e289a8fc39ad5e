"""The Python functions behind the commands: the notebook runs from top to bottom, and bad values are our errors."""

from __future__ import annotations

import inspect
import json
import os
import signal
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers import ROOT, SIZE

from enet_deploy import DataError, InputError
from enet_deploy.benchmarks.api import benchmark
from enet_deploy.calibration.api import calibrate
from enet_deploy.commands.api import evaluate, segment, train
from enet_deploy.export.api import export
from enet_deploy.media.frames import Frame, Frames, FrameSource
from enet_deploy.training.recipe import Recipe

NOTEBOOK = ROOT / "examples" / "from_scenes_to_int8.ipynb"


@pytest.mark.docs
@pytest.mark.slow
def test_the_notebook_runs_and_holds_no_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    run = names["run"]
    assert [result.precision for result in run.results if result.backend == "ort"] == ["fp32", "int8"]
    assert all(result.accuracy.miou > 0.05 for result in run.results)
    assert len(list(Path("overlays").glob("*.png"))) == 6
    assert names["labels"].shape == (720, 960)
    assert Path("files/mine-int8.onnx").is_file() and names["record"].method == "percentile"


@pytest.mark.parametrize(
    ("call", "value"),
    [
        (lambda data, out: train(data, out, Recipe(batch=99)), "99"),
        (lambda data, out: export(out=out, precision="int7"), "int7"),
        (lambda data, out: export(out=out, precision="int8", target="tpu"), "tpu"),  # type: ignore[arg-type]
        (lambda data, out: export(out=out, batch=0), "batch 0"),
        (lambda data, out: export(out=out, engine="trt-rtx", compute_capability="8.6"), '"8.6"'),
        (lambda data, out: calibrate(data, out / "a.json", method="best"), "best"),
        (lambda data, out: benchmark(["enet-camvid"], precisions=["fp16"]), "precision"),
        (lambda data, out: benchmark(precisions=["int4"]), "int4"),
        (lambda data, out: benchmark(frames=0), "frames 0"),
        (lambda data, out: benchmark(batch=0), "batch 0"),
        (lambda data, out: evaluate("enet-camvid", data, backend="tensorflow"), "tensorflow"),
        (lambda data, out: segment("enet-camvid", "sample", out=out / "a.png", every=0), "every 0"),
        (lambda data, out: segment("enet-camvid", []), "SOURCE"),
        (lambda data, out: segment("enet-camvid", ""), "SOURCE.* ''"),
        (lambda data, out: segment("enet-camvid", "sample", out=""), "out ''"),
        (lambda data, out: segment("enet-camvid", "sample", out=out / "a.png", backend="tensorflow"), "tensorflow"),
    ],
)
def test_impossible_values_are_input_errors(
    call: Callable[[Path, Path], object], value: str, scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=value):
        call(scenes, tmp_path)


def test_segment_takes_several_images_and_evaluate_another_split(scenes: Path, exported: Path, tmp_path: Path) -> None:
    images = sorted((scenes / "val").iterdir())[:2]
    segment(exported, images, labels=tmp_path / "ids", backend="ort")
    assert cv2.imread(str(tmp_path / "ids" / f"{images[0].stem}.png"), cv2.IMREAD_UNCHANGED).max() < 11
    assert evaluate(exported, scenes, split="train", backend="ort").miou > 0.3
    with pytest.raises(DataError, match="test"):
        evaluate(exported, scenes, split="test", backend="ort")


@pytest.mark.parametrize("function", [benchmark, calibrate, evaluate, export, segment, train])
def test_every_argument_is_explained(function: Callable[..., object]) -> None:
    page = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    assert f"::: {function.__module__}.{function.__name__}\n" in page
    explained = inspect.getdoc(function) or ""
    arguments = explained[explained.index("Args:") :].split("\n\n")[0]
    assert [name for name in inspect.signature(function).parameters if name not in arguments] == []


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["INT", "TERM"]
)
@pytest.mark.parametrize("is_live", [False, True])
def test_signal_in_segment_is_raised_once_the_files_are_finished(
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_live: bool,
    number: signal.Signals,
    error: type[BaseException],
) -> None:
    class Signalled(FrameSource):
        live = is_live

        def frames(self) -> Frames:
            while not any(tmp_path.glob("ids/0.png")):
                yield Frame(np.zeros((*SIZE, 3), np.uint8), "0", Fraction(0))
            os.kill(os.getpid(), number)

    monkeypatch.setattr("enet_deploy.commands.segment.open_named_source", lambda *_: Signalled("it"))
    with pytest.raises(error) as caught:
        segment(exported, "sample", labels=tmp_path / "ids", json=tmp_path / "lines")
    assert getattr(caught.value, "code", 143) == 143
    assert (tmp_path / "lines").read_text().startswith('{"frame": "0"')
