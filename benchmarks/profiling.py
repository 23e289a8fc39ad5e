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

from enet_deploy.data import UInt8Array
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
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(graph))
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    shapes = {value.name: [d.dim_value or 1 for d in value.type.tensor_type.shape.dim] for value in values}
    shapes |= {initializer.name: list(initializer.dims) for initializer in model.graph.initializer}
    macs: Counter[str] = Counter()
    stage = FIRST_STAGE
    for node in model.graph.node:
        found = _STAGE.match(node.name)
        stage = found[1] if found else stage
        # each element of the result takes a kernel's worth of products; of a transposed one each element of the input
        if node.op_type == "Conv":
            macs[stage] += math.prod(shapes[node.output[0]][1:]) * math.prod(shapes[node.input[1]][1:])
        elif node.op_type == "ConvTranspose":
            macs[stage] += math.prod(shapes[node.input[0]][1:]) * math.prod(shapes[node.input[1]][1:])
    return dict(macs)
