"""Runners: one contract (`base.py`), one file per backend, and `open_runner` to choose between them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from ..bundled import NAMES, artifact_file, graph_file, weights_file
from ..console import did_you_mean
from ..errors import EXTRAS, BackendError, EnetError, InputError, missing
from ..files import is_folder
from ..fit import Fit, check_fit
from .base import Runner, check_device, cuda_index
from .spec import Operation, Spec

__all__ = [
    "BACKENDS",
    "ON_REQUEST",
    "SUFFIXES",
    "Operation",
    "Runner",
    "Spec",
    "artifact_files",
    "backend_for",
    "backends_for",
    "installed_backends",
    "open_runner",
]

log = logging.getLogger(__name__)


class _Backend(NamedTuple):
    """What is known of a backend before it is imported.

    Attributes:
        module, runner: where its class is, and the name of that.
        suffixes: of the artifacts that it runs.
        package: the Python module that it needs.
        devices: the kinds of devices that it runs on, "cpu", "cuda"; the first is the default.
        precisions: what it can compute in on request, beside the artifact's own precision.
    """

    module: str
    runner: str
    suffixes: tuple[str, ...]
    package: str
    devices: tuple[str, ...] = ("cpu",)
    precisions: tuple[str, ...] = ()


_REGISTRY = {
    "torch": _Backend("torch_runner", "TorchRunner", (".safetensors",), "torch", ("cpu", "cuda"), precisions=("bf16",)),
    "ort": _Backend("ort_runner", "OrtRunner", (".onnx",), "onnxruntime", ("cpu", "cuda")),
    "openvino": _Backend("openvino_runner", "OpenVinoRunner", (".onnx",), "openvino", precisions=("bf16",)),
    "opencv": _Backend("opencv_runner", "OpenCvRunner", (".onnx",), "cv2"),
    "trt": _Backend("tensorrt.runner", "TrtRunner", (".engine", ".onnx"), "tensorrt", ("cuda",)),
}
BACKENDS = tuple(_REGISTRY)
SUFFIXES = tuple(dict.fromkeys(suffix for backend in _REGISTRY.values() for suffix in backend.suffixes))
ON_REQUEST = tuple(dict.fromkeys(name for backend in _REGISTRY.values() for name in backend.precisions))

# Precision of a graph -> the backends that run it on a CPU, fastest first: the order of their times in
# benchmarks/results/cpu-360x480.json, in which both layouts of int8 agree. OpenCV is behind them, and refuses int8.
# A backend that is in the first list and not in another refuses graphs of that precision
FASTEST_ON_CPU = {
    "fp32": ("openvino", "ort", "opencv"),
    "fp16": ("openvino", "ort", "opencv"),
    "int8": ("openvino", "ort"),
    "fp16-int8": ("openvino", "ort"),
}


def open_runner(
    artifact: str | Path,
    backend: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    *,
    fit: Fit | None = None,
    **options: Any,
) -> Runner:
    """Open an artifact on a device.

    Args:
        artifact: weights (.safetensors), an exported graph (.onnx), an engine (.engine), a folder with fleet.json, of
            which the engine for this machine's GPU is taken, or the name of bundled weights: "enet-camvid",
            "enet-camvid-train".
        backend: one of `BACKENDS`; never replaced by another. By default `backend_for` chooses, and the log says which
            one, at level INFO.
        device: where to run; never replaced by another device. By default "cuda" for trt, "cpu" for the others.
        precision: "bf16" computes weights or an fp32 graph, or what is float in an int8 graph, in bfloat16: with torch
            and openvino, on a CPU that can. By default the artifact's own precision.
        fit: how images become frames, "stretch", "letterbox" or "crop"; by default as the weights were trained.
        options: options of the backend's runner class: `size` for torch, `threads` for ort, openvino and opencv, and
            so on.

    Returns an open runner. Use it in a with block, or close() it.

    Raises:
        InputError: unknown backend, suffix, fit or option, or a device that is no text.
        BackendError: the backend's package, the device or the precision is not available.
        ArtifactError: the file is missing, damaged or foreign.
    """
    if _is_engines(artifact) and backend in (None, "trt"):
        artifact = _engine_of_folder(Path(artifact), device)
    chosen = backend_for(artifact, device, precision) if backend is None else backend
    if chosen not in _REGISTRY:
        hint = did_you_mean(str(chosen), BACKENDS)
        raise InputError(f"backend '{chosen}', expected one of {', '.join(BACKENDS)}{hint}")
    artifact = artifact_file(artifact, chosen)
    known = _REGISTRY[chosen]
    if Path(artifact).suffix not in known.suffixes:
        raise InputError(f"{artifact} for backend '{chosen}', expected a {' or '.join(known.suffixes)} file")
    _require_precision(precision, chosen)
    runner_class = getattr(import_module(f".{known.module}", __name__), known.runner)
    _require_options(options, runner_class, chosen)
    try:
        asked = {"device": device, "precision": precision}
        asked = {key: value for key, value in asked.items() if value is not None}
        runner: Runner = runner_class(artifact, **asked, **options)
    except TypeError as error:
        raise InputError(f"options {sorted(options)} for backend '{chosen}': {error}") from None
    runner.fit = None if fit is None else check_fit(fit)
    try:
        runner.open()
    except ModuleNotFoundError as error:
        module = (error.name or "").split(".")[0]
        if module not in EXTRAS:
            raise
        raise BackendError(f"backend '{chosen}': {missing(module)}") from None
    if backend is None:
        _say_choice(runner)
    return runner


def _is_engines(artifact: str | Path) -> bool:
    """Whether an artifact is a folder of engines. A folder may have the name of bundled weights, and is not meant."""
    return str(artifact) not in NAMES and is_folder(artifact)


def _engine_of_folder(folder: Path, device: str | None) -> Path:
    from .tensorrt.manifest import engine_for_gpu

    index = cuda_index("cuda" if device is None else check_device(device))
    if index is None:
        raise BackendError(f"device '{device}' for the engines in {folder}, expected cuda or cuda:N")
    return engine_for_gpu(folder, index)


def _require_precision(precision: str | None, backend: str) -> None:
    if precision is not None and precision not in _REGISTRY[backend].precisions:
        possible = (f"{', '.join(each.precisions)} for {name}" for name, each in _REGISTRY.items() if each.precisions)
        raise BackendError(
            f"precision '{precision}' for backend '{backend}', expected {'; '.join(possible)}; leave it out to compute "
            "in the file's own"
        )


def _require_options(options: Iterable[str], runner_class: type[Runner], backend: str) -> None:
    known = [name for name in signature(runner_class).parameters if name not in ("artifact", "device", "precision")]
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known)
            raise InputError(f"option '{name}' for backend '{backend}', expected {', '.join(known) or 'none'}{hint}")


def _say_choice(runner: Runner) -> None:
    """Log which backend was chosen, why, and how to choose another, if there was a choice."""
    if len(backends_for(runner.artifact)) == 1:
        return
    faster = itertools.takewhile(lambda backend: backend != runner.backend, FASTEST_ON_CPU["fp32"])
    lacking = " and ".join(backend for backend in faster if not _is_installed(backend))
    if runner.device != "cpu":
        why = f"the first that runs on {runner.device}"
    elif lacking:
        why = f"without {lacking}, which would be faster (pip install 'enet-deploy[cpu]')"
    else:
        why = "the fastest for it"
    log.info("%s runs on %s, %s; name another with --backend or backend=", runner.artifact.name, runner.backend, why)


def artifact_files(artifact: str | Path) -> list[Path]:
    """The files that opening an artifact reads: itself, an engine's card, and all that a name or folder stands for.

    Raises InputError if no backend runs files of this suffix, ArtifactError if a folder holds no fleet of engines.
    """
    backends_for(artifact)
    if _is_engines(artifact):
        from .tensorrt.manifest import manifest_path, read_manifest

        engines = [Path(artifact) / engine.file for engine in read_manifest(artifact)]
        return [manifest_path(artifact), *(path for engine in engines for path in artifact_files(engine))]
    if str(artifact) in NAMES:
        return [weights_file(artifact), graph_file(artifact)]
    return [Path(artifact), *([Path(f"{artifact}.json")] if Path(artifact).suffix == ".engine" else [])]


def backends_for(artifact: str | Path, precision: str | None = None) -> tuple[str, ...]:
    """Return the backends that run files of this suffix, in this precision if given.

    A name of bundled weights has those of a graph, then those of weights. Raises InputError if there is none.
    """
    if str(artifact) in NAMES:
        of_weights = () if precision else backends_for(weights_file(artifact))
        return (*backends_for(graph_file(artifact), precision), *of_weights)
    suffix = ".engine" if _is_engines(artifact) else Path(artifact).suffix  # a fleet of engines
    backends = _with_suffix(suffix)
    if not backends:
        expected = ", ".join(f"{suffix} ({', '.join(_with_suffix(suffix))})" for suffix in SUFFIXES)
        names = ", ".join(NAMES)
        hint = did_you_mean(str(artifact), NAMES)
        raise InputError(f"{artifact} has the suffix '{suffix}', expected {expected}, or a name: {names}{hint}")
    able = tuple(backend for backend in backends if precision in (None, *_REGISTRY[backend].precisions))
    if not able:
        raise InputError(f"precision '{precision}' for {artifact}; leave it out to compute in the file's own")
    return able


def backend_for(artifact: str | Path, device: str | None = None, precision: str | None = None) -> str:
    """Return the fastest installed backend for an artifact; the fastest of all if none is installed.

    Args:
        device, precision: as `open_runner` takes them; backends without them are left out.

    Raises InputError if no backend runs files of this suffix, in this precision.
    """
    artifact = graph_file(artifact)
    able = backends_for(artifact, precision)
    if device not in (None, "cpu"):
        able = tuple(backend for backend in able if _runs_on(backend, device)) or able
    elif Path(artifact).suffix == ".onnx":
        able = tuple(backend for backend in FASTEST_ON_CPU[_precision_of(Path(artifact))] if backend in able)
    return next(filter(_is_installed, able), able[0])


def installed_backends(artifact: str | Path, device: str | None = None) -> list[str]:
    """Return the backends that are installed and run an artifact on a device, without one on their default.

    Raises as `backend_for`.
    """
    fitting = backends_for(artifact)
    on_device = [backend for backend in fitting if _runs_on(backend, device)]
    refusing = {*FASTEST_ON_CPU["fp32"]}.difference(FASTEST_ON_CPU[_precision_of(graph_file(artifact))])
    return [backend for backend in on_device if backend not in refusing and _is_installed(backend)]


def _runs_on(backend: str, device: str | None) -> bool:
    """Whether a backend runs on devices of this kind; which of them are here is not asked."""
    return device is None or ("cpu" if device == "cpu" else "cuda") in _REGISTRY[backend].devices


def _precision_of(artifact: Path) -> str:
    """Return the precision of a graph; "fp32" for other files, and if a graph does not say, as opening it tells why."""
    from ..artifacts import read_artifact
    from .onnx_file import read_metadata

    if artifact.suffix != ".onnx":
        return "fp32"
    with suppress(EnetError):
        return read_metadata(read_artifact(artifact), artifact).precision
    return "fp32"


def _is_installed(backend: str) -> bool:
    """Whether a backend's package is here. It is not imported."""
    if backend == "opencv":
        return hasattr(cv2.dnn, "ENGINE_NEW")  # since version 5
    try:
        return find_spec(_REGISTRY[backend].package) is not None
    except ValueError:  # imported already, and made by hand: it has no spec
        return True


def _with_suffix(suffix: str) -> tuple[str, ...]:
    return tuple(name for name, backend in _REGISTRY.items() if suffix in backend.suffixes)
