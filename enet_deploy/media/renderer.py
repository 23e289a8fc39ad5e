"""Render labelled frames as pictures."""

from __future__ import annotations

import functools

import numpy as np

from .. import drawing
from ..classes import ClassList
from ..images import UInt8Array, colorize, overlay
from .frames import LabelledFrame


class FrameRenderer:
    """Renders labelled frames.

    Args:
        classes: of the labels.
        alpha: share of the colours in the overlay, 0 to 1.
        legend: whether to draw the classes' colours and names beside the picture.
    """

    def __init__(self, classes: ClassList, alpha: float, legend: bool) -> None:
        self.classes = classes
        self._alpha, self._legend = alpha, legend
        self._legend_of = functools.lru_cache(4)(lambda height: drawing.legend(classes, height))

    def picture(self, item: LabelledFrame) -> UInt8Array:
        """(h, w, 3) uint8 BGR: the overlay; if the truth is known, image, truth and labels side by side."""
        if item.truth is None:
            picture = overlay(item.frame.image, item.labels, self.classes, self._alpha)
        else:
            is_right = np.equal(item.truth, item.labels)[item.truth < len(self.classes)]
            caption = f"labels, {is_right.mean():.1%} of pixels right" if is_right.size else "labels"
            label_maps = {"truth": item.truth, caption: item.labels}
            picture = drawing.side_by_side(drawing.panels(item.frame.image, label_maps, self.classes))
        if self._legend:
            picture = np.concatenate([picture, self._legend_of(picture.shape[0])], axis=1)
        return picture

    def mask(self, item: LabelledFrame) -> UInt8Array:
        """(h, w, 3) uint8 BGR: the labels in the classes' colours."""
        return colorize(item.labels, self.classes)

    def confidence(self, item: LabelledFrame) -> UInt8Array:
        """(h, w) uint8: the confidences, which were asked for."""
        assert item.confidence is not None
        return item.confidence

    def labels(self, item: LabelledFrame) -> UInt8Array:
        """(h, w) uint8: the class ids."""
        return item.labels
