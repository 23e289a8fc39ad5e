"""Video in messages: each message of foxglove's CompressedVideo or ffmpeg_image_transport holds one coded frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from rosbags.typesys import get_types_from_msg

from ..errors import DataError
from ..images import UInt8Array
from .video import matrix_for, pixels_of, pyav

FOXGLOVE = "foxglove_msgs/msg/CompressedVideo"
FFMPEG = "ffmpeg_image_transport_msgs/msg/FFMPEGPacket"
VIDEO_TYPES = (FOXGLOVE, FFMPEG)

# Bags whose files hold no definitions, as older .db3 do, are read with these
DEFINITIONS = {
    **get_types_from_msg("builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n", FOXGLOVE),
    **get_types_from_msg(
        "std_msgs/Header header\nint32 width\nint32 height\nstring encoding\nuint64 pts\nuint8 flags\n"
        "bool is_bigendian\nuint8[] data\n",
        FFMPEG,
    ),
}

# a part of what a message calls its format, such as "h264", "libx264" or "hevc_nvenc;yuv420p;bgr8" -> FFmpeg's decoder
_DECODERS = {"264": "h264", "265": "hevc", "hevc": "hevc", "vp9": "vp9", "av1": "av1", "jpeg": "mjpeg"}


class PacketDecoder:
    """Decodes the messages of one topic in their order. A decoder may give a frame only when the next message comes."""

    def __init__(self) -> None:
        self._codec: Any = None
        self._waiting: dict[int, Any] = {}  # number of the message -> its tag
        self._count = 0

    def decode(self, message: Any, tag: Any) -> list[tuple[Any, UInt8Array]]:
        """Return the frames that are complete with this message, each with the tag of the message that it was in.

        Raises DataError if the message cannot be decoded, as before the first key frame.
        """
        av = pyav()
        if self._codec is None:
            self._codec = self._open(message.format if hasattr(message, "format") else message.encoding)
        packet = av.Packet(bytes(message.data))
        packet.pts = packet.dts = self._count
        self._waiting[self._count] = tag
        self._count += 1
        return self._frames(packet)

    def flush(self) -> list[tuple[Any, UInt8Array]]:
        """Return the frames that the decoder still holds."""
        return [] if self._codec is None else self._frames(None)

    def _open(self, format_: str) -> Any:
        av = pyav()
        name = format_.partition(";")[0].lower()
        decoders = [decoder for part, decoder in _DECODERS.items() if part in name]
        if not decoders:
            raise DataError(
                f"video of format '{format_}', expected one of {', '.join(sorted(set(_DECODERS.values())))}"
            )
        codec = av.CodecContext.create(decoders[0], "r")
        codec.thread_type = "SLICE"  # threads for whole frames would each hold one back
        return codec

    def _frames(self, packet: Any) -> list[tuple[Any, UInt8Array]]:
        from av.error import FFmpegError

        try:
            pictures = self._codec.decode(packet)
        except FFmpegError as error:
            if packet is not None:
                del self._waiting[packet.pts]
            raise DataError(
                f"video frame cannot be decoded: {error.strerror}; a drive begins with a key frame"
            ) from None
        found = []
        for picture in pictures:
            if (tag := self._waiting.pop(picture.pts, None)) is not None:
                image = pixels_of("video", picture, matrix_for(picture))
                found.append((tag, np.ascontiguousarray(image)))
        return found
