"""CUDA through pycuda."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from ...images import UInt8Array
from .device import Device, Gpu, call_failed, no_device, no_driver

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
            raise no_driver(error) from None
        if index >= count:
            raise no_device(index, count)
        device = self._driver.Device(index)
        major, minor = device.compute_capability()
        self.gpu = Gpu(device.name(), f"{major}.{minor}")
        self._objects: dict[int, Any] = {}  # pycuda's objects behind addresses and handles

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._driver.Error as error:  # "cuMemAlloc failed: out of memory"
            raise call_failed(str(error)) from None

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
