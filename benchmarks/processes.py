"""A process for each of the calls that are timed side by side.

In one process they share more than the clock: with PyTorch's and ONNX Runtime's threads about, OpenVINO took 44 ms for
what took it 38 alone, dropped calls or not. All are there at once, each with its libraries in memory.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from enet_deploy.errors import EnetError

from .timing import DROPPED, gc_paused

Call = Callable[[], object]
Block = Callable[[str, int], list[float]]  # name of a call, how often -> milliseconds of each


@contextmanager
def in_processes(makers: Mapping[str, Callable[[], Call]]) -> Iterator[Block]:
    """Start a process for each, which makes its call there; yields what times a block of one of them.

    The makers have to be picklable: functions of a module, or partials of these. Raises EnetError, here or from a
    block, with what one of them raised or where a process ended.
    """
    context = multiprocessing.get_context("spawn")  # forked threads would hang
    processes: list[BaseProcess] = []
    connections: dict[str, Connection] = {}

    def ask(name: str, calls: int) -> list[float]:
        try:
            connections[name].send(calls)
            answer: list[float] | str = connections[name].recv()
        except (EOFError, OSError):
            raise EnetError(f"the process of '{name}' ended; has the machine memory enough for all of them?") from None
        if isinstance(answer, str):
            raise EnetError(f"{name}: {answer}")
        return answer

    try:
        for name, make in makers.items():
            connections[name], theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, make), daemon=True)
            with theirs:
                process.start()
            processes.append(process)
            ask(name, 0)
        yield ask
    finally:
        for started in processes:
            started.terminate()
            started.join()
        for connection in connections.values():
            connection.close()


def _serve(connection: Connection, make: Callable[[], Call]) -> None:
    call = None
    with suppress(EOFError, OSError, KeyboardInterrupt):  # nobody asks any more
        while True:
            calls = connection.recv()
            try:
                call = make() if call is None else call
                answer: list[float] | str = _times(call, calls)
            except Exception as error:  # noqa: BLE001  said where it was asked
                answer = f"{type(error).__name__}: {error}"
            connection.send(answer)


def _times(call: Call, calls: int) -> list[float]:
    """Milliseconds of each of as many calls, after those that are dropped."""
    times = []
    with gc_paused():
        for _ in range(DROPPED):
            call()
        for _ in range(calls):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
    return times
