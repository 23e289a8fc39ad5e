"""Signals that end a command in order."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
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
def lost_interrupts_again(ended: Sequence[int]) -> Iterator[None]:
    """Let an interrupt come again that was raised in a destructor or a callback of a weak reference.

    Python only reports it there and goes on, so a training would run on after its terminal was closed.

    Args:
        ended: the signals of `ENDING` that came so far; without any the interrupt was Ctrl-C.
    """
    before, main, over = sys.unraisablehook, threading.main_thread().ident, threading.Event()

    def send() -> None:
        if not over.wait(0.01) and main is not None:
            signal.pthread_kill(main, signal.SIGTERM if ended else signal.SIGINT)

    def hook(lost: sys.UnraisableHookArgs) -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            # Raised here, it would be lost once more; and Thread.start would wait for the thread here
            _thread.start_new_thread(send, ())
        else:
            before(lost)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        over.set()
        sys.unraisablehook = before


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold back the signals that end a command, so that all of the block is done. The first comes after it."""
    held: list[int] = []
    try:
        with on_signals(lambda number, _: held.append(number), signal.SIGINT, *ENDING):
            yield
    finally:
        if held:
            signal.raise_signal(held[0])


def ignore_hang_up(number: int) -> None:
    """Ignore SIGHUP once it came: a terminal that closes sends it, and the shell in it sends it again."""
    if number == HANG_UP:
        signal.signal(number, signal.SIG_IGN)
