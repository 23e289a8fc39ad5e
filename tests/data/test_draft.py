"""`enet-data init`: a classes.json from what label maps hold, which reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import image, save
from PIL import Image

from enet_deploy.commands.data import main as enet_data
from enet_deploy.data import open_data

VALUES = np.repeat(np.arange(4, dtype=np.uint8), 12).reshape(6, 8)  # a quarter of the pixels each


def save_palette(path: Path, indices: np.ndarray, colors: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(indices)
    picture.putpalette(colors)
    picture.save(path)


def save_values(table: list[int]) -> Callable[[Path], object]:
    return lambda path: save(path, np.array(table, np.uint16 if max(table) > 255 else np.uint8)[VALUES])


def save_colors(table: list[list[int]]) -> Callable[[Path], object]:
    return lambda path: save(path, np.array(table, np.uint8)[VALUES][..., ::-1])  # RGB, which OpenCV writes from BGR


CASES: dict[str, tuple[Callable[[Path], object], dict[str, Any]]] = {
    "ids": (save_values([0, 1, 2, 255]), {"names": ["class0", "class1", "class2"], "ignore_id": 255}),
    "ids of its own": (
        save_values([7, 8, 300, 255]),
        {"label_values": {"7": "class7", "8": "class8", "300": "class300", "255": None}, "ignore_id": 255},
    ),
    "a mask": (save_values([0, 255, 0, 255]), {"label_values": {"0": "class0", "255": "class255"}, "ignore_id": None}),
    "colours": (
        save_colors([[0, 0, 0], [255, 128, 0], [9, 9, 9], [0, 0, 200]]),
        {"colors": [[0, 0, 200], [9, 9, 9], [255, 128, 0]], "ignore_id": 255},
    ),
    "CamVid's colours": (
        save_colors([[128, 128, 128], [128, 0, 0], [64, 0, 128], [0, 0, 0]]),
        {"names": ["car", "building", "sky"], "colors": [[64, 0, 128], [128, 0, 0], [128, 128, 128]]},
    ),
    "grey in three channels": (save_colors([[i] * 3 for i in range(4)]), {"names": [f"class{i}" for i in range(4)]}),
    "a palette": (
        lambda path: save_palette(path, VALUES, [1, 2, 3, 250, 0, 0, 0, 250, 0, 0, 0, 250]),
        {"names": [f"class{i}" for i in range(4)], "colors": [[1, 2, 3], [250, 0, 0], [0, 250, 0], [0, 0, 250]]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_draft_declares_what_label_maps_hold(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write, expected = CASES[case]
    for split in ("train", "val"):
        save(tmp_path / split / "a.png", np.full((6, 8, 3), len(split), np.uint8))
        write(tmp_path / f"{split}annot" / "a_mask.png")
    assert enet_data(["init", str(tmp_path)]) == 0
    declared = json.loads((tmp_path / "classes.json").read_text())
    assert declared["label_stem"] == "*_mask"
    assert {key: declared.get(key) for key in expected} == expected
    shown = capsys.readouterr().out
    assert "25.00% of the pixels" in shown or "50.00% of the pixels" in shown
    labels = open_data(tmp_path, "train").read_labels(0)
    void = declared["ignore_id"]
    quarters = [len(np.unique(labels[value == VALUES])) for value in range(4)]
    assert quarters == [1, 1, 1, 1]
    assert set(np.unique(labels)) <= {*range(len(declared["names"]))} | ({void} if void else set())


def test_init_keeps_a_file_and_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "images" / "a.png", image())
    assert enet_data(["init", str(tmp_path)]) == 2
    assert "images/ (1 images)" in capsys.readouterr().err
    save(tmp_path / "trainannot" / "a.png", VALUES)
    assert enet_data(["init", str(tmp_path)]) == 0
    assert "valannot" in capsys.readouterr().out
    kept = (tmp_path / "classes.json").read_bytes()
    assert enet_data(["init", str(tmp_path)]) == 2 and (tmp_path / "classes.json").read_bytes() == kept


def test_smoothed_colours_are_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "trainannot" / "a.png", np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))
    assert enet_data(["init", str(tmp_path)]) == 2
    assert "1600 different colours" in capsys.readouterr().err
    assert not (tmp_path / "classes.json").exists()


@pytest.mark.parametrize("kind", ["one channel", "palette"])
def test_ids_beside_colours_are_refused_and_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """A map without a label, saved with one channel, would make a class of void."""
    colors = save_colors([[0, 0, 0], [255, 128, 0], [0, 0, 0], [0, 0, 200]])
    for split in ("train", "val"):
        for number in range(3):
            save(tmp_path / split / f"{number}.png", image())
            colors(tmp_path / f"{split}annot" / f"{number}.png")
    odd = tmp_path / "trainannot" / "1.png"
    save_palette(odd, VALUES * 0, [0, 0, 0]) if kind == "palette" else save(odd, VALUES * 0)
    assert enet_data(["init", str(tmp_path)]) == 2
    refused = capsys.readouterr().err
    assert str(odd) in refused and f"{tmp_path}/valannot/2.png" in refused
    declared = {"names": ["a", "b"], "colors": [[255, 128, 0], [0, 0, 200]], "ignore_id": 255}
    (tmp_path / "classes.json").write_text(json.dumps(declared))
    enet_data(["check", str(tmp_path)])
    (found,) = [line for line in capsys.readouterr().out.splitlines() if "label maps of ids" in line]
    assert found.startswith("warning: ") and found.endswith("(1 file): trainannot/1.png")


def test_check_names_the_syntax_and_init(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        save(tmp_path / split / "a.png", np.full((8, 8, 3), len(split), np.uint8))
        save(tmp_path / f"{split}annot" / "a.png", np.full((8, 8), 40, np.uint8))
    assert enet_data(["check", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert '"label_values": {"40": "NAME"}' in shown and "enet-data init" in shown
