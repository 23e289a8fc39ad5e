"""Class lists: names and colours of the classes, void, and the values that stand for them in label maps.

The classes of CamVid and Cityscapes are built in. Any other data set declares its own in `classes.json`. Only the names
are required:

    {"names": ["floor", "wall"], "colors": [[0, 90, 200], [200, 200, 0]], "ignore_id": 255}

Label maps hold ids (the positions in `names`) or the classes' colours, with black for void. If they hold other values,
`label_values` maps each value to a class, or to null for void:

    "label_values": {"7": "floor", "8": "wall", "0": null, "#ff8000": "wall"}

A label map has the name of its image. If its name has more in it, patterns say what; * is the part that they share:

    "image_stem": "*_leftImg8bit", "label_stem": "*_gtFine_labelTrainIds"
"""

from __future__ import annotations

import colorsys
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from .errors import DataError, InputError
from .files import parse_json

T = TypeVar("T")

KEYS = {"names", "colors", "ignore_id", "label_values", "image_stem", "label_stem"}  # of a classes.json


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set.

    Attributes:
        names: one per class; the class id is the position.
        colors: RGB in [0, 255], one per class, for pictures.
        ignore_id: the label of pixels without a class ("void"), or None if every pixel has one.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ignore_id: int | None

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= 255:
            raise InputError(f"{len(self.names)} class names, expected 2 to 255: label maps hold 8-bit ids")
        for name in self.names:  # a terminal would obey control characters
            if not name.isprintable() or not name.strip():
                raise InputError(f"class name {name!a}, expected printable characters, not only spaces; correct it")
        if len(set(self.names)) != len(self.names):
            raise InputError(f"class names {list(self.names)} repeat, expected each once")
        if len(self.colors) != len(self.names):
            raise InputError(f"{len(self.colors)} colors for {len(self.names)} class names, expected one each")
        for name, color in zip(self.names, self.colors, strict=True):
            if len(color) != 3 or not all(0 <= c <= 255 for c in color):
                raise InputError(f"color {list(color)} of class '{name}', expected [red, green, blue] in 0 to 255")
        if self.ignore_id is not None and not len(self.names) <= self.ignore_id <= 255:
            raise InputError(
                f"ignore_id {self.ignore_id}, expected {len(self.names)} to 255 (no class has it) or null for none"
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def void(self) -> int:
        """A label that is no class: `ignore_id`, or 255 without one."""
        return 255 if self.ignore_id is None else self.ignore_id

    @property
    def overlay_colors(self) -> tuple[tuple[int, int, int], ...]:
        """RGB, one per class, for overlays and their legends; `colors`, unless these are CamVid's.

        CamVid's colours are for label files: to the red-green blind its buildings and pedestrians look alike, and half
        transparent over a picture its trees and pedestrians do to everyone.
        """
        return _CAMVID_OVERLAY if self.colors == CAMVID.colors else self.colors

    def to_json(self) -> dict[str, Any]:
        return {"names": list(self.names), "colors": [list(c) for c in self.colors], "ignore_id": self.ignore_id}

    @classmethod
    def from_json(cls, value: Any) -> ClassList:
        """The inverse of `to_json`. Without "colors", colours are generated. Raises InputError for another form."""
        try:
            if not isinstance(value, dict):
                raise TypeError(f"{value!r:.60} is not an object")
            ignore_id = value.get("ignore_id")
            if not isinstance(value["names"], list):
                raise TypeError(f"names {value['names']!r:.60} is not a list")
            names = tuple(composed(_require_type(str, name)) for name in value["names"])
            colors = value.get("colors", spread_colors(len(names)))
            return cls(
                names=names,
                colors=tuple(
                    (_require_type(int, r), _require_type(int, g), _require_type(int, b)) for r, g, b in colors
                ),
                ignore_id=None if ignore_id is None else _require_type(int, ignore_id),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                'a class list is {"names": [str, ...], "colors": [[r, g, b], ...], "ignore_id": int or null}; '
                f"this one is not: {error if isinstance(error, TypeError) else repr(error)}"
            ) from None


def composed(text: str) -> str:
    """Return text in one of its spellings in Unicode: a Mac writes é as e and an accent, others as one character."""
    return unicodedata.normalize("NFC", text)


def _require_type(kind: type[T], value: Any) -> T:
    """Return `value`. Raises TypeError unless it has exactly this type."""
    if type(value) is not kind:
        raise TypeError(f"{value!r:.60} is not of type {kind.__name__}")
    return value


def spread_colors(count: int) -> list[tuple[int, int, int]]:
    """Generate `count` different RGB colours: hues in steps of twice the golden angle; pale, light, dark in turn."""
    tones = ((0.45, 0.95), (0.85, 0.95), (0.9, 0.6))  # saturation, brightness
    colors = (colorsys.hsv_to_rgb(index * 0.763932 % 1, *tones[index % len(tones)]) for index in range(count))
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in colors]


CAMVID = ClassList(
    names=(
        "sky", "building", "pole", "road", "pavement", "tree",
        "sign", "fence", "car", "pedestrian", "bicyclist",
    ),
    colors=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0),
        (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
    ignore_id=11,
)  # fmt: skip

# Found by a search for the largest smallest distance in Lab, also as the red-green blind see it: 33 instead of 6
_CAMVID_OVERLAY = (
    (104, 135, 255), (125, 45, 0), (255, 255, 190), (10, 91, 148), (61, 52, 243), (25, 83, 76),
    (255, 231, 0), (185, 142, 104), (0, 0, 120), (245, 97, 24), (0, 189, 192),
)  # fmt: skip

CITYSCAPES = ClassList(
    names=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ),
    colors=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
        (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60),
        (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
    ignore_id=255,
)  # fmt: skip

# Cityscapes' labelIds files hold 0 to 33: 19 classes to train on, the others are void
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_VALUES: dict[str, str | None] = {
    **dict.fromkeys(map(str, range(34))),
    **dict(zip(map(str, _CITYSCAPES_IDS), CITYSCAPES.names, strict=True)),
}


@dataclass(frozen=True)
class LabelValues:
    """The class that each value in a label map's file stands for.

    Attributes:
        ids: value in a file of ids, 0 to 65535, or palette index -> class id, or the id of void.
        colors: 0xRRGGBB in a file of colours -> class id, or the id of void.
    """

    ids: Mapping[int, int]
    colors: Mapping[int, int]

    @classmethod
    def of(cls, classes: ClassList, label_values: Mapping[str, str | None] | None = None) -> LabelValues:
        """Build the mapping from the classes and from `label_values` of classes.json.

        Args:
            classes: whose ids and colours are the default.
            label_values: value ("7", "#ff8000") -> name of a class, None for void. If it holds any id, its ids replace
                the default ids; its colours are added to the default colours.

        Raises InputError for a value that is neither an id nor a colour, and for an unknown name.
        """
        ids: dict[int, int] = {}
        colors: dict[int, int] = {}
        for value, name in (label_values or {}).items():
            values, number = colors if value.startswith("#") else ids, _number(value)
            if number in values:
                raise InputError(f"label_values has {value!a} in two spellings, expected each value once")
            values[number] = _class_id(classes, value, name)
        own = [red << 16 | green << 8 | blue for red, green, blue in classes.colors]
        void = {} if classes.ignore_id is None else {classes.ignore_id: classes.ignore_id}
        black = {} if classes.ignore_id is None or 0 in own else {0: classes.ignore_id}
        return cls(
            ids or {index: index for index in range(len(classes))} | void,
            black | {color: index for index, color in enumerate(own)} | colors,
        )

    def known(self, dtype: np.dtype[Any]) -> Mapping[int, int]:
        """The value->class mapping for label maps of this dtype: ids (uint8, uint16) or colours (int32)."""
        return self.colors if dtype == np.int32 else self.ids

    def described(self, value: str) -> str:
        """Describe an unknown value, given as classes.json spells it: "class id 7", "colour #ff8000"."""
        if not value.startswith("#"):
            return f"class id {value}"
        swapped = int(value[5:7] + value[3:5] + value[1:3], 16)
        return f"colour {value}" + " (a known one with red and blue swapped)" * (swapped in self.colors)

    def expected(self, classes: ClassList) -> str:
        """Describe what a file may hold: "ids 0 to 10 and 11 for void, or the classes' colours"."""
        void = [value for value, label in self.ids.items() if label == classes.ignore_id]
        known = _ranges(sorted(self.ids.keys() - set(void)))
        ids = " and ".join(filter(None, (known, f"{_ranges(sorted(void))} for void" if void else "")))
        return f"ids {ids}, or the classes' colours"


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0 to 2, 5"."""
    there = set(numbers)  # of up to 65536 ids
    starts = [number for number in numbers if number - 1 not in there]
    ends = [number for number in numbers if number + 1 not in there]
    return ", ".join(f"{a} to {b}" if a < b else str(a) for a, b in zip(starts, ends, strict=True))


def _number(value: str) -> int:
    if re.fullmatch("#[0-9a-fA-F]{6}", value):
        return int(value[1:], 16)
    if re.fullmatch("[0-9]{1,5}", value) and int(value) <= 65535:
        return int(value)
    raise InputError(
        f'label_values has {value!a}, expected an id such as "7", 0 to 65535, or a colour such as "#0a5ac8"'
    )


def _class_id(classes: ClassList, value: str, name: str | None) -> int:
    if isinstance(name, str) and composed(name) in classes.names:
        return classes.names.index(composed(name))
    if name is None and classes.ignore_id is not None:
        return classes.ignore_id
    raise InputError(
        f"label_values gives {value} to {name!a:.60}, expected one of {', '.join(classes.names)}, or null for void "
        "if there is an ignore_id"
    )


def read_classes(root: str | Path) -> ClassList:
    """Read a data set's classes.json; without one, take Cityscapes' or CamVid's by its layout. Raises DataError."""
    return read_declaration(root).classes


def read_label_values(root: str | Path) -> tuple[ClassList, LabelValues]:
    """As `read_classes`, with the values that stand for the classes in the label maps."""
    declared = read_declaration(root)
    return declared.classes, declared.values


class Declaration(NamedTuple):
    """What a data set says of itself.

    Attributes:
        classes: of its label maps.
        values: which class each value in the label maps stands for.
        image_stem, label_stem: the names of images and of their label maps, without suffix; * is what both share.
    """

    classes: ClassList
    values: LabelValues
    image_stem: str = "*"
    label_stem: str = "*"


def read_declaration(root: str | Path) -> Declaration:
    """Read a data set's classes.json; without one, take Cityscapes' or CamVid's by its layout. Raises DataError."""
    path = Path(root) / "classes.json"
    try:
        has_file, has_cityscapes = path.exists(), is_cityscapes(root)
    except OSError as error:
        raise DataError(f"{root} cannot be read ({error.strerror}); expected a folder that you may read") from None
    stems = ("*_leftImg8bit", "*_gtFine_labelIds") if has_cityscapes else ("*", "*")
    if not has_file:
        if has_cityscapes:
            return Declaration(CITYSCAPES, LabelValues.of(CITYSCAPES, CITYSCAPES_VALUES), *stems)
        return Declaration(CAMVID, LabelValues.of(CAMVID), *stems)
    try:
        if not path.is_file():  # reading a pipe would wait without end
            raise InputError("a folder or a device, expected a file")
        value = _parsed(path)
        classes = ClassList.from_json(value)
        if len(set(classes.colors)) < len(classes.colors):
            twice = next(color for color in classes.colors if classes.colors.count(color) > 1)
            raise InputError(f"color {list(twice)} of several classes, expected a different one for each")
        if not value.keys() <= KEYS:
            raise InputError(f"the keys {', '.join(value)}, expected some of {', '.join(sorted(KEYS))}")
        label_values = value.get("label_values", {})
        if not isinstance(label_values, dict):
            raise InputError(
                f'label_values is {label_values!a:.60}, expected {{"7": "NAME", "#0a5ac8": "NAME", "0": null}}'
            )
        declared = (value.get(key, stem) for key, stem in zip(("image_stem", "label_stem"), stems, strict=True))
        return Declaration(classes, LabelValues.of(classes, label_values), *map(_stem, declared))
    except InputError as error:
        raise DataError(f"{path}: {error}") from None


def _parsed(path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f'{path} cannot be read: {error}; expected JSON such as {{"names": ["floor", "wall"]}}'
        ) from None


def _stem(pattern: Any) -> str:
    if isinstance(pattern, str) and pattern.count("*") == 1 and not set(pattern) & set("/\\?["):
        return composed(pattern)
    raise InputError(f'a stem of {pattern!a:.60}, expected the names without suffix, with one *, such as "*_mask"')


def is_cityscapes(root: str | Path) -> bool:
    """Whether a data set has Cityscapes' folders."""
    return (Path(root) / "leftImg8bit").is_dir()
