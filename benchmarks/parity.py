"""Is it still the same network? Labels and logits of a runner against PyTorch's, and both against the truth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from enet_deploy.data import ClassList, UInt8Array
from enet_deploy.errors import ParityError
from enet_deploy.metrics import ConfusionMatrix
from enet_deploy.runners import Runner

LOGIT_FRAMES = 8  # logits are compared on the first few frames: they are 44 times the labels' size


@dataclass
class Parity:
    """What one runner said about the same images as the reference.

    Attributes:
        against_reference: counts of pixels by (reference's label, runner's label), empty without a reference.
        against_truth: counts of pixels by (true label, runner's label), empty without a data set.
        max_abs_logit: largest difference of a logit, or None where the artifact gives none.
        unpool_flips: stage -> share of pooling windows whose winner is another one, or None where that is not known.
    """

    classes: ClassList
    against_reference: ConfusionMatrix = field(init=False)
    against_truth: ConfusionMatrix = field(init=False)
    max_abs_logit: float | None = None
    unpool_flips: dict[str, float] | None = None

    def __post_init__(self) -> None:
        self.against_reference = ConfusionMatrix(self.classes)
        self.against_truth = ConfusionMatrix(self.classes)

    def parity_json(self) -> dict[str, Any] | None:
        """Agreement (share of equal labels), largest logit difference, unpool flips, Dice and IoU with the reference
        as truth."""
        if not self.against_reference.counts.any():
            return None
        scores = self.against_reference.scores()
        return {
            "agreement": scores.pixel_accuracy,
            "max_abs_logit": self.max_abs_logit,
            "unpool_flips": self.unpool_flips,
            "miou": scores.miou,
            "dice": scores.dice,
            "per_class": scores.per_class,
        }

    def accuracy_json(self) -> dict[str, Any] | None:
        return self.against_truth.scores().to_json() if self.against_truth.counts.any() else None

    def add_logits(self, runner: Runner, frames: UInt8Array, expected: npt.NDArray[np.float32]) -> None:
        difference = float(np.abs(runner.logits(frames) - expected).max())
        if math.isnan(difference):
            raise ParityError(
                f"{runner.artifact} on {runner.backend} gives logits that are no number; do not deploy it"
            )
        self.max_abs_logit = max(difference, self.max_abs_logit or 0.0)


def compare(
    reference: Runner | None, runners: Sequence[Runner], pairs: Iterable[tuple[UInt8Array, UInt8Array | None]]
) -> tuple[Parity, list[Parity]]:
    """Run all on every image; a fixed batch is filled with copies of it.

    Args:
        reference: PyTorch with the weights that the runners came from, or None to measure accuracy alone.
        pairs: (image, truth), (h, w, 3) uint8 BGR and (h, w) uint8 class ids or None.

    Returns the reference's own accuracy, and parity and accuracy of each runner.
    """
    classes = runners[0].spec.classes
    of_reference, parities = Parity(classes), [Parity(classes) for _ in runners]
    for index, (image, truth) in enumerate(pairs):
        frame, size = runners[0].preprocess(image), (image.shape[0], image.shape[1])
        expected = None if reference is None else reference.infer(frame)
        logits = reference.logits(frame) if reference is not None and index < LOGIT_FRAMES else None
        if expected is not None and truth is not None:
            of_reference.against_truth.update(truth, runners[0].postprocess(expected[0], size))
        for runner, parity in zip(runners, parities, strict=True):
            batch = np.repeat(frame, runner.spec.batch or 1, axis=0)
            labels = runner.infer(batch)
            if expected is not None:
                parity.against_reference.update(np.broadcast_to(expected, labels.shape), labels)
            if truth is not None:
                parity.against_truth.update(truth, runner.postprocess(labels[0], size))
            if logits is not None and runner.spec.has_logits:
                parity.add_logits(runner, batch, logits)
    return of_reference, parities
