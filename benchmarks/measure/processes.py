"""A process for each of the things that are timed side by side.

In one process they share more than the clock: with PyTorch's and ONNX Runtime's threads about, OpenVINO took 44 ms for
what took it 38 alone, dropped calls or not. All are there at once, each with its libraries in memory.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from enet_deploy.errors import EnetError


class Processes:
    """Processes by name, each with a thing that it has made; they end with the block.

    Makers, functions, arguments and answers have to be picklable: functions of a module, or partials of these.
    """

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")  # forked threads would hang
        self._processes: dict[str, BaseProcess] = {}
        self._connections: dict[str, Connection] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.terminate()
            process.join()
        for connection in self._connections.values():
            connection.close()

    def start(self, name: str, make: Callable[[], object]) -> None:
        """Have a thing made in a process of its own. Raises as `ask`."""
        self._connections[name], theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, make), daemon=True)
        with theirs, _signals_ignored():
            process.start()
        self._processes[name] = process
        self.ask(name, _nothing)

    def ask(self, name: str, function: Callable[..., Any], *arguments: object) -> Any:
        """function(thing, *arguments), called over there.

        Raises the EnetError that it raised, or one that says what else it raised, or that the process has ended.
        """
        try:
            self._connections[name].send((function, arguments))
            error, answer = self._connections[name].recv()
        except (EOFError, OSError):
            raise EnetError(f"the process of '{name}' ended{self._how(name)}") from None
        if error is not None:
            raise error if isinstance(error, EnetError) else EnetError(f"{name}: {error}")
        return answer

    def _how(self, name: str) -> str:
        """In words, why a process is no more."""
        if name not in self._processes:
            return ""
        self._processes[name].join(1)
        code = self._processes[name].exitcode
        if code == -signal.SIGKILL:
            return ": it was killed, as by a machine that has too little memory for all of them"
        return f" with exit code {code}"


def _serve(connection: Connection, make: Callable[[], object]) -> None:
    made = None
    with suppress(EOFError, OSError):  # nobody asks any more
        while True:
            function, arguments = connection.recv()
            answer: tuple[EnetError | str | None, object]
            try:
                made = make() if made is None else made
                answer = None, function(made, *arguments)
            except EnetError as error:
                answer = error, None
            except Exception as error:  # noqa: BLE001  said where it was asked
                answer = f"{type(error).__name__}: {error}", None
            connection.send(answer)


def _nothing(made: object) -> None:
    """What the first question is: it only waits for the thing to be made."""


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """What is started inside never hears Ctrl-C or a terminal that closes: the command ends its processes itself."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
