"""SegNet and U-Net as in their papers, to compare ENet with; all three as runners.

They are not trained, because size and speed do not depend on it. Sides that do not halve evenly are padded before a
pooling and cropped after the unpooling, as SegNet's own CamVid network does at 360x480.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from enet_deploy.artifacts import Metadata
from enet_deploy.classes import CAMVID
from enet_deploy.model import ENet
from enet_deploy.runners.torch_runner import TorchRunner


def _even(x: Tensor) -> Tensor:
    """Pad odd sides with zeros to the right and below; after a ReLU zeros win no window that has a larger value."""
    return F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)) if x.shape[-1] % 2 or x.shape[-2] % 2 else x


def _like(x: Tensor, other: Tensor) -> Tensor:
    """Cropped to the height and width of `other`."""
    return x[..., : other.shape[-2], : other.shape[-1]]


class _Convolutions(nn.Sequential):
    """3x3 convolutions, each with ReLU and, if `norm`, BatchNorm before it."""

    def __init__(self, *channels: int, norm: bool) -> None:
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=not norm)]
            layers += [nn.BatchNorm2d(after)] if norm else []
            layers += [nn.ReLU(inplace=True)]
        super().__init__(*layers)


class SegNet(nn.Module):
    """Badrinarayanan, Kendall, Cipolla, 2017: VGG-16's convolutions, then the same in reverse with max-unpooling.

    (N, 3, H, W) -> logits (N, classes, H, W).
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        plan = [(3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512)]
        self.encoder = nn.ModuleList(_Convolutions(*channels, norm=True) for channels in plan)
        back = [channels[::-1] for channels in plan[:0:-1]]
        self.decoder = nn.ModuleList(_Convolutions(*channels, norm=True) for channels in back)
        self.head = nn.Sequential(_Convolutions(64, 64, norm=True), nn.Conv2d(64, classes, 3, padding=1))
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        pooled: list[tuple[Tensor, Tensor]] = []
        for stage in self.encoder:
            before = stage(x)
            x, indices = self.pool(_even(before))
            pooled.append((before, indices))
        for stage in (*self.decoder, self.head):
            before, indices = pooled.pop()
            x = stage(_like(self.unpool(x, indices), before))
        return x


class UNet(nn.Module):
    """Ronneberger, Fischer, Brox, 2015, with padded convolutions, so that the labels have the image's size.

    (N, 3, H, W) -> logits (N, classes, H, W).
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (64, 128, 256, 512, 1024)
        self.down = nn.ModuleList(
            _Convolutions(before, after, after, norm=False) for before, after in zip((3, *widths), widths, strict=False)
        )
        back = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(before, after, 2, stride=2) for before, after in back)
        self.join = nn.ModuleList(_Convolutions(before, after, after, norm=False) for before, after in back)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for stage in self.down:
            x = stage(F.max_pool2d(_even(x), 2) if skips else x)
            skips.append(x)
        skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            skip = skips.pop()
            x = join(torch.cat((skip, _like(up(x), skip)), dim=1))
        logits: Tensor = self.head(x)
        return logits


NETS: dict[str, Callable[[int], nn.Module]] = {"ENet": partial(ENet, slopes="layer"), "SegNet": SegNet, "U-Net": UNet}


def untrained(name: str, size: tuple[int, int]) -> tuple[nn.Module, Metadata]:
    """A network of `NETS` for CamVid's classes, in evaluation mode, with the same random weights each time."""
    torch.manual_seed(0)
    net = NETS[name](len(CAMVID)).eval()
    return net, Metadata(CAMVID, mean=(104.0, 106.0, 105.0), std=(76.0, 76.0, 75.0), size=size)


class UntrainedRunner(TorchRunner):
    """Runs a network of `NETS` as `TorchRunner` runs ENet's weights."""

    def __init__(self, name: str, size: tuple[int, int]) -> None:
        super().__init__(Path(__file__), size=size)
        self.name, self.frame_size = name, size

    def _load(self) -> tuple[nn.Module, Metadata]:
        return untrained(self.name, self.frame_size)


def open_untrained(name: str, size: tuple[int, int]) -> TorchRunner:
    """Open an `UntrainedRunner`."""
    return UntrainedRunner(name, size).open()


def parameters(net: nn.Module) -> int:
    """Number of trainable parameters; BatchNorm's running statistics are not counted."""
    return sum(parameter.numel() for parameter in net.parameters())


def multiply_adds(net: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-adds for one image of this size, by PyTorch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, *size))
    return int(counter.get_total_flops()) // 2
