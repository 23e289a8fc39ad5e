"""Small videos that tests encode themselves, and a source of numbered frames."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from enet_deploy import DataError
from enet_deploy.data.scenes import street_scene
from enet_deploy.images import UInt8Array
from enet_deploy.media.frames import Frame, FrameSource
from enet_deploy.media.video import VideoFile

av = pytest.importorskip("av")

# Blurred, as a codec leaves little of noise
FRAMES = [cv2.GaussianBlur(street_scene(seed, (96, 128))[0], (9, 9), 0) for seed in range(4)]


def write_video(
    path: Path,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    pictures: list[UInt8Array] = FRAMES,
    ticks: list[int] | None = None,
    rotation: int = 0,
    sound: bool = False,
) -> Path:
    """A video of these pictures, at 25 per second or due at these ticks of 1/1000 s."""
    ticks = ticks or [40 * i for i in range(len(pictures))]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000 if path.suffix != ".avi" else 25)
        if rotation:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip(f"PyAV {av.__version__} cannot write it")
            stream.set_display_rotation(rotation)
        if sound:
            voice = container.add_stream("aac", rate=8000)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
            silence.sample_rate = 8000
            container.mux(voice.encode(silence))
            container.mux(voice.encode(None))
        for picture, tick in zip(pictures, ticks, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = tick, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frames_of(source: FrameSource) -> list[Frame]:
    found = list(source.frames())
    assert all(isinstance(frame, Frame) for frame in found), found
    return [frame for frame in found if isinstance(frame, Frame)]


def read(path: Path) -> list[Frame]:
    return frames_of(VideoFile(path))


def apart(one: UInt8Array, other: UInt8Array) -> float:
    """Mean difference of grey levels."""
    return float(np.abs(one.astype(int) - other).mean())


class Fake(FrameSource):
    """Frames that are numbers; a live one hands them out faster than anything takes them."""

    def __init__(self, count: int, live: bool) -> None:
        super().__init__("fake")
        self.count, self.live = count, live

    def frames(self) -> Iterator[Frame | DataError]:
        for index in range(self.count):
            yield Frame(np.full((2, 2, 3), index % 256, np.uint8), f"{index}", Fraction(index))
