"""A build of minutes: show how far it is, and let Ctrl-C end it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...console import unfiltered

Progress = Callable[[str, float], None]  # called with the name of the phase and the finished share in [0, 1]


@contextmanager
def cancelled_by_ctrl_c() -> Iterator[threading.Event]:
    """Let Ctrl-C set an event during the block: an exception cannot pass through TensorRT's C++ code."""
    cancelled = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield cancelled
        return
    earlier = signal.signal(signal.SIGINT, lambda *_: cancelled.set())
    try:
        yield cancelled
    finally:
        signal.signal(signal.SIGINT, earlier)


def make_monitor(trt: Any, cancelled: threading.Event, progress: Progress) -> Any:
    """Create the object that gets each step of the build. It reports progress, and ends the build after Ctrl-C."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._phases: dict[str, tuple[int, int]] = {}  # active phases, outer ones first: name -> (done, steps)
            self._share = 0.0

        def phase_start(self, phase_name: str, _parent: str | None, num_steps: int) -> None:
            self._phases[phase_name] = (0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            _, steps = self._phases.get(phase_name, (0, step + 1))
            self._phases[phase_name] = (step + 1, steps)
            self._share = max(self._share, _share(list(self._phases.values())))  # nested phases may share a step
            progress(phase_name, self._share)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

    return Monitor()


def _share(phases: list[tuple[int, int]]) -> float:
    """Return the finished share of a build. Each phase (done, steps) is one step of the phase before it."""
    share, whole = 0.0, 1.0
    for done, steps in phases:
        share += whole * done / max(steps, 1)  # a phase may have 0 steps
        whole /= max(steps, 1)
    return min(share, 1.0)


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """Show a progress bar if stderr is a terminal and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        yield lambda _phase, _share: None
        return
    form = "{desc}: {percentage:3.0f}%|{bar:20}| {elapsed}{postfix}"
    stream = unfiltered(sys.stderr)
    with tqdm(total=1.0, desc=title, leave=False, disable=None, bar_format=form, file=stream) as bar:

        def show(phase: str, share: float) -> None:
            bar.set_postfix_str(phase, refresh=False)
            bar.update(share - bar.n)

        yield show
