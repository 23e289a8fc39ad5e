"""Reading data sets: what is matched, and what is refused, naming the file."""

from __future__ import annotations

import json
import os
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers import claim, image, label_map, save
from PIL import Image

from enet_deploy.classes import CAMVID, ClassList, LabelValues
from enet_deploy.commands.data import main as enet_data
from enet_deploy.data import find_images, join, open_data
from enet_deploy.data.label_maps import read_values
from enet_deploy.data.scenes import street_scene
from enet_deploy.errors import DataError, InputError
from enet_deploy.image_headers import read_header
from enet_deploy.images import colorize, encode, read_image, require_readable

TWO = {"names": ["floor", "wall"], "colors": [[0, 90, 200], [200, 200, 0]], "ignore_id": 255}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two pairs in train/: b (.png, .bmp) and a (.PPM, .png)."""
    save(tmp_path / "train" / "b.png", image())
    save(tmp_path / "train" / "a.PPM", image() + 100)
    save(tmp_path / "trainannot" / "b.bmp", label_map(3))
    save(tmp_path / "trainannot" / "a.png", label_map(11))
    (tmp_path / "train" / "notes.txt").write_text("no image, so no partner is missed")
    return tmp_path


def test_pairs_are_matched_by_stem_and_sorted(root: Path) -> None:
    data = open_data(root, "train")
    assert [(i.name, m.name) for i, m in data.pairs] == [("a.PPM", "a.png"), ("b.png", "b.bmp")]
    assert data.classes == CAMVID and len(data) == 2
    (first, first_labels), (second, second_labels) = data
    assert first.dtype == first_labels.dtype == np.uint8
    np.testing.assert_array_equal(first, image() + 100)  # BGR, as it was written
    np.testing.assert_array_equal(first_labels, label_map(11))
    np.testing.assert_array_equal(second, image())
    np.testing.assert_array_equal(second_labels, label_map(3))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r / "trainannot" / "a.png").unlink(), r"a\.PPM .*'a\.\*'.*trainannot\b.*\b1\b"),
        (lambda r: (r / "train" / "b.png").unlink(), r"b\.bmp .*'b\.\*'.*train\b.*\b1\b"),
        (lambda r: [p.unlink() for p in (r / "train").iterdir()], r"train holds no images\b.*\.png"),
        (lambda r: (r / "trainannot").rename(r / "labels"), r"trainannot is not a folder"),
        (lambda r: save(r / "train" / "b.bmp", image()), r"b\.bmp and .*b\.png have the same stem"),
    ],
    ids=["no label map", "no image", "empty split", "no folder", "one stem twice"],
)
def test_incomplete_sets_are_refused_before_anything_is_decoded(
    root: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(root)
    with pytest.raises(DataError, match=message):
        open_data(root, "train")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r / "train" / "b.png").write_bytes(b""), r"train/b\.png cannot be decoded"),
        (lambda r: (r / "train" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n"), r"b\.png cannot be decoded"),
        (lambda r: (r / "trainannot" / "b.bmp").write_bytes(b"BM"), r"b\.bmp cannot be decoded"),
        (lambda r: (r / "train" / "b.png").unlink(), r"b\.png does not exist"),
        (
            lambda r: save(r / "trainannot" / "b.bmp", label_map(3, 8, 6)),
            r"b\.bmp is 8x6 .*b\.png is 6x8",
        ),
        (
            lambda r: save(r / "trainannot" / "b.bmp", label_map(200)),
            r"b\.bmp .*\bid 200\b.*\b48\b.* 0 to 10 and 11 for void",
        ),
        (
            lambda r: save(r / "trainannot" / "b.bmp", image()),
            r'b\.bmp .*#1e140a\b.*\b48\b.* "label_values": \{"#1e140a": "NAME"\}',
        ),
        (
            lambda r: save(r / "trainannot" / "b.png", label_map().astype(np.uint16) + 300).replace(
                r / "trainannot" / "b.bmp"
            ),
            r"b\.bmp .*\bid 303\b.*\b48\b",
        ),
        (
            lambda r: save(r / "trainannot" / "b.png", np.zeros((6, 8, 4), np.uint8)).replace(
                r / "trainannot" / "b.bmp"
            ),
            r"b\.bmp has 48 transparent pixels",
        ),
        (lambda r: [(r / "train" / "b.png").unlink(), (r / "train" / "b.png").mkdir()], r"b\.png is a folder"),
        (lambda r: claim(r / "train" / "b.png", 20_000), r"b\.png .*20000x20000"),
        (
            lambda r: claim(r / "trainannot" / "b.bmp", 60_000),
            r"b\.bmp .*60000x60000 .*268435456",
        ),
    ],
    ids=[
        *("zero bytes", "cut image", "cut map", "gone", "size", "id 200", "colours", "16 bits", "transparent"),
        *("folder", "huge", "bomb"),
    ],
)
def test_bad_files_are_named_when_read(root: Path, damage: Callable[[Path], object], message: str) -> None:
    data = open_data(root, "train")
    damage(root)
    data[0]  # the other pair is whole
    with pytest.raises(DataError, match=message):
        data[1]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jp2", ".bmp", ".tiff", ".ppm", ".ras", ".gif"])
def test_size_is_read_from_the_header_of_every_format(suffix: str) -> None:
    if not cv2.haveImageWriter(f"a{suffix}"):  # GIF since OpenCV 4.12
        pytest.skip(f"OpenCV {cv2.__version__} cannot write {suffix}")
    content = encode(f"a{suffix}", image(48, 64))
    header = read_header(content)
    assert header is not None and (header.height, header.width, header.pictures) == (48, 64, 1)
    assert read_header(content[:4]) is None


@pytest.mark.parametrize(("side", "is_refused"), [(12_000, False), (16_384, False), (16_385, True)])
def test_size_limit_is_ours_not_pillows(side: int, is_refused: bool) -> None:
    """Pillow warns of images over 89 million pixels and refuses those over 179 million."""
    content = f"P2\n{side} {side}\n255\n".encode()
    if is_refused:
        with pytest.raises(DataError, match=rf"a\.ppm .*{side}x{side}"):
            require_readable("a.ppm", content)
    else:
        assert require_readable("a.ppm", content)[1:3] == (side, side)


def test_an_image_that_is_not_there_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.png does not exist"):
        read_image(tmp_path / "none.png")


def test_classes_json_replaces_camvid(root: Path) -> None:
    (root / "classes.json").write_text(json.dumps(TWO))
    data = open_data(root, "train")
    assert data.classes == ClassList(("floor", "wall"), ((0, 90, 200), (200, 200, 0)), 255)
    assert data.classes.to_json() == TWO
    with pytest.raises(DataError, match=r"a\.png .*\bid 11\b.* 0 to 1 and 255 for void"):
        data[0]
    save(root / "trainannot" / "a.png", label_map(255))
    assert (data[0][1] == 255).all()


def test_without_ignore_id_every_pixel_needs_a_class(root: Path) -> None:
    (root / "classes.json").write_text(json.dumps(TWO | {"ignore_id": None}))
    save(root / "trainannot" / "a.png", label_map(255))
    with pytest.raises(DataError, match=r"a\.png .*\bid 255\b.* 0 to 1,"):
        open_data(root, "train")[0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "Expecting property name"),
        ([1, 2], r'a class list is \{"names"'),
        ({"colors": TWO["colors"]}, "this one is not: KeyError"),
        (TWO | {"colors": [[0, 90, 200], [200, 200]]}, "this one is not: ValueError"),
        (TWO | {"colors": [[0, 90, 200]]}, "1 colors for 2 class names, expected one each"),
        (TWO | {"colors": [[0, 90, 200], [200, 200, 256]]}, r"color \[200, 200, 256\] of class 'wall', .* 0 to 255"),
        (TWO | {"names": ["floor", "floor"]}, "repeat, expected each once"),
        ({"names": ["floor"], "colors": [[0, 0, 0]]}, "1 class names, expected 2 to 255"),
        ({"names": [str(i) for i in range(256)], "colors": [[0, 0, 0]] * 256}, "256 class names, expected 2 to 255"),
        (TWO | {"ignore_id": 1}, r"ignore_id 1, expected 2 to 255 \(no class has it\) or null"),
        (TWO | {"ignore_id": 256}, "ignore_id 256, expected 2 to 255"),
        (TWO | {"ignore_id": "none"}, "'none'.*int"),
        (["floor", "wall"], r"\['floor', 'wall'\]"),
        (TWO | {"colors": [[1, 2, 3], [1, 2, 3]]}, r"color \[1, 2, 3\] of several classes"),
        (TWO | {"names": ["floor", None]}, "None.*str"),
        (TWO | {"colors": [[0, 90, 200], [200, 200, 1.5]]}, r"1\.5.*int"),
        (
            TWO | {"label_value": {"7": "floor"}},
            "the keys names, colors, .*label_value, expected some of colors, ignore",
        ),
        (TWO | {"label_values": {"7": "floor", "07": "wall"}}, "label_values has '07' in two spellings"),
        (TWO | {"names": ["floor", "\x1b[2Jwall"]}, r"class name '\\x1b\[2Jwall', expected printable characters"),
        (TWO | {"names": ["floor", "wall\u202e"]}, r"class name 'wall\\u202e', expected printable"),
        (TWO | {"names": ["floor", " "]}, "class name ' ', expected printable characters, not only spaces"),
        (TWO | {"label_values": [7, 8]}, r'label_values is \[7, 8\], expected \{"7": "NAME"'),
        (TWO | {"label_values": {"65536": "wall"}}, r'has \'65536\', expected an id such as "7", 0 to 65535, or a c'),
        (TWO | {"label_values": {"#12345": "wall"}}, r"has '#12345', expected .* a colour such as \"#0a5ac8\""),
        (TWO | {"label_values": {"7": "door"}}, "gives 7 to 'door', expected one of floor, wall, or null"),
        (TWO | {"label_values": {"7": ["wall"]}}, r"gives 7 to \['wall'\], expected one of"),
        (TWO | {"ignore_id": None, "label_values": {"7": None}}, "7 to None, .*ignore_id"),
        ("[" * 100_000, "recursion"),
        (
            '{"names": ["floor", "wall"], "label_values": {"0": "floor", "1": "wall", "1": "floor"}}',
            "'1' is there twice",
        ),
        ('{"names": ["floor", "wall"], "ignore_id": 255, "ignore_id": null}', "'ignore_id' is there twice"),
        (TWO | {"label_stem": "_mask"}, r"a stem of '_mask', expected .* one \*"),
        (TWO | {"image_stem": "../*"}, r"a stem of '\.\./\*'"),
    ],
)
def test_bad_class_lists_are_refused(root: Path, value: Any, message: str) -> None:
    (root / "classes.json").write_text(value if isinstance(value, str) else json.dumps(value))
    with pytest.raises(DataError, match=rf"classes\.json(:| cannot be read:) .*{message}"):
        open_data(root, "train")


def test_pipe_in_place_of_a_class_list_is_refused_at_once(root: Path) -> None:
    (root / "classes.json").unlink(missing_ok=True)
    os.mkfifo(root / "classes.json")
    with pytest.raises(DataError, match=r"classes\.json: a folder or a device"):
        open_data(root, "train")


def test_names_alone_are_a_class_list_and_html_is_a_name(root: Path) -> None:
    (root / "classes.json").write_text(json.dumps({"names": ["<b>floor</b>", "Wände & Türen"]}))
    assert open_data(root, "train").classes.names == ("<b>floor</b>", "Wände & Türen")
    most = ClassList.from_json({"names": [str(i) for i in range(255)]})
    assert most.ignore_id is None and len({*most.colors, (0, 0, 0)}) == 256  # void is black
    few = np.array(most.colors[:20])
    assert (np.abs(few[:, None] - few).max(axis=2) + 255 * np.eye(20, dtype=int)).min() >= 25


THREE = {"names": ["floor", "wall", "door"], "colors": [[0, 90, 200], [200, 200, 0], [9, 0, 0]], "ignore_id": 255}
IDS = np.array([[0, 1, 2], [255, 2, 0]], np.uint8)


def palette_png(path: Path, ids: np.ndarray, bits: int) -> None:
    picture = Image.fromarray(ids, "P")
    picture.putpalette([7, 7, 7] * 256)  # colours say nothing
    picture.info["transparency"] = 0
    picture.save(path, bits=bits)


def read_as(root: Path, written: Callable[[Path], object], **more: object) -> np.ndarray:
    """The ids of the one label map of a data set of THREE, and `more` in its classes.json."""
    save(root / "train" / "a.png", image(2, 3))
    (root / "trainannot").mkdir(exist_ok=True)
    written(root / "trainannot" / "a.png")
    (root / "classes.json").write_text(json.dumps(THREE | more))
    return open_data(root, "train")[0][1]


def colored(void: tuple[int, int, int], alpha: bool = False) -> np.ndarray:
    """IDS as a picture, BGR or BGRA."""
    palette = np.full((256, 3), void, np.uint8)
    palette[:3] = THREE["colors"]
    pixels = palette[IDS][..., ::-1]
    return np.dstack([pixels, np.full(IDS.shape, 255, np.uint8)]) if alpha else pixels


def grey_png(path: Path, ids: np.ndarray, bits: int) -> None:
    """By hand: no library at hand writes grey levels of 2 and 4 bits."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    levels = np.unpackbits(ids[..., None], axis=2)[..., 8 - bits :].reshape(len(ids), -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in levels)
    header = ids.shape[1].to_bytes(4, "big") + ids.shape[0].to_bytes(4, "big") + bytes([bits, 0, 0, 0, 0])
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("write", [palette_png, grey_png])
def test_png_label_maps_hold_ids(tmp_path: Path, write: Callable[[Path, np.ndarray, int], None], bits: int) -> None:
    ids = np.where(IDS == 255, 0, IDS) if bits < 8 else IDS
    ids = np.minimum(ids, 2**bits - 1)
    np.testing.assert_array_equal(read_as(tmp_path, lambda path: write(path, ids, bits)), ids)


def test_a_palette_map_with_a_changed_bit_is_refused(tmp_path: Path) -> None:
    """Decoding alone would give other ids: Pillow compares checksums only in `verify`."""
    path = tmp_path / "a.png"
    palette_png(path, IDS, 8)
    whole = path.read_bytes()
    start = whole.index(b"IDAT") + 4
    for position in range(start, whole.index(b"IEND") - 4):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(DataError, match=r"a\.png cannot be decoded"):
            read_values(path, LabelValues.of(CAMVID))


VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]  # PASCAL VOC's palette, which tools give any map


@pytest.mark.parametrize(
    ("palette", "order", "classes", "expected"),
    [
        ("classes", [2, 0, 1], None, "colours"),  # a painting program or an optimiser has put them in another order
        ("classes", [0, 1, 2], None, "ids"),
        ("nothing", [0, 1, 2], None, "ids"),
        ("VOC", [0, 1, 2], [[128, 0, 0], [9, 9, 9], [8, 8, 8]], "ids"),  # one colour agrees by chance
        ("VOC", [1, 2, 3], [[128, 0, 0], [0, 128, 0], [128, 128, 0]], "contradiction"),
        ("one wrong", [0, 1, 2], None, "contradiction"),
    ],
)
def test_palette_whose_colours_are_the_classes_is_read_by_them(
    tmp_path: Path, palette: str, order: list[int], classes: list[list[int]] | None, expected: str
) -> None:
    """`order[id]` is the index that the map has for it."""
    ids = np.where(IDS == 255, 1, IDS)
    colors = [0] * 768
    for label, index in enumerate(order):
        colors[3 * index : 3 * index + 3] = THREE["colors"][label] if palette == "classes" else [7, 7, 7]
    if palette == "VOC":
        colors[: len(VOC)] = VOC
    if palette == "one wrong":
        colors[3:6] = THREE["colors"][2]

    def write(path: Path) -> None:
        picture = Image.fromarray(np.array(order, np.uint8)[ids], "P")
        picture.putpalette(colors)
        picture.save(path)

    more = {} if classes is None else {"colors": classes}
    if expected == "contradiction":
        with pytest.raises(DataError, match=r"a\.png has a palette that contradicts itself: index 1 has the colour"):
            read_as(tmp_path, write, **more)
    else:
        np.testing.assert_array_equal(read_as(tmp_path, write, **more), ids)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("kind", ["16 bits", "three equal channels", "three equal channels of 16 bits"])
def test_ids_in_unusual_pixels(tmp_path: Path, suffix: str, kind: str) -> None:
    pixels = IDS.astype(np.uint16) if "16" in kind else IDS
    pixels = np.dstack([pixels] * 3) if "three" in kind else pixels
    write = lambda path: path.write_bytes(encode(f"a{suffix}", pixels))  # noqa: E731
    np.testing.assert_array_equal(read_as(tmp_path, write), IDS)
    if kind == "16 bits":
        raw = np.where(IDS == 255, 65535, IDS.astype(np.uint16) + 300).astype(np.uint16)
        values = {"300": "floor", "301": "wall", "302": "door", "65535": None}
        write = lambda path: path.write_bytes(encode(f"a{suffix}", raw))  # noqa: E731
        np.testing.assert_array_equal(read_as(tmp_path, write, label_values=values), IDS)


def test_grey_colours_of_classes_stay_colours(tmp_path: Path) -> None:
    grey = np.full((2, 3, 3), 128, np.uint8)  # CamVid's sky
    save(tmp_path / "train" / "a.png", image(2, 3))
    save(tmp_path / "trainannot" / "a.png", grey)
    assert (open_data(tmp_path, "train")[0][1] == 0).all()


@pytest.mark.parametrize("kind", ["JPEG", "WebP", "two pages"])
def test_label_map_in_a_file_that_may_hold_other_labels_is_refused(tmp_path: Path, kind: str) -> None:
    """Whatever its suffix says."""
    first, second = (Image.fromarray(label_map(value)) for value in (1, 2))

    def write(path: Path) -> None:
        if kind == "two pages":
            first.save(path, "TIFF", save_all=True, append_images=[second])
        else:
            first.convert("RGB").save(path, kind)

    with pytest.raises(DataError, match=rf"a\.png (is in a format that changes values, {kind}|holds 2 pictures)"):
        read_as(tmp_path, write)


def test_names_are_matched_in_both_spellings_and_by_a_pattern(tmp_path: Path) -> None:
    for name, spelling in (("straße-é", "NFC"), ("Ünder", "NFD")):
        other = "NFD" if spelling == "NFC" else "NFC"
        save(tmp_path / "train" / f"{unicodedata.normalize(spelling, name)}.png", image())
        save(tmp_path / "trainannot" / f"{unicodedata.normalize(other, name)}_mask.png", label_map(1))
    (tmp_path / "classes.json").write_text(json.dumps(THREE))
    with pytest.raises(DataError, match=r'declare "label_stem": "\*_mask" in classes\.json'):
        open_data(tmp_path, "train")
    (tmp_path / "classes.json").write_text(json.dumps(THREE | {"label_stem": "*_mask"}))
    assert len(open_data(tmp_path, "train")) == 2


def test_image_that_is_turned_and_a_label_map_that_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A label map that states the same orientation is turned with its image."""
    exif = Image.Exif()
    exif[0x0112] = 3
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[:, :3] = 200
    labels = np.repeat([[0, 1]], 3, axis=1).repeat(4, axis=0).astype(np.uint8)
    for folder in ("train", "trainannot"):
        (tmp_path / folder).mkdir()
    for name, more in (("a", {"exif": exif}), ("b", {})):
        Image.fromarray(picture).save(tmp_path / "train" / f"{name}.png", exif=exif)
        Image.fromarray(labels).save(tmp_path / "trainannot" / f"{name}.png", **more)
    (tmp_path / "classes.json").write_text(json.dumps(THREE))
    data = open_data(tmp_path, "train")
    turned, turned_labels = data[0]
    assert turned[0, 0, 0] == 0 and turned_labels[0, 0] == 1 and not caplog.records
    assert data[1][1][0, 0] == 0
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "b.png" in (told := caplog.records[0].getMessage()) and "EXIF orientation 3" in told


@pytest.mark.parametrize("alpha", [False, True])
def test_label_maps_of_colours_are_read_by_the_classes_colours(tmp_path: Path, alpha: bool) -> None:
    read = read_as(tmp_path, lambda path: save(path, colored((0, 0, 0), alpha)))
    np.testing.assert_array_equal(read, IDS)
    assert read.dtype == np.uint8


def test_label_values_spell_out_ids_and_colours(tmp_path: Path) -> None:
    raw = np.array([[7, 8, 33], [0, 34, 7]], np.uint8)
    values = {"7": "floor", "8": "wall", "33": "door", "34": "door", "0": None, "#E0e0c0": None}
    np.testing.assert_array_equal(read_as(tmp_path, lambda path: save(path, raw), label_values=values), IDS)
    border = colored((224, 224, 192))
    np.testing.assert_array_equal(read_as(tmp_path, lambda path: save(path, border), label_values=values), IDS)
    with pytest.raises(DataError, match=r"\bid 2\b.*\b3\b.* 7 to 8, 33 to 34 and 0 to 1 for void"):
        read_as(
            tmp_path, lambda path: save(path, np.array([[2, 2], [2, 1]], np.uint8)), label_values={**values, "1": None}
        )


def test_a_colour_without_a_class_is_named_by_how_often_it_comes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png .*#c0e0e0\b.*\b1\b"):
        read_as(tmp_path, lambda path: save(path, colored((192, 224, 224))))
    with pytest.raises(DataError, match=r"a\.png .*#000000\b.*\b1\b"):  # black is void, where there is void
        read_as(tmp_path, lambda path: save(path, colored((0, 0, 0))), ignore_id=None)


def test_cityscapes_layout(tmp_path: Path) -> None:
    raw = np.arange(34, dtype=np.uint8).reshape(2, 17)
    for city in ("ulm", "aachen"):
        stem = f"{city}/{city}_000000_000019"
        save(tmp_path / "leftImg8bit" / "train" / f"{stem}_leftImg8bit.png", image(2, 17))
        save(tmp_path / "gtFine" / "train" / f"{stem}_gtFine_labelIds.png", raw)
        save(tmp_path / "gtFine" / "train" / f"{stem}_gtFine_color.png", image(2, 17))
    data = open_data(tmp_path, "train")
    assert [path.name[:4] for path, _ in data.pairs] == ["aach", "ulm_"]
    assert find_images(tmp_path, "train") == [path for path, _ in data.pairs]
    assert (len(data.classes), data.classes.names[18], data.classes.colors[18]) == (19, "bicycle", (119, 11, 32))
    train_ids = [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, *range(6, 16), 255, 255, 16, 17, 18]
    np.testing.assert_array_equal(data[0][1].ravel(), train_ids)  # of cityscapesScripts' labels.py
    save(data.pairs[0][1], raw + 1)
    with pytest.raises(DataError, match=r"\bid 34\b.*\b1\b.* 7 to 8, 11 to 13, .* and 0 to 6, .* for void"):
        data[0]
    data.pairs[1][1].unlink()
    with pytest.raises(DataError, match=r"no partner 'ulm_000000_000019\.\*' in .*gtFine/train"):
        open_data(tmp_path, "train")


def test_images_of_every_kind_are_read_as_bgr(tmp_path: Path) -> None:
    half = np.zeros((4, 6), np.uint16)
    half[:2] = 0x80FF
    np.testing.assert_array_equal(read_image(save(tmp_path / "16.png", half))[:, :, 1], half >> 8)
    np.testing.assert_array_equal(
        read_image(save(tmp_path / "grey.png", label_map(9))), label_map(9)[..., None].repeat(3, 2)
    )
    clear = np.dstack([image(), label_map(0)])  # colours count, whatever the alpha
    np.testing.assert_array_equal(read_image(save(tmp_path / "rgba.png", clear)), image())
    assert read_image(save(tmp_path / "one.png", image(1, 1))).shape == (1, 1, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise
    left_white = np.zeros((8, 16, 3), np.uint8)
    left_white[:, :8] = 255
    Image.fromarray(left_white).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    turned = read_image(tmp_path / "turned.jpg")
    assert turned.shape == (16, 8, 3) and turned[:8].min() > 200 and turned[8:].max() < 50


def test_data_sets_that_mean_others_by_a_value_are_not_joined(tmp_path: Path) -> None:
    sets = []
    for name, values in (("one", {}), ("two", {"label_values": {"7": "floor"}})):
        save(tmp_path / name / "train" / "a.png", image())
        save(tmp_path / name / "trainannot" / "a.png", label_map())
        (tmp_path / name / "classes.json").write_text(json.dumps(THREE | values))
        sets.append(open_data(tmp_path / name, "train"))
    with pytest.raises(
        DataError, match=r"one/trainannot and .*two/trainannot give their classes other colours or label"
    ):
        join(sets)


def test_a_class_list_of_python_values_is_checked_too() -> None:
    with pytest.raises(InputError, match="2 colors for 3 class names"):
        ClassList(("a", "b", "c"), ((0, 0, 0), (1, 1, 1)), None)


def test_colorize_paints_bgr_and_void_black() -> None:
    labels = np.array([[0, 1], [10, 11], [255, 3]], np.uint8)
    # the palette is RGB: building (128, 0, 0) is red, bicyclist (0, 128, 192) is blue
    expected = [[[128, 128, 128], [0, 0, 128]], [[192, 128, 0], [0, 0, 0]], [[0, 0, 0], [128, 64, 128]]]
    painted = colorize(labels, CAMVID)
    assert painted.dtype == np.uint8
    np.testing.assert_array_equal(painted, expected)


def test_scenes_are_deterministic_and_hold_what_a_street_holds() -> None:
    image, labels = street_scene(3, (96, 128))
    again, labels_again = street_scene(3, (96, 128))
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(labels, labels_again)
    assert image.shape == (96, 128, 3) and labels.shape == (96, 128) and image.dtype == labels.dtype == np.uint8
    assert (street_scene(4, (96, 128))[0] != image).mean() > 0.5
    # at CamVid's size, over a few scenes, every class is drawn
    seen = np.unique(np.stack([street_scene(seed)[1] for seed in range(4)]))
    assert set(range(len(CAMVID))) <= set(seen.tolist()) <= set(range(len(CAMVID) + 1))


def test_camvid_is_whole(camvid: Path) -> None:
    assert len(open_data(camvid, "train")) == 367
    val = open_data(camvid, "val")
    assert len(val) == 101
    seen: set[int] = set()
    for picture, labels in val:
        assert picture.shape == (360, 480, 3) and labels.shape == (360, 480)
        seen |= set(np.unique(labels).tolist())
    assert seen == set(range(12))


def test_drawn_data_set_is_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert enet_data(["scenes", str(tmp_path), "--count", "2", "--seed", "7", "--size", "96x128"]) == 0
    assert "2 scenes in train/" in capsys.readouterr().out
    data = open_data(tmp_path, "train")
    assert [path.name for path, _ in data.pairs] == ["scene0007.png", "scene0008.png"]
    for (picture, labels), seed in zip(data, (7, 8), strict=True):
        expected, truth = street_scene(seed, (96, 128))
        np.testing.assert_array_equal(picture, expected)
        np.testing.assert_array_equal(labels, truth)
    assert enet_data(["scenes", str(tmp_path / "more"), "--count", "1001"]) == 2  # the last one is val's first
    assert "--count 1001" in capsys.readouterr().err and not (tmp_path / "more").exists()
