"""The time of a call by kind of operation and by stage of the network, compared with the machine's peak rates."""

from __future__ import annotations

import math
import re
import timeit
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import numpy as np

from enet_deploy.images import UInt8Array
from enet_deploy.runners import Operation, Runner

_STAGE = re.compile(r"^(initial|bottleneck\d_0|stage\d|fullconv)\b")
_CONVOLUTION = re.compile("conv(?!ert)", re.IGNORECASE)  # Conv, QLinearConv, ConvolutionBackpropData; not Convert
FIRST_STAGE = "frames"

TRIES = 30  # of each peak; the fastest counts


@dataclass(frozen=True)
class Peaks:
    """The best rates of the processor on all its cores, by numpy in several tries. A profile is compared with them.

    Attributes:
        gflops: GFLOP/s of a float32 matrix product; multiplication and addition count as two.
        copy_gb: GB/s of a copy; a byte that is read and written counts once.
    """

    gflops: float
    copy_gb: float

    def __post_init__(self) -> None:
        if not min(self.gflops, self.copy_gb) > 0:
            raise ValueError(f"gflops {self.gflops} and copy_gb {self.copy_gb}, expected more than 0")


def measure_peaks() -> Peaks:
    """Time a matrix product, and a copy that is larger than the caches."""
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
    return min(timeit.repeat(call, repeat=TRIES, number=1))


@dataclass(frozen=True)
class KindTime:
    """All operations of one kind."""

    kind: str
    ms: float
    count: int


@dataclass(frozen=True)
class StageTime:
    """All operations of one stage of the network; `multiply_adds` of one frame, None if not known."""

    stage: str
    ms: float
    multiply_adds: int | None


@dataclass(frozen=True)
class Profile:
    """Where the time of a call goes, in milliseconds.

    Attributes:
        ms: of all operations.
        convolution_ms: of convolutions.
        kinds: slowest first.
        stages: in the order they run.
        operations: in the order they run.
    """

    ms: float
    convolution_ms: float
    kinds: tuple[KindTime, ...]
    stages: tuple[StageTime, ...]
    operations: tuple[Operation, ...]

    def __post_init__(self) -> None:
        if not self.ms > 0:
            raise ValueError(f"ms {self.ms}, expected more than 0")

    @classmethod
    def of(cls, operations: Sequence[Operation], macs: dict[str, int]) -> Profile:
        """Sum up the operations of a call; `macs` has each stage's multiply-adds, or is empty if not known."""
        kinds: defaultdict[str, list[float]] = defaultdict(list)
        stages: dict[str, float] = dict.fromkeys((FIRST_STAGE, *macs), 0.0)
        stage = FIRST_STAGE
        for operation in operations:
            stage = _stage(operation) or stage  # an operation without a place counts to the stage before it
            stages[stage] = stages.get(stage, 0.0) + operation.ms
            kinds[operation.kind].append(operation.ms)
        by_kind = (KindTime(kind, sum(times), len(times)) for kind, times in kinds.items())
        return cls(
            ms=sum(operation.ms for operation in operations),
            convolution_ms=sum(sum(times) for kind, times in kinds.items() if _CONVOLUTION.search(kind)),
            kinds=tuple(sorted(by_kind, key=attrgetter("ms"), reverse=True)),
            stages=tuple(StageTime(name, ms, macs.get(name)) for name, ms in stages.items()),
            operations=tuple(operations),
        )


def profile(runner: Runner, frames: UInt8Array, calls: int) -> Profile:
    """Profile `calls` calls of a runner. Raises BackendError if its backend does not tell."""
    macs = arithmetic(runner.artifact) if runner.artifact.suffix == ".onnx" else {}
    return Profile.of(runner.profile(frames, calls), macs)


def _stage(operation: Operation) -> str | None:
    return next((found[1] for name in operation.names if (found := _STAGE.match(name))), None)


def arithmetic(graph: Path) -> dict[str, int]:
    """Stage -> multiply-adds of its convolutions for one frame, from a .onnx file."""
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
    """The work of one operation of a graph for one frame, if it runs as a kernel of its own.

    Attributes:
        name, kind: of the operation.
        bytes: of its inputs, including weights, and its outputs.
        multiply_adds: of a convolution, else 0.
    """

    name: str
    kind: str
    bytes: int
    multiply_adds: int


# Operations that no compiler merges with each other; it may merge everything between them
_ALONE = ("Conv", "ConvTranspose", "MaxPool", "ArgMax")
_VIEWS = ("Reshape", "Unsqueeze", "Squeeze", "Constant")


def kernels(graph: Path, fused: bool = False) -> list[Kernel]:
    """The operations of a .onnx file, in order, without those that only rename memory.

    Args:
        fused: keep only operations that cannot be merged into others: the best case of a compiler.
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
        # one kernel's worth of products for each element of the output; of the input if the convolution is transposed
        if node.op_type in ("Conv", "ConvTranspose"):
            many = node.output[0] if node.op_type == "Conv" else node.input[0]
            macs = math.prod(shapes[many][1:]) * math.prod(shapes[node.input[1]][1:])
        moved = sum(map(size, (*node.input, *node.output)))
        found.append(Kernel(node.name, node.op_type, moved, macs))
    return found


def expected_seconds(found: Sequence[Kernel], bandwidth: float, flops: float, launch: float) -> float:
    """Estimate the time of a frame, in seconds.

    Each kernel takes as long as its memory traffic, its arithmetic or its launch, whichever is longest.

    Args:
        bandwidth: bytes per second.
        flops: multiplications and additions per second.
        launch: seconds from one kernel to the next, even of an empty one.
    """
    return sum(max(k.bytes / bandwidth, 2 * k.multiply_adds / flops, launch) for k in found)
