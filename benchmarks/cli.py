"""`enet-bench`: latency, throughput and parity of the chosen runners, side by side in one run."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from enet_deploy import cli
from enet_deploy.artifacts import BUNDLED_WEIGHTS, require_writable, sha256, write_json
from enet_deploy.data import DataSet, UInt8Array, open_data
from enet_deploy.errors import BackendError, InputError
from enet_deploy.evaluate import require_classes
from enet_deploy.runners import BACKENDS, Runner, backends_for, open_runner
from enet_deploy.scenes import street_scene

from .parity import Parity, compare
from .timing import measure

PROFILED = 20  # calls that a profile's medians are taken over
CAMERA = (720, 1280)  # size of the drawn scenes: an ordinary camera's
SCENES = 8

# What an artifact runs on where nothing was asked for -> its package. Not trt, which first builds for minutes
_UNASKED = {"torch": "torch", "ort": "onnxruntime", "openvino": "openvino"}


def _artifacts(args: argparse.Namespace, folder: Path) -> dict[Path, str]:
    """What to run -> its name for the reader. Where none was named: the weights and a fresh export of them."""
    if args.artifacts:
        return {path: str(path) for path in args.artifacts}
    found = {args.weights: str(args.weights)}
    if args.backend is None or set(args.backend) & set(backends_for("enet.onnx")):
        from enet_deploy.export.to_onnx import to_onnx

        print(f"exporting {args.weights.name} ...", flush=True)
        # With logits, so that these can be compared too: ONNX Runtime takes a tenth longer for it, OpenVINO nothing
        path = to_onnx(args.weights, folder / "enet-fp32.onnx", size=args.size, batch=args.batch or 1, logits=True).path
        found[path] = path.name
    return found


def _backends(artifact: Path, args: argparse.Namespace) -> list[str]:
    """What to run an artifact on: all that was asked for and fits, else all that fits and is installed."""
    fitting = backends_for(artifact)
    if args.backend is not None:
        return [backend for backend in fitting if backend in args.backend]
    found = [backend for backend in fitting if backend in _UNASKED and find_spec(_UNASKED[backend])]
    if args.device not in (None, "cpu"):
        found = [backend for backend in found if backend != "openvino"]  # which has no other device
    return found or [fitting[0]]


def _options(backend: str, size: tuple[int, int] | None, threads: int) -> dict[str, Any]:
    """What a runner is opened with: weights run at any size, and two of the libraries take a number of threads."""
    if backend == "torch":
        return {} if size is None else {"size": size}
    return {"threads": threads} if backend in ("ort", "openvino") else {}


def _open(artifacts: list[Path], args: argparse.Namespace, stack: ExitStack) -> list[Runner]:
    """A runner for each artifact and backend, less those that were not asked for; all of one frame size."""
    chosen = [(artifact, backend) for artifact in artifacts for backend in _backends(artifact, args)]
    missing = sorted(set(args.backend or ()) - {backend for _, backend in chosen})
    if missing:
        named = ", ".join(map(str, artifacts))
        raise InputError(f"--backend {missing[0]}, but none of the artifacts runs on it: {named}")
    # graphs have a size of their own and come first; weights run at any size, so they follow it
    runners = {}
    size = args.size
    for artifact, backend in sorted(chosen, key=lambda pair: pair[1] == "torch"):
        options = _options(backend, size, args.threads)
        runner = stack.enter_context(open_runner(artifact, backend, args.device, **options))
        runners[artifact, backend] = runner
        own = runner.spec.size
        size = size or own
        if own != size:
            raise InputError(
                f"{artifact} takes frames of {own[0]}x{own[1]}, expected {size[0]}x{size[1]}: one run has one size"
            )
    return [runners[pair] for pair in chosen]


def _batch(runners: list[Runner], asked: int | None) -> int:
    """The frames per call of the run: as asked, or as the graphs have it."""
    batch = asked or next((runner.spec.batch for runner in runners if runner.spec.batch), 1)
    for runner in runners:
        if runner.spec.batch not in (None, batch):
            raise InputError(
                f"{runner.artifact} takes {runner.spec.batch} frames at a time, expected {batch}: one run has one "
                f"batch size; export it with --batch {batch}, or with --dynamic-batch"
            )
    return batch


def _reference(runners: list[Runner], weights: Path, stack: ExitStack) -> Runner | None:
    """PyTorch with the weights that every artifact came from, or None where these are not at hand."""
    if {runner.spec.weights_sha256 for runner in runners} != {sha256(weights)}:
        return None
    return stack.enter_context(open_runner(weights, "torch", size=runners[0].spec.size))


def _add_flips(runners: list[Runner], parities: list[Parity], weights: Path, images: list[UInt8Array]) -> None:
    """Add what max-pooling does in each graph, as ONNX Runtime runs it. Of an engine nobody can tell."""
    from .unpool import flips

    run_graph = [(r, p) for r, p in zip(runners, parities, strict=True) if r.backend in ("ort", "openvino")]
    if not run_graph:
        return
    frames = [runners[0].preprocess(image) for image in images]
    shares = flips(weights, list(dict.fromkeys(runner.artifact for runner, _ in run_graph)), frames)
    for runner, parity in run_graph:
        parity.unpool_flips = shares[runner.artifact]


def _profiles(runners: list[Runner], images: list[UInt8Array], batch: int) -> list[dict[str, Any] | None]:
    """Where the time of each runner goes, None where its backend does not tell."""
    from .profiling import profile

    found: list[dict[str, Any] | None] = []
    for runner in runners:
        frames = np.concatenate([runner.preprocess(images[i % len(images)]) for i in range(batch)])
        try:
            found.append(profile(runner, frames, PROFILED))
        except BackendError as error:
            print(f"not profiled: {error}")
            found.append(None)
    return found


def _material(data: DataSet | None) -> tuple[list[UInt8Array], list[tuple[UInt8Array, UInt8Array | None]] | DataSet]:
    """Camera images to time with, and (image, truth) pairs to compare on."""
    if data is not None:
        return [data[index][0] for index in range(min(SCENES, len(data)))], data
    images = [street_scene(seed, CAMERA)[0] for seed in range(SCENES)]
    return images, [(image, None) for image in images]


def _require(args: argparse.Namespace) -> None:
    """Refuse what would only be found after minutes of measuring."""
    cli.require_weights(args.weights)
    if args.json is not None:
        require_writable(args.json)


def _bench(args: argparse.Namespace) -> None:
    from rich.console import Console

    from .environment import environment, peak_memory
    from .profiling import measure_peaks
    from .report import Result, show, to_json

    _require(args)
    machine = environment()  # before a load of our own
    data = None if args.data is None else open_data(args.data, args.split)
    with ExitStack() as stack:
        artifacts = _artifacts(args, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        runners = _open(list(artifacts), args, stack)
        batch = _batch(runners, args.batch)
        if data is not None:
            require_classes(runners[0], data, args.data)
        images, pairs = _material(data)
        reference = _reference(runners, args.weights, stack)
        of_reference, parities = compare(reference, runners, cli.progress(pairs, "comparing labels", len(pairs)))
        if reference is not None:
            _add_flips(runners, parities, args.weights, images)
        options = [_options(runner.backend, runner.spec.size, args.threads) for runner in runners]
        peaks = [peak_memory(runner, own) for runner, own in zip(runners, options, strict=True)]
        timings = measure(runners, images, args.frames, batch, progress=lambda turns: cli.progress(turns, "timing"))
        profiles = _profiles(runners, images, batch) if args.profile else [None] * len(runners)
        results = [
            Result(r.spec, artifacts[r.artifact], timing, parity, r.artifact.stat().st_size, peak, own, profile)
            for r, timing, parity, peak, own, profile in zip(
                runners, timings, parities, peaks, options, profiles, strict=True
            )
        ]
    limits = measure_peaks() if args.profile else None
    run = to_json(machine, results, None if reference is None else of_reference, limits)
    if args.json is not None:
        write_json(args.json, run)
    show(run, Console())
    if reference is None:
        print(f"parity is not measured: not all of these came from the weights {args.weights}; see --weights")
    if data is None:
        print("accuracy is not measured: the frames are drawn street scenes; see --data")


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser("enet-bench", description="Latency, throughput and parity of runners, side by side in one run.")
    parser.add_argument(
        "artifacts", nargs="*", type=Path, metavar="ARTIFACT", help="default: --weights and their export"
    )
    parser.add_argument(
        "--weights", type=Path, default=BUNDLED_WEIGHTS, help="parity is against these (default: bundled)"
    )
    parser.add_argument(
        "--backend", action="append", choices=BACKENDS, help="may be repeated; default: all that are installed, not trt"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the backend's own)")
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="of ort and openvino (default: their choice)"
    )
    parser.add_argument("--size", type=cli.size, metavar="HxW", help="frame size; default: what the artifact has")
    parser.add_argument(
        "--batch", type=cli.positive, metavar="N", help="frames per call (default: as the graph has it)"
    )
    parser.add_argument(
        "--frames", type=cli.positive, default=100, metavar="N", help="timed per runner (default: %(default)s)"
    )
    parser.add_argument("--data", help="data set: real images, and accuracy as well as parity")
    parser.add_argument("--split", default="val", help="of --data (default: %(default)s)")
    parser.add_argument("--profile", action="store_true", help="also tell where the time goes, operation by operation")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result there")
    return cli.run(parser, _bench, argv)


if __name__ == "__main__":
    raise SystemExit(main())
