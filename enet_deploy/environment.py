"""What a figure was measured on: machine, load and versions."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata as packages
from pathlib import Path
from typing import Any

from .artifacts import commit

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
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "load": [round(load, 2) for load in os.getloadavg()],
        "governor": _governor(),
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


def _governor() -> str | None:
    """How the clock frequency of the first core is chosen; None where the system does not tell."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text(encoding="ascii").strip()
    except OSError:
        return None
