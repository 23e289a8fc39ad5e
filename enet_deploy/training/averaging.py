"""The exponential moving average (EMA) of a network's weights, which is what is evaluated and saved."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

from ..model import ENet


class WeightAverage:
    """A copy of a network whose parameters follow the original's.

    `torch.optim.swa_utils.AveragedModel` does the same, but waits for a GPU several times a step.

    Args:
        net: the network that is trained.
        decay: share of the average that stays at each step, in the long run.
    """

    def __init__(self, net: ENet, decay: float) -> None:
        self.net, self.decay = copy.deepcopy(net).requires_grad_(False), decay
        self._averages: list[Tensor] = list(self.net.parameters())
        self._parameters: list[Tensor] = list(net.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the network's weights after `step`, counted from 0.

        The decay grows with the steps, so that the first weights are soon forgotten.
        """
        decay = min(self.decay, (1 + step) / (10 + step)) if step else 0.0
        torch._foreach_lerp_(self._averages, self._parameters, 1 - decay)

    def estimate_statistics(self, images: Iterable[Tensor]) -> None:
        """Estimate BatchNorm's statistics of the averaged weights, which no training step used.

        `images` are normalised batches, (N, 3, H, W).

        Izmailov et al.: "Averaging weights leads to wider optima and better generalization", 2018, section 3.2.
        """
        update_bn(images, self.net)
