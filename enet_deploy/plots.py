"""Draw the confusion matrix and the curves of a training run, as PNG or SVG by the file's suffix.

Functions import matplotlib (extra `report`) when they draw; importing this module does not.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .files import atomic_write, require_writable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
INK, LINE = ("#1c2126", "#e6e9ec"), ("#d5dade", "#454c53")  # on a light page, on a dark one
THEMED_WIDTH = 5.2  # width of a picture in a page, in inches: 500 pixels, of which a phone shows three quarters
BLUE = (0.13, 0.44, 0.71)
SHOWN = 0.5  # per cent of a class from which a cell shows its number


def require_plot(path: str | Path) -> None:
    """Check before the long work that a picture can be drawn at `path` after it.

    Raises InputError for a suffix other than .png and .svg, ArtifactError if the file cannot be written, and
    ModuleNotFoundError without matplotlib; the commands then say how to install it.
    """
    _require_suffix(path)
    require_writable(path)
    import matplotlib  # noqa: F401


def draw_confusion(path: str | Path, counts: npt.NDArray[np.integer[Any]], names: Sequence[str]) -> None:
    """Draw a confusion matrix, each row in per cent of the pixels of its true class.

    Args:
        path: .png or .svg.
        counts: (classes, classes), [truth, prediction]: `ConfusionMatrix.counts[:-1, :-1]`, without void.
        names: of the classes, in that order. The row of a class that is not in truth stays empty.
    """
    _require_suffix(path)
    cell = min(0.46, 20 / len(names))  # inches; with many classes the cells shrink, the picture does not grow
    figure = new_figure(cell * len(names) + 1.2, cell * len(names) + 1.5)
    axes = figure.subplots()
    confusion_on(axes, counts, names, cell)
    axes.set_title("prediction for the pixels of each true class, in %", fontsize=10)
    save_figure(figure, path)


def confusion_on(axes: Axes, counts: npt.NDArray[np.integer[Any]], names: Sequence[str], cell: float) -> None:
    """As `draw_confusion`, on the given axes; `cell` is the side of a cell, in inches."""
    from matplotlib import rcParams
    from matplotlib.colors import LinearSegmentedColormap

    count = len(names)
    totals = counts.sum(axis=1, keepdims=True)
    percent = 100 * counts / np.maximum(totals, 1)
    # from transparent to blue: the page below may be light or dark
    axes.imshow(percent, cmap=LinearSegmentedColormap.from_list("blue", [(*BLUE, 0), (*BLUE, 1)]), vmin=0, vmax=100)
    for truth, predicted in np.argwhere(percent >= SHOWN):
        value = float(percent[truth, predicted])
        color = "white" if value > 65 else rcParams["text.color"]  # white on the darker blues
        text = str(int(value + 0.5))  # rounds 0.5 up, so that no cell shows 0
        axes.text(predicted, truth, text, ha="center", va="center_baseline", color=color, fontsize=18 * cell)
    labels: dict[str, Any] = {"fontsize": 20 * cell, "parse_math": False}  # a class may have a $ in its name
    axes.set_xticks(range(count), names, rotation=45, ha="right", rotation_mode="anchor", **labels)
    axes.set_yticks(range(count), names, **labels)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(visible=False)
    axes.grid(which="minor", color=rcParams["grid.color"], linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")


def draw_curve(path: str | Path, rows: Sequence[Mapping[str, float]], val_was_trained_on: bool = False) -> None:
    """Draw the curves of a training run: loss and learning rate above, the scores on val below.

    Args:
        path: .png or .svg.
        rows: one per epoch, as in the run's log.csv: epoch, loss, lr and, for epochs with scores, val_miou and
            val_pixel_accuracy. Other training columns with "loss" in their name are drawn too.
        val_was_trained_on: whether val was part of the training data. The scores then show fit, not accuracy, and the
            picture says so.
    """
    _require_suffix(path)
    figure = new_figure(7, 5)
    above, below = figure.subplots(2, 1, sharex=True)
    _draw_loss(above, rows)
    _draw_scores(below, rows)
    below.set_ylabel("on val, which was trained on" if val_was_trained_on else "on val")
    below.set_xlabel("epoch")
    below.locator_params(axis="x", integer=True, min_n_ticks=1)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    save_figure(figure, path)


def _draw_loss(axes: Axes, rows: Sequence[Mapping[str, float]]) -> None:
    """The loss and the learning rate."""
    rate = axes.twinx()
    rate.plot(*_points(rows, "lr"), color="0.5", alpha=0.7, linewidth=1)
    rate.set_ylim(bottom=0)
    rate.set_ylabel("learning rate", color="0.5")
    rate.tick_params(colors="0.5")
    rate.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
    rate.yaxis.get_offset_text().set_color("0.5")
    rate.spines[:].set_visible(False)
    columns = dict.fromkeys(name for row in rows for name in row)
    # not the val columns: a class may be called glossy
    names = [name for name in columns if "loss" in name and not name.startswith("val_")]
    for name in names:
        axes.plot(*_points(rows, name), marker=".", markersize=3, linewidth=1.5, label=name)
    axes.set_ylabel("training loss")
    if len(names) > 1:
        rate.legend(handles=axes.get_lines(), loc="upper right", fontsize=9)


def _draw_scores(axes: Axes, rows: Sequence[Mapping[str, float]]) -> None:
    # The accuracy is hardly ever below the mIoU, so its label is above the end of its line, the other one below
    for name, title, color, side in (
        ("val_pixel_accuracy", "pixel accuracy", "tab:green", "bottom"),
        ("val_miou", "mIoU", "tab:red", "top"),
    ):
        epochs, values = _points(rows, name)
        axes.plot(epochs, values, color=color, marker=".", markersize=4, linewidth=1.5)
        if values:
            end, text = (epochs[-1], values[-1]), f"{title}\n{values[-1]:.3f}"
            axes.annotate(text, end, (6, 0), textcoords="offset points", color=color, fontsize=9, va=side)
    axes.set_ylim(0, 1)


def _points(rows: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Epochs and values of the rows that have a value of that name."""
    with_value = [row for row in rows if name in row]
    return [row["epoch"] for row in with_value], [row[name] for row in with_value]


def themed(draw: Callable[[Figure], None], height: float) -> tuple[str, str]:
    """Return a figure as SVG for a light page, and the same in other colours for a dark one. `height` is in inches."""
    import matplotlib

    colors: Any = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK[0]),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), LINE[0]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "font.size": 9,
        "legend.frameon": False,
        "svg.fonttype": "path",  # the reader may not have the fonts
        "svg.hashsalt": "enet_deploy",
    }
    text = io.StringIO()
    with matplotlib.rc_context(colors):
        figure = new_figure(THEMED_WIDTH, height)
        draw(figure)
        _hide_colliding_numbers(figure)
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    light = text.getvalue()
    return light, light.replace(*INK).replace(*LINE)


def _hide_colliding_numbers(figure: Figure) -> None:
    """Hide each number below the axes that would touch another one, also of the axes beside it."""
    figure.draw_without_rendering()
    shown: list[Any] = []
    for axes in figure.axes:
        low, high = sorted(axes.get_xlim())
        for tick in (*axes.xaxis.get_major_ticks(), *axes.xaxis.get_minor_ticks()):
            label = tick.label1
            if not label.get_text() or label.get_rotation() or not low <= tick.get_loc() <= high:
                continue
            box = label.get_window_extent().padded(2)
            if box.count_overlaps(shown):
                label.set_visible(False)
            else:
                shown.append(box)


def new_figure(width: float, height: float) -> Figure:
    """Make a figure, its sides in inches, without pyplot: no window, no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as .png or .svg by the file's suffix; the file is written whole or not at all."""
    import matplotlib

    kind = Path(path).suffix.lower()[1:]
    # Text in an SVG stays text, so that it can be searched. Without date and random ids the file is reproducible
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "enet_deploy"}),
        atomic_write(path) as temporary,
    ):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(temporary, format=kind, dpi=150, bbox_inches="tight", metadata=metadata)


def _require_suffix(path: str | Path) -> None:
    suffix = Path(path).suffix
    if suffix.lower() not in SUFFIXES:
        raise InputError(f"the picture {path} has the suffix '{suffix}', expected {' or '.join(SUFFIXES)}")
