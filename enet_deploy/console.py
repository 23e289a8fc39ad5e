"""What is shown on a terminal: progress bars, counts, and text of foreign files."""

from __future__ import annotations

import logging
import sys
import textwrap
import time
from collections.abc import Container, Iterable, Iterator, Sized
from difflib import get_close_matches
from typing import Any, TextIO, TypeVar

Item = TypeVar("Item")

FIRST_LINE, LONGEST_PAUSE = 4.0, 60.0  # seconds, of progress that is no bar

# Words of other tools, for which ours means exactly the same
SYNONYMS = {
    "tensorrt": "trt", "tensorrt-rtx": "trt-rtx", "tensorrt_rtx": "trt-rtx", "rtx": "trt-rtx",
    "onnxruntime": "ort", "pytorch": "torch",
    "half": "fp16", "float16": "fp16", "float32": "fp32", "bfloat16": "bf16",
    "int8-fp16": "fp16-int8", "int8-bf16": "bf16-int8",
    "--half": "--fp16", "--batch-size": "--batch", "--output": "--out",
}  # fmt: skip
# Words of other tools that are close to ours, but do not mean exactly the same: an error suggests ours
_NEAR = {
    "--imgsz": "--size", "--img-size": "--size", "--input-size": "--size", "--shape": "--size",
    "--dtype": "--precision", "--dynamic": "--dynamic-batch", "--gpu": "--device", "--iterations": "--frames",
    "--model": "--weights", "--checkpoint": "--init", "--pretrained": "--init", "--dataset": "--data",
    "--save-dir": "--out", "--output-dir": "--out", "--log-dir": "--tensorboard",
    "--half": "--precision", "--fp16": "--precision", "--int8": "--precision",
    "--provider": "--backend", "--runtime": "--backend", "--framework": "--backend",
}  # fmt: skip

_said: set[str] = set()


def hanging(title: str, text: str, columns: int | None) -> str:
    """Return `text` beside its title, wrapped to so many columns; None: on one line."""
    if columns is None:
        return title + text
    indent = " " * len(title)
    return textwrap.fill(
        title + text, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def printable(text: str) -> str:
    """Put text on one line and escape what a terminal would obey: names and messages come out of untrusted files."""
    return escaped(" ".join(text.split()))


def escaped(text: str, kept: str = "") -> str:
    """Escape what a terminal would obey, apart from the characters in `kept`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode("ascii") for c in text)


def synonym(word: str, known: Container[Any]) -> str:
    """Return the known word that means exactly the same in other tools, or in lower case; else the word as it is."""
    same = SYNONYMS.get(word.lower(), word.lower())
    return same if word not in known and same in known else word


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean KNOWN?" for a word that is near a known one, else ""."""
    known, word = sorted(known), word.lower()
    near = _NEAR.get(word, "")
    longer = [name for name in known if len(word) > 2 and name.startswith(word)]
    found = [near] if near in known else longer[:1] or get_close_matches(synonym(word, known).lower(), known, 1)
    return f"; did you mean {found[0]}?" if found else ""


def unfiltered(stream: TextIO | None) -> TextIO | None:
    """Return a stream without the escaping of `commands.streams`: bars and tables send control characters."""
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
    """Iterate over the items, with a progress bar on stderr; if that is no terminal, or without tqdm, with lines.

    Args:
        items: to iterate over.
        title: of the bar, at the beginning of each line.
        total: number of the items, if they have no length.
    """
    if sys.stderr is None:  # closed, as some supervisors start programs
        return items
    total = len(items) if total is None and isinstance(items, Sized) else total
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return _with_lines(items, title, total)
    if not sys.stderr.isatty():
        return _with_lines(items, title, total)
    bar: Iterable[Item] = tqdm(items, printable(title), total, leave=False, file=unfiltered(sys.stderr))
    return bar


def _with_lines(items: Iterable[Item], title: str, total: int | None) -> Iterator[Item]:
    """Print a line now and then: the first after seconds, later ones up to a minute apart, for a log of hours."""
    start = time.monotonic()
    pause, due = FIRST_LINE, start + FIRST_LINE
    for done, item in enumerate(items):
        if (now := time.monotonic()) >= due:
            of = "" if total is None else f" of {total}"
            print(f"{printable(title)}: {done}{of} after {now - start:.0f} s", file=sys.stderr, flush=True)
            pause = min(2 * pause, LONGEST_PAUSE)
            due = now + pause
        yield item
