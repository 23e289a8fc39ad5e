"""What TensorRT needs of CUDA: memory, streams and graphs of one GPU, and how CUDA's errors are worded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from ...errors import BackendError
from ...images import UInt8Array


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, and its compute capability such as "8.6"."""

    name: str
    compute_capability: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


class Device(ABC):
    """Memory, streams and graphs of one GPU. All handles and addresses are plain integers.

    The caller frees what it allocates. All methods but `retain` and `release` must be called inside
    `with device.current()`, in any thread. They raise BackendError with the name of the CUDA call and its error.
    """

    package: str  # name and version of the package that serves the calls
    can_capture: bool  # whether `capture` can be called
    gpu: Gpu

    def __init__(self, index: int) -> None:
        self.index = index

    @abstractmethod
    def retain(self) -> None:
        """Hold the primary context. It is created if nobody holds it."""

    @abstractmethod
    def release(self) -> None:
        """Release the primary context."""

    @abstractmethod
    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context current to this thread during the block, then restore the previous one."""
        yield

    @abstractmethod
    def alloc(self, size: int) -> int:
        """Allocate `size` bytes on the device; return their address."""

    @abstractmethod
    def free(self, address: int) -> None: ...

    @abstractmethod
    def alloc_pinned(self, size: int) -> UInt8Array:
        """Allocate `size` bytes of page-locked host memory. No view of them may outlive `free_pinned`."""

    @abstractmethod
    def free_pinned(self, array: UInt8Array) -> None: ...

    @abstractmethod
    def create_stream(self) -> int:
        """Create a stream that waits for no other stream, not even the default stream."""

    @abstractmethod
    def destroy_stream(self, stream: int) -> None: ...

    @abstractmethod
    def synchronize(self, stream: int) -> None:
        """Wait until all queued work of the stream is done."""

    @abstractmethod
    def wait_for(self, stream: int, other: int) -> None:
        """Let later work on `stream` start after the work that is now queued on `other`, a stream of any library."""

    @abstractmethod
    def to_device(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        """Queue a copy of a C-contiguous array, which must live and stay unchanged until it is done."""

    @abstractmethod
    def to_host(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """Queue a copy into a C-contiguous array, which must live until it is done."""

    @abstractmethod
    def copy(self, address: int, source: int, size: int, stream: int) -> None:
        """Queue a copy of `size` bytes from `source` to `address`, both on the device."""

    @abstractmethod
    def owns(self, address: int) -> bool:
        """Return whether an address is memory of this device; True if the package cannot tell."""

    def capture(self, stream: int, queue: Callable[[], None]) -> int:
        """Capture what `queue` puts on the stream, without running it. Returns a graph. Needs `can_capture`."""
        raise NotImplementedError

    def launch(self, graph: int, stream: int) -> None:
        """Queue a run of a graph."""
        raise NotImplementedError

    def destroy_graph(self, graph: int) -> None:
        raise NotImplementedError


def no_driver(why: object) -> BackendError:
    return BackendError(f"no NVIDIA driver to be used: {_line(why).rstrip('.')}; install or update it")


def no_device(index: int, count: int) -> BackendError:
    there = "no GPU" if count == 0 else f"{count} GPU{'s' if count > 1 else ''}, cuda:0 the first"
    return BackendError(f"device 'cuda:{index}', but CUDA sees {there}; check nvidia-smi and CUDA_VISIBLE_DEVICES")


def call_failed(what: str) -> BackendError:
    no_memory = "out of memory" in what.lower().replace("_", " ")
    remedy = "; free memory of the GPU, or take fewer frames" if no_memory else ""
    return BackendError(f"CUDA: {_line(what)}{remedy}")


def _line(text: object) -> str:
    return " ".join(str(text).split())
