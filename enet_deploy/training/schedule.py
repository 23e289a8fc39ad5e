"""What changes in the course of a training: learning rate, crop size, losses, precision; and how long it lasts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .recipe import Recipe

RECENT_EPOCHS = 5  # the speed of a run with a time limit is the median over so many epochs


@dataclass(frozen=True)
class Schedule:
    """A recipe laid out over a number of steps per epoch. Steps are counted from 0 over the whole training.

    Attributes:
        first_plan: of a run with a time limit, the number of epochs that its first two let expect; 0 before. The
            warm-up goes by it, as later plans would bring back one that has ended.
    """

    recipe: Recipe
    steps_per_epoch: int
    first_plan: int = 0

    @property
    def total_steps(self) -> int:
        return self.recipe.epochs * self.steps_per_epoch

    @property
    def warmup(self) -> int:
        """Steps of warm-up: at most a tenth of the training.

        With a time limit two epochs may be warm-up in any case: the length is first known after them.
        """
        at_least = 2 * self.steps_per_epoch if self.recipe.minutes else 0
        planned = (self.first_plan or self.recipe.epochs) * self.steps_per_epoch
        return min(self.recipe.warmup, max(planned // 10, at_least))

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then polynomial decay to zero."""
        warmup = self.warmup
        if step < warmup:
            return self.recipe.lr * ((step + 1) / warmup)
        progress = min(1.0, (step - warmup) / max(1, self.total_steps - warmup))
        return float(self.recipe.lr * (1 - progress) ** self.recipe.power)

    def crop(self, step: int) -> tuple[int, int]:
        """(height, width) of the crops."""
        return self.recipe.final_crop if step >= self.recipe.final_from * self.total_steps else self.recipe.crop

    def with_lovasz(self, step: int) -> bool:
        """Whether the Lovasz-softmax loss is added."""
        return self.recipe.lovasz > 0 and step >= self.recipe.lovasz_from * self.total_steps

    def in_bfloat16(self, step: int) -> bool:
        """Whether the forward pass runs under autocast."""
        return self.recipe.amp and step >= self.warmup


def evaluation_is_due(recipe: Recipe, epoch: int) -> bool:
    """Whether to score on val after this epoch, counted from 1."""
    timed = recipe.minutes > 0 and epoch == 1  # to know how long an evaluation takes
    return timed or epoch % recipe.eval_every == 0 or epoch == recipe.epochs


def best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    """The first epoch with the highest val mIoU; 0 before the first evaluation."""
    scored = [row for row in history if "val_miou" in row]
    return int(max(scored, key=lambda row: row["val_miou"])["epoch"]) if scored else 0


def out_of_patience(recipe: Recipe, history: Sequence[Mapping[str, float]]) -> bool:
    """Whether the recipe's patience has run out."""
    best = best_epoch(history)
    since = sum("val_miou" in row for row in history if row["epoch"] > best)
    return 0 < recipe.patience <= since


def epochs_in_time(recipe: Recipe, history: Sequence[Mapping[str, float]]) -> int:
    """The number of epochs that fit into the recipe's minutes, judged by the epochs in `history`.

    The first epoch is no measure, because libraries choose and compile their kernels in it. So the second epoch always
    starts if there is time left.
    """
    spent = sum(row["seconds"] + row.get("val_seconds", 0.0) for row in history)
    evaluation = min((row["val_seconds"] for row in history if "val_seconds" in row), default=0.0)
    left = 60 * recipe.minutes - spent - evaluation  # the last epoch is evaluated
    if left <= 0:
        return len(history)
    if len(history) == 1:
        return max(2, recipe.epochs)
    seconds = statistics.median(row["seconds"] for row in history[1:][-RECENT_EPOCHS:])
    return len(history) + int(left / max(1e-3, seconds + evaluation / recipe.eval_every))
