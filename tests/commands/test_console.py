"""The console scripts: they end in order on Ctrl-C from the first moment on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import CONSOLE_SCRIPTS

import enet_console

# Presses Ctrl-C in the moment at which a module is looked for, and runs a console script as pip's file does
CODE = """
import os, signal, sys

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == "{moment}":
            print("pressed", flush=True)
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.{before})
sys.meta_path.insert(0, Interrupter())
from enet_console import {function}
sys.exit({function}())
"""


def run(function: str, moment: str, *arguments: str, before: str = "default_int_handler") -> tuple[int, str, str]:
    code = CODE.format(function=function, moment=moment, before=before)
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_setup_cfg_has_a_script_for_each_command() -> None:
    modules = {script: getattr(enet_console, name.split(":")[1]).args[0] for script, name in CONSOLE_SCRIPTS.items()}
    assert modules.pop("enet") == "enet_deploy.__main__"
    assert modules == {f"enet-{name}": module for name, module in enet_console.COMMANDS.items()}


@pytest.mark.parametrize(
    "moment", ["enet_deploy", "numpy", "cv2", "enet_deploy.commands.cli", "enet_deploy.commands.data"]
)
def test_interrupt_while_modules_load(moment: str) -> None:
    for function in ("data", "enet"):
        assert run(function, moment, "data", "--help") == (130, "pressed\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("script", CONSOLE_SCRIPTS)
def test_every_script_is_guarded(script: str) -> None:
    function = CONSOLE_SCRIPTS[script].split(":")[1]
    assert run(function, "enet_deploy.console") == (130, "pressed\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["enet_deploy.runners.ort_runner", "onnxruntime"])
def test_interrupt_while_a_backend_loads(moment: str, exported: Path, tmp_path: Path) -> None:
    code, out, told = run(
        "segment", moment, str(exported), "sample", "--backend", "ort", "--out", str(tmp_path / "a.png")
    )
    assert (code, out) == (130, "pressed\n")
    assert told == "enet-segment: interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_ignored_interrupt_stays_ignored() -> None:
    """As in a script's background job."""
    code, out, told = run("data", "numpy", "--version", before="SIG_IGN")
    assert (code, told) == (0, "") and out.startswith("pressed\n")
