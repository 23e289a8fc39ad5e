"""What control groups, as of a container or a service of systemd, allow this process: memory, and time on the CPU.

Both versions are read, v2 and v1. A limit may be set on any of the groups around the process.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def memory_left() -> Iterator[int]:
    """Yield the bytes that each limit on the memory leaves.

    Files that were read and may be dropped from memory do not count as used.
    """
    version_2 = "memory.max", "memory.current", "inactive_file"
    version_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    for folder, is_2 in _folders("memory"):
        names = version_2 if is_2 else version_1
        with contextlib.suppress(OSError, ValueError):  # no such file, or no limit: "max"
            limit, used = (int((folder / name).read_text(encoding="ascii")) for name in names[:2])
            yield limit - used + _statistic(folder / "memory.stat", names[2])


def cpu_quota() -> float:
    """Return how many cores' time this process may use at most; infinity without a limit."""
    quotas = [math.inf]
    for folder, is_2 in _folders("cpu"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or no limit: "max"
            if is_2:
                allowed, period = map(int, (folder / "cpu.max").read_text(encoding="ascii").split())
            else:
                allowed, period = (
                    int((folder / f"cpu.cfs_{name}_us").read_text(encoding="ascii")) for name in ("quota", "period")
                )
            if allowed > 0 and period > 0:  # v1 has -1 for no limit
                quotas.append(allowed / period)
    return min(quotas)


def quota_threads() -> int:
    """Return the number of threads that the CPU quota pays for, if it is below the cores of the mask; else 0.

    With more threads the group uses its share early, and then all of them stand still until the next period.
    """
    threads = max(1.0, cpu_quota())
    return math.ceil(threads) if threads < _cores() else 0


def allowed_threads() -> int:
    """Return the number of cores that mask and quota allow this process if these are not all, else 0."""
    return quota_threads() or (_cores() if _cores() < (os.cpu_count() or 1) else 0)


def _cores() -> int:
    """Return the number of cores that this process may run on, as by taskset."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS, Windows
        return os.cpu_count() or 1


def _folders(controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of the groups around this process in which a controller's limits may be; whether they are v2.

    In a container the path of its group may be the host's, which is not there, and the container's own is the root.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        lines = []
    paths = {kinds: path for _, kinds, path in (line.split(":", 2) for line in lines if line.count(":") >= 2)}
    of_version_1 = next((path for kinds, path in paths.items() if controller in kinds.split(",")), "/")
    for root, path, is_2 in ((CGROUPS, paths.get("", "/"), True), (CGROUPS / controller, of_version_1, False)):
        inner = root / path.lstrip("/")
        for folder in (inner, *(parent for parent in inner.parents if parent.is_relative_to(root))):
            yield folder, is_2


def _statistic(path: Path, name: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    return 0
