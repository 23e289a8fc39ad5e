"""Where frames come from: images, a video file, a camera or stream, raw bytes on standard input."""

from __future__ import annotations

import itertools
import logging
import re
import select
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import FileIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import BackendError, DataError
from ..images import UInt8Array, read_image

log = logging.getLogger(__name__)

# Per second, where a source has no clock of its own. An mp4 forgets gaps of over 2**31 of them: 59 hours
TICKS = 10_000
RETRY_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 10.0)  # seconds before a lost camera is opened again; the last for good
BT709, UNSPECIFIED = 1, 2  # matrices, in FFmpeg's numbers
SD_HEIGHT, HD_WIDTH = 576, 1280  # higher or as wide, a picture whose file does not say is BT.709: mpv guesses so too
NAP = 0.1  # seconds between two looks at whether to stop, where a thread waits
TIMEOUT_MS = 5_000  # without a frame, or while opening a stream


class Stop:
    """Whether to stop: set from anywhere, a signal's handler too, in which `threading.Event.set` may never return."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, seconds: float) -> bool:
        """Wait so long, but no longer than until it is set; whether it is."""
        end = time.monotonic() + seconds
        while not self._is_set and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, NAP))
        return self._is_set


Frames = Generator["Frame | DataError", None, None]


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        image: (h, w, 3) uint8 BGR.
        name: what files made of it are called: the image's own, or its number in the source.
        time: seconds from the start of the source, exact; None for pictures that belong to no time.
    """

    image: UInt8Array
    name: str
    time: Fraction | None = None


class Source(ABC):
    """Frames, read once.

    Attributes:
        name: what the user called it.
        live: whether frames come by themselves, so that the newest counts and a late one is worthless.
        total: how many frames it should have, or None where nobody knows.
        time_base: seconds between two ticks of its clock.
        rate: frames per second, about.
        pixel_aspect: width of a pixel over its height; known once there was a frame.
    """

    live = False
    total: int | None = None
    time_base = Fraction(1, TICKS)
    rate = Fraction(25)
    pixel_aspect = Fraction(1)

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def frames(self) -> Frames:
        """Every frame, or in its place what kept it from being decoded; ended or closed, it frees what it holds."""


class Images(Source):
    """Image files, one after the other."""

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        super().__init__(name)
        self.paths = paths
        self.total = len(paths)

    def frames(self) -> Frames:
        for path in self.paths:
            try:
                yield Frame(read_image(path), path.stem)
            except DataError as error:
                yield error


class Video(Source):
    """A video file, here or at a URL, decoded by PyAV: OpenCV does not tell when a frame is due.

    Pictures are turned as the file says (phones record upright videos lying down). As in any player, a damaged
    picture passes that the decoder does not find to be so.

    Raises DataError where it cannot be opened or holds no video.
    """

    def __init__(self, path: Path | str) -> None:
        import av

        super().__init__(str(path))
        try:
            self._container = av.open(self.name, timeout=TIMEOUT_MS / 1000 if "://" in self.name else None)
        except av.error.FFmpegError as error:
            raise DataError(f"{path} is neither an image nor a video that can be read: {error.strerror}") from None
        stream = self._container.streams.best("video")  # the film rather than its cover
        if not isinstance(stream, av.VideoStream):
            self._container.close()
            raise DataError(f"{path} holds no video, expected a file with at least one video stream")
        self._stream = stream
        self._stream.thread_type = "AUTO"
        self.time_base = self._stream.time_base or self.time_base
        self.rate = self._stream.average_rate or self.rate
        self._seconds = float((stream.duration or 0) * (stream.time_base or 0)) or _tagged(stream.metadata)
        if not self._seconds and len(self._container.streams) == 1:  # else it may be of the sound
            self._seconds = (self._container.duration or 0) / 1_000_000
        self.total = self._stream.frames or round(self._seconds * self.rate) or None
        self._count, self._end = 0, 0.0

    def frames(self) -> Frames:
        from av.error import FFmpegError

        with self._container as container:
            packets = container.demux(self._stream)
            while True:
                try:
                    packet = next(packets, None)
                except FFmpegError as error:
                    yield DataError(f"{self.name} cannot be read to its end: {error}")
                    return
                if packet is None:
                    is_whole = self._stream.frames and self._count >= 0.9 * self._stream.frames
                    if not is_whole and (too_short := _too_short(self.name, self._end, self._seconds)):
                        yield too_short
                    return
                try:
                    pictures = packet.decode()
                except FFmpegError as error:
                    yield DataError(f"{self.name}: a frame cannot be decoded: {error}")
                    continue
                yield from map(self._frame, pictures)

    def _frame(self, picture: Any) -> Frame | DataError:
        index = self._count
        self._count += 1
        if picture.is_corrupt:
            return DataError(f"{self.name}: frame {index} is damaged")
        started = Fraction(self._container.start_time or 0, 1_000_000)
        due = index / self.rate if picture.pts is None else picture.pts * picture.time_base - started
        is_high = picture.height > SD_HEIGHT or picture.width >= HD_WIDTH
        matrix = BT709 if picture.colorspace == UNSPECIFIED and is_high else None
        aspect = self._stream.sample_aspect_ratio or Fraction(1)
        self.pixel_aspect = 1 / aspect if picture.rotation % 180 else aspect
        image = np.rot90(picture.to_ndarray(format="bgr24", src_colorspace=matrix), picture.rotation // 90)
        # some containers count their length from 0, whatever they start with
        self._end = float(due + started + (picture.duration or 0) * (picture.time_base or 0))
        return Frame(np.ascontiguousarray(image), f"{index:06}", max(due, Fraction(0)))


def _tagged(metadata: dict[str, str]) -> float:
    """Seconds that a track of a Matroska file lasts; 0 where it does not say."""
    found = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", metadata.get("DURATION", ""))
    return sum(float(part) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True)) if found else 0.0


def _too_short(name: str, end: float, seconds: float) -> DataError | None:
    """What is wrong with a video that ends much earlier than it says; what it says may be an estimate."""
    if end >= 0.9 * seconds:
        return None
    return DataError(f"{name} ended at {end:.1f} of about {seconds:.1f} s; it seems cut short: fetch it again")


class Capture(Source):
    """What OpenCV opens: a camera by its number or device, a URL, a GStreamer pipeline.

    A live one that gives nothing any more is opened again, after longer and longer pauses, until it does. What knows
    how many frames it has is none: its end is the end.

    Args:
        name: for people.
        address: number of a camera, device, URL or pipeline.
        api: of OpenCV, one of cv2.CAP_*.
        stopped: once set, no frame is read any more.

    Raises DataError where it cannot be opened at first, BackendError where this OpenCV cannot open its kind.
    """

    def __init__(self, name: str, address: int | str, api: int, stopped: Stop) -> None:
        super().__init__(name)
        if api == cv2.CAP_GSTREAMER and not cv2.videoio_registry.hasBackend(api):
            raise BackendError(
                f"'{name}' is a GStreamer pipeline, and this OpenCV {cv2.__version__} was built without GStreamer "
                "(wheels are); use one that has it, such as the system's, or give the stream's URL"
            )
        self._address, self._api, self._stopped = address, api, stopped
        self._capture = self._open()
        if not self._capture.isOpened():
            raise DataError(f"{name} cannot be opened; check that it is there, and that no other program has it")
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.total = int(count) if 0 < count < 2**53 else None
        self.live = self.total is None

    def _open(self) -> cv2.VideoCapture:
        if isinstance(self._address, int):
            return cv2.VideoCapture(self._address, self._api)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT_MS]
        return cv2.VideoCapture(self._address, self._api, limits if "://" in self._address else [])

    def frames(self) -> Frames:
        count, failures, start = 0, 0, time.monotonic()
        try:
            while not self._stopped.is_set():
                there, image = self._capture.read()
                if there:
                    if failures:
                        log.warning("%s is back", self.name)
                    failures = 0
                    since = time.monotonic() - start if self.live else self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                    yield Frame(
                        image.astype(np.uint8, copy=False), f"{count:06}", Fraction(round(since * TICKS), TICKS)
                    )
                    count += 1
                elif self.live:
                    self._open_again(RETRY_WAITS[min(failures, len(RETRY_WAITS) - 1)])
                    failures += 1
                else:
                    break
        finally:
            self.release()

    def release(self) -> None:
        self._capture.release()

    def _open_again(self, wait: float) -> None:
        self.release()
        log.warning("%s gives no frames; opened again in %g s", self.name, wait)
        if not self._stopped.wait(wait):
            self._capture = self._open()


class Raw(Source):
    """Frames as bare bytes, height x width x 3, BGR, from a file descriptor: what `ffmpeg -pix_fmt bgr24` writes.

    Args:
        size: (height, width).
        rate: frames per second.
        stopped: once set, nothing more is read.
        descriptor: to read from, 0 for standard input.
    """

    def __init__(self, size: tuple[int, int], rate: float, stopped: Stop, descriptor: int = 0) -> None:
        super().__init__("standard input")
        self._size, self._stopped = size, stopped
        self.rate = Fraction(rate).limit_denominator(1001)
        self.time_base = 1 / self.rate
        try:
            self._file = FileIO(descriptor, closefd=False)  # unbuffered, so that what `select` says of it is so
        except OSError:
            raise DataError("standard input is closed, expected raw frames from a pipe or a file") from None

    def frames(self) -> Frames:
        for count in itertools.count():
            image = np.empty((*self._size, 3), np.uint8)
            there = self._fill(memoryview(image.reshape(-1)))  # type: ignore[arg-type]
            if there == image.nbytes:
                yield Frame(image, f"{count:06}", count / self.rate)
                continue
            if there:
                yield DataError(
                    f"standard input ended {there} bytes into a frame of {image.nbytes}; expected whole frames of "
                    f"{self._size[0]}x{self._size[1]} (height x width), 3 bytes a pixel"
                )
            return

    def _fill(self, buffer: memoryview) -> int:
        """Read until it is full or nothing comes any more; how many bytes came."""
        there = 0
        while there < len(buffer) and not self._stopped.is_set():
            if not select.select([self._file], [], [], NAP)[0]:
                continue
            count = self._file.readinto(buffer[there:])
            if not count:
                break
            there += count
        return there
