"""What building and running engines have in common: TensorRT's two flavours, and what they log."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import BackendError, missing

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


def make_logger(trt: Any) -> Any:
    """A TensorRT logger that prints nothing and keeps what was wrong: `logger.errors`, a list of str.

    Keep a reference for as long as any object that was made with it lives.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()
