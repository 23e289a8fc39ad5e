"""Long runs, for robots that never stop: memory, threads and handles must not grow over 100,000 frames.

python -m enet_deploy.benchmarks.studies.soak enet-fp32.onnx --backend openvino
"""

from __future__ import annotations

import argparse
import gc
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from enet_deploy import console
from enet_deploy.commands import cli
from enet_deploy.data.scenes import street_scene
from enet_deploy.environment import environment
from enet_deploy.errors import RequirementError
from enet_deploy.files import require_outputs, write_json
from enet_deploy.markdown import markdown_table
from enet_deploy.runners import Runner, open_runner

THREADS = 8
WARM_UP = 0.05  # share of a phase's steps that is not counted: libraries fill their pools
Step = Callable[[], None]


@dataclass(frozen=True)
class Phase:
    """What a process held before and after many repetitions of a step.

    Attributes:
        name: of the step.
        times: number of counted repetitions.
        seconds: of all of them.
        start_mb, end_mb: resident memory.
        start_threads, end_threads, start_handles, end_handles: of the operating system.
    """

    name: str
    times: int
    seconds: float
    start_mb: float
    end_mb: float
    start_threads: int
    end_threads: int
    start_handles: int
    end_handles: int

    def flaw(self, max_growth: float) -> str:
        """What the process kept; "" if that is at most `max_growth` MB, and no thread or handle."""
        kept = [f"{self.end_mb - self.start_mb:.1f} MB"] if self.end_mb - self.start_mb > max_growth else []
        for what in ("threads", "handles"):
            more = getattr(self, f"end_{what}") - getattr(self, f"start_{what}")
            kept += [f"{more} {what}"] if more > 0 else []
        return f"{self.name} kept {', '.join(kept)}" if kept else ""


def watch(name: str, step: Step, times: int) -> Phase:
    """Repeat a step; compare what the process holds after the warm-up and after the last repetition."""
    warm_up = max(1, int(times * WARM_UP))
    before, start = _held(), time.perf_counter()
    for index in console.progress(range(warm_up + times), name):
        if index == warm_up:
            before, start = _held(), time.perf_counter()
        step()
    seconds, after = time.perf_counter() - start, _held()
    sides = {f"{side}_{what}": held[what] for side, held in (("start", before), ("end", after)) for what in held}
    return Phase(name, times, seconds, **sides)


def _held() -> dict[str, Any]:
    import psutil

    gc.collect()
    process = psutil.Process()
    return {"mb": process.memory_info().rss / 1e6, "threads": process.num_threads(), "handles": process.num_fds()}


def phases(open_one: Callable[[], Runner], inferences: int, reopenings: int) -> Iterable[Phase]:
    """Yield each phase when it is over. Raises RequirementError if a frame's labels change."""
    with ThreadPoolExecutor(THREADS) as pool, open_one() as runner:
        frames = np.stack([street_scene(0, runner.spec.size)[0]] * (runner.spec.batch or 1))
        expected = runner.infer(frames)
        together = threading.Barrier(THREADS)
        own: dict[int, Runner] = {}  # of each thread

        def infer(runner: Runner = runner) -> None:
            if not np.array_equal(runner.infer(frames), expected):
                raise RequirementError("the labels of a frame changed from one call to another, expected the same")

        def at_once(step: Step) -> None:
            def one(_: int) -> None:
                together.wait()
                step()

            list(pool.map(one, range(THREADS)))

        def infer_with_own() -> None:
            thread = threading.get_ident()
            if thread not in own:
                own[thread] = open_one()
            infer(own[thread])

        def reopen() -> None:
            with open_one() as another:
                infer(another)

        rounds = max(1, inferences // THREADS // 10)
        yield watch("one thread, one runner", infer, inferences)
        yield watch(f"{THREADS} threads, one runner", lambda: at_once(infer), rounds)
        yield watch(f"{THREADS} threads, a runner each", lambda: at_once(infer_with_own), rounds)
        for each in own.values():
            each.close()
        yield watch("open, infer, close", reopen, reopenings)


def as_markdown(measured: Sequence[Phase]) -> str:
    """The phases as a table."""
    rows = [
        (
            phase.name,
            f"{phase.times:,}",
            f"{phase.seconds / phase.times * 1e3:.1f}",
            f"{phase.start_mb:.1f} to {phase.end_mb:.1f}",
            f"{phase.start_threads} to {phase.end_threads}",
            f"{phase.start_handles} to {phase.end_handles}",
        )
        for phase in measured
    ]
    return markdown_table(["", "times", "ms each", "memory, MB", "threads", "handles"], rows)


def _soak(args: argparse.Namespace) -> None:
    require_outputs([args.json], [])
    machine = environment()
    open_one = partial(open_runner, args.artifact, args.backend, args.device)
    measured: list[Phase] = []
    print(as_markdown(measured), flush=True)
    try:  # a phase takes hours: what is known is kept, however the rest ends
        for phase in phases(open_one, args.inferences, args.reopenings):
            measured.append(phase)
            print(as_markdown([phase]).splitlines()[-1], flush=True)
    finally:
        if args.json is not None and measured:
            result = {"schema": 1, "environment": machine, "artifact": args.artifact.name, "backend": args.backend}
            write_json(args.json, result | {"phases": [asdict(phase) for phase in measured]})
    flaws = [flaw for phase in measured if (flaw := phase.flaw(args.max_growth))]
    if flaws:
        raise RequirementError("; ".join(flaws))


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        "python -m enet_deploy.benchmarks.studies.soak",
        description="Run one artifact for a long time, in one thread and in eight, and open and close it often. Exit "
        "code 1 if memory, threads or handles grow, or if a label changes.",
    )
    cli.add_artifact(parser)
    in_threads = "in one thread, and a tenth of it in eight (%(default)s)"
    parser.add_argument("--inferences", type=cli.positive, default=100_000, metavar="N", help=in_threads)
    parser.add_argument("--reopenings", type=cli.positive, default=500, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--max-growth", type=cli.not_negative, default=16.0, metavar="MB", help="of memory in a phase (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return cli.run(parser, _soak, argv)


if __name__ == "__main__":
    raise SystemExit(main())
