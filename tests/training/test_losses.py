"""The losses against their definitions."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from enet_deploy.training.losses import TEMPERATURE, cross_entropy, distillation, lovasz_softmax

VOID = 11


def example(classes: int = 4, size: tuple[int, int, int] = (2, 5, 7)) -> tuple[Tensor, Tensor]:
    """Logits that want a gradient, and labels with some void and one class that does not occur."""
    generator = torch.Generator().manual_seed(0)
    n, h, w = size
    logits = torch.randn((n, classes, h, w), generator=generator, requires_grad=True)
    labels = torch.randint(0, classes - 1, size, generator=generator)
    labels[torch.rand(size, generator=generator) < 0.2] = VOID
    return logits, labels


def test_cross_entropy_is_torch_s_weighted_mean() -> None:
    logits, labels = example()
    weight = torch.tensor([0.5, 2.0, 7.0, 1.0])
    expected = F.cross_entropy(logits, labels, weight, ignore_index=VOID)
    torch.testing.assert_close(cross_entropy(logits, labels, weight, VOID), expected)


@pytest.mark.parametrize("loss", ["weighted", "lovasz"])
def test_void_alone_teaches_nothing(loss: str) -> None:
    logits, labels = example()
    labels = torch.full_like(labels, VOID)
    value = {
        "weighted": lambda: cross_entropy(logits, labels, torch.ones(4), VOID),
        "lovasz": lambda: lovasz_softmax(logits, labels, VOID),
    }[loss]()
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == 0 and logits.grad is not None and not logits.grad.any()


def jaccard_loss(wrong: set[int], positives: set[int]) -> float:
    """1 - IoU of one class where the pixels `wrong` are predicted wrongly (Berman et al., equation 6)."""
    return len(wrong) / len(positives | wrong) if wrong else 0.0


def test_lovasz_is_the_extension_of_the_jaccard_loss() -> None:
    """Equation 9: walk through the pixels by falling error, and pay each for what it adds to the set function."""
    logits, labels = example(size=(1, 3, 4))
    scores, truth = logits.detach()[0].flatten(1).softmax(0), labels.flatten()
    known = [int(i) for i in (truth != VOID).nonzero()]
    losses = []
    for number in truth[truth != VOID].unique().tolist():
        positives = {i for i in known if truth[i] == number}
        errors = {i: float(1 - scores[number, i] if i in positives else scores[number, i]) for i in known}
        order = sorted(known, key=lambda i: -errors[i])
        sets = [set(order[:k]) for k in range(len(order) + 1)]
        steps = [jaccard_loss(b, positives) - jaccard_loss(a, positives) for a, b in itertools.pairwise(sets)]
        losses.append(sum(errors[i] * step for i, step in zip(order, steps, strict=True)))
    assert lovasz_softmax(logits, labels, VOID).item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_lovasz_of_a_sure_prediction_is_one_minus_its_iou() -> None:
    labels = torch.tensor([[[0, 0, 0, 1, 1, VOID]]])
    predicted = torch.tensor([[[0, 0, 1, 1, 1, 0]]])  # IoU 2/3 and 2/3: what lies on void does not count
    logits = F.one_hot(predicted, 3).permute(0, 3, 1, 2) * 100.0
    assert lovasz_softmax(logits, labels, VOID).item() == pytest.approx(1 / 3)


def test_distillation_is_the_divergence_from_the_teacher() -> None:
    logits, _ = example()
    teacher = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    p, q = (teacher / TEMPERATURE).softmax(1), (logits / TEMPERATURE).softmax(1)
    expected = TEMPERATURE**2 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation(logits, teacher), expected)
    assert distillation(logits, logits.detach()).item() == pytest.approx(0, abs=1e-6)
