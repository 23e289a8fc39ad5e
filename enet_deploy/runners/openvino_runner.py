"""OpenVINO, on the CPU."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import cache
from ..artifacts import check_graph, read_artifact
from ..control_groups import quota_threads
from ..environment import processor
from ..errors import ArtifactError, BackendError, EnetError, InputError, is_out_of_memory
from ..files import digest
from ..images import UInt8Array
from .base import Runner, unwritten
from .graph import Signature, check_signature, check_threads, reading_text
from .onnx_file import read_metadata
from .spec import Operation, Spec

_MILLISECOND = timedelta(milliseconds=1)
_HINTS = ("latency", "throughput")
# precision -> what OpenVINO is told of it. ACCURACY keeps the graph's types
_TYPES = {
    None: {"EXECUTION_MODE_HINT": "ACCURACY"},
    "bf16": {"EXECUTION_MODE_HINT": "PERFORMANCE", "INFERENCE_PRECISION_HINT": "bf16"},
}
_IN_BF16 = {"fp32": "bf16", "int8": "bf16-int8"}  # a graph's precision -> what the runner's is then


@dataclass(frozen=True)
class _Pending:
    """A started request. OpenVINO reads and writes the arrays in place, so they must live as long as the request."""

    request: Any
    frames: UInt8Array
    labels: UInt8Array


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, unless the user has told `opt_in_out` to have it.

    By default `import openvino` looks up a host of its maker's and writes an id into the home folder. It does neither
    if the package openvino-telemetry is missing, so it is hidden during the import.
    """
    name = "openvino_telemetry"
    if "openvino" in sys.modules or name in sys.modules or _telemetry_was_chosen():
        return import_module("openvino")
    sys.modules[name] = None  # type: ignore[assignment]  # Python's way to say that a module is missing
    try:
        return import_module("openvino")
    finally:
        del sys.modules[name]


def _telemetry_was_chosen() -> bool:
    """Return whether the user has answered OpenVINO's question, with yes or no, which is kept in this file."""
    try:
        return (Path.home() / "intel" / "openvino_telemetry").is_file()
    except (OSError, RuntimeError):  # a user without a home
        return False


class OpenVinoRunner(Runner):
    """Runs an exported graph (.onnx) in the graph's own precision, or in bfloat16 if asked.

    By default OpenVINO computes an fp32 graph in bfloat16 if the CPU supports it, which changes labels. This runner
    keeps the graph's types unless `precision` says otherwise. An fp16 graph is computed in fp16 on CPUs with
    AVX512-FP16, and in fp32, which is not less exact, on all others. A graph with a dynamic batch takes a third longer
    than one with a fixed batch.

    Args:
        artifact: a file that enet-export wrote.
        device: "cpu".
        threads: the most threads to use; 0 lets OpenVINO use one per core that this process may use.
        precision: "bf16" computes in bfloat16 what an fp32 or int8 graph has in float; None keeps the graph's types.
        hint: "latency" computes one batch at a time, on all threads. "throughput" computes several at a time: `stream`
            with a depth of twice the cores yields more frames per second, a single `infer` takes longer.
        cache: a folder of your own for compiled graphs, which halves the time to open; it is created if it is missing.
            A graph without a digest, of an earlier version or edited, is compiled each time.
    """

    backend = "openvino"

    def __init__(
        self,
        artifact: str | Path,
        device: str = "cpu",
        threads: int = 0,
        precision: str | None = None,
        hint: str = "latency",
        cache: str | Path | None = None,
    ) -> None:
        super().__init__(artifact, device)
        if precision not in (None, "bf16"):
            raise InputError(f"precision {precision!r}, expected 'bf16', or None for the graph's own")
        self._precision = precision
        if hint not in _HINTS:
            raise InputError(f"hint {hint!r}, expected {' or '.join(_HINTS)}")
        self._options = {"PERFORMANCE_HINT": hint.upper(), **_TYPES[precision]}
        if threads := check_threads(threads) or quota_threads():  # it looks at the mask of the cores by itself
            self._options["INFERENCE_NUM_THREADS"] = str(threads)
            # Pinned threads take the first cores in each process: two runners of one thread would share the first
            self._options["ENABLE_CPU_PINNING"] = "NO"
        self._cache = None if cache is None else Path(cache)

    def _open(self) -> Spec:
        ov = import_openvino()
        if self.device != "cpu":
            raise BackendError(f"device '{self.device}' for openvino, expected cpu")
        if self._cache is not None:
            try:
                cache.private_folder(self._cache)
            except ArtifactError as error:
                raise InputError(str(error)) from None
        content = read_artifact(self.artifact)
        has_digest = check_graph(content, self.artifact)
        self._content = digest(content) if has_digest else ""
        metadata = read_metadata(content, self.artifact)  # first: OpenVINO asks its readers of other formats too
        try:
            with reading_text(self.artifact):
                # The bytes that were checked, as the file may be another by now; a path for weights in files beside it
                model = ov.Core().read_model(content if has_digest else self.artifact)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise ArtifactError(
                f"{self.artifact} is no ONNX file that openvino {ov.__version__} can load: {error}"
            ) from None
        with reading_text(self.artifact):
            signature = _signature(model)
        precision = self._computed_in(metadata.precision)
        batch = check_signature(signature, metadata, self.artifact)
        self._with_labels = self._compile(model, "labels")
        self._with_logits: Any = None
        self._with_confidence: Any = None
        self._model = model  # with the logits, which are compiled at the first call of `logits`
        return self._make_spec(
            metadata,
            batch,
            "logits" in signature,
            precision=precision,
            has_confidence="confidence" in signature,
        )

    def _computed_in(self, precision: str) -> str:
        """Return what a graph of this precision is computed in. Raises BackendError if it or this CPU cannot be."""
        if self._precision is None:
            return precision
        if precision not in _IN_BF16:
            raise BackendError(
                f"precision 'bf16' for {self.artifact}, a graph in {precision}, expected one in "
                f"{' or '.join(_IN_BF16)}; leave the precision out"
            )
        able = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if "BF16" not in able:
            raise BackendError(
                f"precision 'bf16' on {processor()[0]}, which can do {', '.join(able)}, expected a CPU with "
                "AVX512_BF16 or AMX; leave the precision out"
            )
        return _IN_BF16[precision]

    def _compile(self, model: Any, *outputs: str, **options: str) -> Any:
        """Compile the graph with these outputs alone: unused logits would cost a tenth of the time."""
        ov = import_openvino()
        model = model.clone()
        for result in model.results:
            if not result.output(0).names & set(outputs):
                model.remove_result(result)
        settings = self._options | options
        core, entry = ov.Core(), self._entry(",".join(outputs), settings)
        try:
            if entry is not None and (blob := cache.read_entry(entry)):
                return core.import_model(BytesIO(blob), "CPU", settings)
            compiled = core.compile_model(model, "CPU", settings)
            if entry is not None:
                cache.write_entry(entry, bytes(compiled.export_model().getvalue()))
            return compiled
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise BackendError(f"openvino cannot compile {self.artifact} for this CPU: {error}") from None

    def _entry(self, output: str, settings: dict[str, str]) -> Path | None:
        """Return the file in the cache for what this graph is compiled to, by this OpenVINO for this CPU."""
        if self._cache is None or not self._content:
            return None
        version = import_openvino().get_version()
        key = "\n".join((self._content, output, repr(sorted(settings.items())), version, *processor()))
        return self._cache / f"{digest(key.encode())[:32]}.blob"

    def _run(self, frames: UInt8Array, out: UInt8Array) -> None:
        _create_request(self._with_labels, frames, labels=out).infer(share_outputs=True)

    def _run_confidence(self, frames: UInt8Array, labels: UInt8Array, confidence: UInt8Array) -> None:
        if self._with_confidence is None:
            self._with_confidence = self._compile(self._model, "labels", "confidence")
        request = _create_request(self._with_confidence, frames, labels=labels, confidence=confidence)
        request.infer(share_outputs=True)

    def _run_logits(self, frames: UInt8Array) -> npt.NDArray[np.float32]:
        if self._with_logits is None:
            self._with_logits = self._compile(self._model, "logits")
        height, width = self.spec.size
        # `logits` finds what OpenVINO did not write, as it may fail without an error
        logits = np.full((len(frames), len(self.spec.classes), height, width), np.nan, np.float32)
        _create_request(self._with_logits, frames, logits=logits).infer(share_outputs=True)
        return logits

    def _stream(self, frames: Iterator[UInt8Array], depth: int) -> Generator[UInt8Array, None, None]:
        # A batch stays in `pending` until it is done: OpenVINO uses its arrays, also if a signal's handler raises here
        pending: deque[_Pending | EnetError] = deque()
        try:
            for batch in frames:
                created = self._create(batch)
                pending.append(created)
                if isinstance(created, _Pending):
                    pending[-1] = self._started(created)
                if len(pending) >= depth:
                    yield self._collect(pending)
            while pending:
                yield self._collect(pending)
        finally:
            for left in pending:
                if isinstance(left, _Pending):
                    with suppress(Exception):
                        left.request.wait()

    def _create(self, frames: UInt8Array) -> _Pending | EnetError:
        """Prepare to label a batch. An error is returned, to be raised in order, after earlier labels."""
        try:
            frames = self._checked(frames)
            labels = unwritten(frames.shape[:3])
            with self._lock:
                self._require_open()  # again: another thread may have closed it since the check
                with self._failures():
                    return _Pending(_create_request(self._with_labels, frames, labels=labels), frames, labels)
        except EnetError as error:
            return error

    def _started(self, batch: _Pending) -> _Pending | EnetError:
        """Start a batch, which is in `pending` already. An error is returned, as by `_create`."""
        try:
            with self._failures():
                batch.request.start_async()
            return batch
        except EnetError as error:
            return error

    def _collect(self, pending: deque[_Pending | EnetError]) -> UInt8Array:
        """Wait for the oldest batch, take it out of `pending` and return its labels, or raise its error."""
        batch = pending[0]
        try:
            if isinstance(batch, EnetError):
                raise batch
            with self._failures():
                batch.request.wait()
            self._require_written(batch.labels)
            return batch.labels
        finally:
            pending.popleft()

    def _profile(self, frames: UInt8Array, calls: int) -> Iterator[list[Operation]]:
        compiled = self._compile(self._model, "labels", PERF_COUNT="YES")
        names = {}
        for node in compiled.get_runtime_model().get_ordered_ops():
            text = node.get_rt_info()["originalLayersNames"].value
            names[node.get_friendly_name()] = tuple(text.split(",")) if text else ()
        labels = np.empty(frames.shape[:3], np.uint8)
        request = _create_request(compiled, frames, labels=labels)
        for _ in range(calls):
            request.infer(share_outputs=True)
            yield [
                Operation(
                    names.get(node.node_name, ()), f"{node.node_type} {node.exec_type}", node.real_time / _MILLISECOND
                )
                for node in request.profiling_info  # includes nodes that did not run, with a time of 0
            ]

    def _close(self) -> None:
        del self._model, self._with_labels, self._with_logits, self._with_confidence


def _create_request(compiled: Any, frames: UInt8Array, **outputs: npt.NDArray[Any]) -> Any:
    """Create a request that reads `frames` and fills the outputs in place. Keep all arrays until it is done.

    Each call creates its own, which takes 0.04 ms: a reused one would still point at the arrays of the last call.
    """
    ov = import_openvino()
    request = compiled.create_infer_request()
    # OpenVINO cannot share read-only memory; it is copied
    request.set_input_tensor(ov.Tensor(frames, shared_memory=frames.flags.writeable))
    for name, out in outputs.items():
        request.set_tensor(name, ov.Tensor(out, shared_memory=True))
    return request


def _signature(model: Any) -> Signature:
    return {
        port.any_name: (
            str(port.element_type.to_dtype()),
            [dim.get_length() if dim.is_static else None for dim in port.partial_shape],
        )
        for port in (*model.inputs, *model.outputs)
    }
