"""The TensorRT library: import, logger, loading an engine, and every difference between its versions.

TensorRT 10, TensorRT 11 and TensorRT-RTX do not share all names. Each difference has its own function here
(`hardware_level`, `set_rtx_strategies`, `is_valid`, `tensor_type`), which asks whether a name exists and never compares
version numbers. The rest of the package uses only what all of them have, and branches on the flavour alone.
"""

from __future__ import annotations

import functools
from collections import deque
from importlib import import_module
from typing import Any

from ...errors import BackendError, InputError, missing
from .cuda import Gpu

FLAVOURS = {"trt": "tensorrt", "trt-rtx": "tensorrt_rtx"}  # flavour -> module


def import_tensorrt(flavour: str) -> Any:
    """Import the module of a flavour. Raises BackendError if it is not installed, or if its libraries do not load."""
    module = FLAVOURS[flavour]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise BackendError(f"{module} is installed without a part of it: {error}; install it again") from None
        raise BackendError(f"engine '{flavour}': {missing(module)}") from None
    except (ImportError, OSError) as error:
        raise BackendError(f"{module} is installed but does not load: {error}") from None


@functools.cache
def make_logger(trt: Any) -> Any:
    """Return the logger of a TensorRT module. It prints nothing; `logger.told()` returns the errors since last time.

    There is one logger per process, and it is never freed: TensorRT ignores a second one while objects of the first
    live, and the messages for the second would be lost.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._errors: deque[str] = deque(maxlen=8)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self._errors.append(" ".join(message.split()))

        def told(self) -> str:
            """Return the errors since the last call, on one line."""
            errors = "; ".join(dict.fromkeys(self._errors))
            self._errors.clear()
            return errors or "TensorRT gave no reason"

    return Logger()


def start(trt: Any, kind: str) -> Any:
    """Create a trt.Builder or trt.Runtime, by name. Raises BackendError if TensorRT finds no usable driver."""
    logger = make_logger(trt)
    logger.told()
    try:
        return getattr(trt, kind)(logger)
    except TypeError:  # pybind11 raises it if the C++ constructor returns null
        raise BackendError(f"TensorRT {trt.__version__} does not start: {logger.told()}") from None


def load_engine(trt: Any, engine: bytes, *, host_code: bool = False) -> Any:
    """Deserialise an engine. An engine is code: pass only one that was just built, or that its card describes.

    Args:
        host_code: allow the engine to run code on the CPU too, as a version-compatible one does.

    Raises BackendError with TensorRT's message if the engine does not load here.
    """
    runtime = start(trt, "Runtime")
    if host_code:
        runtime.engine_host_code_allowed = True
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        reason = make_logger(trt).told()
        raise BackendError(f"TensorRT {trt.__version__} does not load the engine on this machine: {reason}")
    return loaded


# --- differences between versions --------------------------------------------------------------------------------


def hardware_level(trt: Any, gpu: Gpu | None) -> Any:
    """Return the widest HardwareCompatibilityLevel for engines that are built on `gpu` (None: no GPU here).

    AMPERE_PLUS needs compute capability 8.0. Older GPUs have SAME_COMPUTE_CAPABILITY since TensorRT 10.10.

    Raises InputError if this TensorRT has no level for the GPU.
    """
    levels = trt.HardwareCompatibilityLevel
    if gpu is None or int(gpu.compute_capability.split(".")[0]) >= 8:
        return levels.AMPERE_PLUS
    if hasattr(levels, "SAME_COMPUTE_CAPABILITY"):
        return levels.SAME_COMPUTE_CAPABILITY
    raise InputError(
        f"a hardware-compatible engine on {gpu.name}, of compute capability {gpu.compute_capability}: TensorRT "
        f"{trt.__version__} makes them from 8.0; build without, or with TensorRT 10.10 or later"
    )


def rtx_capabilities(trt: Any) -> dict[str, Any]:
    """Return the GPUs that this TensorRT-RTX supports: "8.6" -> trt.ComputeCapability.SM86, and so on."""
    members = trt.ComputeCapability.__members__
    return {f"{name[2:-1]}.{name[-1]}": member for name, member in members.items() if name.startswith("SM")}


def set_rtx_strategies(trt: Any, config: Any, graphs: bool) -> None:
    """Set the strategies of an IRuntimeConfig, as far as this TensorRT-RTX has them.

    Args:
        graphs: capture CUDA graphs.
    """
    if graphs and hasattr(trt, "CudaGraphStrategy"):
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        # By default kernels are compiled in the background and replaced between two calls, which changes times and
        # rounding
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER


def is_valid(trt: Any, engine: bytes) -> bool:
    """Return whether TensorRT-RTX can load an engine on the current device; False if this version cannot tell."""
    runtime = start(trt, "Runtime")
    if not hasattr(runtime, "get_engine_validity"):
        return False
    validity, _ = runtime.get_engine_validity(engine)
    return bool(validity != trt.EngineValidity.INVALID)


def tensor_type(tensor: dict[str, Any]) -> str:
    """Return the type of a tensor in the engine inspector's JSON, such as "Half" or "Row major linear FP16 format".

    TensorRT 11 has split the "Format/Datatype" of TensorRT 10 into two fields. "" if there is none.
    """
    values = (tensor.get(key) for key in ("Datatype", "DataType", "Format/Datatype", "Format"))
    return next((str(value) for value in values if value), "")
