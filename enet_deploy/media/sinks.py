"""Where pictures and figures go: a video, image files, bare bytes, JSON lines, a window."""

from __future__ import annotations

import json
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

from ..errors import BackendError, DataError
from ..files import atomic_write
from ..images import UInt8Array, encode
from .pipeline import Segmented
from .sources import BT709, Source, Stop

# The containers that keep a time for each frame; avi, for one, does not
VIDEO_CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9"}
CODEC_OPTIONS = {
    "libx264": {"preset": "ultrafast", "crf": "20"},  # veryfast saves half the bytes for three times the work
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "30", "b": "0"},
}
LIMITED = 1  # range, in FFmpeg's numbers; where a video does not say, players guess its colours by its size

SCREEN_SECONDS = 20  # until it answers; over a network it takes some
MIN_RATE, MAX_RATE = Fraction(1, 1000), Fraction(1000)  # that a file says it has; FFmpeg computes with 32 bits

Draw = Callable[[Segmented], UInt8Array]  # a picture of a labelled frame: (h, w, 3) BGR, or (h, w), uint8
Write = Callable[[Segmented], None]


@contextmanager
def video_file(path: Path, draw: Draw, source: Source, every: int = 1) -> Iterator[Write]:
    """A video of what `draw` makes of each frame, without sound; each frame is due when it was in its source.

    Frames of another size than the first are resized to it. An odd side gets one more row or column, a copy of the
    last, as 4:2:0 knows even sizes only. The file appears when the block ends well.

    Args:
        path: with one of the suffixes of `VIDEO_CODECS`.
        draw: what is to be seen.
        source: of the frames, with its clock and the shape of its pixels.
        every: only every so manieth of them comes.

    Raises ArtifactError where it cannot be written.
    """
    import av

    with atomic_write(path) as temporary:
        try:
            container = av.open(str(temporary), "w")
            try:
                encoder = _Encoder(container, VIDEO_CODECS[path.suffix.lower()], source, every)
                yield lambda item: encoder.encode(draw(item), item.frame.time)
                encoder.finish()
            except BaseException:
                with suppress(av.error.FFmpegError):
                    container.close()
                raise
            container.close()
        except av.error.FFmpegError as error:
            raise OSError(str(error)) from None  # which `atomic_write` explains


class _Encoder:
    def __init__(self, container: Any, codec: str, source: Source, every: int) -> None:
        self._container, self._codec, self._time_base = container, codec, source.time_base
        self._rate = min(max(source.rate / every, MIN_RATE), MAX_RATE).limit_denominator(1001)
        self._source = source
        self._stream: Any = None
        self._last = -1  # tick of the frame before

    def encode(self, picture: UInt8Array, time: Fraction | None) -> None:
        from av import VideoFrame

        if self._stream is None:
            self._stream = self._add_stream(picture.shape[0], picture.shape[1])
        picture = _fitted(picture, self._stream.height, self._stream.width)
        frame = VideoFrame.from_ndarray(picture, format="bgr24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED)
        self._last = max(self._last + 1, round((time or 0) / self._time_base))
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


def image_files(path: Path, draw: Draw, folder: bool) -> Write:
    """A PNG of what `draw` makes of each frame, named after it, in the folder `path`; or the one file `path`."""

    def write(item: Segmented) -> None:
        file = path / f"{item.frame.name}.png" if folder else path
        with atomic_write(file) as temporary:
            temporary.write_bytes(encode(file, draw(item)))

    return write


def raw_bytes(draw: Draw) -> Write:
    """The bare bytes of what `draw` makes of each frame, on standard output.

    What it returns raises DataError for a frame of another size than the first.
    """
    shape: tuple[int, ...] = ()

    def write(item: Segmented) -> None:
        nonlocal shape
        picture = draw(item)
        shape = shape or picture.shape
        if picture.shape != shape:
            raise DataError(
                f"frame {item.frame.name} becomes {_sides(picture.shape)}, the ones before {_sides(shape)} (height x "
                "width), which bare bytes cannot tell apart; write to a folder"
            )
        _print(picture.tobytes())

    return write


def _print_line(text: str) -> None:
    if hasattr(sys.stdout, "buffer"):
        _print(f"{text}\n".encode())
    else:  # a program has put something else in its place
        print(text, flush=True)


def _print(content: bytes) -> None:
    """On standard output; raises BrokenPipeError where nobody reads it any more, unlike `print` in a command."""
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def _sides(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"


@contextmanager
def json_lines(path: str, record: Callable[[Segmented], dict[str, Any]]) -> Iterator[Write]:
    """A line of JSON per frame, in a file that appears when the block ends well, or on standard output ("-")."""
    if path == "-":
        yield lambda item: _print_line(json.dumps(record(item), allow_nan=False))
        return
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield lambda item: print(json.dumps(record(item), allow_nan=False), file=file)


def _screen_answers() -> bool:
    """Whether a window can be opened: tried in a process of its own, as Qt ends the process where it cannot."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import cv2; cv2.namedWindow('enet')"], capture_output=True, timeout=SCREEN_SECONDS
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode >= 0  # else a signal ended it; an exception is for `window` to explain


def window(title: str, draw: Draw, stopped: Stop) -> Write:
    """A window with what `draw` makes of each frame; q, Esc or closing it sets `stopped`.

    Raises BackendError where there is no screen.
    """
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise BackendError("--show needs a screen, and neither DISPLAY nor WAYLAND_DISPLAY is set; use --out instead")
    if not _screen_answers():
        raise BackendError("--show needs a screen, and the one that DISPLAY names does not answer; use --out instead")
    try:
        cv2.namedWindow(title, cv2.WINDOW_NORMAL)
    except cv2.error:
        raise BackendError(
            f"--show needs windows, and this OpenCV {cv2.__version__} was built without (opencv-python-headless is); "
            "install opencv-python instead"
        ) from None

    def write(item: Segmented) -> None:
        cv2.imshow(title, draw(item))
        if cv2.waitKey(1) & 0xFF in (27, ord("q")) or cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) < 1:
            stopped.set()

    return write
