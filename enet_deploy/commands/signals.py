"""Signals that end a command in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

HANG_UP = getattr(signal, "SIGHUP", None)  # which Windows does not have
ENDING = [signal.SIGTERM] if HANG_UP is None else [signal.SIGTERM, HANG_UP]


@contextmanager
def on_signals(handler: Callable[[int, Any], None], *numbers: signal.Signals) -> Iterator[Callable[[], None]]:
    """Handle signals in this block; yields a function that restores the old handlers before the block ends.

    Does nothing outside the main thread, and for signals that are ignored, as under `nohup` or a script's `&`.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        known = {number: signal.getsignal(number) for number in numbers}
        before = {number: known[number] for number in numbers if known[number] not in (None, signal.SIG_IGN)}

    def restore() -> None:
        for number, old in before.items():
            signal.signal(number, old)

    for number in before:
        signal.signal(number, handler)
    try:
        yield restore
    finally:
        restore()


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back until the end of the block, so that all of it is done. Raises KeyboardInterrupt then."""
    held: list[int] = []
    with on_signals(lambda number, _: held.append(number), signal.SIGINT):
        yield
    if held:
        raise KeyboardInterrupt


def ignore_hang_up(number: int) -> None:
    """Ignore SIGHUP once it came: a terminal that closes sends it, and the shell in it sends it again."""
    if number == HANG_UP:
        signal.signal(number, signal.SIG_IGN)
