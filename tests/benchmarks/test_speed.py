"""`enet_deploy.benchmarks.studies.speed`: what is timed is the same network, and the table says what was seen."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from enet_deploy.benchmarks.measure.processes import Processes
from enet_deploy.benchmarks.measure.timing import times
from enet_deploy.benchmarks.studies import calls, speed
from enet_deploy.data.scenes import street_scene
from enet_deploy.errors import ArtifactError, EnetError
from enet_deploy.model import Segmenter
from enet_deploy.weights import load_weights

pytestmark = pytest.mark.docs

SMALL = (96, 128)


@pytest.mark.slow
def test_baselines_give_the_same_labels(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    net, metadata = load_weights(weights)
    net.stage2, net.stage3 = net.stage2[:4], net.stage3[:2]  # so that the four exports take half as long
    for module in (calls, speed):
        monkeypatch.setattr(module, "load_weights", lambda _: (net, metadata))
    frames = street_scene(0, SMALL)[0][None]
    with torch.inference_mode():
        expected = Segmenter(net, metadata.mean, metadata.std).eval()(torch.from_numpy(frames)).numpy()
    assert len(np.unique(expected)) > 2
    for makers in (speed.plain_makers, speed.mask_makers):
        for name, make in makers(weights, SMALL, str(tmp_path)).items():
            labels = make()()
            assert isinstance(labels, np.ndarray) and labels.dtype == np.uint8
            least = 0.95 if name == speed.MASK else 0.9999  # the mask is wrong on ties, which drawn scenes are full of
            assert (labels == expected).mean() >= least, name


@pytest.mark.slow
def test_every_row_has_its_calls(
    weights: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(speed, "to_onnx", lambda _, path, **__: shutil.copy(exported, path))
    monkeypatch.setattr(speed, "export", lambda _module, _example, path: path)
    makers = speed.our_makers(weights, SMALL, str(tmp_path))
    others = (speed.LIMIT, speed.VIDEO, speed.THROUGHPUT)
    makers[speed.THROUGHPUT]()()
    for name, make in makers.items():
        if " at " not in name and name not in others:  # " at ": frames of other sizes than this graph's
            labels = make()()
            shape = calls.CAMERA if name in (speed.SEGMENT, speed.STREAM) else (1, *SMALL)
            assert isinstance(labels, np.ndarray) and labels.shape == shape, name
    makers |= speed.plain_makers(weights, SMALL, "") | speed.mask_makers(weights, SMALL, "")
    names = {name for row in speed.ROWS for name in (*row.slower, *row.faster)}
    assert makers.keys() in (names, {name for name in names if "bf16" not in name})


def test_rows_without_a_call_are_left_out() -> None:
    rows = [speed.Row(("a",), ("b", "c")), speed.Row(("a",), ("b",)), speed.Row(("a",), ("c",), least=2)]
    assert speed.measurable(rows, {"a", "c"}) == [speed.Row(("a",), ("c",)), speed.Row(("a",), ("c",), least=2)]


@pytest.mark.slow
def test_labelling_a_video_is_timed_to_its_last_frame(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("av")
    assert calls.labelling_a_video(exported, calls.write_video(tmp_path / "a.mp4"))() == calls.FRAMES


def test_a_row_is_judged_by_the_median_of_its_rounds() -> None:
    blocks = {"plain": [10.0, 30.0, 20.0], "a": [5.0, 5.0, 5.0], "b": [4.0, 10.0, 5.0], "c": [9.0, 9.0, 9.0]}
    found = speed.evaluate_row(speed.Row(("plain",), ("a", "c"), least=4.0), blocks)
    assert (found["faster"], found["ratio"], found["reached"]) == ("a", 4.0, True)
    assert (found["lowest"], found["highest"], found["wanted"]) == (2.0, 6.0, ">= 4")
    assert not speed.evaluate_row(speed.Row(("plain",), ("b",), most=2.5), blocks)["reached"]
    assert speed.as_markdown([found]).splitlines()[2] == (
        "| plain, 20.0 | a, 5.0 | 4.00 (2.00 to 6.00) | >= 4 | reached |"
    )


@pytest.mark.slow
def test_command_prints_its_table_and_keeps_the_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    makers = {name: partial(partial, abs, 1) for row in speed.ROWS for name in (*row.slower, *row.faster)}
    monkeypatch.setattr(speed, "plain_makers", lambda *_: makers)
    monkeypatch.setattr(speed, "mask_makers", lambda *_: {})
    monkeypatch.setattr(speed, "our_makers", lambda *_: {})
    out = tmp_path / "speed.json"
    assert speed.main(["--rounds", "2", "--size", "64x96", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert (result["schema"], result["size"], len(result["rows"])) == (1, [64, 96], len(speed.ROWS))
    assert all([len(block) for block in blocks] == [speed.CALLS] * 2 for blocks in result["samples_ms"].values())
    assert speed.as_markdown(result["rows"]) in capsys.readouterr().out
    assert speed.main(["--weights", "none.safetensors"]) == 2


def refuse() -> Callable[[], object]:
    raise ArtifactError("none.onnx does not exist")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (refuse, r"^none.onnx does not exist"),
        (partial(float, "x"), r"^a: ValueError: could not convert string to float"),
        (partial(os._exit, 1), r"the process of 'a' ended with exit code 1"),
    ],
)
def test_error_in_a_process_is_raised_here(make: Callable[[], Callable[[], object]], message: str) -> None:
    with pytest.raises(EnetError, match=message), Processes() as processes:
        processes.start("good", partial(partial, abs, 1))
        processes.start("a", make)
    assert not multiprocessing.active_children()


def test_process_that_ends_between_two_blocks() -> None:
    with Processes() as processes:
        processes.start("a", partial(partial, abs, 1))
        assert len(processes.ask("a", times, 2)) == 2
        (child,) = multiprocessing.active_children()
        child.kill()
        child.join()
        for _ in range(2):
            with pytest.raises(EnetError, match="the process of 'a' ended"):
                processes.ask("a", times, 1)
