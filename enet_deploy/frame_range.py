"""Whether a frame is like those that the ranges of an int8 graph were measured on.

Int8 has 255 values for each tensor. A dark frame, or one of a covered lens, uses few of them; in noise, many decisions
are close. There the labels of int8 differ from those of fp32, also if such frames are calibrated on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np

from .errors import InputError
from .images import UInt8Array, resize_image

Found = TypeVar("Found")  # labels, or labels and confidences

# A frame is far outside below 1/LOW of the least contrast, or above HIGH times the most noise. On 12 frames of CamVid's
# val with the bundled record, these find dark frames with noise (98 and 95 % of fp32's labels), noise of sigma 64
# (98 %), covered lenses (81 %) and black frames (79 %), and none of data.corruptions (98 to 99.5 %)
LOW = 4.0
HIGH = 2.0


@dataclass(frozen=True)
class FrameRange:
    """What frames look like, in two numbers.

    Attributes:
        contrast: least standard deviation of the grey levels, in levels of 255.
        noise: largest mean magnitude of the Laplacian, divided by the contrast.

    Raises InputError for an impossible value.
    """

    contrast: float
    noise: float

    def __post_init__(self) -> None:
        for value in (self.contrast, self.noise):
            if type(value) not in (int, float) or not (math.isfinite(value) and value >= 0):
                raise InputError(f"frames of the calibration have {value!r}, expected a number of at least 0")

    def flaw(self, image: UInt8Array, size: tuple[int, int]) -> str:
        """Return in which way an image (h, w, 3), seen at `size` = (H, W), is far outside; "" if it is not."""
        contrast, noise = measure(image, size)
        if contrast < self.contrast / LOW:
            return f"contrast {contrast:.1f}, calibrated on {self.contrast:.1f} and more"
        if noise > self.noise * HIGH:
            return f"noise {noise:.2f}, calibrated on up to {self.noise:.2f}"
        return ""


class RangeMonitor:
    """Counts the frames that are far outside what an int8 graph was calibrated on. One thread uses it.

    Args:
        spec: of the open runner.

    Attributes:
        outside: number of such frames.
        first: what is wrong with the first of them.
    """

    def __init__(self, spec: Any) -> None:
        self.outside, self.first = 0, ""
        self._range, self._size = spec.calibrated_on, spec.size

    def watched(self, label: Callable[[UInt8Array], Found]) -> Callable[[UInt8Array], Found]:
        """Return a function that calls `label`, such as `Runner.segment`, and then checks the image.

        It is `label` itself if the graph states no range, as one that is not int8.
        """
        if self._range is None:
            return label

        def look_and_label(image: UInt8Array) -> Found:
            labels = label(image)  # which refuses what is no image
            flaw = self._range.flaw(image, self._size)
            self.outside += bool(flaw)
            self.first = self.first or flaw
            return labels

        return look_and_label

    def summary(self) -> str:
        """Say in words how many frames were far outside; "" if none was."""
        if not self.outside:
            return ""
        return (
            f"{self.outside} unlike those that int8 was calibrated on ({self.first}), so that labels may differ from "
            "fp32's; use the fp32 or fp16 graph for such frames"
        )


def measure(image: UInt8Array, size: tuple[int, int]) -> tuple[float, float]:
    """Return contrast and noise of an image (h, w, 3) uint8 BGR at `size` = (H, W), as in `FrameRange`."""
    grey = cv2.cvtColor(resize_image(image, size), cv2.COLOR_BGR2GRAY)
    contrast = float(grey.std())
    edges = float(np.abs(cv2.Laplacian(grey, cv2.CV_16S)).mean())
    return contrast, edges / max(contrast, 1.0)
