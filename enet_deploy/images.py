"""Files of images and label maps: size by the header, pixels, and the values that a label map holds."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .classes import ClassList
from .errors import DataError, InputError

# What OpenCV may read; which of them a build does read shows when it decodes
IMAGE_SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jp2", ".webp", ".avif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pxm", ".sr", ".ras", ".gif", ".exr", ".hdr", ".pic"),
}

MAX_PIXELS = 1 << 28  # 16,384x16,384, which takes 0.8 GB; a file of a kilobyte can claim to hold more than any memory
MAX_BYTES = 1 << 30

PNG = b"\x89PNG\r\n\x1a\n"
_MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}


def read(path: Path, flags: int) -> npt.NDArray[Any]:
    """The pixels of a file as `cv2.imdecode` gives them. Raises DataError, naming the file."""
    return decode(path, read_content(path), flags)


def decode(what: Path | str, content: bytes, flags: int) -> npt.NDArray[Any]:
    """The pixels of an image file's content as `cv2.imdecode` gives them. Raises DataError, beginning with `what`."""
    height, width = _header_size(content)
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{what} says it is {height}x{width} (height x width), expected at most {MAX_PIXELS} pixels, which is "
            "16384x16384; scale it down or cut it into tiles"
        )
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    except cv2.error as error:
        raise DataError(f"{what} is refused by OpenCV ({error.err}); it is damaged, or has over 2**30 pixels") from None
    if pixels is None:
        raise DataError(f"{what} cannot be decoded as an image; the file is damaged or of a kind OpenCV does not read")
    return pixels


def encode(name: Path | str, pixels: npt.NDArray[np.uint8]) -> bytes:
    """The content of an image file of this name, of (h, w) or (h, w, 3) BGR pixels.

    Raises InputError where its format cannot hold them.
    """
    try:
        done, content = cv2.imencode(Path(name).suffix, pixels)
    except cv2.error:  # of a suffix that it does not know
        done = False
    if not done:
        raise InputError(
            f"{name}: OpenCV cannot write {pixels.shape[0]}x{pixels.shape[1]} (height x width) pixels as "
            f"'{Path(name).suffix}'; take .png"
        )
    return content.tobytes()


def data_uri(content: bytes, suffix: str) -> str:
    """A file's content as an address that a page can show; .png, .jpg or .svg."""
    return f"data:{_MEDIA_TYPES[suffix]};base64,{base64.b64encode(content).decode('ascii')}"


def image_uri(pixels: npt.NDArray[np.uint8], suffix: str) -> str:
    """The same of (h, w, 3) BGR pixels, as .png or .jpg."""
    return data_uri(encode(f"image{suffix}", pixels), suffix)


def read_content(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe or /dev/zero, perhaps at the end of a link, never ends
            raise DataError(f"{path} is a folder or a device, expected an image file; remove it")
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} has {path.stat().st_size} bytes, expected an image of at most {MAX_BYTES}")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; expected an image file") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read as an image: {error.strerror}") from None


def _header_size(content: bytes) -> tuple[int, int]:
    """(height, width) that a PNG or a JPEG says it has; (0, 0) of others, of which OpenCV takes up to 2**30 pixels."""
    if content.startswith(PNG):
        return number(content[20:24]), number(content[16:20])
    position = 2 if content.startswith(b"\xff\xd8") else len(content)
    while content[position : position + 1] == b"\xff":
        marker = content[position + 1 : position + 2]
        if b"\xc0" <= marker <= b"\xcf" and marker not in (b"\xc4", b"\xc8", b"\xcc"):  # a frame's header
            return number(content[position + 5 : position + 7]), number(content[position + 7 : position + 9])
        position += 2 + number(content[position + 2 : position + 4])
    return 0, 0


def number(field: bytes) -> int:
    return int.from_bytes(field, "big")


UInt8Array = npt.NDArray[np.uint8]


def read_image(path: str | Path) -> UInt8Array:
    """Decode an image file as (H, W, 3) uint8 BGR. Raises DataError, naming the file."""
    return read(Path(path), cv2.IMREAD_COLOR).astype(np.uint8, copy=False)


def resize_image(image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """(h, w, 3) uint8 -> (height, width, 3), bilinear; the same array where it has that size already."""
    return _resize(image, size, cv2.INTER_LINEAR)


def resize_labels(labels: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """(h, w) uint8 ids -> (height, width), nearest: mixing ids would invent classes.

    Pixel centres are matched as `resize_image` does; OpenCV's plain INTER_NEAREST shifts by up to half a pixel.
    """
    return _resize(labels, size, cv2.INTER_NEAREST_EXACT)


def _resize(pixels: UInt8Array, size: tuple[int, int], interpolation: int) -> UInt8Array:
    if pixels.shape[:2] == size:
        return pixels
    return cv2.resize(pixels, size[::-1], interpolation=interpolation).astype(np.uint8, copy=False)


def colorize(labels: UInt8Array, classes: ClassList) -> UInt8Array:
    """Paint a label map: (H, W) uint8 ids -> (H, W, 3) uint8 BGR; ids without a class are black."""
    palette = np.zeros((256, 1, 3), np.uint8)
    palette[: len(classes), 0] = np.array(classes.colors, np.uint8)[:, ::-1]
    # Twenty times faster than palette[labels], which was half of a video loop's overlay
    return cv2.applyColorMap(np.ascontiguousarray(labels), palette).astype(np.uint8, copy=False)


def overlay(image: UInt8Array, labels: UInt8Array, classes: ClassList, alpha: float = 0.5) -> UInt8Array:
    """Lay the colours of a label map over the image: (h, w, 3) uint8 BGR; `alpha` is the colours' share."""
    blended = cv2.addWeighted(image, 1 - alpha, colorize(labels, classes), alpha, 0)
    return blended.astype(np.uint8, copy=False)
