"""ONNX -> TensorRT engine with the card beside it: one builder for TensorRT 10, TensorRT 11 and TensorRT-RTX.

The precision is the graph's: the network is strongly typed everywhere, and no builder flag changes a type. Needs no
PyTorch and no onnx, so that a robot can build for its own GPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...artifacts import METADATA_KEY, Metadata
from ...console import printable
from ...errors import ArtifactError, BackendError, EnetError, InputError, ParityError
from ...files import atomic_write, file_lock, require_writable
from .card import EngineCard
from .cuda import Gpu, find_gpu
from .library import FLAVOURS, cache_folder, import_tensorrt, load_engine, make_logger, rtx_capabilities, start

Progress = Callable[[str, float], None]  # takes what is being done, and the share of the build that is done


@dataclass(frozen=True)
class BuildOptions:
    """What to build, and how hard to try.

    Attributes:
        flavour: "trt" for the GPU in this machine, "trt-rtx" for any GPU of the RTX line.
        compute_capabilities: that trt-rtx builds for ahead of time, such as "8.6"; none for the GPU in this machine.
        version_compatible: whether later versions of TensorRT may load the engine (trt).
        hardware_compatible: whether other GPUs, Ampere and later, may load the engine (trt).
        workspace_mb: memory that a layer may use to compute, in MiB; by default all of the GPU's.
        optimization_level: 0, fast to build, to 5, fast to run; by default TensorRT's own, 3.
        max_batch: the most frames per call of a graph that takes any number; tuned for one.
        timing_cache: folder that keeps what the GPU was measured to do, so that the next build is faster; None for
            no such file. TensorRT-RTX measures nothing while it builds.

    Raises InputError where a value is impossible, or the flavour does not have the option.
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
            raise InputError("a version-compatible engine, which TensorRT-RTX does not make; take engine 'trt'")
        if self.flavour == "trt-rtx" and self.hardware_compatible:
            raise InputError(
                "a hardware-compatible engine, which TensorRT-RTX does not make; name every compute capability that "
                "the engine is for"
            )
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise InputError(f"workspace {self.workspace_mb} MiB, expected at least 1")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise InputError(f"optimization level {self.optimization_level}, expected 0 to 5")
        if self.max_batch < 1:
            raise InputError(f"batch of at most {self.max_batch}, expected at least 1")


@dataclass(frozen=True)
class Build:
    """What was built.

    Attributes:
        bytes: the engine's size.
        seconds: what building took.
        inspected: whether the inspector was asked, which needs a GPU that the engine is for. Where it was, and the
            card has no precision_shares, it told no types.
    """

    path: Path
    card: EngineCard
    bytes: int
    seconds: float
    inspected: bool


def to_engine(
    onnx_path: str | Path, path: str | Path, options: BuildOptions, progress: Progress | None = None
) -> Build:
    """Build an engine from a graph that enet-export wrote; it and its card appear whole, or not at all.

    Args:
        onnx_path: the graph. Its precision is the engine's.
        path: the engine to write; the card lies beside it, see EngineCard.path.
        progress: called with what TensorRT is doing and the share in [0, 1] that is done; by default a bar on a
            terminal's stderr.

    Raises ArtifactError for a file that is no such graph or that TensorRT refuses, InputError for a compute
    capability that TensorRT does not know, BackendError where TensorRT or a GPU that it builds for cannot be had or
    the build fails, ParityError where the engine computes in other precisions than the graph asks for,
    KeyboardInterrupt for Ctrl-C; then nothing is written.
    """
    require_writable(path)
    require_writable(EngineCard.path(path))
    model, metadata = read_graph(Path(onnx_path))
    trt = import_tensorrt(options.flavour)
    gpu, capabilities = _machine(trt, options)

    started = time.perf_counter()
    with contextlib.nullcontext(progress) if progress else _bar(f"building {Path(path).name}") as show:
        engine = _build(trt, model, f"{onnx_path}", options, gpu, show)
    seconds = time.perf_counter() - started

    inspected = gpu is not None and gpu.compute_capability in capabilities
    shares = precision_shares(_inspect(trt, engine, options)) if inspected else None
    _require_precision(metadata.precision, shares, path)
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
    folder = Path(path).resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    # The card takes its place first: should the engine then fail to, the card refuses what it does not describe.
    # Locked: of two exports to one name, one could leave its card and the other its engine
    with file_lock(folder), atomic_write(path) as temporary:
        temporary.write_bytes(engine)
        card.write(path)
    return Build(Path(path), card, len(engine), seconds, inspected)


def require_buildable(options: BuildOptions) -> None:
    """Raise what `to_engine` would where TensorRT, the GPU or a compute capability is missing: before a long export."""
    _machine(import_tensorrt(options.flavour), options)


# --- the graph ---------------------------------------------------------------------------------------------------


def read_graph(path: Path) -> tuple[bytes, Metadata]:
    """An ONNX file and what it says about itself.

    Raises ArtifactError where it is none of ours, or laid out for another backend.
    """
    try:
        model = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); expected a graph of enet-export") from None
    try:
        properties = _metadata_props(model)
        external = _has_external_data(memoryview(model), "model")
    except (ValueError, RecursionError):
        raise ArtifactError(f"{path} is no ONNX file, or damaged; export it again with enet-export") from None
    if external:  # TensorRT would open whatever files it names
        raise ArtifactError(f"{path} names other files for its weights, expected them inside it; export it again")
    metadata = Metadata.from_text(properties.get(METADATA_KEY), path)
    calibration = metadata.details.get("calibration")
    if isinstance(calibration, dict) and calibration.get("target") == "ort":
        raise ArtifactError(
            f"{path} is laid out for ONNX Runtime, whose uint8 activations and int32 biases TensorRT refuses; "
            "export it without --target ort"
        )
    return model, metadata


def _metadata_props(model: bytes) -> dict[str, str]:
    """ModelProto.metadata_props, read without the onnx package. Raises ValueError where `model` has no graph."""
    fields = list(_fields(memoryview(model)))
    if 7 not in (number for number, _ in fields):  # ModelProto.graph
        raise ValueError("no graph")
    entries = [dict(_fields(content)) for number, content in fields if number == 14]  # of StringStringEntryProto
    return {str(entry.get(1, b""), "utf-8"): str(entry.get(2, b""), "utf-8") for entry in entries}


# Message of an ONNX file -> number of a field -> the message in it; all the ways that lead to tensors
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
_EXTERNAL_DATA = 13  # field of a tensor


def _has_external_data(message: memoryview, kind: str) -> bool:
    """Whether any tensor in a message of an ONNX file is said to lie in another file. Raises ValueError."""
    if kind == "tensor":
        return any(number == _EXTERNAL_DATA for number, _ in _fields(message))
    inside = _INSIDE[kind]
    return any(_has_external_data(content, inside[number]) for number, content in _fields(message) if number in inside)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of a protobuf message's fields that are strings, bytes or messages; numbers are passed."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            _, at = _varint(message, at)
        elif kind == 2:
            length, at = _varint(message, at)
            yield key >> 3, message[at : at + length]
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"kind {kind}")
    if at > len(message):
        raise ValueError("cut short")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits to a byte with the low ones first, and where it ends."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(message):
            raise ValueError("cut short")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")


# --- the build ---------------------------------------------------------------------------------------------------


def _machine(trt: Any, options: BuildOptions) -> tuple[Gpu | None, tuple[str, ...]]:
    """The GPU in this machine, None where there is none and none is needed, and what is to be built for.

    Raises InputError for a compute capability, BackendError for a GPU, that TensorRT-RTX does not build for.
    """
    gpu, capabilities = _asked_for(options)
    known = rtx_capabilities(trt) if options.flavour == "trt-rtx" else capabilities
    unknown = [capability for capability in capabilities if capability not in known]
    if unknown:
        those = f"that TensorRT-RTX {trt.__version__} builds for: {', '.join(sorted(known, key=float))}"
        if not options.compute_capabilities:
            raise BackendError(f"{gpu} is none of the GPUs {those}; build with --engine trt")
        raise InputError(
            f"compute capability '{unknown[0]}', expected one {those}; for a Jetson or a data-centre GPU: --engine "
            "trt, on it"
        )
    return gpu, capabilities


def _asked_for(options: BuildOptions) -> tuple[Gpu | None, tuple[str, ...]]:
    """The same, whether TensorRT builds for it or not."""
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
    """The serialised engine of a serialised graph; `source` names the graph in errors."""
    logger = make_logger(trt)
    builder = start(trt, "Builder")
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise ArtifactError(f"{source} is refused by TensorRT {trt.__version__}: {_refusal(parser)}")
    config = builder.create_builder_config()
    configure(trt, config, options, gpu)
    _add_profile(builder, network, config, options.max_batch)
    with _timing_cache(trt, config, options, gpu), _cancelled_by_ctrl_c() as cancelled:
        monitor = _make_monitor(trt, cancelled, progress)  # has to outlive the build
        config.progress_monitor = monitor
        engine = builder.build_serialized_network(network, config)
    if cancelled.is_set():
        raise KeyboardInterrupt("no engine was written")
    if engine is None:
        raise BackendError(f"TensorRT {trt.__version__} built no engine from {source}: {logger.told()}")
    return bytes(engine)


def configure(trt: Any, config: Any, options: BuildOptions, gpu: Gpu | None) -> None:
    """Set the options. All that versions and flavours of TensorRT do not share is in this function.

    A version is asked whether it has a thing, never which version it is. Raises InputError where it has not.
    """
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector tells no types
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default; but fp32 is what was asked for, and fp16 is faster
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        levels = trt.HardwareCompatibilityLevel
        if gpu is None or int(gpu.compute_capability.split(".")[0]) >= 8:
            config.hardware_compatibility_level = levels.AMPERE_PLUS
        elif hasattr(levels, "SAME_COMPUTE_CAPABILITY"):  # TensorRT 10.10
            config.hardware_compatibility_level = levels.SAME_COMPUTE_CAPABILITY
        else:
            raise InputError(
                f"a hardware-compatible engine on {gpu.name}, of compute capability {gpu.compute_capability}: TensorRT "
                f"{trt.__version__} makes them from 8.0; build without, or with TensorRT 10.10 or later"
            )
    if options.flavour == "trt-rtx":
        targets = _targets(trt, options.compute_capabilities)
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(target, index)


def _targets(trt: Any, capabilities: tuple[str, ...]) -> list[Any]:
    """Members of trt.ComputeCapability: SM86 for "8.6", CURRENT for none."""
    known = rtx_capabilities(trt)
    return [known[capability] for capability in dict.fromkeys(capabilities)] or [trt.ComputeCapability.CURRENT]


def _add_profile(builder: Any, network: Any, config: Any, max_batch: int) -> None:
    """Where the graph takes any number of frames: from 1 to `max_batch`, tuned for 1, what a camera gives."""
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    dynamic = [tensor for tensor in tensors if tensor.shape[0] == -1]
    if dynamic:
        profile = builder.create_optimization_profile()
        for tensor in dynamic:
            frame = tuple(tensor.shape)[1:]
            profile.set_shape(tensor.name, (1, *frame), (1, *frame), (max_batch, *frame))
        config.add_optimization_profile(profile)


def _refusal(parser: Any) -> str:
    """What the parser has against the graph, naming the node."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        return "it gave no reason"
    first = errors[0]
    node = f"node '{first.node_name()}' ({first.node_operator()}): " if first.node_operator() else ""
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return f"{node}{' '.join(first.desc().split())}{more}; export the graph again with enet-export"


@contextmanager
def _timing_cache(trt: Any, config: Any, options: BuildOptions, gpu: Gpu | None) -> Iterator[None]:
    """Let the build use what earlier ones measured on this GPU, and keep what it adds."""
    if gpu is None or options.timing_cache is None or options.flavour == "trt-rtx":
        yield
        return
    name = re.sub(r"\W+", "-", f"{gpu.name} {gpu.compute_capability} tensorrt {trt.__version__}").lower()
    path = options.timing_cache / f"{name}.timing"
    try:
        earlier = path.read_bytes()
    except OSError:
        earlier = b""
    for content in (earlier, b""):  # what is damaged is begun anew: it only saves time
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            break
    yield
    if (cache := config.get_timing_cache()) is not None:
        with contextlib.suppress(ArtifactError), atomic_write(path) as temporary:
            temporary.write_bytes(bytes(cache.serialize()))


# --- progress ----------------------------------------------------------------------------------------------------


@contextmanager
def _cancelled_by_ctrl_c() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, as long as the block lasts: an exception cannot pass through TensorRT's own code."""
    cancelled = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # Python interrupts the main thread alone
        yield cancelled
        return
    earlier = signal.signal(signal.SIGINT, lambda *_: cancelled.set())
    try:
        yield cancelled
    finally:
        signal.signal(signal.SIGINT, earlier)


def _make_monitor(trt: Any, cancelled: threading.Event, progress: Progress) -> Any:
    """What TensorRT tells of each step of a build, and asks whether to go on."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._phases: dict[str, tuple[int, int]] = {}  # those under way, outer ones first: name -> (done, steps)
            self._share = 0.0

        def phase_start(self, phase_name: str, _parent: str | None, num_steps: int) -> None:
            self._phases[phase_name] = (0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            _, steps = self._phases.get(phase_name, (0, step + 1))
            self._phases[phase_name] = (step + 1, steps)
            self._share = max(self._share, _share(list(self._phases.values())))  # phases may share a step
            progress(phase_name, self._share)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

    return Monitor()


def _share(phases: list[tuple[int, int]]) -> float:
    """Share of a build that is done, each phase being one step of the phase before it; (done, steps) of each."""
    share, whole = 0.0, 1.0
    for done, steps in phases:
        share += whole * done / max(steps, 1)  # a phase may have none
        whole /= max(steps, 1)
    return min(share, 1.0)


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    """A progress bar on a terminal's stderr where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        yield lambda _phase, _share: None
        return
    form = "{desc}: {percentage:3.0f}%|{bar:20}| {elapsed}{postfix}"
    with tqdm(total=1.0, desc=title, leave=False, disable=None, bar_format=form) as bar:

        def show(phase: str, share: float) -> None:
            bar.set_postfix_str(phase, refresh=False)
            bar.update(share - bar.n)

        yield show


# --- what was built ----------------------------------------------------------------------------------------------

# The types as the inspector spells them, alone or inside "Channel major FP16 format where channel % 8 == 0"
_PRECISIONS = {
    **dict.fromkeys(("float", "fp32"), "fp32"),
    **dict.fromkeys(("half", "fp16"), "fp16"),
    **dict.fromkeys(("bfloat16", "bf16"), "bf16"),
    **{name: name for name in ("fp8", "int8")},
}
_TYPE = re.compile(rf"\b({'|'.join(_PRECISIONS)})\b", re.IGNORECASE)  # no UInt8: that is a frame, not a precision

# Layers that only move or convert data say nothing of the precision that the network computes in
_MOVING_LAYERS = {"reformat", "shuffle", "constant", "noop", "slice", "concatenation", "cast", "signal", "wait"}
# The compiler's own kernels are named after all they do, four letters each: __myl_MoveReshTran_myl3_7
_MOVING_KERNEL = re.compile(r"__myl_(Move|Resh|Tran|Repl|Conc|Slic|Cast|Iota|Quan|Dequ)+(_|$)")


def precision_shares(inspected: str) -> dict[str, float] | None:
    """Share of the computing layers in each precision, largest first, from the inspector's JSON on an engine.

    A layer's precision is that of the first tensor it takes that has one, as in NVIDIA's own tools; where none has,
    of what it gives. None where the inspector tells no types.
    """
    try:
        layers = json.loads(inspected)["Layers"]
    except (ValueError, KeyError, TypeError):
        return None
    computing = [layer for layer in layers if isinstance(layer, dict) and not _moves_data(layer)]
    counts = Counter(precision for layer in computing if (precision := _precision(layer)))
    return {name: round(count / counts.total(), 4) for name, count in counts.most_common()} or None


def _moves_data(layer: dict[str, Any]) -> bool:
    kind, name = str(layer.get("LayerType", "")).lower(), str(layer.get("Name", ""))
    return kind in _MOVING_LAYERS or _MOVING_KERNEL.match(name) is not None


def _precision(layer: dict[str, Any]) -> str | None:
    for tensor in (*layer.get("Inputs", ()), *layer.get("Outputs", ())):
        # TensorRT 11 has split the one field of TensorRT 10; the type is the first that is there
        told = (tensor.get(key) for key in ("Datatype", "DataType", "Format/Datatype", "Format"))
        if found := _TYPE.search(next((text for text in told if text), "")):
            return _PRECISIONS[found[1].lower()]
    return None


def _inspect(trt: Any, engine: bytes, options: BuildOptions) -> str:
    """The inspector's JSON on an engine that was just built. Raises BackendError where the engine does not load."""
    loaded = load_engine(trt, engine, host_code=options.version_compatible)
    inspector = loaded.create_engine_inspector()
    names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
    inputs = [name for name in names if loaded.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    dynamic = [name for name in inputs if -1 in tuple(loaded.get_tensor_shape(name))]
    if dynamic:  # types are told of one shape: without it they are "N/A due to dynamic shapes"
        context = loaded.create_execution_context()
        for name in dynamic:
            context.set_input_shape(name, loaded.get_tensor_profile_shape(name, 0)[1])
        inspector.execution_context = context
    text: str = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return text


def _require_precision(asked: str, shares: dict[str, float] | None, path: str | Path) -> None:
    """Raise ParityError where no layer computes in a precision that the graph was made for, such as "fp16-int8".

    Also where it was made for fp16 and half of the layers compute in fp32 all the same: a few do so by design.
    """
    if shares is None:
        return
    precisions = asked.split("-")
    wrong = [f"no layer of {path} computes in {name}" for name in precisions if name not in {"fp32", *shares}]
    if "fp16" in precisions and shares.get("fp32", 0.0) >= 0.5:
        wrong.append(f"{shares['fp32']:.0%} of the layers of {path} compute in fp32, expected under half")
    if wrong:
        found = ", ".join(f"{share:.0%} in {name}" for name, share in shares.items())
        raise ParityError(
            f"asked for {asked}, and {wrong[0]}: {found}; nothing was written. Export the graph again with "
            "enet-export, or build the engine of the fp32 graph"
        )


def main(arguments: Sequence[str]) -> int:
    """Build an engine in a process of its own, for `cached_engine`: GRAPH ENGINE FLAVOUR; an error is one line."""
    graph, engine, flavour = arguments
    try:
        to_engine(graph, engine, BuildOptions(flavour))
    except EnetError as error:
        print(printable(str(error)), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
