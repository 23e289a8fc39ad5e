"""Check a data set: find all that is wrong with it at once, before a night of training is lost."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..classes import ClassList, LabelValues, read_label_values
from ..console import counted, progress
from ..errors import DataError
from ..image_headers import Header
from ..images import load_image
from .dataset import SPLITS, parts, read_ahead, stem_advice, turn_note
from .label_maps import read_label_map

SMALLEST = 8  # pixels a side: the network halves it three times
SHOWN = 3  # files named in a line
SHOWN_VALUES = 8  # unknown values, or sizes, named in a line


@dataclass
class Split:
    """Counts of a split.

    Attributes:
        images, label_maps: number of files.
        pixels: number per class, void last, in the label maps that have the size of their image.
        sizes: "HxW" -> number of images of that size.
        pairs: (image, label map) without a flaw.
    """

    images: int
    label_maps: int
    pixels: npt.NDArray[np.int64]
    sizes: Counter[str] = field(default_factory=Counter)
    pairs: list[tuple[Path, Path]] = field(default_factory=list)

    def shares(self) -> npt.NDArray[np.float64]:
        """Share of each class in the pixels, in per cent, void last."""
        shares: npt.NDArray[np.float64] = 100 * self.pixels / max(1, self.pixels.sum())
        return shares


@dataclass
class Report:
    """The result of `check`.

    Attributes:
        splits: those of train, val and test that exist.
        problems, warnings: what is wrong and how to correct it -> names of the files concerned; no files if it concerns
            the data set as a whole. What a warning says may be intended.
    """

    root: Path
    classes: ClassList
    values: LabelValues
    splits: dict[str, Split] = field(default_factory=dict)
    problems: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    warnings: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def names(self, paths: Iterable[Path]) -> list[str]:
        """Printable names of files, relative to `root`."""
        names = [path.relative_to(self.root).as_posix() for path in paths]
        return [name if name.isprintable() else ascii(name) for name in names]

    def problem(self, message: str, paths: Sequence[Path]) -> None:
        """Add a problem with these files, if there are any."""
        if paths:
            self.problems[message] += self.names(paths)

    def warning(self, message: str, paths: Sequence[Path]) -> None:
        """Add a warning about these files, if there are any."""
        if paths:
            self.warnings[message] += self.names(paths)

    def lines(self) -> list[str]:
        """The report as text: a table of the splits, then a line per problem and warning."""
        splits = self.splits.values()
        rows = [["", *self.splits], ["images", *(str(split.images) for split in splits)]]
        rows.append(["label maps", *(str(split.label_maps) for split in splits)])
        for index, name in enumerate((*self.classes.names, "(void)")):
            rows.append([name, *(f"{split.shares()[index]:.2f} %" for split in splits)])
        width = max(len(row[0]) for row in rows)
        lines = [f"{name:{width}}" + "".join(f"{cell:>10}" for cell in cells) for name, *cells in rows]
        for kind, findings in (("problem", self.problems), ("warning", self.warnings)):
            for message, files in findings.items():
                shown = ", ".join(files[:SHOWN]) + (", ..." if len(files) > SHOWN else "")
                lines.append(f"{kind}: {message}" + (f" ({counted(len(files), 'file')}): {shown}" if files else ""))
        return lines

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "classes": self.classes.to_json(),
            "splits": {
                name: {
                    "images": split.images,
                    "label_maps": split.label_maps,
                    "sizes": dict(split.sizes),
                    "pixels": split.pixels[:-1].tolist(),
                    "void_pixels": int(split.pixels[-1]),
                }
                for name, split in self.splits.items()
            },
            "problems": [{"message": message, "files": files} for message, files in self.problems.items()],
            "warnings": [{"message": message, "files": files} for message, files in self.warnings.items()],
        }


@dataclass
class _Pair:
    """An image and its label map, one of which may be missing, and what was found in them.

    Attributes:
        flaws: (what is wrong, the file).
        doubts: (what may be wrong, the file).
        header: of the image; None if it is missing or unreadable.
        size: (height, width) of the image; empty if it is missing or unreadable.
        digest: of the image's pixels, whatever the file's format.
        pixels: number per class, void last; None if the label map is unreadable or not of the image's size.
        unknown: value without a class, as in `LabelMap.unknown` -> number of its pixels.
        is_color: whether the label map holds colours; None if it is unreadable.
    """

    split: str
    image: Path | None
    label_map: Path | None
    flaws: list[tuple[str, Path]] = field(default_factory=list)
    doubts: list[tuple[str, Path]] = field(default_factory=list)
    header: Header | None = None
    size: tuple[int, ...] = ()
    digest: bytes = b""
    pixels: npt.NDArray[np.int64] | None = None
    unknown: dict[str, int] = field(default_factory=dict)
    is_color: bool | None = None


def check(root: str | Path) -> Report:
    """Read every image and label map of a data set and find all that is wrong with it.

    Raises DataError if there is nothing to read, or its classes.json is no class list.
    """
    root = Path(root)
    report = Report(root, *read_label_values(root))
    pairs = [pair for split in SPLITS for pair in _match(report, split)]
    if not pairs:
        folders = ", ".join(str(part.folder) for part in parts(root, "train"))
        raise DataError(f"{root} holds no data set, expected images and label maps in {folders} and so on")
    examined = read_ahead(lambda index: _examine(pairs[index], report), range(len(pairs)))
    for pair in progress(examined, "checking", len(pairs)):
        _add(report, pair)
    _find_unknown(report, pairs)
    _find_kinds(report, pairs)
    _find_copies(report, pairs)
    _check_splits(report)
    return report


def _match(report: Report, split: str) -> list[_Pair]:
    """Match the files of a split by stem; add what is wrong with their names to the report."""
    both = parts(report.root, split)
    images, label_maps = (part.by_stem() for part in both)
    of_images, of_maps = ([path for paths in files.values() for path in paths] for files in (images, label_maps))
    nested = [path for part in both for path in part.nested()]
    found = report.warning if of_images and of_maps else report.problem
    found("images in subfolders, which are not read; move them up", nested)
    if not of_images and not of_maps:
        return []
    report.splits[split] = Split(len(of_images), len(of_maps), np.zeros(len(report.classes) + 1, np.int64))
    if split != "test" or of_maps:
        advice = stem_advice(images, label_maps) or "make or remove them"
        report.problem(f"images without a label map of their name; {advice}", _alone(images, label_maps))
    report.problem("label maps without an image of their name; find or remove them", _alone(label_maps, images))
    report.problem("several images of one stem; keep one of each", _repeated(images))
    report.problem("several label maps of one stem; keep one of each", _repeated(label_maps))
    outside = [path for path in (*of_images, *of_maps) if not _is_within(path, report.root)]
    report.warning("links that lead out of the folder; a copy of it would lack these files", outside)
    return [
        _Pair(split, images.get(stem, [None])[0], label_maps.get(stem, [None])[0])
        for stem in sorted(images.keys() | label_maps.keys())
    ]


def _alone(files: dict[str, list[Path]], partners: dict[str, list[Path]]) -> list[Path]:
    return [path for stem, paths in files.items() if stem not in partners for path in paths]


def _repeated(files: dict[str, list[Path]]) -> list[Path]:
    return [path for paths in files.values() if len(paths) > 1 for path in paths]


def _is_within(path: Path, root: Path) -> bool:
    home = os.path.realpath(root)  # unlike Path.resolve, it accepts links that form a circle
    return os.path.commonpath([home, os.path.realpath(path)]) == home


def _examine(pair: _Pair, report: Report) -> _Pair:
    """Read the files of a pair and fill in what they hold."""
    for path, examine in ((pair.image, _examine_image), (pair.label_map, _examine_labels)):
        if path is not None:
            try:
                examine(pair, path, report)
            except DataError as error:
                pair.flaws.append((str(error).removeprefix(f"{path} "), path))
    return pair


def _examine_image(pair: _Pair, path: Path, report: Report) -> None:
    image, pair.header, scale = load_image(path)
    if scale:
        pair.doubts.append((f"images of {scale}", path))
    if pair.header.pictures > 1:
        pair.doubts.append((f"{pair.header.pictures} pictures in a file, of which only the first is read", path))
    pair.size = image.shape[:2]
    digest = hashlib.sha256(f"{pair.size}".encode())
    digest.update(image.data)
    pair.digest = digest.digest()
    if min(pair.size) < SMALLEST:
        pair.flaws.append((f"under {SMALLEST} pixels high or wide; remove the pair", path))


def _examine_labels(pair: _Pair, path: Path, report: Report) -> None:
    label_map = read_label_map(path, report.values, report.classes.void)
    labels, pair.unknown, pair.is_color = label_map.labels, label_map.unknown, label_map.is_color
    pair.doubts += [(f"label maps with {note}", path) for note in label_map.notes]
    if pair.header and pair.image and (turn := turn_note(pair.header, label_map)):
        pair.doubts.append((f"an image is {turn}", pair.image))
    if pair.size and pair.size != labels.shape:
        pair.flaws.append(("not of the size of its image; a label map has a label for each pixel", path))
    elif pair.size:
        counts = np.bincount(labels.ravel(), minlength=256)
        void = counts[report.classes.void] - sum(pair.unknown.values())
        pair.pixels = np.append(counts[: len(report.classes)], void)


def _add(report: Report, pair: _Pair) -> None:
    """Add the flaws and the counts of a pair to the report."""
    split = report.splits[pair.split]
    for message, path in pair.flaws:
        report.problem(message, [path])
    for message, path in pair.doubts:
        report.warning(message, [path])
    if pair.size:
        split.sizes["x".join(map(str, pair.size))] += 1
    if pair.pixels is not None and pair.image is not None and pair.label_map is not None:
        split.pixels += pair.pixels
        if not pair.unknown and not pair.flaws:
            split.pairs.append((pair.image, pair.label_map))


def _find_unknown(report: Report, pairs: Sequence[_Pair]) -> None:
    pixels: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for pair in pairs:
        pixels.update(pair.unknown)
        files.update(pair.unknown.keys())
    if pixels:
        shown = [
            f"{report.values.described(value)} ({counted(count, 'pixel')} in {counted(files[value], 'file')})"
            for value, count in pixels.most_common(SHOWN_VALUES)
        ]
        message = (
            f"label maps with values of no class, {', '.join(shown)}{_more(len(pixels) - len(shown))}; expected "
            f"{report.values.expected(report.classes)}: correct them, or declare the values in classes.json, "
            f'"label_values": {{"{next(iter(pixels))}": "NAME"}}, null for void, colours as "#", red, green, blue'
            + ("" if (report.root / "classes.json").exists() else "; `enet-data init` drafts that file")
        )
        report.problem(message, [pair.label_map for pair in pairs if pair.unknown and pair.label_map])


def _find_kinds(report: Report, pairs: Sequence[_Pair]) -> None:
    """Find label maps of ids beside some of colours: what is black, and void, in one kind is a class in the other."""
    maps: dict[str, list[Path]] = {"ids": [], "colours": []}
    for pair in pairs:
        if pair.label_map and pair.is_color is not None:
            maps["colours" if pair.is_color else "ids"].append(pair.label_map)
    rare, common = sorted(maps, key=lambda kind: len(maps[kind]))
    if maps[rare]:
        message = f"label maps of {rare} beside label maps of {common}, where 0 and black may mean different classes"
        report.warning(f"{message}; save all of them alike", maps[rare])


def _find_copies(report: Report, pairs: Sequence[_Pair]) -> None:
    by_digest: defaultdict[bytes, list[_Pair]] = defaultdict(list)
    for pair in pairs:
        if pair.digest:
            by_digest[pair.digest].append(pair)
    for copies in by_digest.values():
        names = " = ".join(report.names(pair.image for pair in copies if pair.image))
        if len({pair.split for pair in copies}) > 1:
            report.problems["the same picture in several splits, so that scores are too good; keep one"].append(names)
        elif len(copies) > 1:
            report.warnings["the same picture several times in a split"].append(names)


def _check_splits(report: Report) -> None:
    """Find what is wrong with the splits as a whole."""
    for name in ("train", "val"):
        if name not in report.splits:
            report.problems[f"no split {name}, expected one: enet-train needs train and val"] = []
    for name, split in report.splits.items():
        absent = [report.classes.names[index] for index in np.flatnonzero(split.pixels[:-1] == 0)]
        if name == "val" and len(absent) == len(report.classes):
            report.problems["every pixel of val is void, expected at least one class in the label maps"] = []
        elif absent and name == "train":
            report.problems[f"classes without a pixel in train, which cannot be learnt: {', '.join(absent)}"] = []
        elif absent:
            report.warnings[f"classes without a pixel in {name}, which get no score: {', '.join(absent)}"] = []
        if len(split.sizes) > 1:
            sizes = [f"{size} ({count})" for size, count in split.sizes.most_common(SHOWN_VALUES)]
            more = _more(len(split.sizes) - len(sizes))
            report.warnings[
                f"{name} has images of several sizes, which are all resized to one: {', '.join(sizes)}{more}"
            ] = []


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
