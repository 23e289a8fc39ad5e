"""Draft the classes.json of a data set from the values that its label maps hold. A person then gives the names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..classes import CAMVID, CITYSCAPES, ClassList, LabelValues, is_cityscapes
from ..console import counted, progress
from ..errors import DataError, InputError
from ..image_headers import PALETTE
from ..images import IMAGE_SUFFIXES, read_content, require_readable
from .dataset import SPLITS, Part, parts, read_ahead, stem_pattern
from .label_maps import palette_indices, read_values

VOID = 255  # the usual id of void
MOST = 255  # classes


class _Values(NamedTuple):
    """What one label map holds.

    Attributes:
        counts: value -> pixels, of ids or of colours (0xRRGGBB).
        is_color: None for greys in three channels, which are what the other label maps are; `counts` then has colours.
        palette: id -> colour, if there is a palette.
    """

    counts: dict[int, int]
    is_color: bool | None
    palette: dict[int, int]


@dataclass
class Draft:
    """What `draft` found.

    Attributes:
        declared: the content of classes.json.
        splits: split -> number of label maps.
        shares: value in the label maps, as classes.json spells it -> share of all pixels, in [0, 1].
        named: the same value -> name of its class, None for void.
    """

    declared: dict[str, Any]
    splits: dict[str, int]
    shares: dict[str, float]
    named: dict[str, str | None] = field(default_factory=dict)


def draft(root: str | Path) -> Draft:
    """Read all label maps of a data set and draft its classes.json.

    Ids and palette indices become classes in their order, 255 becomes void; colours become classes, and black void.
    Colours of a palette, and names of CamVid's or Cityscapes' colours, are kept.

    Raises InputError if there is a classes.json, or only one class, DataError if there are no label maps, one cannot be
    read, some hold ids and some colours, or they hold more than 255 values.
    """
    root = Path(root)
    if (root / "classes.json").exists() or is_cityscapes(root):
        what = "Cityscapes' layout" if is_cityscapes(root) else "a classes.json"
        raise InputError(f"{root} has {what} already, expected a data set without; see `enet-data check {root}`")
    found = {split: [part.by_stem() for part in parts(root, split)] for split in SPLITS}
    maps = {split: [path for paths in of_labels.values() for path in paths] for split, (_, of_labels) in found.items()}
    files = [path for paths in maps.values() for path in paths]
    if not files:
        raise DataError(_no_label_maps(root))
    every = [*progress(read_ahead(lambda index: _read(files[index]), range(len(files))), "reading", len(files))]
    of_kind = {each.is_color: path for each, path in zip(every, files, strict=True)}  # an example of each
    if {True, False} <= of_kind.keys():
        raise DataError(
            f"{of_kind[False]} holds ids (one channel, or a palette) and {of_kind[True]} colours, expected the same of "
            "all label maps: black is void among colours, and 0 is a class among ids; save all of them alike"
        )
    is_color = True in of_kind
    counts: Counter[int] = Counter()
    for each in every:
        is_grey = each.is_color is None and not is_color
        counts.update({value & 255: n for value, n in each.counts.items()} if is_grey else each.counts)
    if len(counts) > MOST:
        raise DataError(
            f"the label maps of {root} hold {len(counts)} different {'colours' if is_color else 'ids'}, expected at "
            f"most {MOST}, one for each class; were they smoothed, or saved in a lossy format?"
        )
    palette = {value: color for each in every for value, color in each.palette.items()}
    declared, named = _declare_colors(sorted(counts)) if is_color else _declare_ids(sorted(counts), palette)
    stem = stem_pattern(*([stem for both in found.values() for stem in both[part]] for part in (0, 1)))
    ClassList.from_json(declared)
    total = sum(counts.values())
    return Draft(
        declared=declared | ({"label_stem": stem} if stem else {}),
        splits={split: len(paths) for split, paths in maps.items() if paths},
        shares={_spelled(value, is_color): counts[value] / total for value in sorted(counts)},
        named=named,
    )


def _read(path: Path) -> _Values:
    pixels = read_values(path, LabelValues({}, {})).pixels
    counts = _counted(pixels)
    if pixels.dtype == np.int32:
        is_grey = all(value == (value & 255) * 0x010101 for value in counts)
        return _Values(counts, None if is_grey else True, {})
    content = read_content(path)
    if require_readable(path, content).color_type != PALETTE:
        return _Values(counts, False, {})
    colors = palette_indices(path, content)[1]
    return _Values(counts, False, {index: colors[index] for index in counts if index < len(colors)})


def _counted(pixels: npt.NDArray[Any]) -> dict[int, int]:
    values, counts = np.unique(pixels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _spelled(value: int, is_color: bool) -> str:
    return f"#{value:06x}" if is_color else f"{value}"


def _rgb(color: int) -> list[int]:
    return [color >> 16, color >> 8 & 255, color & 255]


def _known_names(colors: Iterable[int]) -> dict[int, str]:
    """The names of colours if all are CamVid's or Cityscapes'; none otherwise."""
    for classes in (CAMVID, CITYSCAPES):
        names = dict(zip(((r << 16 | g << 8 | b) for r, g, b in classes.colors), classes.names, strict=True))
        if set(colors) <= names.keys():
            return names
    return {}


def _declare_colors(colors: list[int]) -> tuple[dict[str, Any], dict[str, str | None]]:
    own = [color for color in colors if color]
    known = _known_names(own)
    names = [known.get(color, f"class{index}") for index, color in enumerate(own)]
    void = VOID if 0 in colors else None
    declared = {"names": names, "colors": [_rgb(color) for color in own], "ignore_id": void}
    named: dict[str, str | None] = {"#000000": None} if 0 in colors else {}
    return declared, named | dict(zip((_spelled(color, True) for color in own), names, strict=True))


def _declare_ids(ids: list[int], palette: dict[int, int]) -> tuple[dict[str, Any], dict[str, str | None]]:
    own = [value for value in ids if value != VOID]
    is_mask = ids == [0, VOID]  # a mask of one class: here 255 is that class and not void
    own = ids if is_mask else own
    known = _known_names(palette[value] for value in own) if palette.keys() >= set(own) else {}
    names = [known.get(palette.get(value, -1), f"class{value}") for value in own]
    has_void = VOID in ids and not is_mask
    declared: dict[str, Any] = {"names": names, "ignore_id": VOID if has_void else None}
    colors = [palette.get(value) for value in own]
    if None not in colors and len(set(colors)) == len(colors):
        declared["colors"] = [_rgb(color) for color in colors if color is not None]
    named = {f"{value}": name for value, name in zip(own, names, strict=True)} | ({"255": None} if has_void else {})
    if own != list(range(len(own))):
        declared["label_values"] = named
    return declared, dict(named)


def _no_label_maps(root: Path) -> str:
    """Say what there is in place of a data set's folders, and how to arrange it."""
    folders = sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".") if root.is_dir() else []
    counts = {f"{p.name}/": sum(f.suffix.lower() in IMAGE_SUFFIXES for f in p.rglob("*")) for p in folders}
    seen = ", ".join(f"{name} ({count} images)" for name, count in counts.items())
    itself = len(Part(root).by_stem()) if root.is_dir() else 0
    return (
        f"{root} has no label maps in trainannot/, valannot/ or testannot/; it holds {seen or 'no folders'}"
        + (f", and {counted(itself, 'image')} outside folders" if itself else "")
        + "; move images to train/ and val/, and their label maps to trainannot/ and valannot/"
    )
