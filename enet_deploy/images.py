"""Images in memory and in files: decode, encode, resize, and paint label maps.

OpenCV decodes and encodes. What a file says of itself is read from its header first (`image_headers`).
"""

from __future__ import annotations

import base64
import io
import logging
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from .arrays import check_image, check_label_map, check_picture_size
from .classes import ClassList
from .console import warn_once
from .errors import DataError, InputError, missing
from .image_headers import GREY_ALPHA, RGB_ALPHA, TAIL, Header, read_header

log = logging.getLogger(__name__)

UInt8Array = npt.NDArray[np.uint8]

# Which of them a given OpenCV reads shows when it decodes; HEIC needs pillow_heif
IMAGE_SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jp2", ".webp", ".avif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".pxm", ".sr", ".ras", ".gif", ".heic", ".heif", ".hif"),
    *(".exr", ".hdr", ".pic", ".pfm"),  # floating-point numbers: refused with a reason
}

MAX_PIXELS = 1 << 28  # 16384x16384, 0.8 GB decoded; a file of one kilobyte can claim more than any memory holds
MAX_BYTES = 1 << 30

_FILLER = bytes(range(1, 255, 4))  # any data; without 0xFF, which would be a marker
_MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}


def silence_opencv() -> None:
    """Switch off what OpenCV itself prints to standard error. Before 4.13 the switch has another name."""
    switch = cv2.utils.logging.setLogLevel if hasattr(cv2.utils, "logging") else getattr(cv2, "setLogLevel")  # noqa: B009
    switch(0)


def decode(name: Path | str, content: bytes, header: Header, flags: int) -> npt.NDArray[Any]:
    """Decode the first picture of an image file's content, turned as the file says.

    Args:
        name: of the file; error messages begin with it.
        content: of the file.
        header: of the content. `require_readable` reads it, and refuses what cannot be decoded.
        flags: of OpenCV, cv2.IMREAD_*.

    Returns (h, w) or (h, w, channels), with the channels BGR or BGRA, of the dtype that the file has.

    Raises DataError if the content cannot be decoded, or has less data than its picture.
    """
    if header.format == "HEIF":
        return _decode_heif(name, content)
    pixels = _imdecode(name, content, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if _lacks_data(content, pixels, header):
        raise DataError(f"{name} cannot be decoded whole: its data is damaged or ends before its picture does")
    if content[:2] in (b"P2", b"P3") and header.maximum is not None and header.maximum < 0xFF:
        pixels = _as_stored(pixels, header.maximum)
    # OpenCV turns a TIFF whatever the flags say
    return pixels if header.format == "TIFF" else turned(pixels, header.orientation)


def _imdecode(name: Path | str, content: bytes, flags: int) -> npt.NDArray[Any]:
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"{name} is refused by OpenCV ({error.err}); it is damaged, or has over 2**30 pixels") from None
    if pixels is None:
        raise DataError(f"{name} cannot be decoded as an image; the file is damaged or of a kind OpenCV does not read")
    return pixels


def require_readable(name: Path | str, content: bytes) -> Header:
    """Read the header of an image file's content.

    Raises DataError if it shows that the file cannot be decoded: the content is of no known format, claims more than
    MAX_PIXELS, holds floating-point numbers, or ends before its picture does.
    """
    header = read_header(content)
    if header is None:
        raise DataError(
            f"{name} cannot be decoded as an image: it {'has no known header' if content else 'is empty'}; expected a "
            "whole PNG, JPEG, TIFF, BMP, WebP, AVIF, HEIC, GIF, JPEG 2000, PNM or Sun raster file"
        )
    if header.unread:
        raise DataError(f"{name} holds {header.unread}; convert it to RGB or grey of 8 bits")
    if header.height * header.width > MAX_PIXELS:
        raise DataError(
            f"{name} claims to be {header.height}x{header.width} (height x width), expected at most {MAX_PIXELS} "
            "pixels, which is 16384x16384; scale it down or cut it into tiles"
        )
    if not header.is_whole:
        raise DataError(f"{name} cannot be decoded whole: it ends before its picture does; it was cut short or damaged")
    return header


def _as_stored(pixels: npt.NDArray[Any], maximum: int) -> UInt8Array:
    """The values in a text PNM. OpenCV multiplies those by 255 / maximum and rounds down; it leaves a binary PNM's."""
    table = -(-np.arange(256) * maximum // 255)
    return np.asarray(table.astype(np.uint8)[pixels])


def _lacks_data(content: bytes, pixels: npt.NDArray[Any], header: Header) -> bool:
    """Whether a file has less data than its picture. OpenCV makes up the rest and says nothing."""
    corner = pixels[-8:, -8:].reshape(-1, *pixels.shape[2:])
    is_flat = bool((corner == corner[0]).all())
    if header.format == "WebP":  # whole data ends in zeros only where the picture has one colour
        return header.zeros == "end" and not is_flat
    if header.format == "TIFF":
        return not header.is_raw and _is_damaged_tiff(content)
    if header.format != "JPEG" or header.end is None or not (is_flat or header.is_progressive):
        return False
    # Data before the end marker is used if some is missing, and changes the picture; else it is skipped
    end = header.end - 2
    return _grey_jpeg(content) != _grey_jpeg(content[:end] + _FILLER + content[end:])


def _is_damaged_tiff(content: bytes) -> bool:
    """Whether the data of a strip or tile is not what its compression makes, by Pillow, if it reads this kind."""
    from PIL.TiffImagePlugin import TiffImageFile

    try:
        image = TiffImageFile(io.BytesIO(content))
    except Exception:  # noqa: BLE001  errors of many types
        return False
    try:
        image.load()
    except Exception:  # noqa: BLE001
        return True
    return False


def _grey_jpeg(content: bytes) -> bytes:
    """The brightness of a JPEG by Pillow, as OpenCV would print on standard error that there is data to skip."""
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        with JpegImageFile(io.BytesIO(content)) as image:
            image.draft("L", None)
            return bytes(image.tobytes())
    except Exception:  # noqa: BLE001  a damaged file makes Pillow raise errors of many types
        return b""


def turned(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Turn or mirror stored pixels, (h, w) or (h, w, channels), as an EXIF orientation, 1 to 8, says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _open_heif(content: bytes) -> Any:
    import pillow_heif

    return pillow_heif.open_heif(content, convert_hdr_to_8bit=True, bgr_mode=True)


def _decode_heif(name: Path | str, content: bytes) -> UInt8Array:
    """Decode the primary picture, whole and turned, (h, w, 3) uint8 BGR."""
    try:
        pixels = np.array(_open_heif(content), np.uint8)
        return pixels[..., :3] if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    except ModuleNotFoundError:
        raise DataError(f"{name} is a HEIC file: {missing('pillow_heif')}, or convert it to JPEG or PNG") from None
    except Exception as error:  # noqa: BLE001  libheif's errors are of many types
        raise DataError(f"{name} cannot be decoded as an image: {error or repr(error)}; the file is damaged") from None


def eight_bits(name: Path | str, pixels: npt.NDArray[Any], maximum: int | None = None) -> tuple[UInt8Array, str]:
    """Scale decoded pixels to 0 to 255. This is the one door for pixels that are not uint8, or use a part of it.

    Cameras keep 8, 10, 12 or 14 bits in 16, and most formats cannot say so. If no value needs 15 bits, the brightest
    that the bits in use can hold becomes 255.

    Args:
        name: error messages begin with it.
        pixels: uint8 or uint16; uint8 without a stated maximum below 255 is returned as it is.
        maximum: the value that the file states as the brightest; None if it states none. It is ignored if a pixel is
            brighter.

    Returns the pixels, and a note that says which scale was guessed; "" if none was. Raises DataError for other dtypes.
    """
    if pixels.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{name} has pixels of {pixels.dtype}, expected 8 or 16 bits without sign; convert it to 8")
    if pixels.dtype == np.uint8 and (maximum is None or maximum >= 0xFF or pixels.max(initial=0) > maximum):
        return np.asarray(pixels, np.uint8), ""
    brightest, note = int(pixels.max(initial=0)), ""
    if maximum is None or brightest > maximum:
        bits = next((bits for bits in (8, 10, 12, 14) if brightest < 1 << bits), 16)
        maximum = (1 << bits) - 1
        if bits < 16 and brightest:
            note = f"16 bits of which only {bits} are in use; {maximum} is taken for the brightest value"
    if maximum == 0xFFFF:
        return (pixels >> 8).astype(np.uint8), note
    return cv2.convertScaleAbs(pixels, alpha=255 / maximum).astype(np.uint8, copy=False), note


def scaled(name: Path | str, pixels: npt.NDArray[Any], maximum: int | None = None) -> UInt8Array:
    """Scale decoded pixels as `eight_bits`; if the scale was guessed, log that once."""
    result, note = eight_bits(name, pixels, maximum)
    if note:
        warn_once(log, f"%s has {note} (said once)", name)
    return result


def encode(name: Path | str, pixels: UInt8Array) -> bytes:
    """Encode (h, w) or (h, w, 3) BGR pixels in the format of the file name's suffix.

    Raises InputError if the format cannot hold them.
    """
    try:
        done, content = cv2.imencode(Path(name).suffix, pixels)
    except cv2.error:  # a suffix that OpenCV does not know
        done = False
    if not done:
        raise InputError(
            f"{name}: OpenCV cannot write {pixels.shape[0]}x{pixels.shape[1]} (height x width) pixels as "
            f"'{Path(name).suffix}'; take .png"
        )
    return content.tobytes()


def data_uri(content: bytes, suffix: str) -> str:
    """Return a file's content as a data URI for a page; `suffix` is .png, .jpg or .svg."""
    return f"data:{_MEDIA_TYPES[suffix]};base64,{base64.b64encode(content).decode('ascii')}"


def image_uri(pixels: UInt8Array, suffix: str) -> str:
    """Encode (h, w, 3) BGR pixels as .png or .jpg and return them as a data URI."""
    return data_uri(encode(f"image{suffix}", pixels), suffix)


def read_content(path: Path) -> bytes:
    """Read the bytes of an image file. Raises DataError if it is missing, no regular file, or over MAX_BYTES."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe or /dev/zero never ends
            raise DataError(f"{path} is a folder or a device, expected an image file; remove it")
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} has {path.stat().st_size} bytes, expected an image of at most {MAX_BYTES}")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; expected an image file") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read as an image: {error.strerror}") from None


class LoadedImage(NamedTuple):
    """An image file.

    Attributes:
        image: (H, W, 3) uint8 BGR, turned as the file says.
        header: what the file says of itself.
        note: what was guessed: how values were scaled, or that the colours behind transparent pixels are meant, which
            is said of PNG with an alpha channel alone; "" if nothing was.
    """

    image: UInt8Array
    header: Header
    note: str


def load_image(path: str | Path) -> LoadedImage:
    """Decode the first picture of an image file. Raises DataError, naming the file."""
    return image_of(path, read_content(Path(path)))


def image_of(path: str | Path, content: bytes) -> LoadedImage:
    """Decode the first picture of an image file's content. Raises DataError that names `path`."""
    header = require_readable(path, content)
    has_alpha = header.color_type in (GREY_ALPHA, RGB_ALPHA)
    flags = cv2.IMREAD_UNCHANGED if has_alpha else cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
    pixels = decode(path, content, header, flags)
    if header.format == "HEIF":
        header = header._replace(pictures=len(_open_heif(content)))
    notes = []
    if has_alpha and (pixels[..., 3] < np.iinfo(pixels.dtype).max).any():
        notes.append("transparent pixels, of which the colours behind are read")
    if header.is_raw and not any(content[: header.end][-TAIL:]):
        notes.append(f"only zeros in the last {TAIL} bytes of its pixels; see whether it was copied whole")
    if header.zeros:
        notes.append("long runs of zeros in its data; if it does not show one colour, copy it again")
    image, scale = eight_bits(Path(path), np.ascontiguousarray(pixels[..., :3]), header.maximum)
    return LoadedImage(image, header, "; ".join(filter(None, [*notes, scale])))


def read_image(path: str | Path) -> UInt8Array:
    """Decode an image file as (H, W, 3) uint8 BGR.

    Logs a warning for each file with more pictures than the first, and once if something was guessed. Raises
    DataError, naming the file.
    """
    image, header, note = load_image(path)
    if header.pictures > 1:
        log.warning("%s holds %d pictures; only the first picture is read", path, header.pictures)
    if note:
        warn_once(log, f"%s has {note} (said once)", path)
    return image


def resize_image(image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """Resize (h, w, 3) uint8 to (height, width, 3), bilinear. Returns the same array if it has that size already.

    Raises InputError for any other array or size.
    """
    check_image(image)
    return _resize(image, size, cv2.INTER_LINEAR)


def resize_labels(labels: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """Resize (h, w) uint8 class ids to (height, width), nearest neighbour: mixed ids would be other classes.

    Pixel centres match those of `resize_image`; OpenCV's plain INTER_NEAREST shifts by up to half a pixel. Raises
    InputError for any other array or size.
    """
    check_label_map(labels)
    return _resize(labels, size, cv2.INTER_NEAREST_EXACT)


def _resize(pixels: UInt8Array, size: tuple[int, int], interpolation: int) -> UInt8Array:
    check_picture_size(size)
    if pixels.shape[:2] == tuple(size):
        return pixels
    return cv2.resize(pixels, (int(size[1]), int(size[0])), interpolation=interpolation).astype(np.uint8, copy=False)


def colorize(labels: UInt8Array, classes: ClassList) -> UInt8Array:
    """Paint a label map: (H, W) uint8 ids -> (H, W, 3) uint8 BGR. Ids without a class become black.

    Raises InputError for any other array.
    """
    return painted(labels, classes.colors)


def painted(labels: UInt8Array, colors: tuple[tuple[int, int, int], ...]) -> UInt8Array:
    """As `colorize`, in other colours than the classes': RGB in [0, 255], one per class."""
    check_label_map(labels)
    palette = np.zeros((256, 1, 3), np.uint8)
    palette[: len(colors), 0] = np.array(colors, np.uint8)[:, ::-1]
    # Twenty times faster than palette[labels], which took half of the time of a video's overlay
    return cv2.applyColorMap(np.ascontiguousarray(labels), palette).astype(np.uint8, copy=False)


def overlay(image: UInt8Array, labels: UInt8Array, classes: ClassList, alpha: float = 0.5) -> UInt8Array:
    """Blend `classes.overlay_colors` over the image: (h, w, 3) uint8 BGR. `alpha` is the share of the colours.

    Raises InputError for any other arrays, or if their sizes differ.
    """
    check_image(image)
    check_label_map(labels, image.shape[:2])
    blended = cv2.addWeighted(image, 1 - alpha, painted(labels, classes.overlay_colors), alpha, 0)
    return blended.astype(np.uint8, copy=False)
