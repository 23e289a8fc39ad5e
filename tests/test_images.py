"""Image files: what their headers say, what is refused before it is decoded, and the scale of 16 bits."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
import pytest
from helpers import image
from PIL import Image

from enet_deploy.classes import CAMVID, LabelValues
from enet_deploy.data.label_maps import read_values
from enet_deploy.errors import DataError
from enet_deploy.exif import exif_orientation
from enet_deploy.image_headers import read_header
from enet_deploy.images import UInt8Array, encode, read_image, require_readable

RNG = np.random.default_rng(0)
PICTURE = cv2.resize(RNG.integers(0, 256, (6, 8, 3), np.uint8), (128, 96))  # smooth, with bright and dark parts
SIDE = 22_000


def bmp() -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, SIDE, -SIDE, 1, 24, 0, 0, 0, 0, 0, 0)
    )


def tiff() -> bytes:
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, SIDE) for tag in (256, 257))
    return b"II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)


def heif() -> bytes:
    def box(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(body), kind) + body

    size = box(b"ispe", struct.pack(">III", 0, SIDE, SIDE))
    return box(b"ftyp", b"avif" + bytes(4) + b"avif") + box(b"meta", bytes(4) + box(b"iprp", box(b"ipco", size)))


BOMBS = {
    "bmp": bmp(),
    "tiff": tiff(),
    "avif": heif(),
    "gif": b"GIF89a" + struct.pack("<HHBBB", SIDE, SIDE, 0, 0, 0),
    "webp": b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<II", 10, 0) + (b"\xff\xff\x00" * 2),
    "pnm": f"P5 {SIDE} {SIDE} 255\n".encode(),
    "pam": f"P7\nWIDTH {SIDE}\nHEIGHT {SIDE}\nDEPTH 1\nMAXVAL 255\nENDHDR\n".encode(),
    "sun": struct.pack(">IIIIIIII", 0x59A66A95, SIDE, SIDE, 24, 0, 1, 0, 0),
    "jp2": b"\xff\x4f\xff\x51" + struct.pack(">HHIIIIIIIIHBBB", 41, 0, SIDE, SIDE, 0, 0, SIDE, SIDE, 0, 0, 1, 7, 1, 1)
    + b"\xff\x52" + struct.pack(">HBBHBBBBBB", 12, 0, 0, 1, 0, 5, 4, 4, 0, 1) + b"\xff\xd9",
    "jpeg": b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, SIDE, SIDE, 1) + b"\1\x11\0\xff\xda\0\x08" + bytes(6)
    + b"\xff\xd9",
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_size_of_every_format_is_known_before_it_is_decoded(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    header = read_header(BOMBS[kind])
    assert header is not None and header.height * header.width >= 1 << 28
    with pytest.raises(DataError, match=r"^a claims to be (22000x22000|65536x65536)") as error:
        require_readable("a", BOMBS[kind])
    assert "268435456" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x00\x00\x01\x00icon", b"P6 3"])
def test_content_of_no_known_header_is_not_decoded(content: bytes) -> None:
    with pytest.raises(DataError, match="cannot be decoded as an image"):
        require_readable("a", content)


def test_huge_file_and_pipe_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate((1 << 30) + 1)
    for name, message in (("pipe.png", "a folder or a device"), ("huge.png", "1073741825 bytes")):
        with pytest.raises(DataError, match=rf"{name} .*{message}"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WebP"])
def test_every_orientation_of_every_format(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a"
    Image.fromarray(PICTURE[..., ::-1]).save(path, kind, exif=exif, quality=95)
    upright = {
        1: PICTURE, 2: PICTURE[:, ::-1], 3: PICTURE[::-1, ::-1], 4: PICTURE[::-1], 5: PICTURE.swapaxes(0, 1),
        6: np.rot90(PICTURE, -1), 7: PICTURE[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(PICTURE),
    }[orientation]  # fmt: skip
    found = read_image(path)
    assert found.shape == upright.shape and np.abs(found.astype(int) - upright).mean() < 6


@pytest.mark.parametrize(("suffix", "bits"), [(".png", 10), (".png", 12), (".tiff", 14), (".jp2", 12), (".ppm", 16)])
def test_fewer_bits_in_sixteen_are_scaled_and_reported(
    tmp_path: Path, suffix: str, bits: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enet_deploy.console._said", set())
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encode(path, PICTURE.astype(np.uint16) << (bits - 8)))  # type: ignore[arg-type]
    assert np.abs(read_image(path).astype(int) - PICTURE).max() <= 1
    told = [record.getMessage() for record in caplog.records]
    assert (len(told), bits) == (1, bits) if bits < 16 else not told
    assert all(f"only {bits} are in use" in line for line in told)


def test_brightest_value_that_a_file_states_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dark = (PICTURE[..., 0].astype(np.uint16) << 2).astype(">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 128 96 4095\n" + dark.tobytes())
    assert np.abs(read_image(tmp_path / "a.pgm")[..., 0].astype(int) - PICTURE[..., 0] / 4).max() <= 1
    assert not caplog.records


@pytest.mark.parametrize("maximum", [1, 11, 100, 254, 300])
@pytest.mark.parametrize(("binary", "text"), [("P5", "P2"), ("P6", "P3")])
def test_values_of_pnm_are_those_that_its_maximum_makes_them(
    tmp_path: Path, maximum: int, binary: str, text: str
) -> None:
    """Images are scaled to 255, ids are kept; OpenCV scales text alone."""
    values = np.arange(maximum + 1).repeat(1 if binary == "P5" else 3)
    head = f"\n1 {maximum + 1}\n{maximum}\n"
    (tmp_path / "text").write_text(f"{text}{head}{' '.join(map(str, values))}\n")
    (tmp_path / "binary").write_bytes(
        f"{binary}{head}".encode() + values.astype(">u2" if maximum > 255 else "u1").tobytes()
    )
    for name in ("text", "binary"):
        found = read_image(tmp_path / name)[:, 0]
        assert np.abs(found - np.arange(maximum + 1)[:, None] * 255 / maximum).max() <= 0.5
        pixels = read_values(tmp_path / name, LabelValues.of(CAMVID)).pixels if binary == "P5" else None
        assert pixels is None or pixels[:, 0].tolist() == values.tolist()


@pytest.mark.parametrize(("depth", "maximum"), [(1, 1), (2, 255), (3, 255), (4, 255)])
def test_pam_that_opencv_reads_as_something_else_is_refused(tmp_path: Path, depth: int, maximum: int) -> None:
    head = f"P7\nWIDTH 5\nHEIGHT 4\nDEPTH {depth}\nMAXVAL {maximum}\nENDHDR\n"
    (tmp_path / "a.pam").write_bytes(head.encode() + bytes(20 * depth))
    with pytest.raises(DataError, match=r"a\.pam holds a PAM"):
        read_image(tmp_path / "a.pam")


@pytest.mark.parametrize("suffix", [".tiff", ".pfm", ".hdr"])
def test_floating_point_numbers_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    pixels = (PICTURE / 255).astype(np.float32)
    if suffix == ".tiff":
        Image.fromarray(pixels[..., 0]).save(path)
    else:
        path.write_bytes(cv2.imencode(suffix, pixels)[1].tobytes())
    with pytest.raises(DataError, match=rf"a\{suffix} holds floating-point numbers"):
        read_image(path)


def skip_without_animations(kind: str) -> None:
    if kind in ("GIF", ".gif", "WebP") and not hasattr(cv2, "imreadanimation"):
        pytest.skip(f"OpenCV {cv2.__version__} decodes no GIF and no animation")


@pytest.mark.parametrize("kind", ["GIF", "WebP", "PNG", "TIFF", "MPO", "HEIF"])
def test_several_pictures_in_a_file_are_counted_and_reported(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Pillow before 11.2 writes no whole MPO of three
    pictures = [Image.fromarray(np.full((16, 24, 3), 40 * i, np.uint8)) for i in range(1, 3 if kind == "MPO" else 4)]
    skip_without_animations(kind)
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    pictures[0].save(tmp_path / "a", kind, save_all=True, append_images=pictures[1:])
    assert read_image(tmp_path / "a").shape == (16, 24, 3)
    assert [record.args[1] for record in caplog.records if record.args] == [len(pictures)]


@pytest.mark.parametrize("suffix", [".ppm", ".pgm", ".pbm", ".pam", ".png", ".bmp", ".ras", ".webp", ".gif", ".jpg"])
def test_pictures_that_follow_each_other_are_counted_and_reported(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    skip_without_animations(suffix)
    pixels = PICTURE[..., 1] & 128 if suffix in (".pgm", ".pbm", ".pam") else PICTURE
    (tmp_path / f"a{suffix}").write_bytes(cv2.imencode(suffix, pixels)[1].tobytes() * 3)
    assert read_image(tmp_path / f"a{suffix}").shape == PICTURE.shape
    assert [record.args[1] for record in caplog.records if record.args] == [3]


@pytest.mark.parametrize("suffix", [".ppm", ".pgm", ".pbm", ".pam", ".bmp", ".ras"])
def test_picture_without_compression_that_is_cut_or_zeros(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("enet_deploy.console._said", set())
    shape = (300, 256) if suffix in (".pgm", ".pbm", ".pam") else (300, 256, 3)
    pixels = np.full(shape, 0 if suffix == ".pbm" else 128, np.uint8)  # in which a bit of 1 is black
    whole, path = cv2.imencode(suffix, pixels)[1].tobytes(), tmp_path / f"a{suffix}"
    path.write_bytes(whole)
    assert read_image(path).shape == (300, 256, 3) and not caplog.records
    path.write_bytes(whole[:-4])
    with pytest.raises(DataError, match=rf"a\{suffix} cannot be decoded whole"):
        read_image(path)
    path.write_bytes(whole[:-64] + bytes(64))
    read_image(path)
    assert "a" + suffix in caplog.text and "64" in caplog.text


@pytest.mark.parametrize(("tag", "value"), [(262, 8), (339, 2)])
def test_tiff_of_other_colors_or_numbers_is_refused(tmp_path: Path, tag: int, value: int) -> None:
    """CIELab; numbers with a sign."""
    content = io.BytesIO()
    Image.fromarray(PICTURE).save(content, "TIFF", tiffinfo={339: (1, 1, 1)})
    whole = content.getvalue()
    at = next(at for at in range(len(whole)) if whole[at : at + 3] == struct.pack("<HB", tag, 3))
    entry = bytearray(whole)
    struct.pack_into("<HIHH", entry, at + 2, 3, 1, value, 0)
    (tmp_path / "a.tif").write_bytes(whole)
    assert read_image(tmp_path / "a.tif").shape == PICTURE.shape
    (tmp_path / "a.tif").write_bytes(entry)
    with pytest.raises(DataError, match=r"a\.tif holds (CIELab|numbers with a sign)"):
        read_image(tmp_path / "a.tif")


def test_sixteen_bits_of_which_zero_is_white_are_refused(tmp_path: Path) -> None:
    content = cv2.imencode(".tif", PICTURE[..., 0].astype(np.uint16) << 8, [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1]
    whole = content.tobytes()
    (tmp_path / "a.tif").write_bytes(whole)
    assert read_image(tmp_path / "a.tif").shape == PICTURE.shape
    black_is_zero = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
    assert whole.count(black_is_zero) == 1
    (tmp_path / "a.tif").write_bytes(whole.replace(black_is_zero, struct.pack("<HHIHH", 262, 3, 1, 0, 0)))
    with pytest.raises(DataError, match=r"a\.tif holds inverted"):
        read_image(tmp_path / "a.tif")


def overlapping_directories() -> bytes:
    """2000 directories of 4096 entries, each 12 bytes behind the last."""
    count, step = 2000, 12
    data = bytearray(b"II*\0" + struct.pack("<I", 8) + bytes(step * (count + 4097)))
    for index in range(count):
        struct.pack_into("<H", data, 8 + index * step, 4096)
        struct.pack_into("<I", data, 8 + index * step + 2 + 4096 * 12, 8 + (index + 1) * step)
    return bytes(data)


def test_numbers_in_a_tiff_take_neither_time_nor_memory() -> None:
    """Bits of a sample by which a 1 was shifted; directories that overlap; a picture that ends beyond all addresses."""
    sides = b"".join(struct.pack("<HHQQ", tag, 16, 1, 1 << 40) for tag in (256, 257))
    big = b"II+\0" + struct.pack("<HHQQ", 8, 0, 16, 3) + sides + struct.pack("<HHQQ", 258, 16, 1, 1 << 40) + bytes(8)
    header = read_header(big)
    assert header is not None and (header.height, header.maximum) == (1 << 40, None)
    assert read_header(overlapping_directories()) is None
    assert exif_orientation(overlapping_directories()[:40_000]) == 1


def test_reduced_copy_of_a_page_is_no_second_picture() -> None:
    content = io.BytesIO()
    Image.fromarray(image(16, 24)).save(content, "TIFF", save_all=True, append_images=[Image.fromarray(image())])
    pages = bytearray(content.getvalue())
    header = read_header(bytes(pages))
    assert header is not None and header.pictures == 2
    tag = struct.pack("<HHII", 256, 4, 1, 8) if struct.pack("<HHII", 256, 4, 1, 8) in pages else b""
    start = pages.index(tag or struct.pack("<HHIH", 256, 3, 1, 8))
    pages[start : start + 12] = struct.pack("<HHII", 254, 4, 1, 1)  # its width becomes "a reduced copy"
    header = read_header(bytes(pages))
    assert header is not None and header.pictures == 1


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("damage", ["zeros", "cut", "cut and closed", "cut near its end and closed"])
def test_half_a_jpeg_is_refused(tmp_path: Path, damage: str, progressive: bool) -> None:
    noise = Image.fromarray(RNG.integers(0, 256, (96, 128, 3), np.uint8))
    noise.save(tmp_path / "a.jpg", progressive=progressive)
    whole = (tmp_path / "a.jpg").read_bytes()
    half = whole[: len(whole) * (9 if "near" in damage else 5) // 10]
    ending = bytes(len(whole) - len(half)) if damage == "zeros" else b"\xff\xd9" if "closed" in damage else b""
    assert read_image(tmp_path / "a.jpg").shape == (96, 128, 3)
    (tmp_path / "a.jpg").write_bytes(half + ending)
    with pytest.raises(DataError, match=r"a\.jpg (is damaged|cannot be decoded)"):
        read_image(tmp_path / "a.jpg")


TIFFS = ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg")
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("PNG", {}), "JPEG": ("JPEG", {}), "progressive JPEG": ("JPEG", {"progressive": True}),
    "WebP": ("WebP", {}), "lossless WebP": ("WebP", {"lossless": True}), "animated WebP": ("WebP", {"save_all": True}),
    "HEIF": ("HEIF", {}), "AVIF": ("AVIF", {}), "JPEG 2000": ("JPEG2000", {}), "GIF": ("GIF", {}), "BMP": ("BMP", {}),
    "PPM": ("PPM", {}),
    **{f"TIFF, {how}": ("TIFF", {"compression": how}) for how in TIFFS},
}  # fmt: skip
RAW = ("BMP", "PPM", "TIFF, raw")  # in which a few zeros are black pixels


def encoded(form: str, picture: UInt8Array) -> bytes:
    kind, options = FORMS[form]
    skip_without_animations(kind if kind == "GIF" or "animated" in form else "")
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    content = io.BytesIO()
    try:
        Image.fromarray(picture[..., ::-1]).save(content, kind, **options)
    except (KeyError, OSError):
        pytest.skip(f"Pillow {PIL.__version__} writes no {form}")
    return content.getvalue()


def read_or_refused(path: Path, content: bytes) -> UInt8Array | None:
    path.write_bytes(content)
    try:
        return read_image(path)
    except DataError as error:
        assert str(path) in str(error)
        return None


@pytest.mark.parametrize("form", FORMS)
def test_last_bytes_lost_are_no_other_picture_without_a_word(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that was not copied whole is cut, or ends in zeros: the same picture, or an error, or a warning."""
    noise = RNG.integers(0, 256, (96, 128, 3), np.uint8)
    road = np.full((240, 320, 3), 90, np.uint8)
    road[:120] = RNG.integers(0, 256, (120, 320, 1), np.uint8)
    for picture in (noise, PICTURE, road):
        whole = encoded(form, picture)
        clean = read_or_refused(tmp_path / "a", whole)
        for lost in (8, 16, 33, 64, 65, 100, 128, 512):
            for ending in (b"", bytes(lost))[: 1 if form in RAW and lost < 64 else 2]:
                monkeypatch.setattr("enet_deploy.console._said", set())
                caplog.clear()
                found = read_or_refused(tmp_path / "a", whole[:-lost] + ending)
                told = found is None or bool(caplog.records)
                assert told or np.array_equal(found, clean), (lost, ending[:1])


@pytest.mark.parametrize("form", [form for form in FORMS if form not in RAW])
def test_lost_sector_is_no_other_picture_without_a_word(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """512 zeros in the middle. Pixels as they are cannot tell them from black."""
    whole = encoded(form, RNG.integers(0, 256, (96, 128, 3), np.uint8))
    clean = read_or_refused(tmp_path / "a", whole)
    for at in range(1024, len(whole) - 1024, max(1, len(whole) // 9)):
        monkeypatch.setattr("enet_deploy.console._said", set())
        caplog.clear()
        found = read_or_refused(tmp_path / "a", whole[:at] + bytes(512) + whole[at + 512 :])
        assert found is None or caplog.records or np.array_equal(found, clean), at


@pytest.mark.parametrize("value", [0, 16, 255])
def test_webp_of_one_colour_is_whole(tmp_path: Path, value: int) -> None:
    """Its data ends in dozens of zeros."""
    content = cv2.imencode(".webp", np.full((1080, 1920, 3), value, np.uint8), [cv2.IMWRITE_WEBP_QUALITY, 80])[1]
    assert content.tobytes().endswith(bytes(8))
    found = read_or_refused(tmp_path / "a", content.tobytes())
    assert found is not None and np.ptp(found) == 0


@pytest.mark.parametrize("kind", ["WebP", "JPEG2000"])
def test_zeros_at_the_end_of_a_compressed_file_are_damage(tmp_path: Path, kind: str) -> None:
    Image.fromarray(RNG.integers(0, 256, (96, 128, 3), np.uint8)).save(tmp_path / "a", kind)
    whole = (tmp_path / "a").read_bytes()
    assert read_image(tmp_path / "a").shape == (96, 128, 3)
    (tmp_path / "a").write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    with pytest.raises(DataError, match="cannot be decoded"):
        read_image(tmp_path / "a")


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_flat_jpegs_are_whole(
    tmp_path: Path, value: int, mode: str, progressive: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    for size in ((1, 1), (15, 17), (96, 128)):
        picture = Image.fromarray(np.full((*size, 3), value, np.uint8)).convert(mode)
        picture.save(tmp_path / "a.jpg", progressive=progressive, optimize=True)
        with (tmp_path / "a.jpg").open("ab") as file:
            file.write(bytes(300))  # as some cameras pad it
        assert read_image(tmp_path / "a.jpg").shape == (*size, 3)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_with_a_jpeg_in_its_exif_is_whole(tmp_path: Path, progressive: bool) -> None:
    """As cameras and phones have it: the small picture has an end marker too."""
    thumbnail = cv2.imencode(".jpg", image())[1].tobytes()
    Image.fromarray(image(96, 128)).save(tmp_path / "a.jpg", progressive=progressive)
    content = (tmp_path / "a.jpg").read_bytes()
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif
    (tmp_path / "a.jpg").write_bytes(content[:2] + segment + content[2:])
    assert read_image(tmp_path / "a.jpg").shape == (96, 128, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_heic_of_every_mode_is_read(tmp_path: Path, mode: str) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    picture = Image.fromarray(PICTURE[..., ::-1]).convert(mode)
    picture.save(tmp_path / "a.heic", "HEIF", quality=95)
    expected = np.array(picture.convert("RGB"))[..., ::-1]
    found = read_image(tmp_path / "a.heic")
    assert found.shape == PICTURE.shape and np.abs(found.astype(int) - expected).mean() < 6


def test_heic_that_ends_in_zeros_is_damage(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    noise = RNG.integers(0, 256, (96, 128, 3), np.uint8)
    pillow_heif.from_bytes("RGB", (128, 96), noise.tobytes()).save(tmp_path / "a.heic", quality=90)
    whole = (tmp_path / "a.heic").read_bytes()
    (tmp_path / "a.heic").write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    with pytest.raises(DataError, match=r"a\.heic cannot be decoded"):
        read_image(tmp_path / "a.heic")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBA of 16 bits"])
def test_transparent_pixels_are_read_and_said(
    tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enet_deploy.console._said", set())
    grey = np.full((8, 8, 4), 70, np.uint8)
    for alpha in (255, 254):
        grey[..., 3] = alpha
        if mode == "RGBA of 16 bits":
            cv2.imwrite(str(tmp_path / "a.png"), grey.astype(np.uint16) * 257)
        else:
            Image.fromarray(grey).convert(mode).save(tmp_path / "a.png")
        assert (read_image(tmp_path / "a.png") == grey[..., :3]).all()
        assert ("transparent" in caplog.text) == (alpha < 255)


def test_heic_without_its_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    content = heif().replace(b"avif", b"heic").replace(struct.pack(">II", SIDE, SIDE), struct.pack(">II", 64, 64))
    (tmp_path / "a.heic").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.heic .*enet-deploy\[heic\]"):
        read_image(tmp_path / "a.heic")
