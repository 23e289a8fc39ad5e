"""CUDA through cuda-bindings."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from ...images import UInt8Array
from .device import Device, Gpu, call_failed, no_device, no_driver


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
            raise no_device(index, count)
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
            raise no_driver("libcuda is not found") from None
        if error.name == "CUDA_ERROR_NO_DEVICE":
            raise no_device(self.index, 0)
        if error.value:
            raise no_driver(f"cuInit failed with {error.name}")

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *values = getattr(self._driver, name)(*arguments)
        if error.value:
            raise call_failed(f"{name} failed with {error.name}")
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
