"""What building and running engines have in common: TensorRT's two flavours, what they log, loading an engine."""

from __future__ import annotations

import functools
import os
import tempfile
from collections import deque
from importlib import import_module
from pathlib import Path
from typing import Any

from ...errors import BackendError, missing

FLAVOURS = {"trt": "tensorrt", "trt-rtx": "tensorrt_rtx"}  # flavour -> module


def import_tensorrt(flavour: str) -> Any:
    """The module of a flavour. Raises BackendError where it is not installed, or its libraries do not load."""
    module = FLAVOURS[flavour]
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise BackendError(f"{module} is installed without a part of it: {error}; install it again") from None
        raise BackendError(f"engine '{flavour}': {missing(module)}") from None
    except (ImportError, OSError) as error:
        raise BackendError(f"{module} is installed but does not load: {error}") from None


def rtx_capabilities(trt: Any) -> dict[str, Any]:
    """What GPUs this TensorRT-RTX supports: compute capability such as "8.6" -> member of trt.ComputeCapability."""
    members = trt.ComputeCapability.__members__
    return {f"{name[2:-1]}.{name[-1]}": member for name, member in members.items() if name.startswith("SM")}


@functools.cache
def make_logger(trt: Any) -> Any:
    """The logger of a TensorRT module. It prints nothing; `logger.told()` has what was wrong since the last call.

    One for the whole process, and never freed: TensorRT ignores a second one while objects of the first live, and
    what the second was to hear would be lost.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._errors: deque[str] = deque(maxlen=8)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self._errors.append(" ".join(message.split()))

        def told(self) -> str:
            """The errors since the last call, on one line."""
            errors = "; ".join(dict.fromkeys(self._errors))
            self._errors.clear()
            return errors or "TensorRT gave no reason"

    return Logger()


def start(trt: Any, kind: str) -> Any:
    """A trt.Builder or trt.Runtime, by name. Raises BackendError where TensorRT finds no driver that it can use."""
    logger = make_logger(trt)
    logger.told()
    try:
        return getattr(trt, kind)(logger)
    except TypeError:  # how a constructor that gave nothing looks in Python
        raise BackendError(f"TensorRT {trt.__version__} does not start: {logger.told()}") from None


def load_engine(trt: Any, engine: bytes, *, host_code: bool = False) -> Any:
    """Deserialise an engine: only one that was just built, or that its card describes, because an engine is code.

    Args:
        host_code: let the engine run code on the CPU too, which a version-compatible one has to.

    Raises BackendError with TensorRT's words where it does not load here.
    """
    runtime = start(trt, "Runtime")
    if host_code:
        runtime.engine_host_code_allowed = True
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        told = make_logger(trt).told()
        raise BackendError(f"TensorRT {trt.__version__} does not load the engine on this machine: {told}")
    return loaded


def is_valid(trt: Any, engine: bytes) -> bool:
    """Whether TensorRT-RTX says that an engine can be loaded on the current device; False where it cannot be asked."""
    runtime = start(trt, "Runtime")
    if not hasattr(runtime, "get_engine_validity"):
        return False
    validity, _ = runtime.get_engine_validity(engine)
    return bool(validity != trt.EngineValidity.INVALID)


def cache_folder() -> Path:
    """Where this package keeps what it can make again: $XDG_CACHE_HOME/enet_deploy, or ~/.cache/enet_deploy."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "enet_deploy"
    try:
        return Path.home() / ".cache" / "enet_deploy"
    except RuntimeError:  # a container's user without a home
        return Path(tempfile.gettempdir()) / f"enet_deploy-{os.getuid()}"
