"""Prior correction: trained with class weights, a network takes rare classes for more likely than they are.

Weights w multiply what a class costs, so the logits that are learnt are those of class priors multiplied by w. Taking
alpha ln(w) from the logits takes the weights back, with alpha = 1 wholly. It is a change of the last layer's bias.
Menon et al.: "Long-tail learning via logit adjustment", ICLR 2021, section 4.1.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..artifacts import Metadata
from ..errors import ArtifactError
from ..model import ENet
from ..weights import load_weights

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)  # tried at the end of a run
KEY = "prior_correction"  # in the details of the metadata


def corrected(net: ENet, weight: Tensor, alpha: float) -> ENet:
    """A copy of the network with alpha ln(weight) taken from its last bias.

    Args:
        weight: (C,), positive, of the classes in the loss.
    """
    net = copy.deepcopy(net)
    if alpha:
        assert net.fullconv.bias is not None
        with torch.no_grad():
            net.fullconv.bias -= alpha * weight.log().to(net.fullconv.bias.device)
    return net


def record(weight: Tensor, alpha: float) -> dict[str, Any]:
    """What the metadata keeps of a correction, for `load_uncorrected`."""
    return {"alpha": alpha, "class_weights": weight.tolist()}


def load_uncorrected(path: str | Path) -> tuple[ENet, Metadata]:
    """`load_weights` with a correction taken back: weights as the loss knew them, to train on from.

    The metadata says nothing of the correction any more. Raises ArtifactError where it says something else of it than
    `record`, and for all that `load_weights` raises it for.
    """
    net, metadata = load_weights(path)
    if (had := metadata.details.pop(KEY, None)) is None:
        return net, metadata
    try:
        weight, alpha = torch.tensor(had["class_weights"], dtype=torch.float32), float(had["alpha"])
        undone = corrected(net, weight, -alpha)
        if weight.shape != (net.num_classes,) or not all(p.isfinite().all() for p in undone.parameters()):
            raise ValueError("expected a positive weight per class")
    except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path} has a {KEY} in its metadata that cannot be taken back ({error!r}); expected what enet-train writes"
        ) from None
    return undone, metadata
