"""Frames from image files."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from ..errors import DataError
from ..images import read_image
from .frames import Frame, Frames, FrameSource


class ImageFiles(FrameSource):
    """Image files, one after the other.

    Args:
        name: shown to the user.
        paths: of the files.
        rate: frames per second; None for images without times.
    """

    def __init__(self, name: str, paths: Sequence[Path], rate: float | None = None) -> None:
        super().__init__(name)
        self.paths = paths
        self.total = len(paths)
        self.has_times = rate is not None
        if rate is not None:
            self.rate = Fraction(rate).limit_denominator(1001)
            self.time_base = 1 / self.rate

    def frames(self) -> Frames:
        for index, path in enumerate(self.paths):
            try:
                yield Frame(read_image(path), path.stem, index / self.rate if self.has_times else None)
            except DataError as error:
                yield error
