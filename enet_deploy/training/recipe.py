"""Training recipes: what `enet-train` does, as data. This module does not import torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ..artifacts import check_size
from ..errors import InputError
from ..fit import FITS, Fit

Slopes = Literal["channel", "layer"]

CHOICES: dict[str, tuple[str, ...]] = {"optimizer": ("adam", "adamw"), "slopes": get_args(Slopes), "fit": FITS}


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are the project's own recipe; each field is an option of `enet-train`.

    Attributes:
        size: (height, width) that images are resized to, before augmentation and for evaluation.
        fit: how images of another shape get this size: "stretch" distorts them, "letterbox" puts grey beside them,
            "crop" takes their middle; the weights keep it.
        crop: (height, width) of a training crop.
        final_crop: (height, width) of a training crop in the last part of the training.
        final_from: share of the training after which crops have the final size; 1 for never.
        epochs: passes over the training images.
        minutes: time for training and evaluations; if it is above 0, the number of epochs is set from the measured
            speed, so that the learning rate reaches zero when the time is over.
        batch: images per step, over all processes.
        lr: highest learning rate, reached after the warm-up.
        weight_decay: of AdamW (decoupled; none on norms, biases and PReLU slopes), or the L2 penalty of `adam`.
        optimizer: "adamw" or "adam".
        warmup: steps of linear warm-up; after it the rate falls to zero as (1 - progress) ** power.
        power: exponent of that decay; 0 keeps the rate constant.
        class_weight_c: classes weigh 1 / ln(c + pixel share) in the loss (ENet paper, section 5.1, has c = 1.02).
        prior_correction: alpha; alpha ln(class weight) is subtracted from the last layer's bias in the weights that
            are evaluated and saved, because class weights make rare classes too likely. 0 for none.
        aux: weight of the cross-entropy of an auxiliary head on the encoder's output at 1/8 size (the paper's encoder
            stage, trained jointly); the head is not saved.
        lovasz: weight of the Lovasz-softmax loss (a smooth IoU), added to the cross-entropy.
        lovasz_from: share of the training after which the Lovasz-softmax loss is added.
        distill: weight of the divergence from the teacher's output, if there is a teacher.
        width: of the network; every layer has this many times ENet's channels. 1 is ENet.
        slopes: of each PReLU; one per "layer", which deploys faster, or one per "channel" as in the authors' ENet.
        scale: smallest and largest zoom, drawn log-uniformly.
        flip: mirror half of the crops.
        color: strength of the brightness, contrast and saturation jitter.
        tint: strength of the jitter of each colour channel, as with another light or white balance.
        noise: largest standard deviation of the added noise, in grey levels; each crop draws its own.
        ema: decay of the weight average that is evaluated and saved, with its own BatchNorm statistics; 0 for none.
        amp: bfloat16 autocast after the warm-up; from random weights bfloat16 learns less.
        eval_every: epochs between evaluations on val; the last epoch is always evaluated.
        patience: evaluations without a better val mIoU after which the run stops; 0 for never. The learning rate is
            planned over `epochs` in any case, so a run that stops early does not reach its low rates.
        seed: of initial weights, order, augmentation and dropout.

    Raises InputError if a value is out of its range.
    """

    size: tuple[int, int] = (360, 480)
    fit: Fit = "stretch"
    crop: tuple[int, int] = (360, 480)
    final_crop: tuple[int, int] = (360, 480)
    final_from: float = 1.0
    epochs: int = 300
    minutes: float = 0.0
    batch: int = 10
    lr: float = 2e-3
    weight_decay: float = 1e-2
    optimizer: str = "adamw"
    warmup: int = 300
    power: float = 0.9
    class_weight_c: float = 1.02
    prior_correction: float = 0.5
    aux: float = 0.4
    lovasz: float = 1.0
    lovasz_from: float = 0.5
    distill: float = 1.0
    width: int = 1
    slopes: Slopes = "layer"
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    color: float = 0.6
    tint: float = 0.2
    noise: float = 16.0
    ema: float = 0.998
    amp: bool = False
    eval_every: int = 5
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for size in (self.size, self.crop, self.final_crop):
            check_size(size)
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name} '{getattr(self, name)}', expected {' or '.join(choices)}")
        for name in ("epochs", "batch", "width", "eval_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}, expected 1 or more")
        not_negative = "seed minutes lr weight_decay warmup power prior_correction aux lovasz distill noise patience"
        for name in not_negative.split():
            if not 0 <= getattr(self, name) < math.inf:  # nan is not
                raise InputError(f"{name} {getattr(self, name)}, expected 0 or more")
        for name in ("lovasz_from", "final_from"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name)}, expected a share from 0 to 1")
        for name in ("ema", "color", "tint"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}, expected at least 0 (none) and below 1")
        if self.seed >= 2**32:
            raise InputError(f"seed {self.seed}, expected 0 to 2**32 - 1")
        if not 1 < self.class_weight_c < math.inf:
            raise InputError(f"class_weight_c {self.class_weight_c}, expected above 1: ln(c + share) must be positive")
        if not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise InputError(f"scale {self.scale}, expected two positive numbers, smallest first")


PRESETS = {
    "default": Recipe(),
    # the student report that this project replaces
    "report": Recipe(
        size=(512, 512), crop=(512, 512), final_crop=(512, 512), epochs=100, batch=5, lr=5e-4, weight_decay=2e-4,
        optimizer="adam", warmup=0, power=0.0, prior_correction=0.0, aux=0.0, lovasz=0.0, slopes="channel",
        scale=(1.0, 1.0), flip=False, color=0.0, tint=0.0, noise=0.0, ema=0.0,
    ),
}  # fmt: skip


def shown(value: object) -> str:
    """A recipe's value as typed on the command line: "360x480" for a size, "0.5 2.0" for a scale."""
    if not isinstance(value, tuple):
        return str(value)
    return ("x" if isinstance(value[0], int) else " ").join(map(str, value))
