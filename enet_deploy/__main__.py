"""All commands under one name: `enet export ...` and `python -m enet_deploy export ...` are `enet-export ...`."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from importlib import import_module

from enet_console import COMMANDS

from . import __version__
from .commands import cli
from .console import did_you_mean, hanging, printable

PREFIX = "enet-"
COMPLETION = "--print-completion"
HELP = f"""usage: enet COMMAND ...
       enet {COMPLETION} bash|zsh|tcsh

commands, each with --help and --version:
{{commands}}

examples:
  enet segment enet-camvid sample --legend
  enet export --int8
"""


def _help() -> str:
    """Return each command with the first sentence of its module's docstring."""
    about = {name: (import_module(module).__doc__ or "").split("\n")[0] for name, module in COMMANDS.items()}
    columns = shutil.get_terminal_size().columns
    lines = (hanging(f"  enet {name:<10}", text.split(": ")[-1], columns) for name, text in about.items())
    return HELP.format(commands="\n".join(lines))


def completion(shell: str) -> str:
    """Return a script that completes `enet` and every `enet-...` in a shell: options, their words, file names."""
    import shtab

    whole = cli.Parser("enet")
    subcommands = whole.add_subparsers()
    parsers = [whole]
    for name, module in COMMANDS.items():
        own, parent = (import_module(module).make_parser() for _ in range(2))
        for parser in (own, parent):
            _complete_files(parser)
        parsers.append(own)
        # "resolve" takes --version from the parent
        subcommands.add_parser(name, parents=[parent], add_help=False, conflict_handler="resolve", help=own.description)
    # shtab would name the variables of `enet export` and `enet-export` alike
    return "\n".join(shtab.complete(each, shell, f"{number}_{each.prog}") for number, each in enumerate(parsers))


def _complete_files(parser: argparse.ArgumentParser) -> None:
    """Complete file names for all that takes a value of its own."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _complete_files(inner)
        elif action.choices is None and action.nargs != 0:
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def _complete(args: argparse.Namespace) -> None:
    print(completion(args.shell))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names. Returns its exit code, 2 if there is no such command."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in COMMANDS:
        code: int = import_module(COMMANDS[name]).main(rest)
        return code
    if name == "--version":
        print(__version__)
        return 0
    if name in ("-h", "--help"):
        print(_help(), end="")
        return 0
    if name == COMPLETION:
        parser = cli.Parser(f"enet {COMPLETION}")
        parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
        return cli.run(parser, _complete, rest)
    expected = did_you_mean(name.removeprefix(PREFIX), COMMANDS) or f"; expected one of {', '.join(COMMANDS)}"
    print(f"enet: error: command '{printable(name)}'{expected}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
