"""`enet-bench`: latency, throughput and parity of runners, side by side in one run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from enet_deploy import console
from enet_deploy.artifacts import BUNDLED_WEIGHTS
from enet_deploy.commands import cli
from enet_deploy.data import files_of
from enet_deploy.environment import environment
from enet_deploy.errors import InputError
from enet_deploy.files import atomic_write, require_outputs, sha256
from enet_deploy.fit import FITS
from enet_deploy.runners import BACKENDS, ON_REQUEST, artifact_files, backends_for

from . import compare
from .bench import PRECISIONS, measure_run
from .gate import Requirement, judge, judged_figures, parse_requirements, require_all, require_measurable
from .measure.plan import (
    BenchOptions,
    open_inputs,
)
from .run import Run
from .verdict import FIGURES

if TYPE_CHECKING:
    from rich.console import Console

    from .report.page import Picture

WIDTH = 132  # columns of the widest table of an ordinary run


# --- enet-bench [ARTIFACT ...] ------------------------------------------------------------------------------------


def _bench(args: argparse.Namespace) -> None:
    options = BenchOptions(**{each.name: getattr(args, each.name) for each in fields(BenchOptions)})
    outputs = _outputs(args)
    requirements = parse_requirements(args.require) if args.require is not None else []
    weights_sha256 = _require(options, outputs, requirements)
    machine = environment()  # before a load of our own
    inputs = open_inputs(options)
    run, pictures, has_reference = measure_run(
        options, weights_sha256, inputs, machine, requirements, "html" in outputs
    )
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
    return measure_run(options, weights_sha256, open_inputs(options), environment(), [], False)[0]


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
    requirements = [] if args.require is None else parse_requirements(args.require, compare.COMPARED)
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
        f"{', '.join(compare.COMPARED)}",
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
