"""PyTorch: the weights in their train form. The reference that every other backend is compared with."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..artifacts import Metadata, check_size
from ..control_groups import quota_threads
from ..environment import processor
from ..errors import BackendError, InputError
from ..images import UInt8Array
from .base import Runner, cuda_index
from .spec import Spec

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..weights import Weights


def torch_device(name: str) -> torch.device:
    """Return the device of this name. Raises BackendError if torch does not have it; there is no fallback."""
    import torch

    index = cuda_index(name)
    if index is None and name != "cpu":
        raise BackendError(f"device '{name}' for torch, expected cpu, cuda or cuda:N")
    if index is not None and index >= torch.cuda.device_count():
        raise BackendError(
            f"device '{name}', but torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices; use cpu"
        )
    return torch.device(name)


def respect_quota() -> None:
    """Let PyTorch compute in no more threads than the CPU quota of a container pays for, in the whole process.

    By default it counts the cores. Does nothing if the environment says how many threads to use.
    """
    import torch

    threads = quota_threads()
    if 0 < threads < torch.get_num_threads() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)


_tf32_lock = threading.Lock()


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Let convolutions on CUDA multiply in fp32 during the block. PyTorch's default is TF32, with a 10-bit mantissa.

    The setting belongs to the whole process: other threads compute in fp32 too, and a second block waits for the
    first one, so that neither restores the setting too early.
    """
    from torch.backends import cudnn

    conv = cudnn.conv  # type: ignore[attr-defined]  # set at run time
    with _tf32_lock:
        before = conv.fp32_precision
        conv.fp32_precision = "ieee"
        try:
            yield
        finally:
            conv.fp32_precision = before


def _require_bf16(device: str) -> None:
    """Raise BackendError unless the device is a CPU that computes in bfloat16 itself; others imitate it slowly."""
    name, features = processor()
    if device != "cpu" or not {"avx512_bf16", "amx_bf16"} & set(features.split()):
        raise BackendError(
            f"precision 'bf16' for torch on {name if device == 'cpu' else device}, expected a CPU with AVX512_BF16 or "
            "AMX; leave the precision out"
        )


class TorchRunner(Runner):
    """Runs weights (.safetensors) in eager PyTorch, channels_last, in fp32 or if asked in bf16; on CUDA without TF32.

    Args:
        artifact: weights that enet-train wrote.
        device: "cpu", "cuda" or "cuda:N".
        precision: "bf16" lets PyTorch compute in bfloat16 what its autocast allows, on a CPU that can; None is fp32.
        size: (height, width) of the frames, divisible by 8; by default the size that the weights were trained at.
        weights: the artifact, if the caller has read it already; else it is read when the runner opens.
    """

    backend = "torch"

    def __init__(
        self,
        artifact: str | Path,
        device: str = "cpu",
        precision: str | None = None,
        size: tuple[int, int] | None = None,
        weights: Weights | None = None,
    ) -> None:
        super().__init__(artifact, device)
        if precision not in (None, "bf16"):
            raise InputError(f"precision {precision!r}, expected 'bf16', or None for fp32")
        self._precision = precision
        if size is not None:
            if len(size) != 2 or not all(isinstance(side, int) for side in size):
                raise InputError(f"size {size!r}, expected two whole numbers: (height, width)")
            size = (size[0], size[1])
            check_size(size)
        self._size = size
        self._weights = weights

    def _open(self) -> Spec:
        import torch

        from ..model import Segmenter

        self._on = torch_device(self.device)
        if self._precision is not None:
            _require_bf16(self.device)
        net, metadata = self._load()
        metadata = dataclasses.replace(metadata, size=self._size or metadata.size)
        self._torch = torch
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._segmenter = Segmenter(net, metadata.mean, metadata.std).to(self._on).eval()
        # All calls compute in one thread: OpenMP keeps a pool for each computing thread. With more pool threads than
        # cores, each call takes twice as long (measured on 2 cores: infer() and stream() in turn)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="enet-torch", initializer=respect_quota)
        runtime = "" if self.device == "cpu" else "cuDNN, TF32 off"
        self._temperature = metadata.temperature
        precision = self._precision or ""
        return self._make_spec(metadata, None, True, runtime=runtime, precision=precision, has_confidence=True)

    def _load(self) -> tuple[nn.Module, Metadata]:
        """Return a network of this runner's own, and its metadata."""
        from ..weights import Weights

        weights = self._weights or Weights.read(self.artifact)
        return copy.deepcopy(weights.net), dataclasses.replace(weights.metadata, weights_sha256=weights.sha256)

    def _run(self, frames: UInt8Array, out: UInt8Array) -> None:
        # Copied here and not in the thread: it continues if a signal's handler raises while this one waits, and `out`
        # is then the caller's again
        np.copyto(out, self._thread.submit(self._label, frames).result())

    def _run_logits(self, frames: UInt8Array) -> npt.NDArray[np.float32]:
        return self._thread.submit(self._score, frames).result()

    def _run_confidence(self, frames: UInt8Array, labels: UInt8Array, confidence: UInt8Array) -> None:
        found = self._thread.submit(self._judge, frames).result()
        np.copyto(labels, found[0])
        np.copyto(confidence, found[1])

    def _judge(self, frames: UInt8Array) -> tuple[UInt8Array, UInt8Array]:
        with self._torch.inference_mode(), self._autocast():
            logits = self._compute(self._segmenter.logits, frames).float()
            labels = logits.argmax(1)  # not of the probabilities: two of them may be equal where their logits differ
            probability = (logits / self._temperature).softmax(1).amax(1)
            uint8 = self._torch.uint8
            return labels.to(uint8).cpu().numpy(), (probability * 255 + 0.5).to(uint8).cpu().numpy()

    def _label(self, frames: UInt8Array) -> UInt8Array:
        with self._torch.inference_mode(), self._autocast():
            labels: UInt8Array = self._compute(self._segmenter, frames).cpu().numpy()
            return labels

    def _score(self, frames: UInt8Array) -> npt.NDArray[np.float32]:
        with self._torch.inference_mode(), self._autocast():
            logits = self._compute(self._segmenter.logits, frames)
            array: npt.NDArray[np.float32] = logits.float().cpu().contiguous().numpy()
            return array

    def _autocast(self) -> torch.autocast:
        return self._torch.autocast("cpu", self._torch.bfloat16, enabled=self._precision is not None)

    def _compute(self, function: Callable[[torch.Tensor], torch.Tensor], frames: UInt8Array) -> torch.Tensor:
        """Run function(frames) on the device. On CUDA the work is launched when this returns, not finished."""
        on_device = self._torch.tensor(frames, device=self._on)
        with contextlib.nullcontext() if self.device == "cpu" else without_tf32():
            return function(on_device)

    def _close(self) -> None:
        self._thread.shutdown()
        del self._thread, self._segmenter
