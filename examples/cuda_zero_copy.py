"""Run an engine on frames that are on the GPU already, in arrays of torch, cupy or pycuda, without a host copy.

    python examples/cuda_zero_copy.py enet-fp16.engine [torch|cupy|pycuda]

The runner takes any array with `__cuda_array_interface__`: uint8 (N, H, W, 3) BGR, C-contiguous. It first waits for the
work queued on torch's current stream, on the stream that a cupy array names, or else on the default stream. When
`infer` returns, the labels are in `out`.
"""

import sys
from typing import Any

from enet_deploy import EnetError, open_runner


def with_torch(shape: tuple[int, ...]) -> tuple[Any, Any]:
    import torch

    # in place of a decoder's or a camera's output
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda")
    return frames, torch.empty(shape[:3], dtype=torch.uint8, device="cuda")


def with_cupy(shape: tuple[int, ...]) -> tuple[Any, Any]:
    import cupy

    return cupy.random.randint(0, 256, shape, dtype=cupy.uint8), cupy.empty(shape[:3], cupy.uint8)


def with_pycuda(shape: tuple[int, ...]) -> tuple[Any, Any]:
    import numpy as np
    import pycuda.autoprimaryctx  # the context that the runner, torch and cupy use; autoinit creates another one
    from pycuda import gpuarray

    assert pycuda.autoprimaryctx.context is not None
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return gpuarray.to_gpu(frames), gpuarray.empty(shape[:3], np.uint8)


def main() -> None:
    make = {"torch": with_torch, "cupy": with_cupy, "pycuda": with_pycuda}[
        sys.argv[2] if len(sys.argv) > 2 else "torch"
    ]
    with open_runner(sys.argv[1], backend="trt") as runner:
        frames, out = make((runner.spec.batch or 1, *runner.spec.size, 3))
        runner.infer(frames, out=out)
        print(f"labels {tuple(out.shape)} at {out.__cuda_array_interface__['data'][0]:#x} on {runner.spec.device}")


if __name__ == "__main__":
    try:
        main()
    except (EnetError, ImportError) as error:
        raise SystemExit(f"cuda_zero_copy: {error}") from None
