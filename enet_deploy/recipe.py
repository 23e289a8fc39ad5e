"""Training recipes, and the augmentation they ask for. Needs numpy and opencv only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .data import UInt8Array


@dataclass(frozen=True)
class Recipe:
    """How to train. The default is the project's own; each field is an option of `enet-train`.

    Attributes:
        size: (height, width) that images are resized to before augmentation, and evaluated at.
        crop: (height, width) of a training crop.
        epochs, batch: passes over the training images; images per step, over all processes.
        lr, weight_decay: of AdamW (decay decoupled; none on norms, biases and PReLU), or of `adam`'s L2.
        optimizer: "adamw" or "adam".
        warmup: steps of linear warm-up, then the rate falls to zero as (1 - progress) ** power.
        power: 0 keeps the rate constant.
        class_weight_c: classes weigh 1 / ln(c + pixel share) (ENet paper, section 5.1, has c = 1.02).
        scale: smallest and largest zoom, drawn log-uniformly.
        flip: whether half of the crops are mirrored.
        color: strength of the brightness, contrast and saturation jitter.
        ema: decay of the weight average that is evaluated and saved; 0 for none.
        amp: bfloat16 autocast.
        eval_every: epochs between evaluations on val; the last epoch is always evaluated.
        seed: of initial weights, order, augmentation and dropout.
    """

    size: tuple[int, int] = (360, 480)
    crop: tuple[int, int] = (360, 480)
    epochs: int = 300
    batch: int = 10
    lr: float = 2e-3
    weight_decay: float = 1e-2
    optimizer: str = "adamw"
    warmup: int = 300
    power: float = 0.9
    class_weight_c: float = 1.02
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    color: float = 0.3
    ema: float = 0.998
    amp: bool = False
    eval_every: int = 5
    seed: int = 0


PRESETS = {
    "default": Recipe(),
    # the student report that this project replaces
    "report": Recipe(
        size=(512, 512), crop=(512, 512), epochs=100, batch=5, lr=5e-4, weight_decay=2e-4, optimizer="adam", warmup=0,
        power=0.0, scale=(1.0, 1.0), flip=False, color=0.0, ema=0.0,
    ),
}  # fmt: skip


def augment(
    image: UInt8Array, labels: UInt8Array, recipe: Recipe, rng: np.random.Generator, fill: tuple[float, ...], void: int
) -> tuple[UInt8Array, UInt8Array]:
    """Zoom, crop and mirror in one resampling, then jitter the colours.

    Args:
        image: (H, W, 3) uint8 BGR. labels: (H, W) uint8.
        fill, void: BGR colour and label of what lies outside the image.

    Returns both at `recipe.crop`.
    """
    height, width = recipe.crop
    zoom = math.exp(rng.uniform(math.log(recipe.scale[0]), math.log(recipe.scale[1])))
    # room to move: negative where the zoomed image is smaller than the crop
    top = rng.uniform(0, 1) * (image.shape[0] * zoom - height)
    left = rng.uniform(0, 1) * (image.shape[1] * zoom - width)
    mirror = recipe.flip and rng.uniform() < 0.5
    sx, dx = (-zoom, width - 1 + left) if mirror else (zoom, -left)
    matrix = np.array([[sx, 0, dx], [0, zoom, -top]])
    pixels = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=fill)
    ids = cv2.warpAffine(labels, matrix, (width, height), flags=cv2.INTER_NEAREST, borderValue=void)
    if recipe.color:
        pixels = _jitter(pixels, recipe.color, rng)
    return pixels.astype(np.uint8, copy=False), ids.astype(np.uint8, copy=False)


def _jitter(image: npt.NDArray[Any], strength: float, rng: np.random.Generator) -> npt.NDArray[Any]:
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None]
    pixels = gray + saturation * (image.astype(np.float32) - gray)
    pixels = brightness * (contrast * (pixels - 128) + 128)
    jittered: npt.NDArray[np.uint8] = np.clip(pixels, 0, 255).astype(np.uint8)
    return jittered
