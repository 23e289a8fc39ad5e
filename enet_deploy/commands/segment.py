"""`enet-segment`: label the frames of any source, and show or write the result."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from .. import bundled, console
from ..data import files_of
from ..errors import ArtifactError, DataError, InputError
from ..frame_range import RangeMonitor
from ..images import MAX_PIXELS, UInt8Array
from ..media.frames import FrameSource, LabelledFrame, Stop
from ..media.ground_truth import GroundTruth, label_folders, splits_of
from ..media.open import open_images, open_source
from ..media.outputs import Outputs, default_out
from ..media.pipeline import Labels, Pipeline
from ..media.renderer import FrameRenderer
from ..media.sinks import Sink
from ..runners import SUFFIXES, artifact_files, open_runner
from . import cli, streams
from .signals import ENDING, ignore_hang_up, on_signals


def open_named_source(args: argparse.Namespace, stopped: Stop) -> FrameSource:
    """Open the source that the arguments name.

    Raises as `open_source`, and InputError if artifact and source are swapped.
    """
    first, *others = args.source
    if Path(first).suffix in SUFFIXES or first in bundled.NAMES:
        raise InputError(f"SOURCE {first} is an artifact, expected a source of frames; the artifact comes first")
    if others:
        for option in ("raw", "topic"):
            if getattr(args, option) is not None:
                raise InputError(f"--{option} given for {len(args.source)} images; expected with one source only")
        return open_images(args.source, args.fps)
    return open_source(first, stopped, args.raw, args.fps, args.topic)


def chosen_outputs(args: argparse.Namespace, source: FrameSource) -> Outputs:
    """The outputs that the arguments name, or the default one.

    Raises InputError if they are read or cannot be written, or if an option says how to draw a picture that is not
    drawn.
    """
    outputs = Outputs(args.out, args.labels, args.masks, args.confidence, args.json, args.show)
    if not outputs.paths and not outputs.show:
        outputs = Outputs(out=default_out(args.source, source))
    for option, is_given in (("--legend", args.legend), ("--alpha", args.alpha is not None)):
        if is_given and not outputs.has_picture:
            raise InputError(f"{option} without a picture to draw it in; add --out or --show")
    reads: list[str | Path] = [*artifact_files(args.artifact), *label_folders(source)]
    if args.compare:
        reads += [path for root, split in splits_of(source) for path in files_of(root, split)]
    outputs.require_usable(source, reads)
    return outputs


@contextmanager
def until_signalled(stopped: Stop) -> Iterator[list[int]]:
    """In this block, the first signal to end sets `stopped` and is added to the list; the second acts as usual.

    The signals are SIGINT, SIGTERM and SIGHUP.
    """
    signals: list[int] = []

    def stop(number: int, _: Any) -> None:
        restore()
        ignore_hang_up(number)
        signals.append(number)
        stopped.set()

    with on_signals(stop, signal.SIGINT, *ENDING) as restore:
        yield signals


def write_frames(
    frames: Iterable[LabelledFrame],
    sinks: Sequence[Sink],
    truth: GroundTruth | None,
    only_stdout: bool,
    signals: list[int],
) -> int:
    """Give each frame to all sinks; return the number of frames.

    If the reader of standard output leaves, stop, so that the files are finished, and add SIGPIPE to `signals`. With
    `only_stdout` there are no files: raises BrokenPipeError.
    """
    count = 0
    try:
        for item in frames:
            item = truth.add_to(item) if truth is not None else item
            count += 1
            for sink in sinks:
                sink(item)
    except BrokenPipeError:
        if only_stdout:
            raise
        streams.discard_output()
        signals.append(signal.SIGPIPE)
    return count


def summary(pipeline: Pipeline, name: str, count: int, seconds: float, paths: Sequence[str]) -> str:
    """Describe what was done, in one line."""
    parts = [f"{console.counted(count, 'frame')} of {name} in {seconds:.1f} s ({count / seconds:.1f} FPS)"]
    if pipeline.undecodable:
        parts.append(f"{pipeline.undecodable} could not be decoded ({pipeline.first_flaw})")
    if pipeline.dropped:
        parts.append(f"{pipeline.dropped} dropped for newer ones")
    return "; ".join(parts + [f"wrote {path}" for path in paths if path != "-"])


def run(args: argparse.Namespace, is_command: bool = True) -> None:
    """Do what the command does.

    Raises SystemExit with 128 and its number if a signal ended it; as a command not for a live source, which has no
    other end.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # else FFmpeg repeats our messages on stderr
    stopped = Stop()
    source = open_named_source(args, stopped)
    outputs = chosen_outputs(args, source)
    total = None if source.total is None else math.ceil(source.total / args.every)
    with open_runner(args.artifact, args.backend, args.device, args.precision, fit=args.fit) as runner:
        classes = runner.spec.classes
        truth = GroundTruth(source, classes) if args.compare else None
        renderer = FrameRenderer(classes, 0.5 if args.alpha is None else args.alpha, args.legend)
        monitor = RangeMonitor(runner.spec)
        if args.confidence and not runner.spec.has_confidence:
            raise ArtifactError(f"{args.artifact} has no output 'confidence'; make one with enet-export --confidence")
        label: Callable[[UInt8Array], Labels] = runner.segment_with_confidence if args.confidence else runner.segment
        pipeline = Pipeline(source, monitor.watched(label), stopped, args.every)
        start = time.perf_counter()
        with until_signalled(stopped) as signals, ExitStack() as stack:
            sinks = outputs.open(stack, source, renderer, args.every, stopped)
            with closing(pipeline.run()) as labelled:  # also if a sink raises
                frames = console.progress(labelled, source.name, total)
                count = write_frames(frames, sinks, truth, outputs.paths == ["-"], signals)
            if not count:  # an error here keeps earlier files of these names
                if signals:
                    raise SystemExit(128 + signals[0])
                raise pipeline.first_flaw or DataError(f"{source.name} holds no frame, expected at least one")
    done = summary(pipeline, source.name, count, time.perf_counter() - start, outputs.paths)
    if monitor.outside:
        done += f"; {monitor.summary()}"
    print(f"interrupted{f', of about {total}' if total else ''}: {done}" if signals else done, file=sys.stderr)
    if truth is not None:
        scores = truth.confusion.scores()
        print(f"pixel accuracy {scores.pixel_accuracy:.4f}, mIoU {scores.miou:.4f}", file=sys.stderr)
    if signals and not (source.live and is_command):
        raise SystemExit(128 + signals[0])


def source_name(text: str) -> str:
    """argparse type: text that names a source; "sample" is the bundled picture."""
    return bundled.picture(cli.text(text))


def frame_size(text: str) -> tuple[int, int]:
    """argparse type: "HxW" -> (height, width), each at least 1."""
    height, _, width = text.lower().partition("x")
    try:
        size = cli.positive(height), cli.positive(width)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"'{text}', expected HEIGHTxWIDTH such as 720x1280") from None
    if size[0] * size[1] > MAX_PIXELS:
        raise argparse.ArgumentTypeError(f"'{text}', expected at most {MAX_PIXELS} pixels, which is 16384x16384")
    return size


def rate(text: str) -> float:
    """argparse type: frames per second."""
    value = cli.not_negative(text)
    if not 0.001 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"'{text}', expected frames per second from 0.001 to 1000")
    return value


DESCRIPTION = (
    "Label every frame of a source. Options name the outputs; the default is an overlay in the current folder (for a "
    "bag: a bag with the labels). Decoding, labelling and writing overlap. With a live source, newer frames replace "
    "those that wait. Ctrl-C, SIGTERM and SIGHUP finish the files."
)
SOURCES = (
    "an image or several, a folder, glob or %%04d pattern of images, a video, a camera's number, an RTSP or HTTP URL, "
    "a GStreamer pipeline, a ROS bag (.bag, .mcap, .db3, also .zstd, or a folder), or - for raw BGR frames on standard "
    "input; sample is a drawn street scene of this package"
)


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("outputs", "by suffix a video, an image or a folder; - is standard output")
    for option, metavar, help_ in (
        ("--out", "PATH", "overlays; for a bag also a bag with the labels"),
        ("--labels", "PATH", "label maps: PNG of class ids, or raw bytes"),
        ("--masks", "PATH", "the labels in the classes' colours"),
        ("--confidence", "PATH", "confidences, 0 to 255: grey PNG, or raw bytes"),
        ("--json", "FILE", "a line of JSON per frame: share of each class, latency"),
    ):
        group.add_argument(option, type=cli.text, metavar=metavar, help=help_)
    group.add_argument("--show", action="store_true", help="a window; q closes it")


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--alpha", type=cli.share, metavar="A", help="share of the colours in the overlay (default: 0.5)")
    beside = "image, truth and labels side by side, for images in NAME with label maps in NAMEannot"
    kind.add_argument("--compare", action="store_true", help=beside)
    parser.add_argument("--legend", action="store_true", help="draw the classes' colours and names beside the picture")


def _add_frames(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--every", type=cli.positive, default=1, metavar="N", help="label every N-th frame only")
    parser.add_argument("--topic", metavar="T", help="topic of the images in a bag, such as /camera/image_raw")
    parser.add_argument("--raw", type=frame_size, metavar="HxW", help="size of the frames on standard input")
    fps = "frames per second, of images (else they have no times) or on standard input (default: 25)"
    parser.add_argument("--fps", type=rate, metavar="F", help=fps)


def make_parser() -> cli.Parser:
    examples = (
        "enet-segment enet-camvid sample --legend",
        "enet-segment enet-int8.onnx drive.mp4 --backend openvino --labels ids/",
    )
    parser = cli.Parser("enet-segment", description=DESCRIPTION, examples=examples)
    cli.add_artifact(parser)
    cli.add_precision(parser)
    parser.add_argument("source", nargs="+", type=source_name, metavar="SOURCE", help=SOURCES)
    for add in (_add_outputs, _add_pictures, _add_frames):
        add(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return cli.run(make_parser(), run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
