"""Boxes of ISO base media files, which hold AVIF and HEIF pictures."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Set

_MAX_BOXES = 1 << 20  # of a file; more make no image
_INSIDE = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0}
_SWAPPED = {1: 2, 3: 4, 6: 5, 8: 7}  # an orientation that turns -> the one that swaps left and right afterwards
_HALF_TURN = {1: 3, 3: 1, 6: 8, 8: 6}


def box_orientation(irot: int, imir: bytes) -> int:
    """The orientation, 1 to 8 as in EXIF, of the boxes irot and imir; imir is b"" without one."""
    orientation = {0: 1, 1: 8, 2: 3, 3: 6}[irot & 3]  # as libheif and libavif: turned to the left, then mirrored
    if imir:
        orientation = _SWAPPED[orientation if imir[0] & 1 else _HALF_TURN[orientation]]
    return orientation


def boxes(data: bytes, kinds: Set[bytes]) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of these kinds at any depth: kind, and where its body starts and ends."""
    waiting = [(0, len(data), 0)]
    while waiting:
        start, end, depth = waiting.pop()
        for kind, body, stop in _level(data, start, end):
            if kind in _INSIDE and depth < 8:
                waiting.append((body + _INSIDE[kind], stop, depth + 1))
            elif kind in kinds:
                yield kind, body, stop


def _level(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    for _ in range(_MAX_BOXES):
        if start + 8 > end:
            return
        length, kind = struct.unpack(">I4s", data[start : start + 8])
        body = start + 8
        if length == 1:
            (length,) = struct.unpack(">Q", data[body : body + 8])
            body += 8
        stop = end if length == 0 else start + length
        if stop < body:
            return
        yield kind, body, min(stop, end)
        start = stop
