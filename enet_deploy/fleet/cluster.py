"""Ray: connect to a cluster or start one on this machine, and label the parts of a run with actors."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from ..child import python_main
from ..control_groups import allowed_threads
from ..errors import BackendError, EnetError, InputError
from .labeller import PartLabeller, Task, counts, open_once
from .output import Output

# Ray reads them when it is imported. By default it reports its use to its maker, and prints what its own code logs
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import ray
import ray.data
import ray.exceptions

log = logging.getLogger(__name__)

CONNECT_SECONDS = 20  # to wait for a cluster's answer
OPEN_SECONDS = 300  # to wait until the cluster has a core free and has opened the network
RETRIES = 20  # of a worker and of a part; Ray Data has no limit. A file that kills its worker takes three
MAX_BLOCKS = 2000  # tasks of a run; each costs the driver some memory


@dataclass(frozen=True)
class Workers:
    """How many actors a run has, and how many GPUs each takes, 0 or 1."""

    count: int
    gpus: int


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to the cluster at HOST:PORT; without one, start one of the cores that this process may use. Ends it.

    Raises InputError for another address, BackendError if no cluster answers.
    """
    if address is not None:
        _require_answer(address)
    handler = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"include_dashboard": False, "num_cpus": allowed_threads() or os.cpu_count()}
    try:
        with _quiet():
            ray.init(**options)
    except (OSError, RuntimeError, ValueError) as error:
        raise BackendError(f"Ray does not start: {error}; see ray status") from None
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has put its own in its place
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are ours to report
        yield
    finally:
        ray.shutdown()


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what Ray's libraries print to standard error in this block: that they log, and at which level."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _require_answer(address: str) -> None:
    """Ask a cluster for its health in a process that can be ended: `ray.init` would wait for minutes."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()) or "/" in address:
        raise InputError(f"--address {address}, expected HOST:PORT of the cluster's head, such as 10.0.0.1:6379")
    command = python_main("ray.scripts.scripts", "health-check", "--address", address)
    with suppress(subprocess.TimeoutExpired):
        if subprocess.run(command, capture_output=True, timeout=CONNECT_SECONDS).returncode == 0:
            return
    raise BackendError(
        f"no Ray cluster answers at {address} within {CONNECT_SECONDS} s; start one with ray get-auth-token --generate "
        "(its token, on all machines) and ray start --head, or leave --address out to use this machine's cores"
    )


def workers(task: Task, count: int | None) -> Workers:
    """Return the actors to start: one per core, or per GPU for a device of CUDA; fewer if `count` says so.

    Raises InputError if the cluster has fewer than `count`.
    """
    on_gpu = (task.runner["device"] or "cpu") != "cpu" or task.runner["backend"] == "trt"
    kind = "GPU" if on_gpu else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    if there < max(count or 1, 1):
        raise InputError(f"the cluster has {there} {kind}s, expected {count or 1} at least; give fewer --workers")
    return Workers(count or there, int(on_gpu))


def probe(task: Task, each: Workers) -> dict[str, Any]:
    """Open the runner on the cluster once.

    Raises what that raises, BackendError if no core is free in time, ModuleNotFoundError if a node lacks this package.
    """
    opening = ray.remote(num_cpus=1, num_gpus=each.gpus)(open_once).remote(task)
    try:
        found = ray.get(opening, timeout=OPEN_SECONDS)
    except ray.exceptions.GetTimeoutError:
        raise BackendError(f"no worker opened the network within {OPEN_SECONDS} s; {_free(each)}; try later") from None
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, EnetError | ModuleNotFoundError):
            raise cause from None
        raise BackendError(f"the network cannot be opened on the cluster: {_reason(error)}") from None
    return dict(found)


def _free(each: Workers) -> str:
    """Say how many of the cluster's cores and GPUs other work leaves."""
    free, there = ray.available_resources(), ray.cluster_resources()
    kinds = ("CPU", "GPU") if each.gpus else ("CPU",)
    return " and ".join(f"{free.get(kind, 0):g} of {there.get(kind, 0):g} {kind}s are free" for kind in kinds)


def label_parts(task: Task, parts: Mapping[int, list[str]], each: Workers) -> Iterator[tuple[int, int]]:
    """Label parts with Ray Data; yield (frames, errors) of each as it is written.

    Ray starts killed actors again and gives their parts to others. If it gives up nevertheless, what is left is tried
    again as long as a try writes at least one part. Raises BackendError with the reason if it does not.
    """
    left, out = dict(parts), Output(task.out)
    while left:
        reason, told = "parts were lost", set()
        try:
            for row in _dataset(task, left, each).iter_rows():
                told.add(int(row["part"]))
                yield int(row["frames"]), int(row["errors"])
        except ray.exceptions.RayError as error:
            reason = _reason(error)
            log.warning("a worker failed: %s", reason)
        written = out.written()
        for number in sorted(left.keys() & written - told):  # rows that Ray had not handed over when it gave up
            yield counts(out, number)
        remaining = {number: names for number, names in left.items() if number not in written}
        if len(remaining) == len(left):
            raise BackendError(
                f"{len(left)} of {len(parts)} parts are left, and no worker can write one: {reason}; the same command "
                "goes on once that is mended"
            )
        left = remaining


def _dataset(task: Task, parts: Mapping[int, list[str]], each: Workers) -> Any:
    """The core: a row per part, and actors that each hold an open runner."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"part": number, "names": json.dumps(names)} for number, names in parts.items()]
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_BLOCKS))
    with warnings.catch_warnings():  # Ray 2.60 warns of options for actors without a name of its own for them
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        return dataset.map_batches(
            PartLabeller,
            fn_constructor_args=(task,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(each.count, len(rows))),
            num_cpus=1,
            num_gpus=each.gpus,
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
        )


def _reason(error: BaseException) -> str:
    """The last line of an error that says something: Ray's have a traceback in their text."""
    texts = map(
        str, filter(None, (getattr(error, "cause", None), error.__cause__, error))
    )  # Ray Data's causes are empty
    lines = next(([line.strip() for line in text.splitlines() if line.strip()] for text in texts if text.strip()), [])
    return lines[-1] if lines else type(error).__name__
