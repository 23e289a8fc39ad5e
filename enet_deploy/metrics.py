"""Pixel accuracy, Dice and IoU, from one confusion matrix over a whole data set, at the size of the label maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import described, is_uint8
from .classes import ClassList
from .errors import InputError
from .images import UInt8Array


@dataclass(frozen=True)
class Scores:
    """Scores in [0, 1]. A class that is neither in truth nor in prediction has None and is in no mean.

    Attributes:
        pixel_accuracy: right pixels / counted pixels.
        dice: mean over classes of 2TP / (2TP + FP + FN), also called macro F1.
        miou: mean over classes of TP / (TP + FP + FN).
        class_average: mean over the classes in truth of TP / (TP + FN).
        per_class: class name -> {"iou", "dice", "precision", "recall"}. Precision, TP / (TP + FP), is None if the class
            is never predicted; recall, TP / (TP + FN), is None if it is not in truth.
        absent: names of the classes that are in no mean.
        void_counts: whether void pixels count as mistakes (see `ConfusionMatrix.scores`).
    """

    pixel_accuracy: float
    dice: float
    miou: float
    class_average: float
    per_class: dict[str, dict[str, float | None]]
    absent: tuple[str, ...]
    void_counts: bool

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "absent": list(self.absent)}


class ConfusionMatrix:
    """Counts pixels by (truth, prediction).

    Attributes:
        counts: (classes + 1, classes + 1) int64; `counts[t, p]` is the number of pixels of class t that were predicted
            as p. The last row and column hold void and any other id.
    """

    def __init__(self, classes: ClassList) -> None:
        self.classes = classes
        self.counts: npt.NDArray[np.int64] = np.zeros((len(classes) + 1,) * 2, np.int64)

    def update(self, truth: UInt8Array, prediction: UInt8Array) -> None:
        """Count the pixels of two label maps of one shape, uint8 class ids. Raises InputError for any other arrays."""
        for name, labels in (("truth", truth), ("prediction", prediction)):
            if not is_uint8(labels):
                raise InputError(f"{name} is {described(labels)}, expected uint8 class ids")
        if truth.shape != prediction.shape:
            raise InputError(f"prediction of shape {prediction.shape} for labels of {truth.shape}, expected the same")
        void = len(self.classes)
        pairs = np.minimum(truth, void).astype(np.int64) * (void + 1) + np.minimum(prediction, void)
        self.counts += np.bincount(pairs.ravel(), minlength=(void + 1) ** 2).reshape(void + 1, void + 1)

    def scores(self, void_counts: bool = False) -> Scores:
        """Compute the scores of all pixels counted so far.

        Args:
            void_counts: False leaves out the pixels that are void in truth, as most literature on CamVid does. True
                counts them as mistakes of the class predicted there, which lowers IoU by one to two points; some
                papers and student reports do this.

        Raises InputError if no labelled pixel was counted.
        """
        counted = self.counts if void_counts else self.counts[:-1]
        hit = np.diagonal(self.counts)[:-1].astype(float)
        truth = self.counts[:-1].sum(axis=1).astype(float)
        predicted = counted[:, :-1].sum(axis=0).astype(float)
        if not truth.any():
            raise InputError("every counted pixel is void, expected at least one pixel of a class")
        present = truth + predicted > 0
        with np.errstate(invalid="ignore"):
            iou = hit / (truth + predicted - hit)
            dice = 2 * hit / (truth + predicted)
            by_class = {"iou": iou, "dice": dice, "precision": hit / predicted, "recall": hit / truth}
        return Scores(
            pixel_accuracy=float(hit.sum() / counted.sum()),
            dice=float(dice[present].mean()),
            miou=float(iou[present].mean()),
            class_average=float(by_class["recall"][truth > 0].mean()),
            per_class={
                name: {kind: None if np.isnan(values[i]) else float(values[i]) for kind, values in by_class.items()}
                for i, name in enumerate(self.classes.names)
            },
            absent=tuple(name for i, name in enumerate(self.classes.names) if not present[i]),
            void_counts=void_counts,
        )


def evaluate(
    segment: Callable[[UInt8Array], UInt8Array], pairs: Iterable[tuple[UInt8Array, UInt8Array]], classes: ClassList
) -> ConfusionMatrix:
    """Segment every image and count every pixel against its labels.

    Args:
        segment: (h, w, 3) uint8 BGR -> (h, w) uint8 class ids, at the image's own size, such as `Runner.segment`.
        pairs: (image, labels), such as a `DataSet`.
        classes: of the labels.
    """
    confusion = ConfusionMatrix(classes)
    for image, labels in pairs:
        confusion.update(labels, segment(image))
    return confusion
