"""The report of `make gpu` as one HTML file that needs neither scripts nor a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..report.html import page_template

Row = Mapping[str, Any]

# Column -> its heading and the format of its figures, in the order of the page
COLUMNS: dict[str, tuple[str, str]] = {
    "what": ("", ""), "value": ("", ""), "rate": ("", ".4g"), "unit": ("", ""),
    "backend": ("backend", ""), "form": ("network", ""), "precision": ("precision", ""), "dtype": ("type", ""),
    "how": ("how", ""), "size": ("frames", ""), "batch": ("batch", ""), "graphs": ("CUDA graphs", ""),
    "memory": ("arrays", ""), "check": ("check", ""), "told": ("found", ""), "merged": ("operations merged", ""),
    "p50_ms": ("p50 ms", ".3f"), "p99_ms": ("p99 ms", ".3f"), "fps": ("frames/s", ".0f"),
    "stream_fps": ("stream() frames/s", ".0f"), "agreement": ("labels as PyTorch's", ".4%"),
    "boundary_flips": ("flips near edges", ".4%"), "interior_flips": ("elsewhere", ".4%"),
    "miou_as_pytorch": ("mIoU, PyTorch as truth", ".4f"), "miou": ("mIoU", ".4f"),
    "miou_change": ("change, points", "+.2f"), "images": ("images", ""), "layers": ("layers", ""),
    "build_s": ("build s", ".1f"), "first_s": ("first labels s", ".2f"), "mb": ("MB", ".2f"),
    "kernels": ("kernels", ""), "gflop": ("GFLOP", ".2f"), "least_ms": ("estimate ms", ".3f"),
    "step_ms": ("ms per step", ".1f"), "images_s": ("images/s", ".0f"), "seconds": ("s", ".1f"),
    "epochs": ("epochs", ""), "first_loss": ("first loss", ".3f"), "last_loss": ("last loss", ".3f"),
    "calls": ("calls", ""),
}  # fmt: skip
BARS = ("p50_ms", "fps", "images_s")
# Columns that are shown as lines below the row -> words in front of the value
BELOW = {"failed": "failed: ", "skipped": "not here: ", "engine": "built by ", "runtime": "in "}

# Table -> its title, and how to read it
TABLES: dict[str, tuple[str, str]] = {
    "engines": (
        "Engines",
        "Built here for this card, one frame per call, compared with PyTorch fp32 on the CPU. Flips: labels that "
        "differ, within 3 pixels of an edge between PyTorch's labels, and elsewhere. Layers: the share that computes "
        "in each precision. p50 and p99: from frames in host memory to labels there.",
    ),
    "speed": (
        "Latency, one frame per call",
        "p50 and p99 of single calls. Host: frames and labels are numpy arrays, and copies are included. Zero copy: "
        "they are on the device. stream(): with the next frame in flight.",
    ),
    "batches": (
        "Throughput",
        "One graph for any number of frames, calls back to back. Its engine is tuned for one frame.",
    ),
    "pytorch": (
        "PyTorch itself",
        "Frames and labels on the device, without TF32. Labels are compared with PyTorch fp32 on the CPU.",
    ),
    "contract": ("The runner contract", "What every backend promises, in fp32."),
    "training": (
        "Training",
        "On drawn scenes if no data set was given. ms per step: back to back, with everything that enet-train does in "
        "a step. All of it: a run from reading the images to the last evaluation.",
    ),
    "estimate": (
        "Estimate from first principles, not measured",
        "Each kernel takes as long as its memory, its arithmetic or its launch needs, at the rates below; caches can "
        "beat it.",
    ),
    "rates": ("Best rates of this machine", "Averages over many calls in a row."),
    "machine": ("The machine", ""),
}


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        columns: of any row, in order.
        figures: the columns with numbers.
        largest: column of `BARS` -> its largest figure.
    """

    title: str
    note: str
    columns: list[str]
    figures: set[str]
    rows: list[Row]
    largest: dict[str, float]


def tables(report: Row) -> list[Table]:
    """The findings of all steps, by table."""
    found: dict[str, list[Row]] = {name: [] for name in TABLES}
    for step in report["steps"]:
        for row in step["findings"]:
            found.setdefault(row["table"], []).append(row)
    return [_table(*TABLES.get(name, (name, "")), rows) for name, rows in found.items() if rows]


def _table(title: str, note: str, rows: list[Row]) -> Table:
    there = [key for row in rows for key in row if key != "table" and key not in BELOW]
    columns = sorted(dict.fromkeys(there), key=[*COLUMNS, *there].index)
    figures = {key for row in rows for key, value in row.items() if isinstance(value, int | float)}
    largest = {name: max(row.get(name) or 0.0 for row in rows) for name in BARS if name in columns}
    return Table(title, note, columns, figures, [{**dict.fromkeys(columns), **row} for row in rows], largest)


def headline(report: Row) -> str:
    """One sentence: the fastest engine, or why there is none."""
    rows = [row for step in report["steps"] for row in step["findings"] if row["table"] == "engines"]
    ran = [row for row in rows if row.get("p50_ms") and row.get("agreement") and not row.get("failed")]
    if ran:
        best = min(ran, key=lambda row: float(row["p50_ms"]))
        return (
            f"{best['precision']} at {best['size']}: {best['p50_ms']:.3f} ms a frame (p99 {best['p99_ms']:.3f}), "
            f"{best['agreement']:.3%} of the labels as PyTorch's, {best['engine']}"
        )
    reasons = [row["failed"] for row in rows if row.get("failed")]
    reasons += [step["reason"] for step in report["steps"] if step["step"].startswith("engine") and step["reason"]]
    return "No engine has run" + (f": {reasons[0]}" if reasons else "")


def as_html(report: Row) -> str:
    """The page of a report, which may be unfinished."""
    return _TEMPLATE.render(report=report, tables=tables(report), headline=headline(report), below=BELOW)


def _heading(column: str) -> str:
    return COLUMNS[column][0] if column in COLUMNS else column.replace("_", " ")


def _shown(value: Any, column: str) -> str:
    form = COLUMNS.get(column, ("", ""))[1]
    return "" if value is None else format(value, form) if isinstance(value, float) else str(value)


_TEMPLATE = page_template(__package__, {"heading": _heading, "shown": _shown})
