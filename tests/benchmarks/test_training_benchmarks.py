"""The commands that compare recipes and training speed, on drawn scenes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from enet_deploy.benchmarks import ablation
from enet_deploy.benchmarks.measure import training
from enet_deploy.training.trainer import Trainer
from enet_deploy.weights import load_weights

TINY = [
    "--folds",
    "scene000",
    "--size",
    "48x64",
    "--crop",
    "32x32",
    "--batch",
    "2",
    "--base-steps",
    "2",
    "--steps",
    "2",
]
VARIANTS = ["--variants", ablation.REFERENCE, "Lovasz 1", ablation.TAUGHT]


def ablate(scenes: Path, folder: Path, *options: str) -> int:
    out = ["--out", str(folder / "result.json"), "--runs", str(folder / "runs")]
    return ablation.main([str(scenes), *out, *TINY, *VARIANTS, *options])


def test_ablation_compares_variants_and_goes_on_where_it_stopped(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablate(scenes, tmp_path) == 0
    found = json.loads((tmp_path / "result.json").read_text())
    assert [(run["variant"], run["fold"]) for run in found["runs"]] == [
        (ablation.REFERENCE, "scene000"),
        ("Lovasz 1", "scene000"),
        (ablation.TAUGHT, "scene000"),
    ]
    (taught,) = tmp_path.glob("runs/scene000-0/*taught*/last.safetensors")
    assert load_weights(taught)[1].details["teacher"]["width"] == 2
    first, second, _ = (100 * run["figures"]["val_miou"] for run in found["runs"])
    table = (tmp_path / "result.md").read_text()
    assert table in capsys.readouterr().out
    change = f"{second - first:+.1f}"
    assert f"| {first:.1f} (1) | {first:.1f} ({first:.1f} to {first:.1f}) |" in table
    assert f"| Lovasz 1 | {change} (1) | {change} ({change} to {change}) |" in table

    monkeypatch.setattr(Trainer, "_step", lambda *_: pytest.fail("trained again"))
    (tmp_path / "runs/scene000-0/Lovasz-1/last.safetensors").unlink()  # as if it had been cut short there
    written = {file: file.stat().st_mtime_ns for file in tmp_path.glob("runs/*/*/last.safetensors")}
    assert ablate(scenes, tmp_path) == 0
    assert len(written) == 4 and all(file.stat().st_mtime_ns == when for file, when in written.items())
    assert json.loads((tmp_path / "result.json").read_text())["runs"] == found["runs"]
    assert ablate(scenes, tmp_path, "--crop", "40x40") == 2
    assert "holds a run of another recipe; remove it" in capsys.readouterr().err


def test_training_speed(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    options = ["--crop", "32x32", "--batch", "2", "--seconds", "0.1", "--turns", "1"]
    assert training.main([str(scenes), *options, "--json", str(out)]) == 0
    speeds = json.loads(out.read_text())["crops_per_second"]
    assert set(speeds) == {"usual loop", "enet-train"} and min(speeds.values()) > 0
    assert "times as many" in capsys.readouterr().out
    assert training.main([str(scenes), "--batch", "9"]) == 2
    assert "batch 9 for 8 training images" in capsys.readouterr().err
