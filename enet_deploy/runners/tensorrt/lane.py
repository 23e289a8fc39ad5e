"""A lane: all that one batch needs on its way through the device."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import BackendError, InputError
from ...images import UInt8Array
from .cuda import Device
from .device_array import DeviceArray
from .engine import Engine, Execution

_ALIGNMENT = 256  # in bytes, of every address that TensorRT gets
_MAX_GRAPHS = 4  # CUDA graphs per lane; each keeps an execution, which is device memory


class Lane:
    """A CUDA stream, an execution, and buffers on host and device, for one batch at a time.

    Lanes share only the engine, so several can work at the same time.

    Args:
        capture: run a repeated shape as a CUDA graph.
        report: is called with the name and the milliseconds of each layer that runs.
    """

    def __init__(
        self, device: Device, engine: Engine, capture: bool, report: Callable[[str, float], None] | None = None
    ) -> None:
        self._device, self._engine, self._capture, self._report = device, engine, capture, report
        self._kept, self._buffers = ExitStack(), ExitStack()
        self._capacity = 0  # frames
        self._addresses: dict[str, int] = {}  # input or output -> its buffer on the device
        self._pinned: dict[str, UInt8Array] = {}
        self._graphs: OrderedDict[tuple[int, ...], tuple[int, Execution]] = OrderedDict()
        self._seen: deque[tuple[int, ...]] = deque(maxlen=_MAX_GRAPHS)
        self._evicted = False  # whether a graph was dropped for another
        self._job: tuple[Any, UInt8Array | DeviceArray] | None = None  # frames, which must stay alive, and labels

    def open(self) -> None:
        self._stream = self._device.create_stream()
        self._kept.callback(self._device.destroy_stream, self._stream)
        self._execution = self._engine.create_execution(graphs=self._report is None)
        if self._report is not None:
            self._execution.watch(self._report)
        self._kept.callback(self._execution.close)
        self._reserve(self._engine.batch or 1)

    def close(self) -> None:
        """Free everything. An error does not stop the rest."""
        with self._kept, self._buffers:
            try:
                if self._capacity:
                    self._device.synchronize(self._stream)
            finally:
                self._drop_graphs()

    def start(self, frames: UInt8Array | DeviceArray, out: UInt8Array | DeviceArray) -> None:
        """Queue a batch: (N, H, W, 3) -> (N, H, W), both uint8 and C-contiguous. `finish` fills `out`."""
        count = frames.shape[0]
        self._reserve(count)
        self._job = (frames, out)
        addresses = {**self._addresses, "frames": self._copy_in(frames)}
        direct = isinstance(out, DeviceArray) and out.address % _ALIGNMENT == 0
        if isinstance(out, DeviceArray):
            self._wait_for(out, "out")
            if direct:
                addresses["labels"] = out.address
        self._compute(count, addresses)
        if isinstance(out, DeviceArray):
            if not direct:
                self._device.copy(out.address, addresses["labels"], out.nbytes, self._stream)
        else:
            self._device.to_host(self._pinned["labels"][: out.nbytes], addresses["labels"], self._stream)

    def finish(self, **others: npt.NDArray[Any]) -> None:
        """Wait for the batch. Its labels are then in `out`; further outputs, "logits" or "confidence", as named."""
        assert self._job is not None
        for name, array in others.items():
            self._device.to_host(array, self._addresses[name], self._stream)
        self._device.synchronize(self._stream)
        _, out = self._job
        self._job = None
        if not isinstance(out, DeviceArray):
            np.copyto(out.reshape(-1), self._pinned["labels"][: out.nbytes])

    def settle(self) -> None:
        """Wait for queued work after an error, so that the lane can be used again."""
        if self._job is not None:
            self._job = None
            with suppress(BackendError):  # the first error is the one to report
                self._device.synchronize(self._stream)

    def _copy_in(self, frames: UInt8Array | DeviceArray) -> int:
        """Queue the copy to the device if it is needed. Returns the address that TensorRT reads the frames from."""
        buffer = self._addresses["frames"]
        if not isinstance(frames, DeviceArray):
            staged = self._pinned["frames"][: frames.nbytes]
            np.copyto(staged, frames.reshape(-1))
            self._device.to_device(buffer, staged, self._stream)
            return buffer
        self._wait_for(frames, "frames")
        if frames.address % _ALIGNMENT == 0:
            return frames.address
        self._device.copy(buffer, frames.address, frames.nbytes, self._stream)
        return buffer

    def _wait_for(self, array: DeviceArray, name: str) -> None:
        if not self._device.owns(array.address):
            raise InputError(f"{name} is not in the memory of cuda:{self._device.index}; copy it there first")
        if array.stream is not None:
            self._device.wait_for(self._stream, array.stream)

    def _compute(self, count: int, addresses: dict[str, int]) -> None:
        """Queue the network. From the third time on, the same shape and addresses run as a CUDA graph."""
        key = (count, *addresses.values())
        if key in self._graphs:
            self._graphs.move_to_end(key)
            self._device.launch(self._graphs[key][0], self._stream)
        # A caller with more different addresses than _MAX_GRAPHS would cause a capture at every call, which costs more
        # than it saves. So after the first eviction only the lane's own addresses are captured, and a key counts as
        # repeated only if it is among the last _MAX_GRAPHS ones.
        elif self._capture and key in self._seen and (addresses == self._addresses or not self._evicted):
            self._capture_graph(key, count, addresses)
        else:
            self._execution.queue(count, addresses, self._stream)
            self._seen.append(key)

    def _capture_graph(self, key: tuple[int, ...], count: int, addresses: dict[str, int]) -> None:
        # It needs its own execution: the graph refers to memory that another shape or address would change
        execution = self._engine.create_execution()
        try:
            # One plain run first: TensorRT defers some work to the first run, which cannot be captured
            execution.queue(count, addresses, self._stream)
            graph = self._device.capture(self._stream, partial(execution.queue_again, self._stream))
        except BackendError as error:
            with suppress(BackendError):
                self._device.synchronize(self._stream)
            execution.close()
            raise BackendError(f"no CUDA graph could be captured: {error}; open with cuda_graphs=False") from None
        self._graphs[key] = (graph, execution)
        if len(self._graphs) > _MAX_GRAPHS:
            self._evicted = True
            self._device.synchronize(self._stream)  # the oldest graph must not be running
            self._drop_graphs(1)

    def _drop_graphs(self, count: int = _MAX_GRAPHS) -> None:
        """Free the oldest graphs. The stream must be idle."""
        with ExitStack() as dropped:
            for key in list(self._graphs)[:count]:
                graph, execution = self._graphs.pop(key)
                dropped.callback(execution.close)
                dropped.callback(self._device.destroy_graph, graph)

    def _reserve(self, count: int) -> None:
        """Allocate buffers for `count` frames, if those that exist are too small."""
        if count <= self._capacity:
            return
        self._capacity = 0
        self._drop_graphs()  # they refer to the old addresses
        self._buffers.close()
        for name, size in self._engine.frame_bytes.items():
            self._addresses[name] = self._device.alloc(size * count)
            self._buffers.callback(self._device.free, self._addresses[name])
        for name in ("frames", "labels"):
            self._pinned[name] = self._device.alloc_pinned(self._engine.frame_bytes[name] * count)
            self._buffers.callback(self._device.free_pinned, self._pinned[name])
        self._capacity = count
