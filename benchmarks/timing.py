"""Timing runners side by side: blocks of calls take turns, so that a drift of the machine meets them all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from enet_deploy.data import UInt8Array
from enet_deploy.runners import Runner

STAGES = ("pre", "infer", "post", "total")
DROPPED = 3  # calls at the start of a block: caches and threads of the runner before it are still about
UNSTABLE = 0.10  # spread of the blocks' medians, as a share of the median, from which a result is doubted


@dataclass(frozen=True)
class Timing:
    """Raw samples of one runner, in seconds, in the order taken; warm-up and dropped calls are not among them.

    Attributes:
        samples: stage -> seconds per call. "pre" resizes camera images to the network, "infer" is `Runner.infer`,
            "post" resizes the labels back, "total" is all three.
        blocks: lengths of the blocks that the samples came in.
        batch: frames per call.
    """

    samples: dict[str, list[float]]
    blocks: list[int]
    batch: int

    def summary(self, stage: str) -> dict[str, float]:
        """p50, p90, p99 and mean, in milliseconds."""
        ms = np.array(self.samples[stage]) * 1e3
        p50, p90, p99 = np.percentile(ms, (50, 90, 99)).tolist()
        return {"p50": p50, "p90": p90, "p99": p99, "mean": float(ms.mean())}

    @property
    def fps(self) -> float:
        """Frames per second of `infer`, called back to back."""
        return self.batch / float(np.mean(self.samples["infer"]))

    @property
    def spread(self) -> float:
        """As `spread`, of `infer`."""
        return spread(np.split(np.array(self.samples["infer"]), np.cumsum(self.blocks)[:-1]))


def spread(blocks: Sequence[Sequence[float] | npt.NDArray[np.float64]]) -> float:
    """How far the medians of blocks of samples lie apart, as a share of the median over all."""
    medians = [np.median(block) for block in blocks]
    return float((max(medians) - min(medians)) / np.median(np.concatenate(blocks)))


def measure(
    runners: Sequence[Runner],
    images: Sequence[UInt8Array],
    frames: int,
    batch: int = 1,
    rounds: int = 5,
    progress: Callable[[list[int]], Iterable[int]] = iter,
) -> list[Timing]:
    """Time every runner on the same images.

    Args:
        runners: open ones that take `batch` frames per call.
        images: camera images, (h, w, 3) uint8 BGR; used in turn.
        frames: least number of counted frames per runner.
        rounds: blocks that they are taken in.
        progress: wraps the list of turns, for a progress bar.
    """
    timings = [Timing({stage: [] for stage in STAGES}, [], batch) for _ in runners]
    with gc_paused():
        for turn in progress(list(range(rounds * len(runners)))):
            runner, timing = runners[turn % len(runners)], timings[turn % len(runners)]
            calls = _share(-(-frames // batch), rounds, turn // len(runners))
            batches = _batches(images, batch)
            for _ in range(DROPPED):
                _timed_call(runner, next(batches))
            for _ in range(calls):
                for stage, seconds in zip(STAGES, _timed_call(runner, next(batches)), strict=True):
                    timing.samples[stage].append(seconds)
            timing.blocks.append(calls)
            gc.collect()
    return timings


def _share(total: int, parts: int, index: int) -> int:
    """An even share of `total`, at least 1: 50 calls in 4 parts are 12, 13, 12, 13."""
    return max(1, total * (index + 1) // parts - total * index // parts)


def _batches(images: Sequence[UInt8Array], batch: int) -> Iterator[list[UInt8Array]]:
    start = 0
    while True:
        yield [images[(start + i) % len(images)] for i in range(batch)]
        start += batch


def _timed_call(runner: Runner, images: list[UInt8Array]) -> tuple[float, float, float, float]:
    """Seconds of pre, infer, post and all three. `infer` returns host memory, so the device is done when it does."""
    start = time.perf_counter()
    frames = [runner.preprocess(image) for image in images]
    batch = frames[0] if len(frames) == 1 else np.concatenate(frames)
    ready = time.perf_counter()
    labels = runner.infer(batch)
    done = time.perf_counter()
    for image, own in zip(images, labels, strict=True):
        runner.postprocess(own, (image.shape[0], image.shape[1]))
    end = time.perf_counter()
    return ready - start, done - ready, end - done, end - start


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
