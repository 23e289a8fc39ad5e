"""Reading data sets: what is matched, and what is refused, naming the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from enet_deploy.camvid import main as enet_data
from enet_deploy.data import CAMVID, ClassList, colorize, open_data, read_image
from enet_deploy.errors import DataError, InputError
from enet_deploy.scenes import street_scene

TWO = {"names": ["floor", "wall"], "colors": [[0, 90, 200], [200, 200, 0]], "ignore_id": 255}


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def image(height: int = 6, width: int = 8) -> np.ndarray:
    return np.full((height, width, 3), (10, 20, 30), np.uint8)


def label_map(value: int = 3, height: int = 6, width: int = 8) -> np.ndarray:
    return np.full((height, width), value, np.uint8)


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
        (lambda r: (r / "trainannot" / "a.png").unlink(), r"a\.PPM has no partner 'a\.\*' in .*trainannot \(1 such"),
        (lambda r: (r / "train" / "b.png").unlink(), r"b\.bmp has no partner 'b\.\*' in .*train \(1 such"),
        (lambda r: [p.unlink() for p in (r / "train").iterdir()], r"train holds no images; expected .*\.png"),
        (lambda r: (r / "trainannot").rename(r / "labels"), r"trainannot is not a folder; .*enet-data camvid"),
        (lambda r: save(r / "train" / "b.bmp", image()), r"b\.bmp and .*b\.png have the same stem; keep one"),
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
        (lambda r: (r / "train" / "b.png").write_bytes(b""), r"train/b\.png cannot be decoded as an image"),
        (lambda r: (r / "train" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n"), r"b\.png cannot be decoded as an image"),
        (lambda r: (r / "trainannot" / "b.bmp").write_bytes(b"BM"), r"b\.bmp cannot be decoded as an image"),
        (lambda r: (r / "train" / "b.png").unlink(), r"b\.png does not exist"),
        (
            lambda r: save(r / "trainannot" / "b.bmp", label_map(3, 8, 6)),
            r"b\.bmp is 8x6 \(height x width\) but its image .*b\.png is 6x8",
        ),
        (
            lambda r: save(r / "trainannot" / "b.bmp", label_map(200)),
            r"b\.bmp holds class id 200 \(48 pixels .*; expected 0 to 10 and 11 for void: .* classes\.json",
        ),
        (
            lambda r: save(r / "trainannot" / "b.bmp", image()),
            r"b\.bmp has shape \(6, 8, 3\) and dtype uint8; expected an 8-bit single-channel map",
        ),
        (
            lambda r: save(r / "trainannot" / "b.png", label_map().astype(np.uint16)).replace(
                r / "trainannot" / "b.bmp"
            ),
            r"has shape \(6, 8\) and dtype uint16; expected an 8-bit",
        ),
    ],
    ids=["zero bytes", "cut image", "cut map", "gone", "size", "id 200", "colour map", "16 bits"],
)
def test_bad_files_are_named_when_read(root: Path, damage: Callable[[Path], object], message: str) -> None:
    data = open_data(root, "train")
    damage(root)
    data[0]  # the other pair is whole
    with pytest.raises(DataError, match=message):
        data[1]


def test_an_image_that_is_not_there_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.png does not exist"):
        read_image(tmp_path / "none.png")


def test_classes_json_replaces_camvid(root: Path) -> None:
    (root / "classes.json").write_text(json.dumps(TWO))
    data = open_data(root, "train")
    assert data.classes == ClassList(("floor", "wall"), ((0, 90, 200), (200, 200, 0)), 255)
    assert data.classes.to_json() == TWO
    with pytest.raises(DataError, match=r"holds class id 11 .* expected 0 to 1 and 255 for void"):
        data[0]
    save(root / "trainannot" / "a.png", label_map(255))
    assert (data[0][1] == 255).all()


def test_without_ignore_id_every_pixel_needs_a_class(root: Path) -> None:
    (root / "classes.json").write_text(json.dumps(TWO | {"ignore_id": None}))
    save(root / "trainannot" / "a.png", label_map(255))
    with pytest.raises(DataError, match=r"holds class id 255 .* expected 0 to 1: correct"):
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
        (TWO | {"ignore_id": "none"}, "this one is not: ValueError"),
    ],
)
def test_bad_class_lists_are_refused(root: Path, value: Any, message: str) -> None:
    (root / "classes.json").write_text(value if isinstance(value, str) else json.dumps(value))
    with pytest.raises(DataError, match=rf"classes\.json: .*{message}"):
        open_data(root, "train")


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
    for image, labels in val:
        assert image.shape == (360, 480, 3) and labels.shape == (360, 480)
        seen |= set(np.unique(labels).tolist())
    assert seen == set(range(12))


def test_drawn_data_set_is_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert enet_data(["scenes", str(tmp_path), "--count", "2", "--seed", "7", "--size", "96x128"]) == 0
    assert "2 drawn scenes in train/" in capsys.readouterr().out
    data = open_data(tmp_path, "train")
    assert [path.name for path, _ in data.pairs] == ["scene0007.png", "scene0008.png"]
    for (image, labels), seed in zip(data, (7, 8), strict=True):
        expected, truth = street_scene(seed, (96, 128))
        np.testing.assert_array_equal(image, expected)
        np.testing.assert_array_equal(labels, truth)
