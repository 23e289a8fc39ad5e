"""Is it still the same network? Labels and logits of a runner against PyTorch's, and both against the truth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from enet_deploy.classes import ClassList
from enet_deploy.errors import ParityError
from enet_deploy.images import UInt8Array
from enet_deploy.metrics import ConfusionMatrix
from enet_deploy.runners import Runner

LOGIT_FRAMES = 8  # logits are compared on the first few frames: they are 44 times the labels' size
BAND = 3  # pixels on either side of an edge between two labels


@dataclass
class Parity:
    """What one runner said about the same images as the reference.

    Attributes:
        against_reference: counts of pixels by (reference's label, runner's label), empty without a reference.
        against_truth: counts of pixels by (true label, runner's label), empty without a data set.
        frames: share of equal labels of each frame, in the order they came.
        band, flips_in_band, flips_inside: pixels within `BAND` of an edge of the reference's labels, and those that
            differ from it in that band and elsewhere.
        max_abs_logit: largest difference of a logit, or None where the artifact gives none.
        p99_abs_logit: 99 of 100 differences of a frame are smaller, in the worst frame; None as above.
        unpool_flips: stage -> share of pooling windows whose winner is another one, or None where that is not known.
    """

    classes: ClassList
    against_reference: ConfusionMatrix = field(init=False)
    against_truth: ConfusionMatrix = field(init=False)
    frames: list[float] = field(default_factory=list)
    band: int = 0
    flips_in_band: int = 0
    flips_inside: int = 0
    max_abs_logit: float | None = None
    p99_abs_logit: float | None = None
    unpool_flips: dict[str, float] | None = None

    def __post_init__(self) -> None:
        self.against_reference = ConfusionMatrix(self.classes)
        self.against_truth = ConfusionMatrix(self.classes)

    def parity_json(self) -> dict[str, Any] | None:
        """Agreement (share of equal labels), flips near edges and away from them, differences of logits, unpool flips,
        Dice and IoU with the reference as truth."""
        if not self.against_reference.counts.any():
            return None
        scores = self.against_reference.scores()
        pixels = int(self.against_reference.counts.sum())
        return {
            "agreement": scores.pixel_accuracy,
            "frames": self.frames,
            "flips": {
                "boundary": self.flips_in_band / pixels,
                "interior": self.flips_inside / pixels,
                "band": self.band / pixels,
            },
            "max_abs_logit": self.max_abs_logit,
            "p99_abs_logit": self.p99_abs_logit,
            "unpool_flips": self.unpool_flips,
            "miou": scores.miou,
            "dice": scores.dice,
            "per_class": scores.per_class,
        }

    def accuracy_json(self) -> dict[str, Any] | None:
        """Figures with the truth as truth, and the counts that they come from: [truth, label], void last."""
        if not self.against_truth.counts.any():
            return None
        return {**self.against_truth.scores().to_json(), "confusion": self.against_truth.counts.tolist()}

    def add_labels(self, expected: UInt8Array, labels: UInt8Array) -> None:
        """Count a batch of copies of one frame: (H, W) of the reference, (N, H, W) of the runner."""
        same = np.broadcast_to(expected, labels.shape)
        self.against_reference.update(same, labels)
        differs = labels != same
        band = np.broadcast_to(near_edge(expected), labels.shape)
        self.band += int(band.sum())
        self.flips_in_band += int((differs & band).sum())
        self.flips_inside += int((differs & ~band).sum())
        self.frames.append(1 - float(differs.mean()))

    def add_logits(self, runner: Runner, logits: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
        """Count a batch of copies of one frame. Raises ParityError for logits that are no number."""
        differences = np.abs(logits - expected)
        difference = float(differences.max())
        if math.isnan(difference):
            raise ParityError(
                f"{runner.artifact} on {runner.backend} gives logits that are no number; do not deploy it"
            )
        self.max_abs_logit = max(difference, self.max_abs_logit or 0.0)
        self.p99_abs_logit = max(float(np.percentile(differences, 99)), self.p99_abs_logit or 0.0)


def near_edge(labels: UInt8Array) -> npt.NDArray[np.bool_]:
    """(H, W) label map -> (H, W): whether another label lies within `BAND` pixels, also aslant."""
    window = np.ones((2 * BAND + 1, 2 * BAND + 1), np.uint8)
    edge: npt.NDArray[np.bool_] = cv2.dilate(labels, window) != cv2.erode(labels, window)
    return edge


def compare(
    reference: Runner | None, runners: Sequence[Runner], pairs: Iterable[tuple[UInt8Array, UInt8Array | None]]
) -> tuple[Parity, list[Parity], bool]:
    """Run all on every image; a fixed batch is filled with copies of it.

    Args:
        reference: PyTorch with the weights that the runners came from, or None to measure accuracy alone.
        pairs: (image, truth), (h, w, 3) uint8 BGR and (h, w) uint8 class ids or None.

    Returns the reference's own accuracy, parity and accuracy of each runner, and whether these are of all images:
    Ctrl-C ends with those that were compared.
    """
    classes = runners[0].spec.classes
    of_reference, parities = Parity(classes), [Parity(classes) for _ in runners]
    try:
        for index, (image, truth) in enumerate(pairs):
            _compare_one(reference, runners, image, truth, of_reference, parities, with_logits=index < LOGIT_FRAMES)
    except KeyboardInterrupt:
        return of_reference, parities, False
    return of_reference, parities, True


def _compare_one(
    reference: Runner | None,
    runners: Sequence[Runner],
    image: UInt8Array,
    truth: UInt8Array | None,
    of_reference: Parity,
    parities: Sequence[Parity],
    *,
    with_logits: bool,
) -> None:
    frame, size = runners[0].preprocess(image), (image.shape[0], image.shape[1])
    expected = None if reference is None else reference.infer(frame)
    logits = reference.logits(frame) if reference is not None and with_logits else None
    batches = [np.repeat(frame, runner.spec.batch or 1, axis=0) for runner in runners]
    said = [runner.infer(batch) for runner, batch in zip(runners, batches, strict=True)]
    scored = [
        runner.logits(batch) if logits is not None and runner.spec.has_logits else None
        for runner, batch in zip(runners, batches, strict=True)
    ]
    # Ctrl-C came before this or comes after it: a frame counts for all of them or for none
    if expected is not None and truth is not None:
        of_reference.against_truth.update(truth, runners[0].postprocess(expected[0], size))
    for runner, parity, labels, scores in zip(runners, parities, said, scored, strict=True):
        if expected is not None:
            parity.add_labels(expected[0], labels)
        if truth is not None:
            parity.against_truth.update(truth, runner.postprocess(labels[0], size))
        if logits is not None and scores is not None:
            parity.add_logits(runner, scores, logits)
