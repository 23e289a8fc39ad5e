"""The environment of a measurement: machine, GPUs, load and versions."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata as packages
from pathlib import Path
from typing import Any

PACKAGES = (
    "enet-deploy", "torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "cuda-bindings",
    "pycuda", "nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "numpy",
    "opencv-python", "opencv-python-headless",
)  # fmt: skip

# Field of nvidia-smi -> its key in the result; a key that ends in a unit has a number
_GPU = {
    "name": "name",
    "driver_version": "driver",
    "compute_cap": "compute_capability",
    "clocks.sm": "sm_clock_mhz",
    "clocks.max.sm": "max_sm_clock_mhz",
    "clocks.mem": "memory_clock_mhz",
    "power.limit": "power_limit_w",
}
_UNITS = ("_mhz", "_w")


def environment() -> dict[str, Any]:
    """Return machine, GPUs, load and versions for a JSON result. Imports no backend library."""
    gpus = _gpus()
    cuda, cudnn = _cuda() if gpus else (None, None)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": platform.machine(),
        "system": platform.platform(),
        "processor": processor()[0],
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "load": [round(load, 2) for load in os.getloadavg()],
        "governor": _governor(),
        "gpus": gpus,
        "cuda": cuda,
        "cudnn": cudnn,
        "python": platform.python_version(),
        "packages": _versions(),
        "commit": commit(),
    }


def processor() -> tuple[str, str]:
    """Return the name of the first core's model, and its features as Linux lists them, "" if it does not."""
    found: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123  not a file on disk
            for line in file:
                key, _, value = line.partition(":")
                found.setdefault(key.strip().lower(), value.strip())
    except OSError:
        pass
    return found.get("model name") or platform.processor(), found.get("flags") or found.get("features", "")


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = packages.version(name)
        except packages.PackageNotFoundError:
            continue
    return found


def _governor() -> str | None:
    """Return the frequency governor of the first core; None if the system does not report it."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _gpus() -> list[dict[str, str | float | None]] | None:
    """Ask nvidia-smi about each GPU (MHz, W). A value that it does not report is None; without a GPU, all is None."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={','.join(_GPU)}", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [line.split(", ") for line in output.splitlines()]
    gpus = [dict(zip(_GPU.values(), row, strict=True)) for row in rows if len(row) == len(_GPU)]
    return [{name: _value(name, text) for name, text in gpu.items()} for gpu in gpus] or None


def _value(name: str, text: str) -> str | float | None:
    if text.startswith("["):  # "[N/A]", "[Not Supported]"
        return None
    if not name.endswith(_UNITS):
        return text
    try:
        return float(text)
    except ValueError:
        return None


def _cuda() -> tuple[str | None, int | None]:
    """Return the CUDA and cuDNN versions (91900 is 9.19.0) of PyTorch if it is loaded; others are in `packages`."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None, None
    try:
        return torch.version.cuda, torch.backends.cudnn.version()
    except RuntimeError:  # PyTorch rejects this version of cuDNN
        return torch.version.cuda, None


def commit() -> str:
    """Return this checkout's commit, with "-dirty" if files changed; "unknown" outside a checkout or without git."""
    here = Path(__file__).resolve().parent  # git tells the real path, also where links lead here
    try:
        root = _git(here, "rev-parse", "--show-toplevel")
        if Path(root) != here.parent:  # installed inside the checkout of another project
            return "unknown"
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
        return _git(here, "rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, encoding="utf-8", errors="surrogateescape", check=True
    )
    return done.stdout.strip()
