"""Segmentation data sets: matched images and label maps, in the SegNet layout or Cityscapes'.

In the SegNet layout a data set is a folder with two folders per split: `SPLIT/` (images) and `SPLITannot/` (label
maps), matched by file stem. CamVid needs nothing more. Any other data set declares its classes in `classes.json`, and
there also what its label maps hold, if it is neither class ids nor the classes' colours (see `classes`).
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from ..classes import ClassList, LabelValues, composed, is_cityscapes, read_declaration
from ..console import warn_once
from ..errors import DataError, InputError
from ..image_headers import Header
from ..images import IMAGE_SUFFIXES, UInt8Array, load_image
from .label_maps import LabelMap, read_label_map, read_values

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")

SPLITS = ("train", "val", "test")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataSet:
    """One split: matched image and label files. Iterating reads `(image, labels)` pairs, one at a time.

    Attributes:
        classes: what the ids in the label maps mean.
        pairs: (image file, label file), sorted by name.
        values: which class each value in the label files stands for.
    """

    classes: ClassList
    pairs: tuple[tuple[Path, Path], ...]
    values: LabelValues

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        """Read the image, (H, W, 3) uint8 BGR in [0, 255], and its label map, (H, W) uint8 class ids.

        Raises DataError, naming the file, if one is unreadable, their sizes differ or a value stands for no class.
        """
        image_path, label_path = self.pairs[index]
        image, header, scale = load_image(image_path)
        label_map = self._label_map(index)
        labels, turn = label_map.labels, turn_note(header, label_map)
        if image.shape[:2] != labels.shape:
            raise DataError(
                f"{label_path} is {labels.shape[0]}x{labels.shape[1]} (height x width) but its image {image_path} is "
                f"{image.shape[0]}x{image.shape[1]}; a label map has the size of its image"
                + (f"; {turn}" if turn else "")
            )
        pictures = f"{header.pictures} pictures, of which only the first is read" if header.pictures > 1 else ""
        for note in filter(None, (turn, pictures, scale)):
            warn_once(log, f"%s: {note} (the first such file; `enet-data check` finds all)", image_path)
        return image, labels

    def __iter__(self) -> Iterator[tuple[UInt8Array, UInt8Array]]:
        return (self[index] for index in range(len(self)))

    def values_in_use(self) -> Mapping[int, int]:
        """The value->class mapping of these label maps: by id or by colour, as the first map has it."""
        return self.values.known(read_values(self.pairs[0][1], self.values).pixels.dtype)

    def read_labels(self, index: int) -> UInt8Array:
        """Read the label map alone, (H, W) uint8 class ids. Raises DataError, naming the file."""
        return self._label_map(index).labels

    def _label_map(self, index: int) -> LabelMap:
        path = self.pairs[index][1]
        label_map = read_label_map(path, self.values, self.classes.void)
        unknown = label_map.unknown
        if unknown:
            value, pixels = next(iter(unknown)), sum(unknown.values())
            raise DataError(
                f"{path} holds {self.values.described(value)}, which stands for no class ({pixels} such pixels); "
                f"expected {self.values.expected(self.classes)}: correct the label map, or declare it in classes.json, "
                f'"label_values": {{"{value}": "NAME"}}, or null for void'
            )
        for note in label_map.notes:
            warn_once(log, f"%s has {note} (the first such file; `enet-data check` finds all)", path)
        return label_map


def turn_note(image: Header, label_map: LabelMap) -> str:
    """What to check if an image and its label map state different orientations; "" if they do not."""
    if image.orientation == label_map.orientation:
        return ""
    return (
        f"turned by its EXIF orientation {image.orientation}, while its label map states {label_map.orientation}; if "
        "the labels were drawn on the pixels as stored, they do not fit: remove the orientation, or turn the label map"
    )


class Part(NamedTuple):
    """The images of a split, or its label maps: the files of `folder` that match `pattern`.

    The names of an image and its label map, without suffix, share what * stands for in `stem`. Unicode has two
    spellings of many letters; both are the same here.
    """

    folder: Path
    pattern: str = "*"
    stem: str = "*"

    def by_stem(self) -> dict[str, list[Path]]:
        """Return stem -> files, both sorted. An image and its label map have the same stem."""
        files: dict[str, list[Path]] = {}
        before, _, after = self.stem.partition("*")
        for path in sorted(self.folder.glob(self.pattern)):
            # hidden files are no images: they are unfinished ones, or those that macOS puts beside each file
            stem = composed(path.stem)
            is_one = stem.startswith(before) and stem.endswith(after) and len(stem) >= len(before) + len(after)
            if path.suffix.lower() in IMAGE_SUFFIXES and is_one and path.name[0] != ".":
                files.setdefault(stem[len(before) : len(stem) - len(after)], []).append(path)
        return files

    def nested(self) -> list[Path]:
        """The image files in subfolders, which are not among the files of a part without folders in its pattern."""
        if "/" in self.pattern:
            return []
        found = []
        for folder, subfolders, names in os.walk(self.folder):
            subfolders[:] = sorted(name for name in subfolders if name[0] != ".")
            if Path(folder) != self.folder:
                found += [Path(folder) / name for name in sorted(names) if name[0] != "."]
        return [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]

    def one_by_stem(self) -> dict[str, Path]:
        """As `by_stem`, with one file each. Raises DataError if a stem has several, or if there are none at all."""
        if not self.folder.is_dir():
            raise DataError(
                f"{self.folder} is not a folder; a data set has train/ trainannot/ val/ valannot/, or Cityscapes' "
                "leftImg8bit/ and gtFine/ (`enet-data camvid DIR` fetches CamVid)"
            )
        files, nested = self.by_stem(), self.nested()
        if not files:
            advice = f"; {len(nested)} are in subfolders, such as {nested[0]}: move them up" if nested else ""
            raise DataError(
                f"{self.folder} holds no images; expected files {self.pattern}, named {self.stem}, with one of "
                f"{' '.join(sorted(IMAGE_SUFFIXES))}{advice}"
            )
        if nested:
            log.warning("%s: images in subfolders are left out: %d, such as %s", self.folder, len(nested), nested[0])
        for first, *others in files.values():
            if others:
                raise DataError(f"{first} and {others[0]} have the same stem; keep one of them")
        return {stem: path for stem, (path,) in files.items()}


def parts(root: str | Path, split: str) -> tuple[Part, Part]:
    """The places of a split's images and label maps. The folders need not exist."""
    root = Path(root)
    stems = read_declaration(root)[2:]
    if is_cityscapes(root):
        return Part(root / "leftImg8bit" / split, "*/*", stems[0]), Part(root / "gtFine" / split, "*/*", stems[1])
    return Part(root / split, "*", stems[0]), Part(root / f"{split}annot", "*", stems[1])


def stem_advice(images: Iterable[str], label_maps: Iterable[str]) -> str:
    """What to declare in classes.json if label maps have the names of all these images and more; "" otherwise."""
    pattern = stem_pattern(images, label_maps)
    return f'declare "label_stem": "{pattern}" in classes.json' if pattern else ""


def stem_pattern(images: Iterable[str], label_maps: Iterable[str]) -> str:
    """Find the pattern that turns the names of all these images into names of label maps; "" if there is none."""
    images, label_maps = set(images), set(label_maps)
    first = min(images, default="")
    for name in sorted(label_maps, key=len):
        if first and first in name and first != name:
            before, _, after = name.partition(first)
            if all(f"{before}{stem}{after}" in label_maps for stem in images):
                return f"{before}*{after}"
    return ""


def open_data(root: str | Path, split: str) -> DataSet:
    """Match the images and label maps of one split by file stem, without decoding them.

    Args:
        root: the data set's folder. It holds `split/` and `splitannot/`, and `classes.json` unless it is CamVid; or
            Cityscapes' `leftImg8bit/split/` and `gtFine/split/`, with the 19 classes of its benchmark.
        split: "train", "val" or "test".

    Raises DataError if classes.json is not a class list, a folder is missing or empty, or a file has no partner.
    """
    of_images, of_labels = parts(root, split)
    images, labels = of_images.one_by_stem(), of_labels.one_by_stem()
    for here, there, folder in ((images, labels, of_labels.folder), (labels, images, of_images.folder)):
        alone = sorted(here.keys() - there.keys())
        if alone:
            raise DataError(
                f"{here[alone[0]]} has no partner '{alone[0]}.*' in {folder} ({len(alone)} such files); "
                "every image needs one label map of the same name"
                + (f"; {advice}" if (advice := stem_advice(images, labels)) else "")
            )
    classes, values = read_declaration(root)[:2]
    return DataSet(classes, tuple((images[stem], labels[stem]) for stem in sorted(images)), values)


def find_images(root: str | Path, split: str) -> list[Path]:
    """The image files of a split, sorted by name, labelled or not. If `root` has no such folder, its own images.

    Raises DataError if there are none.
    """
    images, itself = parts(root, split)[0], Part(Path(root))
    if images.folder.is_dir():
        return [*images.one_by_stem().values()]
    if not itself.by_stem():
        raise DataError(f"{root} has neither a folder '{split}' nor images, expected a data set or a folder of images")
    return [*itself.one_by_stem().values()]


def require_same_classes(known: ClassList, data: ClassList, folder: str | Path, who: str) -> None:
    """Raise DataError unless a data set has the classes `known`. `who` says whose they are: "the weights know"."""
    if known.names != data.names:
        raise DataError(
            f"{folder} has the classes {', '.join(data.names)}, but {who} {', '.join(known.names)}; take weights of "
            "these classes, or correct its classes.json"
        )


def join(sets: Sequence[DataSet]) -> DataSet:
    """Join data sets into one. Raises DataError unless they have the same classes and no file in common."""
    first = sets[0]
    files = [os.path.realpath(image) for data in sets for image, _ in data.pairs]
    if len(set(files)) < len(files):
        twice = next(path for path in files if files.count(path) > 1)
        raise DataError(f"{twice} is in several of the data sets, expected every image once; leave one folder out")
    for other in sets[1:]:
        if other.classes.names != first.classes.names or other.classes.ignore_id != first.classes.ignore_id:
            raise DataError(
                f"data sets of different classes: {first.pairs[0][0].parent} has {', '.join(first.classes.names)}, "
                f"{other.pairs[0][0].parent} has {', '.join(other.classes.names)}; expected the same, and the same void"
            )
        if other.values != first.values:
            raise DataError(
                f"{first.pairs[0][1].parent} and {other.pairs[0][1].parent} give their classes other colours or label "
                "values, expected the same; make them so in classes.json"
            )
    return dataclasses.replace(first, pairs=tuple(pair for data in sets for pair in data.pairs))


def without(data: DataSet, prefix: str) -> DataSet:
    """The images whose file names do not begin with `prefix`; the result may be empty."""
    return dataclasses.replace(data, pairs=tuple(pair for pair in data.pairs if not _begins(pair[0], prefix)))


def _begins(path: Path, prefix: str) -> bool:
    return composed(path.name).startswith(composed(prefix))


def hold_out(data: DataSet, prefix: str) -> tuple[DataSet, DataSet]:
    """Split by file name: the images that do not begin with `prefix`, and those that do (a cross-validation fold).

    Frames of one drive resemble each other, so a fold leaves whole drives out. CamVid's are 0001TP, 0006R0 and 0016E5.
    Raises InputError if one side is empty.
    """
    held = tuple(pair for pair in data.pairs if _begins(pair[0], prefix))
    rest = without(data, prefix)
    if not held or not len(rest):
        raise InputError(
            f"hold-out '{prefix}' matches {len(held)} of {len(data)} images, expected some, not all; "
            f"names look like '{data.pairs[0][0].name}'"
        )
    return rest, dataclasses.replace(data, pairs=held)


def read_ahead(read: Callable[[int], T], indices: Iterable[int], ahead: int = 16) -> Iterator[T]:
    """Yield `read(index)` for each index, in order. Threads compute up to `ahead` items in advance."""
    from concurrent.futures import ThreadPoolExecutor  # lazy: a robot imports this file and reads no data set

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        waiting: deque[Future[T]] = deque()
        for index in indices:
            waiting.append(pool.submit(read, index))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def spread(items: Sequence[T], count: int) -> list[T]:
    """Pick `count` items evenly over the list, with the first and the last; all of them if there are no more."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items)), dtype=int)]


def files_of(root: str | Path, split: str = "train") -> list[Path]:
    """The paths that a command may read in a data set or a folder of images, for `files.require_outputs`.

    These are the folders of train, val, test and `split`, classes.json, and the images directly in `root`.
    """
    folders = {part.folder for name in (*SPLITS, split) for part in parts(root, name)}
    images = [path for paths in Part(Path(root)).by_stem().values() for path in paths]
    return [Path(root) / "classes.json", *sorted(folder for folder in folders if folder.is_dir()), *images]
