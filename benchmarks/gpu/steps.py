"""The list of steps of a GPU's report. `cli` runs each step in a process of its own:

    python -m enet_deploy.benchmarks.gpu.steps STEP WORK FINDINGS.json

A step writes each finding at once, so a crash or the time limit loses none of them. A rehearsal runs the same steps on
the CPU; a step that needs a card says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from enet_deploy import console
from enet_deploy.commands import cli
from enet_deploy.errors import RequirementError

from .contract import NotHere
from .findings import Findings, Settings
from .inference import FORMS, contract, engine, pytorch, speed, throughput
from .machine import estimate, facts
from .session import Session
from .training import WAYS, train_minute, train_speed


@dataclass(frozen=True)
class Step:
    """A part of the report: its title for people, its limit in seconds, and what it does."""

    title: str
    limit: float
    run: Callable[[Session], None]


# In order of value, because the time may be over before the last one
STEPS: dict[str, Step] = {
    "facts": Step("The machine", 45, facts),
    **{f"contract-{name}": Step(f"The contract: {name}", 120, partial(contract, backend=name))
       for name in ("torch", "ort", "trt")},
    "estimate": Step("What to expect, from first principles", 120, estimate),  # exports two graphs on the CPU
    **{f"engine-{name}": Step(f"An engine in {name}", 120, partial(engine, precision=name))
       for name in ("fp16", "fp32", "int8", "fp16-int8")},  # the probably best first
    "speed-trt": Step("Speed: trt", 150, partial(speed, backend="trt")),  # builds three more engines
    **{f"speed-{name}": Step(f"Speed: {name}", 90, partial(speed, backend=name)) for name in ("torch", "ort")},
    "pytorch": Step("PyTorch itself", 90, partial(pytorch, forms=FORMS, ways=("eager", "CUDA graph"))),
    "train-speed": Step("Training speed", 90, partial(train_speed, ways=WAYS[:-1])),
    "train-minute": Step("A minute of training", 110, train_minute),
    **{f"throughput-{name}": Step(f"Throughput: trt in {name}", 90, partial(throughput, precision=name))
       for name in ("int8", "fp16-int8", "fp32")},
    # compiling takes a minute for each network: batches of 1 and 64, forward and backward
    "pytorch-compiled": Step("PyTorch, compiled", 150, partial(pytorch, forms=FORMS[-1:], ways=("compiled",))),
    "train-compiled": Step("Training speed, compiled", 150, partial(train_speed, ways=WAYS[-1:])),
}  # fmt: skip


def _run(args: argparse.Namespace) -> None:
    settings = Settings.read(args.work)
    findings = Findings(args.findings, args.step, settings.rehearsal)
    try:
        STEPS[args.step].run(Session(settings, args.work, findings))
    except NotHere as reason:
        findings.skip(str(reason))
    if findings.failures:
        count = console.counted(len(findings.failures), "failure")
        raise RequirementError(f"{count}: {'; '.join(findings.failures)}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser("steps", description="One step of a GPU's report; see enet_deploy.benchmarks.gpu.")
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("work", type=Path, metavar="WORK", help="folder with settings.json, for graphs and engines")
    parser.add_argument("findings", type=Path, metavar="FINDINGS.json", help="file to write")
    return cli.run(parser, _run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
