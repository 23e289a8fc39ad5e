"""A run as one HTML file with charts and pictures. It needs neither scripts nor a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from enet_deploy.classes import ClassList
from enet_deploy.drawing import panels, side_by_side
from enet_deploy.images import UInt8Array, data_uri, image_uri

from ..result import Result
from ..run import Run
from ..verdict import figures
from . import charts
from .html import page_template
from .tables import (
    camera_in_words,
    images_in_words,
    number,
    percent,
    points,
    trained_on_in_words,
    trained_on_mark,
)


@dataclass(frozen=True)
class Picture:
    """What a runner says of a frame.

    Attributes:
        number: index of the image in its data set.
        runner: its name.
        frame: (H, W, 3) uint8 BGR, as the network sees it.
        labels: (H, W) uint8, the runner's.
        reference: (H, W) uint8, PyTorch's; None if not known.
        truth: uint8 of any size; None if there is none.
    """

    number: int
    runner: str
    frame: UInt8Array
    labels: UInt8Array
    reference: UInt8Array | None
    truth: UInt8Array | None
    classes: ClassList

    def legend(self) -> list[tuple[str, str]]:
        """(class, its colour in CSS)."""
        colors = (f"rgb({r} {g} {b})" for r, g, b in self.classes.overlay_colors)
        return list(zip(self.classes.names, colors, strict=True))

    def panels(self) -> dict[str, UInt8Array]:
        """Caption -> (H, W, 3) uint8 BGR, from the image to the differences."""
        label_maps = {"truth": self.truth, "PyTorch fp32": self.reference, self.runner: self.labels}
        known = {caption: labels for caption, labels in label_maps.items() if labels is not None}
        found = panels(self.frame, known, self.classes)
        if self.reference is not None:
            differs = self.labels != self.reference
            grey = cv2.cvtColor(self.frame, cv2.COLOR_BGR2GRAY) // 2
            marked = np.where(differs[..., None], np.array([80, 0, 255], np.uint8), grey[..., None])
            found[f"differing: {differs.mean():.2%}"] = marked
        return found

    def captions(self) -> str:
        """Text in place of the picture."""
        return ", ".join(self.panels())

    def uri(self) -> str:
        """The panels side by side, as a data URI."""
        return image_uri(side_by_side(self.panels()), ".png")


def _charts(run: Run, mark: str) -> list[dict[str, str]]:
    """Title and note (how to read it) of each chart; a data URI for light pages and one for dark pages.

    Args:
        mark: for the titles of charts that show accuracy.
    """
    taken = next((r for r in run.results if r.name == run.verdict[0].take), run.results[0])
    drawn = (
        ("Latency", "Every call is a point; the bar is the median.", charts.latency(run)),
        (f"Speed and accuracy{mark}", "Left is faster, up is better; nothing beats what is ringed.", charts.trade(run)),
        ("Throughput", "1 / mean time of a frame, and as a robot's loop would be.", charts.throughput(run)),
        ("Where an image's time goes", f"From {camera_in_words(run)} to labels of its size.", charts.stages(run)),
        ("Where the network's time goes", "By stage of ENet, as the backend tells it.", charts.network_stages(run)),
        (f"IoU by class{mark}", "Where PyTorch stands, and what each runner changes.", charts.classes(run)),
        (f"Confusion, {taken.name}{mark}", "What each class's pixels were taken for, in %.", charts.confusion(taken)),
        (f"Confidence{mark}", "On the line it is honest, below it the network is too sure.", charts.reliability(run)),
        ("Rounds", "Runners take turns; if all lines move together, the machine drifted.", charts.drift(run)),
        ("Sizes and batches", "Timed in the same rounds.", charts.sweep(run)),
    )  # fmt: skip
    return [
        {
            "title": title,
            "note": note,
            "light": data_uri(pair[0].encode(), ".svg"),
            "dark": data_uri(pair[1].encode(), ".svg"),
        }
        for title, note, pair in drawn
        if pair is not None
    ]


def as_html(run: Run, pictures: Sequence[Picture] = ()) -> str:
    """The report of a run.

    Args:
        pictures: of a few frames; the JSON does not hold them, so a stored run has none.
    """
    mark = trained_on_mark(run)
    return _TEMPLATE.render(
        run=run,
        figures=[figures(result, run.accuracy_of_reference) for result in run.results],
        scored=_scored(run),
        classes={"IoU": _classes(run, "iou"), "Dice": _classes(run, "dice")},
        charts=_charts(run, mark),
        pictures=pictures,
        images=images_in_words(run),
        trained_on=trained_on_in_words(run),
        mark=mark,
        camera=camera_in_words(run),
    )


def _scored(run: Run) -> list[Result]:
    """The runners with an accuracy, without those that equal the reference, which has a column of its own."""
    reference = run.accuracy_of_reference
    known = [result for result in run.results if result.accuracy is not None]
    if reference is None:
        return known
    return [each for each in known if each.accuracy and each.accuracy.per_class != reference.per_class] or known


def _classes(run: Run, figure: str) -> list[tuple[str, list[float | None], float | None]]:
    """(class, its "iou" or "dice" on each runner of `_scored`, and on PyTorch if that is known)."""
    scored = [result.accuracy for result in _scored(run) if result.accuracy is not None]
    reference = run.accuracy_of_reference
    return [
        (
            name,
            [getattr(accuracy.per_class[name], figure) for accuracy in scored],
            None if reference is None else getattr(reference.per_class[name], figure),
        )
        for name in (scored[0].per_class if scored else ())
    ]


_TEMPLATE = page_template(__package__, {"number": number, "percent": percent, "points": points})
