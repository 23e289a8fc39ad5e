"""The training objective against the plain form: the network's logits as an image, and `torch.nn.functional`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SIZE
from torch import Tensor, nn
from torch.nn import functional as F

from enet_deploy.activations import PReLU
from enet_deploy.bundled import weights_file
from enet_deploy.classes import CAMVID
from enet_deploy.data import open_data
from enet_deploy.model import ENet, Segmenter
from enet_deploy.training.losses import distillation, lovasz_softmax
from enet_deploy.training.objective import Objective, by_corner, corner_logits, sixteenth, sixteenth_logits
from enet_deploy.training.recipe import Recipe
from enet_deploy.weights import load_weights

VOID = CAMVID.void


@pytest.mark.parametrize("slope", [0.25, -0.4, 1.0, 1.5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "channels last"])
def test_one_slope_has_torch_s_values_and_gradients(slope: float, layout: torch.memory_format) -> None:
    x = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    found = []
    for module in (PReLU(1, slope), nn.PReLU(1, slope)):
        own = x.clone().requires_grad_()
        y = module(own)
        (y * torch.linspace(-1, 2, y.numel()).view(y.shape)).sum().backward()
        assert y.is_contiguous(memory_format=layout)
        found.append((y.detach(), own.grad, module.weight.grad))
    for ours, torch_s in zip(*found, strict=True):
        torch.testing.assert_close(ours, torch_s)


def test_one_slope_in_bfloat16_sums_its_gradient_in_float32() -> None:
    module, x = PReLU(1), -torch.ones(1, 1, 100, 100, dtype=torch.bfloat16)
    module(x).sum().backward()
    assert module.weight.grad is not None and module.weight.grad.item() == -10_000  # 2**8 is bfloat16's last odd step


def test_corners_of_blocks_in_reading_order() -> None:
    pixels = torch.arange(24).view(1, 4, 6)
    assert by_corner(pixels)[0, :, 1, 2].tolist() == [16, 17, 22, 23]


def test_logits_by_corner_are_those_of_the_transposed_convolution() -> None:
    head, features = nn.ConvTranspose2d(16, 11, 2, stride=2), torch.randn(2, 16, 8, 12)
    torch.testing.assert_close(corner_logits(head, features), by_corner(head(features)))


def test_a_sixteenth_of_the_pixels_lies_evenly_with_as_many_of_each_corner() -> None:
    head, features = nn.ConvTranspose2d(16, 11, 2, stride=2), torch.randn(2, 16, 8, 12)
    places = torch.arange(2 * 16 * 24).view(2, 16, 24)
    chosen = sixteenth(by_corner(places))
    assert chosen.shape == (2, 4, 6) and chosen.unique().numel() == chosen.numel()
    per_tile = np.bincount((chosen[0].flatten() // 24 // 8 * 3 + chosen[0].flatten() % 24 // 8).numpy())
    assert per_tile.tolist() == [4] * 6  # of each 8x8 tile of the image
    logits = head(features).flatten(2)
    expected = torch.stack([logits[n][:, index % 384] for n, index in enumerate(chosen)])
    torch.testing.assert_close(sixteenth_logits(head, features), expected)


@pytest.fixture
def batch(scenes: Path) -> tuple[ENet, Tensor, Tensor]:
    """A bundled network, ready to train but for dropout, and four normalised scenes with their labels."""
    net, metadata = load_weights(weights_file("enet-camvid-train"))
    for module in net.train().modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    data = open_data(scenes, "train")
    pairs = [data[i] for i in range(4)]
    images = torch.from_numpy(np.stack([image for image, _ in pairs]))
    labels = torch.from_numpy(np.stack([label for _, label in pairs])).long()
    labels[:, :9, :30] = VOID
    assert labels.shape[1:] == SIZE
    return net, Segmenter(net, metadata.mean, metadata.std).normalise(images), labels


WEIGHT = torch.linspace(1, 5, len(CAMVID))


def plain_loss(net: ENet, head: nn.Conv2d, recipe: Recipe, x: Tensor, labels: Tensor, teacher: Tensor) -> Tensor:
    """The objective of a recipe as it is written in textbooks."""
    code, *indices = net.encode(x)
    logits = net.fullconv(net.decode(code, *indices))
    loss = F.cross_entropy(logits, labels, WEIGHT, ignore_index=VOID)
    loss = loss + recipe.aux * F.cross_entropy(head(code), labels[:, 4::8, 4::8], WEIGHT, ignore_index=VOID)
    few = [
        (slice(y + i // 2, None, 8), slice(x + i % 2, None, 8))
        for i, (y, x) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)])
    ]
    some = torch.cat([logits[:, :, rows, columns].flatten(2) for rows, columns in few], 2)
    truth = torch.cat([labels[:, rows, columns].flatten(1) for rows, columns in few], 1)
    loss = loss + recipe.lovasz * lovasz_softmax(some, truth, VOID)
    return loss + recipe.distill * distillation(logits, teacher)


def test_objective_has_the_plain_one_s_value_and_gradients(batch: tuple[ENet, Tensor, Tensor]) -> None:
    net, x, labels = batch
    recipe = Recipe(aux=0.4, lovasz=0.7, distill=0.5)
    objective = Objective(net, recipe, VOID)
    assert objective.head is not None
    teacher = torch.randn(4, len(CAMVID), *SIZE, generator=torch.Generator().manual_seed(1))
    loss = objective(x, labels, WEIGHT, teacher, lovasz=True)
    gradients = torch.autograd.grad(loss, list(objective.parameters()))
    expected = plain_loss(net, objective.head, recipe, x, labels, teacher)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, plain in zip(gradients, torch.autograd.grad(expected, list(objective.parameters())), strict=True):
        assert (ours - plain).norm() <= 1e-3 * plain.norm() + 1e-5


def test_bfloat16_gradients_point_the_same_way(batch: tuple[ENet, Tensor, Tensor]) -> None:
    """From trained weights; from random ones they do not, which is why the warm-up is in float32.

    On scenes that are known by heart little but noise is left of the gradient; on photographs it is 0.9999.
    """
    net, x, labels = batch
    objective = Objective(net, Recipe(aux=0.4), VOID)
    whole, half = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(objective.parameters()))])
        for loss in (
            objective(x, labels, WEIGHT, lovasz=True),
            _in_bfloat16(objective, x, labels),
        )
    )
    assert F.cosine_similarity(whole, half, dim=0) > 0.98


def _in_bfloat16(objective: Objective, x: Tensor, labels: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        loss: Tensor = objective(x, labels, WEIGHT, lovasz=True)
    assert loss.dtype is torch.float32
    return loss


def test_under_autocast_the_network_is_in_bfloat16_from_end_to_end(batch: tuple[ENet, Tensor, Tensor]) -> None:
    """One block in float32 would make every sum after it float32, and every copy between them."""
    net, x, _ = batch
    found: dict[str, torch.dtype] = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d | nn.PReLU | nn.ReLU):
            module.register_forward_hook(lambda *seen, name=name: found.update({name: seen[2].dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        net(x)
    assert {name: dtype for name, dtype in found.items() if dtype is not torch.bfloat16} == {} and len(found) > 100
