"""`enet-segment`: label anything that has frames, and show or write what comes of it."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .. import console
from ..classes import ClassList
from ..data import open_data, require_same_classes
from ..errors import DataError, InputError
from ..files import require_writable
from ..images import IMAGE_SUFFIXES, MAX_PIXELS, UInt8Array, colorize, overlay
from ..media import drawing, sinks
from ..media.open import BAG_SUFFIXES, open_images, open_source
from ..media.pipeline import Pipeline, Segmented
from ..media.sources import Images, Source, Stop
from ..metrics import ConfusionMatrix
from ..runners import BACKENDS, SUFFIXES, open_runner
from . import cli

NEW_BAGS = (".bag", ".mcap")  # that can be written


class Truth:
    """The label maps that lie beside a source's images.

    Raises InputError where the source has no place for them, DataError where they are missing or of other classes.
    """

    def __init__(self, source: Source, classes: ClassList) -> None:
        splits = {split_of(path) for path in source.paths} if isinstance(source, Images) else set()
        if len(splits) != 1:
            raise InputError(
                f"--compare for {source.name}, expected images of one folder NAME with NAMEannot beside it, or of one "
                "split of Cityscapes"
            )
        ((root, split),) = splits
        self._data = open_data(root, split)
        require_same_classes(classes, self._data.classes, root, "the artifact knows")
        self._index = {image.stem: index for index, (image, _) in enumerate(self._data.pairs)}
        self.confusion = ConfusionMatrix(classes)

    def beside(self, item: Segmented) -> Segmented:
        """The frame, its labels and their truth; counted."""
        index = self._index.get(item.frame.name)
        if index is None:
            raise DataError(f"{item.frame.name} is no image of a data set, expected one with a label map")
        truth = self._data.read_labels(index)
        if truth.shape != item.labels.shape:
            image, label_map = self._data.pairs[index]
            raise DataError(f"{label_map} is not of the size of {image}; a label map has the size of its image")
        self.confusion.update(truth, item.labels)
        return dataclasses.replace(item, truth=truth)


def split_of(image: Path) -> tuple[Path, str]:
    """The data set that an image lies in, links to it aside, and its split; there may be none."""
    folder = image.parent.resolve()
    if folder.parent.parent.name == "leftImg8bit":  # Cityscapes, by city
        return folder.parents[2], folder.parent.name
    return folder.parent, folder.name


class Artist:
    """Draws labelled frames as `--alpha`, `--legend` and `--compare` ask for."""

    def __init__(self, classes: ClassList, alpha: float, legend: bool) -> None:
        self._classes, self._alpha, self._legend = classes, alpha, legend
        self._legend_of = functools.lru_cache(4)(lambda height: drawing.legend(classes, height))

    def picture(self, item: Segmented) -> UInt8Array:
        """(h, w, 3) uint8 BGR: colours laid over the image, or image, truth and labels side by side."""
        if item.truth is None:
            picture = overlay(item.frame.image, item.labels, self._classes, self._alpha)
        else:
            right = np.equal(item.truth, item.labels)[item.truth < len(self._classes)]
            caption = f"labels, {right.mean():.1%} of pixels right" if right.size else "labels"
            label_maps = {"truth": item.truth, caption: item.labels}
            picture = drawing.side_by_side(drawing.panels(item.frame.image, label_maps, self._classes))
        if self._legend:
            picture = np.concatenate([picture, self._legend_of(picture.shape[0])], axis=1)
        return picture

    def mask(self, item: Segmented) -> UInt8Array:
        """(h, w, 3) uint8 BGR: the colours of the labels alone."""
        return colorize(item.labels, self._classes)

    def record(self, item: Segmented) -> dict[str, Any]:
        """What is written as JSON: see the README."""
        # A third of the time of numpy's bincount
        counts = cv2.calcHist([item.labels], [0], None, [256], [0, 256]).ravel()
        record: dict[str, Any] = {
            "frame": item.frame.name,
            "time_s": None if item.frame.time is None else round(float(item.frame.time), 6),
            "latency_ms": round(item.latency_ms, 3),
            "shares": {name: float(counts[id_]) / item.labels.size for id_, name in enumerate(self._classes.names)},
        }
        if item.truth is not None:
            counted = item.truth < len(self._classes)
            record["pixel_accuracy"] = float((item.truth == item.labels)[counted].mean()) if counted.any() else None
        return record


def picture_sink(stack: ExitStack, option: str, path: str, draw: sinks.Draw, source: Source, every: int) -> sinks.Write:
    """What a path asks for by its suffix: a video, one image, a folder of images, or "-" for bare bytes.

    Raises InputError where the source has no such thing.
    """
    suffix = Path(path).suffix.lower()
    if path == "-":
        return sinks.raw_bytes(draw)
    if names_folder(path):
        return sinks.image_files(Path(path), draw, folder=True)
    if suffix in sinks.VIDEO_CODECS:
        if isinstance(source, Images):
            raise InputError(f"{option} {path} for images, which have no times; expected a folder or an image's name")
        return stack.enter_context(sinks.video_file(Path(path), draw, source, every))
    if suffix not in IMAGE_SUFFIXES:
        raise InputError(
            f"{option} {path}, expected a folder (no dot in its name), -, an image, or a video: "
            f"{', '.join(sinks.VIDEO_CODECS)}"
        )
    if source.total != 1:
        raise InputError(f"{option} {path} is one image, and {source.name} has more frames; name a folder or a video")
    return sinks.image_files(Path(path), draw, folder=False)


def open_sinks(
    stack: ExitStack, args: argparse.Namespace, source: Source, classes: ClassList, stopped: Stop
) -> list[sinks.Write]:
    """All that the arguments ask for."""
    artist = Artist(classes, 0.5 if args.alpha is None else args.alpha, args.legend)
    writes: dict[str, sinks.Write] = {}
    if args.out is not None and Path(args.out).suffix.lower() in NEW_BAGS:
        from ..media.bags import Bag, label_bag

        if not isinstance(source, Bag):
            raise InputError(f"--out {args.out} is a bag, and {source.name} is none; expected a video or a folder")
        writes[args.out] = stack.enter_context(label_bag(Path(args.out), source.topic, classes))
    elif args.out is not None:
        writes[args.out] = picture_sink(stack, "--out", args.out, artist.picture, source, args.every)
    if args.masks is not None:
        writes[args.masks] = picture_sink(stack, "--masks", args.masks, artist.mask, source, args.every)
    if args.labels is not None:
        if args.labels != "-" and not names_folder(args.labels) and Path(args.labels).suffix.lower() != ".png":
            raise InputError(
                f"--labels {args.labels}, expected a folder (no dot in its name), a .png file, or -: ids stay exact"
            )
        writes[args.labels] = picture_sink(stack, "--labels", args.labels, lambda item: item.labels, source, args.every)
    if args.json is not None:
        writes[args.json] = stack.enter_context(sinks.json_lines(args.json, artist.record))
    if args.show:
        writes["--show"] = sinks.window(source.name, artist.picture, stopped)
    # Standard output last: its reader may leave, and every other output is to have that frame
    return [writes[path] for path in sorted(writes, key=lambda path: path == "-")]


def require_heeded(args: argparse.Namespace) -> None:
    """Raise InputError where an option says how to draw what is not drawn."""
    drawn = args.show or (args.out is not None and Path(args.out).suffix.lower() not in NEW_BAGS)
    if args.legend and not drawn:
        raise InputError("--legend without a picture to draw it into; add --out or --show")
    if args.alpha is not None and (args.compare or not drawn):
        why = "--compare, which lays nothing over the image" if args.compare else "no overlay; add --out or --show"
        raise InputError(f"--alpha with {why}")


def names_folder(path: str) -> bool:
    """Whether images go into a folder of this name, or into the one file."""
    return path.endswith(("/", os.sep)) or Path(path).is_dir() or not Path(path).suffix


def check_outputs(args: argparse.Namespace, source: Source) -> list[str]:
    """The paths to be written. Raises InputError where one is given twice or is what is read, ArtifactError where
    one cannot be written."""
    paths = [path for path in (args.out, args.labels, args.masks, args.json) if path is not None]
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise InputError(f"outputs {', '.join(paths)}, expected a different one for each")
    read = {path.resolve() for path in source.paths} if isinstance(source, Images) else {Path(source.name).resolve()}
    for path in paths:
        if path == "-" and sys.stdout is None:  # `>&-`
            raise InputError("standard output is closed, expected a file or a pipe for -")
        if path != "-":
            if {Path(path).resolve()} & (read | {path.parent for path in read}):
                raise InputError(f"{path} is what the frames are read from; write to another file or folder")
            if path == args.json or not names_folder(path):
                require_writable(path)
            elif Path(path).is_file():
                raise InputError(f"{path} is a file, expected a folder; name another, or one with an image's suffix")
            else:
                require_writable(Path(path) / "1.png")
    return paths


def default_out(texts: Sequence[str], source: Source) -> str:
    """What `--out` is where nothing is asked for, in the current folder."""
    text = texts[0]
    if len(texts) > 1:
        return "images-segmented/"
    if text == "-":
        raise InputError("frames of standard input go nowhere; give --out, --labels, --masks, --json or --show")
    path = Path(text)
    if isinstance(source, Images):
        if path.is_file():
            return f"{path.stem}-segmented.png"
        return f"{path.resolve().name if path.is_dir() else 'images'}-segmented/"
    if not path.exists():
        return "camera-segmented.mp4"
    if path.suffix.lower() in BAG_SUFFIXES or path.is_dir():
        return f"{path.stem}-segmented{'.bag' if path.suffix.lower() == '.bag' else '.mcap'}"
    return f"{path.stem}-segmented.mp4"


@contextmanager
def until_signalled(stopped: Stop) -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM sets `stopped` and is added to the list; a second one is as ever."""
    came: list[int] = []

    def stop(number: int, _: Any) -> None:
        restore()
        came.append(number)
        stopped.set()

    with cli.on_signals(stop, signal.SIGINT, signal.SIGTERM) as restore:
        yield came


def summary(pipeline: Pipeline, name: str, count: int, seconds: float, paths: Sequence[str]) -> str:
    """What was done, for people."""
    parts = [f"{console.counted(count, 'frame')} of {name} in {seconds:.1f} s ({count / seconds:.1f} FPS)"]
    if pipeline.undecodable:
        parts.append(f"{pipeline.undecodable} could not be decoded ({pipeline.first_flaw})")
    if pipeline.dropped:
        parts.append(f"{pipeline.dropped} dropped for newer ones")
    return "; ".join(parts + [f"wrote {path}" for path in paths if path != "-"])


def opened_source(args: argparse.Namespace, stopped: Stop) -> Source:
    """What the arguments name. Raises as `open_source` does, and InputError where artifact and source are swapped."""
    first, *others = args.source
    if Path(first).suffix in SUFFIXES:
        raise InputError(f"SOURCE {first} is an artifact, expected what holds frames; the artifact comes first")
    if others:
        for option in ("raw", "fps", "topic"):
            if getattr(args, option) is not None:
                raise InputError(
                    f"--{option} given for {len(args.source)} images; expected with one source that has use for it"
                )
        return open_images(args.source)
    return open_source(first, stopped, args.raw, args.fps, args.topic)


def write_frames(
    frames: Iterable[Segmented],
    writes: Sequence[sinks.Write],
    truth: Truth | None,
    paths: Sequence[str],
    signals: list[int],
) -> int:
    """Give each frame to all sinks; return how many there were.

    Where whoever read what is printed has seen enough, files are to be finished: SIGPIPE is added to `signals`.
    Raises BrokenPipeError where there are no files.
    """
    count = 0
    try:
        for item in frames:
            item = truth.beside(item) if truth is not None else item
            count += 1
            for write in writes:
                write(item)
    except BrokenPipeError:
        if paths == ["-"]:
            raise
        cli.discard_output()
        signals.append(signal.SIGPIPE)
    return count


def _segment(args: argparse.Namespace) -> None:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # else FFmpeg writes on stderr what our message says
    stopped = Stop()
    source = opened_source(args, stopped)
    if not (args.show or args.out or args.labels or args.masks or args.json):
        args.out = default_out(args.source, source)
    require_heeded(args)
    paths = check_outputs(args, source)
    total = None if source.total is None else math.ceil(source.total / args.every)
    with open_runner(args.artifact, args.backend, args.device) as runner:
        truth = Truth(source, runner.spec.classes) if args.compare else None
        pipeline = Pipeline(source, runner.segment, stopped, args.every)
        start = time.perf_counter()
        with until_signalled(stopped) as signals, ExitStack() as stack:
            writes = open_sinks(stack, args, source, runner.spec.classes, stopped)
            count = write_frames(console.progress(pipeline.run(), source.name, total), writes, truth, paths, signals)
            if not count:  # nothing to finish, so what was there before stays
                if signals:
                    raise SystemExit(128 + signals[0])
                raise pipeline.first_flaw or DataError(f"{source.name} holds no frame, expected at least one")
    told = summary(pipeline, source.name, count, time.perf_counter() - start, paths)
    print(f"interrupted{f', of about {total}' if total else ''}: {told}" if signals else told, file=sys.stderr)
    if truth is not None:
        scores = truth.confusion.scores()
        print(f"pixel accuracy {scores.pixel_accuracy:.4f}, mIoU {scores.miou:.4f}", file=sys.stderr)
    if signals and not source.live:
        raise SystemExit(128 + signals[0])


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        "enet-segment",
        description="Label every frame of a source. What comes of it goes where the options say, by default an overlay "
        "(of a bag: the labels) in the current folder. Decoding, labelling and writing overlap; of a live source only "
        "the newest frame counts. Ctrl-C and SIGTERM finish the files.",
    )
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="weights, a graph (.onnx) or an engine")
    parser.add_argument(
        "source",
        nargs="+",
        type=cli.text,
        metavar="SOURCE",
        help="an image or several, a folder or glob of images, a video, a camera's number, an RTSP or HTTP URL, a "
        "GStreamer pipeline, a ROS bag (.bag, .mcap, or a folder), or - for raw BGR frames on standard input",
    )
    outputs = parser.add_argument_group("outputs", "by suffix a video, an image or a folder; - is standard output")
    outputs.add_argument(
        "--out", type=cli.text, metavar="PATH", help="overlay; of a bag also a .bag or .mcap with labels"
    )
    outputs.add_argument("--labels", type=cli.text, metavar="PATH", help="label maps: PNG of class ids, or raw bytes")
    outputs.add_argument("--masks", type=cli.text, metavar="PATH", help="the labels in the classes' colours")
    outputs.add_argument(
        "--json", type=cli.text, metavar="FILE", help="a line of JSON per frame: share of each class, latency"
    )
    outputs.add_argument("--show", action="store_true", help="a window; q ends it")
    parser.add_argument(
        "--alpha", type=cli.share, metavar="A", help="share of the colours in the overlay (default: 0.5)"
    )
    parser.add_argument("--legend", action="store_true", help="with the classes' colours and names beside the picture")
    parser.add_argument(
        "--compare", action="store_true", help="image, truth and labels side by side; images of NAME, maps of NAMEannot"
    )
    parser.add_argument("--every", type=cli.positive, default=1, metavar="N", help="label every N-th frame alone")
    parser.add_argument("--topic", metavar="T", help="of the images in a bag, such as /camera/image_raw")
    parser.add_argument("--raw", type=frame_size, metavar="HxW", help="size of the frames on standard input")
    parser.add_argument("--fps", type=rate, metavar="F", help="of the same (default: 25)")
    parser.add_argument("--backend", choices=BACKENDS, help="default: by the artifact's suffix")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the backend's own)")
    return cli.run(parser, _segment, argv)


def frame_size(text: str) -> tuple[int, int]:
    """argparse type: "HxW" -> (height, width), any but 0."""
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


if __name__ == "__main__":
    raise SystemExit(main())
