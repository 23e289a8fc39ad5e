"""Sinks for labelled frames: a video, image files, raw bytes, JSON lines, a window.

A sink is a function that takes each frame; a renderer makes the picture that a sink writes or shows.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..child import python
from ..classes import ClassList
from ..errors import ArtifactError, BackendError, DataError
from ..files import atomic_write
from ..images import UInt8Array, encode
from .frames import FrameSource, LabelledFrame, Stop
from .video import BT709, pyav

log = logging.getLogger(__name__)

# Containers that keep the time of each frame; avi does not
VIDEO_CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9"}
CODEC_OPTIONS = {
    "libx264": {"preset": "ultrafast", "crf": "20"},  # veryfast saves half the bytes for three times the work
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "30", "b": "0"},
}
LIMITED = 1  # colour range, in FFmpeg's numbers; if a video does not declare it, players guess by its size

SCREEN_SECONDS = 20  # to wait for a screen's answer; over a network it takes some seconds
LONGEST = 1 << 30  # ticks between two frames that every container can hold
MIN_RATE, MAX_RATE = Fraction(1, 1000), Fraction(1000)  # frames per second to declare; FFmpeg computes with 32 bits

Renderer = Callable[[LabelledFrame], UInt8Array]  # a picture of a labelled frame: (h, w, 3) BGR, or (h, w), uint8
Sink = Callable[[LabelledFrame], None]


@contextmanager
def video_file(path: Path, render: Renderer, source: FrameSource, every: int = 1) -> Iterator[Sink]:
    """Write a video without sound. Each frame keeps its time in the source.

    Frames of another size than the first are resized to it. An odd side gets one more row or column, a copy of the
    last, as 4:2:0 needs even sizes. The file appears when the block ends without an error.

    Args:
        path: with one of the suffixes of `VIDEO_CODECS`.
        render: makes the pictures.
        source: of the frames; gives the clock, the frame rate and the shape of the pixels.
        every: the sink gets every N-th frame only.

    Raises ArtifactError if it cannot be written.
    """
    av = pyav()
    with atomic_write(path) as temporary:
        with _named(path):
            container = av.open(str(temporary), "w")
        encoder = _Encoder(container, VIDEO_CODECS[path.suffix.lower()], source, every)

        def write(item: LabelledFrame) -> None:
            picture = render(item)
            with _named(path, _sides(picture.shape)):
                encoder.encode(picture, item.frame.time)

        try:
            yield write
            with _named(path):
                encoder.finish()
        except BaseException:
            with suppress(av.error.FFmpegError):
                container.close()
            raise
        with _named(path):
            container.close()


@contextmanager
def _named(path: Path, sides: str = "") -> Iterator[None]:
    """Raise ArtifactError, which names the video, for what FFmpeg raises in this block, in which no frame is read.

    Args:
        path: of the video.
        sides: of the picture to encode, if there is one.
    """
    from av.error import FFmpegError

    try:
        yield
    except FFmpegError as error:
        remedy = "free space or choose another folder"
        if sides and not isinstance(error, OSError):  # then it is not the disk
            remedy = f"its encoder may not take {sides} pixels (height x width): name a folder for images"
        raise ArtifactError(f"cannot write {path}: {error}; {remedy}") from None


class _Encoder:
    def __init__(self, container: Any, codec: str, source: FrameSource, every: int) -> None:
        self._container, self._codec, self._time_base = container, codec, source.time_base
        self._rate = min(max(source.rate / every, MIN_RATE), MAX_RATE).limit_denominator(1001)
        self._source = source
        self._stream: Any = None
        self._last = -1  # tick of the previous frame
        self._skipped = 0  # ticks of gaps that are too long

    def encode(self, picture: UInt8Array, time: Fraction | None) -> None:
        from av import VideoFrame

        if self._stream is None:
            self._stream = self._add_stream(picture.shape[0], picture.shape[1])
        picture = _fitted(picture, self._stream.height, self._stream.width)
        frame = VideoFrame.from_ndarray(picture, format="bgr24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED)
        tick = max(self._last + 1, round((time or 0) / self._time_base) - self._skipped)
        if tick - self._last > LONGEST and self._last >= 0:
            gap = tick - self._last
            self._skipped += gap - LONGEST
            log.warning(
                "%s: a gap of %.0f s is too long for a video and becomes %.0f s",
                self._source.name, float(gap * self._time_base), float(LONGEST * self._time_base),
            )  # fmt: skip
            tick = self._last + LONGEST
        self._last = tick
        frame.pts, frame.time_base = self._last, self._time_base
        self._container.mux(self._stream.encode(frame))

    def _add_stream(self, height: int, width: int) -> Any:
        stream = self._container.add_stream(self._codec, self._rate, options=CODEC_OPTIONS[self._codec])
        stream.height, stream.width, stream.pix_fmt = height + height % 2, width + width % 2, "yuv420p"
        context = stream.codec_context
        context.time_base, context.sample_aspect_ratio = self._time_base, self._source.pixel_aspect
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        return stream

    def finish(self) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))


def _fitted(picture: UInt8Array, height: int, width: int) -> UInt8Array:
    below, right = height - picture.shape[0], width - picture.shape[1]
    if below in (0, 1) and right in (0, 1):
        fitted = cv2.copyMakeBorder(picture, 0, below, 0, right, cv2.BORDER_REPLICATE)
    else:
        fitted = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return fitted.astype(np.uint8, copy=False)


def image_files(folder: Path, render: Renderer) -> Sink:
    """Write a PNG per frame, named after the frame, to a folder."""

    def write(item: LabelledFrame) -> None:
        _write_image(folder / f"{item.frame.name}.png", render(item))

    return write


def image_file(path: Path, render: Renderer) -> Sink:
    """Write the one frame of a source to an image file."""
    return lambda item: _write_image(path, render(item))


def _write_image(path: Path, picture: UInt8Array) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode(path, picture))


def raw_bytes(render: Renderer) -> Sink:
    """Write the raw bytes of each picture to standard output.

    The sink raises DataError for a picture of another size than the first.
    """
    shape: tuple[int, ...] = ()

    def write(item: LabelledFrame) -> None:
        nonlocal shape
        picture = render(item)
        shape = shape or picture.shape
        if picture.shape != shape:
            raise DataError(
                f"frame {item.frame.name} becomes {_sides(picture.shape)}, earlier ones {_sides(shape)} (height x "
                "width), and raw bytes cannot tell sizes apart; write to a folder"
            )
        _print(picture.tobytes())

    return write


def _print_line(text: str) -> None:
    if hasattr(sys.stdout, "buffer"):
        _print(f"{text}\n".encode())
    else:  # the calling program has replaced standard output
        print(text, flush=True)


def _print(content: bytes) -> None:
    """Write to standard output. Unlike `print` in a command, raises BrokenPipeError if its reader has left.

    Raises ArtifactError for other errors, as on a full disk.
    """
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ArtifactError(f"cannot write standard output: {error}; free space") from None


def _sides(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"


@contextmanager
def json_lines(path: str, classes: ClassList) -> Iterator[Sink]:
    """Write a line of JSON per frame to a file that appears when the block ends well, or to standard output ("-")."""
    if path == "-":
        yield lambda item: _print_line(json.dumps(frame_record(item, classes), allow_nan=False))
        return
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield lambda item: print(json.dumps(frame_record(item, classes), allow_nan=False), file=file)


def frame_record(item: LabelledFrame, classes: ClassList) -> dict[str, Any]:
    """The JSON of a frame: "frame", "time_s", "latency_ms", "shares", and with truth "pixel_accuracy"."""
    # Takes a third of the time of numpy's bincount
    counts = cv2.calcHist([item.labels], [0], None, [256], [0, 256]).ravel()
    record: dict[str, Any] = {
        "frame": item.frame.name,
        "time_s": None if item.frame.time is None else round(float(item.frame.time), 6),
        "latency_ms": round(item.latency_ms, 3),
        "shares": {name: float(counts[id_]) / item.labels.size for id_, name in enumerate(classes.names)},
    }
    if item.truth is not None:
        labelled = item.truth < len(classes)
        record["pixel_accuracy"] = float((item.truth == item.labels)[labelled].mean()) if labelled.any() else None
    return record


def _screen_answers() -> bool:
    """Whether a window can be opened. A child process tries, as Qt ends the process if it cannot."""
    try:
        command = python("import cv2; cv2.namedWindow('enet')")
        done = subprocess.run(command, capture_output=True, timeout=SCREEN_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode >= 0  # negative if a signal ended it; `window` explains an exception


def window(title: str, render: Renderer, stopped: Stop) -> Sink:
    """Show each picture in a window. q, Esc or closing the window sets `stopped`.

    Raises BackendError if there is no screen.
    """
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise BackendError("--show needs a screen, and neither DISPLAY nor WAYLAND_DISPLAY is set; use --out instead")
    if not _screen_answers():
        raise BackendError("--show needs a screen, and the one that DISPLAY names does not answer; use --out instead")
    try:
        cv2.namedWindow(title, cv2.WINDOW_NORMAL)
    except cv2.error:
        raise BackendError(
            f"--show needs windows, and this OpenCV {cv2.__version__} was built without them (opencv-python-headless "
            "is); install opencv-python instead"
        ) from None

    def write(item: LabelledFrame) -> None:
        cv2.imshow(title, render(item))
        if cv2.waitKey(1) & 0xFF in (27, ord("q")) or cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) < 1:
            stopped.set()

    return write
