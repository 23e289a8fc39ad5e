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
class _Pending:
    """A started request. OpenVINO reads and writes the arrays in place, so they must live as long as the request."""

    request: Any
    frames: UInt8Array
    labels: UInt8Array


class OpenVinoRunner(Runner):
    """Runs an exported graph (.onnx) in the graph's own precision.

    By default OpenVINO computes an fp32 graph in bfloat16 if the CPU supports it, which changes one label in fifty.
    This runner keeps the graph's types. An fp16 graph is computed in fp16 on CPUs with AVX512-FP16, and in fp32, which
    is not less exact, on all others. A graph with a dynamic batch takes a third longer than one with a fixed batch.

    Args:
        artifact: a file that enet-export wrote.
        device: "cpu".
        threads: the most threads to use; 0 lets OpenVINO use one per core.
        hint: "latency" computes one batch at a time, on all threads. "throughput" computes several at a time: `stream`
            with a depth of twice the cores yields more frames per second, a single `infer` takes longer.
        cache: a folder for compiled graphs, which halves the time to open; it is created if it is missing.
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
            with reading_text(self.artifact):
                model = ov.Core().read_model(self.artifact)
        except RuntimeError as error:
            raise ArtifactError(
                f"{self.artifact} is no ONNX file that openvino {ov.__version__} can load: {error}"
            ) from None
        key = ["framework", METADATA_KEY]  # where OpenVINO keeps the metadata of an ONNX file
        with reading_text(self.artifact):
            text = model.get_rt_info(key).value if model.has_rt_info(key) else None
            signature = _signature(model)
        metadata = Metadata.from_text(text, self.artifact)
        batch = check_signature(signature, metadata, self.artifact)
        self._with_labels = self._compile(model, "labels")
        self._with_logits: Any = None
        self._model = model  # with the logits, which are compiled at the first call of `logits`
        return self._make_spec(metadata, batch, "logits" in signature)

    def _compile(self, model: Any, output: str, **options: str) -> Any:
        """Compile the graph with this output alone: unused logits would cost a tenth of the time."""
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
        _create_request(self._with_labels, frames, out).infer(share_outputs=True)

    def _run_logits(self, frames: UInt8Array) -> npt.NDArray[np.float32]:
        if self._with_logits is None:
            self._with_logits = self._compile(self._model, "logits")
        height, width = self.spec.size
        logits = np.empty((len(frames), len(self.spec.classes), height, width), np.float32)
        _create_request(self._with_logits, frames, logits).infer(share_outputs=True)
        return logits

    def _stream(self, frames: Iterator[UInt8Array], depth: int) -> Generator[UInt8Array, None, None]:
        pending: deque[_Pending | EnetError] = deque()
        try:
            for batch in frames:
                pending.append(self._submit(batch))
                if len(pending) >= depth:
                    yield _collect(pending.popleft())
            while pending:
                yield _collect(pending.popleft())
        finally:
            for left in pending:
                with suppress(Exception):
                    _collect(left)  # its arrays are in use until then

    def _submit(self, frames: UInt8Array) -> _Pending | EnetError:
        """Start to label a batch. An error is returned, to be raised in order, after the labels of earlier batches."""
        try:
            frames = self._checked(frames)
            labels = np.empty(frames.shape[:3], np.uint8)
            with self._lock:
                self._require_open()  # again: another thread may have closed it since the check
                request = _create_request(self._with_labels, frames, labels)
        except EnetError as error:
            return error
        request.start_async()
        return _Pending(request, frames, labels)

    def _profile(self, frames: UInt8Array, calls: int) -> Iterator[list[Operation]]:
        compiled = self._compile(self._model, "labels", PERF_COUNT="YES")
        names = {}
        for node in compiled.get_runtime_model().get_ordered_ops():
            text = node.get_rt_info()["originalLayersNames"].value
            names[node.get_friendly_name()] = tuple(text.split(",")) if text else ()
        labels = np.empty(frames.shape[:3], np.uint8)
        request = _create_request(compiled, frames, labels)
        for _ in range(calls):
            request.infer(share_outputs=True)
            yield [
                Operation(
                    names.get(node.node_name, ()), f"{node.node_type} {node.exec_type}", node.real_time / _MILLISECOND
                )
                for node in request.profiling_info  # includes nodes that did not run, with a time of 0
            ]

    def _close(self) -> None:
        del self._model, self._with_labels, self._with_logits


def _collect(batch: _Pending | EnetError) -> UInt8Array:
    """Wait for a batch and return its labels, or raise its error."""
    if isinstance(batch, EnetError):
        raise batch
    batch.request.wait()
    return batch.labels


def _create_request(compiled: Any, frames: UInt8Array, out: npt.NDArray[Any]) -> Any:
    """Create a request that reads `frames` and fills `out` in place. Keep both arrays until it is done.

    Each call creates its own, which takes 0.04 ms: a reused one would still point at the arrays of the last call.
    """
    import openvino as ov

    request = compiled.create_infer_request()
    # OpenVINO cannot share read-only memory; it is copied
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
    # OpenVINO accepts the name of a file silently and then caches nothing
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cache {path}: {error}; expected a folder that exists or can be created") from None
