"""Label maps: the values in their files, and the classes that these stand for."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..images import PNG, decode, number, read_content

GREY, PALETTE = 0, 3  # colour types in a PNG's header


def read_values(path: Path) -> npt.NDArray[np.integer[Any]]:
    """The values of a label map, (H, W): uint8 ids, or int32 0xRRGGBB where the file holds colours.

    Of a PNG the ids are the indices into its palette, or its levels of grey, be they of 1, 2, 4 or 8 bits. Raises
    DataError, naming the file.
    """
    content = read_content(path)
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


def _as_grey(png: bytes) -> bytes:
    """A PNG with a palette as one of grey levels: the header says so, and the palette and its transparency are gone."""
    kept, position = [PNG], len(PNG)
    while position < len(png):
        end = position + 12 + number(png[position : position + 4])
        chunk = png[position:end]
        if chunk[4:8] == b"IHDR":
            body = chunk[4:17] + b"\0" + chunk[18:21]
            chunk = chunk[:4] + body + zlib.crc32(body).to_bytes(4, "big")
        if chunk[4:8] in (b"IHDR", b"IDAT", b"IEND"):
            kept.append(chunk)
        position = end
    return b"".join(kept)
