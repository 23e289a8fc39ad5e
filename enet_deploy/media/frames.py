"""What the parts of media exchange: a frame, a labelled frame, a source of frames, and the signal to stop."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction

from ..errors import DataError
from ..images import UInt8Array

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
    """

    frame: Frame
    labels: UInt8Array
    latency_ms: float
    truth: UInt8Array | None = None


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
