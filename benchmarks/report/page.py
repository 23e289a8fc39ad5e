"""A run as one HTML file that needs neither scripts nor a network: charts and pictures are inside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import jinja2
import numpy as np

from enet_deploy.classes import ClassList
from enet_deploy.images import UInt8Array, colorize, data_uri, image_uri

from ..verdict import Result, Run, figures
from . import charts
from .tables import camera_in_words, images_in_words, number, percent, points

SAMPLES = 1000  # of each runner in the table; all are in the JSON


@dataclass(frozen=True)
class Picture:
    """What a runner says of a frame.

    Attributes:
        number: of the image in its data set.
        runner: its name.
        frame: (H, W, 3) uint8 BGR, as the network sees it.
        labels, reference: (H, W) uint8 of the runner, and of PyTorch where that is known.
        truth: uint8 of any size, where there is one.
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
        return [(n, f"rgb({r} {g} {b})") for n, (r, g, b) in zip(self.classes.names, self.classes.colors, strict=True)]

    def panels(self) -> list[tuple[str, str]]:
        """(what it is, picture as a data URI)."""
        found = [("input", image_uri(self.frame, ".jpg"))]
        if self.truth is not None:
            found.append(("truth", image_uri(colorize(self.truth, self.classes), ".png")))
        if self.reference is not None:
            found.append(("PyTorch fp32", image_uri(colorize(self.reference, self.classes), ".png")))
        found.append((self.runner, image_uri(colorize(self.labels, self.classes), ".png")))
        if self.reference is not None:
            differs = self.labels != self.reference
            grey = cv2.cvtColor(cv2.cvtColor(self.frame, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
            shown = np.where(differs[..., None], np.array([80, 0, 255], np.uint8), (grey // 2).astype(np.uint8))
            found.append((f"differing: {differs.mean():.2%}", image_uri(shown, ".png")))
        return found


@dataclass(frozen=True)
class Chart:
    """A chart with what it is and how to read it, for a light page and a dark one."""

    title: str
    note: str
    light: str
    dark: str


def _charts(run: Run) -> list[Chart]:
    taken = next((r for r in run["results"] if r["name"] == run["verdict"][0]["take"]), run["results"][0])
    drawn = (
        ("Latency", "Every call is a point; the bar is the median.", charts.latency(run)),
        ("Speed and accuracy", "Left is faster, up is better; nothing beats what is ringed.", charts.trade(run)),
        ("Throughput", "Back to back, and as a robot's loop would be.", charts.throughput(run)),
        ("Where an image's time goes", f"From {camera_in_words(run)} to labels of its size.", charts.stages(run)),
        ("Where the network's time goes", "By stage of ENet, as the backend tells it.", charts.network_stages(run)),
        ("IoU by class", "Where PyTorch stands, and what each runner changes.", charts.classes(run)),
        (f"Confusion, {taken['name']}", "What each class's pixels were taken for, in %.", charts.confusion(taken)),
        ("Rounds", "Runners take turns; where all lines move together the machine did.", charts.drift(run)),
        ("Sizes and batches", "Timed in the same rounds.", charts.sweep(run)),
    )  # fmt: skip
    return [
        Chart(title, note, *(data_uri(svg.encode(), ".svg") for svg in pair))
        for title, note, pair in drawn
        if pair is not None
    ]


def as_html(run: Run, pictures: Sequence[Picture] = ()) -> str:
    """The report of a run.

    Args:
        run: as `results.read` gives it.
        pictures: of a few frames; they are in no JSON, so a stored run has none.
    """
    samples = [result["samples_ms"] for result in run["results"]]
    rows = [
        [each[index] if index < len(each) else None for each in samples]
        for index in range(min(SAMPLES, max(map(len, samples))))
    ]
    return _TEMPLATE.render(
        run=run,
        figures=[figures(result, run["reference"]) for result in run["results"]],
        scored=_scored(run),
        classes={"IoU": _classes(run, "iou"), "Dice": _classes(run, "dice")},
        charts=_charts(run),
        pictures=pictures,
        images=images_in_words(run),
        camera=camera_in_words(run),
        sample_rows=rows,
        samples_left=max(map(len, samples)) - len(rows),
    )


def _scored(run: Run) -> list[Result]:
    """The runners with an accuracy, less those that are as the reference, which has a column of its own."""
    reference = _reference(run)
    known = [result for result in run["results"] if result["accuracy"]]
    return [result for result in known if result["accuracy"]["per_class"] != reference] or known


def _reference(run: Run) -> dict[str, Any]:
    """Class -> figures of PyTorch fp32, where these are known."""
    found: dict[str, Any] = ((run["reference"] or {}).get("accuracy") or {}).get("per_class") or {}
    return found


def _classes(run: Run, figure: str) -> list[tuple[str, list[float | None], float | None]]:
    """(class, its IoU or Dice on each of `_scored`, on PyTorch where that is known)."""
    scored, reference = _scored(run), _reference(run)
    return [
        (name, [r["accuracy"]["per_class"][name][figure] for r in scored], reference.get(name, {}).get(figure))
        for name in (scored[0]["accuracy"]["per_class"] if scored else ())
    ]


def _plain(value: Any) -> str:
    """A value of the environment in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(each) if isinstance(each, dict) else str(each) for each in value)
    return "not known" if value is None else str(value)


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader(__package__, "."), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
_ENVIRONMENT.filters |= {"number": number, "plain": _plain, "percent": percent, "points": points}
_TEMPLATE = _ENVIRONMENT.get_template("page.html.j2")  # now: the file may be another when a run ends
