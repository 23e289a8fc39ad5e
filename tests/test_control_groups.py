"""What containers allow: limits on the memory, and on the time on the CPU, in a folder of control groups."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from enet_deploy import control_groups
from enet_deploy.control_groups import allowed_threads, cpu_quota, quota_threads
from enet_deploy.training.memory import free_memory

Written = Callable[[str, str, dict[str, object]], None]


@pytest.fixture
def write_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """Called with what /proc/self/cgroup tells, a folder of a group, and its files."""
    monkeypatch.setattr(control_groups, "CGROUPS", tmp_path)
    read = Path.read_text

    def write(told: str, folder: str, files: dict[str, object]) -> None:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (tmp_path / folder / name).write_text(f"{value}\n")
        known = {"/proc/self/cgroup": told, "/proc/meminfo": "MemAvailable: 99999999 kB\n"}
        monkeypatch.setattr(Path, "read_text", lambda file, **how: known.get(str(file)) or read(file, **how))

    return write


GIB = 1 << 30


@pytest.mark.parametrize(
    ("told", "path", "files", "left"),
    [
        ("0::/", "", {"memory.max": GIB, "memory.current": 0}, GIB),
        ("0::/", "", {"memory.max": GIB, "memory.current": 2 * GIB}, 0),
        ("0::/a/b", "a", {"memory.max": GIB, "memory.current": GIB // 2, "memory.stat": "anon 1\ninactive_file 100"},
         GIB // 2 + 100),
        ("0::/host/of/docker", "", {"memory.max": GIB, "memory.current": 5}, GIB - 5),
        ("0::/", "", {"memory.max": "max", "memory.current": 5}, None),
        ("4:cpu:/x\n3:memory:/d/1", "memory/d/1", {"memory.limit_in_bytes": GIB, "memory.usage_in_bytes": 7}, GIB - 7),
        ("3:hugetlb,memory:/d/1", "memory", {"memory.limit_in_bytes": GIB, "memory.usage_in_bytes": 7}, GIB - 7),
        ("3:memory:/", "memory", {"memory.limit_in_bytes": 2**63 - 4096, "memory.usage_in_bytes": 7}, None),
        ("", "", {}, None),
        ("no colons", "", {"memory.max": "", "memory.current": ""}, None),
    ],
)  # fmt: skip
def test_limit_on_memory_is_kept(
    write_groups: Written, told: str, path: str, files: dict[str, object], left: int | None
) -> None:
    write_groups(told, path, files)
    assert free_memory(torch.device("cpu")) == (99999999 << 10 if left is None else left)


@pytest.mark.parametrize(
    ("told", "path", "files", "quota"),
    [
        ("0::/", "", {"cpu.max": "200000 100000"}, 2.0),
        ("0::/", "", {"cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b", "a", {"cpu.max": "150000 100000"}, 1.5),  # of a group around it
        ("0::/host/of/docker", "", {"cpu.max": "300000 100000"}, 3.0),
        ("0::/", "", {"cpu.max": "max 100000"}, None),
        ("2:cpuacct,cpu:/d/1", "cpu/d/1", {"cpu.cfs_quota_us": 120000, "cpu.cfs_period_us": 100000}, 1.2),
        ("2:cpu:/d/1", "cpu", {"cpu.cfs_quota_us": 100000, "cpu.cfs_period_us": 50000}, 2.0),
        ("2:cpu:/", "cpu", {"cpu.cfs_quota_us": -1, "cpu.cfs_period_us": 100000}, None),
        ("2:cpu:/", "cpu", {"cpu.cfs_quota_us": 100000, "cpu.cfs_period_us": 0}, None),
        ("2:cpuset:/x", "cpuset/x", {"cpu.cfs_quota_us": 1, "cpu.cfs_period_us": 1}, None),
        ("", "", {}, None),
        ("0::/", "", {"cpu.max": "damaged"}, None),
    ],
)
def test_cpu_quota_is_read(
    write_groups: Written, told: str, path: str, files: dict[str, object], quota: float | None
) -> None:
    write_groups(told, path, files)
    assert cpu_quota() == (float("inf") if quota is None else quota)


@pytest.mark.parametrize(
    ("cores", "mask", "quota", "by_quota", "allowed"),
    [
        (8, 8, "max", 0, 0),
        (8, 8, "250000", 3, 3),
        (8, 8, "10000", 1, 1),
        (8, 2, "max", 0, 2),
        (8, 2, "400000", 0, 2),
        (8, 4, "100000", 1, 1),
        (8, 8, "800000", 0, 0),
        (1, 1, "100000", 0, 0),
    ],
)
def test_threads_are_as_many_as_mask_and_quota_allow(
    write_groups: Written,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    mask: int,
    quota: str,
    by_quota: int,
    allowed: int,
) -> None:
    write_groups("0::/", "", {"cpu.max": f"{quota} 100000"})
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(mask)), raising=False)
    assert (quota_threads(), allowed_threads()) == (by_quota, allowed)


LIMITED = """
import os, sys, numpy as np, torch
from pathlib import Path
from enet_deploy import control_groups, open_runner
os.cpu_count = lambda: 8  # as on a large machine, of which a container has one core's time
os.sched_getaffinity = lambda _: set(range(8))
torch.set_num_threads(8)
control_groups.CGROUPS = Path(sys.argv[3])
with open_runner(sys.argv[1], sys.argv[2]) as runner:
    runner.infer(np.zeros((1, *runner.spec.size, 3), np.uint8))
    if sys.argv[2] == "ort":
        print(runner._session.get_session_options().intra_op_num_threads)
    elif sys.argv[2] == "openvino":
        print(runner._with_labels.get_property("INFERENCE_NUM_THREADS"))
    else:
        print(runner._thread.submit(torch.get_num_threads).result())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "quota", "threads"), [("torch", "30000", "1"), ("ort", "150000", "2"), ("openvino", "30000", "1")]
)
def test_backends_start_no_more_threads_than_the_quota_pays_for(
    exported: Path, weights: Path, tmp_path: Path, backend: str, quota: str, threads: str
) -> None:
    pytest.importorskip({"ort": "onnxruntime"}.get(backend, backend))
    (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
    artifact = weights if backend == "torch" else exported
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", LIMITED, str(artifact), backend, str(tmp_path)]
    assert subprocess.check_output(command, env=environment, text=True).strip() == threads
