"""CUDA memory, streams and graphs for TensorRT, through cuda-bindings or pycuda. Nothing is loaded at import.

Both packages work in the device's primary context, as torch and TensorRT do. It is pushed before each use and popped
after it, so other code in the process is not disturbed. If both are installed, cuda-bindings is used: it comes in
wheels (torch installs it), captures CUDA graphs, and knows which device an address belongs to. pycuda does neither.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
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


class CudaBindings(Device):
    """Uses cuda.bindings.driver, whose functions return (error, values...)."""

    can_capture = True

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._driver = import_module("cuda.bindings.driver")
        self.package = f"cuda-bindings {import_module('cuda.bindings').__version__}"
        self._start()
        count = self._call("cuDeviceGetCount")
        if index >= count:
            raise _no_device(index, count)
        self._handle = self._call("cuDeviceGet", index)
        name = bytes(self._call("cuDeviceGetName", 256, self._handle))  # padded to 256 bytes
        self.gpu = Gpu(name.split(b"\0")[0].decode(), f"{self._capability('MAJOR')}.{self._capability('MINOR')}")
        self._context: Any = None

    def _capability(self, part: str) -> int:
        attribute = getattr(self._driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}")
        return int(self._call("cuDeviceGetAttribute", attribute, self._handle))

    def _start(self) -> None:
        try:
            error = self._driver.cuInit(0)[0]
        except RuntimeError:  # the first call searches libcuda
            raise _no_driver("libcuda is not found") from None
        if error.name == "CUDA_ERROR_NO_DEVICE":
            raise _no_device(self.index, 0)
        if error.value:
            raise _no_driver(f"cuInit failed with {error.name}")

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._driver, name)(*arguments)
        if error.value:
            raise _failed(f"{name} failed with {error.name}")
        return values[0] if values else None

    def retain(self) -> None:
        self._context = self._call("cuDevicePrimaryCtxRetain", self._handle)

    def release(self) -> None:
        self._context = None
        self._call("cuDevicePrimaryCtxRelease", self._handle)

    @contextmanager
    def current(self) -> Iterator[None]:
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def alloc(self, size: int) -> int:
        return int(self._call("cuMemAlloc", size))

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def alloc_pinned(self, size: int) -> UInt8Array:
        address = int(self._call("cuMemHostAlloc", size, 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def free_pinned(self, array: UInt8Array) -> None:
        self._call("cuMemFreeHost", array.ctypes.data)

    def create_stream(self) -> int:
        return int(self._call("cuStreamCreate", self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value))

    def destroy_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def wait_for(self, stream: int, other: int) -> None:
        event = self._call("cuEventCreate", self._driver.CUevent_flags.CU_EVENT_DISABLE_TIMING.value)
        try:
            self._call("cuEventRecord", event, other)
            self._call("cuStreamWaitEvent", stream, event, 0)
        finally:
            self._call("cuEventDestroy", event)  # freed by CUDA after the event has passed

    def to_device(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, stream)

    def to_host(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, stream)

    def copy(self, address: int, source: int, size: int, stream: int) -> None:
        self._call("cuMemcpyDtoDAsync", address, source, size, stream)

    def owns(self, address: int) -> bool:
        ordinal = self._driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        error, device = self._driver.cuPointerGetAttribute(ordinal, address)
        return not error.value and int(device) == int(self._handle)  # an error means memory unknown to CUDA

    def capture(self, stream: int, queue: Callable[[], None]) -> int:
        # Thread-local: other threads, such as torch's, may allocate memory during the capture
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream, mode)
        try:
            queue()
        except BaseException:
            self._driver.cuStreamEndCapture(stream)  # its own error would hide the first one
            raise
        graph = self._call("cuStreamEndCapture", stream)
        try:
            return int(self._call("cuGraphInstantiate", graph, 0))
        finally:
            self._call("cuGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", graph)


# pycuda can release a primary context only in the thread that retained it, and then leaves it on that thread's stack.
# So one context per device is held until the process ends, as pycuda.autoprimaryctx does. Memory and streams are freed.
_pycuda_contexts: dict[int, Any] = {}


class PyCuda(Device):
    """Uses pycuda.driver, whose objects can be freed only while their context is current."""

    can_capture = False

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._driver = import_module("pycuda.driver")
        self.package = f"pycuda {import_module('pycuda').VERSION_TEXT}"
        try:
            self._driver.init()
            count = self._driver.Device.count()
        except self._driver.Error as error:  # also raised if there is a driver but no device
            raise _no_driver(error) from None
        if index >= count:
            raise _no_device(index, count)
        device = self._driver.Device(index)
        major, minor = device.compute_capability()
        self.gpu = Gpu(device.name(), f"{major}.{minor}")
        self._objects: dict[int, Any] = {}  # pycuda's objects behind addresses and handles

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.Error as error:  # "cuMemAlloc failed: out of memory"
            raise _failed(str(error)) from None

    def retain(self) -> None:
        if self.index not in _pycuda_contexts:
            _pycuda_contexts[self.index] = self._call(self._driver.Device(self.index).retain_primary_context)

    def release(self) -> None:
        self._objects.clear()

    @contextmanager
    def current(self) -> Iterator[None]:
        self._call(_pycuda_contexts[self.index].push)
        try:
            yield
        finally:
            self._call(self._driver.Context.pop)

    def alloc(self, size: int) -> int:
        memory = self._call(self._driver.mem_alloc, size)
        self._objects[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        self._call(self._objects.pop(address).free)

    def alloc_pinned(self, size: int) -> UInt8Array:
        array: UInt8Array = self._call(self._driver.pagelocked_empty, size, np.uint8)
        return array

    def free_pinned(self, array: UInt8Array) -> None:
        allocation: Any = array.base
        self._call(allocation.free)

    def create_stream(self) -> int:
        stream = self._call(self._driver.Stream, 1)  # CU_STREAM_NON_BLOCKING
        self._objects[stream.handle] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        del self._objects[stream]

    def synchronize(self, stream: int) -> None:
        self._call(self._objects[stream].synchronize)

    def wait_for(self, stream: int, other: int) -> None:
        self._call(self._driver.Context.synchronize)  # pycuda accepts only streams that it created

    def to_device(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        self._call(self._driver.memcpy_htod_async, address, array, self._objects[stream])

    def to_host(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        self._call(self._driver.memcpy_dtoh_async, array, address, self._objects[stream])

    def copy(self, address: int, source: int, size: int, stream: int) -> None:
        self._call(self._driver.memcpy_dtod_async, address, source, size, self._objects[stream])

    def owns(self, address: int) -> bool:
        return True


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
            raise _no_driver(f"{module} does not load: {error}") from None
        else:
            return device_class(index)
    raise BackendError("no package to reach CUDA is installed; pip install cuda-bindings, or pycuda")


def _no_driver(why: object) -> BackendError:
    return BackendError(f"no NVIDIA driver to be used: {_line(why).rstrip('.')}; install or update it")


def _no_device(index: int, count: int) -> BackendError:
    there = "no GPU" if count == 0 else f"{count} GPU{'s' if count > 1 else ''}, cuda:0 the first"
    return BackendError(f"device 'cuda:{index}', but CUDA sees {there}; check nvidia-smi and CUDA_VISIBLE_DEVICES")


def _failed(what: str) -> BackendError:
    no_memory = "out of memory" in what.lower().replace("_", " ")
    remedy = "; free memory of the GPU, or take fewer frames" if no_memory else ""
    return BackendError(f"CUDA: {_line(what)}{remedy}")


def _line(text: object) -> str:
    return " ".join(str(text).split())
