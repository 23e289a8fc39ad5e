"""The options of `enet-train`: what is trained on, and what is refused."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_scenes
from training_runs import assert_refused, enet_train, rows

from enet_deploy.commands import train as train_cli
from enet_deploy.files import only_process
from enet_deploy.training.checkpoint import Checkpoint
from enet_deploy.training.recipe import PRESETS, Recipe
from enet_deploy.weights import load_weights


@pytest.mark.parametrize(
    ("options", "values"),
    [
        (["--resume"], ["checkpoint.pt", "--resume"]),
        (["--batch", "9"], ["batch 9", "8 training images", "--batch 8"]),
        (["--device", "tpu"], ["'tpu'"]),
        (["--device", "cpu:x"], ["'cpu:x'"]),
        (["--scale", "2", "0.5"], ["scale (2.0, 0.5)"]),
        (["--epochs", "0"], ["epochs 0"]),
        (["--batch", "1", "--crop", "8x8"], ["crop 8x8", "1 image", "--batch 2"]),
        (["--batch", "1", "--final-crop", "8x8", "--final-from", "0.5"], ["crop 8x8", "1 image"]),
        (["--init", "{out}/best.safetensors"], ["best.safetensors", "which is read"]),
        (["--curve", "{data}/train/scene0000.png"], ["scene0000.png", "which is read"]),
        (["--lr", "1e30"], ["loss is nan", "step 2 of epoch 1", "epoch 0", "checkpoint.pt"]),
        (["--final-crop", "64x64"], ["--final-crop 64x64", "--final-from"]),
        (["--final-from", "2"], ["final_from 2.0"]),
        (["--lovasz-from", "nan"], ["lovasz_from nan"]),
        (["--distill", "0.5"], ["--distill 0.5", "--teacher"]),
        (["--hold-out", "x"], ["'x'", "0 of 12", "'scene0000"]),
        (["--curve", "curve.gif"], ["curve.gif", "'.gif'", ".png", ".svg"]),
        (["--curve", "run.html"], ["run.html", ".png", "--tensorboard"]),
        (["--minutes", "7"], ["--minutes 7.0", "--epochs 2"]),
        (["--teacher", "none.safetensors"], ["none.safetensors"]),
        (["--init", "none.safetensors"], ["none.safetensors"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], values: list[str]
) -> None:
    (tmp_path / "best.safetensors").write_text("of an earlier run")
    filled = [option.format(out=tmp_path, data=scenes) for option in options]
    assert_refused(enet_train(scenes, tmp_path, *filled), capsys, *values)
    assert (tmp_path / "best.safetensors").read_text() == "of an earlier run"


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["1", "2"])
def test_smallest_crops_that_train(scenes: Path, tmp_path: Path, batch: str) -> None:
    assert enet_train(scenes, tmp_path, "--batch", batch, "--crop", "8x16" if batch == "1" else "8x8", epochs=1) == 0


@pytest.mark.slow
def test_second_training_in_a_folder_is_refused(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with only_process(tmp_path):  # its lock holds within a process too
        assert_refused(enet_train(scenes, tmp_path), capsys, str(tmp_path), "another process")
    assert list(tmp_path.iterdir()) == []
    assert enet_train(scenes, tmp_path, epochs=1) == 0


@pytest.mark.parametrize(("option", "word"), [("--slopes", "pixel"), ("--optimizer", "sgd")])
def test_words_that_an_option_does_not_know(capsys: pytest.CaptureFixture[str], option: str, word: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        train_cli.main(["data", option, word])
    assert f"argument {option}: '{word}', expected " in capsys.readouterr().err


def test_every_field_of_the_recipe_is_explained() -> None:
    assert train_cli._explained().keys() == {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_is_refused_without_a_gpu(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = enet_train(scenes, tmp_path, "--device", "cuda")
    assert_refused(code, capsys, "device 'cuda'", "0 CUDA devices")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "values"),
    [
        (["--resume", "--lr", "0.1"], ["--lr 0.1", "0.002"]),
        (["--resume", "--crop", "64x64"], ["--crop (64, 64)", "(32, 32)"]),
        (["--resume", "--preset", "report"], ["--preset", "--resume"]),
        ([], ["--resume", "--out"]),
    ],
    ids=["other rate", "other crop", "a preset", "over an old run"],
)
def test_a_run_is_not_changed_half_way(
    finished: Path,
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    values: list[str],
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")  # one process at a time works in a run's folder
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert_refused(train_cli.main([str(scenes), "--out", str(out), *options]), capsys, *values)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "split", "counts"),
    [
        ([], "train", {"train": 8, "val": 4}),
        (["--with-val"], "train+val", {"train": 12, "val": 4}),
        (["--hold-out", "scene0001"], "train+val without scene0001*", {"train": 11, "val": 1}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_trained_on_and_what_scored(
    scenes: Path, tmp_path: Path, options: list[str], split: str, counts: dict[str, int]
) -> None:
    assert enet_train(scenes, tmp_path, *options, epochs=1) == 0
    details = load_weights(tmp_path / "last.safetensors")[1].details
    assert (details["split"], details["images"]) == (split, counts)


@pytest.mark.slow
def test_more_images_from_another_folder(scenes: Path, room: Path, tmp_path: Path, capsys: Any) -> None:
    more = write_scenes(tmp_path / "more", {"train": 3, "val": 1})
    assert enet_train(scenes, tmp_path / "run", "--extra", str(more), epochs=1) == 0
    details = load_weights(tmp_path / "run" / "last.safetensors")[1].details
    assert (details["split"], details["images"]["train"]) == ("train + 3 more", 11)
    capsys.readouterr()
    code = enet_train(scenes, tmp_path / "other", "--extra", str(room))
    assert_refused(code, capsys, "sky, ", "floor, wall, door")


@pytest.mark.slow
def test_report_preset_is_changed_by_options(scenes: Path, tmp_path: Path) -> None:
    """The size is not the data set's, as in the report."""
    options = ["--preset", "report", "--size", "64x96", "--crop", "32x32", "--epochs", "1"]
    assert train_cli.main([str(scenes), "--out", str(tmp_path), *options]) == 0
    assert vars(Checkpoint.read(tmp_path).recipe) == vars(PRESETS["report"]) | {
        "size": (64, 96),
        "crop": (32, 32),
        "final_crop": (64, 96),
        "epochs": 1,
    }
    assert [row["lr"] for row in rows(tmp_path)] == ["0.0005"]
