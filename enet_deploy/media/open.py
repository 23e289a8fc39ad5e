"""Open a source by the text that names it: images, a video, a bag, a camera, a stream, raw bytes."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import cv2

from ..data import Part
from ..errors import DataError, InputError
from ..images import IMAGE_SUFFIXES
from .capture import Capture
from .frames import FrameSource, Stop
from .image_files import ImageFiles
from .raw import RawFrames
from .video import VideoFile

BAG_SUFFIXES = (".bag", ".mcap", ".db3")  # ROS 1; ROS 2, whose bags may also be folders with a metadata.yaml


def open_source(
    text: str,
    stopped: Stop,
    raw: tuple[int, int] | None = None,
    rate: float | None = None,
    topic: str | None = None,
) -> FrameSource:
    """Open the source that `text` names.

    Args:
        text: an image, a folder or glob of images, a video file, a ROS bag, the number or device of a camera, a URL,
            a GStreamer pipeline, or "-" for standard input.
        stopped: ends a live source when set.
        raw: (height, width) of the frames on standard input.
        rate: frames per second on standard input; None for 25.
        topic: of the images in a bag; None if only one topic has images.

    Raises InputError if `raw`, `rate` or `topic` do not suit the source, DataError if there is nothing to read,
    BackendError if this machine cannot open sources of its kind.
    """
    path = Path(text)
    is_bag = path.suffix.lower() in BAG_SUFFIXES or (path / "metadata.yaml").is_file()
    if (raw is not None) != (text == "-"):
        raise InputError(
            f"--raw HEIGHTxWIDTH {'missing' if raw is None else 'given'} for '{text}'; expected with '-' only"
        )
    if rate is not None and raw is None:
        raise InputError(f"--fps given for '{text}', which has its own times; expected with '-' only")
    if topic is not None and not is_bag:
        raise InputError(f"--topic given for '{text}'; expected with a ROS bag only")
    if raw is not None:
        return RawFrames(raw, 25.0 if rate is None else rate, stopped)
    if is_bag:
        from .bags import Bag

        bag: FrameSource = Bag(path, topic)
        return bag
    if text.isdecimal():
        return Capture(f"camera {text}", int(text), cv2.CAP_ANY, stopped)
    if " ! " in text:
        return Capture(text, text, cv2.CAP_GSTREAMER, stopped)
    if "://" in text or path.is_char_device():
        capture = Capture(text, text, cv2.CAP_ANY, stopped)
        if capture.live:
            return capture
        capture.release()
        return VideoFile(text)
    return _open_files(text, path)


def _open_files(text: str, path: Path) -> FrameSource:
    if path.is_dir():
        if not Part(path).by_stem():
            nested = path / "**" / "*.png"
            raise DataError(f"{text} holds no images itself; name a folder that does, or a glob such as '{nested}'")
        return ImageFiles(text, [*Part(path).one_by_stem().values()])
    if not path.exists() and glob.has_magic(text):
        return ImageFiles(text, _matching(text))
    if not path.exists():
        raise DataError(
            f"{text} does not exist; expected an image, a folder or glob of images, a video file, a ROS bag, the "
            "number of a camera, a URL, a GStreamer pipeline, or - for raw frames on standard input"
        )
    return ImageFiles(text, [path]) if path.suffix.lower() in IMAGE_SUFFIXES else VideoFile(path)


def _matching(pattern: str) -> list[Path]:
    """The image files that match a glob, sorted. Raises DataError if there are none, or two have the same stem."""
    files = map(Path, sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207  Path.glob takes no absolute patterns
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise DataError(f"no image matches {pattern}, expected a suffix of {' '.join(sorted(IMAGE_SUFFIXES))}")
    return _require_different_stems(images)


def open_images(texts: Sequence[str]) -> ImageFiles:
    """Open several image files, as a shell's glob gives them.

    Raises DataError if one is no image, or two have the same stem.
    """
    for text in texts:
        if Path(text).suffix.lower() not in IMAGE_SUFFIXES:
            raise DataError(f"{text} is one of {len(texts)} sources and no image; expected one source, or images only")
    return ImageFiles(f"{len(texts)} images", _require_different_stems([Path(text) for text in texts]))


def _require_different_stems(paths: list[Path]) -> list[Path]:
    by_stem: dict[str, Path] = {}
    for path in paths:
        if by_stem.setdefault(path.stem, path) != path:
            raise DataError(
                f"{by_stem[path.stem]} and {path} have the same stem, so the output of one would replace that of the "
                "other; take one folder at a time"
            )
    return paths
