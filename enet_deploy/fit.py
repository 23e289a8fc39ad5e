"""Fit images of any shape into the network's frame, and its labels back onto the image.

    stretch     the whole image fills the frame; shapes are distorted if the aspect ratios differ
    letterbox   the whole image, undistorted, in the middle of the frame; grey beside it
    crop        the middle of the image, undistorted, fills the frame; the rest of the image is void

Which one suits is a matter of training: a network sees best what it has learnt from.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np

from .arrays import check_image, check_label_map, check_picture_size
from .errors import InputError
from .images import UInt8Array, resize_image, resize_labels

Fit = Literal["stretch", "letterbox", "crop"]
FITS: tuple[Fit, ...] = get_args(Fit)

GREY = 114  # of the border of a letterbox, in all channels: near the mean of photographs

Size = tuple[int, int]  # (height, width)


class Window(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def centred(cls, inner: Size, outer: Size) -> Window:
        """Return the window of size `inner`, cut to `outer`, and at least one pixel, in the middle of `outer`."""
        height, width = (min(max(1, side), limit) for side, limit in zip(inner, outer, strict=True))
        return cls((outer[0] - height) // 2, (outer[1] - width) // 2, height, width)

    @property
    def size(self) -> Size:
        return self.height, self.width

    def of(self, pixels: UInt8Array) -> UInt8Array:
        """Return a view of this rectangle of (h, w) or (h, w, channels) pixels."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


def check_fit(fit: str) -> Fit:
    """Return `fit`. Raises InputError unless it is one of `FITS`."""
    for known in FITS:
        if fit == known:
            return known
    raise InputError(f"fit {fit!r:.40}, expected one of {', '.join(FITS)}")


def windows(image: Size, frame: Size, fit: Fit) -> tuple[Window, Window]:
    """Return the part of the image that is used, and the part of the frame that it fills."""
    ratios = frame[0] / image[0], frame[1] / image[1]
    used, filled = image, frame
    if fit == "letterbox":
        filled = round(image[0] * min(ratios)), round(image[1] * min(ratios))
    elif fit == "crop":
        used = round(frame[0] / max(ratios)), round(frame[1] / max(ratios))
    return Window.centred(used, image), Window.centred(filled, frame)


def fit_image(image: UInt8Array, frame: Size, fit: Fit) -> UInt8Array:
    """Return (h, w, 3) uint8 as a frame (H, W, 3) uint8; the same array if it has this size already.

    Raises InputError for any other array.
    """
    check_image(image)
    used, filled = windows(_size(image), frame, fit)
    resized = resize_image(used.of(image), filled.size)
    return resized if filled.size == frame else _placed(resized, filled, np.full((*frame, 3), GREY, np.uint8))


def fit_labels(labels: UInt8Array, frame: Size, fit: Fit, void: int) -> UInt8Array:
    """Return the label map (h, w) of an image as that of its frame (H, W); the border of a letterbox is void.

    Raises InputError for any other array.
    """
    check_label_map(labels)
    used, filled = windows(_size(labels), frame, fit)
    resized = resize_labels(used.of(labels), filled.size)
    return resized if filled.size == frame else _placed(resized, filled, np.full(frame, void, np.uint8))


def unfit_labels(labels: UInt8Array, image: Size, fit: Fit, void: int) -> UInt8Array:
    """Return the labels (H, W) of a frame as those of its image (h, w); what was cropped away is void.

    Raises InputError for any other array or size.
    """
    check_label_map(labels)
    check_picture_size(image)
    used, filled = windows(image, _size(labels), fit)
    resized = resize_labels(filled.of(labels), used.size)
    return resized if used.size == image else _placed(resized, used, np.full(image, void, np.uint8))


def _size(pixels: UInt8Array) -> Size:
    return pixels.shape[0], pixels.shape[1]


def _placed(pixels: UInt8Array, window: Window, canvas: UInt8Array) -> UInt8Array:
    window.of(canvas)[:] = pixels
    return canvas
