"""Evaluation on val: scores, example pictures, and how strong a prior correction is best."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..artifacts import Metadata
from ..data import DataSet, read_ahead, spread
from ..fit import fit_image, unfit_labels
from ..images import UInt8Array
from ..metrics import ConfusionMatrix
from ..model import ENet, Segmenter
from .prior import ALPHAS

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
    segmenter = _segmenter(net, metadata)
    for (example,) in _predict(lambda frames: [segmenter(frames)], segmenter.mean.device, data, metadata, indices):
        yield example


def _segmenter(net: nn.Module, metadata: Metadata) -> Segmenter:
    return Segmenter(net, metadata.mean, metadata.std).to(next(net.parameters()).device).eval()


def _predict(
    label: Callable[[Tensor], Sequence[Tensor]],
    device: torch.device,
    data: DataSet,
    metadata: Metadata,
    indices: Iterable[int],
) -> Iterator[list[Example]]:
    """Yield, for each image, an example with each prediction of `label`.

    Args:
        label: (N, H, W, 3) uint8 BGR on `device` -> predictions, each (N, H, W) uint8.
    """

    def read(index: int) -> tuple[str, UInt8Array, UInt8Array]:
        image, labels = data[index]
        return data.pairs[index][0].name, fit_image(image, metadata.size, metadata.fit), labels

    images = read_ahead(read, indices)
    batch = 1 if device.type == "cpu" else 16
    while chunk := list(itertools.islice(images, batch)):
        frames = torch.from_numpy(np.stack([frame for _, frame, _ in chunk]))
        with torch.inference_mode(), _without_autotuning():
            predictions = torch.stack([*label(frames.to(device))], dim=1).cpu().numpy()
        for of_image, (name, frame, labels) in zip(predictions, chunk, strict=True):
            size = labels.shape[0], labels.shape[1]
            unfit = (unfit_labels(predicted, size, metadata.fit, data.classes.void) for predicted in of_image)
            yield [Example(name, frame, labels, predicted) for predicted in unfit]


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
    return list(predict(net, val, metadata, spread(range(len(val)), count)))


def correction_sweep(
    net: ENet, class_weights: Tensor, alpha: float, val: DataSet, metadata: Metadata
) -> dict[float, float]:
    """Val mIoU by strength of the prior correction: for each of `ALPHAS`, and for `alpha`, the recipe's own.

    Only the last bias differs between strengths, so the network runs once.

    Args:
        net: without a correction.
        class_weights: (C,), of the classes in the loss.
    """
    segmenter = _segmenter(net, metadata)
    device, strengths = segmenter.mean.device, sorted({*ALPHAS, alpha})
    shift = class_weights.to(device).log()[:, None, None]

    def label(frames: Tensor) -> list[Tensor]:
        logits = segmenter.logits(frames)
        return [(logits - strength * shift).argmax(dim=1).to(torch.uint8) for strength in strengths]

    counts = [ConfusionMatrix(val.classes) for _ in strengths]
    for examples_of_image in _predict(label, device, val, metadata, range(len(val))):
        for count, example in zip(counts, examples_of_image, strict=True):
            count.update(example.labels, example.predicted)
    return {strength: count.scores().miou for strength, count in zip(strengths, counts, strict=True)}
