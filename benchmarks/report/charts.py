"""Charts of a run, each as two SVG pictures: for light pages and paper, and for dark pages. matplotlib draws them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from enet_deploy.plots import THEMED_WIDTH, confusion_on, themed

from ..result import Result
from ..run import Run
from ..verdict import front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's colours, which the colour-blind can tell apart; markers tell precisions apart
COLORS = {"torch": "#d55e00", "ort": "#0072b2", "openvino": "#009e73", "opencv": "#e69f00", "trt": "#7fa300"}
MARKERS = {"fp32": "o", "bf16": "P", "fp16": "s", "int8": "^", "fp16-int8": "D", "bf16-int8": "X"}
OTHER = "#cc79a7"
CALL_COLORS = {"decode": "#cc79a7", "pre": "#e69f00", "infer": "#56b4e9", "post": "#009e73", "overlay": "#999999"}
STAGE_COLORS = ("#999999", "#56b4e9", "#0072b2", "#009e73", "#e69f00", "#cc79a7", "#d55e00", "#f0e442")

LEAST_RANGE = 0.25  # per cent on either side of the middle: a smaller difference is no reason, and must not look large
FACTOR = 15  # longest call over shortest call, above which a linear axis shows too little


def latency(run: Run) -> tuple[str, str]:
    """Every call of each runner as a point, over a violin of them; the bar is the median."""
    results = run.results
    what = "infer" if results[0].timed == "infer" else "the whole loop"

    def draw(figure: Figure) -> None:
        axes = _rows(figure, results)
        generator = np.random.default_rng(0)
        for row, result in enumerate(results):
            samples = np.array(result.samples_ms)
            if np.ptp(samples) > 0:
                violin: Any = axes.violinplot(samples, [row], orientation="horizontal", widths=0.8, showextrema=False)
                violin["bodies"][0].set(facecolor=_color(result), alpha=0.3)
            scatter = row + generator.uniform(-0.18, 0.18, len(samples))
            axes.plot(samples, scatter, ".", color=_color(result), markersize=2.5, alpha=0.8, rasterized=True)
            axes.plot([np.median(samples)] * 2, [row - 0.35, row + 0.35], color=_color(result), linewidth=2)
        every = [ms for result in results for ms in result.samples_ms]
        if max(every) / min(every) > FACTOR:
            axes.set_xscale("log", subs=(2, 5))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}")
        else:
            axes.set_xlim(left=0)
        axes.set_xlabel(f"ms per call of {what}" + (", logarithmic" if axes.get_xscale() == "log" else ""))

    return themed(draw, 0.38 * len(results) + 0.8)


def drift(run: Run) -> tuple[str, str]:
    """The median of each round. It shows whether the machine drifted, and whether all runners felt it alike."""
    results = run.results

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for result in results:
            medians = [np.median(block) for block in result.rounds]
            axes.plot(range(1, len(medians) + 1), medians, **_style(result), markersize=3, linewidth=1)
        axes.set_ylim(bottom=0)
        axes.set(xlabel="round", ylabel="median ms")
        axes.locator_params(axis="x", integer=True)
        _legend(figure, results)

    return themed(draw, 3.2)


def throughput(run: Run) -> tuple[str, str]:
    """Frames per second: 1 / the mean time of a frame in `infer`, and of the whole loop through `stream`."""
    results = run.results

    def draw(figure: Figure) -> None:
        axes, rows, colors = _rows(figure, results), np.arange(len(results)), [_color(result) for result in results]
        for offset, name, alpha in ((-0.19, "fps", 1.0), (0.19, "stream_fps", 0.5)):
            fps = np.array([getattr(result, name) for result in results], float)  # NaN if it was not timed
            bars = axes.barh(rows + offset, fps, 0.36, color=colors, alpha=alpha)
            axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=7)
        axes.set_xlabel("frames per second; pale: through stream()")
        axes.margins(x=0.08)

    return themed(draw, 0.42 * len(results) + 0.8)


def trade(run: Run) -> tuple[str, str] | None:
    """Speed against accuracy with the Pareto front of each device; None if no accuracy is known."""
    results = [result for result in run.results if result.quality is not None]
    if not results:
        return None
    truth = results[0].accuracy is not None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for result in results:
            axes.plot(result.ms_per_frame, 100 * (result.quality or 0), **_style(result), linestyle="", markersize=7)
        for device in dict.fromkeys(result.device for result in results):
            ahead = front([result for result in results if result.device == device])
            places = [result.ms_per_frame for result in ahead], [100 * (result.quality or 0) for result in ahead]
            axes.step(*places, where="post", color="0.5", linewidth=1, zorder=0)
            axes.plot(*places, "o", markersize=13, markerfacecolor="none", markeredgecolor="0.5", markeredgewidth=1)
        axes.set(xlabel="median ms per frame", ylabel="mIoU, %" if truth else "labels equal to PyTorch's, %")
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.set_xlim(left=0)
        values = [100 * (result.quality or 0) for result in results]
        spare = max(0.15 * np.ptp(values), LEAST_RANGE - np.ptp(values) / 2)
        axes.set_ylim(min(values) - spare, max(values) + spare)
        _legend(figure, results)

    return themed(draw, 3.6)


def stages(run: Run) -> tuple[str, str]:
    """How long each step of a camera image takes: means, because they add up."""
    results = run.results

    def draw(figure: Figure) -> None:
        axes = _rows(figure, results)
        names = [name for name in results[0].stages_ms if name != "total"]
        colors = [CALL_COLORS[name] for name in names]
        _stack(axes, [{name: result.stages_ms[name].mean for name in names} for result in results], colors)
        axes.set_xlabel("mean ms per call")
        figure.legend(loc="outside lower center", ncols=len(names), fontsize=8)

    return themed(draw, 0.34 * len(results) + 1.1)


def network_stages(run: Run) -> tuple[str, str] | None:
    """How long each stage of the network takes; None without profiles."""
    profiled = [(result, result.profile) for result in run.results if result.profile is not None]
    if not profiled:
        return None

    def draw(figure: Figure) -> None:
        axes = _rows(figure, [result for result, _ in profiled])
        _stack(axes, [{row.stage: row.ms for row in profile.stages} for _, profile in profiled], STAGE_COLORS)
        axes.set_xlabel("ms per call, watched")
        figure.legend(loc="outside lower center", ncols=4, fontsize=8)

    return themed(draw, 0.34 * len(profiled) + 1.5)


def classes(run: Run) -> tuple[str, str] | None:
    """PyTorch's IoU of each class and the runners' changes; without a reference the IoU of each runner."""
    known = [(result, result.accuracy) for result in run.results if result.accuracy is not None]
    if not known:
        return None
    names = list(known[0][1].per_class)
    reference = run.accuracy_of_reference
    expected = 100 * reference.ious if reference else np.zeros(len(names))

    def draw(figure: Figure) -> None:
        if reference:
            bars, axes = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
            bars.barh(range(len(names)), expected, 0.6, color="0.6")
            bars.set(xlabel="PyTorch's IoU, %", xlim=(0, 100))
            axes.axvline(0, color="0.5", linewidth=1)
            axes.set_xlabel("change, points")
            axes.locator_params(axis="x", nbins=5)
        else:
            bars = axes = figure.subplots()
            axes.set(xlabel="IoU, %", xlim=(0, 100))
        for number, (result, accuracy) in enumerate(known):
            # below each other within a class's row: marks of equal backends would cover each other
            places = np.arange(len(names)) + 0.7 * ((number + 0.5) / len(known) - 0.5)
            axes.plot(100 * accuracy.ious - expected, places, **_style(result), linestyle="", markersize=3.5)
        bars.set_yticks(range(len(names)), names, parse_math=False)
        bars.invert_yaxis()
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)

    return themed(draw, 0.36 * len(names) + 1.4)


def confusion(result: Result) -> tuple[str, str] | None:
    """What the pixels of each class were taken for; None if the counts were not kept."""
    accuracy = result.accuracy
    if accuracy is None or accuracy.confusion is None:
        return None
    names = list(accuracy.per_class)
    counts = np.array(accuracy.confusion)[: len(names), : len(names)]
    cell = THEMED_WIDTH / (len(names) + 3)
    return themed(lambda figure: confusion_on(figure.subplots(), counts, names, cell), THEMED_WIDTH)


def reliability(run: Run) -> tuple[str, str] | None:
    """The accuracy of pixels over their confidence, and how many there are; None without confidences and truth."""
    known = [
        (result, result.accuracy.confidence)
        for result in run.results
        if result.accuracy is not None and result.accuracy.confidence is not None
    ]
    if not known:
        return None

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot([0, 1], [0, 1], color="0.5", linewidth=1)
        for result, found in known:
            confidence = [each.confidence for each in found.bins]
            total = sum(each.pixels for each in found.bins)
            above.plot(confidence, [each.accuracy for each in found.bins], **_style(result), markersize=3, linewidth=1)
            below.plot(
                confidence, [100 * each.pixels / total for each in found.bins], color=_color(result), linewidth=1
            )
        above.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        below.set(xlabel="confidence", ylabel="pixels, %", ylim=(0, None))
        _legend(figure, [result for result, _ in known])

    return themed(draw, 4.2)


def sweep(run: Run) -> tuple[str, str] | None:
    """Time per frame over the frame size, and frames per second over the batch; None without a sweep."""
    if not run.sweep:
        return None
    results = [*run.results, *run.sweep]

    def draw(figure: Figure) -> None:
        above, below = figure.subplots(2, 1)
        sizes = {result.size for result in results}
        for result in run.results:
            same = [r for r in results if _without_point(r) == _without_point(result)]
            by_size = sorted((r for r in same if r.batch == result.batch), key=_pixels)
            by_batch = sorted((r for r in same if r.size == result.size), key=lambda r: r.batch)
            style = _style(result) | {"markersize": 4}
            above.plot([_pixels(r) / 1e6 for r in by_size], [r.ms_per_frame for r in by_size], **style)
            below.plot([r.batch for r in by_batch], [1e3 / r.ms_per_frame for r in by_batch], **style)
        above.set(xlabel=f"megapixels ({', '.join(f'{h}x{w}' for h, w in sorted(sizes))})", ylabel="ms per frame")
        below.set(xlabel="frames per call", ylabel="frames per second")
        above.set_ylim(bottom=0)
        below.set_ylim(bottom=0)
        _legend(figure, run.results)

    return themed(draw, 5.0)


def _without_point(result: Result) -> tuple[Any, ...]:
    """What results that a line joins have in common: all but the frame size and the batch."""
    options = {name: value for name, value in result.options.items() if name != "size"}
    return result.artifact, result.backend, result.device, result.precision, result.qdq_layout, options


def _pixels(result: Result) -> int:
    return result.size[0] * result.size[1]


def _color(result: Result) -> str:
    return COLORS.get(result.backend, OTHER)


def _style(result: Result) -> dict[str, Any]:
    color, marker = _color(result), MARKERS.get(result.precision, "v")
    face = color if result.qdq_layout in (None, "all") else "none"
    # no formula for matplotlib and no hidden entry of a legend: names come from foreign files
    label = _lines(result.name).replace("$", r"\$").lstrip("_")
    return {"color": color, "marker": marker, "markerfacecolor": face, "label": label}


def _lines(name: str) -> str:
    """A runner's name on as many lines as it needs, because a file may have a long name."""
    return textwrap.fill(name, 22)


def _rows(figure: Figure, results: Sequence[Result]) -> Axes:
    """Axes with a row for each runner, the first on top."""
    axes = figure.subplots()
    axes.set_yticks(range(len(results)), [_lines(result.name) for result in results], parse_math=False)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    return axes


def _stack(axes: Axes, rows: Sequence[dict[str, float]], colors: Sequence[str]) -> None:
    """Bars of parts that add up, a colour for each part; hatched if all colours are taken."""
    left = np.zeros(len(rows))
    for number, name in enumerate(dict.fromkeys(name for row in rows for name in row)):
        values = [row.get(name, 0.0) for row in rows]
        color, hatch = colors[number % len(colors)], "////" * (number // len(colors))
        axes.barh(range(len(rows)), values, 0.6, left, label=name, color=color, hatch=hatch, linewidth=0)
        left += values


def _legend(figure: Figure, results: Sequence[Result]) -> None:
    columns = 3 if len(results) > 4 else 2
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)
