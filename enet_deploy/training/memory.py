"""Memory: which batch fits, and how glibc keeps freed blocks."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ..errors import is_out_of_memory

CGROUPS = Path("/sys/fs/cgroup")
GUESS = 4 << 30  # bytes that are free on a system that does not tell

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def free_memory(device: torch.device) -> int:
    """Free bytes on the device; of the machine's memory, no more than this process's control groups allow."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = GUESS
    with contextlib.suppress(OSError, KeyError, ValueError):
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        free = int(fields["MemAvailable"].split()[0]) << 10
    return max(0, min([free, *_left_in_cgroups()]))


def _left_in_cgroups() -> Iterator[int]:
    """Yield the free bytes under each memory limit of this process. A container has a limit, and its parents may too.

    Cached files that the system can drop from memory do not count as used.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        lines = []
    of_process = {kinds: path for _, kinds, path in (line.split(":", 2) for line in lines if line.count(":") >= 2)}
    version_2 = "memory.max", "memory.current", "inactive_file"
    version_1 = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    for root, path, names in (
        (CGROUPS, of_process.get("", "/"), version_2),
        (CGROUPS / "memory", next((p for k, p in of_process.items() if "memory" in k.split(",")), "/"), version_1),
    ):
        # in a container the path may be the host's, which is not there, and the container's own is the root
        inner = root / path.lstrip("/")
        for folder in (inner, *(parent for parent in inner.parents if parent.is_relative_to(root))):
            with contextlib.suppress(OSError, ValueError):  # no such folder, or no limit: "max"
                limit, used = (int((folder / name).read_text(encoding="ascii")) for name in names[:2])
                yield limit - used + _statistic(folder / "memory.stat", names[2])


def _statistic(path: Path, name: str) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name} "):
                return int(line.split()[1])
    return 0


def halved_batch_that_fits(batch: int, step: Callable[[int], object]) -> int:
    """Halve `batch` until `step(batch)` does not run out of memory. Returns 0 if even one image does not fit."""
    while batch := batch // 2:
        try:
            step(batch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            return batch
    return 0


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, if its C library is glibc: CPU training is then a sixth faster.

    By default glibc returns large blocks to the system, which clears them page by page when the next step allocates
    them again. The setting holds for the whole process, until it ends.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or another system
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 64 << 20)
