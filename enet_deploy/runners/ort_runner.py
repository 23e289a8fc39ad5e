"""ONNX Runtime, on the CPU or through its CUDA and TensorRT providers."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import logging
import os
import platform
import re
from collections.abc import Iterator
from importlib import metadata as packages
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from ..artifacts import check_graph, read_artifact
from ..control_groups import allowed_threads
from ..errors import ArtifactError, BackendError, InputError, is_out_of_memory
from ..files import utf8_path
from ..images import UInt8Array
from .base import Runner, cuda_index
from .graph import check_signature, check_threads, reading_text
from .onnx_file import read_metadata
from .spec import Operation, Spec

log = logging.getLogger(__name__)

_ADDED = re.compile(r"_token_\d+$")  # operations that its optimiser added
_CPU = "CPUExecutionProvider"
_ON_CUDA = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"  # read by NVIDIA's libraries
_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class OrtRunner(Runner):
    """Runs an exported graph (.onnx) in the graph's own precision.

    Args:
        artifact: a file that enet-export wrote.
        device: "cpu", "cuda" or "cuda:N".
        threads: threads per operator on the CPU; 0 takes one per core that this process may use.
        provider: on a CUDA device, "cuda" (the default) or "tensorrt". The latter builds an engine each time the
            runner opens, which takes minutes; a graph in fp32 or int8 needs NVIDIA_TF32_OVERRIDE=0 in the environment.
            There is no fallback to another provider.
    """

    backend = "ort"

    def __init__(
        self, artifact: str | Path, device: str = "cpu", threads: int = 0, provider: str | None = None
    ) -> None:
        super().__init__(artifact, device)
        if provider is not None and (device == "cpu" or provider not in _ON_CUDA):
            raise InputError(
                f"provider {provider!r} on device '{device}', expected {' or '.join(_ON_CUDA)}, on a CUDA device"
            )
        self._threads = check_threads(threads)
        self._provider = provider or "cuda"

    def _open(self) -> Spec:
        import onnxruntime as ort

        self._index = cuda_index(self.device)
        if self._index is None and self.device != "cpu":
            raise BackendError(f"device '{self.device}' for onnxruntime, expected cpu, cuda or cuda:N")
        wanted = _CPU if self._index is None else _ON_CUDA[self._provider]
        _require_provider(ort, wanted, self.device)
        if wanted != _CPU:
            _preload_libraries(ort)
        self._content = read_artifact(self.artifact)
        self._has_digest = check_graph(self._content, self.artifact)
        session = self._load(ort, wanted)
        if session.get_providers()[0] != wanted:
            raise BackendError(
                f"device '{self.device}' was asked for and onnxruntime fell back to {session.get_providers()[0]}; "
                "check the CUDA and cuDNN versions that this onnxruntime-gpu needs"
            )
        with reading_text(self.artifact):
            metadata = read_metadata(self._content, self.artifact)
            signature = {
                value.name: (
                    _DTYPES.get(value.type, value.type),
                    [d if isinstance(d, int) else None for d in value.shape],
                )
                for value in (*session.get_inputs(), *session.get_outputs())
            }
        batch = check_signature(signature, metadata, self.artifact)
        self._session = session
        self._on_device: Any = None  # the frames on a CUDA device
        runtime = "" if wanted == _CPU else wanted
        return self._make_spec(
            metadata, batch, "logits" in signature, runtime, has_confidence="confidence" in signature
        )

    def _load(self, ort: Any, provider: str, profile: str = "") -> Any:
        """Create a session with this provider alone. `profile` is the path prefix of a profile; "" for none."""
        # The bytes that were checked, as the file may be another by now. A path for weights in files beside it: with a
        # path ONNX Runtime refuses those outside the folder
        graph: bytes | str = self._content
        if not self._has_digest:
            graph = utf8_path(self.artifact, "onnxruntime", "take the backend openvino")
        options = ort.SessionOptions()
        # By itself it starts a thread for each core of the machine and binds it there, also where this process may
        # run on some of them only, or for part of the time
        options.intra_op_num_threads = self._threads or allowed_threads()
        options.log_severity_level = 3  # errors come as exceptions
        if _int8_overflows():
            options.add_session_config_entry("session.x64quantprecision", "1")
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        choices: dict[str, str] = {}
        if provider != _CPU:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            choices["device_id"] = str(self._index)
        if provider == _ON_CUDA["cuda"]:
            choices["use_tf32"] = "0"  # the default rounds the operands of convolutions to 10 bits
        if provider == _ON_CUDA["tensorrt"]:
            # It computes in any type that it is allowed, so allow exactly the types of the graph
            precision = read_metadata(self._content, self.artifact).precision
            _require_no_tf32(precision, self.artifact)
            choices |= {f"trt_{kind}_enable": str(int(kind in precision)) for kind in ("fp16", "int8")}
        try:
            return ort.InferenceSession(graph, options, providers=[(provider, choices)], enable_fallback=0)
        except Exception as error:  # onnxruntime raises a dozen types; on the CPU all are about the file
            if is_out_of_memory(error):
                raise
            if provider != _CPU:
                _require_libraries(ort, provider, self.device)
                raise BackendError(
                    f"onnxruntime {ort.__version__} does not run {self.artifact} with its {provider} alone on device "
                    f"'{self.device}': {error}"
                ) from None
            raise ArtifactError(
                f"{self.artifact} is no ONNX file that onnxruntime {ort.__version__} can load: {error}"
            ) from None

    def _run(self, frames: UInt8Array, out: UInt8Array) -> None:
        self._fill(frames, labels=out)

    def _run_confidence(self, frames: UInt8Array, labels: UInt8Array, confidence: UInt8Array) -> None:
        self._fill(frames, labels=labels, confidence=confidence)

    def _fill(self, frames: UInt8Array, **outputs: UInt8Array) -> None:
        """Run the network and let it write these outputs, and compute no others."""
        binding = self._session.io_binding()
        self._bind_frames(binding, frames)
        for name, out in outputs.items():
            binding.bind_output(name, "cpu", 0, np.uint8, out.shape, out.ctypes.data)
        self._session.run_with_iobinding(binding)

    def _bind_frames(self, binding: Any, frames: UInt8Array) -> None:
        if self._index is None:
            binding.bind_cpu_input("frames", frames)
            return
        if self._on_device is None or self._on_device.shape() != list(frames.shape):
            import onnxruntime as ort

            self._on_device = ort.OrtValue.ortvalue_from_numpy(frames, "cuda", self._index)
        else:
            self._on_device.update_inplace(frames)
        binding.bind_ortvalue_input("frames", self._on_device)

    def _run_logits(self, frames: UInt8Array) -> npt.NDArray[np.float32]:
        (logits,) = self._session.run(["logits"], {"frames": frames})
        array: npt.NDArray[np.float32] = logits.astype(np.float32, copy=False)
        return array

    def _profile(self, frames: UInt8Array, calls: int) -> Iterator[list[Operation]]:
        if self._index is not None:
            raise BackendError(
                f"onnxruntime on {self.device} measures when operations start, not how long they take; profile on cpu"
            )
        import onnxruntime as ort

        with TemporaryDirectory() as folder:
            session = self._load(ort, self._session.get_providers()[0], f"{folder}/profile")
            for _ in range(calls):
                session.run(["labels"], {"frames": frames})
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        operations = []
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"].removesuffix("_kernel_time").removesuffix("_nchwc")  # blocked layout
                names = () if _ADDED.search(name) else (name,)
                operations.append(Operation(names, event["args"]["op_name"], event["dur"] / 1e3))
        if not operations or len(operations) % calls:
            raise BackendError(
                f"onnxruntime reported {len(operations)} operations in {calls} calls, expected a multiple"
            )
        each = len(operations) // calls
        for start in range(0, each * calls, each):
            yield operations[start : start + each]

    def _close(self) -> None:
        del self._session, self._on_device, self._content


def _int8_overflows() -> bool:
    """Return whether products of uint8 and int8 may overflow in ONNX Runtime: on x86 without VNNI.

    Also true if the CPU's features are unknown. The kernels that never overflow are slower, by half on a CPU with
    VNNI, so they are used only if needed.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        return "_vnni" not in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return True


def _require_provider(ort: Any, provider: str, device: str) -> None:
    """Raise BackendError if this installation lacks the execution provider."""
    both = _both_packages()
    if both:
        log.warning(both)
    if provider not in ort.get_available_providers():
        raise BackendError(
            f"device '{device}' needs onnxruntime's {provider}; this installation has "
            f"{', '.join(ort.get_available_providers())}: "
            + (both or "pip uninstall onnxruntime, then pip install 'enet-deploy[gpu]'")
        )


def _require_no_tf32(precision: str, path: Path) -> None:
    """Raise BackendError if TensorRT would round the operands of fp32 convolutions to 10 bits.

    ONNX Runtime has no option for its TensorRT provider against that. In fp16 the operands have 10 bits anyway.
    """
    if "fp16" not in precision and os.environ.get(_TF32_OVERRIDE) != "0":
        raise BackendError(
            f"provider 'tensorrt' for {path}, a graph in {precision}: it would compute in TF32 what is fp32, which "
            f"only the environment can prevent; start with {_TF32_OVERRIDE}=0, or use provider 'cuda' or backend 'trt'"
        )


def _preload_libraries(ort: Any) -> None:
    """Load CUDA and cuDNN from NVIDIA's pip packages, where the dynamic loader does not look."""
    if not hasattr(ort, "preload_dlls"):  # onnxruntime 1.21
        return
    with contextlib.redirect_stdout(io.StringIO()) as output:  # it prints, and stdout belongs to the command
        ort.preload_dlls()
    if output.getvalue():
        log.debug("onnxruntime.preload_dlls: %s", output.getvalue().strip())


def _require_libraries(ort: Any, provider: str, device: str) -> None:
    """Raise BackendError if a library is missing that the provider is linked to.

    ONNX Runtime then continues without the provider, and its final error names no library. Call this only after that
    error: a provider that is loaded before ONNX Runtime loads it does not find its host.
    """
    name = provider.removesuffix("ExecutionProvider").lower()
    path = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{name}.so"
    try:
        ctypes.CDLL(f"{path}")
    except OSError as error:  # "libcublasLt.so.13: cannot open shared object file: No such file or directory"
        library = f"{error}".partition(":")[0]
        if library == f"{path}":
            return  # all its libraries were found; the problem is another one
        cure = "pip install 'enet-deploy[gpu]'"
        if library.startswith("libcuda."):
            cure = "install the NVIDIA driver"
        elif library.startswith(("libnvinfer", "libnvonnxparser")):
            cure = "install the TensorRT that it was built for"
        raise BackendError(
            f"device '{device}': onnxruntime {ort.__version__} cannot load its {provider}: {error}; {cure}"
        ) from None


def _both_packages() -> str:
    """Return a warning if onnxruntime and onnxruntime-gpu are both installed, else ""."""
    try:
        cpu, gpu = packages.version("onnxruntime"), packages.version("onnxruntime-gpu")
    except packages.PackageNotFoundError:
        return ""
    return (
        f"onnxruntime {cpu} and onnxruntime-gpu {gpu} are both installed and overwrite each other's files; "
        "pip uninstall both, then install the one you want"
    )
