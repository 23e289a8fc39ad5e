"""A benchmark result as data, and as the tables that people read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from enet_deploy.runners import Spec

from .parity import Parity
from .profiling import Peaks
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
        options: that the runner was opened with.
        profile: where its time goes, `profiling.to_json`, where that was asked for and its backend tells.
    """

    spec: Spec
    artifact: str
    timing: Timing
    parity: Parity
    model_bytes: int
    peak_bytes: int
    options: dict[str, Any]
    profile: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "backend": self.spec.backend,
            "device": self.spec.device,
            "precision": self.spec.precision,
            "artifact": self.artifact,
            "runtime": self.spec.runtime,
            "options": self.options,
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
            "profile": self.profile,
        }


def to_json(
    environment: dict[str, Any], results: list[Result], reference: Parity | None, peaks: Peaks | None = None
) -> dict[str, Any]:
    """The whole run; the fields are described in the README."""
    return {
        "schema": SCHEMA,
        "environment": environment,
        "peaks": None if peaks is None else asdict(peaks),
        "reference": None if reference is None else {"backend": "torch", "accuracy": reference.accuracy_json()},
        "results": [result.to_json() for result in results],
    }


def show(run: dict[str, Any], console: Console) -> None:
    """Print a run of `to_json`'s form."""
    results, reference = run["results"], run["reference"]
    _show_latency(results, console)
    _show_size(results, console)
    if reference:
        _show_parity(results, console)
        _show_flips(results, console)
    if results[0]["accuracy"]:
        _show_accuracy(results, reference and reference["accuracy"], console)
    for name, result in zip(_names(results), results, strict=True):
        if result.get("profile"):  # files of before it was measured have none
            _show_profile(name, result, run["peaks"], console)
    for name, result in zip(_names(results), results, strict=True):
        if result["spread"] > UNSTABLE:
            console.print(
                f"[yellow]unstable:[/] the blocks of {name} differ by {result['spread']:.0%}; close other "
                "programs, fix the clock frequency, or take more --frames"
            )


def _names(results: list[dict[str, Any]]) -> list[str]:
    """What tells the runners of one run apart: backend and precision, and the file where these are the same."""
    names = [f"{r['backend']} {r['precision']}" + (f" x{r['batch']}" if r["batch"] > 1 else "") for r in results]
    unique = [
        n if names.count(n) == 1 else f"{n} {Path(r['artifact']).name}" for n, r in zip(names, results, strict=True)
    ]
    return [escape(name) for name in unique]  # parts of it come out of a file: text, never markup


def _table(*columns: str, first: str = "runner") -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _print(title: str, table: Table, console: Console) -> None:
    console.print(title, style="bold")  # above the table, not in it, where it would wrap at the table's width
    console.print(table)


def _show_latency(results: list[dict[str, Any]], console: Console) -> None:
    height, width = results[0]["size"]
    title = f"Latency in ms, frames of {height}x{width}"
    table = _table("stage", "p50", "p90", "p99", "mean", "FPS")
    for name, result in zip(_names(results), results, strict=True):
        for stage in STAGES:
            figures = result["stages_ms"][stage]
            table.add_row(
                name if stage == STAGES[0] else "",
                stage,
                *(f"{figures[figure]:.2f}" for figure in ("p50", "p90", "p99", "mean")),
                f"{1e3 * result['batch'] / figures['mean']:.1f}",
                end_section=stage == STAGES[-1],
            )
    _print(title, table, console)


def _show_size(results: list[dict[str, Any]], console: Console) -> None:
    title = "Speed of infer against the first, file, peak memory of a process"
    table = _table("faster", "file MB", "peak MB")
    first = results[0]["latency_ms"]["p50"] / results[0]["batch"]
    for name, result in zip(_names(results), results, strict=True):
        faster = first / (result["latency_ms"]["p50"] / result["batch"])
        size, peak = result["model_bytes"] / 1e6, result["peak_bytes"] / 1e6
        table.add_row(name, f"{faster:.2f}x", f"{size:.2f}", f"{peak:.0f}")
    _print(title, table, console)


def _show_parity(results: list[dict[str, Any]], console: Console) -> None:
    columns = ("equal labels", "max logit diff", "IoU", "Dice")
    title = "The same network? Labels and logits against PyTorch fp32"
    table = _table(*columns)
    for name, result in zip(_names(results), results, strict=True):
        parity = result["parity"]
        logit = parity["max_abs_logit"]
        table.add_row(
            name,
            f"{parity['agreement']:.4%}",
            "no logits" if logit is None else f"{logit:.2g}",
            f"{parity['miou']:.5f}",
            f"{parity['dice']:.5f}",
        )
    _print(title, table, console)


def _show_flips(results: list[dict[str, Any]], console: Console) -> None:
    """Which place of a window a pooling took; in fp32 no more than rounding moves, and the table is left out."""
    flips = [result["parity"]["unpool_flips"] for result in results]
    if all(result["precision"] == "fp32" for result in results) or not any(flips):
        return
    table = _table(*next(filter(None, flips)))
    for name, shares in zip(_names(results), flips, strict=True):
        if shares:
            table.add_row(name, *(f"{share:.3%}" for share in shares.values()))
    _print("Unpool flips: windows whose winner is not PyTorch fp32's", table, console)


def _show_profile(name: str, result: dict[str, Any], peaks: dict[str, float], console: Console) -> None:
    """By kind of operation, by stage, and what the arithmetic alone would take."""
    profile = result["profile"]
    total = profile["ms"]
    table = _table("ms", "share", "count", first="kind")
    for row in profile["kinds"]:
        if row["ms"] >= 0.005 * total:
            table.add_row(escape(row["kind"]), f"{row['ms']:.2f}", f"{row['ms'] / total:.1%}", str(row["count"]))
    _print(f"Where the time of {name} goes: {total:.1f} ms while watched", table, console)
    macs = [result["batch"] * (row["multiply_adds"] or 0) for row in profile["stages"]]
    # numpy's product is of all the processor's cores, and says nothing of a GPU
    comparable = result["device"] == "cpu" and not result["options"].get("threads") and sum(macs) > 0
    table = _table("ms", "share", "multiply-adds, M", "of a float32 product's speed", first="stage")
    for row, own in zip(profile["stages"], macs, strict=True):
        reached = f"{2e-6 * own / row['ms'] / peaks['gflops']:.0%}" if comparable and own and row["ms"] else ""
        millions = f"{own / 1e6:.1f}" if own else ""
        table.add_row(row["stage"], f"{row['ms']:.2f}", f"{row['ms'] / total:.1%}", millions, reached)
    console.print(table)
    share = profile["convolution_ms"] / total
    console.print(f"Convolutions take {profile['convolution_ms']:.1f} ms, {share:.0%} of it.")
    if comparable:
        ideal = 2e-6 * sum(macs) / peaks["gflops"]
        console.print(
            f"Their {sum(macs) / 1e9:.2f} G multiply-adds would take {ideal:.1f} ms at the speed of a float32 matrix "
            f"product here ({peaks['gflops']:.0f} GFLOP/s). A copy runs at {peaks['copy_gb']:.1f} GB/s."
        )


def _show_accuracy(results: list[dict[str, Any]], reference: dict[str, Any] | None, console: Console) -> None:
    title = "Accuracy, void left out"
    figures = ("pixel_accuracy", "dice", "miou")
    table = _table("pixel accuracy", "Dice", "mIoU", *(["their change, points"] if reference else []))
    for name, result in zip(_names(results), results, strict=True):
        accuracy = result["accuracy"]
        row = [f"{accuracy[figure]:.4f}" for figure in figures]
        if reference:
            row.append(" ".join(f"{100 * (accuracy[figure] - reference[figure]):+.3f}" for figure in figures))
        table.add_row(name, *row)
    _print(title, table, console)
