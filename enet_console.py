"""The console scripts `enet` and `enet-...`.

This file lies outside of the package, because importing `enet_deploy` loads numpy and OpenCV. Ctrl-C ends a command in
order from its first moment, also while these and its own modules are loaded.
"""

from __future__ import annotations

import os
import signal
from functools import partial
from importlib import import_module
from typing import NoReturn

INTERRUPTED = 130

COMMANDS = {
    "bench": "enet_deploy.benchmarks.cli",
    "calibrate": "enet_deploy.calibration.cli",
    "data": "enet_deploy.commands.data",
    "eval": "enet_deploy.commands.evaluate",
    "export": "enet_deploy.export.cli",
    "fleet": "enet_deploy.commands.fleet",
    "inspect": "enet_deploy.commands.inspect",
    "segment": "enet_deploy.commands.segment",
    "train": "enet_deploy.commands.train",
}


def run(module: str) -> int:
    """Load a command's module and run it. Returns its exit code, 130 after Ctrl-C."""
    is_heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a script's `&` ignores it
    if is_heard:
        signal.signal(signal.SIGINT, _leave)
    main = import_module(module).main
    try:
        if is_heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return int(main())
    except KeyboardInterrupt:  # before or after what the command itself handles
        return INTERRUPTED


def _leave(*_: object) -> NoReturn:
    """End at once: an exception would pass through libraries that are half loaded, and some turn it into another."""
    os._exit(INTERRUPTED)


enet = partial(run, "enet_deploy.__main__")
bench, calibrate, data, evaluate, export, fleet, inspect, segment, train = (
    partial(run, module) for module in COMMANDS.values()
)
