"""Images in memory and in files: decode, encode, resize, and paint label maps.

OpenCV decodes and encodes; Pillow reads the size from a file's header first.
"""

from __future__ import annotations

import base64
import io
import struct
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from .classes import ClassList
from .errors import DataError, InputError

UInt8Array = npt.NDArray[np.uint8]

# Formats that OpenCV can read; which of them a given build reads shows when it decodes
IMAGE_SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jp2", ".webp", ".avif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pxm", ".sr", ".ras", ".gif", ".exr", ".hdr", ".pic"),
}

MAX_PIXELS = 1 << 28  # 16384x16384, 0.8 GB decoded; a file of one kilobyte can claim more than any memory holds
MAX_BYTES = 1 << 30

# Pillow's names of the formats whose header it reads here. WebP and AVIF hold at most MAX_PIXELS anyway; OpenCV
# refuses more than 2**30 pixels of any other format
_HEADERS = ("JPEG", "JPEG2000", "BMP", "TIFF", "PPM", "GIF", "SUN")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}


def silence_opencv() -> None:
    """Switch off what OpenCV itself prints to standard error. Before 4.13 the switch has another name."""
    switch = cv2.utils.logging.setLogLevel if hasattr(cv2.utils, "logging") else getattr(cv2, "setLogLevel")  # noqa: B009
    switch(0)


class PngHeader(NamedTuple):
    """The first fields of a PNG file.

    Attributes:
        width, height: in pixels.
        bits: per sample, 1 to 16.
        color_type: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha.
    """

    width: int
    height: int
    bits: int
    color_type: int


def png_header(content: bytes) -> PngHeader | None:
    """Read the header of a PNG file's content; None for other content.

    The fields are at a fixed place. Pillow would refuse the whole file for a damaged or long text in it.
    """
    if content.startswith(_PNG_SIGNATURE) and len(content) >= 26:
        return PngHeader(*struct.unpack(">IIBB", content[16:26]))
    return None


def header_size(content: bytes) -> tuple[int, int] | None:
    """Read (height, width) from the header of an image file's content, without decoding it.

    None if the format is unknown or the header is damaged.
    """
    png = png_header(content)
    if png is not None:
        return png.height, png.width
    from PIL import Image  # lazy: a robot that gets its frames from a camera decodes no files

    Image.init()
    for name in _HEADERS:
        read_header, accepts = Image.OPEN[name]
        try:
            if accepts is None or accepts(content[:16]):
                with read_header(io.BytesIO(content), "") as image:  # Image.open refuses sizes that we accept
                    return image.height, image.width
        except Exception:  # noqa: BLE001  a damaged header makes Pillow raise errors of many types
            pass
    return None


def decode(name: Path | str, content: bytes, flags: int) -> npt.NDArray[Any]:
    """Decode an image file's content with `cv2.imdecode`.

    Args:
        name: of the file; error messages begin with it.
        content: of the file.
        flags: of OpenCV, cv2.IMREAD_*.

    Raises DataError if the header claims more than MAX_PIXELS or the content cannot be decoded.
    """
    require_bounded(name, content)
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    except cv2.error as error:
        raise DataError(f"{name} is refused by OpenCV ({error.err}); it is damaged, or has over 2**30 pixels") from None
    if pixels is None:
        raise DataError(f"{name} cannot be decoded as an image; the file is damaged or of a kind OpenCV does not read")
    return pixels


def require_bounded(name: Path | str, content: bytes) -> None:
    """Raise DataError if the header of an image file's content claims more than MAX_PIXELS."""
    height, width = header_size(content) or (0, 0)
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{name} claims to be {height}x{width} (height x width), expected at most {MAX_PIXELS} pixels, which is "
            "16384x16384; scale it down or cut it into tiles"
        )


def encode(name: Path | str, pixels: UInt8Array) -> bytes:
    """Encode (h, w) or (h, w, 3) BGR pixels in the format of the file name's suffix.

    Raises InputError if the format cannot hold them.
    """
    try:
        done, content = cv2.imencode(Path(name).suffix, pixels)
    except cv2.error:  # a suffix that OpenCV does not know
        done = False
    if not done:
        raise InputError(
            f"{name}: OpenCV cannot write {pixels.shape[0]}x{pixels.shape[1]} (height x width) pixels as "
            f"'{Path(name).suffix}'; take .png"
        )
    return content.tobytes()


def data_uri(content: bytes, suffix: str) -> str:
    """Return a file's content as a data URI for a page; `suffix` is .png, .jpg or .svg."""
    return f"data:{_MEDIA_TYPES[suffix]};base64,{base64.b64encode(content).decode('ascii')}"


def image_uri(pixels: UInt8Array, suffix: str) -> str:
    """Encode (h, w, 3) BGR pixels as .png or .jpg and return them as a data URI."""
    return data_uri(encode(f"image{suffix}", pixels), suffix)


def read_content(path: Path) -> bytes:
    """Read the bytes of an image file. Raises DataError if it is missing, no regular file, or over MAX_BYTES."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe or /dev/zero never ends
            raise DataError(f"{path} is a folder or a device, expected an image file; remove it")
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} has {path.stat().st_size} bytes, expected an image of at most {MAX_BYTES}")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; expected an image file") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read as an image: {error.strerror}") from None


def read_image(path: str | Path) -> UInt8Array:
    """Decode an image file as (H, W, 3) uint8 BGR. Raises DataError, naming the file."""
    return decode(Path(path), read_content(Path(path)), cv2.IMREAD_COLOR).astype(np.uint8, copy=False)


def resize_image(image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """Resize (h, w, 3) uint8 to (height, width, 3), bilinear. Returns the same array if it has that size already."""
    return _resize(image, size, cv2.INTER_LINEAR)


def resize_labels(labels: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """Resize (h, w) uint8 class ids to (height, width), nearest neighbour: mixed ids would be other classes.

    Pixel centres match those of `resize_image`; OpenCV's plain INTER_NEAREST shifts by up to half a pixel.
    """
    return _resize(labels, size, cv2.INTER_NEAREST_EXACT)


def _resize(pixels: UInt8Array, size: tuple[int, int], interpolation: int) -> UInt8Array:
    if pixels.shape[:2] == size:
        return pixels
    return cv2.resize(pixels, size[::-1], interpolation=interpolation).astype(np.uint8, copy=False)


def colorize(labels: UInt8Array, classes: ClassList) -> UInt8Array:
    """Paint a label map: (H, W) uint8 ids -> (H, W, 3) uint8 BGR. Ids without a class become black."""
    palette = np.zeros((256, 1, 3), np.uint8)
    palette[: len(classes), 0] = np.array(classes.colors, np.uint8)[:, ::-1]
    # Twenty times faster than palette[labels], which took half of the time of a video's overlay
    return cv2.applyColorMap(np.ascontiguousarray(labels), palette).astype(np.uint8, copy=False)


def overlay(image: UInt8Array, labels: UInt8Array, classes: ClassList, alpha: float = 0.5) -> UInt8Array:
    """Blend the colours of a label map over the image: (h, w, 3) uint8 BGR. `alpha` is the share of the colours."""
    blended = cv2.addWeighted(image, 1 - alpha, colorize(labels, classes), alpha, 0)
    return blended.astype(np.uint8, copy=False)
