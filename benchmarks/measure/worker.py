"""A runner in a process of its own: what runs there, and `RemoteRunner`, which asks for it from the command's process.

The command's process opens no runner: its threads would slow the others down (see `processes.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from enet_deploy.fit import fit_image, unfit_labels
from enet_deploy.images import UInt8Array
from enet_deploy.runners import Runner, Spec

from .feeds import CameraFeed, StillsFeed
from .machine import peak_memory
from .processes import Processes
from .profiling import Profile, profile

TRIALS = 3  # calls, after which a library has all the memory that it needs


@dataclass
class Worker:
    """An open runner and its camera images, in the worker's process.

    Attributes:
        batch: frames per call, set by `try_out`.
        feed: set by `use_feed`.
    """

    runner: Runner
    batch: int = 1
    feed: CameraFeed = field(default_factory=lambda: StillsFeed([]))


def open_worker(make: Callable[[], Runner]) -> Worker:
    """Open a runner."""
    return Worker(make())


def spec_of(worker: Worker) -> Spec:
    """The spec of its runner."""
    return worker.runner.spec


def try_out(worker: Worker, batch: int) -> int:
    """Set the batch size, label a few batches, and return the peak memory of the process in bytes.

    Its libraries are included. Camera images are not, because none has been sent yet.
    """
    worker.batch = batch
    frames = np.zeros((batch, *worker.runner.spec.size, 3), np.uint8)
    for _ in range(TRIALS):
        worker.runner.infer(frames)
    return peak_memory()


def use_feed(worker: Worker, make: Callable[[], CameraFeed]) -> None:
    """Set where its camera images come from."""
    worker.feed = make()


def _call(worker: Worker, method: str, frames: UInt8Array) -> Any:
    return getattr(worker.runner, method)(frames)


def _profile(worker: Worker, frames: UInt8Array, calls: int) -> Profile:
    return profile(worker.runner, frames, calls)


@dataclass(frozen=True)
class RemoteRunner:
    """A worker's runner, called from the command's process. Methods are those of `Runner`, errors too.

    Attributes:
        name: of the worker's process.
    """

    processes: Processes
    name: str
    spec: Spec

    @property
    def artifact(self) -> Path:
        return self.spec.artifact

    def preprocess(self, image: UInt8Array) -> UInt8Array:
        return fit_image(image, self.spec.size, self.spec.fit)[None]

    def infer(self, frames: UInt8Array) -> UInt8Array:
        labels: UInt8Array = self.processes.ask(self.name, _call, "infer", frames)
        return labels

    def logits(self, frames: UInt8Array) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = self.processes.ask(self.name, _call, "logits", frames)
        return logits

    def infer_with_confidence(self, frames: UInt8Array) -> tuple[UInt8Array, UInt8Array]:
        found: tuple[UInt8Array, UInt8Array] = self.processes.ask(self.name, _call, "infer_with_confidence", frames)
        return found

    def postprocess(self, labels: UInt8Array, size: tuple[int, int]) -> UInt8Array:
        return unfit_labels(labels, size, self.spec.fit, self.spec.classes.void)

    def profile(self, frames: UInt8Array, calls: int) -> Profile:
        """`profiling.profile`."""
        found: Profile = self.processes.ask(self.name, _profile, frames, calls)
        return found
