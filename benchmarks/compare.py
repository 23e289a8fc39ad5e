"""Two runs side by side: which runner became faster, apart from what changed about the machine.

Runners that are the same in both runs (file, library, options) are the ruler: whatever changed for them is the
machine's change, and is taken out of the others'. Without such a runner nobody can tell the two apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from enet_deploy.errors import InputError

from .result import Result
from .run import Images, Run
from .statistics import Speed, speed
from .verdict import HOPELESS, MARGIN, in_words

COMPARED = ("speedup", "speedup_low", "speedup_high", "miou_drop", "agreement_drop")  # of --require
_MACHINE = ("processor", "cores", "governor", "omp_num_threads", "gpus")  # of an environment
_MOMENTARY = {"sm_clock_mhz", "memory_clock_mhz"}  # of a GPU, before the run
_PACKAGES = {
    "torch": ("torch",),
    "ort": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "opencv": ("opencv-python", "opencv-python-headless"),
    "trt": ("tensorrt", "tensorrt-rtx"),
}


@dataclass(frozen=True)
class Change:
    """A runner in both runs.

    Attributes:
        is_same: whether file, library and options are the same, so that it can only differ by the machine, or by this
            project's code if that changed.
        speed: how many times faster it became; the machine's change is taken out unless `is_same`. None if the two
            cannot be told apart.
    """

    old: Result
    new: Result
    is_same: bool
    speed: Speed | None

    @property
    def figures(self) -> dict[str, float | None]:
        """By the names of `COMPARED`; drops are in points from the first run to the second."""
        found: dict[str, float | None] = dict.fromkeys(COMPARED)
        if self.speed is not None:
            found |= {"speedup": self.speed.ratio, "speedup_low": self.speed.low, "speedup_high": self.speed.high}
        old, new = self.old.accuracy, self.new.accuracy
        # an interrupted run may have scored fewer images
        if old is not None and new is not None and old.pixels == new.pixels:
            found["miou_drop"] = 100 * (old.miou - new.miou)
        before, after = self.old.parity, self.new.parity
        if before is not None and after is not None and len(before.frames) == len(after.frames):
            found["agreement_drop"] = 100 * (before.agreement - after.agreement)
        return found


@dataclass(frozen=True)
class RunComparison:
    """What `enet-bench compare` says.

    Attributes:
        changes: of the runners that both runs have.
        only_first, only_second: names of the other runners.
        notes: differences of machine, versions and code.
        doubts: what casts doubt on either run, or on what their comparison rests on.
        is_one_machine: whether both ran on the same kind of machine, with the same settings.
    """

    changes: tuple[Change, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    notes: tuple[str, ...]
    doubts: tuple[str, ...]
    is_one_machine: bool


def compare_runs(old: Run, new: Run) -> RunComparison:
    """Compare two runs. Raises InputError if their runners saw different images."""
    _require_same_images(old.images, new.images)
    before, after = ([*run.results, *run.sweep] for run in (old, new))
    pairs = [(other, each) for each in after if (other := _counterpart(each, after, before)) is not None]
    is_one_machine = _machine(old.environment) == _machine(new.environment)
    same = [pair for pair in pairs if _is_same(*pair, old, new)] if is_one_machine else []
    doubts = [f"{which} run: {doubt}" for which, run in (("first", old), ("second", new)) for doubt in _doubts(run)]
    doubts += _doubts_of_rulers(pairs, same, old.environment, new.environment)
    return RunComparison(
        changes=tuple(Change(*pair, pair in same, _speed(pair, same)) for pair in pairs),
        only_first=tuple(each.name for each in before if _counterpart(each, before, after) is None),
        only_second=tuple(each.name for each in after if _counterpart(each, after, before) is None),
        notes=tuple(_notes(old.environment, new.environment)),
        doubts=tuple(doubts),
        is_one_machine=is_one_machine,
    )


def _require_same_images(old: Images | None, new: Images | None) -> None:
    if old != new and old is not None and new is not None:
        raise InputError(
            f"the first run saw {_images(old)}, the second {_images(new)}, expected the same; bench both with the same "
            "--data, --split and --from-video"
        )


def _images(images: Images) -> str:
    what = images.video or (f"{images.split} of {images.data}" if images.data else "drawn scenes")
    return f"{images.count} images of {what}, {images.size[0]}x{images.size[1]}"


def _doubts(run: Run) -> Iterator[str]:
    if run.partial:
        yield "it was interrupted"
    if run.images is None:
        yield "it was not recorded which images it saw"
    yield from run.stability


Pair = tuple[Result, Result]  # of the first run, of the second


def _doubts_of_rulers(
    pairs: Sequence[Pair], same: Sequence[Pair], old: dict[str, Any], new: dict[str, Any]
) -> Iterator[str]:
    if not same:  # nothing is claimed
        return
    commits = {each["commit"] for each in (old, new)}
    versions = {each.get("packages", {}).get("enet-deploy") for each in (old, new)}
    if len(commits) > 1 or len(versions) > 1 or any(commit.endswith("-dirty") for commit in commits):
        yield "the code of this project is not the same in both, and may have changed runners of the same file"
    if any(len(_rulers(pair, same)) == 1 for pair in pairs if pair not in same):
        yield (
            "one runner is the ruler: whether the machine changed alike for others is not known; bench two that do not "
            "change"
        )


def _is_same(old: Result, new: Result, old_run: Run, new_run: Run) -> bool:
    """Whether file, library and options are the same. This project's code may still differ (`_doubts_of_rulers`)."""
    versions = [run.environment.get("packages", {}) for run in (old_run, new_run)]
    packages = _PACKAGES.get(new.backend, tuple({**versions[0], **versions[1]}))
    return (
        old.artifact_sha256 == new.artifact_sha256 != ""
        and old.options == new.options
        and old.runtime == new.runtime
        and old.timed == new.timed
        and all(versions[0].get(name) == versions[1].get(name) for name in packages)
    )


def _speed(pair: Pair, same: Sequence[Pair]) -> Speed | None:
    """How many times faster a runner became, measured by those that are the same; as timed if it is one of these."""
    old, new = pair
    if pair in same:
        return new.speed_over(old, side_by_side=False)
    rulers = _rulers(pair, same)
    if not rulers:
        return None
    relative = [_medians(each) / _ruler([both[run] for both in rulers]) for run, each in enumerate(pair)]
    found = speed(*([[value] for value in values.tolist()] for values in relative), side_by_side=False)
    error = _error(rulers)
    return Speed(found.ratio, found.low / error, found.high * error)


def _rulers(pair: Pair, same: Sequence[Pair]) -> list[Pair]:
    """Those that a pair can be measured by: they have as many rounds."""
    return [each for each in same if all(len(a.blocks) == len(b.blocks) for a, b in zip(each, pair, strict=True))]


def _medians(result: Result) -> npt.NDArray[np.float64]:
    """(rounds,) median time per frame of each round."""
    return np.array([np.median(calls) / result.batch for calls in result.rounds])


def _ruler(results: Sequence[Result]) -> npt.NDArray[np.float64]:
    """(rounds,) geometric mean of the runners' medians in each round, which ran side by side."""
    mean: npt.NDArray[np.float64] = np.exp(np.mean([np.log(_medians(each)) for each in results], axis=0))
    return mean


def _error(same: Sequence[Pair]) -> float:
    """The largest factor by which runners that are the same differ in how the machine changed for them, at least 1.

    The machine does not change alike for all, so a changed runner may differ from the ruler by this much too. It is 1
    if there is one ruler, as nothing is known then.
    """
    factors = [math.log(np.median(_medians(old)) / np.median(_medians(new))) for old, new in same]
    return math.exp(max(factors) - min(factors))


def _counterpart(result: Result, own: Sequence[Result], others: Sequence[Result]) -> Result | None:
    """The same runner in the other run. Its file may have another name, unless only the name tells it from another."""
    same = [other for other in others if runner_kind(other) == runner_kind(result)]
    if len(same) == 1 and sum(runner_kind(each) == runner_kind(result) for each in own) == 1:
        return same[0]
    return next((other for other in same if other.name == result.name), None)


def runner_kind(result: Result) -> tuple[Any, ...]:
    """What has to be the same for two results to be of one runner, apart from the file."""
    layout = str(result.qdq_layout)
    return (result.backend, result.device, result.precision, layout, result.size, result.batch)


def _machine(environment: dict[str, Any]) -> dict[str, Any]:
    """What has to be the same for two runs to be of one machine, with the same settings."""
    gpus = environment.get("gpus") or []
    lasting = [{name: value for name, value in gpu.items() if name not in _MOMENTARY} for gpu in gpus]
    return {name: environment.get(name) for name in _MACHINE} | {"gpus": lasting}


def _notes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Each change of machine, code or versions."""
    before, after = ({**_machine(each), "commit": each.get("commit")} for each in (old, new))
    for name, was in before.items():
        if was != after[name]:
            yield f"{name.replace('_', ' ')} was {was}, is {after[name]}"
    versions = old.get("packages", {}), new.get("packages", {})
    for package in sorted({*versions[0], *versions[1]}):
        was, now = (each.get(package, "absent") for each in versions)
        if was != now:
            yield f"{package} was {was}, is {now}"


def as_lines(found: RunComparison) -> list[str]:
    """The comparison in words: a line for each runner, then what it rests on."""
    lines = [_line(change, bool(found.doubts)) for change in found.changes]
    lines += [f"{name}: only in the {which}" for name, which in _alone(found)]
    if any(change.speed is None for change in found.changes):
        lines.append(_why_not(found))
    lines += [f"note: {note}" for note in found.notes]
    return lines + [f"in doubt: {doubt}" for doubt in found.doubts]


def _alone(found: RunComparison) -> Iterator[tuple[str, str]]:
    yield from ((name, "second") for name in found.only_second)
    yield from ((name, "first") for name in found.only_first)


def _line(change: Change, in_doubt: bool) -> str:
    points = change.figures["miou_drop"]
    quality = "" if points is None else f"; mIoU {0 - points:+.2f} points"
    times = f"{change.old.latency_ms.p50:.1f} -> {change.new.latency_ms.p50:.1f} ms"
    if change.speed is None:
        said = "cannot tell whether it became faster"
    elif change.is_same:
        said = f"unchanged in file, library and options, so the machine: {_difference(change.speed)}"
    else:
        said = f"{_difference(change.speed)}, apart from the machine's change"
    said += " (in doubt)" if in_doubt and change.speed is not None else ""
    return f"{change.new.name}: {said}; {times}{quality}"


def _difference(gain: Speed) -> str:
    """ "1.25x faster (95 % CI 1.22 to 1.27)", or that there is none, or that none is shown, or that one cannot tell."""
    if not gain.is_difference:
        shown = "no difference shown" if gain.width < HOPELESS else "too uncertain to tell"
        is_none = gain.low >= 1 / MARGIN and gain.high <= MARGIN
        return f"{'no difference' if is_none else shown}, {in_words(gain)}"
    if gain.ratio > 1:
        return in_words(gain).replace("x", "x faster", 1)
    return in_words(Speed(1 / gain.ratio, 1 / gain.high, 1 / gain.low)).replace("x", "x slower", 1)


def _why_not(found: RunComparison) -> str:
    if not found.is_one_machine:
        return "cannot tell a file's change from the machine's: the runs are of different machines or settings"
    return (
        "cannot tell a file's change from the machine's: no runner is the same in both runs, by file (SHA-256), "
        "library and options; bench both files in one run, or a file that does not change beside each"
    )


def judged_figures(found: RunComparison) -> dict[str, dict[str, float | None]]:
    """Runner -> its figures that --require can name; only of the runners that changed.

    Raises InputError if there is none, or if the machine's change cannot be told from theirs.
    """
    changed = [change for change in found.changes if not change.is_same]
    if not changed:
        raise InputError(
            "--require has nothing to judge: no runner changed, or none is in both runs; compare other runs"
        )
    if any(change.speed is None for change in changed):
        raise InputError(f"--require cannot be judged: {_why_not(found)}")
    return {change.new.name: change.figures for change in changed}
