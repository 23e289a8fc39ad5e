"""What every command line of the project does alike: one line and exit code 2 for what the user can mend."""

from __future__ import annotations

import argparse
import errno
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar, cast

import cv2

from ..artifacts import check_size
from ..console import printable
from ..errors import EXTRAS, ArtifactError, EnetError, InputError, missing

Item = TypeVar("Item")

INTERRUPTED = 130
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Parser(argparse.ArgumentParser):
    """argparse, saying what is wrong on one line instead of after the whole usage."""

    def __init__(self, *args: Any, **options: Any) -> None:
        from .. import __version__

        super().__init__(*args, **options)
        self.allow_abbrev = False  # scripts keep their meaning when options are added
        self.add_argument("--version", action="version", version=__version__)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def run(
    parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], None], argv: Sequence[str] | None
) -> int:
    """Parse `argv`, run `command`; return the exit code: 0 done, 2 an error the user can mend, 1 a requirement not
    met, 130 interrupted, 143 ended by SIGTERM, which is as orderly an end."""
    args = parser.parse_args(argv)
    terminated = []

    def terminate(*_: Any) -> None:
        terminated.append(True)
        raise KeyboardInterrupt

    in_program = isinstance(sys.stdout, _Output) or threading.current_thread() is not threading.main_thread()
    aside = nullcontext() if sys.stdout is None or in_program else redirect_stdout(cast(TextIO, _Output(sys.stdout)))
    with on_signals(terminate, signal.SIGTERM), aside:
        code = _run(parser, command, args)
        try:
            print(end="", flush=True)
        except OSError:  # as of a full disk, which is said already
            discard_output()
    return 128 + signal.SIGTERM if terminated and code == INTERRUPTED else code


@contextmanager
def on_signals(handler: Callable[[int, Any], None], *numbers: signal.Signals) -> Iterator[Callable[[], None]]:
    """Have signals handled in this block, where it is up to us; gives what ends that before the block does.

    It is not in a thread but the main one, nor where a signal is ignored, as `nohup` and a script's `&` have it.
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


def _run(
    parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], None], args: argparse.Namespace
) -> int:
    logging.basicConfig(format=f"{parser.prog}: %(message)s")  # the package is silent in programs that do not
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # our own message says it on one line
    try:
        command(args)
        print(end="", flush=True)  # what cannot be written any more is to be said
    except BrokenPipeError:  # nobody reads on what was there for reading alone, and nothing is wrong
        discard_output()
        return 0
    except (EnetError, OSError, ModuleNotFoundError) as error:
        print(f"{parser.prog}: error: {printable(_in_words(error))}", file=sys.stderr)
        return error.exit_code if isinstance(error, EnetError) else 2
    except KeyboardInterrupt as interrupt:
        print(f"{parser.prog}: interrupted" + "; ".join(["", *map(str, interrupt.args)]), file=sys.stderr)
        return INTERRUPTED
    return 0


class _Output:
    """Standard output that its reader may leave, as in `enet-bench ... | head`: what is printed from then on goes
    nowhere, and the command goes on, for its files. What is written to `buffer` raises BrokenPipeError as ever."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(BrokenPipeError):
            return self._stream.write(text)
        discard_output()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            discard_output()


def discard_output() -> None:
    """Nobody reads standard output any more: what is printed from now on, Python's own last flush too, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _in_words(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").split(".")[0]
        if module not in EXTRAS:
            raise error  # our own fault, not the user's: show the traceback
        return missing(module)
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"{error}; free space, also where temporary files are, which TMPDIR says"
    return f"{error}"


def require_weights(path: Path) -> None:
    """Raise ArtifactError unless --weights names a file: before the long work, not in it."""
    if not path.is_file():
        raise ArtifactError(f"--weights {path} is not a file; expected a .safetensors file of enet-train")


def size(text: str) -> tuple[int, int]:
    """argparse type: "HxW" -> (height, width)."""
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}', expected HEIGHTxWIDTH such as 360x480") from None
    try:
        check_size((height, width))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return height, width


def text(text: str) -> str:
    """argparse type: not empty, as an unset variable of a shell is."""
    if not text:
        raise argparse.ArgumentTypeError("'', expected a name or a path")
    return text


def positive(text: str) -> int:
    """argparse type: an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}', expected a whole number of at least 1")
    return int(text)


def not_negative(text: str) -> float:
    """argparse type: a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}', expected a number of at least 0")
    return value


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """argparse type: one of these words."""

    def chosen(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"'{text}', expected one of {', '.join(choices)}")
        return text

    return chosen


def listed(kind: Callable[[str], Item]) -> Callable[[str], list[Item]]:
    """argparse type: such things with commas between them, each once."""
    return lambda text: list(dict.fromkeys(map(kind, text.split(","))))


def share(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}', expected a share from 0 to 1")
    return value
