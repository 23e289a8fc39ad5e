"""`python -m enet_deploy.benchmarks.speed_cli`: what is timed is the same network, and the table says what was seen."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from enet_deploy import open_runner
from enet_deploy.benchmarks import speed_cli as speed
from enet_deploy.scenes import street_scene


def test_what_ours_is_held_against_gives_the_same_labels(weights: Path, tmp_path: Path) -> None:
    frames = street_scene(0, (96, 128))[0][None]
    with open_runner(weights, "torch", size=(96, 128)) as runner:
        expected = runner.infer(frames)
    folder = str(tmp_path)
    for name, call in {
        **speed.plain_calls(weights, frames, folder),
        **speed.mask_calls(weights, frames, folder),
    }.items():
        labels = call()
        assert labels.dtype == np.uint8
        least = 0.95 if name == speed.MASK else 0.9999  # the mask is wrong on ties, which drawn scenes are full of
        assert (labels == expected).mean() >= least, name


def test_every_row_has_its_calls(
    weights: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "to_onnx", lambda *_, **__: SimpleNamespace(path=exported))
    monkeypatch.setattr(speed, "export", lambda _module, _example, path: path)
    for load in ("onnxruntime_call", "openvino_call"):
        monkeypatch.setattr(speed, load, lambda path: lambda x: x)
    frames = street_scene(0, (96, 128))[0][None]
    with ExitStack() as opened:
        calls = speed.our_calls(weights, frames, str(tmp_path), opened)
        for name, call in calls.items():
            if " at " not in name:  # whose frames are of other sizes than this graph's
                assert call().shape == (1, 96, 128), name
    calls |= speed.plain_calls(weights, frames, "") | speed.mask_calls(weights, frames, "")
    assert calls.keys() == {name for row in speed.ROWS for name in (*row.slower, *row.faster)}


def test_a_row_is_judged_by_the_median_of_its_rounds() -> None:
    blocks = {"plain": [10.0, 30.0, 20.0], "a": [5.0, 5.0, 5.0], "b": [4.0, 10.0, 5.0], "c": [9.0, 9.0, 9.0]}
    found = speed.judge(speed.Row(("plain",), ("a", "c"), least=4.0), blocks)
    assert (found["faster"], found["ratio"], found["reached"]) == ("a", 4.0, True)
    assert (found["lowest"], found["highest"], found["wanted"]) == (2.0, 6.0, ">= 4")
    assert not speed.judge(speed.Row(("plain",), ("b",), most=2.5), blocks)["reached"]
    assert speed.as_markdown([found]).splitlines()[2] == (
        "| plain, 20.0 | a, 5.0 | 4.00 (2.00 to 6.00) | >= 4 | reached |"
    )


def test_command_prints_its_table_and_keeps_the_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = {name: lambda: np.zeros(1, np.uint8) for row in speed.ROWS for name in (*row.slower, *row.faster)}
    monkeypatch.setattr(speed, "plain_calls", lambda *_: calls)
    monkeypatch.setattr(speed, "mask_calls", lambda *_: {})
    monkeypatch.setattr(speed, "our_calls", lambda *_: {})
    out = tmp_path / "speed.json"
    assert speed.main(["--rounds", "2", "--size", "64x96", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert (result["schema"], result["size"], len(result["rows"])) == (1, [64, 96], len(speed.ROWS))
    assert all(len(blocks) == 2 for blocks in result["samples_ms"].values())
    assert speed.as_markdown(result["rows"]) in capsys.readouterr().out
    assert speed.main(["--weights", "none.safetensors"]) == 2
