"""What is shown on a terminal: progress bars, counts, and text of foreign files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def printable(text: str) -> str:
    """On one line, and without what a terminal would obey: names and messages come out of foreign files."""
    flat = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in flat)


def counted(count: int, what: str) -> str:
    """ "1 file", "2 files"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def progress(items: Iterable[Item], title: str, total: int | None = None) -> Iterable[Item]:
    """The items, with a progress bar on a terminal's stderr where tqdm is installed; `total` for those without len."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return items
    bar: Iterable[Item] = tqdm(items, title, total, leave=False, disable=None)
    return bar
