"""A benchmark result as data, and as the tables that people read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from enet_deploy.runners import Spec

from .parity import Parity
from .timing import STAGES, UNSTABLE, Timing

SCHEMA = 1


@dataclass(frozen=True)
class Result:
    """One runner's part of a run.

    Attributes:
        spec: the runner.
        timing: its samples.
        artifact: the file, as the user knows it.
        parity: against PyTorch and against the truth, as far as these are known.
        model_bytes, peak_bytes: size of the artifact; peak memory of a process with this runner alone.
    """

    spec: Spec
    artifact: str
    timing: Timing
    parity: Parity
    model_bytes: int
    peak_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {
            "backend": self.spec.backend,
            "device": self.spec.device,
            "precision": self.spec.precision,
            "artifact": self.artifact,
            "size": list(self.spec.size),
            "batch": self.timing.batch,
            "latency_ms": self.timing.summary("infer"),
            "stages_ms": {stage: self.timing.summary(stage) for stage in STAGES},
            "fps": self.timing.fps,
            "samples_ms": [seconds * 1e3 for seconds in self.timing.samples["infer"]],
            "spread": self.timing.spread,
            "model_bytes": self.model_bytes,
            "peak_bytes": self.peak_bytes,
            "parity": self.parity.parity_json(),
            "accuracy": self.parity.accuracy_json(),
        }


def to_json(environment: dict[str, Any], results: list[Result], reference: Parity | None) -> dict[str, Any]:
    """The whole run; the fields are described in the README."""
    return {
        "schema": SCHEMA,
        "environment": environment,
        "reference": None if reference is None else {"backend": "torch", "accuracy": reference.accuracy_json()},
        "results": [result.to_json() for result in results],
    }


def show(run: dict[str, Any], console: Console) -> None:
    """Print a run of `to_json`'s form."""
    results, reference = run["results"], run["reference"]
    _show_latency(results, console)
    _show_sameness(results, console)
    if results[0]["accuracy"]:
        _show_accuracy(results, reference and reference["accuracy"], console)
    for result in results:
        if result["spread"] > UNSTABLE:
            console.print(
                f"[yellow]unstable:[/] the blocks of {_name(result)} differ by {result['spread']:.0%}; close other "
                "programs, fix the clock frequency, or take more --frames"
            )


def _name(result: dict[str, Any]) -> str:
    name = f"{result['backend']} {result['precision']}" + (f" x{result['batch']}" if result["batch"] > 1 else "")
    return escape(name)  # the precision comes out of a file: it is text, never markup


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("runner", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _show_latency(results: list[dict[str, Any]], console: Console) -> None:
    height, width = results[0]["size"]
    table = _table(f"Latency in ms, frames of {height}x{width}", "stage", "p50", "p90", "p99", "mean", "FPS")
    for result in results:
        for stage in STAGES:
            figures = result["stages_ms"][stage]
            table.add_row(
                _name(result) if stage == STAGES[0] else "",
                stage,
                *(f"{figures[figure]:.2f}" for figure in ("p50", "p90", "p99", "mean")),
                f"{1e3 * result['batch'] / figures['mean']:.1f}",
                end_section=stage == STAGES[-1],
            )
    console.print(table)


def _show_sameness(results: list[dict[str, Any]], console: Console) -> None:
    columns = ("faster", "file MB", "peak MB", "equal labels", "max logit diff", "IoU", "Dice")
    table = _table("Speed of infer against the first; labels against PyTorch fp32", *columns)
    first = results[0]["latency_ms"]["p50"] / results[0]["batch"]
    for result in results:
        row = [f"{first / (result['latency_ms']['p50'] / result['batch']):.2f}x"]
        row += [f"{result['model_bytes'] / 1e6:.2f}", f"{result['peak_bytes'] / 1e6:.0f}"]
        parity = result["parity"]
        if parity is not None:
            logit = parity["max_abs_logit"]
            row += [f"{parity['agreement']:.4%}", "no logits" if logit is None else f"{logit:.2g}"]
            row += [f"{parity['miou']:.5f}", f"{parity['dice']:.5f}"]
        table.add_row(_name(result), *row)
    console.print(table)


def _show_accuracy(results: list[dict[str, Any]], reference: dict[str, Any] | None, console: Console) -> None:
    change = ("mIoU change, points",) if reference else ()
    table = _table("Accuracy, void left out", "pixel accuracy", "Dice", "mIoU", *change)
    for result in results:
        accuracy = result["accuracy"]
        row = [f"{accuracy[figure]:.4f}" for figure in ("pixel_accuracy", "dice", "miou")]
        if reference:
            row.append(f"{100 * (accuracy['miou'] - reference['miou']):+.3f}")
        table.add_row(_name(result), *row)
    console.print(table)
