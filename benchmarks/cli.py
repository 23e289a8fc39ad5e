"""`enet-bench`: latency, throughput and parity of the chosen runners, side by side in one run."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from enet_deploy import console
from enet_deploy.artifacts import BUNDLED_WEIGHTS
from enet_deploy.commands import cli
from enet_deploy.data import files_of
from enet_deploy.environment import environment
from enet_deploy.errors import BackendError, InputError
from enet_deploy.files import atomic_write, require_outputs, sha256, write_json
from enet_deploy.images import UInt8Array
from enet_deploy.runners import BACKENDS, Runner, artifact_files, backends_for, open_runner

from .measure.parity import Parity, compare
from .measure.plan import Artifact, Entry, Material, entries, material, named, points, start
from .measure.processes import Processes
from .measure.timing import Timing, feed, measure
from .run import Result, Run, blamed, read, to_run
from .verdict import FIGURES, Requirement, check, parse_requirements, require_measurable

if TYPE_CHECKING:
    from .report.page import Picture

PROFILED = 20  # calls that a profile's medians are taken over
PICTURES = 4
PRECISIONS = ("fp32", "fp16", "int8", "int8-ort", "fp16-int8")


def _exports(args: argparse.Namespace, folder: Path) -> Iterator[Artifact]:
    """The weights, and graphs of them in each precision for each point where a backend wants these."""
    yield args.weights, args.weights.name if args.weights == BUNDLED_WEIGHTS else str(args.weights), points(args)
    if args.backend is not None and not set(args.backend) & set(backends_for("enet.onnx")):
        return
    from enet_deploy.export.int8 import quantize
    from enet_deploy.export.record import record_for
    from enet_deploy.export.to_onnx import to_onnx

    record = None
    if any("int8" in precision for precision in args.precision):
        record = record_for(sha256(args.weights), args.calibration)
    wanted = list(product(args.precision, enumerate(points(args))))
    _say(f"exporting {args.weights.name} as {', '.join(args.precision)}")
    for precision, (number, point) in console.progress(wanted, "exporting"):
        change = None
        if record is not None and "int8" in precision:
            change = partial(quantize, record=record, target="ort" if precision == "int8-ort" else "all")
        path = folder / str(number) / f"enet-{precision}.onnx"
        to_onnx(
            args.weights,
            path,
            precision="fp16" if "fp16" in precision else "fp32",
            size=point[0],
            batch=point[1] or 1,
            logits=True,  # so that they can be compared; ONNX Runtime takes a tenth longer for it, OpenVINO nothing
            quantize=change,
            max_disagreement=1.0,  # whatever the labels are, it is for this command to tell
        )
        yield path, path.name, [point]


def _time(
    chosen: Sequence[Entry], args: argparse.Namespace, seen: Material, processes: Processes
) -> tuple[dict[str, Timing], bool]:
    for entry in chosen:
        processes.ask(entry.name, feed, seen.source)
    _say(f"timing {console.counted(len(chosen), 'runner')}, at least {args.frames} frames each")
    batches = {entry.name: entry.batch for entry in chosen}
    return measure(processes, batches, args.frames, args.seconds)


@dataclass
class Compared:
    """What the runners said, each opened in this process once more.

    Attributes:
        reference: PyTorch with the weights that all came from; None where these are not at hand.
        of_reference: its own accuracy.
        parities, profiles: of each runner, as far as they were asked for.
        whole: whether Ctrl-C did not end it before.
    """

    runners: list[Runner]
    reference: Runner | None
    of_reference: Parity | None
    parities: Sequence[Parity | None]
    profiles: Sequence[dict[str, Any] | None]
    whole: bool


def _compare(chosen: Sequence[Entry], args: argparse.Namespace, seen: Material, stack: ExitStack) -> Compared:
    """See what the runners say; Ctrl-C ends it with what is known by then."""
    unknown: list[None] = [None] * len(chosen)
    found = Compared([], None, None, unknown, unknown, whole=False)
    with suppress(KeyboardInterrupt):
        _fill(found, chosen, args, seen, stack)
    return found


def _fill(found: Compared, chosen: Sequence[Entry], args: argparse.Namespace, seen: Material, stack: ExitStack) -> None:
    for entry in console.progress(chosen, "opening"):
        runner = open_runner(entry.artifact, entry.backend, args.device, **entry.options)
        found.runners.append(stack.enter_context(runner))
    runners = found.runners
    if _is_reference(args.weights, chosen):
        found.reference = stack.enter_context(open_runner(args.weights, "torch", size=runners[0].spec.size))
    if found.reference is not None or args.data is not None:
        _say(f"comparing labels on {len(seen.pairs)} images")
        pairs = console.progress(seen.pairs, "comparing labels", len(seen.pairs))
        found.of_reference, found.parities, whole = compare(found.reference, runners, pairs)
        if not whole:
            return
        if found.reference is not None:
            _add_flips(runners, found.parities, args.weights, seen.images)
    if args.profile:
        found.profiles = _profiles(runners, seen.images, chosen[0].batch)
    found.whole = True


def _say(what: str) -> None:
    """A sign of life for a log; a terminal has progress bars."""
    if not sys.stderr.isatty():
        print(f"{what} ...", flush=True)


def _is_reference(weights: Path, chosen: Sequence[Entry]) -> bool:
    """Whether every artifact came from these weights, so that parity with them means something."""
    return {entry.spec.weights_sha256 for entry in chosen} == {sha256(weights)}


def _add_flips(
    runners: list[Runner], parities: Sequence[Parity | None], weights: Path, images: list[UInt8Array]
) -> None:
    """Add what max-pooling does in each graph, as ONNX Runtime runs it. Of an engine nobody can tell."""
    from .measure.unpool_flips import flips

    run_graph = [(r, p) for r, p in zip(runners, parities, strict=True) if p and r.backend in ("ort", "openvino")]
    if not run_graph:
        return
    frames = [runners[0].preprocess(image) for image in images]
    shares = flips(weights, list(dict.fromkeys(runner.artifact for runner, _ in run_graph)), frames)
    for runner, parity in run_graph:
        parity.unpool_flips = shares[runner.artifact]


def _profiles(runners: list[Runner], images: list[UInt8Array], batch: int) -> list[dict[str, Any] | None]:
    """Where the time of each runner goes, None where its backend does not tell."""
    from .measure.profiling import profile

    found: list[dict[str, Any] | None] = []
    for runner in console.progress(runners, "profiling"):
        frames = np.concatenate([runner.preprocess(images[i % len(images)]) for i in range(batch)])
        try:
            found.append(profile(runner, frames, PROFILED))
        except BackendError as error:
            print(f"not profiled: {error}")
            found.append(None)
    return found


def _results(chosen: Sequence[Entry], timings: dict[str, Timing], compared: Compared | None) -> list[Result]:
    results = [
        Result(
            spec=entry.spec,
            artifact=entry.shown,
            options=entry.options,
            timing=timings[entry.name],
            model_bytes=entry.artifact.stat().st_size,
            peak_bytes=entry.peak_bytes,
            swept=entry.swept,
        )
        for entry in chosen
    ]
    if compared is not None:
        main = (result for result in results if not result.swept)
        for result, parity, profile in zip(main, compared.parities, compared.profiles, strict=True):
            result.parity, result.profile = parity, profile
    return results


def _pictures(run: Run, compared: Compared, pairs: Any) -> list[Picture]:
    """What the runner to take says of a few frames: half of them those that it differs on most."""
    from .report.page import Picture

    names = [result["name"] for result in run["results"]]
    taken = run["verdict"][0]["take"]
    index = names.index(taken) if taken in names else 0
    runner, parity = compared.runners[index], compared.parities[index]
    agreement = parity.frames if parity is not None else []
    worst = sorted(range(len(agreement)), key=agreement.__getitem__)[: PICTURES // 2]
    spread = np.linspace(0, len(pairs) - 1, PICTURES).astype(int).tolist()
    found = []
    for number in list(dict.fromkeys([*worst, *spread]))[:PICTURES]:
        image, truth = pairs[number]
        frame = runner.preprocess(image)
        labels = runner.infer(np.repeat(frame, runner.spec.batch or 1, axis=0))[0]
        expected = None if compared.reference is None else compared.reference.infer(frame)[0]
        found.append(Picture(number, names[index], frame[0], labels, expected, truth, runner.spec.classes))
    return found


def _require(args: argparse.Namespace) -> list[Requirement]:
    """Refuse what would only be found after minutes of measuring."""
    cli.require_weights(args.weights)
    if args.weights != BUNDLED_WEIGHTS:  # which robots without PyTorch name by leaving them out
        from enet_deploy.weights import load_weights

        load_weights(args.weights)
    if args.artifacts and (args.precision or args.calibration):
        given = "precision" if args.precision else "calibration"
        raise InputError(f"--{given} is for what is exported here, expected no ARTIFACT with it")
    if args.precision and args.backend and not set(args.backend) & set(backends_for("enet.onnx")):
        raise InputError(f"--precision is for graphs, expected a --backend of {', '.join(backends_for('enet.onnx'))}")
    import psutil  # noqa: F401  missing packages are named now, not after minutes
    import rich  # noqa: F401

    args.precision = args.precision or ["fp32"]
    artifacts = [path for artifact in args.artifacts for path in artifact_files(artifact)]
    data = [] if args.data is None else files_of(args.data, args.split)
    _require_outputs(args, [*artifacts, args.weights, args.calibration, args.from_video, *data])
    requirements = parse_requirements(args.require) if args.require is not None else []
    require_measurable(requirements, truth=args.data is not None, reference=True)
    return requirements


def _require_outputs(args: argparse.Namespace, inputs: Sequence[Path | None]) -> None:
    require_outputs([args.json, args.html, args.markdown, args.csv], inputs)
    if args.html is not None:
        from .report import page  # noqa: F401  says which package is missing


def _bench(args: argparse.Namespace) -> None:
    from .measure.machine import watched
    from .measure.profiling import measure_peaks

    requirements = _require(args)
    machine = environment()  # before a load of our own
    seen = material(args.from_video, args.data, args.split)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        chosen = entries(named(args) if args.artifacts else _exports(args, folder), args)
        with Processes() as processes:
            _say(f"opening {console.counted(len(chosen), 'runner')}, each in a process of its own")
            start(chosen, args, processes)
            seen.require_classes(chosen[0].spec, args.data)
            require_measurable(requirements, truth=args.data is not None, reference=_is_reference(args.weights, chosen))
            with watched() as load:
                timings, whole = _time(chosen, args, seen, processes)
                beside = load()
        compared = None
        if whole:
            compared = _compare([entry for entry in chosen if not entry.swept], args, seen, stack)
            whole = compared.whole
        run = to_run(
            _results(chosen, timings, compared),
            None if compared is None else compared.of_reference,
            environment=machine,
            load=beside,
            images=seen.described,
            peaks=measure_peaks() if args.profile and whole else None,
            partial=not whole,
        )
        pictures = _pictures(run, compared, seen.pairs) if args.html is not None and compared and whole else []
    _give(run, args, pictures)
    if not whole:
        raise KeyboardInterrupt("what is above and in the files is partial")
    if compared is not None and compared.reference is None:
        print(f"parity is not measured: not all of these came from the weights {args.weights}; see --weights")
    if args.data is None:
        print("accuracy is not measured: the frames have no truth; see --data")
    check(run, requirements)


def _give(run: Run, args: argparse.Namespace, pictures: Sequence[Picture] = ()) -> None:
    """Write what was asked for, and print a run: in this order, as who reads what is printed may stop."""
    from rich.console import Console

    from .report.tables import as_csv, as_markdown, show

    if args.json is not None:
        write_json(args.json, run)
    texts: list[tuple[Path | None, Callable[[], str]]] = [
        (args.markdown, lambda: as_markdown(run)),
        (args.csv, lambda: as_csv(run)),
    ]
    if args.html is not None:
        from .report.page import as_html

        texts.append((args.html, lambda: as_html(run, pictures)))
    for path, text in console.progress(texts, "writing"):
        if path is not None:
            with atomic_write(path) as temporary:
                temporary.write_text(text(), encoding="utf-8")
    terminal = console.unfiltered(sys.stdout)  # the run's names are printable
    # a narrow terminal breaks lines; figures must not be cut
    show(run, Console(file=terminal, width=max(Console().width, WIDE)))
    for path in (args.json, args.markdown, args.csv, args.html):
        if path is not None:
            print(f"wrote {path}")


WIDE = 132  # columns that the widest table of an ordinary run takes


def _show(args: argparse.Namespace) -> None:
    _require_outputs(args, [args.run])
    run = read(args.run)
    with blamed(args.run):
        _give(run, args)


def _compare_runs(args: argparse.Namespace) -> None:
    from .report.tables import as_comparison

    first, second = read(args.first), read(args.second)
    with blamed(f"{args.first} or {args.second}"):
        print("\n".join(as_comparison(first, second)))


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result there")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a report with charts there, one file for a browser"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a table and the verdict there")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a line of figures per runner there")


def _bench_parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        "enet-bench",
        description="Latency, throughput and parity of runners, side by side in one run.",
        epilog="Also: enet-bench compare FIRST.json SECOND.json; enet-bench show RUN.json, with outputs as above. "
        f"Figures of --require: {', '.join(FIGURES)}; drops are in points against PyTorch fp32, agreement, flips and "
        "accuracies are shares from 0 to 1.",
    )
    parser.add_argument(
        "artifacts", nargs="*", type=Path, metavar="ARTIFACT",
        help="weights, graphs or engines, the first of them the baseline; default: --weights and their exports",
    )  # fmt: skip
    parser.add_argument(
        "--weights", type=Path, default=BUNDLED_WEIGHTS, help="parity is against these (default: bundled)"
    )
    parser.add_argument(
        "--precision", type=cli.listed(cli.one_of(PRECISIONS)), metavar="P,...",
        help=f"what to export where no ARTIFACT is named, of {', '.join(PRECISIONS)} (default: fp32)",
    )  # fmt: skip
    parser.add_argument("--calibration", type=Path, metavar="RECORD", help="for int8 of --weights (default: bundled)")
    parser.add_argument(
        "--backend", action="append", choices=BACKENDS, help="may be repeated; default: all that are installed, not trt"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the backend's own)")
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="of ort and openvino (default: their choice)"
    )
    parser.add_argument(
        "--size", type=cli.listed(cli.size), metavar="HxW,...",
        help="frame size; default: what the artifact has. All is measured at the first, the others are timed too",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=cli.listed(cli.positive), metavar="N,...",
        help="frames per call (default: as the graph has it); several as with --size",
    )  # fmt: skip
    parser.add_argument(
        "--frames", type=cli.positive, default=100, metavar="N", help="timed per runner (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=cli.not_negative,
        default=0.0,
        metavar="S",
        help="of infer per runner at least, beside --frames",
    )
    parser.add_argument("--data", help="data set: real images, and accuracy as well as parity")
    parser.add_argument("--split", default="val", help="of --data (default: %(default)s)")
    parser.add_argument(
        "--from-video", type=Path, metavar="FILE", help="time the whole loop on it: decode, segment, overlay"
    )
    parser.add_argument("--profile", action="store_true", help="also tell where the time goes, operation by operation")
    parser.add_argument(
        "--require", metavar="CONDITIONS", help='exit with 1 unless all hold: "miou_drop<=0.3,p90_ms<=20"'
    )
    _add_outputs(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["compare"]:
        parser = cli.Parser("enet-bench compare", description="Say for each runner of two runs which is faster.")
        parser.add_argument("first", type=Path, metavar="FIRST", help="a file of --json")
        parser.add_argument("second", type=Path, metavar="SECOND", help="another")
        return cli.run(parser, _compare_runs, argv[1:])
    if argv[:1] == ["show"]:
        parser = cli.Parser("enet-bench show", description="Print a stored run, and write it in other forms.")
        parser.add_argument("run", type=Path, metavar="RUN", help="a file of --json")
        _add_outputs(parser)
        return cli.run(parser, _show, argv[1:])
    return cli.run(_bench_parser(), _bench, argv)


if __name__ == "__main__":
    raise SystemExit(main())
