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
from ..image_headers import GREY, PALETTE
from ..images import UInt8Array, decode, read_content, require_readable, turned


class Values(NamedTuple):
    """What a label map's file holds.

    Attributes:
        pixels: (H, W) uint8 or uint16 ids, or int32 0xRRGGBB if the file holds colours.
        orientation: how the pixels were turned, 1 to 8 as in EXIF; 1 if the file does not say.
        notes: what in the file is ambiguous, and how it is read.
    """

    pixels: npt.NDArray[np.integer[Any]]
    orientation: int
    notes: tuple[str, ...] = ()


class LabelMap(NamedTuple):
    """A label map, as class ids.

    Attributes:
        labels: (H, W) uint8 class ids. Pixels whose value stands for no class have the void label.
        unknown: value that stands for no class, as classes.json spells it ("7", "#ff8000") -> number of its pixels,
            the most frequent first.
        orientation, notes: as in `Values`.
        is_color: whether the file was read as colours.
    """

    labels: UInt8Array
    unknown: dict[str, int]
    orientation: int
    notes: tuple[str, ...]
    is_color: bool


def read_label_map(path: Path, values: LabelValues, void: int) -> LabelMap:
    """Read a label map and translate its values to class ids.

    Args:
        path: of the file.
        values: which class each value in the file stands for.
        void: the label for values that stand for no class.

    Raises DataError, naming the file, if it cannot be read as a label map.
    """
    raw = read_values(path, values)
    labels, unknown = translate(raw.pixels, values.known(raw.pixels.dtype), void)
    is_color = raw.pixels.dtype == np.int32
    named = {f"#{value:06x}" if is_color else f"{value}": count for value, count in unknown.items()}
    return LabelMap(labels, named, raw.orientation, raw.notes + _mask_note(raw.pixels, values, void), is_color)


def _mask_note(pixels: npt.NDArray[np.integer[Any]], values: LabelValues, void: int) -> tuple[str, ...]:
    if void != 255 or pixels.dtype != np.uint8 or values.ids.get(255) != void or pixels.max(initial=0) != 255:
        return ()
    if np.isin(pixels, (0, 255)).all() and (pixels == 0).any():
        return (
            'only 0 and 255, as masks have it, and 255 is void here; if it is a class: "label_values": {"255": ...}',
        )
    return ()


def read_values(path: Path, known: LabelValues) -> Values:
    """Read the values of a label map, turned as the file says.

    One channel holds ids of 1, 2, 4, 8 or 16 bits. The palette indices of a PNG are ids too, unless its palette has the
    classes' colours in another order. Three channels hold colours; if the three are equal and are not colours of
    classes, they hold ids.

    Raises DataError, naming the file, if it is in a lossy format, holds several pictures, or cannot be read.
    """
    content = read_content(path)
    header = require_readable(path, content)
    if header.is_lossy:
        raise DataError(
            f"{path} is in a format that changes values, {header.format}; make it again, and save it as PNG"
        )
    if header.pictures > 1:
        raise DataError(f"{path} holds {header.pictures} pictures, expected one label map; split it")
    if header.color_type == PALETTE:
        indices, palette = palette_indices(path, content)
        return _by_palette(path, turned(indices, header.orientation), palette, known, header.orientation)
    pixels = decode(path, content, header, cv2.IMREAD_UNCHANGED)
    if header.color_type == GREY and header.bits < 8:
        pixels = pixels // (255 // (2**header.bits - 1))  # OpenCV spreads the levels over 0 to 255
    if pixels.dtype == np.uint16 and pixels.max(initial=0) <= 255:
        pixels = pixels.astype(np.uint8)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if channels == 1 and pixels.dtype in (np.uint8, np.uint16):
        return Values(pixels.reshape(pixels.shape[:2]), header.orientation)
    return _by_color(_opaque(path, pixels, channels), known, header.orientation)


def _opaque(path: Path, pixels: npt.NDArray[Any], channels: int) -> UInt8Array:
    """Colours as (H, W, 4) BGRA. Raises DataError for other pixels, and for transparent ones."""
    if pixels.dtype != np.uint8 or channels not in (3, 4):
        raise DataError(
            f"{path} has {channels} channel{'s' * (channels != 1)} of {pixels.dtype}; expected a map of class ids, of "
            "8 or 16 bits in one channel or with a palette, or of the classes' colours in three of 8 bits; convert it"
        )
    if channels == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2BGRA)
    elif (pixels[..., 3] != 255).any():
        raise DataError(
            f"{path} has {int((pixels[..., 3] != 255).sum())} transparent pixels, expected none in a label map; save "
            "it without an alpha channel"
        )
    return np.ascontiguousarray(pixels, np.uint8)


def _by_color(pixels: UInt8Array, known: LabelValues, orientation: int) -> Values:
    """The values of (H, W, 4) BGRA pixels: colours, or ids if the channels are equal and more values are known ids."""
    colors: npt.NDArray[np.int32] = pixels.view("<i4")[..., 0] & 0xFFFFFF
    ids = pixels[..., 0]
    if (ids != pixels[..., 1]).any() or (ids != pixels[..., 2]).any():
        return Values(colors, orientation)
    used = np.unique(ids).tolist()
    by_color = [known.colors.get(value * 0x010101) for value in used]
    by_id = [known.ids.get(value) for value in used]
    if by_id.count(None) < by_color.count(None):
        return Values(np.ascontiguousarray(ids), orientation)
    if None not in by_id and by_id != by_color:
        note = "three equal channels that could be ids or colours, and are read as colours; save ids in one channel"
        return Values(colors, orientation, (note,))
    return Values(colors, orientation)


def palette_indices(path: Path, content: bytes) -> tuple[UInt8Array, list[int]]:
    """The (H, W) uint8 palette indices of a PNG, as OpenCV does not give them, and its palette, 0xRRGGBB."""
    from PIL.PngImagePlugin import PngImageFile

    try:
        PngImageFile(io.BytesIO(content)).verify()  # decoding does not compare the checksums
        with PngImageFile(io.BytesIO(content)) as image:
            palette = np.array(image.getpalette("RGB") or [], np.int64).reshape(-1, 3)
            return np.asarray(image), (palette @ (1 << 16, 1 << 8, 1)).tolist()
    except Exception as error:  # noqa: BLE001  a damaged file makes Pillow raise errors of many types
        raise DataError(f"{path} cannot be decoded as an image: {error or repr(error)}; the file is damaged") from None


def _by_palette(path: Path, indices: UInt8Array, palette: list[int], known: LabelValues, orientation: int) -> Values:
    """The values of a map with a palette: its indices, or its colours if they are the classes' in another order.

    Raises DataError if some colours are those of other classes than the indices.
    """
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256)).tolist()
    colors = {index: palette[index] for index in used if index < len(palette)}
    # black says nothing: it stands for void, and is what unused entries have
    wrong = [i for i, c in colors.items() if c and c in known.colors and known.colors[c] != known.ids.get(i)]
    is_common = all(color == _VOC[index] for index, color in colors.items())  # many tools give every map this palette
    are_known = all(color in known.colors for color in colors.values()) and len(colors) == len(used)
    if not wrong or (is_common and not are_known):
        return Values(indices, orientation)
    if are_known and not is_common and len(set(colors.values())) == len(colors):
        table = np.zeros(256, np.int32)
        table[list(colors)] = list(colors.values())
        note = "a palette of the classes' colours in another order than their ids; read by colour"
        return Values(table[indices], orientation, (note,))
    raise DataError(
        f"{path} has a palette that contradicts itself: index {wrong[0]} has the colour #{colors[wrong[0]]:06x} of "
        "another class; expected ids, or the classes' colours: save it without a palette, or correct classes.json"
    )


def _voc_palette() -> list[int]:
    """PASCAL VOC's colours of 256 ids.

    The three lowest bits of an id are the highest bits of red, green and blue, the next three the bits below them.
    """
    places = [(3 * level + channel, 23 - level - 8 * channel) for level in range(8) for channel in range(3)]
    return [sum((index >> bit & 1) << place for bit, place in places) for index in range(256)]


_VOC = _voc_palette()


def translate(
    values: npt.NDArray[np.integer[Any]], known: Mapping[int, int], unknown: int
) -> tuple[UInt8Array, dict[int, int]]:
    """Translate values to uint8 class ids; a value that is not in `known` becomes `unknown`.

    Returns also how many pixels have each unknown value, the most frequent first.
    """
    size = {1: 1 << 8, 2: 1 << 16}.get(values.dtype.itemsize, 1 << 24)
    table = np.zeros(size, np.uint16)  # untouched pages take no memory
    fitting = {value: label for value, label in known.items() if value < size}
    table[list(fitting)] = [label + 1 for label in fitting.values()]
    labels = table[values]
    is_unknown = labels == 0
    strangers, counts = np.unique(values[is_unknown], return_counts=True)
    labels[is_unknown] = unknown + 1
    order = np.argsort(-counts, kind="stable")
    return (labels - 1).astype(np.uint8), dict(zip(strangers[order].tolist(), counts[order].tolist(), strict=True))
