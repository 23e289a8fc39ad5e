"""Directories of tags, which TIFF and EXIF have in common. At most four values of a tag are read."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_ORIENTATION = 0x112  # a tag
_MAX_DIRECTORIES = 1 << 20  # of a file; more make no image


def directories(data: bytes) -> Iterator[dict[int, tuple[int, ...]]]:
    """The directories of TIFF data: tag -> its first whole numbers.

    Raises ValueError if they have more entries than the data has room for, as then they overlap; struct.error if they
    lie beyond the data.
    """
    order = "<" if data[:2] == b"II" else ">"
    is_big = struct.unpack(f"{order}H", data[2:4])[0] == 43
    offset, head, word = (8, 8, "Q") if is_big else (4, 2, "I")
    wide = struct.calcsize(word)
    (position,) = struct.unpack(f"{order}{word}", data[offset : offset + wide])
    entry = 4 + 2 * wide
    seen: set[int] = set()
    room = len(data) // entry  # else a file of kilobytes with overlapping directories would take minutes
    while position and position not in seen and len(seen) < _MAX_DIRECTORIES:
        seen.add(position)
        count = int.from_bytes(data[position : position + head], "little" if order == "<" else "big")
        tags: dict[int, tuple[int, ...]] = {}
        start, read = position + head, min(count, 4096)
        room -= read
        if room < 0:
            raise ValueError("directories that overlap")
        for index in range(read):
            at = start + index * entry
            tag, kind, length = struct.unpack(f"{order}HH{word}", data[at : at + 4 + wide])
            code = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
            if code is None or not length:
                continue
            value = at + 4 + wide
            if struct.calcsize(code) * length > wide:
                (value,) = struct.unpack(f"{order}{word}", data[value : value + wide])
            taken = min(length, 4)
            tags[tag] = struct.unpack(f"{order}{taken}{code}", data[value : value + taken * struct.calcsize(code)])
        yield tags
        after = start + count * entry
        (position,) = struct.unpack(f"{order}{word}", data[after : after + wide])


def orientation_of(tags: dict[int, tuple[int, ...]]) -> int:
    """The orientation, 1 to 8, that these tags state; 1 if they state none."""
    orientation = tags.get(_ORIENTATION, (1,))[0]
    return orientation if 1 <= orientation <= 8 else 1


def exif_orientation(data: bytes) -> int:
    """The orientation in a block of EXIF; 1 if it is damaged or does not say."""
    try:
        return orientation_of(next(directories(data.removeprefix(b"Exif\0\0"))))
    except (struct.error, IndexError, StopIteration, ValueError):
        return 1
