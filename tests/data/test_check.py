"""`enet-data check` and `unzip`: what they find, what they refuse; and a data set of one's own, all the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import claim, image, label_map, save
from PIL import Image

from enet_deploy import open_runner
from enet_deploy.artifacts import Metadata
from enet_deploy.classes import CAMVID, read_classes
from enet_deploy.commands import evaluate
from enet_deploy.commands.data import main as enet_data
from enet_deploy.data import open_data
from enet_deploy.data.unzip import unzip
from enet_deploy.errors import ArtifactError, DataError
from enet_deploy.export import cli as export_cli
from enet_deploy.images import colorize
from enet_deploy.model import ENet
from enet_deploy.weights import save_weights


def test_a_whole_data_set(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, record = tmp_path / "check.png", tmp_path / "check.json"
    assert enet_data(["check", str(scenes), "--picture", str(picture), "--json", str(record)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["train", "val"] and lines[1] == ["images", "8", "4"]
    labels = np.stack([labels for _, labels in open_data(scenes, "train")])
    assert ["car", f"{100 * (labels == 8).mean():.2f}", "%"] in [line[:3] for line in lines]
    assert lines[-1] == ["no", "problems"]
    found = json.loads(record.read_text())
    assert found["problems"] == found["warnings"] == []
    train = found["splits"]["train"]
    assert (
        train["sizes"] == {"96x128": 8} and train["pixels"] == np.bincount(labels.ravel(), minlength=12)[:11].tolist()
    )
    drawn = cv2.imread(str(picture))
    assert drawn.shape[1] > 1500
    colors = np.unique(drawn.reshape(-1, 3) @ np.array([1, 1 << 8, 1 << 16])).tolist()  # 0xRRGGBB
    assert {red << 16 | green << 8 | blue for red, green, blue in CAMVID.overlay_colors} <= set(colors)  # the legend


def relink(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


BAD_DAYS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no label map": (lambda r: (r / "valannot" / "scene1001.png").unlink(), "without a label map .* val/scene1001.png"),
    "no image": (lambda r: (r / "val" / "scene1001.png").unlink(), "without an image .* (1 file): valannot/scene1001"),
    "one stem twice": (
        lambda r: save(r / "train" / "scene0001.bmp", image(96, 128)),
        "several images of one stem .* (2 files): train/scene0001.bmp, train/scene0001.png",
    ),
    "JPEG label map": (
        lambda r: save(r / "trainannot" / "x.jpg", label_map(3, 96, 128)),
        "a format that changes values .* (1 file): trainannot/x.jpg",
    ),
    "JPEG under another name": (
        lambda r: (r / "trainannot" / "scene0000.png").write_bytes(cv2.imencode(".jpg", label_map(3, 96, 128))[1]),
        "a format that changes values, JPEG .* (1 file): trainannot/scene0000.png",
    ),
    "half a JPEG": (
        lambda r: (r / "train" / "scene0000.png").write_bytes(
            cv2.imencode(".jpg", cv2.imread(str(r / "train" / "scene0000.png")))[1].tobytes()[:3000] + b"\xff\xd9"
        ),
        "cannot be decoded whole: .* train/scene0000.png",
    ),
    "cut": (lambda r: os.truncate(r / "train" / "scene0000.png", 999), "cannot be decoded .* train/scene0000.png"),
    "terminal escapes": (lambda r: (r / "train" / "\x1b[2J.png").touch(), r"'train/\x1b[2J.png'"),
    "bomb": (lambda r: claim(r / "train" / "scene0000.png", 60_000), "60000x60000 .* train/scene0000.png"),
    "huge": (lambda r: claim(r / "trainannot" / "scene0000.png", 20_000), "20000x20000 .* trainannot/scene0000.png"),
    "one pixel": (lambda r: save(r / "train" / "scene0000.png", image(1, 1)), "under 8 pixels .* train/scene0000.png"),
    "another size": (
        lambda r: save(r / "trainannot" / "scene0000.png", label_map(3, 96, 127)),
        "not of the size of its image .* (1 file): trainannot/scene0000.png",
    ),
    "unknown ids": (
        lambda r: [save(r / "trainannot" / f"scene000{i}.png", label_map(70 + i, 96, 128)) for i in (0, 1)],
        "id 70 (12288 pixels in 1 file) .* id 71 (12288 pixels in 1 file) .* 0 to 10 and 11 for void .* (2 files)",
    ),
    "colours of classes, of which one is swapped": (
        lambda r: [
            save(r / "trainannot" / "scene0000.png", np.full((96, 128, 3), (128, 0, 0), np.uint8)),
            save(r / "trainannot" / "scene0001.png", np.full((96, 128, 3), CAMVID.colors[3][::-1], np.uint8)),
        ],
        "#000080 (a known one with red and blue swapped) (12288 pixels in 1 file) .* trainannot/scene0000.png",
    ),
    "unknown colour": (
        lambda r: save(r / "trainannot" / "scene0000.png", image(96, 128)),
        "#1e140a (12288 pixels in 1 file) .* (1 file): trainannot/scene0000.png",
    ),
    "another id wherever a class was": (
        lambda r: [
            cv2.imwrite(str(path), np.where(labels == 8, 3, labels))
            for path in (r / "trainannot").iterdir()
            for labels in [cv2.imread(str(path), cv2.IMREAD_UNCHANGED)]
        ],
        "classes without a pixel in train .* car",
    ),
    "no label in val": (
        lambda r: [save(path, label_map(11, 96, 128)) for path in (r / "valannot").iterdir()],
        "every pixel of val is void",
    ),
    "leak, in another format": (
        lambda r: [
            (r / "val" / "scene1000.png").unlink(),
            save(r / "val" / "scene1000.bmp", cv2.imread(str(r / "train" / "scene0000.png"))),
        ],
        "the same picture in several splits .* (1 file): train/scene0000.png = val/scene1000.bmp",
    ),
    "leak, by a link": (
        lambda r: relink(r / "val" / "scene1000.png", "../train/scene0000.png"),
        "the same picture in several splits .* (1 file): train/scene0000.png = val/scene1000.png",
    ),
    "no val": (
        lambda r: [shutil.rmtree(r / "val"), shutil.rmtree(r / "valannot")],
        "no split val",
    ),
    "endless file": (
        lambda r: relink(r / "train" / "scene0000.png", "/dev/zero"),
        "is a folder or a device .* (1 file): train/scene0000.png",
    ),
}  # fmt: skip


def turn(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(path).save(path, exif=exif)


DOUBTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "turned image": (lambda r: turn(r / "train" / "scene0000.png"), "EXIF orientation 3 .* (1 file): train/scene0000"),
    "animation": (
        lambda r: Image.open(r / "train" / "scene0000.png").save(
            r / "train" / "scene0000.png", save_all=True, append_images=[Image.new("RGB", (128, 96))]
        ),
        "2 pictures in a file .* train/scene0000.png",
    ),
    "12 bits": (
        lambda r: save(
            r / "train" / "scene0000.png", cv2.imread(str(r / "train" / "scene0000.png")).astype(np.uint16) << 4
        ),
        "of which only 12 are in use .* train/scene0000.png",
    ),
    "masks": (
        lambda r: [
            (r / "classes.json").write_text(json.dumps({"names": [*CAMVID.names], "ignore_id": 255})),
            [
                save(path, np.where(label_map(0, 96, 128) + np.arange(128) < 64, 0, 255).astype(np.uint8))
                for folder in ("trainannot", "valannot")
                for path in (r / folder).iterdir()
            ],
        ],
        "only 0 and 255 .* (12 files): trainannot/scene0000.png",
    ),
    "palette": (
        lambda r: palette_of_classes(r / "trainannot" / "scene0000.png"),
        "palette of the classes' colours in another order .* trainannot/scene0000.png",
    ),
    "subfolder": (
        lambda r: save(r / "train" / "more" / "a.png", image()),
        "images in subfolders .* (1 file): train/more/a.png",
    ),
}  # fmt: skip


def palette_of_classes(path: Path) -> None:
    """Save a label map again as a painting program does: with colours, in the order in which they come."""
    Image.fromarray(colorize(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), CAMVID)[..., ::-1]).quantize(32).save(path)


@pytest.mark.parametrize(("change", "message"), DOUBTS.values(), ids=DOUBTS.keys())
def test_file_that_contradicts_the_classes_is_a_warning(
    data: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], object], message: str
) -> None:
    change(data)
    enet_data(["check", str(data)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert any(all(part in line for part in message.split(" .* ")) for line in lines), lines


@pytest.fixture
def data(scenes: Path, tmp_path: Path) -> Path:
    return shutil.copytree(scenes, tmp_path / "data")


def problems(root: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert enet_data(["check", str(root)]) == 1
    captured = capsys.readouterr()
    found = [line for line in captured.out.splitlines() if line.startswith("problem: ")]
    assert captured.err.count("\n") == 1 and re.search(rf"{root} has {len(found)} problem", captured.err)
    assert captured.out.replace("\n", "").isprintable()
    return found


@pytest.mark.parametrize(("damage", "message"), BAD_DAYS.values(), ids=BAD_DAYS.keys())
def test_bad_days(
    data: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object], message: str
) -> None:
    damage(data)
    assert any(all(part in line for part in message.split(" .* ")) for line in problems(data, capsys))


def test_all_is_found_at_once(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apart = ["no label map", "one stem twice", "JPEG label map", "cut", "terminal escapes", "unknown ids"]
    for name in apart:
        BAD_DAYS[name][0](data)
    found = problems(data, capsys)
    for name in apart:
        assert any(all(part in line for part in BAD_DAYS[name][1].split(" .* ")) for line in found), name


def test_what_may_be_meant_is_a_warning(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "train" / "scene0001.png").rename(tmp_path / "elsewhere.png")
    (data / "train" / "scene0001.png").symlink_to(tmp_path / "elsewhere.png")
    save(data / "train" / "wide.png", image(96, 256))
    save(data / "trainannot" / "wide.png", label_map(3, 96, 256))
    shutil.copy(data / "train" / "scene0002.png", data / "train" / "again.png")
    shutil.copy(data / "trainannot" / "scene0002.png", data / "trainannot" / "again.png")
    save(data / "test" / "unlabelled.png", image(96, 128))
    assert enet_data(["check", str(data)]) == 0
    *_, last = lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("warning: ")] == [
        "warning: links that lead out of the folder; a copy of it would lack these files (1 file): train/scene0001.png",
        "warning: the same picture several times in a split (1 file): train/again.png = train/scene0002.png",
        "warning: train has images of several sizes, which are all resized to one: 96x128 (9), 96x256 (1)",
        f"warning: classes without a pixel in test, which get no score: {', '.join(CAMVID.names)}",
    ]
    assert last.startswith("no problems")


def test_folder_without_a_data_set_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert enet_data(["check", str(tmp_path)]) == 2
    assert (
        f"{tmp_path} holds no data set, expected images and label maps in {tmp_path}/train" in capsys.readouterr().err
    )
    (tmp_path / "classes.json").write_text("{}")
    assert enet_data(["check", str(tmp_path)]) == 2
    assert "classes.json: a class list is" in capsys.readouterr().err


@pytest.mark.slow
def test_the_picture_bears_any_name(data: Path, tmp_path: Path) -> None:
    (data / "train" / "scene0000.png").rename(data / "train" / "$x^$.png")
    (data / "trainannot" / "scene0000.png").rename(data / "trainannot" / "$x^$.png")
    names = ["$road^$", "<b>car</b>", *CAMVID.names[2:]]
    (data / "classes.json").write_text(json.dumps({"names": names, "ignore_id": 11}))
    assert enet_data(["check", str(data), "--picture", str(tmp_path / "a.svg")]) == 0
    assert "$road^$" in (tmp_path / "a.svg").read_text()


def zipped(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def test_unzip(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = shutil.make_archive(str(tmp_path / "scenes"), "zip", scenes)
    assert enet_data(["unzip", archive, str(tmp_path / "data")]) == 0
    assert "files unpacked: 24;" in capsys.readouterr().out
    assert len(open_data(tmp_path / "data", "train")) == 8
    with pytest.raises(ArtifactError, match=r"data exists already.*data/data"):
        unzip(archive, tmp_path / "data")


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def nameless() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("a")
    info.filename = ""
    return info


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("../evil.png", b"x")],
            r"'\.\./evil\.png', which leads out of the folder",
        ),
        ([("train/../../evil.png", b"x")], "leads out of the folder"),
        ([("/etc/evil", b"x")], "leads out of the folder"),
        ([("C:/evil.png", b"x")], "has a drive, a backslash or a control character"),
        ([("..\\evil.png", b"x")], "has a drive, a backslash"),
        ([("train/\x1b[2J.png", b"x")], r"member 'train/\\x1b\[2J\.png', which has a drive, a backslash or a control"),
        ([(link("train"), b"/etc")], "member 'train', which is a link or a device"),
        ([("a.png", b"x"), ("A.png", b"x"), ("./a.png", b"x")], "is in it twice"),
        ([("a", b"x"), ("a/b.png", b"x")], "member 'a', which is a file and a folder"),
        ([(nameless(), b"x")], "member '', which has no name"),
        ([("./.", b"x")], "member './.', which has no name"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_file_that_could_do_harm_is_refused_whole(
    tmp_path: Path, members: list[tuple[str | zipfile.ZipInfo, bytes]], message: str
) -> None:
    archive = zipped(tmp_path / "evil.zip", ("train/good.png", b"x"), *members)
    with pytest.raises((DataError, ArtifactError), match=message):
        unzip(archive, tmp_path / "data" / "data")
    assert [path.name for path in tmp_path.rglob("*")] in (["evil.zip"], ["evil.zip", "data"], ["data", "evil.zip"])


def test_a_zip_bomb_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enet_deploy.data.unzip.SMALL", 1 << 20)
    bomb = zipped(tmp_path / "bomb.zip", ("train/a.png", bytes(2 << 20)))
    with pytest.raises(DataError, match=r"bomb\.zip .*\b2097152\b"):
        unzip(bomb, tmp_path / "data")
    assert [*tmp_path.iterdir()] == [bomb]


def test_an_encrypted_zip_file_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", ("a.png", b"x"))
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # in the directory, as Python writes none
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"member 'a\.png', which is encrypted"):
        unzip(archive, tmp_path / "data")


def test_a_zip_file_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zipped(tmp_path / "a.zip", ("train/a.png", bytes(1000)))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=999))
    with pytest.raises(ArtifactError, match=r"data .*\b1000\b.*\b999\b"):
        unzip(archive, tmp_path / "data")
    assert [*tmp_path.iterdir()] == [archive]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, 100),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes().replace(b"pixels", b"poxels")),
        lambda path: path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe")),
    ],
    ids=["cut", "gone", "changed", "no UTF-8"],
)
def test_a_damaged_zip_file_leaves_nothing(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("train/a.png", b"x")
        archive.writestr("train/é.png", b"pixels")
    damage(tmp_path / "a.zip")
    with pytest.raises(DataError, match=r"a\.zip (cannot be unpacked|is not a file)"):
        unzip(tmp_path / "a.zip", tmp_path / "data")
    assert {path.name for path in tmp_path.iterdir()} <= {"a.zip"}


@pytest.mark.slow
def test_own_data_set_is_checked_exported_scored_and_segmented(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three classes and void, by colour, to which CamVid's 12 labels are mapped. test_train trains on other classes."""
    own = {
        "names": ["sky", "<i>thing</i>", "ground"],
        "colors": [[1, 2, 250], [250, 1, 2], [2, 250, 1]],
        "ignore_id": 9,
    }
    palette = np.array([*own["colors"], [0, 0, 0]], np.uint8)[:, ::-1]
    groups = np.array([0, 1, 1, 2, 2, 1, 1, 1, 1, 1, 1, 3])
    root = tmp_path / "own"
    for split in ("train", "val"):
        shutil.copytree(scenes / split, root / split)
        for (path, _), (_, labels) in zip(open_data(scenes, split).pairs, open_data(scenes, split), strict=True):
            save(root / f"{split}annot" / path.name, palette[groups[labels]])
    (root / "classes.json").write_text(json.dumps(own))
    assert enet_data(["check", str(root)]) == 0

    weights, graph = tmp_path / "own.safetensors", str(tmp_path / "own-fp32.onnx")
    torch.manual_seed(0)
    save_weights(weights, ENet(3), Metadata(read_classes(root), (110.0,) * 3, (78.0,) * 3, (48, 64)))
    options = ["--out", str(tmp_path), "--name", "own", "--data", str(root)]
    assert export_cli.main(["--weights", str(weights), *options]) == 0
    capsys.readouterr()
    assert evaluate.main([graph, "--data", str(root), "--backend", "ort"]) == 0
    assert "<i>thing</i>" in capsys.readouterr().out
    with open_runner(graph, backend="ort") as runner:
        assert runner.spec.classes.to_json() == own
        labels = runner.segment(image(1, 1))
        assert labels.shape == (1, 1) and colorize(labels, runner.spec.classes)[0, 0].tolist() in palette.tolist()


@pytest.mark.parametrize(
    "name", ["a/" * 30_000 + "b", "a/" * 51 + "b", "x" * 1001, "x" * 256 + ".png", "a/" + "車" * 100]
)
def test_zip_of_deep_or_long_names_is_refused_at_once(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(20):
            archive.writestr(f"{name}{number}", b"")
    with pytest.raises(DataError, match="expected at most 1000 in 50, each of at most 255 bytes"):
        unzip(tmp_path / "a.zip", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
