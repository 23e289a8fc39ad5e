"""The standard streams of a command, which may be closed, full, or left by their reader."""

from __future__ import annotations

import errno
import io
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from ..console import escaped


@contextmanager
def standard_streams() -> Iterator[None]:
    """Give a command standard streams that can be written, whatever it was started with.

    A descriptor that is closed would be given to the next file that is opened, and messages would be written into it.
    """
    if isinstance(sys.stdout, _Output) or threading.current_thread() is not threading.main_thread():
        yield
        return
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free
    with ExitStack() as stack:
        if sys.stderr is None:  # as print would write to standard output then
            stack.enter_context(redirect_stderr(stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))))
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
                stack.callback(stream.reconfigure, errors=stream.errors)
                stream.reconfigure(errors="backslashreplace")  # for names that its encoding does not have
        stack.enter_context(redirect_stderr(cast(TextIO, _Output(sys.stderr, is_needed=False))))
        if sys.stdout is not None:
            stack.enter_context(redirect_stdout(cast(TextIO, _Output(sys.stdout))))
        yield


class _Output:
    """Standard output, or standard error, of a command.

    Control characters are escaped, because names come from foreign files. If the reader leaves, as in
    `enet-bench ... | head`, or the terminal is gone, later output is discarded. The command continues, because it may
    have files to write. Writing to `buffer` still raises BrokenPipeError.

    Args:
        stream: to write to.
        is_needed: whether other errors, as on a full disk, are raised.

    Attributes:
        raw: the stream itself.
    """

    def __init__(self, stream: TextIO, is_needed: bool = True) -> None:
        self.raw, self._is_needed, self._is_terminal = stream, is_needed, stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)

    def write(self, text: str) -> int:
        self._unless_gone(lambda: self.raw.write(escaped(text, "\n\t")))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._unless_gone(self.raw.flush)

    def _unless_gone(self, do: Callable[[], object]) -> None:
        try:
            do()
        except OSError as error:
            is_gone = isinstance(error, BrokenPipeError) or (self._is_terminal and error.errno == errno.EIO)
            if self._is_needed and not is_gone:
                raise
            _discard(self.raw)


def discard_output() -> None:
    """Discard all later output, also Python's last flush, because the reader of standard output has left."""
    _discard(sys.stdout)


def _discard(stream: TextIO) -> None:
    with suppress(OSError, ValueError):  # a stream without a descriptor
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
