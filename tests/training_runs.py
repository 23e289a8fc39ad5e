"""What the tests of training build on: short runs of `enet-train` on synthetic scenes, and what they leave."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from enet_deploy.commands import train as train_cli
from enet_deploy.data import DataSet, open_data
from enet_deploy.training.step import TrainingStep
from enet_deploy.weights import load_weights

CPU = torch.device("cpu")
TINY = {"size": "48x64", "crop": "32x32", "batch": 4, "epochs": 2, "eval_every": 2}
STEPS = 2  # per epoch: eight images in batches of four
FILES = ["best.safetensors", "checkpoint.pt", "last.safetensors", "log.csv"]
TIMES = {"seconds": "", "val_seconds": ""}  # in a row of the log, what no two runs have alike
STILL = [
    "--scale",
    "1",
    "1",
    "--no-flip",
    "--color",
    "0",
    "--tint",
    "0",
    "--noise",
    "0",
    "--warmup",
    "0",
]  # the same pixels in every epoch

ROOM = {"names": ["floor", "wall", "door"], "colors": [[0, 90, 200], [200, 200, 0], [9, 9, 9]], "ignore_id": None}


def arguments(data: Path, out: Path, *options: str, **changes: Any) -> list[str]:
    recipe = TINY | changes
    return [
        str(data),
        "--out",
        str(out),
        "--device",
        "cpu",
        *(f"--{k.replace('_', '-')}={v}" for k, v in recipe.items()),
        *options,
    ]


def enet_train(data: Path, out: Path, *options: str, **changes: Any) -> int:
    return train_cli.main(arguments(data, out, *options, **changes))


def tensors(weights: Path) -> dict[str, Any]:
    return load_weights(weights)[0].state_dict()


def assert_same_tensors(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def splits(data: Path) -> tuple[DataSet, DataSet, str]:
    return open_data(data, "train"), open_data(data, "val"), "train"


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_refused(code: int, capsys: pytest.CaptureFixture[str], *values: str) -> None:
    """Exit code 2, and one line that names these values."""
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and error.startswith("enet-train: error: "), error
    assert [value for value in values if value not in error] == [], error


@contextlib.contextmanager
def interrupted_in_the_second_epoch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C at the first step after a checkpoint was written."""
    original = TrainingStep.__call__

    def interrupted(step: TrainingStep, *args: Any) -> Any:
        if step.done == step.schedule.steps_per_epoch:
            raise KeyboardInterrupt
        return original(step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", interrupted)
        patch.setattr("enet_deploy.training.trainer.CHECKPOINT_SECONDS", 0.0)
        yield
