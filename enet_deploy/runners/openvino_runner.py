"""OpenVINO, on the CPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..artifacts import METADATA_KEY, Metadata
from ..errors import ArtifactError, BackendError, EnetError, InputError
from ..images import UInt8Array
from .base import Operation, Runner, Spec
from .graph import Signature, check_signature, check_threads, reading_text

_MILLISECOND = timedelta(milliseconds=1)
_HINTS = ("latency", "throughput")


@dataclass(frozen=True)
class _InFlight:
    """A request that was started. OpenVINO reads and writes the arrays where they are, so they are kept with it."""

    request: Any
    frames: UInt8Array
    labels: UInt8Array


class OpenVinoRunner(Runner):
    """Runs an exported graph (.onnx) in the precision that the graph has.

    Left to itself OpenVINO computes an fp32 graph in bfloat16 where the CPU can, which changes one label in fifty;
    here it keeps the graph's types. A half graph is computed in half where the CPU can (AVX512-FP16), and in fp32,
    which is no less exact, where it cannot. A graph for any batch takes a third longer than one of a fixed batch.

    Args:
        artifact: a file that enet-export wrote.
        device: "cpu".
        threads: at most; 0 lets OpenVINO take one per core.
        hint: "latency" computes one batch at a time, on all threads; "throughput" several at once, for more frames a
            second from `stream` with a depth of twice the cores, while a single `infer` takes longer.
        cache: a folder, made where it is missing, that keeps compiled graphs, which halves the time to open.
    """

    backend = "openvino"

    def __init__(
        self,
        artifact: str | Path,
        device: str = "cpu",
        threads: int = 0,
        hint: str = "latency",
        cache: str | Path | None = None,
    ) -> None:
        super().__init__(artifact, device)
        if hint not in _HINTS:
            raise InputError(f"hint {hint!r}, expected {' or '.join(_HINTS)}")
        self._options = {"PERFORMANCE_HINT": hint.upper(), "EXECUTION_MODE_HINT": "ACCURACY"}
        if check_threads(threads):
            self._options["INFERENCE_NUM_THREADS"] = str(threads)
        if cache is not None:
            self._options["CACHE_DIR"] = str(cache)

    def _open(self) -> Spec:
        import openvino as ov

        if self.device != "cpu":
            raise BackendError(f"device '{self.device}' for openvino, expected cpu")
        if "CACHE_DIR" in self._options:
            _make_folder(self._options["CACHE_DIR"])
        try:
            model = ov.Core().read_model(self.artifact)
        except RuntimeError as error:
            raise ArtifactError(
                f"{self.artifact} is no ONNX file that openvino {ov.__version__} can load: {error}"
            ) from None
        key = ["framework", METADATA_KEY]  # where OpenVINO keeps an ONNX file's own metadata
        with reading_text(self.artifact):
            text = model.get_rt_info(key).value if model.has_rt_info(key) else None
            signature = _signature(model)
        metadata = Metadata.from_text(text, self.artifact)
        batch = check_signature(signature, metadata, self.artifact)
        self._with_labels = self._compile(model, "labels")
        self._with_logits: Any = None
        self._model = model  # with its logits, for who asks for them
        return self._make_spec(metadata, batch, "logits" in signature)

    def _compile(self, model: Any, output: str, **options: str) -> Any:
        """The graph with this output alone: writing logits that nobody reads takes a tenth of the time."""
        import openvino as ov

        model = model.clone()
        for result in model.results:
            if output not in result.output(0).names:
                model.remove_result(result)
        try:
            return ov.Core().compile_model(model, "CPU", self._options | options)
        except RuntimeError as error:
            raise BackendError(f"openvino cannot compile {self.artifact} for this CPU: {error}") from None

    def _run(self, frames: UInt8Array, out: UInt8Array) -> None:
        _request(self._with_labels, frames, out).infer(share_outputs=True)

    def _run_logits(self, frames: UInt8Array) -> npt.NDArray[np.float32]:
        if self._with_logits is None:
            self._with_logits = self._compile(self._model, "logits")
        height, width = self.spec.size
        logits = np.empty((len(frames), len(self.spec.classes), height, width), np.float32)
        _request(self._with_logits, frames, logits).infer(share_outputs=True)
        return logits

    def _stream(self, frames: Iterator[UInt8Array], depth: int) -> Generator[UInt8Array, None, None]:
        flights: deque[_InFlight | EnetError] = deque()
        try:
            for batch in frames:
                flights.append(self._start(batch))
                if len(flights) >= depth:
                    yield _land(flights.popleft())
            while flights:
                yield _land(flights.popleft())
        finally:
            for flight in flights:
                with suppress(Exception):
                    _land(flight)  # its arrays are in use until then

    def _start(self, frames: UInt8Array) -> _InFlight | EnetError:
        """Begin to label a batch. What is wrong with it is told when its turn comes, after the labels before it."""
        try:
            frames = self._checked(frames)
            labels = np.empty(frames.shape[:3], np.uint8)
            with self._lock:
                self.spec  # noqa: B018  another thread may have closed it meanwhile
                request = _request(self._with_labels, frames, labels)
        except EnetError as error:
            return error
        request.start_async()
        return _InFlight(request, frames, labels)

    def _profile(self, frames: UInt8Array, calls: int) -> Iterator[list[Operation]]:
        compiled = self._compile(self._model, "labels", PERF_COUNT="YES")
        names = {}
        for node in compiled.get_runtime_model().get_ordered_ops():
            text = node.get_rt_info()["originalLayersNames"].value
            names[node.get_friendly_name()] = tuple(text.split(",")) if text else ()
        labels = np.empty(frames.shape[:3], np.uint8)
        request = _request(compiled, frames, labels)
        for _ in range(calls):
            request.infer(share_outputs=True)
            yield [
                Operation(
                    names.get(node.node_name, ()), f"{node.node_type} {node.exec_type}", node.real_time / _MILLISECOND
                )
                for node in request.profiling_info  # also those that this call had no need of, in no time
            ]

    def _close(self) -> None:
        del self._model, self._with_labels, self._with_logits


def _land(flight: _InFlight | EnetError) -> UInt8Array:
    if isinstance(flight, EnetError):
        raise flight
    flight.request.wait()
    return flight.labels


def _request(compiled: Any, frames: UInt8Array, out: npt.NDArray[Any]) -> Any:
    """A request that reads `frames` and fills `out` where they are: keep both until it is done.

    Every call has its own, which takes 0.04 ms: one that was kept would still point at the arrays of the last call.
    """
    import openvino as ov

    request = compiled.create_infer_request()
    # Read-only memory cannot be shared, and is copied
    request.set_input_tensor(ov.Tensor(frames, shared_memory=frames.flags.writeable))
    request.set_output_tensor(ov.Tensor(out, shared_memory=True))
    return request


def _signature(model: Any) -> Signature:
    return {
        port.any_name: (
            str(port.element_type.to_dtype()),
            [dim.get_length() if dim.is_static else None for dim in port.partial_shape],
        )
        for port in (*model.inputs, *model.outputs)
    }


def _make_folder(path: str) -> None:
    # OpenVINO would take the name of a file without a word and keep nothing
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cache {path}: {error}; expected a folder, or where one can be made") from None
