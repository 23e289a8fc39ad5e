"""A training run as one HTML file, as far as it got: curves, classes and a few val images, all inside it."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from ..classes import ClassList
from ..files import atomic_write
from ..images import UInt8Array, colorize, data_uri, image_uri, resize_image, resize_labels
from ..plots import loss_on, scores_on, themed
from .recipe import Recipe, shown

if TYPE_CHECKING:
    from .trainer import Trainer

Example = tuple[str, UInt8Array, UInt8Array, UInt8Array]  # file name, frame, labels, prediction
History = Sequence[dict[str, float]]

SIDE = 480  # pixels of the longer side of an example: the page is to stay small
RECENT = 20  # epochs from which the time of the next ones is told


def write_page(path: str | Path, trainer: Trainer, examples: Sequence[Example]) -> None:
    """Write the page of a run, whole or not at all; it loads itself again and again until the run is over.

    Args:
        examples: as `Trainer.examples` gives them.

    Raises ArtifactError where the file cannot be written.
    """
    history, recipe, classes = trainer.history, trainer.recipe, trainer.train.classes
    scored = [row for row in history if "val_miou" in row]
    page = _TEMPLATE.render(
        run=trainer,
        scored=scored,
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        seconds=_recent(history, "seconds"),
        left=_seconds_left(history, recipe),
        charts=_charts(history, trainer.val_was_trained_on),
        classes=[_class(name, color, scored) for name, color in _legend(classes)],
        legend=_legend(classes) + ([] if classes.ignore_id is None else [("void", "black")]),
        examples=[(name, _right(truth, found, classes), _panels(frame, truth, found, classes))
                  for name, frame, truth, found in examples],
        recipe=dataclasses.asdict(recipe),
    )  # fmt: skip
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")  # a file may be named by any bytes


def _legend(classes: ClassList) -> list[tuple[str, str]]:
    """(class, its colour in CSS)."""
    return [(name, f"rgb({r} {g} {b})") for name, (r, g, b) in zip(classes.names, classes.colors, strict=True)]


def _class(name: str, color: str, scored: History) -> dict[str, Any]:
    """A line of the table of classes, with the IoU of each evaluation as points of a line of 100 x 24."""
    found = [(row["epoch"], row[f"val_iou_{name}"]) for row in scored if f"val_iou_{name}" in row]
    best = max(found, key=lambda point: point[1], default=None)
    end = max(1.0, scored[-1]["epoch"] if scored else 1.0)
    points = " ".join(f"{100 * epoch / end:.1f},{24 * (1 - iou):.1f}" for epoch, iou in found)
    return {"name": name, "color": color, "last": found[-1] if found else None, "best": best, "points": points}


def _charts(history: History, val_was_trained_on: bool) -> list[tuple[str, str, str]]:
    """(what it shows, the picture for light pages, for dark ones)."""
    if not history:
        return []
    drawn = (
        ("Loss and learning rate", lambda figure: loss_on(figure.subplots(), history)),
        ("Scores on val", lambda figure: scores_on(figure.subplots(), history, val_was_trained_on)),
    )
    found = []
    for title, draw in drawn:
        light, dark = (data_uri(svg.encode(), ".svg") for svg in themed(draw, 3.2))
        found.append((title, light, dark))
    return found


def _recent(history: History, column: str) -> float:
    """Median of a column over the last epochs; 0 where none has it."""
    return statistics.median([row[column] for row in history if column in row][-RECENT:] or [0.0])


def _seconds_left(history: History, recipe: Recipe) -> float:
    """Until the last epoch of the recipe, evaluations included."""
    epochs = range(len(history) + 1, recipe.epochs + 1)
    evaluations = sum(epoch % recipe.eval_every == 0 or epoch == recipe.epochs for epoch in epochs)
    return len(epochs) * _recent(history, "seconds") + evaluations * _recent(history, "val_seconds")


def _right(truth: UInt8Array, found: UInt8Array, classes: ClassList) -> float | None:
    """Share of the labelled pixels that are right; None where no pixel is labelled."""
    labelled = truth != classes.void
    return float((truth == found)[labelled].mean()) if labelled.any() else None


def _panels(frame: UInt8Array, truth: UInt8Array, found: UInt8Array, classes: ClassList) -> list[tuple[str, str]]:
    """(what it is, picture as a data URI), all of one size and of the label map's shape."""
    shrink = min(1.0, SIDE / max(truth.shape))
    size = max(1, round(truth.shape[0] * shrink)), max(1, round(truth.shape[1] * shrink))
    painted = (("truth", truth), ("prediction", found))
    return [
        ("image", image_uri(resize_image(frame, size), ".jpg")),
        *((title, image_uri(colorize(resize_labels(labels, size), classes), ".png")) for title, labels in painted),
    ]


def _duration(seconds: float) -> str:
    """In words: 2 h 5 min, 3 min 20 s, 12 s."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader(__package__, "."), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
_ENVIRONMENT.filters |= {"duration": _duration, "shown": shown}
_TEMPLATE = _ENVIRONMENT.get_template("curve_page.html.j2")  # now: the file may be another when a run ends
