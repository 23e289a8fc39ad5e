"""Train form -> deploy form: the same function of the frames, with fewer and exportable operations.

Each rewrite takes a network in eval mode and returns a copy. The caller's network is never changed.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from enet_deploy.artifacts import Metadata
from enet_deploy.errors import InputError
from enet_deploy.model import DownsamplingBottleneck, ENet, InitialBlock, Segmenter

from .unpool import with_exportable_unpooling


class SummedInitialBlock(nn.Module):
    """`InitialBlock` with folded BatchNorm, and with a sum instead of the concatenation.

    The convolution has as many output maps as the block; the maps of the pooled channels are zero. A 1x1 convolution
    adds the pooled channels there. Both contain their part of the BatchNorm. To concatenate 13 and 3 maps costs
    OpenVINO two changes of layout; the sum is fused with the convolution.
    """

    def __init__(self, block: InitialBlock) -> None:
        super().__init__()
        scale, shift = _affine(block.bn)
        maps, pooled = block.conv.out_channels, block.conv.in_channels
        assert block.conv.bias is not None
        self.conv = nn.Conv2d(pooled, maps + pooled, 3, stride=2, padding=1)
        weight = F.pad(block.conv.weight, (0, 0, 0, 0, 0, 0, 0, pooled))  # more output channels
        self.conv.weight = nn.Parameter((weight * scale.view(-1, 1, 1, 1)).detach())
        self.conv.bias = nn.Parameter((F.pad(block.conv.bias, (0, pooled)) * scale + shift).detach())
        self.place = nn.Conv2d(pooled, maps + pooled, 1, bias=False)
        self.place.weight = nn.Parameter(torch.diag(scale)[:, maps:, None, None].clone())
        self.pool, self.act = block.pool, block.act

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 16, H/2, W/2)"""
        # pool each channel as an image of its own: OpenVINO would pad three channels to 16
        pooled = self.pool(x.flatten(0, 1).unsqueeze(1)).squeeze(1).unflatten(0, (-1, x.shape[1]))
        y: Tensor = self.act(self.conv(x) + self.place(pooled))
        return y


class SummedDownsampling(nn.Module):
    """`DownsamplingBottleneck` whose shortcut is widened by a 1x1 convolution of ones instead of padding.

    It is as fast in float on a CPU, and int8 kernels support it. With the padding, ONNX Runtime changed the layout
    around each later sum, which took a tenth of the time of its int8 graph.
    """

    def __init__(self, block: DownsamplingBottleneck) -> None:
        super().__init__()
        self.pool, self.branch, self.act = block.pool, block.branch, block.act
        first = block.branch[0]
        assert isinstance(first, nn.Conv2d)
        ones = torch.eye(first.in_channels + block.extra_channels)[:, : first.in_channels, None, None]
        self.place = nn.Conv2d(ones.shape[1], ones.shape[0], 1, bias=False)
        self.place.weight = nn.Parameter(ones.to(first.weight.dtype))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the same as `DownsamplingBottleneck`."""
        shortcut, indices = self.pool(x)
        return self.act(self.place(shortcut) + self.branch(x)), indices


def _copy_in_eval_mode(net: ENet) -> ENet:
    if net.training:
        raise InputError("the network is in train mode, where it depends on batch and chance; call net.eval() first")
    return copy.deepcopy(net)


def _affine(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return scale and shift per channel of a BatchNorm in eval mode."""
    assert bn.running_mean is not None and bn.running_var is not None
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    return scale.detach(), (bn.bias - bn.running_mean * scale).detach()


def fold_batchnorm(net: ENet) -> ENet:
    """Return a copy with each BatchNorm folded into the convolution before it. Raises InputError in train mode."""
    net = _copy_in_eval_mode(net)
    net.initial = SummedInitialBlock(net.initial)  # type: ignore[assignment]
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
    if isinstance(layer, nn.Sequential):  # the asymmetric pair: the BatchNorm follows its second convolution
        layer = layer[-1]
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    folded = fuse_conv_bn_eval(layer, bn, transpose=isinstance(layer, nn.ConvTranspose2d))
    layer.weight, layer.bias = folded.weight, folded.bias


def drop_inactive(net: ENet) -> ENet:
    """Return a copy without the layers that do nothing in eval mode: dropout, and identities left by folding.

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
    """`nn.PReLU` with slopes of at most 1, as max(x, slope * x): for x > 0 the first is larger, else the second.

    ONNX Runtime's PRelu is slow on a CPU: with this form the network took 53 ms instead of 73 ms, in one interleaved
    run at 360x480 on 2 cores (1.32.0). OpenVINO 2026.4.1 took 35 ms with both.
    """

    slope: Tensor

    def __init__(self, prelu: nn.PReLU) -> None:
        super().__init__()
        self.register_buffer("slope", prelu.weight.detach().clone().view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, x * self.slope)


def rewrite_prelu(net: ENet) -> ENet:
    """Return a copy with each PReLU rewritten: one slope to a LeakyReLU, a slope per channel to a `MaxPReLU`.

    A PReLU with slopes per channel of which one is above 1 stays: the maximum would be another function.
    """
    net = _copy_in_eval_mode(net)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.PReLU) and child.num_parameters == 1:
                setattr(parent, name, nn.LeakyReLU(child.weight.item()))
            elif isinstance(child, nn.PReLU) and bool((child.weight <= 1).all()):
                setattr(parent, name, MaxPReLU(child))
    return net


def sum_in_downsampling(net: ENet) -> ENet:
    """Return a copy with each downsampling bottleneck replaced by a `SummedDownsampling`."""
    net = _copy_in_eval_mode(net)
    for name, child in list(net.named_children()):
        if isinstance(child, DownsamplingBottleneck):
            setattr(net, name, SummedDownsampling(child))
    return net


class HalfSizeHead(nn.Module):
    """ENet's last layer (transposed convolution, kernel and stride 2) without the step to the frame's size.

    The layer makes 2x2 pixels of one pixel, each with its own weights: so it equals four 1x1 convolutions. They are
    four and not one convolution to 4 C maps, because OpenVINO needs planes for the argmax and is slow to convert 16 to
    64 maps to planes: 6 ms of 40 ms at 512x512, in four parts 0.6 ms.
    """

    def __init__(self, head: nn.ConvTranspose2d) -> None:
        super().__init__()
        assert head.kernel_size == head.stride == (2, 2) and head.bias is not None
        self.pixels = nn.ModuleList()
        for weight in head.weight.detach().flatten(2).unbind(2):  # (in, out) of one pixel, in reading order
            conv = nn.Conv2d(head.in_channels, head.out_channels, 1)
            conv.weight = nn.Parameter(weight.T[:, :, None, None].clone())
            conv.bias = nn.Parameter(head.bias.detach().clone())
            self.pixels.append(conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 16, H/2, W/2) -> (N, 4, C, H/2, W/2), for `interleave`."""
        return torch.stack([conv(x) for conv in self.pixels], dim=1)


def head_at_half_size(net: ENet) -> ENet:
    """Return a copy that gives the logits of the four pixels of each place: (N, 3, H, W) -> (N, 4, C, H/2, W/2)."""
    net = _copy_in_eval_mode(net)
    assert isinstance(net.fullconv, nn.ConvTranspose2d)
    net.fullconv = HalfSizeHead(net.fullconv)  # type: ignore[assignment]
    return net


def interleave(x: Tensor) -> Tensor:
    """Put the four pixels of each place side by side, in reading order: (N, 4, ..., H, W) -> (N, ..., 2H, 2W)."""
    height, width = x.shape[-2:]
    between = x.shape[2:-2]
    # one axis at a time, first the columns, then the rows: ONNX Runtime is slow if several axes move at once
    wide = x.reshape(-1, 2, 2, *x.shape[2:]).movedim(2, -1).reshape(-1, 2, *between, height, 2 * width)
    return wide.movedim(1, -2).reshape(-1, *between, 2 * height, 2 * width)


class DeploySegmenter(Segmenter):
    """`Segmenter` for a network with `head_at_half_size`.

    The argmax runs at half size too, so no float tensor has the frame's size; only the labels are interleaved. The cast
    to uint8 comes last, because TensorRT supports this type only at inputs and outputs.
    """

    def scores(self, frames: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 BGR in [0, 255] -> (N, 4, C, H/2, W/2): the logits of the four pixels of each place."""
        return super().logits(frames)

    def logits(self, frames: Tensor) -> Tensor:
        return interleave(self.scores(frames))

    def forward(self, frames: Tensor) -> Tensor:
        return labels_of(self.scores(frames))


def labels_of(scores: Tensor) -> Tensor:
    """Turn the output of `DeploySegmenter.scores` into labels (N, H, W) uint8."""
    return interleave(scores.argmax(dim=2).to(torch.int32)).to(torch.uint8)


def confidence_of(scores: Tensor, temperature: float) -> Tensor:
    """Turn the output of `DeploySegmenter.scores` into confidences (N, H, W) uint8.

    A confidence is 255 times the softmax probability of the label. The largest logit over the sum is written as one
    over the sum of exp(logit - largest), so that the only divisions are at the end, one for each pixel.
    """
    four = scores.flatten(0, 1)  # OpenVINO takes eight times as long to reduce five dimensions
    below = four - four.amax(dim=1, keepdim=True)
    total = (below * (1 / temperature)).exp().sum(dim=1).reshape(-1, 4, *four.shape[2:])
    return interleave((255 / total + 0.5).to(torch.int32)).to(torch.uint8)


def to_deploy(net: ENet, metadata: Metadata, half: bool = False) -> DeploySegmenter:
    """Return the deploy form of a network in eval mode. Raises InputError in train mode.

    It maps frames (N, H, W, 3) uint8 BGR in [0, 255] to labels (N, H, W) uint8. Normalisation and argmax are inside,
    BatchNorm is folded, dropout is removed, PReLU is a LeakyReLU or a maximum, unpooling has exportable operations, and
    the head works at half size.

    Args:
        half: float16 weights, and float16 arithmetic between normalisation and argmax.
    """
    for rewrite in (fold_batchnorm, drop_inactive, rewrite_prelu, sum_in_downsampling, head_at_half_size):
        net = rewrite(net)
    exportable = with_exportable_unpooling(net)
    dtype = torch.float16 if half else torch.float32
    return DeploySegmenter(exportable.to(dtype), metadata.mean, metadata.std, dtype).eval()
