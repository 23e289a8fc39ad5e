"""Exportable max-unpooling: 2x2 max-pooling that remembers its winners, and the unpooling that uses them.

`torch.nn.MaxPool2d(2, return_indices=True)` and `torch.nn.MaxUnpool2d(2)` cannot be deployed: TensorRT refuses the
indices of MaxPool and has no MaxUnpool, and the exporters turn the pair into int64 scatters. The two modules here
compute the same with MaxPool, Resize (nearest), Equal, Cast and Mul alone:

    pool:    p = maxpool(x)
             winners = maxpool((x == up(p)) * rank)      rank = [[4, 3], [2, 1]] repeated over the plane
    unpool:  up(y) * (up(winners) == rank)

Ties: of the places that equal the maximum, the winner has the highest rank. This is the first place of the window in
reading order, as in PyTorch. A comparison with the maximum alone would give the value to *every* tied place, and ties
are common (flat sky, saturated pixels, quantised values).

The last step is a product, because ONNX Runtime takes three times as long for where(..., up(y), 0). It gives 0 or -0,
which are equal, and it needs finite values: an infinity would put NaN beside its place.

For a comparison of forms in the whole network: `python -m enet_deploy.benchmarks.studies.unpool_forms`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from enet_deploy.errors import InputError

_OTHERS = (  # modules that give or take indices too
    *(nn.MaxPool1d, nn.MaxPool3d, nn.MaxUnpool1d, nn.MaxUnpool3d, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)


def _up(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, 2H, 2W): repeat each value four times."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class _Ranked(nn.Module):
    """Base of both modules: the window of ranks. It is not stored with the weights and is a constant in the graph.

    It is a buffer, because a CUDA graph cannot capture the creation of a tensor from Python numbers.
    """

    window: Tensor

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self.register_buffer("window", torch.tensor([[4.0, 3.0], [2.0, 1.0]], device=device), persistent=False)

    def rank(self, x: Tensor) -> Tensor:
        """Return a (H, W) plane of 2x2 windows [[4, 3], [2, 1]], with the size and dtype of x."""
        return self.window.to(x.dtype).repeat(x.shape[-2] // 2, x.shape[-1] // 2)


class MaxPool2x2(_Ranked):
    """`MaxPool2d(2, return_indices=True)` with winners instead of indices.

    (N, C, H, W) -> (pooled (N, C, H/2, W/2), winners of the same shape and dtype). A winner is 4, 3, 2 or 1 if the
    first, second, third or fourth place of the window (in reading order) holds the maximum; of equal places the first
    wins. H and W must be even; any float dtype. NaN has no winner (0): PyTorch passes NaN on, here its place stays
    zero.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[-2] % 2 or x.shape[-1] % 2:
            raise InputError(f"input of shape {tuple(x.shape)}, expected even height and width: pad it by one")
        pooled = F.max_pool2d(x, 2)
        return pooled, F.max_pool2d((x == _up(pooled)).to(x.dtype) * self.rank(x), 2)


class MaxUnpool2x2(_Ranked):
    """`MaxUnpool2d(2)` with the winners of `MaxPool2x2` instead of indices.

    (N, C, H, W), winners (N, C, H, W) -> (N, C, 2H, 2W): each value is at its winner's place, all other places are
    zero. A value that is not finite makes NaN in its whole window.
    """

    def forward(self, x: Tensor, winners: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        size = (2 * x.shape[-2], 2 * x.shape[-1])
        if output_size is not None and tuple(output_size[-2:]) != size:
            raise InputError(f"output_size {tuple(output_size)}, expected it to end in {size}: twice the input's")
        places = _up(winners)
        return _up(x) * (places == self.rank(places)).to(x.dtype)


def with_exportable_unpooling(model: nn.Module) -> nn.Module:
    """Return a copy of any encoder-decoder with exportable 2x2 pooling and unpooling.

    The model must use the modules `nn.MaxPool2d` and `nn.MaxUnpool2d`, not their functions, and must pass the indices
    on unchanged. Unpooled values must be finite (see `MaxUnpool2x2`).

    Raises InputError if the model has no such modules, or if one has a kernel or stride other than 2, padding, dilation
    or ceil_mode, or if another kind of pooling returns indices.
    """
    if not any(getattr(module, "return_indices", isinstance(module, nn.MaxUnpool2d)) for module in model.modules()):
        raise InputError(
            f"{type(model).__name__} has neither an nn.MaxPool2d with return_indices nor an nn.MaxUnpool2d, expected "
            "one to replace: calls of torch.nn.functional must become modules first"
        )
    model = copy.deepcopy(model)
    device = next((tensor.device for tensor in chain(model.parameters(), model.buffers())), None)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() skips the second name of a module
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
    if isinstance(module, _OTHERS) and getattr(module, "return_indices", True):
        raise InputError(f"{module}, expected nn.MaxPool2d and nn.MaxUnpool2d alone to use indices")
    return module


def _pair(value: object) -> tuple[object, ...]:
    """Sides as PyTorch takes them, one number for both or two in a tuple or list -> two."""
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


def _require_2x2(module: nn.MaxPool2d | nn.MaxUnpool2d, dilation: object = 1, ceil_mode: bool = False) -> None:
    given = (module.kernel_size, module.stride, module.padding, dilation)
    if ceil_mode or [_pair(value) for value in given] != [(2, 2), (2, 2), (0, 0), (1, 1)]:
        raise InputError(f"{module}, expected kernel and stride 2 without padding, dilation or ceil_mode")
