"""What else ran during a measurement, and how much memory a process takes."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


def peak_memory() -> int:
    """Peak resident bytes of this process.

    Reads VmHWM, because the figure of getrusage survives exec on Linux: a child reports at least its parent's peak.
    """
    try:
        with open("/proc/self/status", encoding="utf-8") as file:  # noqa: PTH123  no file on a disk
            (kib,) = (line.split()[1] for line in file if line.startswith("VmHWM:"))
    except OSError:
        kib = str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return int(kib) * 1024


@dataclass(frozen=True)
class Load:
    """Processor time that did not go to the run, in cores: 0.5 is half of one core.

    Attributes:
        others: taken by other programs.
        stolen: taken by the hypervisor, if a virtual machine can see that.
    """

    others: float
    stolen: float


@contextmanager
def watched() -> Iterator[Callable[[], Load]]:
    """Watch what else runs during the block; yields a function that returns the load so far."""
    import psutil

    start, machine, own = time.perf_counter(), psutil.cpu_times(), _own_seconds()

    def load() -> Load:
        seconds = time.perf_counter() - start
        now = psutil.cpu_times()
        spent = {name: getattr(now, name, 0.0) - getattr(machine, name, 0.0) for name in (*_BUSY, "steal")}
        others = sum(spent[name] for name in _BUSY) - (_own_seconds() - own)
        return Load(round(max(0.0, others / seconds), 3), round(spent["steal"] / seconds, 3))

    yield load


_BUSY = ("user", "nice", "system", "irq", "softirq")


def _own_seconds() -> float:
    """Processor time of this process and of its children, including those that have ended."""
    import psutil

    process = psutil.Process()
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            spent = each.cpu_times()
            total += spent.user + spent.system + spent.children_user + spent.children_system
    return total
