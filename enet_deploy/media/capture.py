"""Frames from cameras, network streams and GStreamer pipelines, read by OpenCV."""

from __future__ import annotations

import logging
import os
import time
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import BackendError, DataError
from ..images import UInt8Array, scaled
from .frames import TICKS, TIMEOUT_MS, URL_FORMATS, Clock, Frame, Frames, FrameSource, Stop

log = logging.getLogger(__name__)

OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"  # name;value|name;value
RETRY_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 10.0)  # seconds before a lost camera is opened again; the last one repeats


class Capture(FrameSource):
    """A camera by its number or device, a URL, or a GStreamer pipeline, read by OpenCV.

    A live source that gives no more frames is opened again, after longer and longer pauses, until it gives some. A
    source with a known frame count is not live; it simply ends.

    Args:
        name: shown to the user.
        address: number of a camera, device, URL or pipeline.
        api: of OpenCV, one of cv2.CAP_*.
        stopped: once set, no more frames are read.

    Raises DataError if it cannot be opened at first, BackendError if this OpenCV cannot open sources of its kind.
    """

    def __init__(self, name: str, address: int | str, api: int, stopped: Stop) -> None:
        super().__init__(name)
        if api == cv2.CAP_GSTREAMER and not cv2.videoio_registry.hasBackend(api):
            raise BackendError(
                f"'{name}' is a GStreamer pipeline, and this OpenCV {cv2.__version__} was built without GStreamer "
                "(wheels have none); use one that has it, such as the system's, or give the stream's URL"
            )
        self._address, self._api, self._stopped = address, api, stopped
        self._capture = self._open()
        if not self._capture.isOpened():
            remedy = "check that it exists and that no other program uses it"
            if "://" in name:
                remedy = (
                    "check it, and give a stream or a video itself: lists of addresses (HLS, DASH) are not followed"
                )
            raise DataError(f"{name} cannot be opened; {remedy}")
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.total = int(count) if 0 < count < 2**53 else None
        self.live = self.total is None

    def _open(self) -> cv2.VideoCapture:
        if isinstance(self._address, int):
            return cv2.VideoCapture(self._address, self._api)
        if "://" in self._address:
            self._allow_no_lists()
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT_MS]
        return cv2.VideoCapture(self._address, self._api, limits if "://" in self._address else [])

    @staticmethod
    def _allow_no_lists() -> None:
        """Let OpenCV's FFmpeg open no list of addresses; the user's own options stay in force."""
        options = os.environ.get(OPTIONS, "rtsp_transport;tcp")  # OpenCV's own default
        if "format_whitelist" not in options:
            os.environ[OPTIONS] = f"{options}|format_whitelist;{URL_FORMATS}"

    def frames(self) -> Frames:
        count, failures, start = 0, 0, time.monotonic()
        clock = Clock(self.name, Fraction(TICKS))  # frames of a burst may come at the same tick
        try:
            while not self._stopped.is_set():
                there, image = self._capture.read()
                if there:
                    if failures:
                        log.warning("%s is back", self.name)
                    failures = 0
                    since = time.monotonic() - start if self.live else self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                    due = clock.time(Fraction(round(since * TICKS), TICKS))
                    yield Frame(self._bgr(image), f"{count:06}", due)
                    count += 1
                elif self.live:
                    self._open_again(RETRY_WAITS[min(failures, len(RETRY_WAITS) - 1)])
                    failures += 1
                else:
                    break
        finally:
            self.release()

    def _bgr(self, image: npt.NDArray[Any]) -> UInt8Array:
        """Return what OpenCV read as (h, w, 3) uint8 BGR.

        Raises DataError if it is no picture of grey, BGR or BGRA of 8 or 16 bits; then no frame of the source is.
        """
        channels = image.shape[2] if image.ndim == 3 else 1
        # NV12 and I420 come as grey with more rows, of colours
        is_grey = channels == 1 and len(image) == self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
        if not (is_grey or channels in (3, 4)):
            raise DataError(
                f"{self.name} gives arrays of {image.shape}, expected grey, BGR or BGRA; end a pipeline with "
                "! videoconvert ! video/x-raw,format=BGR ! appsink"
            )
        pixels = scaled(self.name, image)
        if channels == 3:
            return pixels
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR if is_grey else cv2.COLOR_BGRA2BGR), np.uint8)

    def release(self) -> None:
        self._capture.release()

    def _open_again(self, wait: float) -> None:
        self.release()
        log.warning("%s gives no frames; opened again in %g s", self.name, wait)
        if not self._stopped.wait(wait):
            self._capture = self._open()
