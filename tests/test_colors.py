"""Colours of overlays: everyone can tell the classes apart, also the red-green blind."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from enet_deploy import CAMVID
from enet_deploy.classes import ClassList
from enet_deploy.images import colorize, overlay

# How the colour-blind see linear RGB: Machado, Oliveira and Fernandes, IEEE TVCG 15(6), 2009, severity 1
SEEN_BY = {
    "everyone": np.eye(3),
    "protanopes": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopes": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}
TO_XYZ = np.array(  # from linear sRGB
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def lab(colors: npt.ArrayLike, seen_by: str) -> npt.NDArray[np.float64]:
    """CIELAB of sRGB colours in [0, 255], (N, 3), as these people see them."""
    values = np.asarray(colors) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    xyz = np.clip(linear @ np.array(SEEN_BY[seen_by]).T, 0, 1) @ TO_XYZ.T / TO_XYZ.sum(axis=1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def least_distance(colors: npt.ArrayLike, seen_by: str) -> float:
    seen = lab(colors, seen_by)
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=2)
    return float(apart[np.triu_indices(len(seen), 1)].min())


def test_distance_is_that_of_lab() -> None:
    white, red = lab([(255, 255, 255), (255, 0, 0)], "everyone")
    assert white == pytest.approx((100, 0, 0), abs=0.1) and red == pytest.approx((53.2, 80.1, 67.2), abs=0.2)
    for seen_by in SEEN_BY:  # grey stays grey
        assert lab([(128, 128, 128)], seen_by)[0, 1:] == pytest.approx((0, 0), abs=0.1)


@pytest.mark.parametrize("seen_by", SEEN_BY)
def test_classes_of_camvid_differ_in_overlays(seen_by: str) -> None:
    assert least_distance(CAMVID.overlay_colors, seen_by) > 30
    grey = np.full((1, 3), 128)  # half transparent over a picture
    assert least_distance((np.array(CAMVID.overlay_colors) + grey) / 2, seen_by) > 10
    if seen_by != "everyone":
        assert least_distance(CAMVID.colors, seen_by) < 10  # which is why overlays have others


def test_label_files_and_own_classes_keep_their_colours() -> None:
    labels = np.arange(len(CAMVID), dtype=np.uint8)[None]
    assert np.array_equal(colorize(labels, CAMVID)[0, :, ::-1], CAMVID.colors)
    image = np.zeros((1, len(CAMVID), 3), np.uint8)
    assert np.array_equal(overlay(image, labels, CAMVID, alpha=1)[0, :, ::-1], CAMVID.overlay_colors)
    own = ClassList(("floor", "wall"), ((0, 90, 200), (200, 200, 0)), None)
    assert own.overlay_colors == own.colors
