"""Synthetic street scenes with exact labels, for use without a data set.

They have CamVid's classes and layout (sky above, road below, saturated and flat areas, thin poles), so they exercise
every path of a network trained on CamVid. They do not measure its accuracy.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ..classes import CAMVID
from ..files import atomic_write
from ..images import UInt8Array, encode

_ID = {name: i for i, name in enumerate(CAMVID.names)}

Point = tuple[float, float]  # x, y as fractions of width and height


class _Canvas:
    """An image and its label map, always painted together."""

    def __init__(self, height: int, width: int) -> None:
        self.image = np.zeros((height, width, 3), np.uint8)
        self.labels = np.full((height, width), CAMVID.ignore_id, np.uint8)

    def _pixels(self, points: list[Point]) -> np.ndarray:
        height, width = self.labels.shape
        return np.array([(round(x * width), round(y * height)) for x, y in points], np.int32)

    def polygon(self, name: str, points: list[Point], color: np.ndarray) -> None:
        corners = self._pixels(points)
        cv2.fillPoly(self.image, [corners], color.tolist())
        cv2.fillPoly(self.labels, [corners], _ID[name])

    def box(self, name: str, x: float, y: float, width: float, height: float, color: np.ndarray) -> None:
        self.polygon(name, [(x, y), (x + width, y), (x + width, y + height), (x, y + height)], color)

    def ellipse(self, name: str, x: float, y: float, rx: float, ry: float, color: np.ndarray) -> None:
        center, axes = self._pixels([(x, y), (rx, ry)])
        for target, value in ((self.image, color.tolist()), (self.labels, _ID[name])):
            cv2.ellipse(target, center.tolist(), np.maximum(axes, 1).tolist(), 0, 0, 360, value, cv2.FILLED)


def street_scene(seed: int, size: tuple[int, int] = (360, 480)) -> tuple[UInt8Array, UInt8Array]:
    """Draw one scene. The same seed and size always give the same pixels.

    Returns the image, (H, W, 3) uint8 BGR in [0, 255], and its label map, (H, W) uint8 CamVid ids, 11 = void.
    """
    rng = np.random.default_rng(seed)
    canvas = _Canvas(*size)

    def color(b: int, g: int, r: int) -> np.ndarray:
        # vary the brightness, hardly the hue: a road is grey in any light
        return np.clip(np.array([b, g, r]) + rng.integers(-20, 21) + rng.integers(-4, 5, 3), 0, 255)

    horizon = rng.uniform(0.4, 0.55)
    bend = rng.uniform(0.4, 0.6)  # where the road meets the horizon
    canvas.box("sky", 0, 0, 1, 1, np.array([255, 255, 255]) if rng.uniform() < 0.3 else color(230, 200, 170))
    for x in np.arange(0, 1, 0.2) + rng.uniform(-0.05, 0.05):
        top = rng.uniform(0.05, horizon - 0.1)
        canvas.box("building", x, top, rng.uniform(0.12, 0.22), 1 - top, color(90, 105, 120))
    for _ in range(rng.integers(1, 4)):
        x, y = rng.uniform(0, 1), horizon - rng.uniform(0.05, 0.2)
        canvas.box("tree", x - 0.01, y, 0.02, horizon + 0.05 - y, color(40, 60, 70))
        canvas.ellipse("tree", x, y, rng.uniform(0.05, 0.12), rng.uniform(0.08, 0.15), color(50, 90, 60))
    canvas.box("fence", rng.uniform(0, 0.7), horizon - 0.06, 0.3, 0.12, color(90, 90, 90))
    canvas.polygon("pavement", [(bend, horizon), (1.3, 1), (-0.3, 1)], color(140, 140, 145))
    canvas.polygon("road", [(bend, horizon), (1.0, 1), (0.0, 1)], color(85, 85, 90))
    for _ in range(rng.integers(1, 4)):
        x, y = rng.uniform(0.1, 0.8), rng.uniform(horizon, 0.8)
        width = 0.08 + 0.2 * (y - horizon)
        canvas.box("car", x, y, width, width * 0.7, color(*rng.integers(30, 220, 3)))
    for name in ("pedestrian", "bicyclist"):
        x, y = rng.uniform(0.02, 0.9), rng.uniform(horizon, 0.75)
        canvas.box(name, x, y, 0.03, 0.14, color(70, 60, 110))
        canvas.ellipse(name, x + 0.015, y - 0.015, 0.012, 0.02, color(120, 150, 190))
    x = rng.uniform(0.1, 0.9)
    canvas.box("pole", x, 0.15, 0.012, horizon, color(60, 60, 60))
    canvas.box("sign", x - 0.02, 0.15, 0.05, 0.06, color(40, 40, 200))
    return _light(canvas.image, rng), canvas.labels


def _light(image: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Add sensor noise and a light fall-off, so that areas are not uniform; saturated areas stay saturated."""
    shade = np.linspace(rng.uniform(0.85, 1), rng.uniform(0.85, 1), image.shape[1])[None, :, None]
    noisy = image * shade + rng.normal(0, 4, image.shape)
    noisy[image == 255] = 255
    lit: UInt8Array = np.clip(noisy, 0, 255).astype(np.uint8)
    return lit


def write_scenes(root: str | Path, split: str, seeds: range, size: tuple[int, int] = (360, 480)) -> None:
    """Draw a scene per seed into `root/split/` and `root/splitannot/`, as sceneSEED.png; other files are kept.

    Raises ArtifactError if a folder cannot be written.
    """
    for seed in seeds:
        for folder, pixels in zip((split, f"{split}annot"), street_scene(seed, size), strict=True):
            with atomic_write(Path(root) / folder / f"scene{seed:04}.png") as temporary:
                temporary.write_bytes(encode("scene.png", pixels))
