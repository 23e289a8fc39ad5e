"""A run of `results.py` as what people read: tables on a terminal, Markdown, CSV, and two runs against each other."""

from __future__ import annotations

import csv
import io
import math
from operator import itemgetter
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..statistics import compare
from ..verdict import ACCURACY, FIGURES, HOPELESS, Result, Run, figures, in_words

IDENTITY = ("name", "backend", "device", "precision", "layout", "artifact", "size", "batch")


def show(run: Run, console: Console) -> None:
    """Print a run."""
    results, reference = run["results"], run["reference"]
    _show_latency(results, console)
    _show_stages(results, camera_in_words(run), console)
    if run["sweep"]:
        _show_sweep(results, run["sweep"], console)
    if any(result["parity"] for result in results):
        _show_parity(results, console)
    if any(result["accuracy"] for result in results):
        _show_accuracy(results, reference and reference["accuracy"], console)
        _show_classes(results, reference and reference["accuracy"], console)
    for result in results:
        if result["profile"]:
            _show_profile(escape(result["name"]), result, run["peaks"], console)
    for device in run["verdict"]:
        console.print(
            f"[bold]On {escape(device['device'])}:[/] {escape(device['advice'])}", highlight=False, soft_wrap=True
        )
    if run["partial"]:
        console.print("[yellow]partial:[/] the run was interrupted; what it did not get to is missing", soft_wrap=True)
    for doubt in run["stability"]:
        console.print(f"[yellow]unstable:[/] {escape(doubt)}", highlight=False, soft_wrap=True)
    if not run["stability"]:
        console.print("stable: nothing that was looked at casts doubt on this run", highlight=False, soft_wrap=True)


def new_table(*columns: str, first: str = "runner") -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def print_table(title: str, table: Table, console: Console) -> None:
    console.print(title, style="bold")  # above the table, not in it, where it would wrap at the table's width
    console.print(table)


def _show_latency(results: list[Result], console: Console) -> None:
    height, width = results[0]["size"]
    what = "infer" if results[0]["timed"] == "infer" else "the whole loop"
    title = f"{what}, frames of {height}x{width}: ms per call, frames per second, speed against the first (95 % CI)"
    table = new_table("p50", "p90", "p99", "outliers", "mean FPS", "stream", "speed", "file MB", "peak MB")
    for result in results:
        latency, speed = result["latency_ms"], result["speed"]
        table.add_row(
            escape(result["name"]),
            *(f"{latency[figure]:.1f}" for figure in ("p50", "p90", "p99")),
            f"{result['outliers']}/{len(result['samples_ms'])}",
            f"{result['fps']:.1f}",
            number(result["stream_fps"], ".1f"),
            f"{speed['ratio']:.2f} ({speed['low']:.2f}-{speed['high']:.2f})",
            f"{result['model_bytes'] / 1e6:.2f}",
            f"{result['peak_bytes'] / 1e6:.0f}",
        )
    print_table(title, table, console)


def _show_stages(results: list[Result], camera: str, console: Console) -> None:
    stages = list(results[0]["stages_ms"])
    table = new_table(*stages, "mean FPS")
    for result in results:
        found = result["stages_ms"]
        fps = 1e3 * result["batch"] / found["total"]["mean"]
        table.add_row(escape(result["name"]), *(f"{found[stage]['p50']:.2f}" for stage in stages), f"{fps:.1f}")
    print_table(f"From {camera} to labels of its size: median ms per call", table, console)


def _show_sweep(results: list[Result], sweep: list[Result], console: Console) -> None:
    table = new_table("frames", "p50 ms", "ms per frame", "FPS", "stream")
    for result in sorted((*results, *sweep), key=lambda r: (*_kind(r)[:4], r["size"], r["batch"])):
        p50, (height, width) = result["latency_ms"]["p50"], result["size"]
        table.add_row(
            escape(result["name"]),
            f"{result['batch']} x {height}x{width}",
            f"{p50:.1f}",
            f"{p50 / result['batch']:.1f}",
            f"{result['fps']:.1f}",
            number(result["stream_fps"], ".1f"),
        )
    print_table("Batches and sizes, in the same rounds", table, console)


def _show_parity(results: list[Result], console: Console) -> None:
    table = new_table("equal labels", "near edges", "elsewhere", "max logit diff", "p99", "unpool flips")
    for result in results:
        parity = result["parity"]
        if parity is None:
            continue
        flips, unpool = parity["flips"] or {}, parity["unpool_flips"]
        table.add_row(
            escape(result["name"]),
            percent(parity["agreement"]),
            number(flips.get("boundary"), ".4%"),
            number(flips.get("interior"), ".4%"),
            number(parity["max_abs_logit"], ".2g"),
            number(parity["p99_abs_logit"], ".2g"),
            ", ".join(f"{share:.3%}" for share in unpool.values()) if unpool else "",
        )
    title = "The same network? Labels that differ from PyTorch fp32's (within 3 pixels of an edge, elsewhere), logits"
    print_table(title, table, console)


def _show_accuracy(results: list[Result], reference: dict[str, Any] | None, console: Console) -> None:
    table = new_table("pixel accuracy", "Dice", "mIoU", *(["their change, points"] if reference else []))
    for result in filter(itemgetter("accuracy"), results):
        accuracy = result["accuracy"]
        row = [f"{accuracy[figure]:.4f}" for figure in ACCURACY]
        if reference:
            row.append(" ".join(points(100 * (accuracy[figure] - reference[figure]), 3) for figure in ACCURACY))
        table.add_row(escape(result["name"]), *row)
    print_table("Accuracy, void left out", table, console)


def _show_classes(results: list[Result], reference: dict[str, Any] | None, console: Console) -> None:
    """IoU by class; where there is a reference, its IoU and the others' change, as long as that is any."""
    known = [result for result in results if result["accuracy"]]
    changed = [result for result in known if reference is None or _changes(result, reference)]
    if not changed:
        return
    table = new_table(*(["PyTorch"] if reference else []), *(escape(r["name"]) for r in changed), first="class")
    for name in known[0]["accuracy"]["per_class"]:
        own = reference["per_class"][name]["iou"] if reference else None
        row = [] if reference is None else [number(own, ".4f")]
        for result in changed:
            iou = result["accuracy"]["per_class"][name]["iou"]
            row.append(number(iou, ".4f") if reference is None or None in (iou, own) else points(100 * (iou - own)))
        table.add_row(escape(name), *row)
    print_table("IoU by class" + (": PyTorch's, and the change in points" if reference else ""), table, console)


def _changes(result: Result, reference: dict[str, Any]) -> bool:
    """Whether the IoU of any class differs by what the table shows, a hundredth of a point."""
    pairs = ((result["accuracy"]["per_class"][name]["iou"], own["iou"]) for name, own in reference["per_class"].items())
    return any(iou is not own and (None in (iou, own) or abs(iou - own) >= 5e-5) for iou, own in pairs)


def percent(share: float | None) -> str:
    """A share in per cent, cut, not rounded: what is not all is not called 100 %."""
    return "" if share is None else f"{math.floor(share * 1e7) / 1e5:.5f}%"


def points(change: float, digits: int = 2) -> str:
    """A change with its sign, which nothing has none of."""
    rounded = round(change, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"


def number(value: float | None, form: str = ".1f") -> str:
    """Nothing where nothing is known."""
    return "" if value is None else format(value, form)


def _show_profile(name: str, result: dict[str, Any], peaks: dict[str, float], console: Console) -> None:
    """By kind of operation, by stage, and what the arithmetic alone would take."""
    profile = result["profile"]
    total = profile["ms"]
    table = new_table("ms", "share", "count", first="kind")
    for row in profile["kinds"]:
        if row["ms"] >= 0.005 * total:
            table.add_row(escape(row["kind"]), f"{row['ms']:.2f}", f"{row['ms'] / total:.1%}", str(row["count"]))
    print_table(f"Where the time of {name} goes: {total:.1f} ms while watched", table, console)
    macs = [result["batch"] * (row["multiply_adds"] or 0) for row in profile["stages"]]
    # numpy's product is of all the processor's cores, and says nothing of a GPU
    comparable = result["device"] == "cpu" and not result["options"].get("threads") and sum(macs) > 0
    table = new_table("ms", "share", "multiply-adds, M", "of a float32 product's speed", first="stage")
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


def as_markdown(run: Run) -> str:
    """The run's figures as a table, with the verdict, for a pull request or a wiki."""
    columns = (
        "p50 ms",
        "p90 ms",
        "FPS",
        "stream FPS",
        "speed (95 % CI)",
        "MB",
        "peak MB",
        "equal labels",
        "mIoU, points",
    )
    height, width = run["results"][0]["size"]
    lines = [f"| {height}x{width} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for result in run["results"]:
        found, speed = figures(result, run["reference"]), result["speed"]
        miou, drop = found["miou"], found["miou_drop"]
        cells = (
            result["name"],
            number(found["p50_ms"], ".1f"),
            number(found["p90_ms"], ".1f"),
            number(found["fps"], ".1f"),
            number(found["stream_fps"], ".1f"),
            f"{speed['ratio']:.2f}x ({speed['low']:.2f} to {speed['high']:.2f})",
            number(found["model_mb"], ".2f"),
            number(found["peak_mb"], ".0f"),
            percent(found["agreement"]),
            number(miou, ".4f") + ("" if drop is None else f" ({points(-drop)})"),
        )
        lines.append(f"| {' | '.join(_plain(cell) for cell in cells)} |")
    lines += ["", *(f"On {_plain(each['device'])}: {_plain(each['advice'])}" for each in run["verdict"])]
    lines += ["Partial: the run was interrupted"] if run["partial"] else []
    lines += [f"Unstable: {_plain(doubt)}" for doubt in run["stability"]]
    machine = run["environment"]
    if machine:
        where = f"{machine['processor']}, {machine['cores']} cores, {machine['system']}"
        lines += ["", _plain(f"{where}; commit {machine['commit'][:12]}, {machine['time']}")]
    return "\n".join(lines) + "\n"


def camera_in_words(run: Run) -> str:
    """ "a camera image of 720x1280"."""
    size = (run["images"] or {}).get("size")
    return "a camera image" + (f" of {size[0]}x{size[1]}" if size else "")


def images_in_words(run: Run) -> str:
    """What the runners were timed with and compared on."""
    images = run["images"] or {}
    data = images.get("data") and f"{images['split']} of {images['data']}, {images['count']} images"
    video = images.get("video") and f"the video {images['video']}"
    return "; ".join(filter(None, (video, data))) or "drawn street scenes"


def _plain(text: str) -> str:
    """Text that is no markup in Markdown, nor breaks a table's row: names come out of files."""
    flat = " ".join(text.split())
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else c for c in flat)


def as_csv(run: Run) -> str:
    """A line for each runner, also of the sweep: what it is, and every figure that --require knows."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*IDENTITY, *FIGURES])
    for result in (*run["results"], *run["sweep"]):
        found = figures(result, run["reference"])
        size = "x".join(map(str, result["size"]))
        own = [_literal({**result, "size": size}[name]) for name in IDENTITY]
        writer.writerow([*own, *(number(found[name], ".9g") for name in FIGURES)])
    return text.getvalue()


def _literal(value: Any) -> Any:
    """Text that a spreadsheet takes for no formula: names come out of files."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def as_comparison(old: Run, new: Run) -> list[str]:
    """Lines that say, for each runner of both runs, whether the new one is faster, and what changed around them."""
    before, after = ([*run["results"], *run["sweep"]] for run in (old, new))
    lines, missing = [], []
    for result in after:
        other = _counterpart(result, after, before)
        if other is None:
            missing.append(f"{result['name']}: only in the second")
            continue
        gain = compare(other, result, side_by_side=False)
        if not gain.is_difference:
            verdict = f"{'no difference' if gain.width < HOPELESS else 'cannot tell'}, {in_words(gain)}"
        elif gain.ratio > 1:
            verdict = f"{in_words(gain).replace('x', 'x faster', 1)}"
        else:
            slower = compare(result, other, side_by_side=False)
            verdict = f"{in_words(slower).replace('x', 'x slower', 1)}"
        times = f"{other['latency_ms']['p50']:.1f} -> {result['latency_ms']['p50']:.1f} ms"
        lines.append(f"{result['name']}: {verdict}; {times}{_change(other, result)}")
    gone = [result for result in before if _counterpart(result, before, after) is None]
    lines += missing + [f"{result['name']}: only in the first" for result in gone]
    return lines + _differences(old["environment"], new["environment"])


def _counterpart(result: Result, own: list[Result], others: list[Result]) -> Result | None:
    """The same runner in the other run: its file may have another name, unless that is what tells it from another."""
    same = [other for other in others if _kind(other) == _kind(result)]
    if len(same) == 1 and sum(_kind(each) == _kind(result) for each in own) == 1:
        return same[0]
    return next((other for other in same if other["name"] == result["name"]), None)


def _kind(result: Result) -> tuple[Any, ...]:
    return tuple(str(result[name]) for name in ("backend", "device", "precision", "layout", "size", "batch"))


def _change(old: Result, new: Result) -> str:
    if not old["accuracy"] or not new["accuracy"]:
        return ""
    return f"; mIoU {100 * (new['accuracy']['miou'] - old['accuracy']['miou']):+.2f} points"


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What else is not the same; a ratio over two machines is one of machines."""
    lines = []
    for name in ("processor", "cores", "governor", "omp_num_threads", "commit"):
        if old.get(name) != new.get(name):
            lines.append(f"note: {name.replace('_', ' ')} was {old.get(name)}, is {new.get(name)}")
    versions = old.get("packages", {}), new.get("packages", {})
    for package in sorted({*versions[0], *versions[1]}):
        was, now = (each.get(package, "absent") for each in versions)
        if was != now:
            lines.append(f"note: {package} was {was}, is {now}")
    return lines
