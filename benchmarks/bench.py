"""One run of `enet-bench`: export the weights, open runners in processes of their own, time and compare them."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from enet_deploy import console
from enet_deploy.artifacts import BUNDLED_WEIGHTS, QdqLayout
from enet_deploy.data import DataSet, require_same_classes
from enet_deploy.files import sha256
from enet_deploy.trained_on import count

from .gate import Requirement, require_measurable
from .measure.comparison import RunnerComparison, compare_runners
from .measure.plan import (
    Artifact,
    BenchInputs,
    BenchOptions,
    OpenCase,
    Point,
    named_artifacts,
    open_cases,
    plan_cases,
)
from .measure.processes import Processes
from .measure.timing import Timing, measure
from .measure.worker import use_feed
from .result import Result
from .run import Reference, Run
from .statistics import Summary

if TYPE_CHECKING:
    from enet_deploy.export.record import Record
    from enet_deploy.weights import Weights

    from .report.page import Picture

PICTURES = 4
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int8-openvino", "int8-ort", "fp16-int8", "bf16-int8")
_NAME = "enet"  # with which the files of `enet-export` begin
_LAYOUTS: dict[str, QdqLayout] = {"int8-openvino": "openvino", "int8-ort": "ort"}  # of the other graphs: "all"
# What is computed in bf16 -> the graph for it
GRAPHS = {"bf16": "fp32", "bf16-int8": "int8-openvino"}


def measure_run(
    options: BenchOptions,
    weights_sha256: str,
    inputs: BenchInputs,
    machine: dict[str, Any],
    requirements: Sequence[Requirement],
    with_pictures: bool,
) -> tuple[Run, list[Picture], bool]:
    """Measure. Returns the run, pictures of a few frames, and whether all artifacts came from the weights."""
    from .measure.machine import watched
    from .measure.profiling import measure_peaks

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        artifacts = named_artifacts(options) if options.artifacts else _exports(options, weights_sha256, folder)
        planned = plan_cases(artifacts, options)
        processes = stack.enter_context(Processes())
        _say(f"opening {console.counted(len(planned), 'runner')}, each in a process of its own")
        cases = open_cases(planned, options, processes)
        if isinstance(inputs.pairs, DataSet):
            spec = cases[0].spec
            require_same_classes(spec.classes, inputs.pairs.classes, f"{options.data}", f"{spec.artifact} knows")
        has_reference = {case.spec.weights_sha256 for case in cases} == {weights_sha256}
        require_measurable(requirements, truth=options.data is not None, reference=has_reference)
        with watched() as load:
            for case in cases:
                processes.ask(case.name, use_feed, inputs.make_feed)
            _say(f"timing {console.counted(len(cases), 'runner')}, at least {options.frames} frames each")
            batches = {case.name: case.batch for case in cases}
            timings, complete = measure(processes, batches, options.frames, options.seconds)
            during = load()
        comparison = RunnerComparison([])
        if complete:
            if has_reference or options.data is not None:
                _say(f"comparing labels on {len(inputs.pairs)} images")
            reference = options.weights if has_reference else None
            comparison = compare_runners(cases, processes, inputs, reference, options)
        complete = comparison.complete
        accuracy = None if comparison.of_reference is None else comparison.of_reference.accuracy()
        results = _results(cases, timings, comparison)
        run = Run(
            partial=not complete,
            environment=machine,
            load=during,
            images=inputs.described,
            peaks=measure_peaks() if comparison.profiles else None,
            reference=None if comparison.of_reference is None else Reference("torch", accuracy),
            results=tuple(result for result, case in zip(results, cases, strict=True) if not case.swept),
            sweep=tuple(result for result, case in zip(results, cases, strict=True) if case.swept),
            compared=len(comparison.hashes) or None,
        )
        pictures = _pictures(run, comparison, inputs) if with_pictures and complete else []
    return run, pictures, has_reference


def _exports(options: BenchOptions, weights_sha256: str, folder: Path) -> Iterator[Artifact]:
    """The weights, and a graph of them in each precision for each point if a backend runs graphs."""
    weights = options.weights
    shown = weights.stem if weights == BUNDLED_WEIGHTS else str(weights)
    yield Artifact(weights, shown, options.points)
    if "bf16" in options.precisions:
        yield Artifact(weights, shown, options.points, "bf16")
    if not options.runs_graphs:
        return
    from enet_deploy.export.record import record_for
    from enet_deploy.weights import Weights

    record = None
    precisions = options.precisions or ("fp32",)
    if any("int8" in precision for precision in precisions):
        record = record_for(weights_sha256, options.calibration)
    wanted = list(product(precisions, enumerate(options.points)))
    name = _NAME if weights == BUNDLED_WEIGHTS else weights.stem
    _say(f"exporting {weights.name} as {', '.join(precisions)}")
    opened = Weights.read(weights)
    for precision, (number, point) in console.progress(wanted, "exporting"):
        form = GRAPHS.get(precision, precision)
        path = folder / str(number) / f"{name}-{form}.onnx"
        if not path.exists():
            _export(opened, path, form, point, record)
        precision_asked = None if form == precision else "bf16"
        yield Artifact(path, path.name, [point], precision_asked, export_options(options, form, point))


def export_options(options: BenchOptions, form: str, point: Point) -> tuple[str, ...]:
    """The options of the `enet-export` that makes the same graph as `_export`, in the current folder."""
    size, batch = point
    is_int8, is_own = "int8" in form, options.weights != BUNDLED_WEIGHTS
    words = [f"--{part}" for part in ("fp16", "int8") if part in form]
    for name, value, is_needed in (
        ("weights", options.weights, is_own),
        ("name", options.weights.stem, is_own),
        ("target", _LAYOUTS.get(form), form in _LAYOUTS),
        ("calibration", options.calibration, is_int8 and options.calibration is not None),
        ("size", size and f"{size[0]}x{size[1]}", size is not None),
        ("batch", batch, batch is not None),
        ("data", options.data, options.data is not None),
        ("split", options.split, options.data is not None and options.split != "val"),
    ):
        words += [f"--{name}", str(value)] if is_needed else []
    return tuple(words)


def _export(weights: Weights, path: Path, form: str, point: Point, record: Record | None) -> None:
    """Export the weights as a graph of this form, one of `PRECISIONS`, for this frame size and batch."""
    from enet_deploy.export.int8 import quantize
    from enet_deploy.export.to_onnx import to_onnx

    change = None
    if record is not None and "int8" in form:
        change = partial(quantize, record=record, qdq_layout=_LAYOUTS.get(form, "all"))
    to_onnx(
        weights,
        path,
        precision="fp16" if "fp16" in form else "fp32",
        size=point[0],
        batch=point[1] or 1,
        logits=True,  # to compare them; ONNX Runtime takes a tenth longer for it, OpenVINO no longer
        quantize=change,
        max_disagreement=1.0,  # this command reports the labels, whatever they are
    )


def _results(cases: Sequence[OpenCase], timings: dict[str, Timing], comparison: RunnerComparison) -> list[Result]:
    """A result of each case; cases of the sweep are not compared."""
    parities, profiles = iter(comparison.parities), iter(comparison.profiles)
    results = []
    for case in cases:
        parity, profile = (None, None) if case.swept else (next(parities, None), next(profiles, None))
        spec, timing = case.spec, timings[case.name]
        stages = {stage: [ms for block in blocks for ms in block] for stage, blocks in timing.blocks.items()}
        samples = stages[timing.compared]
        results.append(
            Result(
                backend=spec.backend,
                device=spec.device,
                precision=spec.precision,
                qdq_layout=spec.qdq_layout or None,
                artifact=case.shown,
                runtime=spec.runtime,
                options=case.options,
                size=spec.size,
                batch=timing.batch,
                warm_up=timing.warm_up,
                timed=timing.compared,
                latency_ms=Summary.of(samples),
                stages_ms={stage: Summary.of(ms) for stage, ms in stages.items()},
                samples_ms=tuple(round(ms, 4) for ms in samples),
                blocks=tuple(len(block) for block in timing.blocks[timing.compared]),
                stream_ms=tuple(round(ms, 4) for ms in timing.stream),
                model_bytes=case.artifact.stat().st_size,
                peak_bytes=case.peak_bytes,
                parity=None if parity is None else parity.figures(),
                accuracy=None if parity is None else parity.accuracy(),
                profile=profile,
                trained_on=count(spec.trained_on, comparison.hashes) if comparison.hashes else None,
                artifact_sha256=sha256(case.artifact),
                export=case.export,
            )
        )
    return results


def _pictures(run: Run, comparison: RunnerComparison, inputs: BenchInputs) -> list[Picture]:
    """What the advised runner says of a few frames; half of them are those that it differs on most."""
    from .report.page import Picture

    names = [result.name for result in run.results]
    taken = run.verdict[0].take
    index = names.index(taken) if taken in names else 0
    runner, reference = comparison.runners[index], comparison.reference
    agreement = comparison.parities[index].frames if comparison.parities else []
    worst = sorted(range(len(agreement)), key=agreement.__getitem__)[: PICTURES // 2]
    spread = np.linspace(0, len(inputs.pairs) - 1, PICTURES).astype(int).tolist()
    pictures = []
    for number in list(dict.fromkeys([*worst, *spread]))[:PICTURES]:
        image, truth = inputs.pairs[number]
        frame = runner.preprocess(image)
        labels = runner.infer(np.repeat(frame, runner.spec.batch or 1, axis=0))[0]
        expected = None if reference is None else reference.infer(frame)[0]
        pictures.append(Picture(number, names[index], frame[0], labels, expected, truth, runner.spec.classes))
    return pictures


def _say(what: str) -> None:
    """Print a sign of life for a log; a terminal has progress bars."""
    if not sys.stderr.isatty():
        print(f"{what} ...", flush=True)
