"""Corruptions of camera frames as they happen on the road, to measure how much of the accuracy is left.

`CORRUPTIONS` maps (name, severity) to a function: (h, w, 3) uint8 BGR -> a new array of the same shape and dtype.
The severity is:

    brightness  factor on every value, clipped at 255: entry and exit of a tunnel
    contrast    factor on the distance from the frame's mean: fog, a wet lens
    blur        sigma of a Gaussian, in pixels of the frame: focus, dirt
    noise       sigma of a Gaussian, in grey levels of 255, independent for every value: gain at night
    jpeg        quality of a JPEG that is written and read again: a slow link, a recording

Each is applied at the frame's own size, before the network's resizing, as on a robot. If the network sees the frame
reduced, the same sigma has less effect.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..images import UInt8Array


def brightness(image: UInt8Array, severity: float) -> UInt8Array:
    return _pixels(image * np.float32(severity))


def contrast(image: UInt8Array, severity: float) -> UInt8Array:
    mean = image.mean(dtype=np.float64)
    return _pixels((image - mean) * severity + mean)


def blur(image: UInt8Array, severity: float) -> UInt8Array:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), severity), np.uint8)


def noise(image: UInt8Array, severity: float) -> UInt8Array:
    # Seeded by the frame itself: a frame has the same noise in every run and order, and each frame its own
    random = np.random.default_rng(zlib.crc32(image.tobytes()))
    return _pixels(image + severity * random.standard_normal(image.shape, np.float32))


def jpeg(image: UInt8Array, severity: float) -> UInt8Array:
    _, file = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(severity)])
    decoded = cv2.imdecode(file, cv2.IMREAD_COLOR)
    assert decoded is not None  # encoded a line above
    return np.asarray(decoded, np.uint8)


def _pixels(values: npt.NDArray[Any]) -> UInt8Array:
    pixels: UInt8Array = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return pixels


# Mildest first
_SEVERITIES: dict[str, tuple[Callable[..., UInt8Array], tuple[float, ...]]] = {
    "brightness": (brightness, (0.5, 0.25, 1.5, 2)),
    "contrast": (contrast, (0.5, 0.25)),
    "blur": (blur, (1, 2, 4)),
    "noise": (noise, (8, 16, 32)),
    "jpeg": (jpeg, (50, 20, 10)),
}

CORRUPTIONS: dict[tuple[str, float], Callable[[UInt8Array], UInt8Array]] = {
    (name, severity): functools.partial(function, severity=severity)
    for name, (function, severities) in _SEVERITIES.items()
    for severity in severities
}
