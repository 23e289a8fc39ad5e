"""Engines: the check that a file is for this TensorRT and GPU, the cache of built engines, loading and running."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...artifacts import read_artifact
from ...cache import cache_folder, private_folder, private_folder_if_possible, read_entry, write_entry
from ...child import python_main
from ...errors import ArtifactError, BackendError
from ...files import digest, file_lock
from ..graph import Signature, check_signature
from .card import EngineCard
from .cuda import Gpu
from .library import is_valid, load_engine, make_logger, set_rtx_strategies

log = logging.getLogger(__name__)

_PRODUCTS = {"trt": "TensorRT", "trt-rtx": "TensorRT-RTX"}
_DTYPES = {"FLOAT": "float32", "HALF": "float16"}  # where numpy's name differs from TensorRT's in lower case


def check_card(trt: Any, card: EngineCard, engine: bytes, path: Path, gpu: Gpu) -> None:
    """Raise ArtifactError unless the engine from `path` is for this TensorRT and `gpu`.

    Some layer must compute in each reduced precision of the engine's graph.

    TensorRT would refuse most of these too, but only while it loads the engine, and with unclear messages. `gpu`
    must be the current CUDA device.
    """
    version = trt.__version__
    again = card.rebuild(path, card.flavour)
    product = _PRODUCTS[card.flavour]
    if version != card.version and not (card.version_compatible and _release(version) > _release(card.version)):
        raise ArtifactError(f"{path} is of {product} {card.version}, and {version} is installed; {again}")
    if not card.hardware_compatible:
        matches = gpu.compute_capability in card.compute_capabilities
        # TensorRT-RTX can run some engines on later GPUs than they were built for; only the library knows which
        if not matches and not (card.flavour == "trt-rtx" and is_valid(trt, engine)):
            raise ArtifactError(
                f"{path} is for compute capability {', '.join(card.compute_capabilities)}, and this is {gpu}; {again}"
            )
        if card.flavour == "trt" and card.gpu != gpu.name:
            raise ArtifactError(f"{path} was built on {card.gpu}, and this is {gpu}; {again}")
    shares = card.precision_shares
    for precision in card.metadata.precision.split("-"):
        if shares is not None and precision != "fp32" and not shares.get(precision):
            raise ArtifactError(
                f"{path} is of a graph in {card.metadata.precision}, and none of its layers computes in {precision}, "
                f"but in {', '.join(shares)}; {again}"
            )


def _release(version: str) -> tuple[int, ...]:
    """10.13.3.9.post1 -> (10, 13, 3, 9)."""
    return tuple(int(number) for number in re.findall(r"(?:^|\.)(\d+)", version))


def cached_engine(onnx: Path, flavour: str, version: str, gpu: Gpu, index: int) -> tuple[Path, EngineCard, bytes]:
    """Return the engine of a graph for this TensorRT and GPU: its path, card and bytes. Builds it the first time.

    The driver is not part of the cache key, because engines stay valid when it is updated.

    Raises BackendError with the builder's message if it cannot be built, ArtifactError if the graph cannot be read or
    the engine cannot be stored.
    """
    from ... import __version__  # part of the key: another version's builder may set other options

    onnx_sha256 = digest(read_artifact(onnx))
    key = "\n".join((onnx_sha256, flavour, version, gpu.name, gpu.compute_capability, __version__))
    folder = private_folder(cache_folder()) / "engines" / hashlib.sha256(key.encode()).hexdigest()[:32]
    engine = folder / EngineCard.engine_name(onnx, flavour)

    def load() -> tuple[Path, EngineCard, bytes]:
        card, content = EngineCard.load(engine)
        if (card.onnx_sha256, card.flavour, card.version) != (onnx_sha256, flavour, version):
            raise ArtifactError(f"{engine} is the engine of another graph or TensorRT; {card.rebuild(engine, flavour)}")
        return engine, card, content

    with contextlib.suppress(ArtifactError):  # missing, damaged, another's, or being written by another process
        return load()
    with _locked(folder):
        with contextlib.suppress(ArtifactError):  # another process has built it while this one waited
            return load()
        log.info("building the engine of %s for %s in %s, once", onnx, gpu, folder)
        _build(onnx, engine, flavour, index)
        return load()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time build.

    On file systems without locks the card detects a mixture of two builds, and the next open builds again.
    """
    lock = folder / "lock"  # not the folder itself: the builder locks it
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise ArtifactError(f"cannot write {folder}: {error}; set XDG_CACHE_HOME to another folder") from None
    with file_lock(lock):
        yield


def _build(onnx: Path, engine: Path, flavour: str, index: int) -> None:
    """Run the builder in its own process: TensorRT's builder keeps GPU memory until its process ends."""
    command = python_main(f"{__package__}.builder", f"{onnx}", f"{engine}", flavour)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")  # the builder uses the first GPU that it sees
    gpu = visible.split(",")[index] if visible else f"{index}"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        reason = (done.stderr.strip() or "it gave no reason").splitlines()[-1]
        raise BackendError(f"the engine of {onnx} was not built (exit code {done.returncode}): {reason}")


class Engine:
    """A loaded engine. Use and close it while its device is current.

    Attributes:
        batch: frames per call; None for any number up to `max_batch`.
        frame_bytes: input or output -> bytes per frame.
        size: (height, width) of the frames.

    Raises ArtifactError for an engine with other inputs and outputs, BackendError if it does not load.
    """

    def __init__(self, trt: Any, path: Path, card: EngineCard, content: bytes, graphs: bool) -> None:
        self.trt = trt
        self._config: Any = None
        self._cache: Any = None
        self._engine = load_engine(trt, content, host_code=card.version_compatible)
        try:
            signature = self._signature()
            self.batch = check_signature(signature, card.metadata, path)
        except ArtifactError:
            self._engine = None  # now, while the device is current: the exception keeps this object alive
            raise
        self.max_batch: int = self.batch or self._engine.get_tensor_profile_shape("frames", 0)[2][0]
        self.frame_bytes = {
            name: math.prod(side or 0 for side in shape[1:]) * np.dtype(dtype).itemsize
            for name, (dtype, shape) in signature.items()
        }
        self.size = card.metadata.size
        if card.flavour == "trt-rtx":
            folder = private_folder_if_possible(cache_folder())
            kernels = None if folder is None else folder / "runtime" / f"{card.engine_sha256[:32]}.rtx"
            self._configure_rtx(kernels, graphs)

    def _signature(self) -> Signature:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        dtypes = {name: self._engine.get_tensor_dtype(name).name for name in names}
        return {
            name: (
                _DTYPES.get(dtypes[name], dtypes[name].lower()),
                [None if side < 0 else int(side) for side in self._engine.get_tensor_shape(name)],
            )
            for name in names
        }

    def _configure_rtx(self, path: Path | None, graphs: bool) -> None:
        """Keep the kernels that TensorRT-RTX compiles at the first run in the file `path`, for the next process."""
        self._config = self._rtx_config(graphs)
        self._cache = self._config.create_runtime_cache()
        self._cache_path = path
        self._cached = b"" if path is None else read_entry(path)
        if self._cached:
            self._cache.deserialize(self._cached)  # ignored by the library if it is from another GPU or driver
        self._config.set_runtime_cache(self._cache)

    def _rtx_config(self, graphs: bool) -> Any:
        config = self._engine.create_runtime_config()
        set_rtx_strategies(self.trt, config, graphs)
        return config

    def create_execution(self, graphs: bool = True) -> Execution:
        """Create an execution with its own device memory, for one stream at a time.

        Args:
            graphs: allow TensorRT-RTX to capture CUDA graphs, which hide the layers from a profiler.
        """
        config = self._config
        if config is not None and not graphs:
            config = self._rtx_config(False)
            config.set_runtime_cache(self._cache)
        context = self._engine.create_execution_context(*(() if config is None else (config,)))
        if context is None:
            raise self.failed("another execution context")
        return Execution(self, context)

    def failed(self, what: str) -> BackendError:
        """Return the error for a call that TensorRT refused, with its message."""
        reason = make_logger(self.trt).told()
        return BackendError(f"TensorRT {self.trt.__version__} refuses {what}: {reason}")

    def close(self) -> None:
        """Free the engine, after its executions. Store the kernels that TensorRT-RTX compiled."""
        # serialize() returns None on failure
        compiled = bytes(self._cache.serialize() or b"") if self._cache is not None else b""
        if self._cache is not None and self._cache_path is not None and compiled not in (b"", self._cached):
            write_entry(self._cache_path, compiled)
        self._cache = self._config = self._engine = None


class Execution:
    """An execution context. Nothing else refers to TensorRT's own object, not even the traceback of an error.

    So `close` really frees it. The device must be current.
    """

    def __init__(self, engine: Engine, context: Any) -> None:
        self._engine, self._context = engine, context

    def queue(self, count: int, addresses: dict[str, int], stream: int) -> None:
        """Queue a run over `count` frames. `addresses`: input or output -> device address, a multiple of 256."""
        if self._engine.batch is None and not self._context.set_input_shape("frames", (count, *self._engine.size, 3)):
            raise self._engine.failed(f"{count} frames")
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise self._engine.failed(f"the address of {name}")
        self.queue_again(stream)

    def queue_again(self, stream: int) -> None:
        """Queue a run like the last one."""
        if not self._context.execute_async_v3(stream):
            raise self._engine.failed("the run")

    def watch(self, report: Callable[[str, float], None]) -> None:
        """Let each run wait for its end, and report the name and milliseconds of every layer."""
        trt: Any = self._engine.trt

        class Profiler(trt.IProfiler):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                report(layer_name, ms)

        self._context.profiler = Profiler()

    def close(self) -> None:
        self._context = None
