"""What is measured after the timing, in the workers' processes: parity, accuracy, unpool flips and profiles."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from enet_deploy import console
from enet_deploy.artifacts import PRECISIONS
from enet_deploy.errors import BackendError
from enet_deploy.images import UInt8Array
from enet_deploy.runners import open_runner
from enet_deploy.trained_on import hashing

from .parity import Parity, compare
from .plan import BenchInputs, BenchOptions, OpenCase
from .processes import Processes
from .profiling import Profile
from .unpool_flips import flips
from .worker import RemoteRunner, Worker, open_worker, spec_of

ON_GRAPHS = ("ort", "openvino", "opencv")
PROFILED = 20  # calls that a profile's medians are taken over


@dataclass
class RunnerComparison:
    """What is known of the runners so far, in their order.

    Attributes:
        reference: PyTorch with the weights that all artifacts came from; None if these are not available.
        of_reference: its own counts.
        parities, profiles: of each runner; empty if not measured.
        hashes: `pixel_hash` of each image that labels were compared on.
        complete: False if Ctrl-C ended the comparison early.
    """

    runners: list[RemoteRunner]
    reference: RemoteRunner | None = None
    of_reference: Parity | None = None
    parities: Sequence[Parity] = ()
    profiles: list[Profile | None] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    complete: bool = False


def compare_runners(
    cases: Sequence[OpenCase],
    processes: Processes,
    inputs: BenchInputs,
    reference: Path | None,
    options: BenchOptions,
) -> RunnerComparison:
    """Compare the open runners, without those of the sweep; Ctrl-C ends it with what is known by then.

    Args:
        reference: the weights that all artifacts came from; None if these are not available.
    """
    found = RunnerComparison([RemoteRunner(processes, case.name, case.spec) for case in cases if not case.swept])
    with suppress(KeyboardInterrupt):
        if reference is not None:
            found.reference = _open_reference(reference, cases[0].spec.size, processes)
        if reference is not None or options.data is not None:
            pairs = console.progress(inputs.pairs, "comparing labels", len(inputs.pairs))
            pairs = hashing(pairs, found.hashes)
            found.of_reference, found.parities, whole = compare(found.reference, found.runners, pairs)
            del found.hashes[found.parities[0].images :]  # of an image that was interrupted
            if not whole:
                return found
        if options.profile:  # before anything else is started that could disturb it
            found.profiles = _profiles(found.runners, inputs.images, cases[0].batch)
        if found.reference is not None:
            _add_flips(found, found.reference, inputs.images)
        found.complete = True
    return found


def _open_reference(weights: Path, size: tuple[int, int], processes: Processes) -> RemoteRunner:
    name = "PyTorch, to compare with"
    processes.start(name, partial(open_worker, partial(open_runner, weights, "torch", size=size)))
    return RemoteRunner(processes, name, processes.ask(name, spec_of))


def _profiles(runners: Sequence[RemoteRunner], images: Sequence[UInt8Array], batch: int) -> list[Profile | None]:
    """The profile of each runner; None if its backend does not tell."""
    found: list[Profile | None] = []
    for runner in console.progress(runners, "profiling"):
        frames = np.concatenate([runner.preprocess(images[i % len(images)]) for i in range(batch)])
        try:
            found.append(runner.profile(frames, PROFILED))
        except BackendError as error:
            print(f"not profiled: {error}")
            found.append(None)
    return found


def _add_flips(found: RunnerComparison, reference: RemoteRunner, images: Sequence[UInt8Array]) -> None:
    """Add the unpool flips of each graph, as ONNX Runtime runs it. An engine does not show its winners, nor does bf16.

    They are counted in the reference's process, which has PyTorch loaded.
    """
    graphs = [
        (runner, parity)
        for runner, parity in zip(found.runners, found.parities, strict=True)
        if runner.spec.backend in ON_GRAPHS and runner.spec.precision in PRECISIONS
    ]
    if not graphs:
        return
    frames = [found.runners[0].preprocess(image) for image in images]
    paths = list(dict.fromkeys(runner.artifact for runner, _ in graphs))
    shares = reference.processes.ask(reference.name, _count_flips, paths, frames)
    for runner, parity in graphs:
        parity.unpool_flips = shares[runner.artifact]


def _count_flips(
    reference: Worker, graphs: list[Path], frames: list[UInt8Array]
) -> dict[Path, dict[str, float] | None]:
    return flips(reference.runner.artifact, graphs, frames)
