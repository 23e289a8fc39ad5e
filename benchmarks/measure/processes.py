"""A process for each object that is timed side by side with others.

In one process they disturb each other: beside PyTorch's and ONNX Runtime's threads, OpenVINO took 44 ms for a call that
takes 38 ms alone, also with the first calls dropped. All processes exist at once, each with its libraries in memory.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from enet_deploy.errors import EnetError


class Processes:
    """Processes by name, each with an object that it has made. They end with the `with` block.

    Makers, functions, arguments and answers must be picklable: a function of a module, or a partial of one.
    After a Ctrl-C during `ask` the answer is still in the pipe: ask that process nothing more.
    """

    def __init__(self) -> None:
        self._context = multiprocessing.get_context(
            "spawn"
        )  # a forked child would wait for threads that it does not have
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
        """Make an object in a new process. Raises the same errors as `ask`."""
        self._connections[name], theirs = self._context.Pipe()
        with theirs, _signals_ignored(), _among_pythons_modules() as here:
            process = self._context.Process(target=_serve, args=(theirs, make, here), daemon=True)
            process.start()
        self._processes[name] = process
        self.ask(name, _wait)

    def ask(self, name: str, function: Callable[..., Any], *arguments: object) -> Any:
        """Call function(object, *arguments) in the process and return its answer.

        Raises the EnetError that it raised. Raises EnetError too for any other exception there, with its text, and if
        the process has ended.
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
        """Why a process has ended, in words."""
        if name not in self._processes:
            return ""
        self._processes[name].join(1)
        code = self._processes[name].exitcode
        if code == -signal.SIGKILL:
            return ": it was killed, as by a machine that has too little memory for all of them"
        return f" with exit code {code}"


def _serve(connection: Connection, make: Callable[[], object], folder: str) -> None:
    os.chdir(folder)
    made = None
    with suppress(EOFError, OSError):  # the parent has closed the pipe
        while True:
            function, arguments = connection.recv()
            answer: tuple[EnetError | str | None, object]
            try:
                made = make() if made is None else made
                answer = None, function(made, *arguments)
            except EnetError as error:
                answer = error, None
            except Exception as error:  # noqa: BLE001  `ask` raises it in the parent
                answer = f"{type(error).__name__}: {error}", None
            connection.send(answer)


def _wait(made: object) -> None:
    """Do nothing: the first question only waits until the object is made."""


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """Processes started in the block ignore Ctrl-C and a closed terminal: the command ends its processes itself."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _among_pythons_modules() -> Iterator[str]:
    """Change to the folder of Python's own modules during the block. Yields the path of the folder before.

    A new Python looks for modules in its current folder first, and would run a pickle.py that lies there.
    """
    here = str(Path.cwd())
    os.chdir(Path(os.__file__).parent)
    try:
        yield here
    finally:
        os.chdir(here)
