"""Runners: one contract (`base.py`), one file per backend, `open_runner` to choose."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import EXTRAS, BackendError, InputError, missing
from .base import Runner, Spec

__all__ = ["BACKENDS", "Runner", "Spec", "backend_for", "open_runner"]

# backend -> (module, class, suffix of its artifacts)
_REGISTRY = {
    "torch": ("torch_runner", "TorchRunner", ".safetensors"),
    "ort": ("ort_runner", "OrtRunner", ".onnx"),
}
BACKENDS = tuple(_REGISTRY)


def open_runner(artifact: str | Path, backend: str | None = None, device: str = "cpu", **options: Any) -> Runner:
    """Open an artifact on a device.

    Args:
        artifact: weights (.safetensors) or an exported graph (.onnx).
        backend: one of `BACKENDS`; by default the one that runs files of this suffix.
        device: where to run; never replaced by another one.
        options: of the backend's runner class: `size` for torch, `threads` for ort.

    Returns an open runner: use it in a with block, or close() it.

    Raises:
        InputError: unknown backend, suffix or option.
        BackendError: the backend's package or the device is not there.
        ArtifactError: the file is missing, damaged or foreign.
    """
    backend = backend_for(artifact) if backend is None else backend
    if backend not in _REGISTRY:
        raise InputError(f"backend '{backend}', expected one of {', '.join(BACKENDS)}")
    module, name, suffix = _REGISTRY[backend]
    if Path(artifact).suffix != suffix:
        raise InputError(f"{artifact} for backend '{backend}', expected a {suffix} file")
    runner_class = getattr(import_module(f".{module}", __name__), name)
    try:
        runner: Runner = runner_class(artifact, device, **options)
    except TypeError as error:
        raise InputError(f"options {sorted(options)} for backend '{backend}': {error}") from None
    try:
        return runner.open()
    except ModuleNotFoundError as error:
        module = (error.name or "").split(".")[0]
        if module not in EXTRAS:
            raise
        raise BackendError(f"backend '{backend}': {missing(module)}") from None


def backend_for(artifact: str | Path) -> str:
    """The backend that runs files of this suffix. Raises InputError where none does."""
    for backend, (_, _, suffix) in _REGISTRY.items():
        if Path(artifact).suffix == suffix:
            return backend
    known = ", ".join(f"{suffix} ({backend})" for backend, (_, _, suffix) in _REGISTRY.items())
    raise InputError(f"{artifact} has the suffix '{Path(artifact).suffix}', expected {known}")
