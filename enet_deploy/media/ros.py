"""Convert ROS image messages, without ROS: any object with the fields of sensor_msgs/Image or CompressedImage works.

The encodings are those in sensor_msgs/image_encodings.hpp that cameras send. Rows may be padded (`step`).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from ..errors import DataError
from ..images import UInt8Array, decode

# encoding -> (bytes per channel, channels, OpenCV's conversion to BGR)
_ENCODINGS: dict[str, tuple[int, int, int | None]] = {
    **dict.fromkeys(("bgr8", "8UC3"), (1, 3, None)),
    "rgb8": (1, 3, cv2.COLOR_RGB2BGR),
    **dict.fromkeys(("bgra8", "8UC4"), (1, 4, cv2.COLOR_BGRA2BGR)),
    "rgba8": (1, 4, cv2.COLOR_RGBA2BGR),
    **dict.fromkeys(("mono8", "8UC1"), (1, 1, cv2.COLOR_GRAY2BGR)),
    **dict.fromkeys(("mono16", "16UC1"), (2, 1, cv2.COLOR_GRAY2BGR)),
    "bayer_rggb8": (1, 1, cv2.COLOR_BayerRGGB2BGR),
    "bayer_bggr8": (1, 1, cv2.COLOR_BayerBGGR2BGR),
    "bayer_gbrg8": (1, 1, cv2.COLOR_BayerGBRG2BGR),
    "bayer_grbg8": (1, 1, cv2.COLOR_BayerGRBG2BGR),
    **dict.fromkeys(("yuv422", "uyvy"), (1, 2, cv2.COLOR_YUV2BGR_UYVY)),
    **dict.fromkeys(("yuv422_yuy2", "yuyv"), (1, 2, cv2.COLOR_YUV2BGR_YUYV)),
}


def to_bgr(message: Any) -> UInt8Array:
    """Convert a sensor_msgs/Image or CompressedImage to (height, width, 3) uint8 BGR, an array of the caller's own.

    A 16-bit image keeps its upper 8 bits. Raises DataError if the message is incomplete or its encoding is unknown.
    """
    data = np.frombuffer(message.data, np.uint8)
    if hasattr(message, "format"):
        name = f"compressed image of {data.size} bytes and format '{message.format}'"
        return decode(name, data.tobytes(), cv2.IMREAD_COLOR).astype(np.uint8, copy=False)
    if message.encoding not in _ENCODINGS:
        raise DataError(f"image encoding '{message.encoding}', expected one of {', '.join(_ENCODINGS)}")
    size, channels, code = _ENCODINGS[message.encoding]
    height, width, step, row = message.height, message.width, message.step, message.width * channels * size
    if not (height and width) or step < row or data.size < height * step - (step - row):
        raise DataError(
            f"image message of {data.size} bytes for {height}x{width} (height x width) pixels of {message.encoding} in "
            f"rows of {step} bytes, expected {height} rows of at least {row}"
        )
    rows = np.lib.stride_tricks.as_strided(data, (height, row), (step, 1), writeable=False)
    if size == 2:
        pixels = np.ascontiguousarray(rows[:, int(not message.is_bigendian) :: 2])
    else:
        pixels = rows.reshape(height, width, channels)
    try:
        image = pixels.copy() if code is None else cv2.cvtColor(np.ascontiguousarray(pixels), code)
    except cv2.error as error:
        raise DataError(f"{height}x{width} pixels of {message.encoding} are no image: {error.err}") from None
    return image.astype(np.uint8, copy=False)


def image_fields(pixels: UInt8Array) -> dict[str, Any]:
    """The fields of a sensor_msgs/Image, without the header, for (h, w) uint8 labels or a (h, w, 3) uint8 BGR image.

    `data` is a flat uint8 array. It shares the pixels' memory if they are contiguous.
    """
    height, width = pixels.shape[:2]
    data = np.ascontiguousarray(pixels).reshape(-1)
    return {
        "height": height,
        "width": width,
        "encoding": "mono8" if pixels.ndim == 2 else "bgr8",
        "is_bigendian": 0,
        "step": data.size // height,
        "data": data,
    }
