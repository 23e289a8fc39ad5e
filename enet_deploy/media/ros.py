"""Convert ROS image messages, without ROS: any object with the fields of sensor_msgs/Image or CompressedImage works.

The encodings are those in sensor_msgs/image_encodings.hpp that cameras send. Rows may be padded (`step`).
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..images import UInt8Array, decode, require_readable, scaled

# encoding -> (bytes per channel, channels, OpenCV's conversion to BGR)
_ENCODINGS: dict[str, tuple[int, int, int | None]] = {
    **dict.fromkeys(("bgr8", "8UC3"), (1, 3, None)),
    "rgb8": (1, 3, cv2.COLOR_RGB2BGR),
    **dict.fromkeys(("bgra8", "8UC4"), (1, 4, cv2.COLOR_BGRA2BGR)),
    "rgba8": (1, 4, cv2.COLOR_RGBA2BGR),
    **dict.fromkeys(("mono8", "8UC1"), (1, 1, cv2.COLOR_GRAY2BGR)),
    **dict.fromkeys(("mono16", "16UC1"), (2, 1, cv2.COLOR_GRAY2BGR)),
    **dict.fromkeys(("bgr16", "16UC3"), (2, 3, None)),
    "rgb16": (2, 3, cv2.COLOR_RGB2BGR),
    **dict.fromkeys(("bgra16", "16UC4"), (2, 4, cv2.COLOR_BGRA2BGR)),
    "rgba16": (2, 4, cv2.COLOR_RGBA2BGR),
    **{
        f"bayer_{pattern}{8 * size}": (size, 1, code)
        for size in (1, 2)
        for pattern, code in (
            ("rggb", cv2.COLOR_BayerRGGB2BGR),
            ("bggr", cv2.COLOR_BayerBGGR2BGR),
            ("gbrg", cv2.COLOR_BayerGBRG2BGR),
            ("grbg", cv2.COLOR_BayerGRBG2BGR),
        )
    },
    **dict.fromkeys(("yuv422", "uyvy"), (1, 2, cv2.COLOR_YUV2BGR_UYVY)),
    **dict.fromkeys(("yuv422_yuy2", "yuyv"), (1, 2, cv2.COLOR_YUV2BGR_YUYV)),
}
# a plane of brightness, then a plane of half its height with the colours of 2x2 pixels: OpenCV's conversion to BGR
_TWO_PLANES = {"nv12": (1, 1, cv2.COLOR_YUV2BGR_NV12), "nv21": (1, 1, cv2.COLOR_YUV2BGR_NV21)}


def to_bgr(message: Any) -> UInt8Array:
    """Convert a sensor_msgs/Image or CompressedImage to (height, width, 3) uint8 BGR, an array of the caller's own.

    A 16-bit image keeps its upper 8 bits. If only 14 or fewer are in use, these are scaled, and this is logged once
    (`images.eight_bits`). Raises DataError if the message is incomplete or its encoding is unknown.
    """
    data = np.frombuffer(message.data, np.uint8)
    if hasattr(message, "format"):
        return _decompressed(f"{message.format}", data.tobytes())
    known: dict[str, tuple[int, int, int | None]] = {**_ENCODINGS, **_TWO_PLANES}
    if message.encoding not in known:
        raise DataError(f"image encoding '{message.encoding}', expected one of {', '.join(known)}")
    size, channels, code = known[message.encoding]
    height, width, step = message.height, message.width, message.step
    if message.encoding in _TWO_PLANES:
        if height % 2 or width % 2:
            raise DataError(f"{height}x{width} pixels of {message.encoding}, expected an even height and width")
        height = height * 3 // 2  # rows of both planes
    row = width * channels * size
    if not (height and width) or step < row or data.size < height * step - (step - row):
        raise DataError(
            f"image message of {data.size} bytes for {height}x{width} (height x width) pixels of {message.encoding} in "
            f"rows of {step} bytes, expected {height} rows of at least {row}"
        )
    rows = np.lib.stride_tricks.as_strided(data, (height, row), (step, 1), writeable=False)
    name = f"image of encoding {message.encoding}"
    if size == 2:
        wide = np.ascontiguousarray(rows).view(">u2" if message.is_bigendian else "<u2").astype(np.uint16)
        pixels = scaled(name, wide).reshape(height, width, channels)
    else:
        pixels = rows.reshape(height, width, channels)
    return _converted(f"{message.height}x{width} pixels of {message.encoding}", pixels, code)


def _converted(name: str, pixels: npt.NDArray[Any], code: int | None) -> UInt8Array:
    try:
        image = pixels.copy() if code is None else cv2.cvtColor(np.ascontiguousarray(pixels), code)
    except cv2.error as error:
        raise DataError(f"{name} are no image: {error.err}") from None
    return image.astype(np.uint8, copy=False)


def _decompressed(format_: str, content: bytes) -> UInt8Array:
    """Decode a CompressedImage as image_transport does: `format_` says in which order the channels were stored.

    "rgb8; jpeg compressed bgr8": the publisher turned them to BGR, as every encoder wants them. With "rgb8; png
    compressed " it did not, so red and blue come out swapped. "bayer_rggb8; ...": the mosaic itself may be stored.
    Other formats, such as "jpeg", say nothing.
    """
    name = f"compressed image of {len(content)} bytes and format '{format_}'"
    stored, is_split, compressed = format_.partition(";")
    if "compressedDepth" in compressed:
        raise DataError(f"{name} holds distances, expected a picture; take the topic of a camera")
    header = require_readable(name, content)
    pixels = decode(name, content, header, cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    pixels = scaled(name, pixels, header.maximum)
    _, channels, code = _ENCODINGS.get(stored.strip(), (1, 3, None))
    if pixels.ndim == 2:
        return _converted(name, pixels, code if stored.startswith("bayer_") else cv2.COLOR_GRAY2BGR)
    is_color = channels >= 3 and stored.strip() in _ENCODINGS
    if is_split and is_color and "compressed bgr" not in compressed:
        return _converted(name, pixels, cv2.COLOR_RGB2BGR)
    return pixels


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
