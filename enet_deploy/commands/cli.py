"""What every command of the project shares: exit codes, errors on one line, signals, argparse types."""

from __future__ import annotations

import argparse
import errno
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ..arrays import check_count
from ..artifacts import PRECISIONS, check_size, require_file
from ..bundled import NAMES, weights_file
from ..console import did_you_mean, printable, synonym
from ..errors import EXTRAS, EnetError, InputError, is_out_of_memory, missing
from ..fit import FITS
from ..images import silence_opencv
from ..runners import BACKENDS, ON_REQUEST
from .signals import ENDING, ignore_hang_up, lost_interrupts_again, on_signals
from .streams import discard_output, standard_streams

Item = TypeVar("Item")

_BUNDLED = f"or bundled weights by name: {', '.join(NAMES)}"
ARTIFACT_FILE = f"weights, a graph (.onnx), an engine, {_BUNDLED}"  # of --help
ARTIFACT = f"weights, a graph (.onnx), an engine, a folder with fleet.json, {_BUNDLED}"
WEIGHTS = f"a .safetensors file of enet-train, or a name: {', '.join(NAMES)}"

INTERRUPTED = 130
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Parser(argparse.ArgumentParser):
    """argparse's parser, with errors on one line, examples in --help, and an ear for the words of other tools.

    Words that mean exactly the same are taken (`console.SYNONYMS`, and other case); for near ones an error asks.

    Args:
        examples: commands, printed at the end of --help.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **options: Any) -> None:
        from .. import __version__

        super().__init__(*args, **options)
        self.examples = examples
        self.allow_abbrev = False  # scripts keep their meaning when options are added
        self.add_argument("--version", action="version", version=__version__)

    def format_help(self) -> str:
        heading = "\nexamples:\n" if self.examples else ""
        return super().format_help() + "".join([heading, *(f"  {line}\n" for line in self.examples)])

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = [*(sys.argv[1:] if args is None else args)]
        end = words.index("--") if "--" in words else len(words)
        return super().parse_known_args([*map(self._option, words[:end]), *words[end:]], namespace)

    def _option(self, word: str) -> str:
        name, equals, value = word.partition("=")
        return synonym(name, self._option_string_actions) + equals + value if name.startswith("--") else word

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        value = super()._get_value(action, arg_string)
        known = [] if isinstance(action, argparse._SubParsersAction) else list(action.choices or ())
        return synonym(value, known) if known and isinstance(value, str) else value

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if isinstance(action, argparse._SubParsersAction):  # its words are the subcommand and all that follows
            arg_strings = [synonym(arg_strings[0], list(action.choices)), *arg_strings[1:]]
        return super()._get_values(action, arg_strings)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), known)
            raise argparse.ArgumentError(action, f"'{value}', expected {' or '.join(known)}{hint}")

    def error(self, message: str) -> NoReturn:
        unknown = re.findall(r"--\w[\w-]*", message) if message.startswith("unrecognized arguments") else []
        hint = next(filter(None, (did_you_mean(word, self._options()) for word in unknown)), "")
        self.exit(2, f"{self.prog}: error: {message}{hint}; see {self.prog} --help\n")

    def _options(self) -> set[str]:
        """All options, also of subcommands, whose errors the main parser reports."""
        nested = (a.choices.values() for a in self._actions if isinstance(a, argparse._SubParsersAction))
        return {*self._option_string_actions}.union(*(parser._options() for inner in nested for parser in inner))


def run(
    parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], None], argv: Sequence[str] | None
) -> int:
    """Parse `argv` and run `command`.

    Returns the exit code: 0 done, 1 a requirement is not met, 2 an error that the user can correct, 130 interrupted,
    143 or 129 ended by SIGTERM or by SIGHUP (the terminal is gone), after the same clean-up.
    """
    ended: list[int] = []

    def end(number: int, _: Any) -> None:
        ended.append(number)
        ignore_hang_up(number)
        raise KeyboardInterrupt

    with standard_streams():
        args = parser.parse_args(argv)
        with on_signals(end, *ENDING), lost_interrupts_again(ended):
            code = _run_in_memory(parser, command, args, is_script=argv is None)
            try:
                print(end="", flush=True)
            except OSError:  # such as a full disk; `_run` has reported it
                discard_output()
    return 128 + ended[0] if ended and code == INTERRUPTED else code


def _run_in_memory(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], None],
    args: argparse.Namespace,
    is_script: bool,
) -> int:
    """Run the command; too little memory is one line and exit code 2, like any error that the user can correct."""
    no_memory = f"{parser.prog}: error: too little memory; close other programs, or take fewer or smaller images"
    try:
        return _run(parser, command, args)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # after the handler, because its traceback keeps the memory of what failed
    print(no_memory, file=sys.stderr, flush=True)
    if is_script:  # libraries that lost a thread to this would abort the process at its end
        os._exit(2)
    return 2


def _run(
    parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], None], args: argparse.Namespace
) -> int:
    log_to_stderr(f"{parser.prog}: %(message)s")  # as a library, the package logs nothing by default
    logging.getLogger("enet_deploy.runners").setLevel(logging.INFO)  # which backend was chosen
    silence_opencv()  # our own message reports a damaged image, on one line
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        command(args)
        print(end="", flush=True)  # report it here if the output cannot be written
    except BrokenPipeError:  # the reader of the only output has left, which is no error
        discard_output()
        return 0
    except BaseException as error:
        interrupt = _interrupt_behind(error)
        if interrupt is not None:
            print(f"{parser.prog}: interrupted" + "; ".join(["", *map(str, interrupt.args)]), file=sys.stderr)
            return INTERRUPTED
        if not isinstance(error, EnetError | OSError | ModuleNotFoundError):
            raise
        print(f"{parser.prog}: error: {printable(_explained(error))}", file=sys.stderr)
        return error.exit_code if isinstance(error, EnetError) else 2
    return 0


def _interrupt_behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interrupt that an error is, or during which it was raised: libraries turn one into errors of their own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def log_to_stderr(format: str, level: int = logging.WARNING) -> None:
    """Log to the current standard error, unless logging is configured already."""
    logging.basicConfig(level=level, format=format, handlers=[_StderrHandler()])


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            print(self.format(record), file=sys.stderr)


def _explained(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").split(".")[0]
        if module not in EXTRAS:
            raise error  # a bug of ours: show the traceback
        return missing(module)
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"{error}; free space, also in the folder for temporary files (TMPDIR)"
    return f"{error}"


def add_artifact(parser: argparse.ArgumentParser, help_: str = ARTIFACT) -> None:
    """Add ARTIFACT, --backend, --device and --fit, which `runners.open_runner` takes."""
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help=help_)
    parser.add_argument("--backend", choices=BACKENDS, help="default: the fastest that is installed")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the backend's own)")
    parser.add_argument("--fit", choices=FITS, help="how images become frames (default: as the artifact says)")


def call_with(parser: Parser, words: Sequence[str | Path], **values: Any) -> argparse.Namespace:
    """Return the arguments of a Python function behind a command: the options' defaults, but for `values`.

    Args:
        words: the positional arguments that the command requires.

    Raises InputError for a value that the option would not take: not one of its choices, no number from 1, an empty
    text; and for what the parser refuses.
    """

    def refuse(message: str) -> NoReturn:
        raise InputError(message)

    parser.error = refuse  # type: ignore[method-assign]  # its own ends the program
    for name, value in values.items():
        actions = [action for action in parser._actions if action.dest == name]
        choices = [choice for action in actions for choice in action.choices or ()]
        if value is not None and any(action.type is positive for action in actions):
            check_count(name, value)
        if value == "" and any(action.type is text for action in actions):
            raise InputError(f"{name} '', expected a name or a path")
        for each in value if isinstance(value, list | tuple) else [value]:
            if choices and each is not None and each not in choices:
                raise InputError(f"{name} {each!r:.60}, expected one of {', '.join(map(str, dict.fromkeys(choices)))}")
    args = parser.parse_args(["--", *map(str, words)] if words else [])
    vars(args).update(values)
    return args


def require_weights(path: Path) -> None:
    """Raise ArtifactError before the long work unless --weights names a file."""
    require_file(path, f"for --weights a .safetensors file of enet-train, or {' or '.join(NAMES)}")


def weights(text: str) -> Path:
    """argparse type: a weights file, or the name of bundled weights."""
    return weights_file(text)


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add --precision, which `open_runner` takes."""
    help_ = "compute in it (default: the artifact's own)"
    parser.add_argument("--precision", type=_on_request, choices=ON_REQUEST, help=help_)


def _on_request(text: str) -> str:
    """argparse type: a precision to compute in. Others are properties of a file, so the error says how to make one."""
    word = synonym(text, PRECISIONS)
    if word in PRECISIONS:
        possible, remedy = " or ".join(ON_REQUEST), f"files have the others: enet-export --precision {word}"
        raise argparse.ArgumentTypeError(f"'{text}', expected {possible}; {remedy}")
    return text


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
    return _number(text, sys.float_info.max, "a number of at least 0")


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    """argparse type: one of these words."""

    def require_choice(text: str) -> str:
        word = synonym(text, choices)
        if word not in choices:
            hint = did_you_mean(text, choices)
            raise argparse.ArgumentTypeError(f"'{text}', expected one of {', '.join(choices)}{hint}")
        return word

    return require_choice


def listed(kind: Callable[[str], Item]) -> Callable[[str], list[Item]]:
    """argparse type: a comma-separated list of `kind`, without repetitions."""
    return lambda text: list(dict.fromkeys(map(kind, text.split(","))))


def share(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    return _number(text, 1, "a share from 0 to 1")


def _number(text: str, most: float, expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise argparse.ArgumentTypeError(f"'{text}', expected {expected}")
    return value
