"""Learning rate, crop size, losses and precision by step, and the number of epochs that fit into a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_runs import CPU, STEPS, splits

from enet_deploy.training.checkpoint import Checkpoint
from enet_deploy.training.recipe import Recipe
from enet_deploy.training.schedule import Schedule, epochs_in_time
from enet_deploy.training.trainer import Trainer


def test_rate_rises_in_the_warm_up_and_then_falls_to_zero() -> None:
    schedule = Schedule(Recipe(epochs=10, lr=0.1, warmup=4, power=0.5), steps_per_epoch=10)
    rates = [schedule.learning_rate(step) for step in range(schedule.total_steps + 1)]
    assert rates[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1]) and rates[-1] == 0
    assert rates[52] == pytest.approx(0.1 * 0.5**0.5)  # half of the way
    short = Schedule(Recipe(epochs=2, lr=0.1, warmup=4), steps_per_epoch=10)
    assert short.warmup == 2  # a tenth of it, as a short run has to learn too
    replanned = Schedule(Recipe(epochs=90, minutes=1.0, warmup=300), steps_per_epoch=20, first_plan=60)
    assert replanned.warmup == 120  # not 180: one that has ended does not come back
    timed = Schedule(Recipe(epochs=2, minutes=1.0, warmup=300), steps_per_epoch=10)
    assert timed.warmup == 20  # two epochs, after which its length is known


def test_late_parts_of_the_schedule() -> None:
    recipe = Recipe(epochs=2, warmup=1, amp=True, lovasz_from=0.5, crop=(64, 64), final_crop=(96, 96), final_from=0.75)
    schedule = Schedule(recipe, steps_per_epoch=10)
    assert [schedule.in_bfloat16(step) for step in (0, 1)] == [False, True]
    assert [schedule.with_lovasz(step) for step in (9, 10)] == [False, True]
    assert [schedule.crop(step) for step in (14, 15)] == [(64, 64), (96, 96)]


def test_epochs_that_fit_into_the_time() -> None:
    recipe = Recipe(minutes=1.0, eval_every=2)
    history = [{"seconds": 20.0, "val_seconds": 4.0}]
    assert epochs_in_time(recipe, history) == recipe.epochs  # the first epoch is no measure
    history += [{"seconds": 4.0}]
    assert epochs_in_time(recipe, history) == 2 + (60 - 28 - 4) // (4 + 4 / 2)
    assert epochs_in_time(recipe, [{"seconds": 100.0}]) == 1


class Clock:
    """Stands in for the module `time`: epochs take 0.8 s, the first one 70, evaluations 2."""

    def __init__(self, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        took = {"_mean_loss_of_epoch": lambda: 70.0 if trainer.epoch == 0 else 0.8, "_val_scores": lambda: 2.0}
        for name, seconds in took.items():
            monkeypatch.setattr(trainer, name, functools.partial(self.take, getattr(trainer, name), seconds))

    def take(self, work: Callable[[], Any], seconds: Callable[[], float]) -> Any:
        self.now += seconds()
        return work()

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


@pytest.mark.slow
def test_minutes_are_filled_with_one_schedule(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though libraries compile and choose kernels in the first epoch."""
    recipe = Recipe(size=(16, 16), crop=(16, 16), batch=4, minutes=1.5, warmup=6, eval_every=10, aux=0.0, noise=0.0)
    trainer = Trainer(*splits(scenes), tmp_path, recipe, CPU)
    clock = Clock(trainer, monkeypatch)
    monkeypatch.setattr("enet_deploy.training.trainer.time", clock)
    trainer.run()
    rates = [row["lr"] for row in trainer.history]
    assert 86 < clock.now <= 90 and trainer.recipe.epochs == len(rates) == trainer.epoch
    assert "val_miou" in trainer.history[0] and "val_miou" in trainer.history[-1]
    peak = rates.index(max(rates))
    assert peak == 2  # the warm-up of six steps ends with the four that are done: a tenth of the whole is less
    assert rates == [*sorted(rates[:peak]), *sorted(rates[peak:], reverse=True)] and rates[-1] < 0.1 * max(rates)
    state = Checkpoint.read(tmp_path)
    assert Trainer(*splits(scenes), tmp_path, state.recipe, CPU, checkpoint=state).over


@pytest.mark.slow
def test_minutes_that_end_in_the_warm_up(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second epoch is still run, and the warm-up ends with the first plan. The recipe keeps what was asked for."""
    recipe = Recipe(size=(16, 16), crop=(16, 16), batch=4, minutes=1.3, warmup=1000, aux=0.0, noise=0.0)
    trainer = Trainer(*splits(scenes), tmp_path, recipe, CPU)
    monkeypatch.setattr("enet_deploy.training.trainer.time", Clock(trainer, monkeypatch))
    trainer.run()
    assert trainer.epoch > 2 and trainer.step.schedule.warmup == 2 * STEPS
    assert trainer.recipe.warmup == Checkpoint.read(tmp_path).recipe.warmup == 1000  # so --resume may give it again
    assert trainer.history[2]["lr"] > 0.5 * recipe.lr > 10 * trainer.history[0]["lr"]
