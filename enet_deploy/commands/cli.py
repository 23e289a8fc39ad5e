"""What every command of the project shares: exit codes, errors on one line, signals, argparse types."""

from __future__ import annotations

import argparse
import errno
import logging
import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar, cast

import cv2

from ..artifacts import check_size
from ..console import printable
from ..errors import EXTRAS, ArtifactError, EnetError, InputError, is_out_of_memory, missing

Item = TypeVar("Item")

INTERRUPTED = 130
_NO_MEMORY = -1  # not an exit code
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Parser(argparse.ArgumentParser):
    """argparse's parser, which prints an error on one line instead of after the whole usage."""

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
    """Parse `argv` and run `command`.

    Returns the exit code: 0 done, 1 a requirement is not met, 2 an error that the user can correct, 130 interrupted,
    143 ended by SIGTERM, after the same clean-up.
    """
    args = parser.parse_args(argv)
    terminated = []

    def terminate(*_: Any) -> None:
        terminated.append(True)
        raise KeyboardInterrupt

    is_nested = isinstance(sys.stdout, _Output) or threading.current_thread() is not threading.main_thread()
    replaced = nullcontext() if sys.stdout is None or is_nested else redirect_stdout(cast(TextIO, _Output(sys.stdout)))
    with on_signals(terminate, signal.SIGTERM), replaced:
        no_memory = f"{parser.prog}: error: too little memory; close other programs, or take fewer or smaller images"
        try:
            code = _run(parser, command, args)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            code = _NO_MEMORY
        if code == _NO_MEMORY:  # outside of the handler: the traceback no longer holds the memory of what failed
            print(no_memory, file=sys.stderr, flush=True)
            if argv is None:  # a script: the ends of libraries that have lost a thread to this would abort it
                os._exit(2)
            code = 2
        try:
            print(end="", flush=True)
        except OSError:  # such as a full disk; `_run` has reported it
            discard_output()
    return 128 + signal.SIGTERM if terminated and code == INTERRUPTED else code


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


def _run(
    parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], None], args: argparse.Namespace
) -> int:
    logging.basicConfig(format=f"{parser.prog}: %(message)s")  # as a library, the package logs nothing by default
    # Our own message reports a damaged image, on one line
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        command(args)
        print(end="", flush=True)  # report it here if the output cannot be written
    except BrokenPipeError:  # the reader of the only output has left, which is no error
        discard_output()
        return 0
    except (EnetError, OSError, ModuleNotFoundError) as error:
        print(f"{parser.prog}: error: {printable(_explained(error))}", file=sys.stderr)
        return error.exit_code if isinstance(error, EnetError) else 2
    except KeyboardInterrupt as interrupt:
        print(f"{parser.prog}: interrupted" + "; ".join(["", *map(str, interrupt.args)]), file=sys.stderr)
        return INTERRUPTED
    return 0


class _Output:
    """Standard output whose reader may leave, as in `enet-bench ... | head`.

    What is printed after that is discarded, and the command continues, as it may have files to write. Writing to
    `buffer` still raises BrokenPipeError.
    """

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
    """Discard what is printed from now on, with Python's own last flush: the reader of standard output has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _explained(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").split(".")[0]
        if module not in EXTRAS:
            raise error  # a bug of ours: show the traceback
        return missing(module)
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"{error}; free space, also in the folder for temporary files (TMPDIR)"
    return f"{error}"


def require_weights(path: Path) -> None:
    """Raise ArtifactError before the long work unless --weights names a file."""
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
    """argparse type: text that is not empty, as an unset shell variable would be."""
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

    def require_choice(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"'{text}', expected one of {', '.join(choices)}")
        return text

    return require_choice


def listed(kind: Callable[[str], Item]) -> Callable[[str], list[Item]]:
    """argparse type: a comma-separated list of `kind`, without repetitions."""
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
