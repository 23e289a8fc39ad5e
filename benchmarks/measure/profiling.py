"""Where a call's time goes: by kind of operation, by stage of the network, and against what the machine can do."""

from __future__ import annotations

import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from enet_deploy.images import UInt8Array
from enet_deploy.runners import Operation, Runner

_STAGE = re.compile(r"^(initial|bottleneck\d_0|stage\d|fullconv)\b")
_CONVOLUTION = re.compile("conv(?!ert)", re.IGNORECASE)  # Conv, QLinearConv, ConvolutionBackpropData; not Convert
FIRST_STAGE = "frames"

_SECONDS = 0.3  # that each peak is searched for


@dataclass(frozen=True)
class Peaks:
    """What the processor reaches on all its cores, numpy's best of several tries: a profile is held against it.

    Attributes:
        gflops: of a float32 matrix product, multiplication and addition counted apart.
        copy_gb: gigabytes per second of a copy, read and written counted once.
    """

    gflops: float
    copy_gb: float


def measure_peaks() -> Peaks:
    """Time a matrix product and a copy that is larger than caches."""
    side = 1024
    a = np.full((side, side), 0.5, np.float32)
    out = np.empty_like(a)
    source = np.zeros(2**26, np.uint8)
    target = np.empty_like(source)
    return Peaks(
        gflops=2 * side**3 / _fastest(lambda: np.matmul(a, a, out=out)) / 1e9,
        copy_gb=source.nbytes / _fastest(lambda: np.copyto(target, source)) / 1e9,
    )


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest call."""
    fastest, end = math.inf, time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def profile(runner: Runner, frames: UInt8Array, calls: int) -> dict[str, Any]:
    """A runner's profile as data. Raises BackendError where its backend does not tell."""
    macs = arithmetic(runner.artifact) if runner.artifact.suffix == ".onnx" else {}
    return to_json(runner.profile(frames, calls), macs)


def to_json(operations: Sequence[Operation], macs: dict[str, int]) -> dict[str, Any]:
    """Times in milliseconds; `macs` has each stage's multiply-adds, or is empty where nobody knows."""
    kinds: defaultdict[str, list[float]] = defaultdict(list)
    stages: dict[str, float] = dict.fromkeys((FIRST_STAGE, *macs), 0.0)
    stage = FIRST_STAGE
    for operation in operations:
        stage = _stage(operation) or stage  # what has no place of its own counts to the one before it
        stages[stage] = stages.get(stage, 0.0) + operation.ms
        kinds[operation.kind].append(operation.ms)
    by_kind = [{"kind": kind, "ms": sum(times), "count": len(times)} for kind, times in kinds.items()]
    return {
        "ms": sum(operation.ms for operation in operations),
        "convolution_ms": sum(sum(times) for kind, times in kinds.items() if _CONVOLUTION.search(kind)),
        "kinds": sorted(by_kind, key=itemgetter("ms"), reverse=True),
        "stages": [{"stage": name, "ms": ms, "multiply_adds": macs.get(name)} for name, ms in stages.items()],
        "operations": [{"names": list(o.names), "kind": o.kind, "ms": o.ms} for o in operations],
    }


def _stage(operation: Operation) -> str | None:
    return next((found[1] for name in operation.names if (found := _STAGE.match(name))), None)


def arithmetic(graph: Path) -> dict[str, int]:
    """The multiply-adds of a .onnx file's convolutions for one frame, by stage."""
    macs: Counter[str] = Counter()
    stage = FIRST_STAGE
    for kernel in kernels(graph):
        found = _STAGE.match(kernel.name)
        stage = found[1] if found else stage
        if kernel.multiply_adds:
            macs[stage] += kernel.multiply_adds
    return dict(macs)


@dataclass(frozen=True)
class Kernel:
    """What an operation of a graph asks of a machine that runs it alone, for one frame.

    Attributes:
        name, kind: of the operation.
        bytes: of its inputs, weights among them, and outputs.
        multiply_adds: of a convolution, else 0.
    """

    name: str
    kind: str
    bytes: int
    multiply_adds: int


# What no compiler merges with another of them; all that stands between them it may
_ALONE = ("Conv", "ConvTranspose", "MaxPool", "ArgMax")
_VIEWS = ("Reshape", "Unsqueeze", "Squeeze", "Constant")


def kernels(graph: Path, fused: bool = False) -> list[Kernel]:
    """The operations of a .onnx file, in order.

    Args:
        fused: only those that are left where everything else is merged into them: the least that can be hoped for.

    Without those that only give memory another name.
    """
    import onnx
    from onnx.helper import tensor_dtype_to_np_dtype

    model = onnx.shape_inference.infer_shapes(onnx.load(graph))
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    tensors = {value.name: value.type.tensor_type for value in values}
    shapes = {name: [d.dim_value or 1 for d in tensor.shape.dim] for name, tensor in tensors.items()}
    types = {name: tensor.elem_type for name, tensor in tensors.items()}
    for weight in model.graph.initializer:
        shapes[weight.name], types[weight.name] = list(weight.dims), weight.data_type

    def size(name: str) -> int:
        return math.prod(shapes[name]) * tensor_dtype_to_np_dtype(types[name]).itemsize if name in shapes else 0

    found = []
    for node in model.graph.node:
        if node.op_type in _VIEWS or (fused and node.op_type not in _ALONE):
            continue
        macs = 0
        # each element of the result takes a kernel's worth of products; of a transposed one each element of the input
        if node.op_type in ("Conv", "ConvTranspose"):
            many = node.output[0] if node.op_type == "Conv" else node.input[0]
            macs = math.prod(shapes[many][1:]) * math.prod(shapes[node.input[1]][1:])
        moved = sum(map(size, (*node.input, *node.output)))
        found.append(Kernel(node.name, node.op_type, moved, macs))
    return found


def expected_seconds(found: Sequence[Kernel], bandwidth: float, flops: float, launch: float) -> float:
    """An estimate of a frame's time: each kernel takes as long as its memory, its arithmetic or its launch needs,
    whichever is the longest.

    Args:
        bandwidth: bytes per second.
        flops: multiplications and additions per second.
        launch: seconds from one kernel to the next, even of an empty one.
    """
    return sum(max(k.bytes / bandwidth, 2 * k.multiply_adds / flops, launch) for k in found)
