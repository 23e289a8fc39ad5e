"""What is wrong with a data set, all of it at once, before a night of training is lost to it."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..classes import ClassList, LabelValues, read_label_values
from ..console import counted, progress
from ..errors import DataError
from ..images import UInt8Array, colorize, read_image, resize_image, resize_labels
from ..plots import new_figure, save_figure
from . import DataSet, parts, read_ahead, spread
from .label_maps import read_values, translate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPLITS = ("train", "val", "test")
SMALLEST = 8  # pixels of a side: the network halves it three times
LOSSY = {".jpg", ".jpeg", ".jpe"}
SHOWN = 3  # files that a line names
SHOWN_VALUES = 8  # unknown ids and colours, sizes
PICTURED = 3  # images of a split in the picture
PICTURED_SIDE = 480  # pixels


@dataclass
class Split:
    """What a split holds.

    Attributes:
        images, label_maps: files of each.
        pixels: of each class, void last, in the label maps of `pairs`.
        sizes: "HxW" -> images of that size.
        pairs: images and label maps that fit each other.
    """

    images: int
    label_maps: int
    pixels: npt.NDArray[np.int64]
    sizes: Counter[str] = field(default_factory=Counter)
    pairs: list[tuple[Path, Path]] = field(default_factory=list)

    def shares(self) -> npt.NDArray[np.float64]:
        """Per cent of the pixels that each class has, void last."""
        shares: npt.NDArray[np.float64] = 100 * self.pixels / max(1, self.pixels.sum())
        return shares


@dataclass
class Report:
    """What `check` found.

    Attributes:
        splits: those of train, val and test that are there.
        problems, warnings: what is wrong and how to mend it -> names of the files of which that is so, or none where
            it is so of the whole; warnings may be meant so.
    """

    root: Path
    classes: ClassList
    values: LabelValues
    splits: dict[str, Split] = field(default_factory=dict)
    problems: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    warnings: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def names(self, paths: Iterable[Path]) -> list[str]:
        """Files as they are shown: below `root`, without what a terminal would obey."""
        names = [path.relative_to(self.root).as_posix() for path in paths]
        return [name if name.isprintable() else ascii(name) for name in names]

    def problem(self, message: str, paths: Sequence[Path]) -> None:
        """Add what is wrong with `paths`, if there are any."""
        if paths:
            self.problems[message] += self.names(paths)

    def warning(self, message: str, paths: Sequence[Path]) -> None:
        if paths:
            self.warnings[message] += self.names(paths)

    def lines(self) -> list[str]:
        """For people: a table of the splits, then a line for each problem and warning."""
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
class _Look:
    """What an image and its label map are like; where one is missing or unreadable, less is known."""

    split: str
    image: Path | None
    label_map: Path | None
    flaws: list[tuple[str, Path]] = field(default_factory=list)
    size: tuple[int, ...] = ()
    digest: bytes = b""  # of the image's pixels, in whatever format they are kept
    pixels: npt.NDArray[np.int64] | None = None  # per class, void last; None where they do not fit the image
    unknown: dict[str, int] = field(default_factory=dict)  # "id 200", "colour #ff0000" -> pixels


def check(root: str | Path) -> Report:
    """Read every image and label map of a data set, and find all that is wrong with it.

    Raises DataError where there is nothing to read, or its classes.json is no class list.
    """
    root = Path(root)
    report = Report(root, *read_label_values(root))
    todo = [look for split in SPLITS for look in _match(report, split)]
    if not todo:
        folders = ", ".join(str(part.folder) for part in parts(root, "train"))
        raise DataError(f"{root} holds no data set, expected images and label maps in {folders} and so on")
    done = read_ahead(lambda index: _examine(todo[index], report), range(len(todo)))
    looks = [*progress(done, "checking", len(todo))]
    for look in looks:
        _take(report, look)
    _find_unknown(report, looks)
    _find_copies(report, looks)
    _judge(report)
    return report


def _match(report: Report, split: str) -> list[_Look]:
    """What is to be looked at in a split; what is wrong with the files' names goes into the report."""
    images, label_maps = (part.by_stem() for part in parts(report.root, split))
    of_images, of_maps = ([path for paths in files.values() for path in paths] for files in (images, label_maps))
    if not of_images and not of_maps:
        return []
    report.splits[split] = Split(len(of_images), len(of_maps), np.zeros(len(report.classes) + 1, np.int64))
    if split != "test" or of_maps:
        report.problem("images without a label map of their name; make or remove them", _alone(images, label_maps))
    report.problem("label maps without an image of their name; find or remove them", _alone(label_maps, images))
    report.problem("several images of one stem; keep one of each", _repeated(images))
    report.problem("several label maps of one stem; keep one of each", _repeated(label_maps))
    lossy = [path for path in of_maps if path.suffix.lower() in LOSSY]
    report.problem("label maps in a format that changes values; save them as PNG", lossy)
    outside = [path for path in (*of_images, *of_maps) if not _is_within(path, report.root)]
    report.warning("links that lead out of the folder; a copy of it would lack these files", outside)
    return [
        _Look(split, images.get(stem, [None])[0], label_maps.get(stem, [None])[0])
        for stem in sorted(images.keys() | label_maps.keys())
    ]


def _alone(files: dict[str, list[Path]], partners: dict[str, list[Path]]) -> list[Path]:
    return [path for stem, paths in files.items() if stem not in partners for path in paths]


def _repeated(files: dict[str, list[Path]]) -> list[Path]:
    return [path for paths in files.values() if len(paths) > 1 for path in paths]


def _is_within(path: Path, root: Path) -> bool:
    home = os.path.realpath(root)  # unlike Path.resolve, it bears links that lead in a circle
    return os.path.commonpath([home, os.path.realpath(path)]) == home


def _examine(look: _Look, report: Report) -> _Look:
    """Read the files of `look` and fill it in."""
    for path, examine in ((look.image, _examine_image), (look.label_map, _examine_labels)):
        if path is not None:
            try:
                examine(look, path, report)
            except DataError as error:
                look.flaws.append((str(error).removeprefix(f"{path} "), path))
    return look


def _examine_image(look: _Look, path: Path, report: Report) -> None:
    image = read_image(path)
    look.size = image.shape[:2]
    digest = hashlib.sha256(f"{look.size}".encode())
    digest.update(image.data)
    look.digest = digest.digest()
    if min(look.size) < SMALLEST:
        look.flaws.append((f"under {SMALLEST} pixels high or wide; remove the pair", path))


def _examine_labels(look: _Look, path: Path, report: Report) -> None:
    values = read_values(path)
    known = report.values.known(values.dtype)
    labels, unknown = translate(values, known, report.classes.void)
    in_color = known is report.values.colors
    look.unknown = {
        report.values.described(value) if in_color else f"id {value}": pixels for value, pixels in unknown.items()
    }
    if look.size and look.size != labels.shape:
        look.flaws.append(("not of the size of its image; a label map has a label for each pixel", path))
    elif look.size:
        counts = np.bincount(labels.ravel(), minlength=256)
        void = counts[report.classes.void] - sum(unknown.values())
        look.pixels = np.append(counts[: len(report.classes)], void)


def _take(report: Report, look: _Look) -> None:
    split = report.splits[look.split]
    for message, path in look.flaws:
        report.problem(message, [path])
    if look.size:
        split.sizes["x".join(map(str, look.size))] += 1
    if look.pixels is not None and look.image is not None and look.label_map is not None:
        split.pixels += look.pixels
        if not look.unknown:
            split.pairs.append((look.image, look.label_map))


def _find_unknown(report: Report, looks: Sequence[_Look]) -> None:
    pixels: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for look in looks:
        pixels.update(look.unknown)
        files.update(look.unknown.keys())
    if pixels:
        shown = [
            f"{value} ({counted(count, 'pixel')} in {counted(files[value], 'file')})"
            for value, count in pixels.most_common(SHOWN_VALUES)
        ]
        message = (
            f"label maps with values of no class, {', '.join(shown)}{_more(len(pixels) - len(shown))}; expected ids "
            f"{report.values.known_ids(report.classes)}, or the classes' colours: correct them or say in classes.json "
            "what they are"
        )
        report.problem(message, [look.label_map for look in looks if look.unknown and look.label_map])


def _find_copies(report: Report, looks: Sequence[_Look]) -> None:
    places: defaultdict[bytes, list[_Look]] = defaultdict(list)
    for look in looks:
        if look.digest:
            places[look.digest].append(look)
    for copies in places.values():
        names = " = ".join(report.names(look.image for look in copies if look.image))
        if len({look.split for look in copies}) > 1:
            report.problems["the same picture in several splits, so that scores are too good; keep one"].append(names)
        elif len(copies) > 1:
            report.warnings["the same picture several times in a split"].append(names)


def _judge(report: Report) -> None:
    """What is wrong with the splits as wholes."""
    for name in ("train", "val"):
        if name not in report.splits:
            report.problems[f"no split {name}, expected one: enet-train needs train and val"] = []
    for name, split in report.splits.items():
        absent = [report.classes.names[index] for index in np.flatnonzero(split.pixels[:-1] == 0)]
        if absent and name == "train":
            report.problems[f"classes without a pixel in train, which cannot be learnt: {', '.join(absent)}"] = []
        elif absent:
            report.warnings[f"classes without a pixel in {name}, which get no score: {', '.join(absent)}"] = []
        if len(split.sizes) > 1:
            sizes = [f"{size} ({count})" for size, count in split.sizes.most_common(SHOWN_VALUES)]
            more = _more(len(split.sizes) - len(sizes))
            report.warnings[
                f"{name} has images of several sizes, all to be resized to one: {', '.join(sizes)}{more}"
            ] = []


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def draw_check(path: str | Path, report: Report) -> None:
    """Draw some images of each split under their labels, and the share of the pixels that each class has.

    PNG or SVG by the file's suffix; `plots.require_plot` tells before the long work whether it can be drawn.
    """
    splits = {name: split for name, split in report.splits.items() if split.pairs}
    height = min(12, max(4.8, 0.5 + 0.17 * len(report.classes)))
    figure = new_figure(3.5 * (PICTURED + 1), height * max(1, len(splits)))
    grid = figure.subplots(max(1, len(splits)), PICTURED + 1, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, (name, split) in zip(grid, splits.items(), strict=False):
        data = DataSet(report.classes, tuple(spread(split.pairs, PICTURED)), report.values)
        for axes, (image, labels), (file, _) in zip(row, data, data.pairs, strict=False):
            axes.imshow(_painted(image, labels, report.classes))
            axes.set_title(report.names([file])[0].split("/")[-1][-40:], fontsize=8, parse_math=False)
            axes.set_anchor("N")
        _draw_shares(row[-1], split, report.classes)
        row[-1].set_title(f"{name}: {len(split.pairs)} sound pairs, % of pixels", fontsize=8)
    save_figure(figure, path)


def _painted(image: UInt8Array, labels: UInt8Array, classes: ClassList) -> UInt8Array:
    """RGB, the image above its labels, not larger than it is shown."""
    scale = min(1, PICTURED_SIDE / max(labels.shape))
    height, width = (max(1, round(side * scale)) for side in labels.shape)
    above, below = resize_image(image, (height, width)), colorize(resize_labels(labels, (height, width)), classes)
    return np.concatenate([above, below])[..., ::-1]


def _draw_shares(axes: Axes, split: Split, classes: ClassList) -> None:
    names, shares = (*classes.names, "(void)"), split.shares()
    colors = [tuple(value / 255 for value in color) for color in (*classes.colors, (0, 0, 0))]
    axes.set_axis_on()
    bars = axes.barh(range(len(names)), shares, color=colors, edgecolor="0.4", linewidth=0.5)
    axes.bar_label(bars, [f"{share:.2g}" for share in shares], padding=3, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
    axes.set_xlim(0, 1.15 * max(shares))
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
