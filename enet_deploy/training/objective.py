"""What training minimises, as one module: ENet, its auxiliary head, and the losses of a recipe.

The logits are never made as an image. ENet's last layer, a transposed 2x2 convolution of stride 2, makes each 2x2 block
of pixels from one place of its input: it is a 1x1 convolution to four times the channels, whose outputs belong to the
blocks' four corners. The losses take them as they are, (N, C, 4, H/2, W/2), with the labels in the same order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model import STRIDE, ENet
from .losses import cross_entropy, distillation, lovasz_softmax
from .recipe import Recipe

STARTS = (
    (0, 0),
    (0, 2),
    (2, 0),
    (2, 2),
)  # row and column of the first block in `sixteenth`, for each of the four corners


class Objective(nn.Module):
    """The loss of a batch, (N, 3, H, W) normalised images and (N, H, W) int64 labels -> scalar float32.

    Args:
        net: what is trained.
        void: the label that teaches nothing.
    """

    def __init__(self, net: ENet, recipe: Recipe, void: int) -> None:
        super().__init__()
        self.net, self.recipe, self.void = net, recipe, void
        self.head = nn.Conv2d(128 * net.width, net.num_classes, 1) if recipe.aux else None

    def forward(
        self, images: Tensor, labels: Tensor, weight: Tensor, teacher: Tensor | None = None, lovasz: bool = False
    ) -> Tensor:
        """The loss.

        Args:
            weight: (C,), of the classes.
            teacher: logits (N, C, H, W) of the images, to be learnt too.
            lovasz: whether the Lovasz-softmax loss is in.
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
                # the label at the middle of each 8x8 block
                small = labels[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
                loss = loss + recipe.aux * cross_entropy(auxiliary, small, weight, void)
            if lovasz:
                few = sixteenth_logits(self.net.fullconv, features)
                loss = loss + recipe.lovasz * lovasz_softmax(few, sixteenth(corners), void)
            if teacher is not None:
                loss = loss + recipe.distill * distillation(logits, by_corner(teacher.float()))
        return loss


def by_corner(pixels: Tensor) -> Tensor:
    """(..., 2h, 2w) -> (..., 4, h, w): of each 2x2 block its four pixels, in reading order."""
    h, w = pixels.shape[-2] // 2, pixels.shape[-1] // 2
    blocks = pixels.view(*pixels.shape[:-2], h, 2, w, 2)
    return blocks.movedim((-3, -1), (-4, -3)).flatten(-4, -3)


def corner_logits(head: nn.ConvTranspose2d, features: Tensor) -> Tensor:
    """`by_corner(head(features))`, up to the order of sums: features (N, F, h, w) -> (N, C, 4, h, w).

    Args:
        head: kernel 2x2, stride 2, with bias, from F to C channels.
    """
    assert head.bias is not None
    weight = head.weight.permute(1, 2, 3, 0).reshape(-1, head.in_channels, 1, 1)
    # planes, and not channels last: a softmax over classes that lie side by side takes several times as long
    logits = F.conv2d(features.contiguous(), weight, head.bias.repeat_interleave(4))
    return logits.view(len(logits), -1, 4, *logits.shape[2:])


def sixteenth(labels: Tensor) -> Tensor:
    """(N, 4, h, w) of `by_corner` -> (N, 4, P): every sixteenth pixel, as many of each corner, evenly over the image.

    As many estimate the same IoU, and are sorted in a twentieth of the time.
    """
    return torch.stack([labels[:, i, y::4, x::4].flatten(1) for i, (y, x) in enumerate(STARTS)], dim=1)


def sixteenth_logits(head: nn.ConvTranspose2d, features: Tensor) -> Tensor:
    """Of the pixels of `sixteenth` what `corner_logits` gives: features (N, F, h, w) -> (N, C, 4, P).

    Computed again from the features: cut out of all logits, their gradient would be a tensor as large as those.
    """
    assert head.bias is not None
    chosen = torch.stack([features[..., y::4, x::4].flatten(2) for y, x in STARTS], dim=2)  # (N, F, 4, P)
    return torch.einsum("nfip,fci->ncip", chosen, head.weight.flatten(2)) + head.bias[:, None, None]
