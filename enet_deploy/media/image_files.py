"""Frames from image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import DataError
from ..images import read_image
from .frames import Frame, Frames, FrameSource


class ImageFiles(FrameSource):
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
