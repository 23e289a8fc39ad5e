"""Max-unpooling that exports: 2x2 max-pooling that remembers its winners, and the unpooling that puts them back.

`torch.nn.MaxPool2d(2, return_indices=True)` and `torch.nn.MaxUnpool2d(2)` do not deploy: TensorRT refuses the
indices of MaxPool and has no MaxUnpool, and the exporters make int64 scatters of the pair. These two modules
compute the same with MaxPool, Resize (nearest), Equal, Cast and Mul alone:

    pool:    p = maxpool(x)
             winners = maxpool((x == up(p)) * rank)      rank = [[4, 3], [2, 1]] repeated over the plane
    unpool:  up(y) * (up(winners) == rank)

Of the places that equal the maximum, the winner is the one of highest rank: the first in the window, which is
PyTorch's choice. Comparing with the maximum alone, without the rank, gives *every* tied place the value, and ties
are common (flat sky, saturated pixels, anything quantised).

A product, and not where(..., up(y), 0), which ONNX Runtime takes three times as long for. It gives 0 or -0, which are
equal, and asks for finite values: an infinity would become NaN beside its place.

The forms that were compared, in the whole network: `python -m enet_deploy.benchmarks.studies.unpool_forms`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from enet_deploy.errors import InputError


def _up(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, 2H, 2W), each value four times."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class _Ranked(nn.Module):
    """Has the window of ranks, which no weights file holds: a constant in the exported graph.

    A buffer, because a CUDA graph cannot hold a tensor that is made of Python's numbers.
    """

    window: Tensor

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self.register_buffer("window", torch.tensor([[4.0, 3.0], [2.0, 1.0]], device=device), persistent=False)

    def rank(self, x: Tensor) -> Tensor:
        """(H, W) plane of 2x2 windows [[4, 3], [2, 1]], of x's size and dtype."""
        return self.window.to(x.dtype).repeat(x.shape[-2] // 2, x.shape[-1] // 2)


class MaxPool2x2(_Ranked):
    """`MaxPool2d(2, return_indices=True)`, with winners in place of indices.

    (N, C, H, W) -> ((N, C, H/2, W/2), winners of the same shape and dtype): 4, 3, 2 or 1 where the first, second,
    third or fourth place of the window holds the maximum, in reading order and the first one where several do.
    H and W even, any float dtype. NaN has no winner (0): PyTorch passes NaN on, here its place is left zero.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[-2] % 2 or x.shape[-1] % 2:
            raise InputError(f"input of shape {tuple(x.shape)}, expected even height and width: pad it by one")
        pooled = F.max_pool2d(x, 2)
        return pooled, F.max_pool2d((x == _up(pooled)).to(x.dtype) * self.rank(x), 2)


class MaxUnpool2x2(_Ranked):
    """`MaxUnpool2d(2)`, with the winners of `MaxPool2x2` in place of its indices.

    (N, C, H, W), winners (N, C, H, W) -> (N, C, 2H, 2W): each value at its winner's place, zeros elsewhere; NaN in the
    whole window of a value that is not finite.
    """

    def forward(self, x: Tensor, winners: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        size = (2 * x.shape[-2], 2 * x.shape[-1])
        if output_size is not None and tuple(output_size[-2:]) != size:
            raise InputError(f"output_size {tuple(output_size)}, expected it to end in {size}: twice the input's")
        places = _up(winners)
        return _up(x) * (places == self.rank(places)).to(x.dtype)


def with_exportable_unpooling(model: nn.Module) -> nn.Module:
    """A copy of any encoder-decoder in which every 2x2 pooling with indices and its unpooling is of this module.

    What is unpooled has to be finite (see `MaxUnpool2x2`).

    The model has to use the modules `nn.MaxPool2d` and `nn.MaxUnpool2d`, not their functions, and hand the indices on
    as they are. Raises InputError for a pooling with indices, or an unpooling, whose kernel or stride is not 2 or that
    has padding, dilation or ceil_mode.
    """
    if not any(getattr(module, "return_indices", isinstance(module, nn.MaxUnpool2d)) for module in model.modules()):
        raise InputError(
            f"{type(model).__name__} has neither an nn.MaxPool2d with return_indices nor an nn.MaxUnpool2d, expected "
            "one to replace: calls of torch.nn.functional have to become modules first"
        )
    model = copy.deepcopy(model)
    device = next((tensor.device for tensor in chain(model.parameters(), model.buffers())), None)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() leaves out a second name of one module
            if child is not None:
                parent._modules[name] = _exportable(child, device)
    return _exportable(model, device)


def _exportable(module: nn.Module, device: torch.device | None) -> nn.Module:
    if isinstance(module, nn.MaxPool2d) and module.return_indices:
        _require_2x2(module, module.dilation, module.ceil_mode)
        return MaxPool2x2(device)
    if isinstance(module, nn.MaxUnpool2d):
        _require_2x2(module)
        return MaxUnpool2x2(device)
    return module


def _require_2x2(module: nn.MaxPool2d | nn.MaxUnpool2d, dilation: object = 1, ceil_mode: bool = False) -> None:
    plain = {2, (2, 2)}
    if (
        module.kernel_size not in plain
        or module.stride not in plain
        or module.padding not in {0, (0, 0)}
        or dilation not in {1, (1, 1)}
        or ceil_mode
    ):
        raise InputError(f"{module}, expected kernel and stride 2 without padding, dilation or ceil_mode")
