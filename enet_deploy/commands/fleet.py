"""`enet-fleet`: label millions of images and bags with Ray, on this machine's cores or on a cluster."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from .. import console
from ..bundled import artifact_file
from ..errors import DataError, InputError
from ..files import is_folder, only_process, require_outputs
from ..runners import backend_for
from . import cli

if TYPE_CHECKING:
    from ..fleet.labeller import Task
    from ..fleet.output import Output
    from ..fleet.sources import Source

WITH_THREADS = ("ort", "openvino", "opencv")  # an actor has one core, and these would take all


def run(args: argparse.Namespace) -> None:
    """Do what the command does."""
    from ..fleet import cluster
    from ..fleet.output import Output
    from ..fleet.sources import Source, absolute

    _require_takes(args)
    source, out = Source(absolute(args.source)), Output(absolute(args.out))
    _require_apart(source, out)
    names = source.names()
    if any(map(source.is_bag, names)):
        import rosbags  # noqa: F401  told before the work if it is not installed
    with only_process(Path(out.root)) if out.is_local else nullcontext():
        task = _begin(args, source, out)
        parts = out.plan(source, names)
        done = out.written()
        left = {number: files for number, files in parts.items() if number not in done}
        if not left:
            print(
                f"nothing is left to do: all {console.counted(len(names), 'file')} are in {out.root}", file=sys.stderr
            )
            return
        if done:
            files = console.counted(sum(map(len, left.values())), "file")
            print(f"{len(parts) - len(left)} of {len(parts)} parts are there; {files} follow", file=sys.stderr)
        with cluster.connected(args.address):
            _label(task, left, args.workers, is_first=not done)
        out.remove("tries")


def _require_takes(args: argparse.Namespace) -> None:
    """Raise InputError for an artifact and a device that other commands take."""
    if is_folder(args.artifact):
        raise InputError(f"{args.artifact} is a folder, expected one file; name the engine for the workers' GPU")
    if args.device and args.device.startswith("cuda:") and args.device != "cuda:0":
        raise InputError(f"--device {args.device}, expected cuda: Ray gives each worker a GPU of its own, as cuda:0")


def _require_apart(source: Source, out: Output) -> None:
    """Raise InputError if the label maps would lie among the images and be labelled next time."""
    from ..fleet.sources import Files

    read = Files(source.url)
    if out.is_local:
        reads = [read.root] if read.is_local and not source.is_list else []
        require_outputs([Path(out.root) / "run.json"], reads)
    elif type(read.fs) is type(out.fs) and f"{out.root}/".startswith(f"{read.root}/" if read.root else ""):
        raise InputError(f"{out.root} lies in {source.url}, which is read; name another output folder")


def _begin(args: argparse.Namespace, source: Source, out: Output) -> Task:
    """Write or check run.json. Returns what each actor gets."""
    from ..fleet.labeller import Task
    from ..fleet.output import hashes, identity
    from ..fleet.sources import absolute

    backend = args.backend or backend_for(args.artifact, args.device, args.precision)
    artifact = artifact_file(args.artifact, backend)
    out.begin(identity(artifact, args.precision, args.fit, args.topic), source, artifact)
    asked = {"backend": backend, "device": args.device, "precision": args.precision, "fit": args.fit}
    threads = {"threads": 1} if backend in WITH_THREADS else {}
    out.remove("tries")  # of a driver that was stopped, as its workers were, too
    return Task(source.url, absolute(args.out), asked | threads, hashes(artifact), args.topic)


def _label(task: Task, parts: dict[int, list[str]], count: int | None, is_first: bool) -> None:
    from ..fleet import cluster

    each = cluster.workers(task, count)
    opened = cluster.probe(task, each)
    frames = errors = 0
    start = time.perf_counter()
    try:
        for found in console.progress(cluster.label_parts(task, parts, each), "parts", len(parts)):
            frames, errors = frames + found[0], errors + found[1]
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{console.counted(frames, 'frame')} written; the same command goes on") from None
    seconds = time.perf_counter() - start
    files = console.counted(sum(map(len, parts.values())), "file")
    print(
        f"{console.counted(frames - errors, 'frame')} of {files} in {seconds:.1f} s ({frames / seconds:.1f} FPS), "
        f"{console.counted(errors, 'error')}; {console.counted(each.count, 'worker')}, {opened['backend']}, "
        f"{opened['precision']}; wrote {task.out}",
        file=sys.stderr,
    )
    if is_first and frames and frames == errors:
        raise DataError(f"{task.source}: no frame of {frames} could be read; {task.out}/parts says why, in 'error'")


DESCRIPTION = (
    "Label many images and bags with Ray. OUT gets label maps in labels/ and a table in parts/ (Parquet: file, size, "
    "share of each class, confidence, error). The same command again goes on where it was stopped."
)


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        "enet-fleet",
        description=DESCRIPTION,
        examples=(
            "enet-fleet enet-int8.onnx drives/ labelled/",
            "enet-fleet enet-int8.onnx s3://drives s3://labelled --address 10.0.0.1:6379",
        ),
    )
    cli.add_artifact(parser, cli.ARTIFACT_FILE)
    cli.add_precision(parser)
    source = "a folder, also of a bucket by URL (fsspec), an image, a bag, or a list of them (.txt, one a line)"
    out = "folder, also of a bucket, that every machine of the cluster sees"
    address = "HOST:PORT of a cluster's head (default: this machine's cores)"
    parser.add_argument("source", type=cli.text, metavar="SOURCE", help=source)
    parser.add_argument("out", type=cli.text, metavar="OUT", help=out)
    parser.add_argument("--topic", metavar="T", help="topic of the images in bags")
    parser.add_argument("--address", type=cli.text, metavar="HOST:PORT", help=address)
    parser.add_argument("--workers", type=cli.positive, metavar="N", help="default: one per core, or per GPU with cuda")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(make_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
