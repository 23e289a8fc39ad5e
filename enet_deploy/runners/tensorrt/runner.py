"""The runner for TensorRT 10, TensorRT 11 and TensorRT-RTX."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import BackendError, EnetError, InputError
from ...images import UInt8Array
from ..base import Runner, cuda_index, unwritten
from ..spec import Operation, Spec, check_frames, check_out
from .card import EngineCard
from .cuda import Device, find_gpu, open_device
from .device_array import DeviceArray
from .engine import Engine, cached_engine, check_card
from .lane import Lane
from .library import FLAVOURS, import_tensorrt


class TrtRunner(Runner):
    """Runs a TensorRT engine (.engine), or a graph (.onnx). The engine of a graph is built once and cached.

    Args:
        artifact: a file that enet-export wrote.
        device: "cuda" or "cuda:N".
        flavour: "trt" or "trt-rtx": the engine to build for a .onnx. An .engine has its own flavour.
        cuda_graphs: run a repeated batch size as one CUDA graph, which saves the launch of each kernel. By default
            on if the CUDA package supports it, see `spec.runtime`. True raises BackendError if it does not.
    """

    backend = "trt"

    def __init__(
        self, artifact: str | Path, device: str = "cuda", flavour: str = "trt", cuda_graphs: bool | None = None
    ) -> None:
        super().__init__(artifact, device)
        if flavour not in FLAVOURS:
            raise InputError(f"flavour '{flavour}', expected one of {', '.join(FLAVOURS)}")
        self._flavour = flavour
        self._graphs = cuda_graphs
        self._abandoned: deque[Lane] = deque()  # lanes that work for streams which were closed early

    def infer(self, frames: Any, out: Any = None) -> Any:
        """Label a batch as `Runner.infer`; frames and labels may stay on the GPU.

        Args:
            frames: also an object with `__cuda_array_interface__` (torch's CUDA tensors, cupy, pycuda.gpuarray),
                C-contiguous and on this device. It is read in place, after the work queued on the stream that its
                interface names; for tensors of torch on torch's current stream, else on the default stream.
            out: the same for the labels.

        Returns `out`, or a new numpy array. The labels are complete when this returns.
        """
        return super().infer(frames, out)

    def _open(self) -> Spec:
        index = cuda_index(self.device)
        if index is None:
            raise BackendError(
                f"device '{self.device}' for TensorRT, expected cuda or cuda:N; for the CPU take the .onnx"
            )
        if self.artifact.suffix == ".onnx":
            trt, gpu = import_tensorrt(self._flavour), find_gpu(index)
            path, card, content = cached_engine(self.artifact, self._flavour, trt.__version__, gpu, index)
        else:
            path, (card, content) = self.artifact, EngineCard.load(self.artifact)
            trt = import_tensorrt(card.flavour)
        with ExitStack() as opened:
            device = opened.enter_context(open_device(index))
            with device.current():
                check_card(trt, card, content, path, device.gpu)
                spec = self._load(trt, path, card, content, device, opened)
            self._opened = opened.pop_all()
        return spec

    def _load(self, trt: Any, path: Path, card: EngineCard, content: bytes, device: Device, opened: ExitStack) -> Spec:
        graphs, words = self._graph_plan(card.flavour, device)
        engine = Engine(trt, path, card, content, graphs)
        self._device, self._engine = device, engine
        self._capture = graphs and card.flavour == "trt"
        self._lanes: list[Lane] = []  # all of them
        self._idle: list[Lane] = []
        opened.callback(self._free)
        self._idle.append(self._new_lane())
        runtime = f"{trt.__name__} {trt.__version__} on {device.gpu}, {device.package}, {words}"
        has_logits, has_confidence = ("logits" in engine.frame_bytes), ("confidence" in engine.frame_bytes)
        return self._make_spec(card.metadata, engine.batch, has_logits, runtime, has_confidence=has_confidence)

    def _graph_plan(self, flavour: str, device: Device) -> tuple[bool, str]:
        """Return whether CUDA graphs are used, and the words about them for `spec.runtime`."""
        if self._graphs is False:
            return False, "no CUDA graphs"
        if flavour == "trt-rtx":
            return True, "CUDA graphs by TensorRT-RTX"  # it captures after its kernels have been specialised
        if self._graphs and not device.can_capture:
            raise BackendError(f"cuda_graphs=True with {device.package}, which has none; pip install cuda-bindings")
        return device.can_capture, "CUDA graphs" if device.can_capture else "no CUDA graphs (cuda-bindings has them)"

    def _new_lane(self) -> Lane:
        lane = Lane(self._device, self._engine, self._capture)
        try:
            lane.open()
        except BackendError:
            lane.close()
            raise
        self._lanes.append(lane)
        return lane

    def _run(self, frames: UInt8Array | DeviceArray, out: UInt8Array | DeviceArray) -> None:
        with self._borrowed_lane() as lane:
            self._run_on(lane, frames, out)

    def _run_logits(self, frames: UInt8Array | DeviceArray) -> npt.NDArray[np.float32]:
        spec = self.spec
        scores = np.empty((frames.shape[0], len(spec.classes), *spec.size), np.float32)
        with self._borrowed_lane() as lane:
            self._run_on(lane, frames, np.empty(frames.shape[:3], np.uint8), logits=scores)
        return scores

    def _run_confidence(self, frames: UInt8Array | DeviceArray, labels: UInt8Array, confidence: UInt8Array) -> None:
        with self._borrowed_lane() as lane:
            self._run_on(lane, frames, labels, confidence=confidence)

    def _run_on(
        self,
        lane: Lane,
        frames: UInt8Array | DeviceArray,
        out: UInt8Array | DeviceArray,
        **others: npt.NDArray[Any],
    ) -> None:
        """Label frames, as many per call as the engine takes. `others`: further outputs to fill, by name."""
        step = self._engine.max_batch
        for first in range(0, frames.shape[0], step):
            part = slice(first, first + step)
            lane.start(frames[part], out[part])
            lane.finish(**{name: array[part] for name, array in others.items()})

    def _profile(self, frames: UInt8Array | DeviceArray, calls: int) -> Iterator[list[Operation]]:
        with self._device.current():
            layers: list[Operation] = []
            # without CUDA graphs, whose layers cannot be profiled
            lane = Lane(self._device, self._engine, False, lambda name, ms: layers.append(_operation(name, ms)))
            try:
                lane.open()
                for _ in range(calls):
                    self._run_on(lane, frames, np.empty(frames.shape[:3], np.uint8))
                    if not layers:
                        raise BackendError(f"{self.spec.runtime} reports no times of its layers")
                    yield list(layers)
                    layers.clear()
            finally:
                lane.close()

    @contextmanager
    def _borrowed_lane(self) -> Iterator[Lane]:
        with self._device.current():
            lane = self._take()
            try:
                yield lane
            finally:
                self._give_back(lane)

    def _take(self) -> Lane:
        while self._abandoned:
            lane = self._abandoned.popleft()
            if lane in self._lanes:  # not of an engine that was closed since
                self._give_back(lane)
        return self._idle.pop() if self._idle else self._new_lane()

    def _give_back(self, lane: Lane) -> None:
        lane.settle()
        self._idle.append(lane)

    def _close(self) -> None:
        self._opened.close()

    def _free(self) -> None:
        """Close the lanes, then the engine. An error does not stop the rest."""
        with self._device.current(), ExitStack() as rest:
            rest.callback(self._engine.close)
            for lane in self._lanes:
                rest.callback(lane.close)
            self._lanes, self._idle = [], []

    # Streaming: no batch waits for the device before its labels are due. Two lanes are enough: one copies frames to the
    # device while the other computes.

    def _stream(self, frames: Iterator[UInt8Array], depth: int) -> Generator[UInt8Array, None, None]:
        pending: deque[_Pending] = deque()  # oldest first
        try:
            for batch in frames:
                running = [waiting for waiting in pending if waiting.lane is not None]
                if len(running) == 2:
                    self._wait(running[0])
                pending.append(self._submit(batch))
                if len(pending) >= depth:
                    yield self._collect(pending.popleft())
            while pending:
                yield self._collect(pending.popleft())
        finally:
            # Wait for nothing, and take no lock: the garbage collector may end a forgotten stream in any thread
            self._abandoned.extend(waiting.lane for waiting in pending if waiting.lane is not None)

    def _submit(self, frames: Any) -> _Pending:
        """Start a batch. Keep an error: it is raised in its turn, after the labels of earlier batches."""
        pending = _Pending()
        try:
            checked = self._checked(frames)
            pending.labels = unwritten(checked.shape[:3])
            with self._lock:
                self._require_open()
                if checked.shape[0] > self._engine.max_batch:
                    self._run(checked, pending.labels)
                else:
                    self._start(pending, checked)
        except Exception as error:  # noqa: BLE001
            pending.error = error
        return pending

    def _start(self, pending: _Pending, frames: UInt8Array | DeviceArray) -> None:
        assert pending.labels is not None
        with self._device.current():
            lane = self._take()
            try:
                lane.start(frames, pending.labels)
                pending.lane = lane
            finally:
                if pending.lane is None:
                    self._give_back(lane)

    def _wait(self, pending: _Pending) -> None:
        """Wait for a batch. Afterwards `pending` has its labels or its error."""
        lane, pending.lane = pending.lane, None
        if lane is None:
            return
        try:
            with self._lock:
                self._require_open()
                if lane not in self._lanes:
                    raise BackendError(f"the runner of {self.artifact} was closed under its stream; start another")
                with self._device.current():
                    try:
                        lane.finish()
                    finally:
                        self._give_back(lane)
        except EnetError as error:
            pending.error = error

    def _collect(self, pending: _Pending) -> UInt8Array:
        """Wait for a batch and return its labels, or raise its error."""
        self._wait(pending)
        if pending.error is not None:
            raise pending.error
        assert pending.labels is not None
        self._require_written(pending.labels)
        return pending.labels

    def _checked(self, frames: Any) -> Any:
        array = DeviceArray.of(frames, "frames")
        if array is None:
            return super()._checked(frames)
        check_frames(array, self.spec, DeviceArray)
        return array

    def _checked_out(self, out: Any, frames: Any) -> Any:
        array = DeviceArray.of(out, "out")
        if array is None:
            return super()._checked_out(out, frames)
        check_out(array, frames.shape[:3], DeviceArray)
        if not array.writeable:
            raise InputError("out is read-only, expected a writable array")
        if isinstance(frames, DeviceArray) and array.overlaps(frames):
            raise InputError("out shares memory with frames, expected an array of its own")
        return array


@dataclass
class _Pending:
    """A batch of a stream. `lane` is set while the device works on it."""

    lane: Lane | None = None
    labels: UInt8Array | None = None
    error: Exception | None = None


def _operation(layer: str, ms: float) -> Operation:
    """Parse TensorRT's name of a layer into the operations of the graph that it contains, and its kind.

    For example "stage1.0.branch.0/Conv + stage1.0.branch.1/Relu", "PWN(stage1.0/Add, stage1.0.act/Max)",
    "Reformatting CopyNode for Input Tensor 0 to stage1.0.branch.0/Conv" or "{ForeignNode[Cast...initial/Concat]}".
    """
    if layer.startswith("Reformatting"):
        return Operation((), "Reformat", ms)
    names = tuple(re.findall(r"[\w.]*\w(?:/\w+)+", layer))
    kind = "ForeignNode" if "ForeignNode" in layer else " + ".join(re.sub(r".*/|_\d+$", "", name) for name in names)
    return Operation(names, kind or layer, ms)
