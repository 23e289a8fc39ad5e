"""The GPU, through cuda-bindings or pycuda. Neither is loaded at import.

Both work in the device's primary context, as torch and TensorRT do. It is pushed before each use and popped after it,
so other code in the process is not disturbed. If both are installed, cuda-bindings is used: it comes in wheels (torch
installs it), captures CUDA graphs, and knows which device an address belongs to. pycuda does neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from ...errors import BackendError
from .cuda_bindings import CudaBindings
from .device import Device as Device
from .device import Gpu as Gpu
from .device import no_driver
from .pycuda import PyCuda

_PACKAGES: tuple[tuple[str, type[Device]], ...] = (("cuda.bindings.driver", CudaBindings), ("pycuda.driver", PyCuda))


def _device(index: int) -> Device:
    """Open a device with the first package that is installed."""
    for module, device_class in _PACKAGES:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise BackendError(f"{module} is installed without a part of it: {error}; install it again") from None
        except (ImportError, OSError) as error:  # pycuda is linked against the driver
            raise no_driver(f"{module} does not load: {error}") from None
        else:
            return device_class(index)
    raise BackendError("no package to reach CUDA is installed; pip install cuda-bindings, or pycuda")


def find_gpu(index: int = 0) -> Gpu:
    """Return the GPU of this index. Raises BackendError without such a GPU, a driver, or a CUDA package."""
    return _device(index).gpu


@contextmanager
def open_device(index: int = 0) -> Iterator[Device]:
    """Hold the primary context of the GPU of this index during the block. Raises BackendError as `find_gpu`."""
    device = _device(index)
    device.retain()
    try:
        yield device
    finally:
        device.release()
