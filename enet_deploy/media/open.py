"""Open a source by the text that names it: images, a video, a bag, a camera, a stream, raw bytes."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import cv2

from ..data import Part
from ..errors import DataError, InputError
from ..files import exists, is_folder
from ..images import IMAGE_SUFFIXES
from .bag_files import is_bag
from .capture import Capture
from .frames import FrameSource, Stop
from .image_files import ImageFiles
from .raw import RawFrames
from .video import VideoFile

log = logging.getLogger(__name__)


def open_source(
    text: str,
    stopped: Stop,
    raw: tuple[int, int] | None = None,
    rate: float | None = None,
    topic: str | None = None,
) -> FrameSource:
    """Open the source that `text` names.

    Args:
        text: an image, a folder, glob or numbered pattern (%04d) of images, a video file, a ROS bag, the number or
            device of a camera, a URL, a GStreamer pipeline, or "-" for standard input. A file or folder of that name
            comes first.
        stopped: ends a live source when set.
        raw: (height, width) of the frames on standard input.
        rate: frames per second, of images, which else have no times, or on standard input; None there for 25.
        topic: of the images in a bag; None if only one topic has images.

    Raises InputError if `raw`, `rate` or `topic` do not suit the source, DataError if there is nothing to read,
    BackendError if this machine cannot open sources of its kind.
    """
    try:
        return _open(text, stopped, raw, rate, topic)
    except PermissionError as error:
        raise DataError(f"{text} cannot be read: {error.strerror}; expected a path that you may read") from None


def _open(text: str, stopped: Stop, raw: tuple[int, int] | None, rate: float | None, topic: str | None) -> FrameSource:
    path = Path(text)
    names_bag = is_bag(path)
    if (raw is not None) != (text == "-"):
        raise InputError(
            f"--raw HEIGHTxWIDTH {'missing' if raw is None else 'given'} for '{text}'; expected with '-' only"
        )
    if topic is not None and not names_bag:
        raise InputError(f"--topic given for '{text}'; expected with a ROS bag only")
    if raw is not None:
        return RawFrames(raw, 25.0 if rate is None else rate, stopped)
    is_there = exists(path) and not path.is_char_device()
    if is_there and text.isdecimal():
        log.warning("%s is taken for the file or folder of that name; the camera is /dev/video%s", text, text)
    if not names_bag and (is_there or not (text.isdecimal() or " ! " in text or "://" in text or exists(path))):
        return _open_files(text, path, rate)
    _require_no_rate(text, rate)
    if names_bag:
        from .bags import Bag

        bag: FrameSource = Bag(path, topic)
        return bag
    return _open_stream(text, stopped)


def _require_no_rate(text: str, rate: float | None) -> None:
    if rate is not None:
        raise InputError(f"--fps given for '{text}', which has its own times; expected with images or '-' only")


def _open_stream(text: str, stopped: Stop) -> FrameSource:
    if text.isdecimal():
        return Capture(f"camera {text}", int(text), cv2.CAP_ANY, stopped)
    if " ! " in text:
        return Capture(text, text, cv2.CAP_GSTREAMER, stopped)
    capture = Capture(text, text, cv2.CAP_ANY, stopped)
    if capture.live:
        return capture
    capture.release()
    return VideoFile(text)


def _open_files(text: str, path: Path, rate: float | None) -> FrameSource:
    paths = _image_paths(text, path)
    if paths:
        return ImageFiles(text, paths, rate)
    _require_no_rate(text, rate)
    return VideoFile(path)


def _image_paths(text: str, path: Path) -> list[Path]:
    """The image files that `text` names; none if it is another file. Raises DataError if nothing is there."""
    if is_folder(path):
        part = Part(path)
        if not part.by_stem():
            nested = part.nested()
            count = f" ({len(nested)} are in its subfolders)" if nested else ""
            advice = f"name a folder that does, or a glob such as '{path / '**' / '*.png'}'"
            raise DataError(f"{text} holds no images itself{count}; {advice}")
        return [*part.one_by_stem().values()]
    if exists(path):
        return [path] if path.suffix.lower() in IMAGE_SUFFIXES else []
    if re.search(r"%0?\d*d", text):
        return _numbered(text)
    if glob.has_magic(text):
        return _matching(text)
    raise DataError(
        f"{text} does not exist; expected an image, a folder, glob or %04d pattern of images, a video file, a ROS bag, "
        "the number of a camera, a URL, a GStreamer pipeline, or - for raw frames on standard input"
    )


def _numbered(pattern: str) -> list[Path]:
    """The image files of a pattern with one %d or %04d, by their numbers. Raises DataError if there are none."""
    before, after = re.split(r"%0?\d*d", pattern, maxsplit=1)
    digits = int(re.findall(r"%0?(\d*)d", pattern)[0] or 1)
    found = {}
    for file in glob.glob(f"{glob.escape(before)}*{glob.escape(after)}"):  # noqa: PTH207  as in `_matching`
        number = file[len(before) : len(file) - len(after)]
        if number.isdecimal() and number == f"{int(number):0{digits}}":
            found[int(number)] = Path(file)
    images = [path for _, path in sorted(found.items()) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise DataError(f"no image matches {pattern}, expected files such as {before}{1:0{digits}}{after}")
    absent = max(found) - min(found) + 1 - len(found)
    if absent:
        log.warning("%s: %d numbers between %d and %d have no file", pattern, absent, min(found), max(found))
    return images


def _matching(pattern: str) -> list[Path]:
    """The image files that match a glob, sorted. Raises DataError if there are none, or two have the same stem."""
    files = map(Path, sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207  Path.glob takes no absolute patterns
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise DataError(f"no image matches {pattern}, expected a suffix of {' '.join(sorted(IMAGE_SUFFIXES))}")
    return _require_different_stems(images)


def open_images(texts: Sequence[str], rate: float | None = None) -> ImageFiles:
    """Open several image files, as a shell's glob gives them; `rate` as in `open_source`.

    Raises DataError if one is no image, or two have the same stem.
    """
    for text in texts:
        if Path(text).suffix.lower() not in IMAGE_SUFFIXES:
            raise DataError(f"{text} is one of {len(texts)} sources and no image; expected one source, or images only")
    return ImageFiles(f"{len(texts)} images", _require_different_stems([Path(text) for text in texts]), rate)


def _require_different_stems(paths: list[Path]) -> list[Path]:
    by_stem: dict[str, Path] = {}
    for path in paths:
        if by_stem.setdefault(path.stem, path) != path:
            raise DataError(
                f"{by_stem[path.stem]} and {path} have the same stem, so the output of one would replace that of the "
                "other; take one folder at a time"
            )
    return paths
