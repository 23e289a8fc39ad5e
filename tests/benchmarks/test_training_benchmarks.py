"""Training speed against the usual loop, on synthetic scenes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from enet_deploy.benchmarks.measure import training


@pytest.mark.slow
def test_training_speed(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    options = ["--crop", "32x32", "--batch", "2", "--seconds", "0.1", "--turns", "1"]
    assert training.main([str(scenes), *options, "--json", str(out)]) == 0
    speeds = json.loads(out.read_text())["crops_per_second"]
    assert set(speeds) == {"usual loop", "enet-train"} and min(speeds.values()) > 0
    assert "times as many" in capsys.readouterr().out
    assert training.main([str(scenes), "--batch", "9"]) == 2
    assert "batch 9 for 8 training images" in capsys.readouterr().err
    assert training.main([str(scenes), "--device", "tpu"]) == 2
    assert "'tpu'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        training.main([str(scenes), "--seconds", "inf"])
