"""What is shown on a terminal: progress bars, counts, and text of foreign files."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import TextIO, TypeVar

Item = TypeVar("Item")

_said: set[str] = set()


def printable(text: str) -> str:
    """Put text on one line and escape what a terminal would obey: names and messages come out of untrusted files."""
    return escaped(" ".join(text.split()))


def escaped(text: str, kept: str = "") -> str:
    """Escape what a terminal would obey, apart from the characters in `kept`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode("ascii") for c in text)


def unfiltered(stream: TextIO | None) -> TextIO | None:
    """The terminal behind a command's standard stream, for bars and tables, which control it; see `commands.cli`."""
    return getattr(stream, "raw", stream)


def counted(count: int, what: str) -> str:
    """Return "1 file", "2 files"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def warn_once(log: logging.Logger, message: str, *args: object) -> None:
    """Log a warning, unless one with this message was logged before, whatever its arguments."""
    if message not in _said:
        _said.add(message)
        log.warning(message, *args)


def progress(items: Iterable[Item], title: str, total: int | None = None) -> Iterable[Item]:
    """Iterate over the items, with a progress bar if stderr is a terminal and tqdm is installed.

    Args:
        items: to iterate over.
        title: of the bar.
        total: number of the items, if they have no length.
    """
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return items
    if sys.stderr is None:  # closed, as some supervisors start programs
        return items
    file = unfiltered(sys.stderr)
    bar: Iterable[Item] = tqdm(items, printable(title), total, leave=False, disable=None, file=file)
    return bar
