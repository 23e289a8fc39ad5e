"""Frames from video files, decoded by PyAV."""

from __future__ import annotations

import logging
import re
from collections import deque
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..console import warn_once
from ..errors import DataError, InputError
from ..images import UInt8Array, eight_bits
from .frames import TIMEOUT_MS, URL_FORMATS, Clock, Frame, Frames, FrameSource

log = logging.getLogger(__name__)

BT709, UNSPECIFIED = 1, 2  # colour matrices, in FFmpeg's numbers
MIN_PYAV = 17  # as in setup.cfg
TS_TICKS = 1 << 33  # after which the clock of an MPEG transport stream begins again
NO_TIMES = 0x80  # FFmpeg's flag of bare streams, whose frames have no times
SD_HEIGHT, HD_WIDTH = 576, 1280  # without a declared matrix, a picture higher or as wide is taken for BT.709, as by mpv


def pyav() -> Any:
    """Import PyAV. Raises InputError if it is older than 17: then it decodes BT.709 as BT.601, and full range wrong."""
    import av

    if _major(av) < MIN_PYAV:
        raise InputError(
            f"PyAV {av.__version__} changes the colours of videos, expected version {MIN_PYAV} or later; "
            f"pip install 'av>={MIN_PYAV}'"
        )
    return av


def _major(av: Any) -> int:
    return int(av.__version__.split(".")[0])


class VideoFile(FrameSource):
    """A video file, local or at a URL. PyAV decodes it, as OpenCV does not tell the exact time of a frame.

    Pictures are rotated as the file says (phones record upright videos in landscape). As in any player, damage that
    the decoder does not notice passes. Times are the file's, and strictly rise (`Clock`). A bare stream has none: its
    frames are as far apart as its headers say, else 1/25 s, with a warning.

    Raises DataError if it cannot be opened or holds no video.
    """

    def __init__(self, path: Path | str) -> None:
        av = pyav()
        super().__init__(str(path))
        is_url = not isinstance(path, Path)
        address = self.name if is_url else f"file:{self.name}"  # a name with a colon would be read as a protocol
        # titles and brands need not be UTF-8; since PyAV 19 that is no error
        errors = {"metadata_errors": "backslashreplace"} if _major(av) < 19 else {}
        options = {"correct_ts_overflow": "0"}  # else a clock that begins again jumps by 26 hours; see `_unwrapped`
        try:
            options |= {"format_whitelist": URL_FORMATS} if is_url else {}
            self._container = av.open(
                address,
                timeout=TIMEOUT_MS / 1000 if is_url else None,
                options=options,
                **errors,
            )
        except av.error.FFmpegError as error:
            raise DataError(f"{path} is neither an image nor a video that can be read: {error.strerror}") from None
        stream = self._container.streams.best("video")  # not the cover picture
        if not isinstance(stream, av.VideoStream):
            self._container.close()
            raise DataError(f"{path} holds no video, expected a file with at least one video stream")
        self._stream = stream
        self._stream.thread_type = "AUTO"
        self.time_base = self._stream.time_base or self.time_base
        self.rate = self._stream.average_rate or self.rate
        self._is_bare = bool(self._container.format.flags & NO_TIMES)
        if self._is_bare:
            stated = self._stream.codec_context.framerate
            self.rate = stated or self.rate
            if not stated:
                log.warning("%s is a bare stream that states no frame rate; taken for %s a second", path, self.rate)
        # AVI has the times in the order in which frames are decoded, which is not that in which they are shown
        self._has_times_by_packet = self._container.format.name == "avi"
        self._packet_times: deque[int | None] = deque()
        self._clock = Clock(self.name, self.rate)
        self._seconds = float((stream.duration or 0) * (stream.time_base or 0)) or _tagged(stream.metadata)
        if not self._seconds and len(self._container.streams) == 1:  # else it may be the duration of the sound
            self._seconds = (self._container.duration or 0) / 1_000_000
        self.total = self._stream.frames or round(self._seconds * self.rate) or None
        self._count, self._end = 0, 0.0
        self._ticks = self._stream.start_time or 0

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
                if packet.size and self._has_times_by_packet:
                    self._packet_times.append(packet.dts)
                try:
                    pictures = packet.decode()
                except FFmpegError as error:
                    self._next_packet_time()  # of this frame, also if a decoder with threads tells of it later
                    yield DataError(f"{self.name}: a frame cannot be decoded: {error}")
                    continue
                yield from map(self._frame, pictures)

    def _frame(self, picture: Any) -> Frame | DataError:
        from av.error import FFmpegError

        index = self._count
        self._count += 1
        stated = picture.pts
        if self._has_times_by_packet:
            stated = self._next_packet_time()
        stated = self._unwrapped(stated)
        if picture.is_corrupt:
            return DataError(f"{self.name}: frame {index} is damaged")
        started = Fraction(self._container.start_time or 0, 1_000_000)
        if self._is_bare:
            due = index / self.rate
        else:
            due = self._clock.time(None if stated is None else stated * picture.time_base - started)
        aspect = self._stream.sample_aspect_ratio or Fraction(1)
        self.pixel_aspect = 1 / aspect if picture.rotation % 180 else aspect
        try:
            pixels = pixels_of(self.name, picture, matrix_for(picture))
        except FFmpegError as error:
            return DataError(f"{self.name}: frame {index} cannot be converted to BGR: {error}")
        image = np.rot90(pixels, picture.rotation // 90)
        # some containers count their duration from 0, whatever the time of their first frame
        self._end = float(due + started + (picture.duration or 0) * (picture.time_base or 0))
        return Frame(np.ascontiguousarray(image), f"{index:06}", due)

    def _next_packet_time(self) -> int | None:
        return self._packet_times.popleft() if self._packet_times else None

    def _unwrapped(self, stated: int | None) -> int | None:
        """A time in ticks that goes on when the clock of an MPEG transport stream, of 33 bits, overflows."""
        if stated is None or self._container.format.name != "mpegts":
            return stated
        self._ticks = stated + round((self._ticks - stated) / TS_TICKS) * TS_TICKS
        return self._ticks


def matrix_for(picture: Any) -> int | None:
    """Return the colour matrix of a picture that declares none, as players choose it; None for the declared one."""
    is_high = picture.height > SD_HEIGHT or picture.width >= HD_WIDTH
    return BT709 if picture.colorspace == UNSPECIFIED and is_high else None


def pixels_of(name: str, picture: Any, matrix: int | None) -> UInt8Array:
    """A picture as (h, w, 3) uint8 BGR, scaled as `eight_bits` does if it has 16 bits."""
    if max(component.bits for component in picture.format.components) == 16:
        pixels, note = eight_bits(name, picture.to_ndarray(format="rgb48le", src_colorspace=matrix))
        if note:
            warn_once(log, f"%s has {note} (said once)", name)
            return pixels[..., ::-1]
    return np.asarray(picture.to_ndarray(format="bgr24", src_colorspace=matrix), np.uint8)


def _tagged(metadata: dict[str, str]) -> float:
    """Duration of a Matroska file's track in seconds; 0 if its tags do not say."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", metadata.get("DURATION", ""))
    return sum(float(part) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0.0


def _too_short(name: str, end: float, seconds: float) -> DataError | None:
    """The error for a video that ends much earlier than its duration, which may be an estimate; else None."""
    if end >= 0.9 * seconds:
        return None
    return DataError(f"{name} ended at {end:.1f} of about {seconds:.1f} s; it seems to be cut short: fetch it again")
