"""ONNX Runtime, on the CPU or through its CUDA provider."""

from __future__ import annotations

import logging
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..artifacts import METADATA_KEY, Metadata
from ..data import UInt8Array
from ..errors import ArtifactError, BackendError, InputError
from .base import Runner, Spec

log = logging.getLogger(__name__)

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OrtRunner(Runner):
    """Runs an exported graph (.onnx).

    Args:
        artifact: a file that enet-export wrote.
        device: "cpu" or "cuda".
        threads: of one operator on the CPU; 0 lets ONNX Runtime take one per core.
    """

    backend = "ort"

    def __init__(self, artifact: str | Path, device: str = "cpu", threads: int = 0) -> None:
        super().__init__(artifact, device)
        if not isinstance(threads, int) or threads < 0:
            raise InputError(f"threads {threads!r}, expected a whole number, 0 for one per core")
        self._threads = threads

    def _open(self) -> Spec:
        import onnxruntime as ort

        provider = _provider(ort, self.device)
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3  # what goes wrong comes as an exception
        if self.device != "cpu":
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            # A path, not bytes: ONNX Runtime then refuses external data outside the folder
            session = ort.InferenceSession(str(self.artifact), options, providers=[provider])
        except Exception as error:  # noqa: BLE001  onnxruntime raises a dozen kinds, all of them about the file
            raise ArtifactError(
                f"{self.artifact} is no ONNX file that onnxruntime {ort.__version__} can load: {error}"
            ) from None
        if session.get_providers()[0] != provider:
            raise BackendError(
                f"device '{self.device}' was asked for and onnxruntime fell back to {session.get_providers()[0]}; "
                "check the CUDA and cuDNN versions that this onnxruntime-gpu needs"
            )
        metadata = Metadata.from_text(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), self.artifact)
        batch = _check_signature(session, metadata, self.artifact)
        self._session = session
        outputs = [output.name for output in session.get_outputs()]
        return self._make_spec(metadata, batch, has_logits="logits" in outputs)

    def _run(self, frames: UInt8Array, out: UInt8Array) -> None:
        binding = self._session.io_binding()
        binding.bind_cpu_input("frames", frames)
        binding.bind_output("labels", "cpu", 0, np.uint8, out.shape, out.ctypes.data)
        self._session.run_with_iobinding(binding)

    def _run_logits(self, frames: UInt8Array) -> npt.NDArray[np.float32]:
        (logits,) = self._session.run(["logits"], {"frames": frames})
        array: npt.NDArray[np.float32] = logits.astype(np.float32, copy=False)
        return array

    def _close(self) -> None:
        del self._session


def _provider(ort: Any, device: str) -> str:
    """The execution provider for a device; BackendError where this installation lacks it."""
    both = _both_packages()
    if both:
        log.warning(both)
    if device not in _PROVIDERS:
        raise BackendError(f"device '{device}' for onnxruntime, expected {' or '.join(_PROVIDERS)}")
    if _PROVIDERS[device] not in ort.get_available_providers():
        raise BackendError(
            f"device '{device}' needs onnxruntime's {_PROVIDERS[device]}; this installation has "
            f"{', '.join(ort.get_available_providers())}: "
            + (both or "pip uninstall onnxruntime, then pip install 'enet-deploy[gpu]'")
        )
    return _PROVIDERS[device]


def _both_packages() -> str:
    """What to do where onnxruntime and onnxruntime-gpu are both installed, else ""."""
    try:
        cpu, gpu = packages.version("onnxruntime"), packages.version("onnxruntime-gpu")
    except packages.PackageNotFoundError:
        return ""
    return (
        f"onnxruntime {cpu} and onnxruntime-gpu {gpu} are both installed and overwrite each other's files; "
        "pip uninstall both, then install the one you want"
    )


def _check_signature(session: Any, metadata: Metadata, path: Path) -> int | None:
    """The batch size of a graph `frames` -> `labels`, None for any; ArtifactError for any other graph."""
    found = {value.name: (value.type, list(value.shape)) for value in (*session.get_inputs(), *session.get_outputs())}
    batch = found.get("frames", ("", [None]))[1][:1]
    wanted = {
        "frames": ("tensor(uint8)", [*batch, *metadata.size, 3]),
        "labels": ("tensor(uint8)", [*batch, *metadata.size]),
        "logits": ("tensor(float)", [*batch, len(metadata.classes), *metadata.size]),
    }
    required = {"frames", "labels"} | (found.keys() & {"logits"})
    if found.keys() != required or any(found[name] != wanted[name] for name in required):
        raise ArtifactError(
            f"{path} has the inputs and outputs {found}, expected {wanted} (logits may be left out); "
            "export it with enet-export"
        )
    return batch[0] if isinstance(batch[0], int) else None
