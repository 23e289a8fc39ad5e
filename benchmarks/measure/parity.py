"""Is it still the same network? Labels and logits of a runner against PyTorch's, and both against the truth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

from enet_deploy.classes import ClassList
from enet_deploy.commands.signals import interrupts_held
from enet_deploy.errors import ParityError
from enet_deploy.fit import unfit_labels
from enet_deploy.images import UInt8Array
from enet_deploy.metrics import ConfusionMatrix
from enet_deploy.reliability import Reliability
from enet_deploy.runners import Spec

from ..typed_json import LATER, from_json

LOGIT_FRAMES = 8  # logits are compared on the first few frames only: they are 44 times as large as the labels
BAND = 3  # pixels on either side of an edge between two labels


class Labeller(Protocol):
    """What is compared: an open `Runner`, or one in another process."""

    @property
    def spec(self) -> Spec: ...
    @property
    def artifact(self) -> Path: ...
    def preprocess(self, image: UInt8Array) -> UInt8Array: ...
    def infer(self, frames: UInt8Array) -> UInt8Array: ...
    def infer_with_confidence(self, frames: UInt8Array) -> tuple[UInt8Array, UInt8Array]: ...
    def logits(self, frames: UInt8Array) -> npt.NDArray[np.float32]: ...
    def postprocess(self, labels: UInt8Array, size: tuple[int, int]) -> UInt8Array: ...


@dataclass(frozen=True)
class ClassScores:
    """Scores of a class, as in `metrics.Scores`. Precision and recall are None in old files too."""

    iou: float | None
    dice: float | None
    precision: float | None = field(default=None, metadata=LATER)
    recall: float | None = field(default=None, metadata=LATER)


@dataclass(frozen=True)
class Bin:
    """A group of pixels of similar confidence.

    Attributes:
        confidence: mean, 0 to 1.
        accuracy: share that is labelled right.
        pixels: how many.
    """

    confidence: float
    accuracy: float
    pixels: int


@dataclass(frozen=True)
class Honesty:
    """Confidences against the truth, void left out: the expected calibration error (`Reliability`) and its bins."""

    error: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Accuracy:
    """Scores against the truth; fields as in `metrics.Scores`.

    Attributes:
        confusion: pixel counts [truth][label], void last; None in old files.
        confidence: how honest the confidences are; None if the artifact gives none, and in old files.
    """

    pixel_accuracy: float
    dice: float
    miou: float
    class_average: float
    per_class: dict[str, ClassScores]
    absent: tuple[str, ...]
    void_counts: bool
    confusion: tuple[tuple[int, ...], ...] | None
    confidence: Honesty | None = field(default=None, metadata=LATER)

    @property
    def ious(self) -> npt.NDArray[np.float64]:
        """(classes,) IoU of each class; NaN for one that has none."""
        return np.array([each.iou for each in self.per_class.values()], float)

    @property
    def pixels(self) -> int | None:
        """Number of pixels that were scored, void among them; None in old files."""
        return None if self.confusion is None else sum(map(sum, self.confusion))

    def __post_init__(self) -> None:
        side = len(self.per_class) + 1
        if not self.per_class:
            raise ValueError("per_class is empty, expected at least one class")
        if self.confusion is not None and [len(row) for row in self.confusion] != [side] * side:
            raise ValueError(f"confusion has {len(self.confusion)} rows, expected {side} of {side} counts")


@dataclass(frozen=True)
class Flips:
    """Shares of all pixels: flipped labels within `BAND` of an edge and elsewhere, and the pixels of that band."""

    boundary: float
    interior: float
    band: float


@dataclass(frozen=True)
class ParityFigures:
    """A runner against PyTorch on the same frames.

    Attributes:
        agreement: share of equal labels.
        frames: the same of each frame, in order.
        flips: None in old files.
        max_abs_logit: largest difference of a logit; None if the artifact gives no logits.
        p99_abs_logit: 99 % of a frame's differences are smaller, in the worst frame; None as above.
        unpool_flips: stage -> share of pooling windows with another winner; None if that is not known.
        miou, dice, per_class: scores with PyTorch's labels as the truth.
    """

    agreement: float
    frames: tuple[float, ...]
    flips: Flips | None
    max_abs_logit: float | None
    p99_abs_logit: float | None
    unpool_flips: dict[str, float] | None
    miou: float
    dice: float
    per_class: dict[str, ClassScores]


@dataclass
class Parity:
    """Counts what one runner says about the same images as the reference.

    Attributes:
        against_reference: pixel counts by (reference's label, runner's label), empty without a reference.
        against_truth: pixel counts by (true label, runner's label), empty without a data set.
        images: how many were counted.
        reliability: of the runner's confidences, empty without a data set or without confidences.
        frames: share of equal labels of each frame, in order.
        band, flips_in_band, flips_inside: pixels within `BAND` of an edge of the reference's labels; pixels that
            differ from the reference in that band, and elsewhere.
        max_abs_logit, p99_abs_logit, unpool_flips: as in `ParityFigures`.
    """

    classes: ClassList
    against_reference: ConfusionMatrix = field(init=False)
    against_truth: ConfusionMatrix = field(init=False)
    images: int = 0
    reliability: Reliability = field(default_factory=Reliability)
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

    def figures(self) -> ParityFigures | None:
        """The figures of all frames so far; None without a reference."""
        pixels = int(self.against_reference.counts.sum())
        if pixels == 0:
            return None
        scores = self.against_reference.scores()
        return ParityFigures(
            agreement=scores.pixel_accuracy,
            frames=tuple(self.frames),
            flips=Flips(self.flips_in_band / pixels, self.flips_inside / pixels, self.band / pixels),
            max_abs_logit=self.max_abs_logit,
            p99_abs_logit=self.p99_abs_logit,
            unpool_flips=self.unpool_flips,
            miou=scores.miou,
            dice=scores.dice,
            per_class={name: ClassScores(**each) for name, each in scores.per_class.items()},
        )

    def accuracy(self) -> Accuracy | None:
        """The scores of all frames so far; None without a truth."""
        if not self.against_truth.counts.any():
            return None
        counts = self.against_truth.counts.tolist()
        bins = self.reliability.bins()
        honesty = {"error": self.reliability.error, "bins": bins} if bins else None
        scores = self.against_truth.scores().to_json()
        return from_json(Accuracy, {**scores, "confusion": counts, "confidence": honesty})

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

    def add_logits(self, spec: Spec, logits: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
        """Count a batch of copies of one frame, (N, C, H, W) and (1, C, H, W).

        Raises ParityError if any difference is NaN or infinite.
        """
        differences = np.abs(logits - expected)
        difference = float(differences.max())
        if not math.isfinite(difference):
            raise ParityError(
                f"{spec.artifact} on {spec.backend} gives logits that differ from PyTorch's by {difference}, expected "
                "finite numbers; do not deploy it"
            )
        self.max_abs_logit = max(difference, self.max_abs_logit or 0.0)
        self.p99_abs_logit = max(float(np.percentile(differences, 99)), self.p99_abs_logit or 0.0)


def near_edge(labels: UInt8Array) -> npt.NDArray[np.bool_]:
    """(H, W) label map -> (H, W): whether another label lies within `BAND` pixels, diagonals included."""
    window = np.ones((2 * BAND + 1, 2 * BAND + 1), np.uint8)
    edge: npt.NDArray[np.bool_] = cv2.dilate(labels, window) != cv2.erode(labels, window)
    return edge


def compare(
    reference: Labeller | None, runners: Sequence[Labeller], pairs: Iterable[tuple[UInt8Array, UInt8Array | None]]
) -> tuple[Parity, list[Parity], bool]:
    """Run every runner on every image. A fixed batch is filled with copies of the image.

    Args:
        reference: PyTorch with the weights that the runners came from; None to measure accuracy alone.
        pairs: (image, truth), (h, w, 3) uint8 BGR and (h, w) uint8 class ids or None.

    Returns the reference's counts, each runner's counts, and whether all images are in them: Ctrl-C ends the loop
    early.
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
    reference: Labeller | None,
    runners: Sequence[Labeller],
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
    found = []
    for runner in runners:
        batch = np.repeat(frame, runner.spec.batch or 1, axis=0)
        scores = runner.logits(batch) if logits is not None and runner.spec.has_logits else None
        confidence = None
        if truth is not None and runner.spec.has_confidence:
            confidence = runner.infer_with_confidence(batch)[1]
        found.append((runner.infer(batch), scores, confidence))
    with interrupts_held():  # no frame counts for one runner and not for another
        if expected is not None and truth is not None:
            of_reference.against_truth.update(truth, runners[0].postprocess(expected[0], size))
        for runner, parity, (labels, scores, confidence) in zip(runners, parities, found, strict=True):
            parity.images += 1
            if expected is not None:
                parity.add_labels(expected[0], labels)
            if truth is not None:
                own = runner.postprocess(labels[0], size)
                parity.against_truth.update(truth, own)
                if confidence is not None:
                    known = truth < len(runner.spec.classes)
                    shown = unfit_labels(confidence[0], size, runner.spec.fit, 0)
                    parity.reliability.update(shown[known], (own == truth)[known])
            if logits is not None and scores is not None:
                parity.add_logits(runner.spec, scores, logits)
