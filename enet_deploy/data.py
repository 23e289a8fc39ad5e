"""Segmentation data sets in the SegNet layout, CamVid first; class lists and their colours.

A data set is a folder with, for each split, `SPLIT/` (images) and `SPLITannot/` (8-bit label maps of class ids),
matched by file stem. CamVid needs nothing more; any other data set says its classes in `classes.json`:

    {"names": ["floor", "wall"], "colors": [[0, 90, 200], [200, 200, 0]], "ignore_id": 255}
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from .errors import DataError, InputError

T = TypeVar("T")

UInt8Array = npt.NDArray[np.uint8]

# What OpenCV may read; which of them a build does read shows when it decodes
IMAGE_SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jp2", ".webp", ".avif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pxm", ".sr", ".ras", ".gif", ".exr", ".hdr", ".pic"),
}


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set.

    Attributes:
        names: one per class; the class id is the position.
        colors: RGB in [0, 255], one per class, for pictures.
        ignore_id: the label of pixels without a class ("void"), or None where every pixel has one.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    ignore_id: int | None

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= 255:
            raise InputError(f"{len(self.names)} class names, expected 2 to 255: label maps hold 8-bit ids")
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
        """A label that is no class: `ignore_id`, or 255 where there is none."""
        return 255 if self.ignore_id is None else self.ignore_id

    def to_json(self) -> dict[str, Any]:
        return {"names": list(self.names), "colors": [list(c) for c in self.colors], "ignore_id": self.ignore_id}

    @classmethod
    def from_json(cls, value: Any) -> ClassList:
        """The inverse of `to_json`. Raises InputError where `value` is not of that form."""
        try:
            ignore_id = value.get("ignore_id")
            if not isinstance(value["names"], list):
                raise TypeError("names is no list")
            return cls(
                names=tuple(str(name) for name in value["names"]),
                colors=tuple((int(r), int(g), int(b)) for r, g, b in value["colors"]),
                ignore_id=None if ignore_id is None else int(ignore_id),
            )
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                'a class list is {"names": [str, ...], "colors": [[r, g, b], ...], "ignore_id": int or null}; '
                f"this one is not: {error!r}"
            ) from None


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


@dataclass(frozen=True)
class DataSet:
    """One split: matched image and label files. Iterating reads `(image, labels)` pairs, one at a time.

    Attributes:
        classes: what the ids in the label maps mean.
        pairs: (image file, label file), sorted by name.
    """

    classes: ClassList
    pairs: tuple[tuple[Path, Path], ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        """The image, (H, W, 3) uint8 BGR in [0, 255], and its label map, (H, W) uint8 class ids.

        Raises DataError, naming the file, where one is unreadable, their sizes differ or an id is no class.
        """
        image_path, label_path = self.pairs[index]
        image = read_image(image_path)
        labels = self.read_labels(index)
        if image.shape[:2] != labels.shape:
            raise DataError(
                f"{label_path} is {labels.shape[0]}x{labels.shape[1]} (height x width) but its image {image_path} is "
                f"{image.shape[0]}x{image.shape[1]}; a label map has the size of its image"
            )
        return image, labels

    def __iter__(self) -> Iterator[tuple[UInt8Array, UInt8Array]]:
        return (self[index] for index in range(len(self)))

    def read_labels(self, index: int) -> UInt8Array:
        """The label map alone, (H, W) uint8 class ids. Raises DataError, naming the file."""
        path = self.pairs[index][1]
        labels = _decode(path, cv2.IMREAD_UNCHANGED)
        if labels.ndim != 2 or labels.dtype != np.uint8:
            raise DataError(
                f"{path} has shape {labels.shape} and dtype {labels.dtype}; expected an 8-bit single-channel map of "
                "class ids (a colour picture of the classes has to be converted first)"
            )
        labels = labels.astype(np.uint8, copy=False)
        wrong = labels >= len(self.classes)
        if self.classes.ignore_id is not None:
            wrong &= labels != self.classes.ignore_id
        if wrong.any():
            known = f"0 to {len(self.classes) - 1}"
            known += "" if self.classes.ignore_id is None else f" and {self.classes.ignore_id} for void"
            raise DataError(
                f"{path} holds class id {int(labels[wrong][0])} ({int(wrong.sum())} pixels have no known id); "
                f"expected {known}: correct the label map or declare the classes in classes.json"
            )
        return labels


def open_data(root: str | Path, split: str) -> DataSet:
    """Match the images and label maps of one split by file stem; nothing is decoded yet.

    Args:
        root: the data set's folder, holding `split/` and `splitannot/`, and `classes.json` unless it is CamVid.
        split: "train", "val" or "test".

    Raises DataError where a folder is missing or empty, or a file has no partner.
    """
    root = Path(root)
    images = _by_stem(root / split)
    labels = _by_stem(root / f"{split}annot")
    for here, there, folder in ((images, labels, f"{split}annot"), (labels, images, split)):
        alone = sorted(here.keys() - there.keys())
        if alone:
            raise DataError(
                f"{here[alone[0]]} has no partner '{alone[0]}.*' in {root / folder} ({len(alone)} such files); "
                "every image needs one label map of the same name"
            )
    return DataSet(read_classes(root), tuple((images[stem], labels[stem]) for stem in sorted(images)))


def find_images(root: str | Path, split: str) -> list[Path]:
    """The image files of a split, sorted by name, labelled or not; of `root` itself where it has no such folder.

    Raises DataError where there are none.
    """
    root = Path(root)
    if (root / split).is_dir():
        return [*_by_stem(root / split).values()]
    if not root.is_dir() or not any(path.suffix.lower() in IMAGE_SUFFIXES for path in root.iterdir()):
        raise DataError(f"{root} has neither a folder '{split}' nor images, expected a data set or a folder of images")
    return [*_by_stem(root).values()]


def read_image(path: str | Path) -> UInt8Array:
    """Decode an image file as (H, W, 3) uint8 BGR. Raises DataError, naming the file."""
    return _decode(Path(path), cv2.IMREAD_COLOR).astype(np.uint8, copy=False)


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


def require_same_classes(known: ClassList, data: ClassList, folder: str | Path, who: str) -> None:
    """Raise DataError unless a data set has the classes that weights, or what was made of them, know."""
    if known.names != data.names:
        raise DataError(
            f"{folder} has the classes {', '.join(data.names)}, but {who} {', '.join(known.names)}; take weights of "
            "these classes, or correct its classes.json"
        )


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder; a data set has train/ trainannot/ val/ valannot/ "
            "(`enet-data camvid DIR` fetches CamVid)"
        )
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        # files with a dot in front are nobody's images: unfinished ones, and what macOS leaves beside each file
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in files:
            raise DataError(f"{files[path.stem]} and {path} have the same stem; keep one of them")
        files[path.stem] = path
    if not files:
        raise DataError(f"{folder} holds no images; expected files with one of {' '.join(sorted(IMAGE_SUFFIXES))}")
    return files


def join(sets: Sequence[DataSet]) -> DataSet:
    """One data set with the images of all. Raises DataError unless they have the same classes and no file twice."""
    first = sets[0]
    files = [image.resolve() for data in sets for image, _ in data.pairs]
    if len(set(files)) < len(files):
        twice = next(path for path in files if files.count(path) > 1)
        raise DataError(f"{twice} would be in the data set twice, expected every image once; leave one folder out")
    for other in sets[1:]:
        if other.classes.names != first.classes.names or other.classes.ignore_id != first.classes.ignore_id:
            raise DataError(
                f"data sets of different classes: {first.pairs[0][0].parent} has {', '.join(first.classes.names)}, "
                f"{other.pairs[0][0].parent} has {', '.join(other.classes.names)}; expected the same, and the same void"
            )
    return DataSet(first.classes, tuple(pair for data in sets for pair in data.pairs))


def without(data: DataSet, prefix: str) -> DataSet:
    """The images whose file names do not begin with `prefix`; may be none."""
    return DataSet(data.classes, tuple(pair for pair in data.pairs if not pair[0].name.startswith(prefix)))


def hold_out(data: DataSet, prefix: str) -> tuple[DataSet, DataSet]:
    """The images whose file names do not begin with `prefix`, and those that do: a fold of a cross-validation.

    Frames of one drive resemble each other, so a fold leaves whole drives out. CamVid's are 0001TP, 0006R0 and 0016E5.
    Raises InputError where one side is empty.
    """
    held = tuple(pair for pair in data.pairs if pair[0].name.startswith(prefix))
    rest = without(data, prefix)
    if not held or not len(rest):
        raise InputError(
            f"hold-out '{prefix}' fits {len(held)} of {len(data)} images, expected some, not all; "
            f"names look like '{data.pairs[0][0].name}'"
        )
    return rest, DataSet(data.classes, held)


def read_ahead(read: Callable[[int], T], indices: Iterable[int], ahead: int = 16) -> Iterator[T]:
    """`read(index)` for each index, in order, computed by threads up to `ahead` items before it is asked for."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        waiting: deque[Future[T]] = deque()
        for index in indices:
            waiting.append(pool.submit(read, index))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def spread(items: Sequence[Path], count: int) -> list[Path]:
    """`count` of the items, evenly over the list, first and last among them; all where there are no more."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items)), dtype=int)]


def read_classes(root: str | Path) -> ClassList:
    """The classes of a data set: of its classes.json, CamVid's where it has none. Raises DataError."""
    path = Path(root) / "classes.json"
    if not path.exists():
        return CAMVID
    try:
        return ClassList.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (InputError, OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: {error}") from None


def _decode(path: Path, flags: int) -> npt.NDArray[Any]:
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
        pixels = cv2.imdecode(content, flags) if content.size else None
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; expected an image file") from None
    except (OSError, cv2.error) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from None
    if pixels is None:
        raise DataError(f"{path} cannot be decoded as an image; the file is damaged or of a kind OpenCV does not read")
    return pixels
