"""From the text that names a source to the source: images, a video, a bag, a camera, a stream, raw bytes."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import cv2

from ..data import Part
from ..errors import DataError, InputError
from ..images import IMAGE_SUFFIXES
from .sources import Capture, Images, Raw, Source, Stop, Video

BAG_SUFFIXES = (".bag", ".mcap", ".db3")  # ROS 1; ROS 2, which also keeps them in a folder with a metadata.yaml


def open_source(
    text: str,
    stopped: Stop,
    raw: tuple[int, int] | None = None,
    rate: float | None = None,
    topic: str | None = None,
) -> Source:
    """Open what `text` names.

    Args:
        text: an image, a folder or glob of images, a video file, a ROS bag, the number or device of a camera, a URL,
            a GStreamer pipeline, or "-" for standard input.
        stopped: set, it ends a live source.
        raw: (height, width) of the frames on standard input.
        rate: of these, per second; 25 where it is None.
        topic: of the images in a bag; None where it has one such topic.

    Raises InputError where `raw`, `rate` or `topic` do not fit, DataError where there is nothing to read, BackendError
    where it is of a kind that this machine cannot open.
    """
    path = Path(text)
    is_bag = path.suffix.lower() in BAG_SUFFIXES or (path / "metadata.yaml").is_file()
    if (raw is not None) != (text == "-"):
        raise InputError(
            f"--raw HEIGHTxWIDTH {'missing' if raw is None else 'given'} for '{text}'; expected with '-', and only "
            "there"
        )
    if rate is not None and raw is None:
        raise InputError(f"--fps given for '{text}', which has its own times; expected with '-', and only there")
    if topic is not None and not is_bag:
        raise InputError(f"--topic given for '{text}'; expected with a ROS bag, and only there")
    if raw is not None:
        return Raw(raw, 25.0 if rate is None else rate, stopped)
    if is_bag:
        from .bags import Bag

        bag: Source = Bag(path, topic)
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
        return Video(text)
    return _open_files(text, path)


def _open_files(text: str, path: Path) -> Source:
    if path.is_dir():
        if not Part(path).by_stem():
            every = path / "**" / "*.png"
            raise DataError(f"{text} holds no images itself; name a folder that does, or a glob such as '{every}'")
        return Images(text, [*Part(path).one_by_stem().values()])
    if not path.exists() and glob.has_magic(text):
        return Images(text, _matching(text))
    if not path.exists():
        raise DataError(
            f"{text} does not exist; expected an image, a folder or glob of images, a video file, a ROS bag, the "
            "number of a camera, a URL, a GStreamer pipeline, or - for raw frames on standard input"
        )
    return Images(text, [path]) if path.suffix.lower() in IMAGE_SUFFIXES else Video(path)


def _matching(pattern: str) -> list[Path]:
    """The image files that a glob fits, sorted. Raises DataError where there are none, or two of one name."""
    found = map(Path, sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207  Path.glob takes no absolute patterns
    paths = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise DataError(f"no image fits {pattern}, expected some with one of {' '.join(sorted(IMAGE_SUFFIXES))}")
    return _of_different_names(paths)


def open_images(texts: Sequence[str]) -> Images:
    """The image files that a shell made of a glob. Raises DataError where one is none, or two have one name."""
    for text in texts:
        if Path(text).suffix.lower() not in IMAGE_SUFFIXES:
            raise DataError(f"{text} is one of {len(texts)} sources and no image; expected one source, or images alone")
    return Images(f"{len(texts)} images", _of_different_names([Path(text) for text in texts]))


def _of_different_names(paths: list[Path]) -> list[Path]:
    names: dict[str, Path] = {}
    for path in paths:
        if names.setdefault(path.stem, path) != path:
            raise DataError(
                f"{names[path.stem]} and {path} have the same stem, so what is made of one would replace that of the "
                "other; take one folder at a time"
            )
    return paths
