"""What the parts of media exchange: a frame, a labelled frame, a source of frames, and the signal to stop."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction

from ..errors import DataError
from ..images import UInt8Array

log = logging.getLogger(__name__)

# Ticks per second for a source without a clock of its own. An mp4 loses gaps of over 2**31 ticks, which is 59 hours
TICKS = 10_000
NAP = 0.1  # seconds between two checks whether to stop, while a thread waits
# What may come from a URL, in FFmpeg's names. A list of addresses (HLS, DASH, SDP, concat) may not: each of its
# entries would be opened, on whatever server it names
URL_FORMATS = (
    "asf,av1,avi,flv,gif,h264,hevc,ivf,live_flv,m4v,matroska,mov,mjpeg,mpeg,mpegts,mpegvideo,mpjpeg,mxf,nut,obu,ogg,"
    "rtp,rtsp,webm,jpeg_pipe,png_pipe,webp_pipe"
)
TIMEOUT_MS = 5_000  # without a frame, or while a stream is opened
SHORTEST = Fraction(1, 1_000_000)  # seconds between two frames at least: JSON has so many digits


class Stop:
    """A flag to stop, which any thread or signal handler may set.

    In a signal handler, `threading.Event.set` could wait forever.
    """

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, seconds: float) -> bool:
        """Wait until the flag is set, at most this long. Returns whether it is set."""
        end = time.monotonic() + seconds
        while not self._is_set and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, NAP))
        return self._is_set


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        image: (h, w, 3) uint8 BGR.
        name: stem for output files: the image file's stem, or the frame's number in the source.
        time: seconds from the start of the source, exact; None for image files.
    """

    image: UInt8Array
    name: str
    time: Fraction | None = None


@dataclass(frozen=True)
class LabelledFrame:
    """A frame with its labels.

    Attributes:
        frame: as it came from the source.
        labels: (h, w) uint8 class ids, of the frame's size.
        latency_ms: duration of labelling, with resizing there and back, without waiting.
        truth: (h, w) uint8, the true class ids, if they are known.
        confidence: (h, w) uint8, 255 times the probability of the label, if it was asked for.
    """

    frame: Frame
    labels: UInt8Array
    latency_ms: float
    truth: UInt8Array | None = None
    confidence: UInt8Array | None = None


class Clock:
    """Gives the frames of a source times that strictly rise from 0 or later.

    A frame keeps the time that the source states, with three exceptions. Without a stated time it comes one frame
    after the last one. If its time is more than one frame before the last, the source's clock was reset, and it comes
    one frame after the last too. If its time equals the last, or is less than a frame before it, it comes just after
    the last. The second and third are logged, once per source.

    Args:
        name: of the source.
        rate: frames per second, about.
    """

    def __init__(self, name: str, rate: Fraction) -> None:
        self._name, self._step = name, 1 / rate
        self._last: Fraction | None = None
        self._shift = Fraction(0)
        self._said: set[str] = set()

    def time(self, stated: Fraction | None) -> Fraction:
        """The time of the next frame in seconds; `stated` is the source's own, None if it states none."""
        if self._last is None:
            due = Fraction(0) if stated is None else stated
            self._shift = max(Fraction(0), -due)
            due += self._shift
        else:
            due = self._last + self._step if stated is None else stated + self._shift
            if due < self._last - self._step:
                self._warn("its clock begins again at %.3f s; time goes on one frame later", self._last)
                self._shift += self._last + self._step - due
                due = self._last + self._step
            elif due < self._last + SHORTEST:
                self._warn("frames are out of order or of the same time at %.3f s; they follow at once", self._last)
                due = self._last + SHORTEST
        self._last = due
        return due

    def _warn(self, message: str, seconds: Fraction) -> None:
        if message not in self._said:
            self._said.add(message)
            log.warning(f"%s: {message}", self._name, float(seconds))


Frames = Generator[Frame | DataError, None, None]


class FrameSource(ABC):
    """Frames that can be read once.

    Attributes:
        name: as the user called it.
        live: whether frames come by themselves, as from a camera: then only the newest counts.
        total: how many frames it should have, or None if unknown.
        time_base: seconds between two ticks of its clock.
        rate: frames per second, about.
        pixel_aspect: width of a pixel over its height; known after the first frame.
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
        """Yield each frame, or a DataError in its place. Closing the generator releases the source."""
