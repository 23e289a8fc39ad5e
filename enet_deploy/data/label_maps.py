"""Read label maps: from the values in a file to class ids."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from ..classes import LabelValues
from ..errors import DataError
from ..images import UInt8Array, decode, png_header, read_content, require_bounded

GREY, PALETTE = 0, 3  # colour types in a PNG's header


class LabelMap(NamedTuple):
    """A label map, as class ids.

    Attributes:
        labels: (H, W) uint8 class ids. Pixels whose value stands for no class have the void label.
        unknown: value that stands for no class, as classes.json spells it ("7", "#ff8000") -> number of its pixels,
            the most frequent first.
    """

    labels: UInt8Array
    unknown: dict[str, int]


def read_label_map(path: Path, values: LabelValues, void: int) -> LabelMap:
    """Read a label map and translate its values to class ids.

    Args:
        path: of the file.
        values: which class each value in the file stands for.
        void: the label for values that stand for no class.

    Raises DataError, naming the file, if it cannot be read as a label map.
    """
    raw = read_values(path)
    labels, unknown = translate(raw, values.known(raw.dtype), void)
    is_color = raw.dtype != np.uint8
    return LabelMap(labels, {f"#{value:06x}" if is_color else f"{value}": count for value, count in unknown.items()})


def read_values(path: Path) -> npt.NDArray[np.integer[Any]]:
    """Read the values of a label map, (H, W): uint8 ids, or int32 0xRRGGBB if the file holds colours.

    The ids of a PNG are its palette indices or its grey levels, of 1, 2, 4 or 8 bits. Raises DataError, naming the
    file.
    """
    content = read_content(path)
    png = png_header(content)
    if png is not None and png.color_type == PALETTE:
        return _palette_indices(path, content)
    pixels = decode(path, content, cv2.IMREAD_UNCHANGED)
    if png is not None and png.color_type == GREY and png.bits < 8:
        pixels = pixels // (255 // (2**png.bits - 1))  # OpenCV spreads the levels over 0 to 255
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
    colors: npt.NDArray[np.int32] = pixels.view("<i4")[..., 0] & 0xFFFFFF
    return colors


def _palette_indices(path: Path, content: bytes) -> UInt8Array:
    """The (H, W) uint8 palette indices of a PNG; OpenCV would give the palette's colours."""
    from PIL.PngImagePlugin import PngImageFile

    require_bounded(path, content)
    try:
        PngImageFile(io.BytesIO(content)).verify()  # decoding does not compare the checksums
        with PngImageFile(io.BytesIO(content)) as image:
            return np.asarray(image)
    except Exception as error:  # noqa: BLE001  a damaged file makes Pillow raise errors of many types
        raise DataError(f"{path} cannot be decoded as an image: {error or repr(error)}; the file is damaged") from None


def translate(
    values: npt.NDArray[np.integer[Any]], known: Mapping[int, int], unknown: int
) -> tuple[UInt8Array, dict[int, int]]:
    """Translate values to uint8 class ids; a value that is not in `known` becomes `unknown`.

    Returns also how many pixels have each unknown value, the most frequent first.
    """
    table = np.zeros(256 if values.dtype == np.uint8 else 1 << 24, np.uint16)  # untouched pages take no memory
    table[list(known)] = [label + 1 for label in known.values()]
    labels = table[values]
    is_unknown = labels == 0
    strangers, counts = np.unique(values[is_unknown], return_counts=True)
    labels[is_unknown] = unknown + 1
    order = np.argsort(-counts, kind="stable")
    return (labels - 1).astype(np.uint8), dict(zip(strangers[order].tolist(), counts[order].tolist(), strict=True))
