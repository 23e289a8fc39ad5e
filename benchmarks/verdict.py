"""What a run says to who has to choose: the best trade, whether the figures can be trusted, and a gate for CI."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from enet_deploy.errors import InputError, RequirementError

from .statistics import Speed, compare

DROP = 0.3  # points of mIoU that a faster runner may cost
SAME = 5e-4  # difference of mIoU, or of the share of equal labels, that is nobody's reason to take a slower runner
LEAST_AGREEMENT = 0.99  # in place of it where there is no truth

UNSTABLE = 0.10  # spread of the rounds' medians, as a share of the median, from which a result is doubted
BUSY = 0.10  # cores that other programs may take
STOLEN = 0.02  # cores that the hypervisor may take
UNSURE = 0.10  # width of a ratio's interval, as a share of it
HOPELESS = 0.5  # such a width, from which nothing can be told
ROUNDS = 10  # from which an interval is one

Result = dict[str, Any]
Run = dict[str, Any]


def figures(result: Result, reference: dict[str, Any] | None) -> dict[str, float | None]:
    """Every figure of a runner, None where it was not measured; drops are in points against PyTorch fp32."""
    parity, accuracy = result["parity"] or {}, result["accuracy"] or {}
    truth = (reference or {}).get("accuracy") or {}
    flips = parity.get("flips") or {}
    unpool = parity.get("unpool_flips")
    speed = result["speed"]
    found: dict[str, float | None] = {
        "p50_ms": result["latency_ms"]["p50"],
        "p90_ms": result["latency_ms"]["p90"],
        "p99_ms": result["latency_ms"]["p99"],
        "fps": result["fps"],
        "stream_fps": result["stream_fps"],
        "speedup": speed["ratio"],
        "speedup_low": speed["low"],
        "speedup_high": speed["high"],
        "model_mb": result["model_bytes"] / 1e6,
        "peak_mb": result["peak_bytes"] / 1e6,
        "agreement": parity.get("agreement"),
        "boundary_flips": flips.get("boundary"),
        "interior_flips": flips.get("interior"),
        "max_abs_logit": parity.get("max_abs_logit"),
        "p99_abs_logit": parity.get("p99_abs_logit"),
        "unpool_flips": max(unpool.values()) if unpool else None,
    }
    for name in ACCURACY:
        found[name] = accuracy.get(name)
        found[f"{name}_drop"] = 100 * (truth[name] - accuracy[name]) if name in accuracy and name in truth else None
    return found


ACCURACY = ("pixel_accuracy", "dice", "miou")


def accuracy_of(result: Result) -> float | None:
    """What is held against the speed: mIoU where there is a truth, else the share of labels equal to PyTorch's."""
    if result["accuracy"]:
        return float(result["accuracy"]["miou"])
    return float(result["parity"]["agreement"]) if result["parity"] else None


def front(results: Sequence[Result]) -> list[Result]:
    """The Pareto front, fastest first: those that nothing faster equals in accuracy, to `SAME`."""
    known = [result for result in results if accuracy_of(result) is not None]
    chosen: list[Result] = []
    for result in sorted(known, key=lambda r: (ms_per_frame(r), -_accuracy(r))):
        if not chosen or _accuracy(result) > _accuracy(chosen[-1]) + SAME:
            chosen.append(result)
    return chosen


def _accuracy(result: Result) -> float:
    return accuracy_of(result) or 0.0


def ms_per_frame(result: Result) -> float:
    """Median."""
    return float(result["latency_ms"]["p50"] / result["batch"])


def verdict(run: Run) -> list[dict[str, Any]]:
    """For each device: the runners on its front, the one to take, and a sentence that says why."""
    found = []
    for device in dict.fromkeys(result["device"] for result in run["results"]):
        results = [result for result in run["results"] if result["device"] == device]
        best = _best([result for result in results if _keeps(result, run)])
        found.append(
            {
                "device": device,
                "front": [result["name"] for result in front(results)],
                "take": best and best["name"],
                "advice": " ".join(_advice(best, results, run)),
            }
        )
    return found


def _best(kept: Sequence[Result]) -> Result | None:
    """The fastest of those that keep the labels; one in fp32 where this run cannot tell it from that."""
    if not kept:
        return None
    best = min(kept, key=ms_per_frame)
    exact = min((result for result in kept if result["precision"] == "fp32"), key=ms_per_frame, default=best)
    return best if compare(exact, best, side_by_side=True).low > 1 else exact


def _keeps(result: Result, run: Run) -> bool:
    """Whether a runner is as accurate as the network was; where nothing at all is known of that, it counts as such."""
    drop = _drop(result, run)
    if drop is not None:
        return drop <= DROP
    return not result["parity"] or result["parity"]["agreement"] >= LEAST_AGREEMENT


def _advice(best: Result | None, results: Sequence[Result], run: Run) -> list[str]:
    if best is None:
        return ["no runner keeps the network's labels; deploy none of them."]
    exact = [r for r in results if r["precision"] == "fp32" and r is not best]
    others = [r for r in exact if r["backend"] != "torch"] or exact
    sentences = [f"take {best['name']}: {best['fps']:.0f} FPS"]
    if others:
        plain = min(others, key=ms_per_frame)
        gain = compare(plain, best, side_by_side=True)
        sentences[0] += f", {in_words(gain)} the speed of {plain['name']}, {_cost(best, run)}"
    sentences[0] += "."
    return sentences + [f"{reason}." for reason in _refused(best, results, run)]


def in_words(gain: Speed) -> str:
    """ "1.23x (95 % CI 1.20 to 1.26)"."""
    return f"{gain.ratio:.2f}x (95 % CI {gain.low:.2f} to {gain.high:.2f})"


def _drop(result: Result, run: Run) -> float | None:
    """Points of mIoU against PyTorch fp32, without that against the best of the run; None without a truth."""
    if not result["accuracy"] or (run["reference"] and run["reference"]["accuracy"]):
        return figures(result, run["reference"])["miou_drop"]
    best = max(float(each["accuracy"]["miou"]) for each in run["results"] if each["accuracy"])
    return 100 * (best - float(result["accuracy"]["miou"]))


def _cost(result: Result, run: Run) -> str:
    drop = _drop(result, run)
    if drop is not None:
        return f"for {0 - drop:+.2f} points of mIoU"
    if result["parity"]:
        return f"for {result['parity']['agreement']:.2%} of PyTorch's labels"
    return "with labels that nothing was held against"


def _refused(best: Result, results: Sequence[Result], run: Run) -> list[str]:
    """Why int8 or half, which one would expect to be faster, are not what is advised."""
    reasons = []
    for kind in {"fp32": ("int8", "fp16"), "fp16": ("int8",)}.get(best["precision"], ()):
        tried = [result for result in results if result["precision"].endswith(kind)]
        if not tried:
            continue
        fastest = min(tried, key=ms_per_frame)
        if _keeps(fastest, run):
            gain = compare(best, fastest, side_by_side=True)
            why = f"{fastest['name']} is at {in_words(gain)} of {best['name']}'s speed"
        else:
            drop = _drop(fastest, run)
            if drop is None:
                agreement = fastest["parity"]["agreement"]
                why = f"{fastest['name']} keeps {agreement:.2%} of PyTorch's labels, fewer than {LEAST_AGREEMENT:.0%}"
            else:
                why = f"{fastest['name']} costs {drop:.2f} points of mIoU, more than {DROP}"
        reasons.append(f"{kind.upper()} is not worth it here, because {why}")
    return reasons


def stability(run: Run) -> list[str]:
    """What casts doubt on a run and what to do about it; nothing where it can be trusted."""
    doubts = []
    if run["load"] is None:
        doubts.append("what else ran meanwhile was not recorded")
    load = run["load"] or {"others": 0.0, "stolen": 0.0}
    if load["others"] > BUSY:
        doubts.append(f"other programs took {load['others']:.2f} cores meanwhile; close them")
    if load["stolen"] > STOLEN:
        doubts.append(f"the hypervisor took {load['stolen']:.2f} cores; measure on hardware that is not shared")
    governor = run["environment"].get("governor")
    if governor not in (None, "performance"):
        doubts.append(f"the clock's governor is '{governor}'; fix it: cpupower frequency-set -g performance")
    shaky = [result for result in run["results"] if result["spread"] > UNSTABLE]
    if shaky:
        most = max(result["spread"] for result in shaky)
        doubts.append(f"rounds of {_list(shaky)} differ by up to {most:.0%}; read ratios, not times")
    cold = [result for result in run["results"] if result["warm_up"] and not result["warm_up"]["settled"]]
    if cold:
        doubts.append(f"{_list(cold)} did not settle while warming up; see what else runs, and the temperature")
    fewest = min(run["results"], key=lambda result: len(result["blocks"]))
    if len(fewest["blocks"]) < ROUNDS and not run["partial"]:
        doubts.append(f"{len(fewest['blocks'])} rounds are few for an interval; take --frames {10 * ROUNDS} or more")
    unsure = max(run["results"], key=lambda result: Speed(**result["speed"]).width)
    width = Speed(**unsure["speed"]).width
    if width > UNSURE and not run["partial"]:
        frames = len(unsure["samples_ms"]) * unsure["batch"]
        more = 100 * math.ceil(frames * (width / UNSURE) ** 2 / 100)  # an interval narrows with the root of rounds
        mend = f"take --frames {more}" if width < HOPELESS else "first find out what disturbs the machine"
        doubts.append(f"the interval of {unsure['name']}'s speed is {width:.0%} of it wide; {mend}")
    return doubts


def _list(results: Sequence[Result]) -> str:
    names = [result["name"] for result in results]
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} runners"


_SPEED = ("p50_ms", "p90_ms", "p99_ms", "fps", "stream_fps", "speedup", "speedup_low", "speedup_high")
_PARITY = ("agreement", "boundary_flips", "interior_flips", "max_abs_logit", "p99_abs_logit", "unpool_flips")
_TRUTH = tuple(name for each in ACCURACY for name in (each, f"{each}_drop"))
FIGURES = (*_SPEED, "model_mb", "peak_mb", *_PARITY, *_TRUTH)
_NEEDS_REFERENCE = {*_PARITY, *(f"{name}_drop" for name in ACCURACY)}
_SHARES = {"agreement", "boundary_flips", "interior_flips", "unpool_flips", *ACCURACY}
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip


@dataclass(frozen=True)
class Requirement:
    """One condition of --require: `figure` has to compare so with `bound`."""

    figure: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.figure}{self.comparison}{self.bound:g}"


def parse_requirements(text: str) -> list[Requirement]:
    """ "miou_drop<=0.3,p90_ms<=20" -> conditions. Raises InputError for what is no condition or no known figure."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*(<=|>=|<|>)\s*(-?[\d.]+(?:[eE][+-]?\d+)?)\s*", part)
        if match is None:
            raise InputError(f"--require '{part}', expected FIGURE<=NUMBER or FIGURE>=NUMBER, such as miou_drop<=0.3")
        figure, comparison, bound = match.groups()
        if figure not in FIGURES:
            raise InputError(f"--require {figure}, expected one of {', '.join(FIGURES)}")
        try:
            found.append(Requirement(figure, comparison, float(bound)))
        except ValueError:
            raise InputError(f"--require {figure}{comparison}{bound}, expected a number") from None
        if math.isinf(found[-1].bound):
            raise InputError(f"--require {figure}{comparison}{bound}, expected a finite number")
        if figure in _SHARES and not 0 <= found[-1].bound <= 1:
            raise InputError(f"--require {found[-1]}, expected a share from 0 to 1, such as 0.999")
    return found


def require_measurable(requirements: Sequence[Requirement], truth: bool, reference: bool) -> None:
    """Raise InputError for a condition on what the run will not measure."""
    for requirement in requirements:
        if requirement.figure in _TRUTH and not truth:
            raise InputError(f"--require {requirement} needs the truth; give --data too")
        if requirement.figure in _NEEDS_REFERENCE and not reference:
            raise InputError(f"--require {requirement} needs the weights that all artifacts came from; see --weights")


def check(run: Run, requirements: Sequence[Requirement]) -> None:
    """Raise RequirementError with all that is not met, InputError where a figure is not known.

    It holds for every runner but PyTorch fp32, which is what they are held against, unless nothing else ran.
    """
    judged = [r for r in run["results"] if r["backend"] != "torch"] or run["results"]
    broken = []
    for result in judged:
        own = result is run["results"][0]  # the baseline, which is no faster than itself
        known = figures(result, run["reference"])
        for requirement in requirements:
            if own and requirement.figure.startswith("speedup"):
                continue
            value = known[requirement.figure]
            if value is None:
                raise InputError(f"--require {requirement}: {result['name']} has no {requirement.figure}")
            if not _COMPARISONS[requirement.comparison](value, requirement.bound):
                broken.append(f"{result['name']} has {requirement.figure} {value:.6g}, required {requirement}")
    if broken:
        raise RequirementError("; ".join(broken))
