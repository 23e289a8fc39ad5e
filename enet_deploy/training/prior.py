"""Prior correction: a network trained with class weights overestimates how likely rare classes are.

Class weights w multiply the loss of a class, so the network learns the logits of class priors multiplied by w.
Subtracting alpha ln(w) from the logits undoes that, with alpha = 1 completely. Only the last layer's bias changes.
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
KEY = "prior_correction"  # in the metadata's details


def corrected(net: ENet, weight: Tensor, alpha: float | Tensor) -> ENet:
    """A copy of the network with alpha ln(weight) subtracted from its last bias.

    Args:
        weight: (C,), positive class weights of the loss.
        alpha: strength, of all classes or (C,). It may be on another device, as may `weight`.
    """
    net = copy.deepcopy(net)
    bias = net.fullconv.bias
    assert bias is not None
    with torch.no_grad():
        bias -= torch.as_tensor(alpha).to(bias) * weight.to(bias).log()
    return net


def record(weight: Tensor, alpha: float | Tensor) -> dict[str, Any]:
    """The metadata's entry for a correction, which `load_uncorrected` reads. Arguments as of `corrected`."""
    return {"alpha": alpha.tolist() if isinstance(alpha, Tensor) else alpha, "class_weights": weight.tolist()}


def load_uncorrected(path: str | Path) -> tuple[ENet, Metadata]:
    """Read weights as `load_weights` does, and undo their prior correction, to train on from them.

    The returned metadata has no entry for the correction. Raises ArtifactError if the entry is not one of `record`, and
    if `load_weights` does.
    """
    return uncorrected(*load_weights(path), path)


def uncorrected(net: ENet, metadata: Metadata, path: str | Path) -> tuple[ENet, Metadata]:
    """As `load_uncorrected`, of weights that were read from `path`. The entry is taken out of `metadata`."""
    if (had := metadata.details.pop(KEY, None)) is None:
        return net, metadata
    try:
        weight, alpha = torch.tensor(had["class_weights"]).float(), torch.tensor(had["alpha"]).float()
        undone = corrected(net, weight, -alpha)
        shapes_fit = weight.shape == (net.num_classes,) and alpha.shape in ((), weight.shape)
        if not shapes_fit or not all(p.isfinite().all() for p in undone.parameters()):
            raise ValueError("expected a positive weight per class, and an alpha for all or for each")
    except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path} has a {KEY} in its metadata that cannot be undone ({error!r}); expected one written by enet-train"
        ) from None
    return undone, metadata
