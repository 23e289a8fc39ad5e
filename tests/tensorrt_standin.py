"""Stand-ins for CUDA and TensorRT, so that the runner is tested without a GPU.

Device memory is host memory, and an engine is an ONNX graph that onnxruntime runs from and to the very addresses that
it was given. They are stricter than the real ones: nothing queued is done before somebody waits for its stream, every
address must be in live memory of its kind, every call needs the context current to its thread, and `Gpu.alive` tells
what was not freed. Facades have the names and conventions of cuda.bindings.driver, pycuda.driver and tensorrt.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import functools
import itertools
import math
import sys
import threading
import types
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enet_deploy.artifacts import METADATA_KEY, Metadata
from enet_deploy.errors import BackendError
from enet_deploy.files import sha256
from enet_deploy.runners.tensorrt import cuda
from enet_deploy.runners.tensorrt import pycuda as trt_pycuda
from enet_deploy.runners.tensorrt.card import EngineCard
from enet_deploy.runners.tensorrt.library import FLAVOURS, import_tensorrt, rtx_capabilities

NAME, CAPABILITY = "NVIDIA Stand-In 3060", (8, 6)
VERSIONS = {"trt": "10.13.3.9", "trt-rtx": "1.7.1.116"}
MAGIC = b"engine of a stand-in\n"
MAX_BATCH = 8
LAYERS = (  # as TensorRT names them
    "Reformatting CopyNode for Input Tensor 0 to initial.conv/Conv",
    "initial.conv/Conv",
    "stage1.0.branch.0/Conv + PWN(stage1.0.branch.1/Mul, stage1.0.branch.1/Max_1)",
    "{ForeignNode[stage1.0/Add...labels]}",
)


class CudaFailure(Exception):
    """A CUDA call fails; `args[0]` is the error's name."""


@dataclass
class Operation:
    """Something queued on a stream. `owner` is what must live until it is done."""

    kind: str
    run: Callable[[], None]
    owner: Any = None


@dataclass
class Gpu:
    """A GPU made of host memory."""

    count: int = 1
    memory: dict[int, Any] = field(default_factory=dict)  # address -> buffer
    pinned: dict[int, Any] = field(default_factory=dict)
    streams: dict[int, deque[Operation]] = field(default_factory=lambda: {1: deque()})  # 1: the default stream
    captures: dict[int, list[Operation]] = field(default_factory=dict)
    graphs: dict[int, list[Operation]] = field(default_factory=dict)
    events: dict[int, tuple[int, list[bool]]] = field(default_factory=dict)  # -> (its stream, [whether it passed])
    retained: int = 0
    engines: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    contexts: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)
    calls: list[tuple[str, int]] = field(default_factory=list)  # (what, stream), in the order of the calls
    complaints: list[str] = field(default_factory=list)  # what could not be raised where it happened
    failing: dict[str, str] = field(default_factory=dict)  # call -> name of the error it is to fail with
    validity: str = "INVALID"  # what TensorRT-RTX says of any engine
    stack: threading.local = field(default_factory=threading.local)
    handles: Iterator[int] = field(default_factory=lambda: itertools.count(100))

    def alive(self) -> dict[str, int]:
        """What was made and not freed."""
        things = {
            "memory": len(self.memory),
            "pinned": len(self.pinned),
            "streams": len(self.streams) - 1,
            "graphs": len(self.graphs),
            "events": len(self.events),
            "retained": self.retained,
            "engines": len(self.engines),
            "contexts": len(self.contexts),
        }
        return {name: count for name, count in things.items() if count}

    def counts(self) -> Counter[str]:
        return Counter(kind for kind, _ in self.calls)

    def enter(self, call: str) -> None:
        """Check at the start of every call that it is allowed."""
        if call in self.failing:
            for queue in self.streams.values():  # what was queued is lost, as with the real ones
                queue.clear()
            raise CudaFailure(self.failing[call])
        if not self.depth:
            raise CudaFailure("CUDA_ERROR_INVALID_CONTEXT")

    @property
    def depth(self) -> int:
        return getattr(self.stack, "depth", 0)

    def push(self, step: int = 1) -> None:
        self.stack.depth = self.depth + step
        assert self.depth >= 0, "popped more than pushed"

    def alloc(self, size: int, where: dict[int, Any]) -> int:
        assert size > 0
        buffer = (ctypes.c_uint8 * (size + 256))()
        address = -(-ctypes.addressof(buffer) // 256) * 256
        where[address] = (buffer, size)
        return address

    def view(self, address: int, size: int, pinned: bool = False) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes at an address, which must be inside one live allocation."""
        for start, (_, length) in (self.pinned if pinned else self.memory).items():
            if start <= address and address + size <= start + length:
                return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        raise AssertionError(f"{size} bytes at {address} are not in one live allocation")

    def queue(self, stream: int, kind: str, run: Callable[[], None], owner: Any = None) -> None:
        self.calls.append((kind, stream))
        operation = Operation(kind, run, owner)
        (self.captures[stream] if stream in self.captures else self.streams[stream]).append(operation)

    def drain(self, stream: int, until: Callable[[], bool] = lambda: False) -> None:
        queue = self.streams[stream]
        while queue and not until():
            queue.popleft().run()

    def synchronize(self, stream: int) -> None:
        self.calls.append(("synchronize", stream))
        assert stream not in self.captures
        self.drain(stream)

    def copy(self, kind: str, to: Callable[[], Any], source: Callable[[], Any], stream: int) -> None:
        to(), source()  # both must be there when it is queued, and when it is done

        def run() -> None:
            to()[:] = source()

        self.queue(stream, kind, run)

    def host(self, address: int, size: int) -> Any:
        """Host memory, pinned or a caller's."""
        with contextlib.suppress(AssertionError):
            return self.view(address, size, pinned=True)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def to_device(self, address: int, host: int, size: int, stream: int) -> None:
        self.copy("to device", lambda: self.view(address, size), lambda: self.view(host, size, pinned=True), stream)

    def to_host(self, host: int, address: int, size: int, stream: int) -> None:
        self.copy("to host", lambda: self.host(host, size), lambda: self.view(address, size), stream)

    def inside(self, address: int, source: int, size: int, stream: int) -> None:
        self.copy("inside", lambda: self.view(address, size), lambda: self.view(source, size), stream)

    def record(self, event: int, stream: int) -> None:
        passed = [False]
        self.events[event] = (stream, passed)
        self.queue(stream, "record", lambda: passed.__setitem__(0, True))

    def wait(self, stream: int, event: int) -> None:
        other, passed = self.events[event]
        self.queue(stream, "wait", lambda: self.drain(other, lambda: passed[0]))

    def launch(self, graph: int, stream: int) -> None:
        self.calls.append(("launch", stream))
        self.streams[stream].extend(self.graphs[graph])


# --- cuda.bindings.driver ----------------------------------------------------------------------------------------

Result = enum.Enum(
    "Result",
    {"CUDA_SUCCESS": 0, "CUDA_ERROR_OUT_OF_MEMORY": 2, "CUDA_ERROR_NO_DEVICE": 100, "CUDA_ERROR_INVALID_CONTEXT": 201}
    | {"CUDA_ERROR_INVALID_VALUE": 1, "CUDA_ERROR_LAUNCH_FAILED": 719, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": 901},
)


def cuda_bindings(gpu: Gpu) -> dict[str, types.ModuleType]:
    """cuda.bindings.driver as modules for sys.modules. Its functions return (error, values...)."""
    modules = {name: types.ModuleType(name) for name in ("cuda", "cuda.bindings", "cuda.bindings.driver")}
    modules["cuda.bindings"].__version__ = "13.0.0"  # type: ignore[attr-defined]
    driver: Any = modules["cuda.bindings.driver"]
    attributes = ("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR", "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR")
    driver.CUdevice_attribute = enum.Enum("CUdevice_attribute", attributes)
    driver.CUstream_flags = enum.Enum("CUstream_flags", {"CU_STREAM_DEFAULT": 0, "CU_STREAM_NON_BLOCKING": 1})
    driver.CUevent_flags = enum.Enum("CUevent_flags", {"CU_EVENT_DISABLE_TIMING": 2})
    driver.CUpointer_attribute = enum.Enum("CUpointer_attribute", ["CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL"])
    driver.CUstreamCaptureMode = enum.Enum("CUstreamCaptureMode", ["CU_STREAM_CAPTURE_MODE_THREAD_LOCAL"])

    def serve(name: str, context: bool = True) -> Callable[[Callable[..., Any]], None]:
        def add(function: Callable[..., Any]) -> None:
            def call(*arguments: Any) -> tuple[Any, ...]:
                try:
                    if context or name in gpu.failing:
                        gpu.enter(name)
                    value = function(*arguments)
                except CudaFailure as failure:
                    return Result[failure.args[0]], None
                return (Result.CUDA_SUCCESS,) if value is None else (Result.CUDA_SUCCESS, value)

            setattr(driver, name, call)

        return add

    def capability(attribute: Any, _device: int) -> int:
        return CAPABILITY[attribute.name.endswith("MINOR")]

    def make_stream(flags: int) -> int:
        assert flags == 1, "the default stream would hold it up"
        stream = next(gpu.handles)
        gpu.streams[stream] = deque()
        return stream

    def ordinal(_attribute: Any, address: int) -> int:
        try:
            gpu.view(address, 1)
        except AssertionError:
            raise CudaFailure("CUDA_ERROR_INVALID_VALUE") from None
        return 0

    def end_capture(stream: int) -> int:
        operations, graph = gpu.captures.pop(stream), next(gpu.handles)
        gpu.graphs[graph] = operations
        return graph

    def instantiate(graph: int, flags: int) -> int:
        assert flags == 0
        gpu.graphs[next_graph := next(gpu.handles)] = gpu.graphs[graph]
        return next_graph

    def retain(step: int) -> int | None:
        gpu.retained += step
        return 77 if step > 0 else None

    serve("cuInit", context=False)(lambda flags: None if gpu.count else _fail("CUDA_ERROR_NO_DEVICE"))
    serve("cuDeviceGetCount", context=False)(lambda: gpu.count)
    serve("cuDeviceGet", context=False)(lambda index: index)
    serve("cuDeviceGetName", context=False)(lambda length, _: f"{NAME}\0".encode().ljust(length))
    serve("cuDeviceGetAttribute", context=False)(capability)
    serve("cuDevicePrimaryCtxRetain", context=False)(lambda _: retain(1))
    serve("cuDevicePrimaryCtxRelease", context=False)(lambda _: retain(-1))
    serve("cuCtxPushCurrent", context=False)(lambda context: gpu.push() if context == 77 else _fail("no context"))
    serve("cuCtxPopCurrent")(lambda: gpu.push(-1) or 77)
    serve("cuMemAlloc")(lambda size: gpu.alloc(size, gpu.memory))
    serve("cuMemFree")(lambda address: _forget(gpu.memory, address))
    serve("cuMemHostAlloc")(lambda size, flags: gpu.alloc(size, gpu.pinned))
    serve("cuMemFreeHost")(lambda address: _forget(gpu.pinned, address))
    serve("cuStreamCreate")(make_stream)
    serve("cuStreamDestroy")(lambda stream: _forget(gpu.streams, stream))
    serve("cuStreamSynchronize")(gpu.synchronize)
    serve("cuEventCreate")(lambda flags: next(gpu.handles))
    serve("cuEventRecord")(gpu.record)
    serve("cuStreamWaitEvent")(lambda stream, event, flags: gpu.wait(stream, event))
    serve("cuEventDestroy")(lambda event: _forget(gpu.events, event))
    serve("cuMemcpyHtoDAsync")(gpu.to_device)
    serve("cuMemcpyDtoHAsync")(gpu.to_host)
    serve("cuMemcpyDtoDAsync")(gpu.inside)
    serve("cuPointerGetAttribute")(ordinal)
    serve("cuStreamBeginCapture")(lambda stream, mode: gpu.captures.__setitem__(stream, []))
    serve("cuStreamEndCapture")(end_capture)
    serve("cuGraphInstantiate")(instantiate)
    serve("cuGraphDestroy")(lambda graph: _forget(gpu.graphs, graph))
    serve("cuGraphLaunch")(gpu.launch)
    serve("cuGraphExecDestroy")(lambda graph: _forget(gpu.graphs, graph))
    return modules


def _fail(name: str) -> None:
    raise CudaFailure(name)


def _forget(things: dict[int, Any], key: int) -> None:
    """Free an allocation. One that does not exist, or was freed already, fails the test."""
    del things[key]


# --- pycuda.driver -----------------------------------------------------------------------------------------------


def pycuda(gpu: Gpu) -> dict[str, types.ModuleType]:
    """pycuda.driver as modules for sys.modules. What it makes are objects, which raise its Error."""
    modules = {name: types.ModuleType(name) for name in ("pycuda", "pycuda.driver")}
    modules["pycuda"].VERSION_TEXT = "2026.1"  # type: ignore[attr-defined]
    driver: Any = modules["pycuda.driver"]

    class Error(Exception):
        pass

    def guarded(call: str) -> None:
        try:
            gpu.enter(call)
        except CudaFailure as failure:
            raise Error(f"{call} failed: {failure.args[0].lower()[11:].replace('_', ' ')}") from None

    class Context:
        def push(self) -> None:
            gpu.push()

        @staticmethod
        def pop() -> None:
            gpu.push(-1)

        @staticmethod
        def synchronize() -> None:
            guarded("cuCtxSynchronize")
            for stream in gpu.streams:
                gpu.drain(stream)

    class Device:
        def __init__(self, index: int) -> None:
            assert index < gpu.count

        count = staticmethod(lambda: gpu.count)
        name = staticmethod(lambda: NAME)
        compute_capability = staticmethod(lambda: CAPABILITY)
        retain_primary_context = staticmethod(Context)

    class Stream:
        def __init__(self, flags: int) -> None:
            guarded("cuStreamCreate")
            assert flags == 1
            self.handle = next(gpu.handles)
            gpu.streams[self.handle] = deque()

        def __del__(self) -> None:
            guarded("cuStreamDestroy")
            del gpu.streams[self.handle]

        def synchronize(self) -> None:
            guarded("cuStreamSynchronize")
            gpu.synchronize(self.handle)

    class Allocation:
        def __init__(self, size: int, where: dict[int, Any]) -> None:
            guarded("cuMemAlloc")
            self.where, self.size, self.address = where, size, gpu.alloc(size, where)

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            guarded("cuMemFree")
            del self.where[self.address]

        @property
        def __array_interface__(self) -> dict[str, Any]:
            return {"version": 3, "typestr": "|u1", "shape": (self.size,), "data": (self.address, False)}

    def init() -> None:
        if not gpu.count:
            raise Error("cuInit failed: no CUDA-capable device is detected")

    def to_device(address: int, array: Any, stream: Stream) -> None:
        guarded("cuMemcpyHtoDAsync")
        gpu.to_device(address, array.ctypes.data, array.nbytes, stream.handle)

    def to_host(array: Any, address: int, stream: Stream) -> None:
        guarded("cuMemcpyDtoHAsync")
        gpu.to_host(array.ctypes.data, address, array.nbytes, stream.handle)

    driver.Error, driver.Context, driver.Device, driver.Stream, driver.init = Error, Context, Device, Stream, init
    driver.mem_alloc = lambda size: Allocation(size, gpu.memory)
    driver.pagelocked_empty = lambda size, dtype: np.asarray(Allocation(size, gpu.pinned))
    driver.memcpy_htod_async, driver.memcpy_dtoh_async = to_device, to_host
    driver.memcpy_dtod_async = lambda to, source, size, stream: gpu.inside(to, source, size, stream.handle)
    return modules


# --- tensorrt ----------------------------------------------------------------------------------------------------

DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT8", "INT32", "UINT8"])


def tensorrt(gpu: Gpu, flavour: str = "trt") -> types.ModuleType:
    """The module of a flavour; TensorRT-RTX has a runtime configuration and cache."""
    trt: Any = types.ModuleType(FLAVOURS[flavour])
    trt.__spec__ = ModuleSpec(FLAVOURS[flavour], None)  # torch looks for it
    trt.__version__, trt.DataType = VERSIONS[flavour], DataType

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, engine: bytes) -> Engine | None:
            assert gpu.depth, "no context is current"
            if engine.startswith(MAGIC):
                return Engine(gpu, self.logger, engine.removeprefix(MAGIC))
            self.logger.log(ILogger.ERROR, "Serialization assertion\nheader.magicTag failed.")
            return None

    trt.ILogger, trt.Runtime, trt.IProfiler = ILogger, Runtime, object
    if flavour == "trt-rtx":
        trt.EngineValidity = enum.Enum("EngineValidity", ["VALID", "SUBOPTIMAL", "INVALID"])

        def get_engine_validity(_runtime: Runtime, engine: bytes) -> tuple[Any, int]:
            assert gpu.depth, "no context is current"
            assert engine.startswith(MAGIC)
            return trt.EngineValidity[gpu.validity], 0

        Runtime.get_engine_validity = get_engine_validity  # type: ignore[attr-defined]
        trt.CudaGraphStrategy = enum.Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
        trt.DynamicShapesKernelSpecializationStrategy = enum.Enum("Strategy", ["LAZY", "EAGER", "NONE"])
    return trt


class RuntimeCache:
    content = b""

    def deserialize(self, content: bytes) -> bool:
        self.content = content
        return True

    def serialize(self) -> bytes:
        return self.content or b"kernels"


class RuntimeConfig:
    cuda_graph_strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = None
    cache: RuntimeCache | None = None
    create_runtime_cache = staticmethod(RuntimeCache)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


@functools.cache
def _session(model: bytes) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Engine:
    """ICudaEngine: what the runner uses of it."""

    def __init__(self, gpu: Gpu, logger: Any, model: bytes) -> None:
        self.gpu, self.logger, self.session = gpu, logger, _session(model)
        self.tensors = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.num_io_tensors = len(self.tensors)
        self.configs: list[Any] = []
        gpu.engines.add(self)

    def __del__(self) -> None:
        if not self.gpu.depth:
            self.gpu.complaints.append("an engine was freed without its context")

    def get_tensor_name(self, index: int) -> str:
        return str(self.tensors[index].name)

    def _tensor(self, name: str) -> Any:
        return next(tensor for tensor in self.tensors if tensor.name == name)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(side if isinstance(side, int) else -1 for side in self._tensor(name).shape)

    def get_tensor_dtype(self, name: str) -> Any:
        return {"tensor(uint8)": DataType.UINT8, "tensor(float)": DataType.FLOAT}[self._tensor(name).type]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert profile == 0
        return [(count, *self.get_tensor_shape(name)[1:]) for count in (1, 1, MAX_BATCH)]

    create_runtime_config = staticmethod(RuntimeConfig)

    def create_execution_context(self, config: Any = None) -> ExecutionContext | None:
        if "create_execution_context" in self.gpu.failing:
            self.logger.log(1, self.gpu.failing["create_execution_context"])
            return None
        self.configs.append(config)
        return ExecutionContext(self)


class ExecutionContext:
    """IExecutionContext. A graph that was captured from it is bound to the shape and addresses at its capture."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.gpu = engine, engine.gpu
        self.shape: tuple[int, ...] | None = None
        self.addresses: dict[str, int] = {}
        self.profiler: Any = None
        strategy = getattr(engine.configs[-1], "cuda_graph_strategy", None)
        self.captured = strategy is not None and strategy.name == "WHOLE_GRAPH_CAPTURE"  # its layers are not seen then
        self.ran: Any = None  # the shape and addresses that it last ran with
        self.gpu.contexts.add(self)

    def __del__(self) -> None:
        if not self.gpu.depth:
            self.gpu.complaints.append("a context was freed without its CUDA context")
        if any(operation.owner == id(self) for queue in self.gpu.streams.values() for operation in queue):
            self.gpu.complaints.append("a context was freed while it ran")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "frames" and shape[1:] == self.engine.get_tensor_shape(name)[1:]
        self.shape = shape
        return self._said(1 <= shape[0] <= MAX_BATCH, f"{shape} is out of the profile")

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0, f"the address of {name} is not aligned"
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self.gpu.depth, "no context is current"
        assert set(self.addresses) == {tensor.name for tensor in self.engine.tensors}, "an address is missing"
        shape = self.shape or self.engine.get_tensor_shape("frames")
        assert min(shape) > 0, "the shape is missing"
        state = (shape, dict(self.addresses))
        if "execute_async_v3" in self.gpu.failing:
            return self._said(False, self.gpu.failing["execute_async_v3"])
        if stream in self.gpu.captures:
            assert self.ran == state, "captured without a run like it before"
            self.gpu.calls.append(("capture", stream))
            alive = weakref.ref(self)

            def check() -> None:
                context = alive()
                assert context is not None and context.ran == state, "a graph outlived what it was captured from"

            self.gpu.captures[stream].append(Operation("check", check))
        self.ran = state
        run = functools.partial(_execute, self.gpu, self.engine.session, *state)
        self.gpu.queue(stream, "execute", run, id(self))
        if self.profiler is not None and not self.captured:
            self.gpu.drain(stream)
            for name in LAYERS:
                self.profiler.report_layer_time(name, 0.5)
        return True

    def _said(self, fine: bool, error: str) -> bool:
        if not fine:
            self.engine.logger.log(1, error)
        return fine


def _execute(gpu: Gpu, session: Any, shape: tuple[int, ...], addresses: dict[str, int]) -> None:
    frames = gpu.view(addresses["frames"], math.prod(shape)).reshape(shape)
    names = [name for name in addresses if name != "frames"]
    for name, value in zip(names, session.run(names, {"frames": frames}), strict=True):
        gpu.view(addresses[name], value.nbytes)[:] = value.reshape(-1).view(np.uint8)


# --- using them --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def installed(gpu: Gpu, package: str = "cuda-bindings") -> Iterator[pytest.MonkeyPatch]:
    """Put the stand-ins in the place of the packages, which are hidden if they are installed."""
    facade = {"cuda-bindings": cuda_bindings, "pycuda": pycuda}.get(package, lambda _: {})(gpu)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("cuda", "cuda.bindings", "cuda.bindings.driver", "pycuda", "pycuda.driver"):
            patch.setitem(sys.modules, name, facade.get(name))  # type: ignore[arg-type]  # None: not installed
        for flavour, module in FLAVOURS.items():
            patch.setitem(sys.modules, module, tensorrt(gpu, flavour))
        patch.setattr(trt_pycuda, "_pycuda_contexts", {})
        yield patch


def write_engine(onnx: Path, path: Path, flavour: str = "trt", **changes: Any) -> Path:
    """An engine of a graph, with its card; `changes` replace fields of the card."""
    import onnxruntime as ort

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(MAGIC + onnx.read_bytes())
    session = ort.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    metadata = Metadata.from_text(session.get_modelmeta().custom_metadata_map[METADATA_KEY], onnx)
    facts: dict[str, Any] = {
        "engine_sha256": sha256(path),
        "onnx_sha256": sha256(onnx),
        "flavour": flavour,
        "version": VERSIONS[flavour],
        "compute_capabilities": ("8.6",),
        "gpu": NAME if flavour == "trt" else None,
        "version_compatible": False,
        "hardware_compatible": False,
        "precision_shares": {"fp32": 1.0},
        "metadata": metadata,
    }
    EngineCard(**{**facts, **changes}).write(path)
    return path


def real_flavour() -> str | None:
    """The flavour of TensorRT that runs here, on a real GPU that it supports; None without one."""
    for flavour in FLAVOURS:
        with contextlib.suppress(BackendError):
            trt, gpu = import_tensorrt(flavour), cuda.find_gpu()
            if flavour != "trt-rtx" or gpu.compute_capability in rtx_capabilities(trt):
                return flavour
    return None
