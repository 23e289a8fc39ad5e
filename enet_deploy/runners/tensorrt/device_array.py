"""Arrays on a GPU: torch, cupy, pycuda and all others with `__cuda_array_interface__`."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InputError

_DEFAULT_STREAM = 1  # its handle in the interface and in the driver


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array on a GPU, from its `__cuda_array_interface__`.

    Attributes:
        address: device pointer.
        stream: CUDA stream with work that must finish before the array is used; None if there is none.
        owner: the object that owns the memory; it is kept alive.
    """

    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    writeable: bool
    stream: int | None
    owner: Any

    @classmethod
    def of(cls, value: Any, name: str) -> DeviceArray | None:
        """Wrap `value`; None if it is not on a GPU.

        Raises InputError that says `name` if it is not contiguous, is masked, or has a type that numpy does not have.
        """
        interface = getattr(value, "__cuda_array_interface__", None)
        if interface is None:
            return None
        address, read_only = interface["data"]
        shape = tuple(interface["shape"])
        try:
            dtype = np.dtype(interface["typestr"])
        except (TypeError, ValueError):
            raise InputError(
                f"{name} is of type {interface['typestr']!r}, expected one that numpy has; pass uint8, which is '|u1'"
            ) from None
        strides = interface.get("strides")
        if strides is not None and tuple(strides) != _c_strides(shape, dtype.itemsize):
            raise InputError(f"{name} is strided in GPU memory, expected C-contiguous; pass a contiguous copy")
        if interface.get("mask") is not None:
            raise InputError(f"{name} has a mask, expected an array without one")
        # Before version 3 the interface has no stream, so wait for the default stream
        stream = interface.get("stream") if interface["version"] >= 3 else _DEFAULT_STREAM
        # torch still has version 2, but works on its current stream, which the default stream does not wait for
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.Tensor):
            stream = torch.cuda.current_stream(value.device).cuda_stream or _DEFAULT_STREAM
        return cls(int(address), dtype, shape, not read_only, stream, value)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def overlaps(self, other: DeviceArray) -> bool:
        """Return whether both have bytes in common."""
        return self.address < other.address + other.nbytes and other.address < self.address + self.nbytes

    def __getitem__(self, part: slice) -> DeviceArray:
        """Return a slice along the first axis, with step 1."""
        first, last, _ = part.indices(self.shape[0])
        address = self.address + first * (self.nbytes // self.shape[0])
        return dataclasses.replace(self, address=address, shape=(last - first, *self.shape[1:]))


def _c_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides = [itemsize]
    for side in reversed(shape[1:]):
        strides.append(strides[-1] * side)
    return tuple(reversed(strides)) if shape else ()
