"""Files of images and label maps: size by the header, pixels, and the values that a label map holds."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

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
GREY, PALETTE = 0, 3  # colour types in a PNG's header


def read(path: Path, flags: int) -> npt.NDArray[Any]:
    """The pixels of a file as `cv2.imdecode` gives them. Raises DataError, naming the file."""
    return decode(path, _read(path), flags)


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


def read_values(path: Path) -> npt.NDArray[np.integer[Any]]:
    """The values of a label map, (H, W): uint8 ids, or int32 0xRRGGBB where the file holds colours.

    Of a PNG the ids are the indices into its palette, or its levels of grey, be they of 1, 2, 4 or 8 bits. Raises
    DataError, naming the file.
    """
    content = _read(path)
    bits, color_type = content[24:26] if content.startswith(PNG) and len(content) > 25 else (8, None)
    if color_type == PALETTE:
        content = _as_grey(content)  # OpenCV would give the palette's colours
    pixels = decode(path, content, cv2.IMREAD_UNCHANGED)
    if color_type in (GREY, PALETTE) and bits in (1, 2, 4):
        pixels = pixels // (255 // (2**bits - 1))  # OpenCV spreads the levels over 0 to 255
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.dtype != np.uint8 or channels not in (1, 3, 4):
        raise DataError(
            f"{path} has {channels} channel{'s' * (channels != 1)} of {pixels.dtype}; expected an 8-bit map of class "
            "ids, in one channel or with a palette, or of the classes' colours in three; convert it"
        )
    if channels == 1:
        return np.asarray(pixels, np.uint8)
    if channels == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2BGRA)
    elif (pixels[..., 3] != 255).any():
        raise DataError(
            f"{path} has {int((pixels[..., 3] != 255).sum())} transparent pixels, expected none in a label map; save "
            "it without an alpha channel"
        )
    values: npt.NDArray[np.int32] = pixels.view("<i4")[..., 0] & 0xFFFFFF
    return values


def translate(
    values: npt.NDArray[np.integer[Any]], known: Mapping[int, int], unknown: int
) -> tuple[npt.NDArray[np.uint8], dict[int, int]]:
    """The class ids of a label map's values, uint8, with `unknown` for values that are not in `known`.

    Returns also how many pixels have each unknown value, the most frequent first.
    """
    table = np.zeros(256 if values.dtype == np.uint8 else 1 << 24, np.uint16)  # what is not written takes no memory
    table[list(known)] = [label + 1 for label in known.values()]
    labels = table[values]
    strange = labels == 0
    found, counts = np.unique(values[strange], return_counts=True)
    labels[strange] = unknown + 1
    order = np.argsort(-counts, kind="stable")
    return (labels - 1).astype(np.uint8), dict(zip(found[order].tolist(), counts[order].tolist(), strict=True))


def _read(path: Path) -> bytes:
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
        return _number(content[20:24]), _number(content[16:20])
    position = 2 if content.startswith(b"\xff\xd8") else len(content)
    while content[position : position + 1] == b"\xff":
        marker = content[position + 1 : position + 2]
        if b"\xc0" <= marker <= b"\xcf" and marker not in (b"\xc4", b"\xc8", b"\xcc"):  # a frame's header
            return _number(content[position + 5 : position + 7]), _number(content[position + 7 : position + 9])
        position += 2 + _number(content[position + 2 : position + 4])
    return 0, 0


def _as_grey(png: bytes) -> bytes:
    """A PNG with a palette as one of grey levels: the header says so, and the palette and its transparency are gone."""
    kept, position = [PNG], len(PNG)
    while position < len(png):
        end = position + 12 + _number(png[position : position + 4])
        chunk = png[position:end]
        if chunk[4:8] == b"IHDR":
            body = chunk[4:17] + b"\0" + chunk[18:21]
            chunk = chunk[:4] + body + zlib.crc32(body).to_bytes(4, "big")
        if chunk[4:8] in (b"IHDR", b"IDAT", b"IEND"):
            kept.append(chunk)
        position = end
    return b"".join(kept)


def _number(field: bytes) -> int:
    return int.from_bytes(field, "big")
