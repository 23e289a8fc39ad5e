"""The training objective as one module: ENet, its auxiliary head, and the losses of a recipe.

The logits are never arranged as an image. ENet's last layer, a transposed 2x2 convolution with stride 2, makes each 2x2
block of pixels from one position of its input. So it equals a 1x1 convolution to four times the channels, whose outputs
are the four corners of the blocks. The losses take them in this layout, (N, C, 4, H/2, W/2), with the labels in the
same order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model import STRIDE, ENet
from .losses import cross_entropy, distillation, lovasz_softmax
from .recipe import Recipe

# row and column of the first block that `sixteenth` takes, for each of the four corners
STARTS = ((0, 0), (0, 2), (2, 0), (2, 2))


class Objective(nn.Module):
    """The loss of a batch, (N, 3, H, W) normalised images and (N, H, W) int64 labels -> scalar float32.

    Args:
        net: the network to train.
        void: the label that the losses ignore.
    """

    def __init__(self, net: ENet, recipe: Recipe, void: int) -> None:
        super().__init__()
        self.net, self.recipe, self.void = net, recipe, void
        self.head = nn.Conv2d(128 * net.width, net.num_classes, 1) if recipe.aux else None

    def forward(
        self, images: Tensor, labels: Tensor, weight: Tensor, teacher: Tensor | None = None, lovasz: bool = False
    ) -> Tensor:
        """Compute the loss.

        Args:
            weight: (C,), class weights.
            teacher: the teacher's logits (N, C, H, W) for the images.
            lovasz: whether to add the Lovasz-softmax loss.
        """
        recipe, void = self.recipe, self.void
        code, *indices = self.net.encode(images)
        features = self.net.decode(code, *indices)
        auxiliary = None if self.head is None else self.head(code).float()
        with torch.autocast(images.device.type, enabled=False):
            features, corners = features.float(), by_corner(labels)
            logits = corner_logits(self.net.fullconv, features)
            loss = cross_entropy(logits, corners, weight, void)
            if auxiliary is not None:
                # the label in the middle of each 8x8 block
                small = labels[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
                loss = loss + recipe.aux * cross_entropy(auxiliary, small, weight, void)
            if lovasz:
                few = sixteenth_logits(self.net.fullconv, features)
                loss = loss + recipe.lovasz * lovasz_softmax(few, sixteenth(corners), void)
            if teacher is not None:
                loss = loss + recipe.distill * distillation(logits, by_corner(teacher.float()))
        return loss

    def configure_optimizer(self) -> torch.optim.Optimizer:
        """The recipe's optimizer of all parameters, the auxiliary head's too."""
        recipe, parameters = self.recipe, list(self.parameters())
        if recipe.optimizer == "adam":
            return torch.optim.Adam(parameters, recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        kernels = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, recipe.lr, weight_decay=recipe.weight_decay, fused=True)


def by_corner(pixels: Tensor) -> Tensor:
    """(..., 2h, 2w) -> (..., 4, h, w): the four pixels of each 2x2 block, in reading order."""
    h, w = pixels.shape[-2] // 2, pixels.shape[-1] // 2
    blocks = pixels.view(*pixels.shape[:-2], h, 2, w, 2)
    return blocks.movedim((-3, -1), (-4, -3)).flatten(-4, -3)


def corner_logits(head: nn.ConvTranspose2d, features: Tensor) -> Tensor:
    """Compute `by_corner(head(features))`, up to the order of sums: features (N, F, h, w) -> (N, C, 4, h, w).

    Args:
        head: kernel 2x2, stride 2, with bias, from F to C channels.
    """
    assert head.bias is not None
    weight = head.weight.permute(1, 2, 3, 0).reshape(-1, head.in_channels, 1, 1)
    # contiguous, not channels_last: a softmax over classes that lie side by side takes several times as long
    logits = F.conv2d(features.contiguous(), weight, head.bias.repeat_interleave(4))
    return logits.view(len(logits), -1, 4, *logits.shape[2:])


def sixteenth(labels: Tensor) -> Tensor:
    """Take every sixteenth pixel of `by_corner`'s result, (N, 4, h, w) -> (N, 4, P).

    They are evenly spaced over the image, the same number for each corner. They estimate the same IoU, and sorting them
    takes a twentieth of the time.
    """
    return torch.stack([labels[:, i, y::4, x::4].flatten(1) for i, (y, x) in enumerate(STARTS)], dim=1)


def sixteenth_logits(head: nn.ConvTranspose2d, features: Tensor) -> Tensor:
    """The logits of the pixels of `sixteenth`: features (N, F, h, w) -> (N, C, 4, P).

    They are computed again from the features: the gradient of a slice of all logits would be as large as all logits.
    """
    assert head.bias is not None
    chosen = torch.stack([features[..., y::4, x::4].flatten(2) for y, x in STARTS], dim=2)  # (N, F, 4, P)
    return torch.einsum("nfip,fci->ncip", chosen, head.weight.flatten(2)) + head.bias[:, None, None]
