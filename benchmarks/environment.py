"""What a result was measured on, and the memory that a runner takes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata as packages
from typing import Any

import psutil

from enet_deploy.artifacts import commit
from enet_deploy.errors import BackendError
from enet_deploy.runners import Runner

PACKAGES = (
    "enet-deploy",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
    "pycuda",
    "numpy",
    "opencv-python",
)


def environment() -> dict[str, Any]:
    """Machine, load and versions, for the JSON result."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": platform.machine(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "load": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "packages": _versions(),
        "commit": commit(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123  no file on a disk
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = packages.version(name)
        except packages.PackageNotFoundError:
            continue
    return found


# A process of its own: peak memory belongs to a process, and this one has every runner open. VmHWM, because
# getrusage's figure survives exec on Linux: a child reports at least the peak of its parent.
_PEAK = """
import json, resource, sys
import numpy as np
from enet_deploy import open_runner
artifact, backend, device, options = sys.argv[1:]
with open_runner(artifact, backend, device, **json.loads(options)) as runner:
    frames = np.zeros((runner.spec.batch or 1, *runner.spec.size, 3), np.uint8)
    for _ in range(3):
        runner.infer(frames)
try:
    with open("/proc/self/status") as file:
        (kib,) = [line.split()[1] for line in file if line.startswith("VmHWM:")]
except OSError:
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(int(kib) * 1024)
"""


def peak_memory(runner: Runner, options: dict[str, Any]) -> int:
    """Peak resident bytes of a process that opens this runner alone, its library included, and labels frames.

    `options` are those that it was opened with.
    Raises BackendError where that process fails, out of memory for one.
    """
    spec = runner.spec
    command = [sys.executable, "-c", _PEAK, str(spec.artifact), spec.backend, spec.device, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BackendError(f"{spec.artifact} on {spec.backend} does not run in a process of its own: {why}")
    return int(done.stdout)
