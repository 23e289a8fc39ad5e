"""What an image file says of itself, read from its header without decoding it.

Every format that is decoded has its parser here, so that the size is known before any pixel takes memory, and so that
the number of pictures, the orientation and the largest value are read and not guessed. Pillow does not replace them: it
decodes a PNG to find an orientation behind the picture, does not tell where a JPEG's data ends, or whether a JPEG 2000
or WebP is lossless and whole, opens no TIFF of floating-point RGB, no PAM, and AVIF and HEIF in some builds only.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .exif import directories, exif_orientation, orientation_of
from .iso_boxes import box_orientation, boxes

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 3, 4, 6  # colour types of PNG

_REDUCED, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLORS = 254, 256, 257, 258, 259, 262  # tags of TIFF
_STRIPS, _SAMPLES = 273, 277
_MAX_SAMPLE, _TILE_WIDTH, _TILE_HEIGHT, _SAMPLE_FORMAT = 281, 322, 323, 339
_FLOATS = "floating-point numbers, whose brightest value it does not state"
_UNREAD_SAMPLES = {2: "numbers with a sign", 3: _FLOATS}  # sample formats of TIFF that OpenCV takes for others
_UNREAD_COLORS = {8: "CIELab", 9: "CIELab", 10: "CIELab", 32803: "raw sensor", 32844: "CIE LogL", 32845: "CIE LogLuv"}
_PAM = "a PAM of colours, of alpha or of another maximum than 255"  # OpenCV swaps the former and packs the latter
_INVERTED = "inverted (0 is white) 16-bit"  # OpenCV turns those of 8 bits
_LOSSY_TIFF = {6, 7, 34712, 50001}  # JPEG, JPEG 2000 and WebP inside TIFF
TAIL = 64  # zeros at the end of pixels that are reported
_SECTOR = 512  # bytes of a disk
_MAX_PARTS = 1 << 20  # of a file: chunks, blocks, directories; more make no image
_MAX_JOINED = 1 << 16  # pictures that are counted
_GAP = rb"(?:\s|#[^\n]*\n)"  # in PNM's header

Content = bytes | memoryview


class Header(NamedTuple):
    """What an image file says of itself.

    Attributes:
        format: PNG, JPEG, JPEG 2000, TIFF, BMP, GIF, WebP, AVIF, HEIF, PNM, Sun raster, Radiance HDR, OpenEXR.
        height, width: of the first picture as stored, in pixels.
        pictures: how many the file holds: frames of an animation, pages.
        orientation: how to turn the pixels, 1 to 8 as in EXIF; 1 if the file does not say.
        maximum: the largest value of a sample, if the file states one that its pixel type does not; else None.
        is_lossy: whether the values of pixels may have changed when the file was written.
        unread: what its values are if they cannot be read as what they are, such as floats; "" if they can.
        end: position in the file behind the first picture, all of them if they are in one structure; None if unknown.
        is_whole: False if the file ends before its picture does.
        is_raw: whether the file holds the pixels as they are up to `end`, so that zeros can be black pixels.
        zeros: "end" if compressed data ends in zeros, "within" if it has 512 in a row, as a file system leaves for
            what it lost. Large areas of one colour can give them too, in JPEG and WebP. "" without.
        is_progressive: of JPEG: whether it comes in several scans.
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
    unread: str = ""
    end: int | None = None
    is_whole: bool = True
    is_raw: bool = False
    zeros: str = ""
    is_progressive: bool = False
    bits: int = 8
    color_type: int | None = None


def read_header(content: bytes) -> Header | None:
    """Read the header of an image file's content. None if the format is unknown or the header is damaged."""
    for signature, parse in _PARSERS:
        if re.match(signature, content):
            header = _parsed(parse, content)
            return header and _with_joined(header, content, signature, parse)
    return None


def _parsed(parse: Callable[[Any], Header], content: Content) -> Header | None:
    try:
        return parse(content)
    except (struct.error, IndexError, KeyError, ValueError, OverflowError):
        return None


def _with_joined(header: Header, content: bytes, signature: bytes, parse: Callable[[Any], Header]) -> Header:
    """Add the pictures of the same format that follow the first ones, as `cat` joins files."""
    is_jpeg, pictures, rest = header.format == "JPEG", header.pictures, memoryview(content)
    find = re.compile(signature).search if is_jpeg else re.compile(signature).match  # cameras pad between JPEGs
    last: Header | None = header
    while last and last.end and last.end < len(rest) and pictures < _MAX_JOINED and (found := find(rest, last.end)):
        rest = rest[found.start() :]
        last = _parsed(parse, rest)
        if last and (not is_jpeg or last[:3] == header[:3]):  # phones add smaller JPEGs, no pictures of their own
            pictures += last.pictures
    return header._replace(pictures=pictures)


def _zeros(data: Content, least: int = 4) -> str:
    """`Header.zeros` of compressed data; `least` of them are an end."""
    if len(data) > least and data[-least:] == bytes(least):
        return "end"
    return "within" if bytes(_SECTOR) in bytes(data) else ""


def _png(content: Content) -> Header:
    width, height, bits, color_type = struct.unpack(">IIBB", content[16:26])
    pictures, orientation, position, end = 1, 1, 8, None
    for _ in range(_MAX_PARTS):
        chunk = content[position : position + 8]
        if len(chunk) < 8 or end is not None:
            break
        length, kind = struct.unpack(">I4s", chunk)
        body = position + 8
        if kind == b"acTL" and length >= 4:
            pictures = max(1, int.from_bytes(content[body : body + 4], "big"))
        elif kind == b"eXIf":
            orientation = exif_orientation(bytes(content[body : body + length]))
        position = body + length + 4
        end = position if kind == b"IEND" else None
    return Header("PNG", height, width, pictures, orientation, end=end, bits=bits, color_type=color_type)


def _jpeg(content: Content) -> Header:
    size: tuple[int, int] = (0, 0)
    orientation, is_progressive = 1, False
    for marker, start, end in _jpeg_segments(content, 2):
        if marker == 0xE1 and content[start : start + 6] == b"Exif\0\0":
            orientation = exif_orientation(bytes(content[start:end]))
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            size = struct.unpack(">HH", content[start + 1 : start + 5])
            is_progressive = marker not in (0xC0, 0xC1)
        elif marker == 0xDA:
            data_end = _jpeg_end(content, end)
            return Header(
                "JPEG", *size, orientation=orientation, is_lossy=True, is_progressive=is_progressive, end=data_end,
                is_whole=data_end is not None, zeros="within" if bytes(_SECTOR) in bytes(content[end:data_end]) else "",
            )  # fmt: skip
    raise ValueError


def _jpeg_segments(content: Content, position: int) -> Iterator[tuple[int, int, int]]:
    """The segments of a JPEG before its data, with that of the first scan: marker, start and end of the body."""
    while content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        (length,) = struct.unpack(">H", content[position + 2 : position + 4])
        yield marker, position + 4, position + 2 + length
        position += 2 + length


def _jpeg_end(content: Content, start: int) -> int | None:
    """The position behind a JPEG's end marker, from `start` in its entropy-coded data on; None without one."""
    for match in re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])").finditer(content, start):
        if match.start() < start:
            continue
        if match[1] == b"\xd9":
            return match.end()
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
        zeros=_zeros(content[style : content.rfind(b"\xff\xd9")]),
    )  # fmt: skip


def _tiff(content: bytes) -> Header:
    pages = list(directories(content))
    first = pages[0]
    # a reduced copy of another page, or a mask, is no picture of its own
    pictures = sum(1 for page in pages if not page.get(_REDUCED, (0,))[0] & 5)
    bits = first.get(_BITS, (1,))[0]
    # a number of bits that is none would take all memory as a shift
    stated = first.get(_MAX_SAMPLE, ((1 << bits) - 1,))[0] if 8 < bits <= 16 else 0
    interpretation = first.get(_COLORS, (1,))[0]
    colors = _INVERTED if interpretation == 0 and bits > 8 else _UNREAD_COLORS.get(interpretation)
    compression = first.get(_COMPRESSION, (1,))[0]
    row = (first[_WIDTH][0] * first.get(_SAMPLES, (1,))[0] * bits + 7) // 8
    return Header(
        "TIFF",
        max(first[_HEIGHT][0], first.get(_TILE_HEIGHT, (0,))[0]),
        max(first[_WIDTH][0], first.get(_TILE_WIDTH, (0,))[0]),
        max(1, pictures),
        orientation_of(first),
        stated if 0xFF < stated < 0xFFFF else None,
        compression in _LOSSY_TIFF,
        _UNREAD_SAMPLES.get(first.get(_SAMPLE_FORMAT, (1,))[0]) or (f"{colors} colours" if colors else ""),
        end=first.get(_STRIPS, (0,))[0] + first[_HEIGHT][0] * row if compression == 1 else None,
        is_raw=compression == 1,
        zeros=_zeros(content, 16) if compression != 1 else "",  # a directory can end in 8
    )


def _bmp(content: Content) -> Header:
    start, head = struct.unpack("<II", content[10:18])
    width, height, _, bits = struct.unpack("<HHHH" if head == 12 else "<iiHH", content[18 : 26 if head == 12 else 30])
    is_raw = head == 12 or content[30] in (0, 3, 6)
    end = start + abs(height) * ((abs(width) * bits + 31) // 32 * 4)
    return _raw("BMP", abs(height), abs(width), content, end if is_raw else None)


def _raw(format: str, height: int, width: int, content: Content, end: int | None, maximum: int | None = None) -> Header:
    """Of a file with the pixels as they are up to `end`, or None if it is compressed. Padding at its end may miss."""
    is_whole = end is None or len(content) + 3 >= end
    return Header(format, height, width, maximum=maximum, end=end, is_whole=is_whole, is_raw=end is not None)


def _gif(content: Content) -> Header:
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
    end = position + 1 if content[position : position + 1] == b"\x3b" else None
    return Header("GIF", height, width, max(1, pictures), end=end)


def _webp(content: Content) -> Header:
    size, pictures, orientation, zeros = (0, 0), 0, 1, ""
    is_lossy, is_whole, has_exif = False, True, False  # has_exif: which did not come yet
    position, end = 12, 8 + int.from_bytes(content[4:8], "little")
    for _ in range(_MAX_PARTS):
        chunk = content[position : position + 8]
        if len(chunk) < 8 or position >= end:
            break
        kind, length = struct.unpack("<4sI", chunk)
        body = bytes(content[position + 8 : position + 8 + length])
        if kind == b"VP8X":
            size = int.from_bytes(body[7:10], "little") + 1, int.from_bytes(body[4:7], "little") + 1
            has_exif = bool(body[0] & 8)
        elif kind == b"ANMF":
            pictures += 1
            is_lossy |= b"VP8 " in body[16:]
            zeros = zeros or _zeros(body)
        elif kind == b"VP8 ":
            is_lossy = True
            width, height = struct.unpack("<HH", body[6:10])
            size = max(size, (height & 0x3FFF, width & 0x3FFF))
            zeros = _zeros(body)
        elif kind == b"VP8L":
            packed = int.from_bytes(body[1:5], "little")
            size = max(size, ((packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1))
            is_whole &= not _zeros(body)
        elif kind == b"EXIF":
            orientation, has_exif = exif_orientation(body), False
        position += 8 + length + (length & 1)
    if not all(size):
        raise ValueError
    is_whole &= end <= len(content) and not (has_exif and _zeros(content[:end]) == "end")  # its orientation is lost
    return Header(
        "WebP", *size, max(1, pictures), orientation, is_lossy=is_lossy, end=end, is_whole=is_whole, zeros=zeros
    )


def _heif(content: bytes) -> Header:
    """AVIF and HEIF: pictures in boxes."""
    brands = content[8 : min(len(content), int.from_bytes(content[:4], "big"))]
    properties: dict[bytes, list[bytes]] = {}
    is_whole, zeros = True, ""
    for kind, body, stop in boxes(content, {b"ispe", b"irot", b"imir", b"av1C", b"stsz", b"mdat"}):
        if kind == b"mdat":
            is_whole &= content[stop - TAIL : stop] != bytes(TAIL)
            exif = content.rfind(b"Exif\0\0", (body + stop) // 2, stop)  # behind the picture; it may end in zeros
            zeros = zeros or _zeros(content[body : stop if exif < 0 else exif])
        else:
            properties.setdefault(kind, []).append(content[body : min(stop, body + 32)])
    sizes = [struct.unpack(">II", body[4:12]) for body in properties[b"ispe"]]  # of tiles and of the whole
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
    orientation = box_orientation(properties.get(b"irot", [b"\0"])[0][0], properties.get(b"imir", [b""])[0][:1])
    depth = properties.get(b"av1C", [bytes(3)])[0][2]
    pictures = max([1, *(struct.unpack(">I", body[8:12])[0] for body in properties.get(b"stsz", []))])
    is_avif = b"avif" in brands or b"avis" in brands
    return Header(
        "AVIF" if is_avif else "HEIF", height, width, pictures, orientation,
        (4095 if depth & 0x20 else 1023) if depth & 0x40 else None, is_lossy=True, is_whole=is_whole, zeros=zeros,
    )  # fmt: skip


def _pnm(content: Content) -> Header:
    head = bytes(content[: 1 << 16])
    kind, samples = head[:2], {b"P6": 3, b"PF": 3}.get(head[:2], 1)
    if kind == b"P7":
        stop = head.index(b"ENDHDR\n") + 7
        fields = dict(re.findall(rb"(WIDTH|HEIGHT|DEPTH|MAXVAL)\s+(\d{1,10})\s", re.sub(rb"#[^\n]*", b"", head[:stop])))
        width, height, samples, maximum = (int(fields[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL"))
    else:
        count = 2 if kind in (b"P1", b"P4", b"PF", b"Pf") else 3
        numbers = re.match(rb"P." + (_GAP + rb"+(\d{1,10})") * count + rb"(?=\s|#)" + _GAP, head)
        if numbers is None:
            raise ValueError
        stop, (width, height, *rest) = numbers.end(), map(int, numbers.groups())
        maximum = rest[0] if rest else 0
    if min(width, height) < 1:
        raise ValueError
    if kind in (b"PF", b"Pf"):
        return Header("PNM", height, width, unread=_FLOATS)
    if kind == b"P7" and (samples, maximum) not in ((1, 0xFF), (1, 0xFFFF)):
        return Header("PNM", height, width, unread=_PAM)
    stated = maximum if maximum not in (0, 0xFF, 0xFFFF) else None
    row = (width + 7) // 8 if kind == b"P4" else width * samples * (2 if maximum > 0xFF else 1)
    if kind in (b"P1", b"P2", b"P3"):  # text
        return Header("PNM", height, width, maximum=stated, is_whole=b"\0" not in content)
    return _raw("PNM", height, width, content, stop + height * row, stated)


def _sun(content: Content) -> Header:
    width, height, depth, _, kind, _, colors = struct.unpack(">7I", content[4:32])
    end = 32 + colors + height * ((width * depth + 15) // 16 * 2)
    return _raw("Sun raster", height, width, content, None if kind == 2 else end)


_PARSERS: tuple[tuple[bytes, Callable[[Any], Header]], ...] = (
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
    (rb"#\?(RADIANCE|RGBE)", lambda _: Header("Radiance HDR", 0, 0, unread=_FLOATS)),
    (rb"\x76\x2f\x31\x01", lambda _: Header("OpenEXR", 0, 0, unread=_FLOATS)),
)
