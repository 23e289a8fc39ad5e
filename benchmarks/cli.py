"""`enet-bench`: latency, throughput and parity of runners, side by side in one run."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from enet_deploy import console
from enet_deploy.artifacts import BUNDLED_WEIGHTS, QdqLayout
from enet_deploy.commands import cli
from enet_deploy.data import DataSet, files_of, require_same_classes
from enet_deploy.environment import environment
from enet_deploy.errors import InputError
from enet_deploy.files import atomic_write, require_outputs, sha256
from enet_deploy.fit import FITS
from enet_deploy.runners import BACKENDS, ON_REQUEST, artifact_files, backends_for
from enet_deploy.trained_on import count

from . import compare
from .gate import Requirement, judge, judged_figures, parse_requirements, require_all, require_measurable
from .measure.comparison import RunnerComparison, compare_runners
from .measure.plan import (
    Artifact,
    BenchInputs,
    BenchOptions,
    OpenCase,
    Point,
    named_artifacts,
    open_cases,
    open_inputs,
    plan_cases,
)
from .measure.processes import Processes
from .measure.timing import Timing, measure
from .measure.worker import use_feed
from .result import Result
from .run import Reference, Run
from .statistics import Summary
from .verdict import FIGURES

if TYPE_CHECKING:
    from rich.console import Console

    from enet_deploy.export.record import Record
    from enet_deploy.weights import Weights

    from .report.page import Picture

PICTURES = 4
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int8-openvino", "int8-ort", "fp16-int8", "bf16-int8")
_NAME = "enet"  # with which the files of `enet-export` begin
_LAYOUTS: dict[str, QdqLayout] = {"int8-openvino": "openvino", "int8-ort": "ort"}  # of the other graphs: "all"
# What is computed in bf16 -> the graph for it
_GRAPHS = {"bf16": "fp32", "bf16-int8": "int8-openvino"}
WIDTH = 132  # columns of the widest table of an ordinary run


# --- enet-bench [ARTIFACT ...] ------------------------------------------------------------------------------------


def _bench(args: argparse.Namespace) -> None:
    options = BenchOptions(**{each.name: getattr(args, each.name) for each in fields(BenchOptions)})
    outputs = _outputs(args)
    requirements = parse_requirements(args.require) if args.require is not None else []
    weights_sha256 = _require(options, outputs, requirements)
    machine = environment()  # before a load of our own
    inputs = open_inputs(options)
    run, pictures, has_reference = _run(options, weights_sha256, inputs, machine, requirements, "html" in outputs)
    _give(run, outputs, pictures)
    if run.partial:
        raise KeyboardInterrupt("what is above and in the files is partial")
    if not has_reference:
        print(f"parity is not measured: not all of these came from the weights {options.weights}; see --weights")
    if options.data is None:
        print("accuracy is not measured: the frames have no truth; see --data")
    _judge(judged_figures(run.results, run.accuracy_of_reference), requirements)


def _judge(found: Mapping[str, Mapping[str, float | None]], requirements: Sequence[Requirement]) -> None:
    """Print what was measured beside what is required. Raises RequirementError if a condition does not hold."""
    if not requirements:
        return
    from .report.tables import show_judged

    judged = judge(found, requirements)
    show_judged(judged, _terminal())
    require_all(judged)


def measured(args: argparse.Namespace) -> Run:
    """Return what the command measures. The result is not printed and no file is written."""
    options = BenchOptions(**{each.name: getattr(args, each.name) for each in fields(BenchOptions)})
    weights_sha256 = _require(options, {}, [])
    return _run(options, weights_sha256, open_inputs(options), environment(), [], False)[0]


def _require(options: BenchOptions, outputs: dict[str, Path], requirements: Sequence[Requirement]) -> str:
    """Raise now what would only be found after minutes of measuring. Returns the SHA-256 of the weights."""
    weights_sha256 = _check_weights(options.weights)
    exported = [precision for precision in options.precisions if precision not in ON_REQUEST]
    if options.artifacts and (exported or options.calibration):
        given = f"precision {exported[0]}" if exported else "calibration"
        raise InputError(f"--{given} is for what is exported here, expected no ARTIFACT with it")
    if exported and not options.runs_graphs:
        raise InputError(f"--precision is for graphs, expected a --backend of {', '.join(backends_for('enet.onnx'))}")
    import psutil  # noqa: F401  a missing package is named now
    import rich  # noqa: F401

    artifacts = [path for artifact in options.artifacts for path in artifact_files(artifact)]
    data = [] if options.data is None else files_of(options.data, options.split)
    _require_outputs(outputs, [*artifacts, options.weights, options.calibration, options.video, *data])
    require_measurable(requirements, truth=options.data is not None, reference=True)
    return weights_sha256


def _check_weights(weights: Path) -> str:
    """Raise ArtifactError unless they are whole. Returns their SHA-256."""
    cli.require_weights(weights)
    if weights != BUNDLED_WEIGHTS:  # these are whole, and are the default also on robots without PyTorch
        from enet_deploy.weights import Weights

        return Weights.read(weights).sha256
    return sha256(weights)


def _run(
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
        )
        pictures = _pictures(run, comparison, inputs) if with_pictures and complete else []
    return run, pictures, has_reference


def _exports(options: BenchOptions, weights_sha256: str, folder: Path) -> Iterator[Artifact]:
    """The weights, and a graph of them in each precision for each point if a backend runs graphs."""
    weights = options.weights
    shown = weights.name if weights == BUNDLED_WEIGHTS else str(weights)
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
        form = _GRAPHS.get(precision, precision)
        path = folder / str(number) / f"{name}-{form}.onnx"
        if not path.exists():
            _export(opened, path, form, point, record)
        precision_asked = None if form == precision else "bf16"
        yield Artifact(path, path.name, [point], precision_asked, _export_options(options, form, point))


def _export_options(options: BenchOptions, form: str, point: Point) -> tuple[str, ...]:
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


# --- the outputs --------------------------------------------------------------------------------------------------


def _outputs(args: argparse.Namespace) -> dict[str, Path]:
    """Kind -> file, of the kinds that are asked for."""
    return {kind: path for kind in ("json", "markdown", "csv", "html") if (path := getattr(args, kind)) is not None}


def _require_outputs(outputs: dict[str, Path], inputs: Sequence[Path | None]) -> None:
    """Raise now if an output cannot be written, is read too, or is named twice."""
    require_outputs(outputs.values(), inputs)
    if "html" in outputs:
        from .report import page  # noqa: F401  a missing package is named now


def _give(run: Run, outputs: dict[str, Path], pictures: Sequence[Picture] = ()) -> None:
    """Write the files and print the run. Files come first, because the reader of stdout may go away."""
    from .report.tables import as_csv, as_markdown, show

    for kind, path in console.progress(outputs.items(), "writing", len(outputs)):
        if kind == "json":
            run.write(path)
            continue
        if kind == "html":
            from .report.page import as_html

            text = as_html(run, pictures)
        else:
            text = as_markdown(run) if kind == "markdown" else as_csv(run)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files
    show(run, _terminal())
    for path in outputs.values():
        print(f"wrote {path}")


def _terminal() -> Console:
    """Where tables are printed: as wide as the terminal, or as COLUMNS says; else wide enough for all columns."""
    from rich.console import Console

    stream = console.unfiltered(sys.stdout)  # the run's names are printable
    is_known = "COLUMNS" in os.environ or (stream is not None and stream.isatty())
    return Console(file=stream, width=None if is_known else WIDTH, highlight=False)


# --- enet-bench show, enet-bench compare --------------------------------------------------------------------------


def _show(args: argparse.Namespace) -> None:
    outputs = _outputs(args)
    _require_outputs(outputs, [args.run])
    _give(Run.read(args.run), outputs)


def _compare_runs(args: argparse.Namespace) -> None:
    requirements = [] if args.require is None else parse_requirements(args.require, compare.FIGURES)
    found = compare.compare_runs(Run.read(args.first), Run.read(args.second))
    print("\n".join(compare.as_lines(found)))
    if requirements:
        _judge(compare.judged_figures(found), requirements)


# --- the command line ---------------------------------------------------------------------------------------------


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        "enet-bench",
        description="Latency, throughput and parity of runners, side by side in one run.",
        epilog="Also: enet-bench compare FIRST.json SECOND.json; enet-bench show RUN.json, with outputs as above. "
        f"Figures of --require: {', '.join(FIGURES)}; drops are in points against PyTorch fp32, agreement, flips and "
        "accuracies are shares from 0 to 1.",
        examples=(
            "enet-bench --precision fp32,int8 --html report.html",
            'enet-bench enet-camvid mine-int8.onnx --data DATA --require "miou_drop<=0.3"',
        ),
    )
    add = parser.add_argument
    add(
        "artifacts", nargs="*", type=Path, metavar="ARTIFACT",
        help="weights, graphs, engines, names of bundled weights; the first is the baseline (default: --weights and "
        "their exports)",
    )  # fmt: skip
    add(
        "--weights", type=cli.weights, default=BUNDLED_WEIGHTS,
        help="parity is measured against these (default: enet-camvid)",
    )  # fmt: skip
    add(
        "--precision", dest="precisions", type=cli.listed(cli.one_of(PRECISIONS)), default=(), metavar="P,...",
        help=f"what to export if no ARTIFACT is named, of {', '.join(PRECISIONS)} (default: fp32); beside ARTIFACTs "
        "bf16 alone, which runs each of them in bf16 too",
    )  # fmt: skip
    add("--calibration", type=Path, metavar="RECORD", help="for int8 of --weights (default: bundled)")
    add = parser.add_argument_group("where").add_argument
    add(
        "--backend", dest="backends", action="append", choices=BACKENDS,
        help="may be repeated (default: all that are installed, except trt)",
    )  # fmt: skip
    add("--fit", choices=FITS, help="how images become frames (default: as each artifact says)")
    add("--device", help="cpu, cuda or cuda:N (default: the backend's own)")
    add("--threads", type=int, default=0, metavar="N", help="of ort, openvino and opencv (default: their choice)")
    add(
        "--size", dest="sizes", type=cli.listed(cli.size), default=(), metavar="HxW,...",
        help="frame size (default: the artifact's). All is measured at the first; the others are only timed",
    )  # fmt: skip
    add(
        "--batch", dest="batches", type=cli.listed(cli.positive), default=(), metavar="N,...",
        help="frames per call (default: the graph's); several as with --size",
    )  # fmt: skip
    add = parser.add_argument_group("on which images, and for how long").add_argument
    add("--frames", type=cli.positive, default=100, metavar="N", help="timed per runner (default: %(default)s)")
    add(
        "--seconds", type=cli.not_negative, default=0.0, metavar="S",
        help="least time in infer per runner, beside --frames",
    )  # fmt: skip
    add("--data", help="data set: real images, and accuracy as well as parity")
    add("--split", default="val", help="of --data (default: %(default)s)")
    add(
        "--from-video",
        dest="video",
        type=Path,
        metavar="FILE",
        help="time the whole loop on it: decode, segment, overlay",
    )
    add = parser.add_argument_group("more to find out").add_argument
    add("--profile", action="store_true", help="show where the time goes too, operation by operation")
    add("--require", metavar="CONDITIONS", help='exit with 1 unless all hold: "miou_drop<=0.3,p90_ms<=20"')
    _add_outputs(parser)
    return parser


def _show_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "enet-bench show",
        description="Print a stored run, and write it in other forms.",
        examples=("enet-bench show run.json --html report.html", "enet-bench show run.json --csv run.csv"),
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a file of --json")
    _add_outputs(parser)
    return parser


def _compare_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "enet-bench compare",
        description="Say for each runner of two runs which one is faster.",
        examples=("enet-bench compare before.json after.json",),
    )
    parser.add_argument("first", type=Path, metavar="FIRST", help="a file of --json")
    parser.add_argument("second", type=Path, metavar="SECOND", help="another one")
    parser.add_argument(
        "--require", metavar="CONDITIONS",
        help='exit with 1 unless all hold for every runner that changed: "speedup_low>=0.95"; figures: '
        f"{', '.join(compare.FIGURES)}",
    )  # fmt: skip
    return parser


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("outputs").add_argument
    add("--json", type=Path, metavar="FILE", help="write the whole result to FILE")
    add("--html", type=Path, metavar="FILE", help="write a report with charts to FILE, one page for a browser")
    add("--markdown", type=Path, metavar="FILE", help="write a table and the verdict to FILE")
    add("--csv", type=Path, metavar="FILE", help="write a line of figures per runner to FILE")


# argparse's subparsers would take a first ARTIFACT for the name of a subcommand
_SUBCOMMANDS: dict[str, tuple[Callable[[], argparse.ArgumentParser], Callable[[argparse.Namespace], None]]] = {
    "show": (_show_parser, _show),
    "compare": (_compare_parser, _compare_runs),
}


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in _SUBCOMMANDS:
        parser, command = _SUBCOMMANDS[argv[0]]
        return cli.run(parser(), command, argv[1:])
    return cli.run(make_parser(), _bench, argv)


if __name__ == "__main__":
    raise SystemExit(main())
