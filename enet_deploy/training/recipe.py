"""Training recipes: what `enet-train` does, as data. Needs nothing but Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Slopes = Literal["channel", "layer"]


@dataclass(frozen=True)
class Recipe:
    """How to train. The default is the project's own; each field is an option of `enet-train`.

    Attributes:
        size: (height, width) that images are resized to before augmentation, and evaluated at.
        crop: (height, width) of a training crop.
        final_crop: (height, width) of a training crop in the last part of the training.
        final_from: share of the training after which crops have that size; 1 for never.
        epochs: passes over the training images.
        minutes: that training and evaluations may take; the epochs are then set from the measured speed, so that the
            learning rate ends at zero when the time is over. 0: the epochs count.
        batch: images per step, over all processes.
        lr: learning rate after the warm-up, its highest.
        weight_decay: of AdamW (decoupled; none on norms, biases and PReLU), or `adam`'s L2.
        optimizer: "adamw" or "adam".
        warmup: steps of linear warm-up, then the rate falls to zero as (1 - progress) ** power.
        power: 0 keeps the rate constant.
        class_weight_c: classes weigh 1 / ln(c + pixel share) (ENet paper, section 5.1, has c = 1.02).
        prior_correction: alpha; weights that are evaluated and saved have alpha ln(class weight) taken from the last
            layer's bias, as the class weights make rare classes too likely. 0 for none.
        aux: weight of the cross-entropy of a second head, on the encoder's output at 1/8 size (the paper's encoder
            stage, done jointly); the head is not saved.
        lovasz: weight of the Lovasz-softmax loss (a smooth IoU) beside the cross-entropy.
        lovasz_from: share of the training after which it sets in.
        distill: weight of the divergence from the teacher's output, where there is a teacher.
        width: of the network: every layer has this many times ENet's channels. 1 is ENet.
        slopes: of each PReLU: one per "layer", which deploys faster, or one per "channel" as in the authors' ENet.
        scale: smallest and largest zoom, drawn log-uniformly.
        flip: whether half of the crops are mirrored.
        color: strength of the brightness, contrast and saturation jitter.
        tint: strength of each channel's own jitter, as another light or white balance has it.
        noise: largest standard deviation, in grey levels, of the noise that is added; each crop draws its own.
        ema: decay of the weight average that is evaluated and saved, with BatchNorm statistics of its own; 0 for none.
        amp: bfloat16 autocast once the warm-up is over: with random weights bfloat16 learns less.
        eval_every: epochs between evaluations on val; the last epoch is always evaluated.
        patience: evaluations without a better val mIoU after which the run ends; 0 for never. The learning rate is
            laid out over `epochs` all the same, so a run that ends early never had its low rates.
        seed: of initial weights, order, augmentation and dropout.
    """

    size: tuple[int, int] = (360, 480)
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
    """A value of a recipe as it would be typed."""
    if not isinstance(value, tuple):
        return str(value)
    return ("x" if isinstance(value[0], int) else " ").join(map(str, value))
