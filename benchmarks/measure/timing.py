"""Timing runners side by side: blocks of calls take turns, so that a drift of the machine meets them all alike.

The first half of this module runs in the process of each runner (`processes.py`), the second half asks them.
"""

from __future__ import annotations

import gc
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from enet_deploy import console
from enet_deploy.classes import ClassList
from enet_deploy.errors import InputError
from enet_deploy.images import UInt8Array, overlay
from enet_deploy.runners import Runner, Spec

from .machine import peak_memory
from .processes import Processes

STAGES = ("pre", "infer", "post", "total")
VIDEO_STAGES = ("decode", "pre", "infer", "post", "overlay", "total")

DROPPED = 3  # calls at the start of a block: caches and threads of the runner before it are still about
CALLS = 10  # in a block, or as many as take `BLOCK` seconds where there are seconds to fill
BLOCK = 2.0
LEAST_ROUNDS = 5

# A runner is warm when two windows of calls one after the other have the same median
WINDOW = 5
SETTLED = 0.05
PATIENCE = 5.0  # seconds

Times = dict[str, list[float]]  # stage -> seconds of each call


class Source(Protocol):
    """Where camera images come from."""

    @property
    def stages(self) -> tuple[str, ...]:
        """What is timed of a call, in order."""

    @property
    def rewinding(self) -> float:
        """Seconds so far that do not count."""

    def read(self) -> tuple[UInt8Array, float]:
        """An image, (h, w, 3) uint8 BGR, and the seconds that decoding it took."""


class Stills:
    """Images in turn, of which only the network and what is around it is timed."""

    stages = STAGES
    rewinding = 0.0

    def __init__(self, images: Sequence[UInt8Array]) -> None:
        self.images = images
        self._next = 0

    def read(self) -> tuple[UInt8Array, float]:
        image = self.images[self._next % len(self.images)]
        self._next += 1
        return image, 0.0


class Video:
    """A video's frames over and over: the loop of a robot, from decoding to an overlay.

    Raises InputError where OpenCV finds no frame in the file.

    Attributes:
        rewinding: seconds spent on beginning again, which is not part of a robot's loop.
    """

    stages = VIDEO_STAGES

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.rewinding = 0.0
        self._capture = cv2.VideoCapture(str(path))

    def read(self) -> tuple[UInt8Array, float]:
        start = time.perf_counter()
        found, image = self._capture.read()
        if not found:
            ended = time.perf_counter()
            self._capture = cv2.VideoCapture(str(self.path))
            self.rewinding += time.perf_counter() - ended
            start = time.perf_counter()
            found, image = self._capture.read()
        seconds = time.perf_counter() - start
        if not found:
            raise InputError(f"{self.path} has no frame that OpenCV can decode, expected a video file")
        return image.astype(np.uint8, copy=False), seconds


@dataclass
class Subject:
    """An open runner in a process of its own, and what it is fed with.

    Attributes:
        batch: frames per call, set by `try_out`.
        source: set by `feed`.
    """

    runner: Runner
    batch: int = 1
    source: Source = field(default_factory=lambda: Stills([]))


@dataclass(frozen=True)
class WarmUp:
    """Attributes:
    calls: that were made before anything was counted.
    settled: whether two windows of them one after the other had the same median, within 5 %.
    ms: median of the last window, of `infer`.
    """

    calls: int
    settled: bool
    ms: float


def open_subject(make: Callable[[], Runner]) -> Subject:
    """Open a runner."""
    return Subject(make())


def spec_of(subject: Subject) -> Spec:
    """What was opened."""
    return subject.runner.spec


def try_out(subject: Subject, batch: int) -> int:
    """Label a few batches of so many frames, as all are from now on; the peak memory of the process, in bytes.

    Its libraries are in that, and no camera image, as none has come yet.
    """
    subject.batch = batch
    frames = np.zeros((batch, *subject.runner.spec.size, 3), np.uint8)
    for _ in range(DROPPED):
        subject.runner.infer(frames)
    return peak_memory()


def feed(subject: Subject, make: Callable[[], Source]) -> None:
    """Give it its images."""
    subject.source = make()


def warm_up(subject: Subject) -> WarmUp:
    """Call it until it is as fast as it gets, or patience ends."""
    times: list[float] = []
    end = time.perf_counter() + PATIENCE
    with gc_paused():
        while True:
            times += (_timed_call(subject)["infer"] for _ in range(WINDOW))
            before, last = (
                float(np.median(part)) for part in (times[-2 * WINDOW : -WINDOW] or [math.inf], times[-WINDOW:])
            )
            settled = abs(last / before - 1) <= SETTLED
            if settled or (time.perf_counter() > end and len(times) >= 2 * WINDOW):
                return WarmUp(len(times), settled, last * 1e3)


def block(subject: Subject, calls: int) -> tuple[Times, float]:
    """Seconds of each stage of as many calls, and seconds per call of as many in `stream()`."""
    times: Times = {stage: [] for stage in subject.source.stages}
    with gc_paused():
        for _ in range(DROPPED):
            _timed_call(subject)
        for _ in range(calls):
            for stage, seconds in _timed_call(subject).items():
                times[stage].append(seconds)
        per_call = _stream(subject, calls)
    gc.collect()
    return times, per_call


def _timed_call(subject: Subject) -> dict[str, float]:
    """Seconds of each stage. `infer` returns host memory, so the device is done when it does."""
    runner, source = subject.runner, subject.source
    images, decoding = zip(*(source.read() for _ in range(subject.batch)), strict=True)
    start = time.perf_counter()
    batch = _preprocessed(runner, images)
    ready = time.perf_counter()
    labels = runner.infer(batch)
    inferred = time.perf_counter()
    found = _postprocessed(runner, labels, images)
    done = time.perf_counter()
    times = {"pre": ready - start, "infer": inferred - ready, "post": done - inferred}
    if source.stages == VIDEO_STAGES:
        _draw(images, found, runner.spec.classes)
        times |= {"decode": sum(decoding), "overlay": time.perf_counter() - done}
    return {**times, "total": sum(times.values())}


def _stream(subject: Subject, calls: int) -> float:
    """Seconds per call of the same loop with the next batch in flight."""
    runner, source = subject.runner, subject.source
    waiting: deque[tuple[UInt8Array, ...]] = deque()

    def batches() -> Iterator[UInt8Array]:
        while True:
            waiting.append(tuple(source.read()[0] for _ in range(subject.batch)))
            yield _preprocessed(runner, waiting[-1])

    stream = runner.stream(batches())
    start = 0.0
    for index, labels in enumerate(islice(stream, DROPPED + calls), start=1):
        images = waiting.popleft()
        found = _postprocessed(runner, labels, images)
        if source.stages == VIDEO_STAGES:
            _draw(images, found, runner.spec.classes)
        if index == DROPPED:
            start = time.perf_counter() - source.rewinding
    seconds = time.perf_counter() - source.rewinding - start
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
    """Keep the garbage collector from running; afterwards it is as it was."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def times(call: Callable[[], object], calls: int, dropped: int = DROPPED) -> list[float]:
    """Milliseconds of each of as many calls, after those that are dropped."""
    found = []
    with gc_paused():
        for _ in range(dropped):
            call()
        for _ in range(calls):
            start = time.perf_counter()
            call()
            found.append((time.perf_counter() - start) * 1e3)
    return found


@dataclass
class Timing:
    """What was timed of one runner, in milliseconds; warm-up and dropped calls are not among it.

    Attributes:
        batch: frames per call.
        blocks: stage -> calls of each block. "pre" resizes camera images to the network, "infer" is `Runner.infer`,
            "post" resizes the labels back, "total" is all; of a video also "decode" and "overlay".
        stream: per call, of each block of the same loop through `Runner.stream`.
    """

    batch: int
    warm_up: WarmUp
    blocks: dict[str, list[list[float]]] = field(default_factory=dict)
    stream: list[float] = field(default_factory=list)

    @property
    def judged(self) -> str:
        """The stage that runners are held against each other by: `infer`, of a video the whole loop."""
        return "total" if "decode" in self.blocks else "infer"

    def add(self, times: Times, per_call: float) -> None:
        """Count a block."""
        for stage, seconds in times.items():
            self.blocks.setdefault(stage, []).append([1e3 * value for value in seconds])
        self.stream.append(1e3 * per_call)


def measure(
    processes: Processes,
    batches: Mapping[str, int],
    frames: int,
    seconds: float = 0.0,
) -> tuple[dict[str, Timing], bool]:
    """Time subjects that were fed, in blocks that take turns.

    Args:
        processes: with an `open_subject` for each name.
        batches: name -> frames per call.
        frames, seconds: that are counted of each at least.

    Returns timings by name, and whether they are whole: Ctrl-C ends with the rounds that were. Raises
    KeyboardInterrupt where there was none.
    """
    timings: dict[str, Timing] = {}
    by_frames = (math.ceil(frames / batch / CALLS) for batch in batches.values())
    rounds = max(LEAST_ROUNDS, *by_frames, math.ceil(seconds / BLOCK))
    calls: dict[str, int] = {}
    try:
        for name, batch in console.progress(batches.items(), "warming up", len(batches)):
            timings[name] = Timing(batch, processes.ask(name, warm_up))
            needed = max(frames / batch, 1e3 * seconds / timings[name].warm_up.ms)
            calls[name] = math.ceil(needed / rounds)
        for done in console.progress(count(1), "timing", rounds):
            blocks = {name: processes.ask(name, block, calls[name]) for name in batches}
            for name, (found, per_call) in blocks.items():  # a round counts whole or not at all
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
