"""Where a timed runner's camera images come from: a few stills, or a video."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from enet_deploy.errors import InputError
from enet_deploy.images import UInt8Array

STAGES = ("pre", "infer", "post", "total")
VIDEO_STAGES = ("decode", "pre", "infer", "post", "overlay", "total")


class StillsFeed:
    """The same images in turn. Decoding and overlay are not timed.

    Attributes:
        stages: the stages of a call that are timed, in order.
        rewinding: as in `VideoFeed`; 0 here.
    """

    stages = STAGES
    rewinding = 0.0

    def __init__(self, images: Sequence[UInt8Array]) -> None:
        self.images = images
        self._next = 0

    def read(self) -> tuple[UInt8Array, float]:
        """An image, (h, w, 3) uint8 BGR, and the seconds that decoding it took."""
        image = self.images[self._next % len(self.images)]
        self._next += 1
        return image, 0.0


class VideoFeed:
    """The frames of a video, again and again. The whole loop of a robot is timed, from decoding to an overlay.

    Attributes:
        rewinding: seconds spent on starting again, which a robot's loop does not have.

    `read` raises InputError if OpenCV finds no frame in the file.
    """

    stages = VIDEO_STAGES

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.rewinding = 0.0
        self._capture = cv2.VideoCapture(str(path))

    def read(self) -> tuple[UInt8Array, float]:
        start = time.perf_counter()
        is_frame, image = self._capture.read()
        if not is_frame:
            ended = time.perf_counter()
            self._capture = cv2.VideoCapture(str(self.path))
            self.rewinding += time.perf_counter() - ended
            start = time.perf_counter()
            is_frame, image = self._capture.read()
        seconds = time.perf_counter() - start
        if not is_frame:
            raise InputError(f"{self.path} has no frame that OpenCV can decode, expected a video file")
        return image.astype(np.uint8, copy=False), seconds


CameraFeed = StillsFeed | VideoFeed  # an endless source of camera images
