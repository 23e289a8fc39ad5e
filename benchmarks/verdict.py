"""What a run says to the reader who has to choose: the best trade, and whether to trust the figures."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .measure.machine import Load
from .measure.parity import Accuracy
from .measure.timing import CALLS
from .result import Result
from .statistics import Speed
from .typed_json import LATER

DROP = 0.3  # points of mIoU that a faster runner may cost
SAME = 5e-4  # a difference of mIoU, or of the share of equal labels, that does not justify a slower runner
LEAST_AGREEMENT = 0.99  # used instead of `DROP` if there is no truth
MARGIN = 1.02  # a runner is faster than another if the whole interval of its speed lies above this; else they tie
LEAST_IN_BF16 = 0.993  # the same for bf16: 0.9972 on unseen images, 0.9952 on the worst (docs/precision-and-engines.md)

UNSTABLE = 0.10  # spread of the rounds' medians, as a share of the median, above which a result is doubted
BUSY = 0.10  # cores that other programs may take
STOLEN = 0.02  # cores that the hypervisor may take
UNSURE = 0.10  # width of a ratio's interval, as a share of it, above which more frames are advised
HOPELESS = 0.5  # such a width above which more frames would not help
ROUNDS = 10  # the fewest for a sound interval


@dataclass(frozen=True)
class Verdict:
    """What to run on a device.

    Attributes:
        front: names of the runners on the Pareto front, fastest first.
        take: name of the advised runner; None if none keeps the network's labels.
        tied: names of the runners that are as fast as the advised one, as far as this run can tell.
        advice: the reasons, in sentences.
        call: the line of Python that opens the advised runner; None if there is none.
        export: the command that writes the file of `call`; None if that is there already.
    """

    device: str
    front: tuple[str, ...]
    take: str | None
    tied: tuple[str, ...]
    advice: str
    call: str | None
    export: str | None = field(default=None, metadata=LATER)


def figures(result: Result, reference: Accuracy | None) -> dict[str, float | None]:
    """Every figure of a runner, by the names of `FIGURES`; None if it was not measured.

    Args:
        reference: PyTorch fp32's accuracy; drops are in points against it.
    """
    parity, accuracy = result.parity, result.accuracy
    found: dict[str, float | None] = {
        "p50_ms": result.latency_ms.p50,
        "p90_ms": result.latency_ms.p90,
        "p99_ms": result.latency_ms.p99,
        "fps": result.fps,
        "stream_fps": result.stream_fps,
        "speedup": result.speed.ratio,
        "speedup_low": result.speed.low,
        "speedup_high": result.speed.high,
        "model_mb": result.model_bytes / 1e6,
        "peak_mb": result.peak_bytes / 1e6,
        **dict.fromkeys(PARITY),
    }
    if parity is not None:
        found["agreement"] = parity.agreement
        found |= {"max_abs_logit": parity.max_abs_logit, "p99_abs_logit": parity.p99_abs_logit}
        found["unpool_flips"] = max(parity.unpool_flips.values()) if parity.unpool_flips else None
        if parity.flips is not None:
            found |= {"boundary_flips": parity.flips.boundary, "interior_flips": parity.flips.interior}
    for name in ACCURACY:
        own = None if accuracy is None else float(getattr(accuracy, name))
        found[name] = own
        known = own is not None and reference is not None
        found[f"{name}_drop"] = 100 * (getattr(reference, name) - own) if known else None
    return found


ACCURACY = ("pixel_accuracy", "dice", "miou")
_SPEED = ("p50_ms", "p90_ms", "p99_ms", "fps", "stream_fps", "speedup", "speedup_low", "speedup_high")
PARITY = ("agreement", "boundary_flips", "interior_flips", "max_abs_logit", "p99_abs_logit", "unpool_flips")
TRUTH = tuple(name for each in ACCURACY for name in (each, f"{each}_drop"))
FIGURES = (*_SPEED, "model_mb", "peak_mb", *PARITY, *TRUTH)


# --- the best trade -----------------------------------------------------------------------------------------------


def front(results: Sequence[Result]) -> list[Result]:
    """The Pareto front, fastest first: no faster runner equals its members in quality, to within `SAME`."""
    known = [(result, quality) for result in results if (quality := result.quality) is not None]
    members: list[Result] = []
    best = -math.inf
    for result, quality in sorted(known, key=lambda pair: (pair[0].ms_per_frame, -pair[1])):
        if quality > best + SAME:
            members.append(result)
            best = quality
    return members


def verdicts(results: Sequence[Result], reference: Accuracy | None) -> list[Verdict]:
    """A verdict for each device."""
    found = []
    for device in dict.fromkeys(result.device for result in results):
        drops = _Drops(results, reference)
        own = [result for result in results if result.device == device]
        best, tied = _best([result for result in own if drops.keeps(result)])
        members = tuple(result.name for result in front(own))
        take = None if best is None else best.name
        advice = " ".join(_advice(best, tied, own, drops))
        call = None if best is None else call_of(best)
        export = None if best is None else export_of(best)
        found.append(Verdict(device, members, take, tuple(result.name for result in tied), advice, call, export))
    return found


def call_of(result: Result) -> str:
    """The call that opens a runner as the run did, to be pasted: names from foreign files stay texts."""
    asked = {"backend": result.backend, "device": result.device, **result.options}
    if result.device == ("cuda" if result.backend == "trt" else "cpu"):
        del asked["device"]  # the default
    if isinstance(asked.get("size"), list | tuple):
        asked["size"] = tuple(asked["size"])
    arguments = (f"{name}={_literal(value)}" for name, value in asked.items() if value and name.isidentifier())
    return f"open_runner({', '.join((_literal(result.artifact), *arguments))})"


def export_of(result: Result) -> str | None:
    """The command that writes a runner's file, to be pasted: words from foreign files stay words of `enet-export`."""
    return None if result.export is None else shlex.join(["enet-export", *result.export])


def _literal(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


@dataclass(frozen=True)
class _Drops:
    """What each runner of a run costs in accuracy."""

    results: Sequence[Result]
    reference: Accuracy | None

    def points(self, result: Result) -> float | None:
        """Points of mIoU lost against PyTorch fp32, or against the run's best runner; None without a truth."""
        if result.accuracy is None or self.reference is not None:
            return figures(result, self.reference)["miou_drop"]
        best = max(each.accuracy.miou for each in self.results if each.accuracy is not None)
        return 100 * (best - result.accuracy.miou)

    def keeps(self, result: Result) -> bool:
        """Whether a runner keeps the network's labels; True if neither mIoU nor agreement was measured."""
        points = self.points(result)
        if points is not None:
            return points <= DROP
        return result.parity is None or result.parity.agreement >= _least_agreement(result)

    def cost(self, result: Result) -> str:
        points = self.points(result)
        if points is not None:
            return f"for {0 - points:+.2f} points of mIoU"
        if result.parity is not None:
            return f"for {result.parity.agreement:.2%} of PyTorch's labels"
        return "with labels that nothing was held against"


def _best(kept: Sequence[Result]) -> tuple[Result | None, list[Result]]:
    """The advised runner of those that keep the labels, and those that tie with it.

    The fastest, and whatever this run does not show to be slower than it, tie. Of these it is the first by
    `_preference`, which no time has a part in: so the advice is the same in the next run.
    """
    if not kept:
        return None, []
    fastest = min(kept, key=_speed_order)
    tied = sorted((each for each in kept if ties(fastest, each)), key=_preference)
    return tied[0], tied[1:]


def ties(faster: Result, other: Result) -> bool:
    """Whether a run does not show that the first is faster than the other; a runner ties with itself."""
    return faster is other or faster.speed_over(other, side_by_side=True).low <= MARGIN


_PREFERRED = "the file made for its backend, then more equal labels, higher precision, fewer packages, a smaller file"
_DEPENDENCIES = ("opencv", "ort", "openvino", "trt", "torch")  # fewest first


def _preference(result: Result) -> tuple[Any, ...]:
    foreign = result.qdq_layout not in (None, "all", result.backend)
    agreement = 0.0 if result.parity is None else result.parity.agreement
    is_int8 = "int8" in result.precision
    needs = _DEPENDENCIES.index(result.backend) if result.backend in _DEPENDENCIES else len(_DEPENDENCIES)
    return foreign, -agreement, result.precision != "fp32", is_int8, needs, result.model_bytes, result.name


def _speed_order(result: Result) -> float:
    return result.ms_per_frame


def _advice(best: Result | None, tied: Sequence[Result], results: Sequence[Result], drops: _Drops) -> list[str]:
    if best is None:
        return ["no runner keeps the network's labels; deploy none of them."]
    exact = [each for each in results if each.precision == "fp32" and each is not best]
    others = [each for each in exact if each.backend != "torch"] or exact
    first = f"take {best.name}: {best.fps:.0f} FPS"
    plain = min(others, key=_speed_order, default=None)
    if plain is not None and plain not in tied:
        gain = best.speed_over(plain, side_by_side=True)
        first += f", {in_words(gain)} the speed of {plain.name}, {drops.cost(best)}"
    sentences = [first]
    if tied:
        word = "is" if len(tied) == 1 else "are"
        sentences.append(
            f"{_names(tied)} {word} as fast, as far as this run can tell; the advice then prefers {_PREFERRED}"
        )
    return [f"{each}." for each in (*sentences, *_refused(best, tied, results, drops))]


def in_words(gain: Speed) -> str:
    """ "1.23x (95 % CI 1.20 to 1.26)"."""
    return f"{gain.ratio:.2f}x (95 % CI {gain.low:.2f} to {gain.high:.2f})"


def _refused(best: Result, tied: Sequence[Result], results: Sequence[Result], drops: _Drops) -> list[str]:
    """Why int8 or fp16, which one expects to be faster, is not advised."""
    reasons = []
    for kind in {"fp32": ("int8", "bf16", "fp16"), "bf16": ("int8",), "fp16": ("int8",)}.get(best.precision, ()):
        tried = min((each for each in results if each.precision.endswith(kind)), key=_speed_order, default=None)
        if tried is not None and tried not in tied:
            why = _why_not(tried, best, drops)
            reasons.append(f"{kind.upper()} is not worth it here, because {why}")
    return reasons


def _why_not(result: Result, best: Result, drops: _Drops) -> str:
    if drops.keeps(result):
        return f"{result.name} is at {in_words(result.speed_over(best, side_by_side=True))} of {best.name}'s speed"
    points = drops.points(result)
    if points is not None:
        return f"{result.name} costs {points:.2f} points of mIoU, more than {DROP}"
    assert result.parity is not None  # else it would keep the labels
    agreement = result.parity.agreement
    return f"{result.name} keeps {agreement:.2%} of PyTorch's labels, fewer than {100 * _least_agreement(result):g}%"


def _least_agreement(result: Result) -> float:
    return LEAST_IN_BF16 if result.precision == "bf16" else LEAST_AGREEMENT


# --- can the figures be trusted? ----------------------------------------------------------------------------------


def stability(results: Sequence[Result], load: Load | None, governor: str | None, *, partial: bool) -> list[str]:
    """What casts doubt on a run and what to do about it; empty if the run can be trusted.

    Args:
        load: of other programs during the run; None if it was not recorded.
        governor: how the processor's clock is chosen; None if that is not known.
        partial: whether the run was interrupted, so that few rounds are no surprise.
    """
    doubts = _doubts_of_machine(load, governor)
    shaky = [result for result in results if result.spread > UNSTABLE]
    if shaky:
        most = max(result.spread for result in shaky)
        doubts.append(f"rounds of {_names(shaky)} differ by up to {most:.0%}; read ratios, not times")
    cold = [result for result in results if result.warm_up is not None and not result.warm_up.settled]
    if cold:
        doubts.append(f"{_names(cold)} did not settle while warming up; see what else runs, and the temperature")
    return doubts if partial else doubts + _doubts_of_intervals(results)


def _doubts_of_machine(load: Load | None, governor: str | None) -> list[str]:
    doubts = []
    if load is None:
        doubts.append("what else ran meanwhile was not recorded")
    if load is not None and load.others > BUSY:
        doubts.append(f"other programs took {load.others:.2f} cores meanwhile; close them")
    if load is not None and load.stolen > STOLEN:
        doubts.append(f"the hypervisor took {load.stolen:.2f} cores; measure on hardware that is not shared")
    if governor not in (None, "performance"):
        doubts.append(f"the clock's governor is '{governor}'; fix it: cpupower frequency-set -g performance")
    return doubts


def _doubts_of_intervals(results: Sequence[Result]) -> list[str]:
    doubts = []
    rounds = min(len(result.blocks) for result in results)
    if rounds < ROUNDS:
        frames = CALLS * results[0].batch * ROUNDS
        doubts.append(f"{rounds} rounds are few for an interval; take --frames {frames} or more")
    unsure = max(results, key=lambda result: result.speed.width)
    width = unsure.speed.width
    if width > UNSURE:
        more = CALLS * unsure.batch * math.ceil(rounds * (width / UNSURE) ** 2)  # it narrows with the root of rounds
        mend = f"take --frames {more}" if width < HOPELESS else "first find out what disturbs the machine"
        doubts.append(f"the interval of {unsure.name}'s speed is {width:.0%} of it wide; {mend}")
    return doubts


def _names(results: Sequence[Result]) -> str:
    names = [result.name for result in results]
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} runners"
