"""All commands under one name: `enet export ...` and `python -m enet_deploy export ...` are `enet-export ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points

from . import __version__

PREFIX = "enet-"


def _commands() -> dict[str, EntryPoint]:
    """Return name without prefix -> console script of the installed package."""
    scripts = entry_points(group="console_scripts")
    own = [
        script for script in scripts if script.name.startswith(PREFIX) and script.module.startswith(f"{__package__}.")
    ]
    return {script.name.removeprefix(PREFIX): script for script in sorted(own, key=lambda script: script.name)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names. Returns its exit code, 2 if there is no such command."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    commands = _commands()
    if name in commands:
        code: int = commands[name].load()(rest)
        return code
    if name == "--version":
        print(__version__)
        return 0
    if name in ("-h", "--help"):
        print("usage: enet COMMAND ...\n\ncommands, each with --help:")
        print("\n".join(f"  enet {command:<10} or {script.name}" for command, script in commands.items()))
        return 0
    near = get_close_matches(name.removeprefix(PREFIX), commands, 1)
    expected = f"do you mean {near[0]}?" if near else f"expected one of {', '.join(commands)}"
    if not commands:
        expected = "this copy of enet_deploy is not installed: pip install -e ."
    print(f"enet: error: command '{name}', {expected}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
