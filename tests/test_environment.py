"""The GPUs in a result, with a program in place of nvidia-smi, and the versions of OpenCV."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
from helpers import ROOT

from enet_deploy import environment as module
from enet_deploy.commands.data import main as enet_data
from enet_deploy.environment import commit, environment

TOLD = """\
NVIDIA H100 80GB HBM3, 580.159.04, 9.0, 1980, 1980, 2619, 700.00
Orin (nvgpu), 540.4.0, 8.7, [N/A], [N/A], [Not Supported], [N/A]
"""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of nvidia-smi. It writes its arguments to the file `asked`."""
    path = tmp_path / "nvidia-smi"
    path.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\necho '{TOLD}'\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return path


def test_each_gpu_is_listed(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn = SimpleNamespace(version=lambda: 91900)
    torch = SimpleNamespace(version=SimpleNamespace(cuda="13.0"), backends=SimpleNamespace(cudnn=cudnn))
    monkeypatch.setitem(sys.modules, "torch", torch)  # type: ignore[arg-type]
    found = environment()
    assert found["gpus"] == [
        {
            "name": "NVIDIA H100 80GB HBM3",
            "driver": "580.159.04",
            "compute_capability": "9.0",
            "sm_clock_mhz": 1980.0,
            "max_sm_clock_mhz": 1980.0,
            "memory_clock_mhz": 2619.0,
            "power_limit_w": 700.0,
        },
        {
            "name": "Orin (nvgpu)",
            "driver": "540.4.0",
            "compute_capability": "8.7",
            "sm_clock_mhz": None,
            "max_sm_clock_mhz": None,
            "memory_clock_mhz": None,
            "power_limit_w": None,
        },
    ]
    assert (found["cuda"], found["cudnn"]) == ("13.0", 91900)
    asked = (nvidia_smi.parent / "asked").read_text()
    assert "--query-gpu=name,driver_version,compute_cap," in asked and "--format=csv,noheader,nounits" in asked


@pytest.mark.parametrize("does", ["exit 9", "echo 'No devices were found'", "rm $0; exit 1"])
def test_machine_without_a_gpu_is_no_error(nvidia_smi: Path, does: str) -> None:
    nvidia_smi.write_text(f"#!/bin/sh\n{does}\n")
    for _ in range(2):  # the last one is gone then
        found = environment()
        assert (found["gpus"], found["cuda"], found["cudnn"]) == (None, None, None)


def test_environment_loads_no_torch(nvidia_smi: Path) -> None:
    code = """
import sys
from enet_deploy.environment import environment
found = environment()
assert found["gpus"] and found["cuda"] is None
assert not {"torch", "onnxruntime", "cuda", "pycuda"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("version", ["4.8", "4.13"])
def test_commands_silence_opencv_of_any_version(version: str, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[int] = []
    if version == "4.8":
        monkeypatch.delattr(cv2.utils, "logging", raising=False)
        monkeypatch.setattr(cv2, "setLogLevel", levels.append, raising=False)
    else:
        monkeypatch.setattr(cv2.utils, "logging", SimpleNamespace(setLogLevel=levels.append), raising=False)
    enet_data(["check", str(scenes)])
    assert levels == [0]


def test_commit_through_a_link_to_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if commit() == "unknown":
        pytest.skip("no git, or no checkout")
    (tmp_path / "link").symlink_to(ROOT)
    expected = commit()
    monkeypatch.setattr(module, "__file__", str(tmp_path / "link" / "enet_deploy" / "environment.py"))
    assert commit() == expected
