"""A run as text: tables on a terminal, Markdown, CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from enet_deploy.markdown import markdown_table, plain
from enet_deploy.trained_on import in_words

from ..compare import runner_kind
from ..gate import Judged
from ..measure.parity import Accuracy
from ..measure.profiling import Peaks, Profile
from ..result import Result
from ..run import Run
from ..verdict import ACCURACY, FIGURES, figures

IDENTITY = ("name", "backend", "device", "precision", "layout", "artifact", "size", "batch")  # columns of the CSV


def show(run: Run, console: Console) -> None:
    """Print a run."""
    results, reference = run.results, run.accuracy_of_reference
    console.print(f"images: {escape(images_in_words(run))}")
    _show_latency(results, console)
    _show_stages(results, camera_in_words(run), console)
    trained_on = trained_on_mark(run)
    if run.sweep:
        _show_sweep(results, run.sweep, console)
    if any(result.parity for result in results):
        _show_parity(results, trained_on, console)
    if any(result.accuracy for result in results):
        _show_accuracy(results, reference, trained_on, console)
        _show_classes(results, reference, trained_on, console)
    for result in results:
        if result.profile is not None and run.peaks is not None:
            _show_profile(result, result.profile, run.peaks, console)
    if told := trained_on_in_words(run):
        _say(escape(told), console)
    for verdict in run.verdict:
        advice = f"[bold]On {escape(verdict.device)}:[/] {escape(verdict.advice)}"
        _say(advice, console)
        for line in filter(None, (verdict.export, verdict.call)):
            console.print(f"  {escape(line)}", soft_wrap=True)  # to be pasted
    if run.partial:
        _say("[yellow]partial:[/] the run was interrupted; what it did not get to is missing", console)
    for doubt in run.stability:
        _say(f"[yellow]unstable:[/] {escape(doubt)}", console)
    if not run.stability:
        _say("stable: nothing that was looked at casts doubt on this run", console)


def _say(text: str, console: Console) -> None:
    """Print a sentence, broken between words on a terminal, on one line in a file."""
    console.print(text, soft_wrap=not console.is_terminal)


def new_table(*columns: str, first: str = "runner") -> Table:
    """A table with a left-aligned first column and right-aligned others."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def print_table(title: str, table: Table, console: Console, optional: Sequence[str] = ()) -> None:
    """Print a table below its title, without a break in any figure.

    Args:
        optional: columns that are left out, in this order, until the table fits the console. If it still does not, its
            columns are printed in several tables.
    """
    _say(f"[bold]{title}[/]", console)  # not as part of the table, which would wrap it at the table's width
    left_out = []
    for name in optional:
        if _fits(table, console):
            break
        table.columns = [column for column in table.columns if column.header != name]
        left_out.append(name)
    for part in _parts(table, console):
        console.print(part)
    if left_out:
        console.print(f"left out at {console.width} columns: {', '.join(left_out)}; --csv and --html have them\n")


def _fits(table: Table, console: Console) -> bool:
    options = console.options.update(width=100 * console.width)
    return Measurement.get(console, options, table).maximum <= console.width


def _parts(table: Table, console: Console) -> Iterator[Table]:
    """The table in as many as fit, each with its first column."""
    first, *rest = table.columns
    while rest:
        count = len(rest)
        while count > 1:
            table.columns = [first, *rest[:count]]
            if _fits(table, console):
                break
            count -= 1
        table.columns, rest = [first, *rest[:count]], rest[count:]
        yield table


def show_judged(judged: Sequence[Judged], console: Console) -> None:
    """Print what was measured beside what is required, whether it holds or not."""
    table = new_table("figure", "measured", "required", "")
    for each in judged:
        requirement = each.requirement
        bound = f"{requirement.comparison} {requirement.bound:g}"
        row = (escape(each.runner), requirement.figure, f"{each.value:.6g}", bound)
        table.add_row(*row, "[green]holds[/]" if each.holds else "[red]does not hold[/]")
    print_table("Measured against required", table, console)


def _show_latency(results: Sequence[Result], console: Console) -> None:
    height, width = results[0].size
    what = "infer" if results[0].timed == "infer" else "the whole loop"
    title = f"{what}, frames of {height}x{width}: ms per call, frames per second, speed against the first (95 % CI)"
    table = new_table("p50", "p90", "p99", "outliers", "mean FPS", "stream", "speed", "file MB", "peak MB")
    for result in results:
        latency, speed = result.latency_ms, result.speed
        table.add_row(
            escape(result.name),
            *map(number, (latency.p50, latency.p90, latency.p99)),
            f"{result.outliers}/{len(result.samples_ms)}",
            *map(number, (result.fps, result.stream_fps)),
            f"{speed.ratio:.2f} ({speed.low:.2f}-{speed.high:.2f})",
            f"{result.model_bytes / 1e6:.2f}",
            f"{result.peak_bytes / 1e6:.0f}",
        )
    print_table(title, table, console, ("p99", "outliers", "p90", "file MB", "peak MB", "stream"))


def _show_stages(results: Sequence[Result], camera: str, console: Console) -> None:
    stages = list(results[0].stages_ms)
    table = new_table(*stages, "mean FPS")
    for result in results:
        fps = 1e3 * result.batch / result.stages_ms["total"].mean
        medians = (f"{result.stages_ms[stage].p50:.2f}" for stage in stages)
        table.add_row(escape(result.name), *medians, f"{fps:.1f}")
    print_table(f"From {camera} to labels of its size: median ms per call", table, console)


def _show_sweep(results: Sequence[Result], sweep: Sequence[Result], console: Console) -> None:
    table = new_table("frames", "p50 ms", "ms per frame", "FPS", "stream")
    for result in sorted((*results, *sweep), key=runner_kind):
        p50, (height, width) = result.latency_ms.p50, result.size
        shown = (number(value) for value in (p50, p50 / result.batch, result.fps, result.stream_fps))
        table.add_row(escape(result.name), f"{result.batch} x {height}x{width}", *shown)
    print_table("Batches and sizes, in the same rounds", table, console)


def _show_parity(results: Sequence[Result], trained_on: str, console: Console) -> None:
    table = new_table("equal labels", "near edges", "elsewhere", "max logit diff", "p99", "unpool flips")
    for result in results:
        parity = result.parity
        if parity is None:
            continue
        flips, unpool = parity.flips, parity.unpool_flips
        table.add_row(
            escape(result.name),
            percent(parity.agreement),
            number(getattr(flips, "boundary", None), ".4%"),
            number(getattr(flips, "interior", None), ".4%"),
            *(number(value, ".2g") for value in (parity.max_abs_logit, parity.p99_abs_logit)),
            ", ".join(f"{share:.3%}" for share in unpool.values()) if unpool else "",
        )
    title = "The same network? Labels that differ from PyTorch fp32's (within 3 pixels of an edge, elsewhere), logits"
    print_table(title + trained_on, table, console, ("p99", "unpool flips", "max logit diff"))


def _show_accuracy(results: Sequence[Result], reference: Accuracy | None, trained_on: str, console: Console) -> None:
    knows_confidence = any(result.accuracy is not None and result.accuracy.confidence for result in results)
    columns = (*(["their change, points"] if reference else []), *(["calibration error"] if knows_confidence else []))
    table = new_table("pixel accuracy", "Dice", "mIoU", *columns)
    for result in results:
        if result.accuracy is None:
            continue
        own = {name: getattr(result.accuracy, name) for name in ACCURACY}
        row = [f"{value:.4f}" for value in own.values()]
        if reference:
            row.append(" ".join(points(100 * (own[name] - getattr(reference, name)), 3) for name in ACCURACY))
        if knows_confidence:
            row.append(number(getattr(result.accuracy.confidence, "error", None), ".4f"))
        table.add_row(escape(result.name), *row)
    print_table(f"Accuracy, void left out{trained_on}", table, console, ("pixel accuracy", "Dice"))


def _show_classes(results: Sequence[Result], reference: Accuracy | None, trained_on: str, console: Console) -> None:
    """IoU by class. With a reference: its IoU, and the changes of the runners that change any."""
    known = [(result.name, result.accuracy) for result in results if result.accuracy is not None]
    changed = [(name, own) for name, own in known if reference is None or _changes(own, reference)]
    if not changed:
        return
    table = new_table(*(["PyTorch"] if reference else []), *(escape(name) for name, _ in changed), first="class")
    for name in known[0][1].per_class:
        expected = None if reference is None else reference.per_class[name].iou
        row = [] if reference is None else [number(expected, ".4f")]
        for _, own in changed:
            iou = own.per_class[name].iou
            row.append(number(iou, ".4f") if iou is None or expected is None else points(100 * (iou - expected)))
        table.add_row(escape(name), *row)
    title = "IoU by class" + (": PyTorch's, and the change in points" if reference else "")
    print_table(title + trained_on, table, console)


def _changes(accuracy: Accuracy, reference: Accuracy) -> bool:
    """Whether the IoU of any class differs by at least a hundredth of a point, which the table shows."""
    return not np.allclose(accuracy.ious, reference.ious, rtol=0, atol=5e-5, equal_nan=True)


def percent(share: float | None) -> str:
    """A share in per cent, rounded down, so that only 1 is shown as 100 %. "" for None."""
    return "" if share is None else f"{math.floor(share * 1e7) / 1e5:.5f}%"


def points(change: float, digits: int = 2) -> str:
    """A change with its sign; zero has no sign."""
    rounded = round(change, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def number(value: float | None, form: str = ".1f") -> str:
    """A formatted value; "" for None."""
    return "" if value is None else format(value, form)


def _show_profile(result: Result, profile: Profile, peaks: Peaks, console: Console) -> None:
    """The time by kind of operation and by stage, and the time that the arithmetic alone would take."""
    name, total = escape(result.name), profile.ms
    table = new_table("ms", "share", "count", first="kind")
    for kind in profile.kinds:
        if kind.ms >= 0.005 * total:
            table.add_row(escape(kind.kind), f"{kind.ms:.2f}", f"{kind.ms / total:.1%}", str(kind.count))
    print_table(f"Where the time of {name} goes: {total:.1f} ms while watched", table, console)
    macs = [result.batch * (stage.multiply_adds or 0) for stage in profile.stages]
    # the peak is that of numpy on all cores of the processor; it says nothing about a GPU
    comparable = result.device == "cpu" and not result.options.get("threads") and sum(macs) > 0
    table = new_table("ms", "share", "multiply-adds, M", "of a float32 product's speed", first="stage")
    for stage, own in zip(profile.stages, macs, strict=True):
        reached = f"{2e-6 * own / stage.ms / peaks.gflops:.0%}" if comparable and own and stage.ms else ""
        millions = f"{own / 1e6:.1f}" if own else ""
        table.add_row(escape(stage.stage), f"{stage.ms:.2f}", f"{stage.ms / total:.1%}", millions, reached)
    console.print(table)
    share = profile.convolution_ms / total
    console.print(f"Convolutions take {profile.convolution_ms:.1f} ms, {share:.0%} of it.")
    if comparable:
        ideal = 2e-6 * sum(macs) / peaks.gflops
        console.print(
            f"Their {sum(macs) / 1e9:.2f} G multiply-adds would take {ideal:.1f} ms at the speed of a float32 matrix "
            f"product here ({peaks.gflops:.0f} GFLOP/s). A copy runs at {peaks.copy_gb:.1f} GB/s."
        )


def as_markdown(run: Run) -> str:
    """The run's figures as a table, with the verdict, for a pull request or a wiki."""
    height, width = run.results[0].size
    columns = ["p50 ms", "p90 ms", "FPS", "stream FPS", "speed (95 % CI)", "MB", "peak MB", "equal labels"]
    rows = [[plain(cell) for cell in _markdown_row(result, run.accuracy_of_reference)] for result in run.results]
    lines = [markdown_table([f"{height}x{width}", *columns, "mIoU, points"], rows), ""]
    for verdict in run.verdict:
        lines.append(f"On {plain(verdict.device)}: {plain(verdict.advice)}")
        lines += ["", "```", verdict.export, "```"] if verdict.export is not None else []
        lines += ["", "```python", verdict.call, "```"] if verdict.call is not None else []
    lines += [told] if (told := plain(trained_on_in_words(run))) else []
    lines += ["Partial: the run was interrupted"] if run.partial else []
    lines += [f"Unstable: {plain(doubt)}" for doubt in run.stability]
    machine = run.environment
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['system']}"
    lines += ["", plain(f"{where}; commit {machine['commit'][:12]}, {machine['time']}")]
    return "\n".join(lines) + "\n"


def _markdown_row(result: Result, reference: Accuracy | None) -> tuple[str, ...]:
    found, speed = figures(result, reference), result.speed
    drop = found["miou_drop"]
    return (
        result.name,
        *(number(found[name]) for name in ("p50_ms", "p90_ms", "fps", "stream_fps")),
        f"{speed.ratio:.2f}x ({speed.low:.2f} to {speed.high:.2f})",
        number(found["model_mb"], ".2f"),
        number(found["peak_mb"], ".0f"),
        percent(found["agreement"]),
        number(found["miou"], ".4f") + ("" if drop is None else f" ({points(-drop)})"),
    )


def camera_in_words(run: Run) -> str:
    """ "a camera image of 720x1280"."""
    if run.images is None:
        return "a camera image"
    height, width = run.images.size
    return f"a camera image of {height}x{width}"


def images_in_words(run: Run) -> str:
    """The images that the runners were timed with and compared on."""
    images = run.images
    if images is None or not (images.video or images.data):
        return "drawn street scenes"
    data = images.data and f"{images.split} of {images.data}, {images.count} images"
    return "; ".join(filter(None, (images.video and f"the video {images.video}", data)))


def trained_on_in_words(run: Run) -> str:
    """Whether the images that labels were compared on were trained on; "" if none were compared."""
    compared = [each for each in run.results if each.parity is not None or each.accuracy is not None]
    if not compared or run.images is None:
        return ""
    images = run.images.count if run.compared is None else run.compared
    told = {each.name: in_words(each.trained_on, images) for each in compared}
    if len(set(told.values())) == 1:
        return told[compared[0].name]
    return "; ".join(f"{name}: {words}" for name, words in told.items())


def trained_on_mark(run: Run) -> str:
    """What the title of a table says if any of its images was trained on; else ""."""
    seen = max(each.trained_on or 0 for each in run.results)
    return f" (TRAINED ON {seen} of these images)" if seen else ""


def as_csv(run: Run) -> str:
    """A line for each runner, including the sweep: what it is, and every figure that --require knows."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*IDENTITY, *FIGURES])
    for result in (*run.results, *run.sweep):
        found = figures(result, run.accuracy_of_reference)
        size = f"{result.size[0]}x{result.size[1]}"
        kind = (result.name, result.backend, result.device, result.precision, result.qdq_layout)
        identity = map(_literal, (*kind, result.artifact, size, result.batch))
        writer.writerow([*identity, *(number(found[name], ".9g") for name in FIGURES)])
    return text.getvalue()


def _literal(value: Any) -> Any:
    """The value, quoted if a spreadsheet would take it for a formula: names come from foreign files."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
