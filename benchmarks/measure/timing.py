"""Timing runners side by side: they take turns in blocks of calls, so that the machine's drift meets all of them alike.

The first half of this module runs in the workers' processes, the second half asks the workers.
"""

from __future__ import annotations

import gc
import math
import time
import timeit
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice

import numpy as np

from enet_deploy import console
from enet_deploy.classes import ClassList
from enet_deploy.commands.signals import interrupts_held
from enet_deploy.images import UInt8Array, overlay
from enet_deploy.runners import Runner

from .feeds import VIDEO_STAGES
from .processes import Processes
from .worker import Worker

DROPPED = 3  # calls at the start of a block: caches and spinning threads of the runner before it disturb them
CALLS = 10  # in a block; more if `BLOCK` seconds have to be filled
BLOCK = 2.0
LEAST_ROUNDS = 5

# A runner is warm when two consecutive windows of calls have the same median
WINDOW = 5
SETTLED = 0.05
PATIENCE = 5.0  # seconds

Times = dict[str, list[float]]  # stage -> seconds of each call


@dataclass(frozen=True)
class WarmUp:
    """How a runner was warmed up.

    Attributes:
        calls: number of calls that were not counted.
        settled: whether two consecutive windows of them had the same median, within 5 %.
        ms: median `infer` time of the last window.
    """

    calls: int
    settled: bool
    ms: float


def warm_up(worker: Worker, patience: float) -> WarmUp:
    """Call a runner until its times settle, or for `patience` seconds."""
    times: list[float] = []
    end = time.perf_counter() + patience
    with gc_paused():
        while True:
            times += (_timed_call(worker)["infer"] for _ in range(WINDOW))
            before, last = (
                float(np.median(part)) for part in (times[-2 * WINDOW : -WINDOW] or [math.inf], times[-WINDOW:])
            )
            settled = abs(last / before - 1) <= SETTLED
            if settled or (time.perf_counter() > end and len(times) >= 2 * WINDOW):
                return WarmUp(len(times), settled, last * 1e3)


def block(worker: Worker, calls: int) -> tuple[Times, float]:
    """Seconds of each stage of `calls` calls, and seconds per call of as many through `Runner.stream`."""
    times: Times = {stage: [] for stage in worker.feed.stages}
    with gc_paused():
        for _ in range(DROPPED):
            _timed_call(worker)
        for _ in range(calls):
            for stage, seconds in _timed_call(worker).items():
                times[stage].append(seconds)
        per_call = _stream(worker, calls)
    gc.collect()
    return times, per_call


def _timed_call(worker: Worker) -> dict[str, float]:
    """Seconds of each stage. `infer` returns host memory, so the device is done when it returns."""
    runner, feed = worker.runner, worker.feed
    images, decoding = zip(*(feed.read() for _ in range(worker.batch)), strict=True)
    start = time.perf_counter()
    batch = _preprocessed(runner, images)
    ready = time.perf_counter()
    labels = runner.infer(batch)
    inferred = time.perf_counter()
    found = _postprocessed(runner, labels, images)
    done = time.perf_counter()
    times = {"pre": ready - start, "infer": inferred - ready, "post": done - inferred}
    if feed.stages == VIDEO_STAGES:
        _draw(images, found, runner.spec.classes)
        times |= {"decode": sum(decoding), "overlay": time.perf_counter() - done}
    return {**times, "total": sum(times.values())}


def _stream(worker: Worker, calls: int) -> float:
    """Seconds per call of the same loop through `Runner.stream`, with the next batch in flight."""
    runner, feed = worker.runner, worker.feed
    waiting: deque[tuple[UInt8Array, ...]] = deque()

    def batches() -> Iterator[UInt8Array]:
        while True:
            waiting.append(tuple(feed.read()[0] for _ in range(worker.batch)))
            yield _preprocessed(runner, waiting[-1])

    stream = runner.stream(batches())
    start = 0.0
    for index, labels in enumerate(islice(stream, DROPPED + calls), start=1):
        images = waiting.popleft()
        found = _postprocessed(runner, labels, images)
        if feed.stages == VIDEO_STAGES:
            _draw(images, found, runner.spec.classes)
        if index == DROPPED:
            start = time.perf_counter() - feed.rewinding
    seconds = time.perf_counter() - feed.rewinding - start
    stream.close()
    return seconds / calls


def _preprocessed(runner: Runner, images: Sequence[UInt8Array]) -> UInt8Array:
    frames = [runner.preprocess(image) for image in images]
    return frames[0] if len(frames) == 1 else np.concatenate(frames)


def _postprocessed(runner: Runner, labels: UInt8Array, images: Sequence[UInt8Array]) -> list[UInt8Array]:
    return [runner.postprocess(own, image.shape[:2]) for own, image in zip(labels, images, strict=True)]


def _draw(images: Sequence[UInt8Array], labels: Sequence[UInt8Array], classes: ClassList) -> None:
    for image, own in zip(images, labels, strict=True):
        overlay(image, own, classes)


@contextmanager
def gc_paused() -> Iterator[None]:
    """Keep the garbage collector from running during the block."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def times(call: Callable[[], object], calls: int, dropped: int = DROPPED) -> list[float]:
    """Milliseconds of each of `calls` calls, after `dropped` calls that are not counted. No garbage collector runs."""
    return [1e3 * seconds for seconds in timeit.repeat(call, repeat=dropped + calls, number=1)[dropped:]]


@dataclass
class Timing:
    """The times of one runner, in milliseconds, without warm-up and dropped calls.

    Attributes:
        batch: frames per call.
        blocks: stage -> the calls of each block. "pre" resizes camera images to the network, "infer" is
            `Runner.infer`, "post" resizes the labels back, "total" is all; with a video also "decode" and "overlay".
        stream: per call, of each block of the same loop through `Runner.stream`.
    """

    batch: int
    warm_up: WarmUp
    blocks: dict[str, list[list[float]]] = field(default_factory=dict)
    stream: list[float] = field(default_factory=list)

    @property
    def compared(self) -> str:
        """The stage that runners are compared by: `infer`, with a video the whole loop."""
        return "total" if "decode" in self.blocks else "infer"

    def add(self, times: Times, per_call: float) -> None:
        """Add a block, in seconds."""
        for stage, seconds in times.items():
            self.blocks.setdefault(stage, []).append([1e3 * value for value in seconds])
        self.stream.append(1e3 * per_call)


def measure(
    processes: Processes, batches: Mapping[str, int], frames: int, seconds: float = 0.0
) -> tuple[dict[str, Timing], bool]:
    """Time workers that have a feed, in blocks that take turns.

    Args:
        processes: with a `Worker` for each name.
        batches: name -> frames per call.
        frames, seconds: the least that is counted of each.

    Returns timings by name, and whether they are complete: Ctrl-C ends the run after the last whole round. Raises
    KeyboardInterrupt if there is no whole round.
    """
    timings: dict[str, Timing] = {}
    by_frames = (math.ceil(frames / batch / CALLS) for batch in batches.values())
    rounds = max(LEAST_ROUNDS, *by_frames, math.ceil(seconds / BLOCK))
    calls: dict[str, int] = {}
    try:
        for name, batch in console.progress(batches.items(), "warming up", len(batches)):
            timings[name] = Timing(batch, processes.ask(name, warm_up, PATIENCE))
            needed = max(frames / batch, 1e3 * seconds / timings[name].warm_up.ms)
            calls[name] = math.ceil(needed / rounds)
        for done in console.progress(count(1), "timing", rounds):
            blocks = {name: processes.ask(name, block, calls[name]) for name in batches}
            with interrupts_held():  # a round counts whole or not at all
                for name, (found, per_call) in blocks.items():
                    timings[name].add(found, per_call)
            if done >= rounds and all(_seconds(timing) >= seconds for timing in timings.values()):
                break
    except KeyboardInterrupt:
        if len(timings) < len(batches) or not all(timing.stream for timing in timings.values()):
            raise
        return timings, False
    return timings, True


def _seconds(timing: Timing) -> float:
    return sum(map(sum, timing.blocks["infer"])) / 1e3
