"""How honest confidences are: of the pixels with a confidence of 80 %, 80 % should have the right label."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .images import UInt8Array

BINS = 15  # of equal width, as in "On Calibration of Modern Neural Networks" (Guo et al., 2017)


class Reliability:
    """Counts, for each confidence, the pixels that have it and those of them with the right label."""

    def __init__(self) -> None:
        self._pixels = np.zeros(256, np.int64)
        self._right = np.zeros(256, np.int64)

    def update(self, confidence: UInt8Array, is_right: npt.NDArray[np.bool_]) -> None:
        """Add pixels: confidences and whether the label is right, two arrays of any one shape, without void pixels."""
        self._pixels += np.bincount(confidence.reshape(-1), minlength=256)
        self._right += np.bincount(confidence[is_right].reshape(-1), minlength=256)

    @property
    def error(self) -> float:
        """The expected calibration error: |confidence - accuracy| of each bin, weighted by its pixels; 0 is honest."""
        total = max(int(self._pixels.sum()), 1)
        return float(sum(abs(b["confidence"] - b["accuracy"]) * b["pixels"] for b in self.bins()) / total)

    def bins(self) -> list[dict[str, Any]]:
        """Return the bins that have pixels: mean "confidence" and "accuracy", both 0 to 1, and "pixels"."""
        bins = []
        of_value = np.minimum(np.arange(256) * BINS // 255, BINS - 1)
        for index in range(BINS):
            values = np.flatnonzero(of_value == index)
            pixels = int(self._pixels[values].sum())
            if pixels:
                mean = float((self._pixels[values] * values).sum()) / 255 / pixels
                accuracy = float(self._right[values].sum()) / pixels
                bins.append({"confidence": mean, "accuracy": accuracy, "pixels": pixels})
        return bins
