"""Evaluation on val: scores, example pictures, and how strong a prior correction is best."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..artifacts import Metadata
from ..data import DataSet, read_ahead
from ..fit import fit_image, unfit_labels
from ..images import UInt8Array
from ..metrics import ConfusionMatrix
from ..model import ENet, Segmenter
from .prior import ALPHAS, corrected

CLASS_IOU = "val_iou_"  # prefix of a class's column in the history


@dataclass(frozen=True)
class Example:
    """An image with its labels and the network's prediction.

    Attributes:
        name: file name of the image.
        frame: (H, W, 3) uint8 BGR, as the network sees it.
        labels, predicted: (h, w) uint8 class ids, at the label map's own size.
    """

    name: str
    frame: UInt8Array
    labels: UInt8Array
    predicted: UInt8Array


def predict(net: nn.Module, data: DataSet, metadata: Metadata, indices: Iterable[int]) -> Iterator[Example]:
    """Run the network on these images of a data set."""
    device = next(net.parameters()).device
    segmenter = Segmenter(net, metadata.mean, metadata.std).to(device).eval()

    def read(index: int) -> tuple[str, UInt8Array, UInt8Array]:
        image, labels = data[index]
        return data.pairs[index][0].name, fit_image(image, metadata.size, metadata.fit), labels

    images = read_ahead(read, indices)
    batch = 1 if device.type == "cpu" else 16
    while chunk := list(itertools.islice(images, batch)):
        frames = torch.from_numpy(np.stack([frame for _, frame, _ in chunk]))
        with torch.inference_mode(), _without_autotuning():
            predictions = segmenter(frames.to(device)).cpu().numpy()
        for predicted, (name, frame, labels) in zip(predictions, chunk, strict=True):
            size = labels.shape[0], labels.shape[1]
            yield Example(name, frame, labels, unfit_labels(predicted, size, metadata.fit, data.classes.void))


@contextlib.contextmanager
def _without_autotuning() -> Iterator[None]:
    """Switch cuDNN's autotuning off: the last batch of an evaluation has another size than the others."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def confusion(net: nn.Module, data: DataSet, metadata: Metadata) -> ConfusionMatrix:
    """The confusion matrix of a network on a split, at the label maps' own size."""
    counts = ConfusionMatrix(data.classes)
    for example in predict(net, data, metadata, range(len(data))):
        counts.update(example.labels, example.predicted)
    return counts


def val_scores(net: nn.Module, val: DataSet, metadata: Metadata) -> dict[str, float]:
    """Scores on val by column of the history. A class in neither labels nor predictions has no IoU, and no column."""
    counts = confusion(net, val, metadata)
    scores, with_void = counts.scores(), counts.scores(void_counts=True)
    return {
        **{f"val_{name}": getattr(scores, name) for name in ("miou", "pixel_accuracy", "dice", "class_average")},
        **{f"val_{name}_void_counts": getattr(with_void, name) for name in ("miou", "pixel_accuracy", "dice")},
        **{CLASS_IOU + name: iou for name, each in scores.per_class.items() if (iou := each["iou"]) is not None},
    }


def examples(net: nn.Module, val: DataSet, metadata: Metadata, count: int = 4) -> list[Example]:
    """Up to `count` val images, evenly spaced over the split."""
    indices = np.linspace(0, len(val) - 1, min(count, len(val)), dtype=int).tolist()
    return list(predict(net, val, metadata, indices))


def correction_sweep(
    net: ENet, class_weights: Tensor, alpha: float, val: DataSet, metadata: Metadata
) -> dict[float, float]:
    """Val mIoU by strength of the prior correction: for each of `ALPHAS`, and for `alpha`, the recipe's own.

    Args:
        net: without a correction.
        class_weights: (C,), of the classes in the loss.
    """
    return {
        strength: confusion(corrected(net, class_weights, strength), val, metadata).scores().miou
        for strength in sorted({*ALPHAS, alpha})
    }
