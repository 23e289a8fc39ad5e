"""Runners: one contract (`base.py`), one file per backend, and `open_runner` to choose between them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ..bundled import NAMES, artifact_file, graph_file, weights_file
from ..console import did_you_mean
from ..errors import EXTRAS, BackendError, InputError, missing
from ..fit import Fit, check_fit
from .base import Operation, Runner, Spec

__all__ = [
    "BACKENDS",
    "SUFFIXES",
    "Operation",
    "Runner",
    "Spec",
    "artifact_files",
    "backend_for",
    "backends_for",
    "open_runner",
]

# backend -> (module, class, suffixes of its artifacts); the first backend with a suffix is the default for it
_REGISTRY: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "torch": ("torch_runner", "TorchRunner", (".safetensors",)),
    "ort": ("ort_runner", "OrtRunner", (".onnx",)),
    "openvino": ("openvino_runner", "OpenVinoRunner", (".onnx",)),
    "trt": ("tensorrt.runner", "TrtRunner", (".engine", ".onnx")),
}
BACKENDS = tuple(_REGISTRY)
SUFFIXES = tuple(dict.fromkeys(suffix for _, _, suffixes in _REGISTRY.values() for suffix in suffixes))


def open_runner(
    artifact: str | Path,
    backend: str | None = None,
    device: str | None = None,
    *,
    fit: Fit | None = None,
    **options: Any,
) -> Runner:
    """Open an artifact on a device.

    Args:
        artifact: weights (.safetensors), an exported graph (.onnx), an engine (.engine), or the name of bundled
            weights: "enet-camvid", "enet-camvid-train".
        backend: one of `BACKENDS`; by default the one that runs files of this suffix.
        device: where to run; never replaced by another device. By default "cuda" for trt, "cpu" for the others.
        fit: how images become frames, "stretch", "letterbox" or "crop"; by default as the weights were trained.
        options: options of the backend's runner class: `size` for torch, `threads` for ort and openvino, and so on.

    Returns an open runner. Use it in a with block, or close() it.

    Raises:
        InputError: unknown backend, suffix, fit or option.
        BackendError: the backend's package or the device is not available.
        ArtifactError: the file is missing, damaged or foreign.
    """
    backend = backend_for(artifact) if backend is None else backend
    if backend not in _REGISTRY:
        hint = did_you_mean(str(backend), BACKENDS)
        raise InputError(f"backend '{backend}', expected one of {', '.join(BACKENDS)}{hint}")
    artifact = artifact_file(artifact, backend)
    module, name, suffixes = _REGISTRY[backend]
    if Path(artifact).suffix not in suffixes:
        raise InputError(f"{artifact} for backend '{backend}', expected a {' or '.join(suffixes)} file")
    runner_class = getattr(import_module(f".{module}", __name__), name)
    try:
        placement = {} if device is None else {"device": device}
        runner: Runner = runner_class(artifact, **placement, **options)
    except TypeError as error:
        raise InputError(f"options {sorted(options)} for backend '{backend}': {error}") from None
    runner.fit = None if fit is None else check_fit(fit)
    try:
        return runner.open()
    except ModuleNotFoundError as error:
        module = (error.name or "").split(".")[0]
        if module not in EXTRAS:
            raise
        raise BackendError(f"backend '{backend}': {missing(module)}") from None


def artifact_files(artifact: str | Path) -> list[Path]:
    """The files that opening an artifact reads: itself, an engine's card, and all that a name may stand for."""
    if str(artifact) in NAMES:
        return [weights_file(artifact), graph_file(artifact)]
    return [Path(artifact), *([Path(f"{artifact}.json")] if Path(artifact).suffix == ".engine" else [])]


def backends_for(artifact: str | Path) -> tuple[str, ...]:
    """Return the backends that run files of this suffix, the default first. Raises InputError if there is none.

    A name of bundled weights has those of a graph, then those of weights.
    """
    if str(artifact) in NAMES:
        return (*backends_for(graph_file(artifact)), *backends_for(weights_file(artifact)))
    suffix = Path(artifact).suffix
    backends = _with_suffix(suffix)
    if not backends:
        expected = ", ".join(f"{suffix} ({', '.join(_with_suffix(suffix))})" for suffix in SUFFIXES)
        raise InputError(f"{artifact} has the suffix '{suffix}', expected {expected}, or a name: {', '.join(NAMES)}")
    return backends


def backend_for(artifact: str | Path) -> str:
    """Return the default backend for files of this suffix. Raises InputError if there is none."""
    return backends_for(artifact)[0]


def _with_suffix(suffix: str) -> tuple[str, ...]:
    return tuple(backend for backend, (_, _, suffixes) in _REGISTRY.items() if suffix in suffixes)
