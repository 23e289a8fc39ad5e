"""What an image file says of itself, read from its header without decoding it.

Every format that is decoded has its parser here, so that the size is known before any pixel takes memory, and so that
the number of pictures, the orientation and the largest value are read and not guessed. Pillow does not replace them:

    PNG             it decodes the picture to find an orientation behind it, and refuses checksums that OpenCV accepts
    JPEG            it does not tell where the data ends
    JPEG 2000, WebP it does not tell whether the file is lossless, how many bits it has, whether it is whole
    TIFF, EXIF      it opens no RGB of floating-point numbers, and it reads every value of every tag
    GIF             it tells no size without a first picture
    AVIF, HEIF      it reads them with some builds and plugins only
    PNM             it reads no PAM and tells no largest value
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .exif import directories, exif_orientation, orientation_of

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 3, 4, 6  # colour types of PNG

_REDUCED, _WIDTH, _HEIGHT, _BITS, _COMPRESSION = 254, 256, 257, 258, 259  # tags of TIFF
_MAX_SAMPLE, _TILE_WIDTH, _TILE_HEIGHT, _SAMPLE_FORMAT = 281, 322, 323, 339
_LOSSY_TIFF = {6, 7, 34712, 50001}  # JPEG, JPEG 2000 and WebP inside TIFF
_MAX_PARTS = 1 << 20  # of a file: chunks, blocks, directories; more make no image
_SWAPPED = {1: 2, 3: 4, 6: 5, 8: 7}  # an orientation that turns -> the one that swaps left and right afterwards
_HALF_TURN = {1: 3, 3: 1, 6: 8, 8: 6}


class Header(NamedTuple):
    """What an image file says of itself.

    Attributes:
        format: PNG, JPEG, JPEG 2000, TIFF, BMP, GIF, WebP, AVIF, HEIF, PNM, Sun raster, Radiance HDR, OpenEXR.
        height, width: of the first picture as stored, in pixels.
        pictures: how many the file holds: frames of an animation, pages.
        orientation: how to turn the pixels, 1 to 8 as in EXIF; 1 if the file does not say.
        maximum: the largest value of a sample, if the file states one that its pixel type does not; else None.
        is_lossy: whether the values of pixels may have changed when the file was written.
        is_float: whether the samples are floating-point numbers.
        is_whole: False if the file ends before its picture does.
        data_end, is_progressive: of JPEG: position of the end marker; whether it comes in several scans.
        bits: of PNG: per sample, 1 to 16.
        color_type: of PNG: 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGB with alpha.
    """

    format: str
    height: int
    width: int
    pictures: int = 1
    orientation: int = 1
    maximum: int | None = None
    is_lossy: bool = False
    is_float: bool = False
    is_whole: bool = True
    data_end: int | None = None
    is_progressive: bool = False
    bits: int = 8
    color_type: int | None = None


def read_header(content: bytes) -> Header | None:
    """Read the header of an image file's content. None if the format is unknown or the header is damaged."""
    for signature, parse in _PARSERS:
        if re.match(signature, content):
            try:
                return parse(content)
            except (struct.error, IndexError, KeyError, ValueError, OverflowError):
                return None
    return None


def _png(content: bytes) -> Header:
    width, height, bits, color_type = struct.unpack(">IIBB", content[16:26])
    pictures, orientation, position = 1, 1, 8
    for _ in range(_MAX_PARTS):
        chunk = content[position : position + 8]
        if len(chunk) < 8:
            break
        length, kind = struct.unpack(">I4s", chunk)
        body = position + 8
        if kind == b"acTL" and length >= 4:
            pictures = max(1, int.from_bytes(content[body : body + 4], "big"))
        elif kind == b"eXIf":
            orientation = exif_orientation(content[body : body + length])
        position = body + length + 4
    return Header("PNG", height, width, pictures, orientation, bits=bits, color_type=color_type)


def _jpeg(content: bytes) -> Header:
    first = _jpeg_at(content, 0)
    # more of this size, as of a stereo camera; a phone adds smaller ones, which are no pictures of their own
    pictures, last = 1, first
    while last.data_end is not None and (start := content.find(b"\xff\xd8\xff", last.data_end + 2)) >= 0:
        try:
            last = _jpeg_at(content, start)
        except (struct.error, IndexError, ValueError):
            break
        pictures += last[:3] == first[:3]
    return first._replace(pictures=pictures)


def _jpeg_at(content: bytes, position: int) -> Header:
    size: tuple[int, int] = (0, 0)
    orientation, is_progressive = 1, False
    for marker, start, end in _jpeg_segments(content, position + 2):
        if marker == 0xE1 and content.startswith(b"Exif\0\0", start):
            orientation = exif_orientation(content[start + 6 : end])
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            size = struct.unpack(">HH", content[start + 1 : start + 5])
            is_progressive = marker not in (0xC0, 0xC1)
        elif marker == 0xDA:
            data_end = _jpeg_data_end(content, end)
            return Header(
                "JPEG", *size, orientation=orientation, is_lossy=True, is_progressive=is_progressive, data_end=data_end,
                is_whole=data_end is not None,
            )  # fmt: skip
    raise ValueError


def _jpeg_segments(content: bytes, position: int) -> Iterator[tuple[int, int, int]]:
    """The segments of a JPEG before its data, with that of the first scan: marker, start and end of the body."""
    while content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        (length,) = struct.unpack(">H", content[position + 2 : position + 4])
        yield marker, position + 4, position + 2 + length
        position += 2 + length


def _jpeg_data_end(content: bytes, start: int) -> int | None:
    """The position of a JPEG's end marker, from `start` in its entropy-coded data on; None without one."""
    for match in re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])").finditer(content, start):
        if match.start() < start:
            continue
        if match[1] == b"\xd9":
            return match.end() - 2
        if len(content) < match.end() + 2:
            return None
        start = match.end() + int.from_bytes(content[match.end() : match.end() + 2], "big")  # past tables, next scan
    return None


def _jpeg2000(content: bytes) -> Header:
    size = content.index(b"\xff\x4f\xff\x51") + 2
    right, bottom, left, top = struct.unpack(">IIII", content[size + 6 : size + 22])
    bits = (content[size + 40] & 0x7F) + 1
    style = content.index(b"\xff\x52", size)
    return Header(
        "JPEG 2000", bottom - top, right - left, maximum=(1 << bits) - 1 if 8 < bits < 16 else None,
        is_lossy=content[style + 13] == 0, is_whole=content.rfind(b"\xff\xd9") > style,
    )  # fmt: skip


def _tiff(content: bytes) -> Header:
    pages = list(directories(content))
    first = pages[0]
    # a reduced copy of another page, or a mask, is no picture of its own
    pictures = sum(1 for page in pages if not page.get(_REDUCED, (0,))[0] & 5)
    bits = first.get(_BITS, (1,))[0]
    stated = first.get(_MAX_SAMPLE, ((1 << bits) - 1,))[0]
    return Header(
        "TIFF",
        max(first[_HEIGHT][0], first.get(_TILE_HEIGHT, (0,))[0]),
        max(first[_WIDTH][0], first.get(_TILE_WIDTH, (0,))[0]),
        max(1, pictures),
        orientation_of(first),
        stated if 8 < bits <= 16 and 0xFF < stated < 0xFFFF else None,
        first.get(_COMPRESSION, (1,))[0] in _LOSSY_TIFF,
        first.get(_SAMPLE_FORMAT, (1,))[0] == 3,
    )


def _bmp(content: bytes) -> Header:
    if struct.unpack("<I", content[14:18])[0] == 12:
        width, height = struct.unpack("<HH", content[18:22])
    else:
        width, height = struct.unpack("<ii", content[18:26])
    return Header("BMP", abs(height), abs(width))


def _gif(content: bytes) -> Header:
    width, height, flags = struct.unpack("<HHB", content[6:11])
    position, pictures = 13 + (6 << (flags & 7) if flags & 0x80 else 0), 0
    for _ in range(_MAX_PARTS):
        if content[position : position + 1] == b"\x21":
            position += 2
        elif content[position : position + 1] == b"\x2c" and position + 10 < len(content):
            pictures += 1
            flags = content[position + 9]
            position += 11 + (6 << (flags & 7) if flags & 0x80 else 0)
        else:  # the end, or damage
            break
        while position < len(content) and content[position]:
            position += 1 + content[position]
        position += 1
    return Header("GIF", height, width, max(1, pictures))


def _webp(content: bytes) -> Header:
    size, pictures, orientation, is_lossy = (0, 0), 0, 1, False
    position = 12
    for _ in range(_MAX_PARTS):
        chunk = content[position : position + 8]
        if len(chunk) < 8:
            break
        kind, length = struct.unpack("<4sI", chunk)
        body = content[position + 8 : position + 8 + min(length, 1 << 16)]
        if kind == b"VP8X":
            size = int.from_bytes(body[7:10], "little") + 1, int.from_bytes(body[4:7], "little") + 1
        elif kind == b"ANMF":
            pictures += 1
            is_lossy |= b"VP8 " in body[16:]
        elif kind == b"VP8 ":
            is_lossy = True
            width, height = struct.unpack("<HH", body[6:10])
            size = max(size, (height & 0x3FFF, width & 0x3FFF))
        elif kind == b"VP8L":
            packed = int.from_bytes(body[1:5], "little")
            size = max(size, ((packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1))
        elif kind == b"EXIF":
            orientation = exif_orientation(body)
        position += 8 + length + (length & 1)
    if not all(size):
        raise ValueError
    # compressed data never ends so: a power loss leaves zeros
    end = 8 + int.from_bytes(content[4:8], "little")
    is_whole = end <= len(content) and content[end - 64 : end] != bytes(64)
    return Header("WebP", *size, max(1, pictures), orientation, is_lossy=is_lossy, is_whole=is_whole)


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of ISO media data: kind, and where its body starts and ends."""
    for _ in range(_MAX_PARTS):
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


_INSIDE = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0}


def _heif(content: bytes) -> Header:
    """AVIF and HEIF: pictures in boxes."""
    brands = content[8 : min(len(content), int.from_bytes(content[:4], "big"))]
    properties: dict[bytes, list[bytes]] = {}
    waiting, is_whole = [(0, len(content), 0)], True
    while waiting:
        start, end, depth = waiting.pop()
        for kind, body, stop in _boxes(content, start, end):
            if kind in _INSIDE and depth < 8:
                waiting.append((body + _INSIDE[kind], stop, depth + 1))
            elif kind in (b"ispe", b"irot", b"imir", b"av1C", b"stsz"):
                properties.setdefault(kind, []).append(content[body : min(stop, body + 32)])
            elif kind == b"mdat":
                is_whole &= content[stop - 64 : stop] != bytes(64)  # as in `_webp`
    sizes = [struct.unpack(">II", body[4:12]) for body in properties[b"ispe"]]  # of tiles and of the whole
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
    # as libheif and libavif: first turned by quarters to the left, then mirrored
    orientation = {0: 1, 1: 8, 2: 3, 3: 6}[properties.get(b"irot", [b"\0"])[0][0] & 3]
    if b"imir" in properties:
        is_left_right = properties[b"imir"][0][0] & 1
        orientation = _SWAPPED[orientation if is_left_right else _HALF_TURN[orientation]]
    is_deep = bool(properties.get(b"av1C") and properties[b"av1C"][0][2] & 0x40)
    is_twelve = is_deep and bool(properties[b"av1C"][0][2] & 0x20)
    pictures = max([1, *(struct.unpack(">I", body[8:12])[0] for body in properties.get(b"stsz", []))])
    is_avif = b"avif" in brands or b"avis" in brands
    return Header(
        "AVIF" if is_avif else "HEIF", height, width, pictures, orientation,
        (4095 if is_twelve else 1023) if is_deep else None, is_lossy=True, is_whole=is_whole,
    )  # fmt: skip


def _pnm(content: bytes) -> Header:
    kind = content[:2]
    text = re.sub(rb"#[^\n]*", b"", content[2 : 1 << 16])
    if kind == b"P7":
        fields = dict(re.findall(rb"(WIDTH|HEIGHT|MAXVAL)\s+(\d{1,10})\s", text.split(b"ENDHDR")[0]))
        width, height, maximum = (int(fields[name]) for name in (b"WIDTH", b"HEIGHT", b"MAXVAL"))
    else:
        numbers = text.split(maxsplit=3)
        width, height = int(numbers[0]), int(numbers[1])
        maximum = 1 if kind in (b"P1", b"P4") else 0 if kind in (b"PF", b"Pf") else int(numbers[2])
    if min(width, height) < 1:
        raise ValueError
    stated = maximum if maximum not in (0, 1, 0xFF, 0xFFFF) else None
    return Header("PNM", height, width, maximum=stated, is_float=kind in (b"PF", b"Pf"))


def _sun(content: bytes) -> Header:
    width, height = struct.unpack(">II", content[4:12])
    return Header("Sun raster", height, width)


_PARSERS: tuple[tuple[bytes, Callable[[bytes], Header]], ...] = (
    (re.escape(PNG_SIGNATURE), _png),
    (rb"\xff\xd8\xff", _jpeg),
    (rb"\x00\x00\x00\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", _jpeg2000),
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", _tiff),
    (rb"BM", _bmp),
    (rb"GIF8[79]a", _gif),
    (rb"RIFF[\x00-\xff]{4}WEBP", _webp),
    (rb"[\x00-\xff]{4}ftyp(avif|avis|mif1|msf1|hei[cmsx]|hev[cmsx])", _heif),
    (rb"P[1-7Ff]\s", _pnm),
    (rb"\x59\xa6\x6a\x95", _sun),
    (rb"#\?(RADIANCE|RGBE)", lambda _: Header("Radiance HDR", 0, 0, is_float=True)),
    (rb"\x76\x2f\x31\x01", lambda _: Header("OpenEXR", 0, 0, is_float=True)),
)
