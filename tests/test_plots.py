"""Pictures are whole and hold what they say; corruptions do to a frame what their names and severities say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from enet_deploy.data.corruptions import CORRUPTIONS
from enet_deploy.data.scenes import street_scene
from enet_deploy.errors import ArtifactError, InputError
from enet_deploy.plots import draw_confusion, draw_curve, require_plot

NAMES = ("sky", "wet $road$", "a < b")  # a formula and a tag to who does not look
COUNTS = np.array([[199, 1, 0], [30, 60, 10], [0, 0, 0]])
ROWS: list[dict[str, float]] = [
    {"epoch": 1, "loss": 2.5, "lr": 1e-5, "seconds": 3.0, "val_iou_glossy": 0.3},
    {"epoch": 2, "loss": 1.5, "lr": 1e-3, "seconds": 3.0, "val_miou": 0.4321, "val_pixel_accuracy": 0.8768},
    {"epoch": 3, "loss": 1.2, "lr": 1e-4, "seconds": 3.0, "loss_aux": 0.5},
]


def texts(path: Path) -> list[str]:
    return re.findall(r"<(?:text|tspan)[^>]*>([^<]+)</", path.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml")])
def test_pictures_are_whole_and_alone(tmp_path: Path, name: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    for folder, rows in (("run", ROWS), ("first", ROWS[:1])):
        draw_curve(tmp_path / folder / name, rows)
        assert (tmp_path / folder / name).read_bytes().startswith(start)
        assert [file.name for file in (tmp_path / folder).iterdir()] == [name]
    draw_confusion(tmp_path / name, COUNTS, NAMES)
    first = (tmp_path / name).read_bytes()
    draw_confusion(tmp_path / name, COUNTS, NAMES)
    assert first.startswith(start) and (tmp_path / name).read_bytes() == first


def test_confusion_is_in_per_cent_of_the_truth(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_confusion(tmp_path / "a.svg", COUNTS, NAMES)
    found = texts(tmp_path / "a.svg")
    assert [text for text in found if text.isdigit()] == ["100", "1", "30", "60", "10"]  # 99.5 and 0.5 % are shown
    assert [found.count(name) for name in ("sky", "wet $road$", "a &lt; b")] == [2, 2, 2]


def test_curve_tells_the_last_scores(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_curve(tmp_path / "a.svg", ROWS)
    found = texts(tmp_path / "a.svg")
    for text in ("mIoU", "0.432", "pixel accuracy", "0.877", "training loss", "learning rate", "epoch", "loss_aux"):
        assert text in found
    assert "on val" in found and "val_iou_glossy" not in found
    draw_curve(tmp_path / "a.svg", ROWS, val_was_trained_on=True)
    assert "on val, which was trained on" in texts(tmp_path / "a.svg")


def test_pictures_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, error, message in (
        (tmp_path / "a.gif", InputError, r"a\.gif has the suffix '\.gif', expected \.png or \.svg"),
        (tmp_path / "a", InputError, r"the suffix '', expected"),
        (tmp_path / "file" / "a.png", ArtifactError, "cannot write .*file is not a writable folder"),
    ):
        with pytest.raises(error, match=message):
            require_plot(path)
    with pytest.raises(InputError, match=r"\.gif"):
        draw_curve(tmp_path / "a.gif", ROWS)
    with pytest.raises(InputError, match=r"\.gif"):
        draw_confusion(tmp_path / "a.gif", COUNTS, NAMES)


@pytest.mark.parametrize(
    ("name", "severity", "after"),
    [
        ("brightness", 0.5, [0, 20, 50, 125]),
        ("brightness", 0.25, [0, 10, 25, 62]),
        ("brightness", 1.5, [0, 60, 150, 255]),
        ("brightness", 2, [0, 80, 200, 255]),
        ("contrast", 0.5, [49, 69, 99, 174]),  # about the mean, 97.5
        ("contrast", 0.25, [73, 83, 98, 136]),
    ],
)
def test_values_after(name: str, severity: float, after: list[int]) -> None:
    image = np.repeat(np.array([0, 40, 100, 250], np.uint8)[None, :, None], 3, axis=2)
    changed = CORRUPTIONS[name, severity](image)
    assert changed[0].tolist() == [[value] * 3 for value in after]


@pytest.mark.parametrize(("name", "severity"), CORRUPTIONS)
def test_every_corruption_repeats_and_leaves_its_frame_alone(name: str, severity: float) -> None:
    image = street_scene(0, (95, 127))[0]
    before = image.copy()
    changed = CORRUPTIONS[name, severity](image)
    assert changed.shape == image.shape and changed.dtype == np.uint8
    assert (changed != before).any() and (image == before).all()
    assert (CORRUPTIONS[name, severity](image) == changed).all()


@pytest.mark.parametrize("sigma", [8, 16, 32])
def test_noise_has_its_sigma_and_each_frame_its_own(sigma: int) -> None:
    grey, other = np.full((120, 160, 3), 128, np.uint8), np.full((120, 160, 3), 127, np.uint8)
    noise = CORRUPTIONS["noise", sigma](grey).astype(float) - grey
    assert noise.std() == pytest.approx(sigma, rel=0.02) and abs(noise.mean()) < sigma / 50
    assert abs(np.corrcoef(noise.ravel(), (CORRUPTIONS["noise", sigma](other) - 127.0).ravel())[0, 1]) < 0.05


def test_blur_spreads_an_edge_by_its_sigma() -> None:
    image = np.zeros((41, 41, 3), np.uint8)
    image[:, 20:] = 200  # an edge: its slope is the Gaussian
    for sigma in (1, 2, 4):
        slope = np.diff(CORRUPTIONS["blur", sigma](image)[20, :, 0].astype(float)) / 200
        distance = np.arange(40) - 19
        assert np.sqrt((slope * distance**2).sum()) == pytest.approx(sigma, rel=0.06)


def test_jpeg_of_lower_quality_is_further_away() -> None:
    image = street_scene(1, (96, 128))[0]
    errors = [np.abs(CORRUPTIONS["jpeg", q](image).astype(float) - image).mean() for q in (50, 20, 10)]
    assert 0 < errors[0] < errors[1] < errors[2] < 20
