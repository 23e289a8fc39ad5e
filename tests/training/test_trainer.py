"""The loop: what a run leaves, that it learns, what a step does, and that several processes train one network."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT, write_scenes
from torch import nn
from training_runs import (
    CPU,
    FILES,
    ROOM,
    STEPS,
    STILL,
    arguments,
    assert_refused,
    assert_same_tensors,
    enet_train,
    interrupted_in_the_second_epoch,
    rows,
    splits,
    tensors,
)

from enet_deploy.classes import CAMVID
from enet_deploy.commands import train as train_cli
from enet_deploy.data import open_data
from enet_deploy.errors import EnetError
from enet_deploy.model import Segmenter
from enet_deploy.training.captured import CapturedGradients
from enet_deploy.training.checkpoint import Checkpoint
from enet_deploy.training.recipe import Recipe
from enet_deploy.training.step import TrainingStep
from enet_deploy.training.trainer import Trainer
from enet_deploy.weights import load_weights


def test_run_leaves_weights_checkpoint_and_log(finished: Path) -> None:
    names = (path.name for path in finished.iterdir())
    assert sorted(name for name in names if not name.startswith(".")) == FILES  # others may hold its lock
    log = rows(finished)
    assert [*log[0]] == [
        "epoch", "loss", "lr", "seconds", "val_miou", "val_pixel_accuracy", "val_dice", "val_class_average",
        "val_miou_void_counts", "val_pixel_accuracy_void_counts", "val_dice_void_counts",
        *(f"val_iou_{name}" for name in CAMVID.names), "val_seconds",
    ]  # fmt: skip
    scores = [float(iou) for name, iou in log[1].items() if name.startswith("val_iou_") and iou]  # "": not in val
    assert np.mean(scores) == pytest.approx(float(log[1]["val_miou"]))
    assert [row["epoch"] for row in log] == ["1", "2"]
    assert [bool(row["val_miou"]) for row in log] == [False, True]
    assert all(math.isfinite(float(row["loss"])) for row in log)
    _, best = load_weights(finished / "best.safetensors")
    _, last = load_weights(finished / "last.safetensors")
    assert best.details["figures"]["val_miou"] == pytest.approx(float(log[1]["val_miou"]), abs=1e-5)
    assert last.details["figures"]["epoch"] == 2
    assert last.details["figures"]["lr"] == pytest.approx(float(log[1]["lr"]), rel=1e-4)
    assert last.classes == CAMVID and last.size == (48, 64)
    assert last.details["recipe"]["crop"] == [32, 32] and last.details["images"] == {"train": 8, "val": 4}


def test_mean_and_std_are_those_of_the_training_images(finished: Path, scenes: Path) -> None:
    pixels = np.concatenate([image.reshape(-1, 3) for image, _ in open_data(scenes, "train")]).astype(float)
    _, metadata = load_weights(finished / "last.safetensors")
    assert metadata.mean == pytest.approx(pixels.mean(axis=0), abs=1e-3)
    assert metadata.std == pytest.approx(pixels.std(axis=0), abs=1e-3)


@pytest.mark.slow
def test_loss_falls_on_a_scene_seen_again_and_again(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "data", {"train": 2, "val": 1})
    options = {"crop": "48x64", "batch": 2, "epochs": 12, "eval_every": 12, "lr": 0.03, "power": 0, "ema": 0}
    options["class_weight_c"] = 1.1  # near-equal weights: two scenes have hardly a pixel of the rare classes
    assert enet_train(data, tmp_path / "run", *STILL, **options) == 0
    losses = [float(row["loss"]) for row in rows(tmp_path / "run")]
    assert losses[-1] < 0.7 * losses[0]


MIOU = {1: 0.3, 2: 0.5, 3: 0.4, 4: 0.5, 5: 0.9}  # epoch -> val mIoU


@pytest.mark.slow
def test_run_stops_when_its_patience_is_at_its_end(
    finished: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if it was interrupted, and then with the same weights."""
    monkeypatch.setattr(Trainer, "_val_scores", lambda trainer: {"val_miou": MIOU[trainer.epoch]})
    options = {"epochs": 5, "eval_every": 1, "patience": 2, "ema": 0, "batch": 8}
    with caplog.at_level("INFO"):
        assert enet_train(scenes, tmp_path / "whole", **options) == 0
    assert "stopped after epoch 4 of 5: 2 evaluations without a better val mIoU than 0.5000 of epoch 2" in caplog.text
    with interrupted_in_the_second_epoch(monkeypatch):
        assert enet_train(scenes, tmp_path / "broken", **options) == 130
    for _ in range(2):  # the second time there is nothing to do
        assert train_cli.main([str(scenes), "--out", str(tmp_path / "broken"), "--device", "cpu", "--resume"]) == 0
        assert [row["epoch"] for row in rows(tmp_path / "broken")] == ["1", "2", "3", "4"]
        for name in ("last.safetensors", "best.safetensors"):
            assert_same_tensors(*(tensors(tmp_path / run / name) for run in ("whole", "broken")))
    assert load_weights(tmp_path / "whole" / "best.safetensors")[1].details["figures"]["epoch"] == 2
    assert enet_train(scenes, tmp_path / "patient", **options | {"patience": 0}) == 0
    assert len(rows(tmp_path / "patient")) == 5


@pytest.mark.parametrize("option", ["--with-val", "--extra"])
def test_patience_is_refused_if_val_is_trained_on(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    """Also if val comes under another name."""
    more = []
    if option == "--extra":
        more = [str(tmp_path)]
        (tmp_path / "train").symlink_to(scenes / "val")
        (tmp_path / "trainannot").symlink_to(scenes / "valannot")
    code = enet_train(scenes, tmp_path / "run", option, *more, "--patience", "2")
    assert_refused(code, capsys, "patience 2", "--hold-out")


@pytest.mark.slow
def test_three_classes_train_without_a_change(room: Path, tmp_path: Path) -> None:
    assert enet_train(room, tmp_path, epochs=1) == 0
    net, metadata = load_weights(tmp_path / "best.safetensors")
    assert net.num_classes == 3 and metadata.classes.to_json() == ROOM


@pytest.mark.slow
def test_image_of_void_alone_is_passed_over(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "data", {"train": 2, "val": 1})
    cv2.imwrite(str(data / "trainannot" / "scene0000.png"), np.full((96, 128), CAMVID.ignore_id, np.uint8))
    assert enet_train(data, tmp_path / "run", batch=1, epochs=1) == 0
    assert math.isfinite(float(rows(tmp_path / "run")[0]["loss"]))


def test_val_without_a_label_is_refused_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_scenes(tmp_path / "data", {"train": 4, "val": 1})
    for path in (data / "valannot").iterdir():
        cv2.imwrite(str(path), np.full((96, 128), CAMVID.ignore_id, np.uint8))
    assert_refused(enet_train(data, tmp_path / "run"), capsys, "val pixel is void")


def test_classes_weigh_by_their_share(scenes: Path, tmp_path: Path) -> None:
    labels = np.concatenate([labels.ravel() for _, labels in open_data(scenes, "train")])
    shares = np.bincount(labels[labels != CAMVID.ignore_id], minlength=len(CAMVID)) / (labels != CAMVID.ignore_id).sum()
    trainer = Trainer(*splits(scenes), tmp_path, Recipe(crop=(64, 64), batch=4, class_weight_c=1.02), CPU)
    assert trainer.class_weights.tolist() == pytest.approx((1 / np.log(1.02 + shares)).tolist(), rel=1e-5)


@pytest.mark.slow
def test_weights_that_are_no_numbers_are_not_saved(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a step is known before its weights are; a checkpoint of the last step's would be useless."""
    recipe = Recipe(size=(48, 64), crop=(32, 32), batch=4, epochs=3, eval_every=3)
    trainer = Trainer(*splits(scenes), tmp_path, recipe, CPU)
    train_epoch = trainer._mean_loss_of_epoch

    def poisoned() -> float:
        loss = train_epoch()
        if trainer.epoch == 1:
            trainer.step.net.fullconv.weight.data[0] = math.nan
        return loss

    monkeypatch.setattr(trainer, "_mean_loss_of_epoch", poisoned)
    monkeypatch.setattr("enet_deploy.training.trainer.CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(EnetError, match=r"epoch 2.* epoch 1.*checkpoint\.pt"):
        trainer.run()
    state = Checkpoint.read(tmp_path)
    assert state.epoch == 1 and all(tensor.isfinite().all() for tensor in state.net.values())


@pytest.mark.slow
def test_lovasz_is_added_when_the_recipe_says(scenes: Path, tmp_path: Path) -> None:
    losses = {}
    for start in ("0.5", "1"):
        out = tmp_path / start
        assert enet_train(scenes, out, "--lovasz", "5", "--lovasz-from", start) == 0
        losses[start] = [float(row["loss"]) for row in rows(out)]
    (first, second), (plain_first, plain_second) = losses["0.5"], losses["1"]
    assert first == plain_first and second > plain_second + 1


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """The images of every training step, and the network's tensors after it."""
    seen: list[tuple[Any, dict[str, Any]]] = []
    step = TrainingStep.__call__

    def watched(self: TrainingStep, images: Any, labels: Any) -> Any:
        loss = step(self, images, labels)
        seen.append((images, {name: value.clone() for name, value in self.net.state_dict().items()}))
        return loss

    monkeypatch.setattr(TrainingStep, "__call__", watched)
    return seen


@pytest.mark.slow
def test_average_of_the_weights_is_what_is_saved(
    scenes: Path, tmp_path: Path, steps: list[tuple[Any, dict[str, Any]]]
) -> None:
    """After the first step it is the network's weights, from then on decay * average + (1 - decay) * weights.

    The decay grows to the recipe's; at the second step it is 2/11. BatchNorm's statistics are those of the averaged
    weights on the crops: the first layer's can be computed by hand.
    """
    assert enet_train(scenes, tmp_path, *STILL, crop="48x64", epochs=1, ema=0.75, lr=0.01, prior_correction=0) == 0
    (images, first), (more_images, second) = steps
    net, metadata = load_weights(tmp_path / "last.safetensors")
    for name, value in net.named_parameters():
        torch.testing.assert_close(value.data, 2 / 11 * first[name] + 9 / 11 * second[name])
    assert not torch.equal(first["fullconv.weight"], second["fullconv.weight"])
    segmenter = Segmenter(net, metadata.mean, metadata.std)
    with torch.no_grad():
        maps = net.initial.conv(segmenter.normalise(torch.cat([images, more_images])))
    torch.testing.assert_close(net.initial.bn.running_mean[:13], maps.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("still", [True, False])
def test_every_epoch_has_another_order_and_other_crops(
    scenes: Path, tmp_path: Path, steps: list[tuple[Any, dict[str, Any]]], still: bool
) -> None:
    assert enet_train(scenes, tmp_path, *(STILL if still else []), crop="48x64") == 0
    first, second = (
        [image.numpy().tobytes() for images, _ in steps[i : i + STEPS] for image in images] for i in (0, 2)
    )
    assert len({*first}) == len({*second}) == 8  # every image once
    assert first != second
    assert ({*first} == {*second}) is still


def test_steps_take_the_schedule_s_learning_rate(scenes: Path, tmp_path: Path) -> None:
    recipe = Recipe(size=(48, 64), crop=(32, 32), batch=4, epochs=10, warmup=2)
    trainer = Trainer(*splits(scenes), tmp_path, recipe, CPU)
    for step, _ in enumerate(trainer.steps()):
        rates = {group["lr"] for group in trainer.step.optimizer.param_groups}
        assert rates == {trainer.step.schedule.learning_rate(step)} == {recipe.lr * (step + 1) / 2}


@pytest.mark.slow
def test_other_arithmetic_trains_too(scenes: Path, tmp_path: Path) -> None:
    assert enet_train(scenes, tmp_path, "--amp", epochs=1) == 0
    assert math.isfinite(float(rows(tmp_path)[0]["loss"]))


@pytest.mark.slow
def test_run_with_the_options_of_a_gpu(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, for so many minutes, and traced by torch.compile, whose compiler alone is left out."""
    compiled = functools.partialmethod(nn.Module.compile, backend="eager")
    monkeypatch.setattr(nn.Module, "compile", compiled)
    options = [str(scenes), "--out", str(tmp_path), "--size", "48x64", "--crop", "32x32", "--batch", "4", "--amp"]
    assert train_cli.main([*options, "--minutes", "0.03", "--warmup", "3", "--compile"]) == 0
    recipe = Checkpoint.read(tmp_path).recipe
    assert recipe.minutes == 0.03 and recipe.epochs == len(rows(tmp_path))


def repeat(module: nn.Module) -> Callable[[Callable[[], torch.Tensor]], tuple[Callable[[], None], torch.Tensor]]:
    """What CUDA graphs do, without a GPU: the same work again, its loss and gradients into the same memory."""

    def record(work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        loss = work()
        gradients = [parameter.grad for parameter in module.parameters()]

        def replay() -> None:
            loss.copy_(work())
            for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                if gradient is not None:
                    gradient.copy_(parameter.grad)

        return replay, loss

    return record


@pytest.mark.slow
def test_captured_steps_are_the_eager_ones(scenes: Path, tmp_path: Path) -> None:
    """In float32 and bfloat16, with Lovasz-softmax and without; dropout and the statistics of BatchNorm too."""
    recipe = Recipe(size=(48, 64), crop=(32, 32), batch=4, epochs=5, eval_every=5, warmup=2, amp=True, lovasz_from=0.5)
    recipe = dataclasses.replace(recipe, final_crop=(48, 64), final_from=0.75)
    for name in ("eager", "captured"):
        trainer = Trainer(*splits(scenes), tmp_path / name, recipe, CPU)
        if name == "captured":
            step = trainer.step
            record = repeat(step.objective)
            gradients = CapturedGradients(step.forward_backward, step.objective, record)
            step.captured, step.compute_gradients = True, gradients
        trainer.run()
    found = [(shape[1], *variant) for shape, variant in gradients.recorded]
    assert found == [(32, False, False), (32, True, False), (32, True, True), (48, True, True)]
    assert_same_tensors(*(tensors(tmp_path / name / "last.safetensors") for name in ("eager", "captured")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing to capture")
def test_captured_steps_are_the_eager_ones_on_a_gpu(scenes: Path, tmp_path: Path) -> None:
    """The gradients of one batch, of every variant and size, and of the first again: all graphs share their memory."""
    recipe = Recipe(size=(48, 64), crop=(32, 32), batch=4)
    trainer = Trainer(*splits(scenes), tmp_path, recipe, torch.device("cuda"))
    trainer.step.model.train()
    captured, parameters = trainer.step.compute_gradients, list(trainer.step.objective.parameters())
    plain = Trainer(*splits(scenes), tmp_path, recipe, torch.device("cuda"), captured=False).step
    assert isinstance(captured, CapturedGradients) and not isinstance(plain.compute_gradients, CapturedGradients)
    variants = [(False, False), (True, False), (True, True), (False, True), (False, False)]
    for crop in (32, 32), (48, 64):
        images, labels = next(trainer.crops.batches([[0, 1, 2, 3]], 0, crop))
        for variant in variants:
            found = []
            for gradients in (captured, trainer.step.forward_backward):
                torch.manual_seed(0)  # dropout
                loss = gradients(images, labels, variant).item()
                found.append((loss, torch.cat([p.grad.flatten().clone() for p in parameters if p.grad is not None])))
            assert found[0][0] == pytest.approx(found[1][0], rel=1e-2)
            assert torch.nn.functional.cosine_similarity(found[0][1], found[1][1], dim=0) > 0.99, (crop, variant)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing to wait for")
def test_a_step_never_waits_for_the_gpu(scenes: Path, tmp_path: Path) -> None:
    recipe = Recipe(size=(96, 128), crop=(64, 64), batch=2, aux=0.4, lovasz=1.0, lovasz_from=0.0, noise=8.0, amp=True)
    recipe = dataclasses.replace(recipe, warmup=0)
    trainer = Trainer(*splits(scenes), tmp_path, recipe, torch.device("cuda"))
    batches = trainer.crops.batches([[0, 1], [2, 3]], 0, recipe.crop)
    trainer.step(*next(batches))  # kernels are chosen and memory is taken
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step(*next(batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")


SCRIPT = """
import sys
import torch
import torch.distributed as dist
from enet_deploy.commands import train as train_cli
from enet_deploy.training import trainer as train

run = train.Trainer.run

def run_and_compare(trainer, report):
    run(trainer, report)
    own = torch.cat([parameter.detach().flatten() for parameter in trainer.step.net.parameters()])
    both = [torch.empty_like(own) for _ in range(2)]
    dist.all_gather(both, own)
    print("the same weights" if torch.equal(*both) else "other weights", flush=True)

train.Trainer.run = run_and_compare
sys.exit(train_cli.main())
"""


@pytest.mark.slow
def test_two_processes_train_one_network(scenes: Path, tmp_path: Path) -> None:
    # three interpreters that import torch: ten seconds
    script, out = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(script), *arguments(scenes, out, "--aux", "0.4", epochs=1)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    # each process saw other crops: without exchanged gradients the weights would differ
    assert done.stdout.count("the same weights") == 2, done.stdout
    assert sorted(path.name for path in out.iterdir()) == FILES
    # each process has half of a batch: the data set takes as many steps as in one process
    assert Checkpoint.read(out).step == STEPS
