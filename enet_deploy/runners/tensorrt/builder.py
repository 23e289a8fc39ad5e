"""ONNX -> TensorRT engine with its card: one builder for TensorRT 10, TensorRT 11 and TensorRT-RTX.

The engine has the precision of the graph: the network is strongly typed, and no builder flag changes a type. Needs
TensorRT and onnx but no PyTorch, so a robot can build for its own GPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...artifacts import Metadata, check_digest, graph_metadata, read_artifact, require_finite
from ...cache import cache_folder, private_folder_if_possible, read_entry, write_entry
from ...console import printable
from ...errors import ArtifactError, BackendError, EnetError, InputError
from ...files import atomic_write, file_lock, require_writable
from ..graph import parse_graph, reading_text
from .card import EngineCard
from .cuda import Gpu, find_gpu
from .inspection import inspect, precision_shares, require_precision
from .library import FLAVOURS, hardware_level, import_tensorrt, make_logger, rtx_capabilities, start
from .monitor import Progress, cancelled_by_ctrl_c, make_monitor, progress_bar

if TYPE_CHECKING:
    from google.protobuf.message import Message


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build.

    Attributes:
        flavour: "trt" for the GPU in this machine, "trt-rtx" for any GPU of the RTX line.
        compute_capabilities: GPUs that trt-rtx builds for ahead of time, such as "8.6"; empty for the GPU in this
            machine.
        version_compatible: later versions of TensorRT may load the engine (trt only).
        hardware_compatible: other GPUs, Ampere and later, may load the engine (trt only).
        workspace_mb: scratch memory that a layer may use, in MiB; by default all memory of the GPU.
        optimization_level: 0 (fast to build) to 5 (fast to run); by default TensorRT's own default, 3.
        max_batch: the most frames per call of a graph with a dynamic batch. The engine is tuned for one frame.
        timing_cache: folder for kernel timings, which make the next build faster; None for no file. TensorRT-RTX
            measures nothing while it builds.

    Raises InputError if a value is impossible, or if the flavour does not have the option.
    """

    flavour: str
    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    hardware_compatible: bool = False
    workspace_mb: int | None = None
    optimization_level: int | None = None
    max_batch: int = 8
    timing_cache: Path | None = field(default_factory=cache_folder)

    def __post_init__(self) -> None:
        if self.flavour not in FLAVOURS:
            raise InputError(f"engine '{self.flavour}', expected one of {', '.join(FLAVOURS)}")
        if self.flavour == "trt" and self.compute_capabilities:
            raise InputError(
                f"compute capability {', '.join(self.compute_capabilities)} with engine 'trt', which is built for the "
                "GPU in the machine; only trt-rtx builds ahead of time"
            )
        if self.flavour == "trt-rtx" and self.version_compatible:
            raise InputError("version-compatible with engine 'trt-rtx', expected engine 'trt', which alone has it")
        if self.flavour == "trt-rtx" and self.hardware_compatible:
            raise InputError(
                "hardware-compatible with engine 'trt-rtx', expected engine 'trt'; for TensorRT-RTX, name each compute "
                "capability that the engine is for instead"
            )
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise InputError(f"workspace {self.workspace_mb} MiB, expected at least 1")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise InputError(f"optimization level {self.optimization_level}, expected 0 to 5")
        if self.max_batch < 1:
            raise InputError(f"batch of at most {self.max_batch}, expected at least 1")


@dataclass(frozen=True)
class Build:
    """The result of a build.

    Attributes:
        path: the engine.
        card: its card.
        bytes: size of the engine.
        seconds: duration of the build.
        inspected: whether the engine was inspected, which needs a GPU that it is built for. If it was and the card
            has no precision_shares, then the inspector reported no types.
    """

    path: Path
    card: EngineCard
    bytes: int
    seconds: float
    inspected: bool


def to_engine(
    onnx_path: str | Path, path: str | Path, options: BuildOptions, progress: Progress | None = None
) -> Build:
    """Build an engine from a graph that enet-export wrote. Engine and card are written atomically.

    Args:
        onnx_path: the graph. The engine gets its precision.
        path: the engine to write. Its card is written beside it, see EngineCard.path.
        progress: called during the build; by default a progress bar is shown if stderr is a terminal.

    Nothing is written if it raises:
        ArtifactError: the file is no such graph, or TensorRT refuses it.
        InputError: TensorRT does not know a compute capability.
        BackendError: onnx, TensorRT or a suitable GPU is not available, or the build fails.
        ParityError: the engine computes in other precisions than the graph asks for.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    require_writable(path)
    require_writable(EngineCard.path(path))
    model, metadata = read_graph(Path(onnx_path))
    trt = import_tensorrt(options.flavour)
    gpu, capabilities = _machine(trt, options)

    started = time.perf_counter()
    with contextlib.nullcontext(progress) if progress else progress_bar(f"building {Path(path).name}") as show:
        engine = _build(trt, model, f"{onnx_path}", options, gpu, show)
    seconds = time.perf_counter() - started

    inspected = gpu is not None and gpu.compute_capability in capabilities
    shares = precision_shares(inspect(trt, engine, host_code=options.version_compatible)) if inspected else None
    require_precision(metadata.precision, shares, path)
    card = EngineCard(
        engine_sha256=hashlib.sha256(engine).hexdigest(),
        onnx_sha256=hashlib.sha256(model).hexdigest(),
        flavour=options.flavour,
        version=trt.__version__,
        compute_capabilities=capabilities,
        gpu=None if gpu is None or options.compute_capabilities else gpu.name,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        precision_shares=shares,
        metadata=metadata,
    )
    _write(Path(path), engine, card)
    return Build(Path(path), card, len(engine), seconds, inspected)


def _write(path: Path, engine: bytes, card: EngineCard) -> None:
    folder = path.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    # The card is written first: if writing the engine then fails, the card refuses the old engine. Locked, because of
    # two builds of the same file one could leave its card and the other its engine.
    with file_lock(folder), atomic_write(path) as temporary:
        temporary.write_bytes(engine)
        card.write(path)


def require_buildable(options: BuildOptions) -> None:
    """Raise as `to_engine` if TensorRT, the GPU or a compute capability is missing. Call it before a long export."""
    _machine(import_tensorrt(options.flavour), options)


def read_graph(path: Path) -> tuple[bytes, Metadata]:
    """Return the bytes of an exported ONNX file, and its metadata.

    Raises ArtifactError if the file is missing, damaged, foreign, refers to other files, or is laid out for ONNX
    Runtime; BackendError if the package onnx is not installed.
    """
    content = read_artifact(path)
    check_digest(content, path)
    model = parse_graph(content, path)
    if _names_other_files(model):  # TensorRT would open them, wherever they are
        raise ArtifactError(f"{path} names other files for its weights, expected them inside it; export it again")
    require_finite(model, path)
    with reading_text(path):
        metadata = graph_metadata(model, path)
    if metadata.qdq_layout == "ort":
        raise ArtifactError(
            f"{path} is laid out for ONNX Runtime, whose uint8 activations and int32 biases TensorRT refuses; "
            "export it without --target ort"
        )
    return content, metadata


def _names_other_files(message: Message) -> bool:
    """Return whether a tensor at any depth of an ONNX message has external data.

    onnx's own `load_external_data_for_model` misses sparse tensors, so this visits every field: initializers,
    attributes, subgraphs, functions, and what later versions of ONNX add.
    """
    from google.protobuf.message import Message
    from onnx import TensorProto
    from onnx.external_data_helper import uses_external_data

    if isinstance(message, TensorProto):
        return bool(message.external_data) or uses_external_data(message)
    for descriptor, value in message.ListFields():
        if descriptor.message_type:
            messages = [value] if isinstance(value, Message) else value
            if any(_names_other_files(inner) for inner in messages):
                return True
    return False


def _machine(trt: Any, options: BuildOptions) -> tuple[Gpu | None, tuple[str, ...]]:
    """Return the GPU in this machine (None if none is found and needed), and the compute capabilities to build for.

    Raises InputError for a compute capability, BackendError for a GPU, that TensorRT-RTX does not support.
    """
    gpu, capabilities = _targeted(options)
    known = rtx_capabilities(trt) if options.flavour == "trt-rtx" else capabilities
    unknown = [capability for capability in capabilities if capability not in known]
    if unknown:
        supported = f"that TensorRT-RTX {trt.__version__} builds for: {', '.join(sorted(known, key=float))}"
        if not options.compute_capabilities:
            raise BackendError(f"{gpu}, expected a compute capability {supported}; build with --engine trt")
        raise InputError(
            f"compute capability '{unknown[0]}', expected one {supported}; for a Jetson or a data-centre GPU "
            "build with --engine trt on that machine"
        )
    return gpu, capabilities


def _targeted(options: BuildOptions) -> tuple[Gpu | None, tuple[str, ...]]:
    """Return the same as `_machine`, without a check that TensorRT supports it."""
    named = tuple(dict.fromkeys(options.compute_capabilities))
    try:
        gpu = find_gpu()
        return gpu, named or (gpu.compute_capability,)
    except BackendError as error:
        if named:
            return None, named
        if options.flavour == "trt":
            raise
        raise BackendError(
            f"{error}; to build for a GPU that is not here, name its compute capability: --compute-capability 8.6"
        ) from None


def _build(trt: Any, model: bytes, source: str, options: BuildOptions, gpu: Gpu | None, progress: Progress) -> bytes:
    """Build the serialised engine of a serialised graph. Errors name the graph `source`."""
    logger = make_logger(trt)
    builder = start(trt, "Builder")
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise ArtifactError(f"{source} is refused by TensorRT {trt.__version__}: {_refusal(parser)}")
    config = builder.create_builder_config()
    configure(trt, config, options, gpu)
    _add_profile(builder, network, config, options.max_batch)
    with _timing_cache(trt, config, options, gpu), cancelled_by_ctrl_c() as cancelled:
        monitor = make_monitor(trt, cancelled, progress)  # must outlive the build
        config.progress_monitor = monitor
        engine = builder.build_serialized_network(network, config)
    if cancelled.is_set():
        raise KeyboardInterrupt("no engine was written")
    if engine is None:
        raise BackendError(f"TensorRT {trt.__version__} built no engine from {source}: {logger.told()}")
    return bytes(engine)


def configure(trt: Any, config: Any, options: BuildOptions, gpu: Gpu | None) -> None:
    """Set the options of an IBuilderConfig. Raises InputError if this TensorRT does not have one."""
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector reports no types
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, but the graph asks for fp32
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = hardware_level(trt, gpu)
    if options.flavour == "trt-rtx":
        known = rtx_capabilities(trt)
        named = [known[capability] for capability in dict.fromkeys(options.compute_capabilities)]
        targets = named or [trt.ComputeCapability.CURRENT]
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(target, index)


def _add_profile(builder: Any, network: Any, config: Any, max_batch: int) -> None:
    """Allow 1 to `max_batch` frames if the graph has a dynamic batch; tune for 1, as a camera needs."""
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    dynamic = [tensor for tensor in tensors if tensor.shape[0] == -1]
    if dynamic:
        profile = builder.create_optimization_profile()
        for tensor in dynamic:
            frame = tuple(tensor.shape)[1:]
            profile.set_shape(tensor.name, (1, *frame), (1, *frame), (max_batch, *frame))
        config.add_optimization_profile(profile)


def _refusal(parser: Any) -> str:
    """Return the parser's first error, with the name of the node."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        return "it gave no reason"
    first = errors[0]
    node = f"node '{first.node_name()}' ({first.node_operator()}): " if first.node_operator() else ""
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return f"{node}{' '.join(first.desc().split())}{more}; export the graph again with enet-export"


@contextmanager
def _timing_cache(trt: Any, config: Any, options: BuildOptions, gpu: Gpu | None) -> Iterator[None]:
    """Let the build use kernel timings of earlier builds on this GPU, and store the new ones."""
    folder = None
    if gpu is not None and options.timing_cache is not None and options.flavour != "trt-rtx":
        folder = private_folder_if_possible(options.timing_cache)
    if gpu is None or folder is None:
        yield
        return
    name = re.sub(r"\W+", "-", f"{gpu.name} {gpu.compute_capability} tensorrt {trt.__version__}").lower()
    path = folder / f"{name}.timing"
    for content in (read_entry(path), b""):  # start with an empty one if the file is damaged
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            break
    yield
    if (cache := config.get_timing_cache()) is not None:
        write_entry(path, bytes(cache.serialize()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Build an engine for `cached_engine`, which runs this in its own process. Arguments: GRAPH ENGINE FLAVOUR.

    Returns the exit code. An error is one line on stderr.
    """
    graph, engine, flavour = sys.argv[1:] if arguments is None else arguments
    try:
        to_engine(graph, engine, BuildOptions(flavour))
    except EnetError as error:
        print(printable(str(error)), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
