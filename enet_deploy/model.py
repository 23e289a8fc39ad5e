"""ENet for semantic segmentation: the whole network is in this file.

Paszke, Chaurasia, Kim, Culurciello: "ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation",
2016, https://arxiv.org/abs/1606.02147. If the paper and the authors' Lua code (e-lab/ENet-training,
train/models/encoder.lua and decoder.lua) differ, this file follows the code: biases, a PReLU slope per channel, no
activation before the sum, ReLU and no dropout in the decoder.

Shapes in comments are (channels x height x width) for one 3x512x512 image.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .activations import PReLU

BN_EPS = 1e-3  # Torch7's default, which the authors used
STRIDE = 8  # the encoder halves the image three times


class InitialBlock(nn.Module):
    """3x3 stride-2 convolution to 13 channels, concatenated with 2x2 max-pooling of the image (paper, figure 2a).

    (N, 3, H, W) -> (N, 16, H/2, W/2)
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels - in_channels, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.bn = nn.BatchNorm2d(out_channels, eps=BN_EPS)
        self.act = PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        # autocast leaves pooling in float32, and float32 here would make every later sum float32
        y: Tensor = self.act(self.bn(torch.cat([maps, self.pool(x).to(maps.dtype)], dim=1)))
        return y


def _conv_bn(conv: nn.Module, channels: int) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(channels, eps=BN_EPS)]


def _activation(channels: int, relu: bool) -> nn.Module:
    return nn.ReLU() if relu else PReLU(channels)


class RegularBottleneck(nn.Module):
    """Residual bottleneck at constant size (paper, figure 2b).

    1x1 reduction to a quarter of the channels; a 3x3, dilated 3x3, or asymmetric 1x5 + 5x1 convolution; 1x1 expansion;
    spatial dropout. No activation before the sum.

    (N, C, H, W) -> (N, C, H, W)
    """

    def __init__(
        self, channels: int, *, dilation: int = 1, asymmetric: bool = False, dropout: float = 0.0, relu: bool = False
    ) -> None:
        super().__init__()
        inner = channels // 4
        if asymmetric:
            # first 1 high x 5 wide, then 5x1, without an activation between them
            middle: nn.Module = nn.Sequential(
                nn.Conv2d(inner, inner, (1, 5), padding=(0, 2), bias=False),
                nn.Conv2d(inner, inner, (5, 1), padding=(2, 0)),
            )
        else:
            middle = nn.Conv2d(inner, inner, 3, padding=dilation, dilation=dilation)
        self.branch = nn.Sequential(
            *_conv_bn(nn.Conv2d(channels, inner, 1, bias=False), inner),
            _activation(inner, relu),
            *_conv_bn(middle, inner),
            _activation(inner, relu),
            *_conv_bn(nn.Conv2d(inner, channels, 1, bias=False), channels),
            nn.Dropout2d(dropout),
        )
        self.act = _activation(channels, relu)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(x + self.branch(x))
        return y


class DownsamplingBottleneck(nn.Module):
    """Bottleneck that halves the size; its shortcut is max-pooling, with zeros for the additional channels.

    (N, C, H, W) -> ((N, D, H/2, W/2), indices): the pooling indices of the C channels, for the decoder's unpooling.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dropout: float) -> None:
        super().__init__()
        inner = out_channels // 4
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.branch = nn.Sequential(
            *_conv_bn(nn.Conv2d(in_channels, inner, 2, stride=2, bias=False), inner),
            PReLU(inner),
            *_conv_bn(nn.Conv2d(inner, inner, 3, padding=1), inner),
            PReLU(inner),
            *_conv_bn(nn.Conv2d(inner, out_channels, 1, bias=False), out_channels),
            nn.Dropout2d(dropout),
        )
        self.extra_channels = out_channels - in_channels
        self.act = PReLU(out_channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shortcut, indices = self.pool(x)
        shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.extra_channels))  # zeros after the pooled channels
        return self.act(shortcut + self.branch(x)), indices


class UpsamplingBottleneck(nn.Module):
    """Bottleneck that doubles the size; its shortcut is max-unpooling to the positions of the encoder's pooling.

    (N, C, H, W), indices of (N, D, H, W) -> (N, D, 2H, 2W)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        inner = out_channels // 4
        self.shortcut = nn.Sequential(*_conv_bn(nn.Conv2d(in_channels, out_channels, 1, bias=False), out_channels))
        self.unpool = nn.MaxUnpool2d(2)
        self.branch = nn.Sequential(
            *_conv_bn(nn.Conv2d(in_channels, inner, 1, bias=False), inner),
            nn.ReLU(),
            *_conv_bn(nn.ConvTranspose2d(inner, inner, 3, stride=2, padding=1, output_padding=1), inner),
            nn.ReLU(),
            *_conv_bn(nn.Conv2d(inner, out_channels, 1, bias=False), out_channels),
        )
        self.act = nn.ReLU()

    def forward(self, x: Tensor, indices: Tensor) -> Tensor:
        shortcut, branch = self.unpool(self.shortcut(x), indices), self.branch(x)
        y: Tensor = self.act(shortcut.to(branch.dtype) + branch)  # autocast leaves unpooling in float32 too
        return y


def _context_stage(channels: int) -> nn.Sequential:
    """Bottlenecks x.1 to x.8 of stages 2 and 3: the same eight, 128x64x64 throughout."""
    return nn.Sequential(
        RegularBottleneck(channels, dropout=0.1),
        RegularBottleneck(channels, dilation=2, dropout=0.1),
        RegularBottleneck(channels, asymmetric=True, dropout=0.1),
        RegularBottleneck(channels, dilation=4, dropout=0.1),
        RegularBottleneck(channels, dropout=0.1),
        RegularBottleneck(channels, dilation=8, dropout=0.1),
        RegularBottleneck(channels, asymmetric=True, dropout=0.1),
        RegularBottleneck(channels, dilation=16, dropout=0.1),
    )


class ENet(nn.Module):
    """ENet (paper, table 1): 363,791 parameters with 11 classes.

    Args:
        num_classes: number of predicted classes. Void is not one of them: it is the loss's `ignore_index`.
        width: 1 is ENet; with 2, 3, ... every layer has that many times its channels, for a teacher.
        slopes: PReLU slopes, one per "channel" as in ENet, or one per "layer"; the latter is a LeakyReLU, which some
            backends fuse into the convolution before it.

    `forward` takes normalised images, (N, 3, H, W) float with H and W divisible by 8, in the channel order of the
    training (BGR for this project's weights), and returns logits (N, num_classes, H, W).
    """

    def __init__(self, num_classes: int, width: int = 1, slopes: Literal["channel", "layer"] = "channel") -> None:
        super().__init__()
        self.num_classes, self.width, self.slopes = num_classes, width, slopes
        c16, c64, c128 = 16 * width, 64 * width, 128 * width
        self.initial = InitialBlock(out_channels=c16)  # 16x256x256
        self.bottleneck1_0 = DownsamplingBottleneck(c16, c64, dropout=0.01)  # 64x128x128
        self.stage1 = nn.Sequential(*(RegularBottleneck(c64, dropout=0.01) for _ in range(4)))  # 64x128x128
        self.bottleneck2_0 = DownsamplingBottleneck(c64, c128, dropout=0.1)  # 128x64x64
        self.stage2 = _context_stage(c128)  # 128x64x64
        self.stage3 = _context_stage(c128)  # 128x64x64
        self.bottleneck4_0 = UpsamplingBottleneck(c128, c64)  # 64x128x128
        self.stage4 = nn.Sequential(*(RegularBottleneck(c64, relu=True) for _ in range(2)))  # 64x128x128
        self.bottleneck5_0 = UpsamplingBottleneck(c64, c16)  # 16x256x256
        self.stage5 = nn.Sequential(RegularBottleneck(c16, relu=True))  # 16x256x256
        self.fullconv = nn.ConvTranspose2d(c16, num_classes, 2, stride=2)  # num_classes x512x512
        self.apply(_initialise)
        if slopes == "layer":
            self.share_slopes()

    def share_slopes(self) -> None:
        """Replace the slopes of each PReLU by one, their mean."""
        self.slopes = "layer"
        for module in self.modules():
            if isinstance(module, nn.PReLU):
                module.weight = nn.Parameter(module.weight.detach().mean(0, keepdim=True))
                module.num_parameters = 1

    def renew_classes(self, num_classes: int) -> None:
        """Replace the last layer by a new one with random weights, for this number of classes."""
        self.num_classes = num_classes
        self.fullconv = nn.ConvTranspose2d(16 * self.width, num_classes, 2, stride=2)
        _initialise(self.fullconv)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the encoder's output, (N, 128 width, H/8, W/8), and the indices of its first and second pooling."""
        x = self.initial(x)
        x, indices1 = self.bottleneck1_0(x)
        x = self.stage1(x)
        x, indices2 = self.bottleneck2_0(x)
        return self.stage3(self.stage2(x)), indices1, indices2

    def decode(self, x: Tensor, indices1: Tensor, indices2: Tensor) -> Tensor:
        """Return the last layer's input, (N, 16 width, H/2, W/2), from the results of `encode`."""
        x = self.stage4(self.bottleneck4_0(x, indices2))
        y: Tensor = self.stage5(self.bottleneck5_0(x, indices1))
        return y

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fullconv(self.decode(*self.encode(x)))
        return logits


def _initialise(module: nn.Module) -> None:
    # He et al. 2015; for transposed convolutions the fan-in is not exact, but close enough
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Segmenter(nn.Module):
    """A network with normalisation before it and argmax after it: camera frames in, label maps out. This is deployed.

    Args:
        net: (N, 3, H, W) float -> logits (N, C, H, W), C <= 255.
        mean, std: per channel in the frames' order, on the scale of [0, 255].
        dtype: of the network's input and computations.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.net = net
        self.dtype = dtype
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def normalise(self, frames: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 BGR in [0, 255] -> (N, 3, H, W) of `dtype`, channels_last.

        Computed in float32 also for a float16 network: rounding frame - mean to float16 would change as many labels as
        all its other rounding.
        """
        x = frames.to(self.mean.dtype).permute(0, 3, 1, 2)
        return ((x - self.mean) / self.std).to(self.dtype)

    def logits(self, frames: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 BGR in [0, 255] -> (N, C, H, W)."""
        logits: Tensor = self.net(self.normalise(frames))
        return logits

    def forward(self, frames: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 BGR in [0, 255] -> labels (N, H, W) uint8, class ids."""
        return self.logits(frames).argmax(dim=1).to(torch.uint8)
