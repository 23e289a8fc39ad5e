"""Frames as raw bytes from a pipe."""

from __future__ import annotations

import itertools
import select
from fractions import Fraction
from io import FileIO

import numpy as np

from ..errors import DataError
from .frames import NAP, Frame, Frames, FrameSource, Stop


class RawFrames(FrameSource):
    """Frames as raw bytes, height x width x 3, BGR, from a file descriptor, as `ffmpeg -pix_fmt bgr24` writes them.

    Args:
        size: (height, width).
        rate: frames per second.
        stopped: once set, nothing more is read.
        descriptor: to read from, 0 for standard input.

    Raises DataError if the descriptor is closed.
    """

    def __init__(self, size: tuple[int, int], rate: float, stopped: Stop, descriptor: int = 0) -> None:
        super().__init__("standard input")
        self._size, self._stopped = size, stopped
        self.rate = Fraction(rate).limit_denominator(1001)
        self.time_base = 1 / self.rate
        try:
            self._file = FileIO(descriptor, closefd=False)  # unbuffered, or `select` would miss what the buffer holds
        except OSError:
            raise DataError("standard input is closed, expected raw frames from a pipe or a file") from None

    def frames(self) -> Frames:
        for count in itertools.count():
            image = np.empty((*self._size, 3), np.uint8)
            size_read = self._fill(memoryview(image.reshape(-1)))  # type: ignore[arg-type]
            if size_read == image.nbytes:
                yield Frame(image, f"{count:06}", count / self.rate)
                continue
            if size_read:
                yield DataError(
                    f"standard input ended {size_read} bytes into a frame of {image.nbytes}; expected whole frames of "
                    f"{self._size[0]}x{self._size[1]} (height x width), 3 bytes a pixel"
                )
            return

    def _fill(self, buffer: memoryview) -> int:
        """Read until the buffer is full or the input ends. Returns the number of bytes read."""
        filled = 0
        while filled < len(buffer) and not self._stopped.is_set():
            if not select.select([self._file], [], [], NAP)[0]:
                continue
            count = self._file.readinto(buffer[filled:])
            if not count:
                break
            filled += count
        return filled
