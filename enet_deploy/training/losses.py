"""Losses. None of them reads a value on the host or selects by a mask, so they never wait for a GPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor, void: int) -> Tensor:
    """Weighted mean over the labelled pixels; 0, not nan, if every pixel is void.

    Args:
        logits: (N, C, ...) float.
        labels: (N, ...) int64.
        weight: (C,), class weights.
        void: the label to ignore.
    """
    total = F.cross_entropy(logits, labels, weight, ignore_index=void, reduction="sum")
    # void may be no class: look its weight up as class 0's, then drop it
    labelled = labels != void
    divisor = (weight[labels * labelled] * labelled).sum()
    return total / divisor.clamp_min(1e-6)


def lovasz_softmax(logits: Tensor, labels: Tensor, void: int) -> Tensor:
    """A smooth Jaccard loss: the mean over the classes in `labels` of the Lovasz extension of 1 - IoU.

    Berman, Triki, Blaschko: "The Lovasz-Softmax loss", CVPR 2018, equation 11 with the classes present in the batch.

    Args:
        logits: (N, C, ...) float.
        labels: (N, ...) integer.
        void: the label to ignore.
    """
    classes = logits.shape[1]
    scores = logits.softmax(dim=1).transpose(0, 1).flatten(1)  # (C, pixels)
    truth = labels.flatten() == torch.arange(classes, device=labels.device)[:, None]
    # a void pixel has no error in any class: it is sorted last and adds nothing
    errors = (truth.to(scores.dtype) - scores).abs() * (labels.flatten() != void)
    errors, order = errors.sort(dim=1, descending=True)
    hit = truth.gather(1, order).to(scores.dtype)
    positives = hit.sum(dim=1, keepdim=True)
    # the Jaccard loss if the first k pixels are wrong, and what each pixel adds to it
    jaccard = 1 - (positives - hit.cumsum(1)) / (positives + (1 - hit).cumsum(1)).clamp_min(1)
    gain = torch.diff(jaccard, dim=1, prepend=torch.zeros_like(positives))
    present = (positives[:, 0] > 0).to(scores.dtype)
    return ((errors * gain).sum(dim=1) * present).sum() / present.sum().clamp_min(1)


TEMPERATURE = 2.0


def distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all pixels, also void ones, of KL(teacher || student), both softened by `TEMPERATURE`.

    Hinton, Vinyals, Dean: "Distilling the knowledge in a neural network", 2015, section 2; scaled by T squared, so
    that its gradients keep their size.

    Args:
        logits, teacher: (N, C, ...) float.
    """
    student = F.log_softmax(logits / TEMPERATURE, dim=1)
    target = F.log_softmax(teacher / TEMPERATURE, dim=1)
    pixels = logits.numel() / logits.shape[1]
    return F.kl_div(student, target, reduction="sum", log_target=True) * TEMPERATURE**2 / pixels
