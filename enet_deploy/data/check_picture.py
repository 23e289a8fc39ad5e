"""The picture of `enet-data check`: some images of each split above their labels, and the share of each class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..classes import ClassList
from ..drawing import panels
from ..plots import new_figure, save_figure
from .check import Report, Split
from .dataset import DataSet, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IMAGES = 3  # of each split
SIDE = 480  # pixels of their longer side


def draw_check(path: str | Path, report: Report) -> None:
    """Draw some images of each split above their labels, and the share of each class in the pixels.

    The file's suffix says PNG or SVG. Call `plots.require_plot` before the long work to see if it can be drawn.
    """
    splits = {name: split for name, split in report.splits.items() if split.pairs}
    height = min(12, max(4.8, 0.5 + 0.17 * len(report.classes)))
    figure = new_figure(3.5 * (IMAGES + 1), height * max(1, len(splits)))
    grid = figure.subplots(max(1, len(splits)), IMAGES + 1, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, (name, split) in zip(grid, splits.items(), strict=False):
        data = DataSet(report.classes, tuple(spread(split.pairs, IMAGES)), report.values)
        for axes, (image, labels), (file, _) in zip(row, data, data.pairs, strict=False):
            pictures = panels(image, {"labels": labels}, report.classes, SIDE)
            axes.imshow(np.concatenate([*pictures.values()])[..., ::-1])  # the image above its labels, RGB
            axes.set_title(report.names([file])[0].split("/")[-1][-40:], fontsize=8, parse_math=False)
            axes.set_anchor("N")
        _draw_shares(row[-1], split, report.classes)
        row[-1].set_title(f"{name}: {len(split.pairs)} images with labels, % of pixels", fontsize=8)
    save_figure(figure, path)


def _draw_shares(axes: Axes, split: Split, classes: ClassList) -> None:
    names, shares = (*classes.names, "(void)"), split.shares()
    colors = [tuple(value / 255 for value in color) for color in (*classes.overlay_colors, (0, 0, 0))]
    axes.set_axis_on()
    bars = axes.barh(range(len(names)), shares, color=colors, edgecolor="0.4", linewidth=0.5)
    axes.bar_label(bars, [f"{share:.2g}" for share in shares], padding=3, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
    axes.set_xlim(0, 1.15 * max(shares))
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
