"""Train form -> deploy form: the same function of the frames, as fewer and exportable operations.

Each rewrite takes a network in eval mode and returns a copy; the caller's network is never edited.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from enet_deploy.artifacts import Metadata
from enet_deploy.errors import InputError
from enet_deploy.model import ENet, InitialBlock, Segmenter

from .unpool import with_exportable_unpooling


class FoldedInitialBlock(nn.Module):
    """`InitialBlock` without its BatchNorm, which spans both halves of the concatenation.

    The convolution takes its share into weights and bias. The pooled channels are scaled and shifted after the
    pooling, where they are a quarter of the size; before it a negative scale would turn maxima into minima.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, block: InitialBlock) -> None:
        super().__init__()
        scale, shift = _affine(block.bn)
        maps = block.conv.out_channels
        conv = copy.deepcopy(block.conv)
        assert conv.bias is not None
        conv.weight = nn.Parameter(conv.weight * scale[:maps].view(-1, 1, 1, 1))
        conv.bias = nn.Parameter(conv.bias * scale[:maps] + shift[:maps])
        self.conv, self.pool, self.act = conv, block.pool, block.act
        self.register_buffer("scale", scale[maps:].view(1, -1, 1, 1))
        self.register_buffer("shift", shift[maps:].view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 16, H/2, W/2)"""
        y: Tensor = self.act(torch.cat([self.conv(x), self.pool(x) * self.scale + self.shift], dim=1))
        return y


def _copy_in_eval_mode(net: ENet) -> ENet:
    if net.training:
        raise InputError("the network is in train mode, where it depends on batch and chance; call net.eval() first")
    return copy.deepcopy(net)


def _affine(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The scale and shift per channel that a BatchNorm in eval mode applies."""
    assert bn.running_mean is not None and bn.running_var is not None
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    return scale.detach(), (bn.bias - bn.running_mean * scale).detach()


def fold_batchnorm(net: ENet) -> ENet:
    """A copy in which every BatchNorm has gone into the convolution before it. Raises InputError in train mode."""
    net = _copy_in_eval_mode(net)
    net.initial = FoldedInitialBlock(net.initial)  # type: ignore[assignment]
    for module in list(net.modules()):
        if isinstance(module, nn.Sequential):
            _fold_sequence(module)
    return net


def _fold_sequence(sequence: nn.Sequential) -> None:
    before: nn.Module | None = None
    for name, layer in list(sequence.named_children()):
        if isinstance(layer, nn.BatchNorm2d) and before is not None:
            _fold_into(before, layer)
            sequence[int(name)] = nn.Identity()
        before = layer


def _fold_into(layer: nn.Module, bn: nn.BatchNorm2d) -> None:
    if isinstance(layer, nn.Sequential):  # the asymmetric pair: only its second half meets the BatchNorm
        layer = layer[-1]
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    folded = fuse_conv_bn_eval(layer, bn, transpose=isinstance(layer, nn.ConvTranspose2d))
    layer.weight, layer.bias = folded.weight, folded.bias


def drop_inactive(net: ENet) -> ENet:
    """A copy without the layers that do nothing in eval mode: dropout, and the places folding left empty.

    Raises InputError in train mode.
    """
    net = _copy_in_eval_mode(net)
    for module in list(net.modules()):
        if isinstance(module, nn.Sequential):
            kept = [layer for layer in module if not isinstance(layer, nn.Dropout2d | nn.Identity)]
            del module[:]
            module.extend(kept)
    return net


class MaxPReLU(nn.Module):
    """`nn.PReLU` with slopes of at most 1, written max(x, slope * x): for x > 0 the first is larger, else the second.

    ONNX Runtime's PRelu is slow on a CPU: with this form the whole network took 53 ms where it took 73 before, in one
    interleaved run at 360x480 on 2 cores (1.32.0), and OpenVINO 2026.4.1 the same 35 ms with both.
    """

    slope: Tensor

    def __init__(self, prelu: nn.PReLU) -> None:
        super().__init__()
        self.register_buffer("slope", prelu.weight.detach().clone().view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, x * self.slope)


def prelu_as_max(net: ENet) -> ENet:
    """A copy in which every PReLU is a maximum, but those with a slope above 1, where it would not be the same."""
    net = _copy_in_eval_mode(net)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.PReLU) and bool((child.weight <= 1).all()):
                setattr(parent, name, MaxPReLU(child))
    return net


def head_at_half_size(net: ENet) -> ENet:
    """A copy that ends at half the frame's size: (N, 3, H, W) -> (N, 4 C, H/2, W/2), by pixel and then by class.

    A transposed convolution of kernel and stride 2 makes each of its 2x2 pixels of one pixel of its input, with
    weights of their own: a 1x1 convolution to four times the classes, whose maps `interleave` puts side by side.
    """
    net = _copy_in_eval_mode(net)
    head = net.fullconv
    assert isinstance(head, nn.ConvTranspose2d) and head.kernel_size == head.stride == (2, 2) and head.bias is not None
    conv = nn.Conv2d(head.in_channels, 4 * head.out_channels, 1)
    conv.weight = nn.Parameter(head.weight.detach().permute(2, 3, 1, 0).reshape(-1, head.in_channels, 1, 1).clone())
    conv.bias = nn.Parameter(head.bias.detach().repeat(4))
    net.fullconv = conv  # type: ignore[assignment]
    return net


def interleave(x: Tensor) -> Tensor:
    """The four pixels of each place, in reading order, side by side: (N, 4, ..., H, W) -> (N, ..., 2H, 2W)."""
    height, width = x.shape[-2:]
    between = x.shape[2:-2]
    # one axis at a time, first into the columns, then into the rows: ONNX Runtime is slow where several move at once
    wide = x.reshape(-1, 2, 2, *x.shape[2:]).movedim(2, -1).reshape(-1, 2, *between, height, 2 * width)
    return wide.movedim(1, -2).reshape(-1, *between, 2 * height, 2 * width)


class DeploySegmenter(Segmenter):
    """`Segmenter` of a network with its `head_at_half_size`.

    The largest score is found at half size too, so that nothing of the frame's size is ever a float: only the labels
    are put side by side. They become uint8 last, the one place where TensorRT has that type.
    """

    def scores(self, frames: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 BGR in [0, 255] -> (N, 4, C, H/2, W/2): the logits of every place's four pixels."""
        maps = super().logits(frames)
        return maps.reshape(-1, 4, maps.shape[1] // 4, *maps.shape[2:])

    def logits(self, frames: Tensor) -> Tensor:
        return interleave(self.scores(frames))

    def forward(self, frames: Tensor) -> Tensor:
        return labels_of(self.scores(frames))


def labels_of(scores: Tensor) -> Tensor:
    """What `DeploySegmenter.scores` gives -> labels (N, H, W) uint8."""
    return interleave(scores.argmax(dim=2).to(torch.int32)).to(torch.uint8)


def to_deploy(net: ENet, metadata: Metadata, half: bool = False) -> DeploySegmenter:
    """The deploy form of a network in eval mode.

    frames (N, H, W, 3) uint8 BGR in [0, 255] -> labels (N, H, W) uint8, with normalisation and argmax inside,
    BatchNorm folded, dropout gone, PReLU as a maximum, unpooling in exportable operations and the head at half size.
    `half` makes the weights and all arithmetic between normalisation and argmax float16.
    """
    exportable = with_exportable_unpooling(head_at_half_size(prelu_as_max(drop_inactive(fold_batchnorm(net)))))
    dtype = torch.float16 if half else torch.float32
    return DeploySegmenter(exportable.to(dtype), metadata.mean, metadata.std, dtype).eval()
