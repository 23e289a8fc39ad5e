"""What the TensorRT runner promises beyond the contract, on stand-ins for CUDA and TensorRT (tensorrt_standin.py)."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorrt_standin as standin
from helpers import SIZE
from tensorrt_standin import Gpu, write_engine

from enet_deploy import ArtifactError, BackendError, InputError, open_runner
from enet_deploy.artifacts import save_graph
from enet_deploy.cache import read_entry
from enet_deploy.child import python_main
from enet_deploy.data.scenes import street_scene
from enet_deploy.images import UInt8Array
from enet_deploy.runners.ort_runner import OrtRunner
from enet_deploy.runners.tensorrt import runner as trt_runner
from enet_deploy.runners.tensorrt.card import EngineCard
from enet_deploy.runners.tensorrt.cuda import find_gpu
from enet_deploy.runners.tensorrt.engine import cached_engine
from enet_deploy.runners.tensorrt.runner import TrtRunner

pytest.importorskip("onnxruntime")

AGAIN = r"; build it again: enet-export (other|enet)\.onnx --engine trt --out .*"


@pytest.fixture
def package() -> str:
    """The package that reaches CUDA; parametrize a test with others."""
    return "cuda-bindings"


@pytest.fixture
def gpu(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """A GPU on which no test leaves anything."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gpu = Gpu()
    with standin.installed(gpu, package):
        yield gpu
        assert (gpu.alive(), gpu.complaints, gpu.depth) == ({}, [], 0)


@pytest.fixture
def engine(gpu: Gpu, exported: Path, tmp_path: Path) -> Path:
    return write_engine(exported, tmp_path / "enet.engine")


@pytest.fixture(scope="module")
def batches() -> list[UInt8Array]:
    """Four batches of two frames."""
    frames = np.stack([street_scene(seed, SIZE)[0] for seed in range(8)])
    return list(frames.reshape(4, 2, *SIZE, 3))


@pytest.fixture(scope="module")
def expected(exported: Path, batches: list[UInt8Array]) -> list[UInt8Array]:
    with OrtRunner(exported, threads=1) as runner:
        return [runner.infer(batch) for batch in batches]


@contextmanager
def failing(gpu: Gpu, call: str, error: str) -> Iterator[None]:
    gpu.failing[call] = error
    try:
        yield
    finally:
        del gpu.failing[call]


# Life


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("cuda-bindings", "cuda-bindings 13.0.0, CUDA graphs"),
        ("pycuda", "pycuda 2026.1, no CUDA graphs (cuda-bindings has them)"),
    ],
)
def test_it_runs_through_either_package_and_leaves_nothing(
    gpu: Gpu, engine: Path, words: str, batches: list[UInt8Array], expected: list[UInt8Array]
) -> None:
    runner = TrtRunner(engine)
    for _ in range(2):
        with runner:
            assert gpu.alive()
            np.testing.assert_array_equal(list(runner.stream(batches)), expected)
            assert runner.logits(batches[0]).shape == (2, len(runner.spec.classes), *SIZE)
        assert gpu.alive() == {}
    with runner:
        assert runner.spec.runtime == f"tensorrt 10.13.3.9 on {standin.NAME} (compute capability 8.6), {words}"


def test_open_runner_takes_the_gpu_by_default(gpu: Gpu, engine: Path) -> None:
    with open_runner(engine) as runner:
        assert isinstance(runner, TrtRunner) and runner.spec.device == "cuda"
    with open_runner(engine, device="cuda:0") as runner:
        assert runner.spec.device == "cuda:0"


def test_buffers_are_made_once(gpu: Gpu, engine: Path, batches: list[UInt8Array]) -> None:
    with TrtRunner(engine) as runner:
        runner.infer(batches[0])
        list(runner.stream(batches))
        first = set(gpu.memory), set(gpu.pinned), set(gpu.streams)
        runner.infer(batches[1])
        list(runner.stream(batches))
        assert (set(gpu.memory), set(gpu.pinned), set(gpu.streams)) == first


@pytest.mark.parametrize("count", [1, standin.MAX_BATCH, 2 * standin.MAX_BATCH + 1])
def test_any_number_of_frames(gpu: Gpu, engine: Path, exported: Path, count: int) -> None:
    frames = np.stack([street_scene(seed, SIZE)[0] for seed in range(count)])
    with TrtRunner(engine) as runner, OrtRunner(exported, threads=1) as reference:
        parts = [frames[i : i + standin.MAX_BATCH] for i in range(0, count, standin.MAX_BATCH)]
        labels = np.concatenate([reference.infer(part) for part in parts])
        np.testing.assert_array_equal(runner.infer(frames), labels)
        np.testing.assert_array_equal(next(runner.stream([frames])), labels)
        np.testing.assert_array_equal(runner.logits(frames).argmax(1), labels)


def test_profile_names_what_tensorrt_calls_its_layers(gpu: Gpu, engine: Path) -> None:
    frames = np.zeros((standin.MAX_BATCH + 1, *SIZE, 3), np.uint8)  # more than one run takes
    with TrtRunner(engine) as runner:
        operations = runner.profile(frames, calls=1)
        assert [(o.names, o.kind) for o in operations[:4]] == [
            ((), "Reformat"),
            (("initial.conv/Conv",), "Conv"),
            (("stage1.0.branch.0/Conv", "stage1.0.branch.1/Mul", "stage1.0.branch.1/Max_1"), "Conv + Mul + Max"),
            (("stage1.0/Add",), "ForeignNode"),
        ]
        assert len(operations) == 8
    assert not gpu.alive()


def test_fixed_batch(gpu: Gpu, exported: Path, tmp_path: Path, batches: list[UInt8Array]) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    save_graph(model, tmp_path / "two.onnx")
    with TrtRunner(write_engine(tmp_path / "two.onnx", tmp_path / "two.engine")) as runner:
        assert runner.spec.batch == 2 and runner.infer(batches[0]).shape == (2, *SIZE)
        with pytest.raises(InputError, match=r"expected uint8 of shape \(2, 96, 128, 3\)"):
            runner.infer(batches[0][:1])


# Engines that are not for this machine


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "10.12.0.36"}, r".* 10\.12\.0\.36, and 10\.13\.3\.9 "),
        ({"version": "11.4", "version_compatible": True}, r".* 11\.4, and 10\.13\.3\.9 "),
        (
            {"compute_capabilities": ("8.9", "12.0")},
            r"is for compute capability 8\.9, 12\.0, and this is NVIDIA Stand-In 3060 \(compute capability 8\.6\)",
        ),
        ({"gpu": "NVIDIA A40"}, r"was built on NVIDIA A40, and this is NVIDIA Stand-In 3060"),
    ],
)
def test_engines_of_another_machine_are_refused(
    gpu: Gpu, exported: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_engine(exported, tmp_path / "other.engine", **changes)
    with pytest.raises(ArtifactError, match=rf"other\.engine {message}.*{AGAIN}"):
        open_runner(path)
    assert gpu.calls == []


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "10.3.0.26", "version_compatible": True},
        {"gpu": "NVIDIA A40", "compute_capabilities": ("8.0",), "hardware_compatible": True},
        {"precision_shares": None},
    ],
)
def test_compatible_engines_are_taken(gpu: Gpu, exported: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with open_runner(write_engine(exported, tmp_path / "compatible.engine", **changes)):
        pass


@pytest.mark.parametrize(
    ("precision", "shares", "missing"),
    [("fp16", {"fp32": 1.0}, "fp16"), ("fp16-int8", {"fp16": 0.9, "int8": 0.0}, "int8"), ("fp16", {"fp16": 1.0}, None)],
)
def test_a_precision_that_is_not_there_is_an_error(
    gpu: Gpu, engine: Path, precision: str, shares: dict[str, float], missing: str | None
) -> None:
    card = EngineCard.read(engine)
    metadata = dataclasses.replace(card.metadata, precision=precision)
    dataclasses.replace(card, metadata=metadata, precision_shares=shares).write(engine)
    if missing is None:
        with open_runner(engine) as runner:
            assert runner.spec.precision == precision
    else:
        with pytest.raises(ArtifactError, match=rf"enet\.engine .* in {precision}, .* in {missing}"):
            open_runner(engine)


def without_card(engine: Path) -> None:
    EngineCard.path(engine).unlink()


def cut_short(engine: Path) -> None:
    engine.write_bytes(engine.read_bytes()[:-100])


def card_of_another(engine: Path) -> None:
    dataclasses.replace(EngineCard.read(engine), engine_sha256="0" * 64).write(engine)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_card, r"enet\.engine\.json"),
        (cut_short, r"enet\.engine .*enet\.engine\.json .*SHA-256"),
        (card_of_another, r"enet\.engine .*enet\.engine\.json .*SHA-256"),
    ],
)
def test_damaged_engines_are_not_loaded(gpu: Gpu, engine: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(engine)
    with pytest.raises(ArtifactError, match=message):
        open_runner(engine)


def test_the_bytes_that_are_loaded_are_those_that_were_checked(
    gpu: Gpu, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace_then_import(flavour: str) -> Any:
        engine.write_bytes(b"of somebody else")
        return sys.modules[trt_runner.FLAVOURS[flavour]]

    monkeypatch.setattr(trt_runner, "import_tensorrt", replace_then_import)
    open_runner(engine).close()


def test_what_tensorrt_logs_is_in_the_error(gpu: Gpu, exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "foreign.engine"
    path.write_bytes(b"of another TensorRT")
    card = EngineCard.read(write_engine(exported, tmp_path / "ours.engine"))
    dataclasses.replace(card, engine_sha256=standin.sha256(path)).write(path)
    with pytest.raises(BackendError, match=r"does not load .*: Serialization assertion header\.magicTag failed\."):
        open_runner(path)


def test_engines_of_other_networks_are_refused(gpu: Gpu, exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported)
    model.graph.output[0].name = "classes"
    for node in model.graph.node:
        node.output[:] = ["classes" if name == "labels" else name for name in node.output]
    save_graph(model, path)
    with pytest.raises(ArtifactError, match=r".*'classes'.*, expected .*'labels'"):
        open_runner(write_engine(path, tmp_path / "other.engine"))


# CUDA and TensorRT that are not there, or fail


@pytest.mark.parametrize("package", ["none"])
def test_no_package_to_reach_cuda(gpu: Gpu, engine: Path) -> None:
    with pytest.raises(BackendError, match="pip install cuda-bindings"):
        open_runner(engine)


@pytest.mark.parametrize("package", ["cuda-bindings", "pycuda"])
def test_no_gpu(gpu: Gpu, engine: Path) -> None:
    assert (find_gpu().name, find_gpu().compute_capability) == (standin.NAME, "8.6")
    with pytest.raises(BackendError, match=r"device 'cuda:3'.* 1 GPU"):
        open_runner(engine, device="cuda:3")
    gpu.count = 0
    with pytest.raises(BackendError, match=r"but CUDA sees no GPU|no NVIDIA driver .*no CUDA-capable device"):
        open_runner(engine)


def test_no_driver(gpu: Gpu, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_flags: int) -> None:
        raise RuntimeError('"cuda" is an NVIDIA driver\nlibrary')

    monkeypatch.setattr(sys.modules["cuda.bindings.driver"], "cuInit", missing)
    with pytest.raises(BackendError, match=r"^no NVIDIA driver .*libcuda"):
        open_runner(engine)


def test_no_tensorrt(gpu: Gpu, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"'tensorrt' is not installed; pip install 'enet-deploy\[trt\]'"):
        open_runner(engine)


@pytest.mark.parametrize("device", ["cpu", "cuda:-1", "gpu"])
def test_other_devices_are_refused(gpu: Gpu, engine: Path, device: str) -> None:
    with pytest.raises(BackendError, match=f"device '{device}' for TensorRT"):
        open_runner(engine, device=device)


@pytest.mark.parametrize(
    ("package", "call", "message"),
    [
        ("cuda-bindings", "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRetain .*CUDA_ERROR_OUT_OF_MEMORY"),
        ("cuda-bindings", "cuStreamCreate", "cuStreamCreate .*CUDA_ERROR_OUT_OF_MEMORY; "),
        ("cuda-bindings", "cuMemAlloc", "cuMemAlloc .*CUDA_ERROR_OUT_OF_MEMORY; "),
        ("cuda-bindings", "cuMemHostAlloc", "cuMemHostAlloc .*CUDA_ERROR_OUT_OF_MEMORY; "),
        ("cuda-bindings", "create_execution_context", "execution context: CUDA_ERROR_OUT_OF_MEMORY"),
        ("pycuda", "cuMemAlloc", "cuMemAlloc .*out of memory; "),
    ],
)
def test_an_open_that_fails_leaves_nothing(gpu: Gpu, engine: Path, call: str, message: str) -> None:
    with failing(gpu, call, "CUDA_ERROR_OUT_OF_MEMORY"), pytest.raises(BackendError, match=message):
        open_runner(engine)
    assert gpu.alive() == {}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ("cuMemcpyHtoDAsync", "CUDA_ERROR_LAUNCH_FAILED", "cuMemcpyHtoDAsync .*CUDA_ERROR_LAUNCH_FAILED"),
        ("cuStreamSynchronize", "CUDA_ERROR_LAUNCH_FAILED", "cuStreamSynchronize .*CUDA_ERROR_LAUNCH_FAILED"),
        ("execute_async_v3", "no\nluck", r"TensorRT 10\.13\.3\.9 .*no luck"),
    ],
)
def test_a_run_that_fails_does_not_spoil_the_next(
    gpu: Gpu, engine: Path, batches: list[UInt8Array], expected: list[UInt8Array], call: str, error: str, message: str
) -> None:
    with TrtRunner(engine, cuda_graphs=False) as runner:
        for run in (runner.infer, runner.logits, lambda frames: next(runner.stream([frames]))):
            with failing(gpu, call, error), pytest.raises(BackendError, match=message):
                run(batches[0])
            np.testing.assert_array_equal(runner.infer(batches[1]), expected[1])


def test_an_error_keeps_nothing_on_the_gpu(gpu: Gpu, engine: Path, batches: list[UInt8Array]) -> None:
    with (
        pytest.raises(BackendError, match="refuses the run") as error,
        failing(gpu, "execute_async_v3", "no luck"),
        TrtRunner(engine) as runner,
    ):
        runner.infer(batches[0])
    assert gpu.alive() == {} and error.traceback  # whose frames live on


def test_a_close_that_fails_frees_the_rest(gpu: Gpu, engine: Path) -> None:
    runner = TrtRunner(engine).open()
    with failing(gpu, "cuMemFreeHost", "CUDA_ERROR_LAUNCH_FAILED"), pytest.raises(BackendError, match="cuMemFreeHost"):
        runner.close()
    assert gpu.alive() == {"pinned": 2}
    gpu.pinned.clear()
    runner.close()


# Streams


def test_a_stream_copies_the_next_batch_while_one_computes(
    gpu: Gpu, engine: Path, batches: list[UInt8Array], expected: list[UInt8Array]
) -> None:
    with TrtRunner(engine, cuda_graphs=False) as runner:
        stream = runner.stream(batches[:3])
        gpu.calls.clear()
        np.testing.assert_array_equal(next(stream), expected[0])
        (first, one), (second, two) = gpu.calls[0], gpu.calls[3]
        assert first == second == "to device" and one != two
        queued = ["to device", "execute", "to host"]
        # the second batch is queued whole, on a stream of its own, before the first is waited for
        assert gpu.calls == [*((kind, one) for kind in queued), *((kind, two) for kind in queued), ("synchronize", one)]
        gpu.calls.clear()
        np.testing.assert_array_equal(list(stream), expected[1:3])
        assert gpu.calls == [*((kind, one) for kind in queued), ("synchronize", two), ("synchronize", one)]


def test_streams_and_calls_side_by_side(
    gpu: Gpu, engine: Path, batches: list[UInt8Array], expected: list[UInt8Array]
) -> None:
    with TrtRunner(engine) as runner:
        streams = [runner.stream(batches, depth) for depth in (2, 4)]
        for labels, *several in zip(expected, *streams, strict=True):
            np.testing.assert_array_equal(several, [labels, labels])
            np.testing.assert_array_equal(runner.infer(batches[0]), expected[0])
        assert len(gpu.streams) == 1 + 2 + 2  # the default one, and no more than two per stream


def test_a_stream_does_not_outlive_a_close(gpu: Gpu, engine: Path, batches: list[UInt8Array]) -> None:
    runner = TrtRunner(engine).open()
    stream = runner.stream(batches)
    next(stream)
    runner.close()
    with runner, pytest.raises(BackendError, match=r"enet\.engine was closed"):
        list(stream)


# CUDA graphs


def test_a_graph_is_captured_once_per_batch_size(
    gpu: Gpu, engine: Path, batches: list[UInt8Array], expected: list[UInt8Array]
) -> None:
    with TrtRunner(engine) as runner:
        for batch, labels in zip(batches * 2, expected * 2, strict=True):
            np.testing.assert_array_equal(runner.infer(batch), labels)
            runner.infer(batch[:1])
        assert gpu.counts()["capture"] == 2 and len(gpu.graphs) == 2
        assert gpu.counts()["launch"] == 2 * (8 - 2)  # the first call of a size is plain, the second captures
        runner.infer(np.concatenate(batches))  # takes more room, elsewhere
        assert gpu.graphs == {}


def test_graphs_are_few(gpu: Gpu, engine: Path, batches: list[UInt8Array]) -> None:
    frames = np.concatenate(batches)
    with TrtRunner(engine) as runner:
        for count in (6, 5, 4, 3, 2, 1, 6):  # the largest first: more room takes new addresses
            plain, _, graph = (runner.infer(frames[:count]) for _ in range(3))
            np.testing.assert_array_equal(plain, graph)
        assert len(gpu.graphs) == 4


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2, 3])
def test_rotating_buffers_are_not_captured_for_ever(
    gpu: Gpu, engine: Path, upload: Any, batches: list[UInt8Array], expected: list[UInt8Array], times: int
) -> None:
    buffers = [upload(batches[index % 4]) for index in range(6)]
    with TrtRunner(engine) as runner:
        for _ in range(5):
            for index, frames in enumerate(buffers):
                for _ in range(times):
                    np.testing.assert_array_equal(runner.infer(frames), expected[index % 4])
        assert gpu.counts()["capture"] <= 5  # the fifth has no place
        before = gpu.counts()["launch"]
        for _ in range(3):
            runner.infer(batches[0])
        assert gpu.counts()["launch"] == before + 1  # from the runner's own buffers there are graphs still


@pytest.mark.parametrize(("package", "graphs"), [("cuda-bindings", False), ("pycuda", None), ("pycuda", False)])
def test_without_graphs(gpu: Gpu, engine: Path, batches: list[UInt8Array], graphs: bool | None) -> None:
    with TrtRunner(engine, cuda_graphs=graphs) as runner:
        for batch in batches:
            runner.infer(batch)
        assert gpu.counts()["capture"] == 0 and "no CUDA graphs" in runner.spec.runtime


@pytest.mark.parametrize("package", ["pycuda"])
def test_cuda_graphs_that_cannot_be_captured_are_an_error(gpu: Gpu, engine: Path) -> None:
    with pytest.raises(BackendError, match=r"pycuda 2026\.1.*cuda-bindings"):
        open_runner(engine, cuda_graphs=True)


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("cuStreamBeginCapture", "cuStreamBeginCapture failed with CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"),
        ("cuGraphInstantiate", "cuGraphInstantiate failed with CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"),
    ],
)
def test_a_capture_that_fails_is_an_error(
    gpu: Gpu, engine: Path, batches: list[UInt8Array], call: str, why: str
) -> None:
    with TrtRunner(engine) as runner:
        runner.infer(batches[0])
        with (
            failing(gpu, call, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"),
            pytest.raises(BackendError, match=f"{why}; .*cuda_graphs=False"),
        ):
            runner.infer(batches[0])
        runner.infer(batches[0])


# Arrays on the GPU


@pytest.fixture
def upload(gpu: Gpu) -> Iterator[Callable[..., Any]]:
    """Puts an array on the GPU and gives an object with __cuda_array_interface__; `changes` are entries of it."""
    addresses = []

    def put(array: UInt8Array, offset: int = 0, **changes: Any) -> SimpleNamespace:
        address = gpu.alloc(array.nbytes + offset, gpu.memory)
        addresses.append(address)
        gpu.view(address + offset, array.nbytes)[:] = array.reshape(-1).view(np.uint8)
        interface = {"shape": array.shape, "typestr": array.dtype.str, "data": (address + offset, False), "version": 3}
        read = lambda: gpu.view(address + offset, array.nbytes).reshape(array.shape).copy()  # noqa: E731
        return SimpleNamespace(__cuda_array_interface__={**interface, **changes}, read=read)

    yield put
    for address in addresses:
        del gpu.memory[address]


@pytest.mark.parametrize("package", ["cuda-bindings", "pycuda"])
@pytest.mark.parametrize(("offset", "copies"), [(0, 0), (3, 1)], ids=["aligned", "not aligned"])
def test_frames_and_labels_stay_on_the_gpu(
    gpu: Gpu, engine: Path, upload: Any, batches: list[UInt8Array], expected: list[UInt8Array], offset: int, copies: int
) -> None:
    out = upload(np.zeros((2, *SIZE), np.uint8), offset)
    with TrtRunner(engine) as runner:
        for batch, labels in zip(batches, expected, strict=True):
            frames = upload(batch, offset)
            gpu.calls.clear()
            np.testing.assert_array_equal(runner.infer(frames), labels)
            assert gpu.counts()["to device"] == 0 and gpu.counts()["inside"] == copies
            gpu.calls.clear()
            assert runner.infer(frames, out=out) is out
            np.testing.assert_array_equal(out.read(), labels)
            assert gpu.counts()["to device"] == gpu.counts()["to host"] == 0
            assert gpu.counts()["inside"] == 2 * copies
            runner.infer(batch, out=out)
            np.testing.assert_array_equal(out.read(), labels)
        on_gpu = [upload(batch) for batch in batches]
        np.testing.assert_array_equal(list(runner.stream(on_gpu)), expected)
        np.testing.assert_array_equal(runner.logits(on_gpu[0]).argmax(1), expected[0])


@pytest.mark.parametrize("package", ["cuda-bindings", "pycuda"])
@pytest.mark.parametrize("interface", [{"version": 2}, {"stream": 1}, {"stream": 55}], ids=str)
def test_work_on_the_producers_stream_comes_first(
    gpu: Gpu,
    engine: Path,
    upload: Any,
    batches: list[UInt8Array],
    expected: list[UInt8Array],
    interface: dict[str, int],
) -> None:
    stream = interface.get("stream", 1)
    frames = upload(np.zeros_like(batches[0]), **interface)
    gpu.streams.setdefault(stream, standin.deque())
    with TrtRunner(engine) as runner:
        target = partial(gpu.view, frames.__cuda_array_interface__["data"][0], batches[0].nbytes)
        gpu.queue(stream, "kernel", lambda: target().__setitem__(slice(None), batches[0].reshape(-1)))
        np.testing.assert_array_equal(runner.infer(frames), expected[0])
    gpu.streams.pop(55, None)


@pytest.mark.parametrize("handle", [55, 0], ids=["side stream", "default stream"])
def test_torchs_current_stream_comes_first(
    gpu: Gpu,
    engine: Path,
    upload: Any,
    batches: list[UInt8Array],
    expected: list[UInt8Array],
    monkeypatch: pytest.MonkeyPatch,
    handle: int,
) -> None:
    class Tensor(SimpleNamespace):
        device = "cuda:0"

    current = {"cuda:0": SimpleNamespace(cuda_stream=handle)}
    torch = SimpleNamespace(Tensor=Tensor, cuda=SimpleNamespace(current_stream=current.__getitem__))
    monkeypatch.setitem(sys.modules, "torch", torch)
    frames = Tensor(**vars(upload(np.zeros_like(batches[0]), version=2)))
    gpu.streams[55] = standin.deque()
    with TrtRunner(engine) as runner:
        target = partial(gpu.view, frames.__cuda_array_interface__["data"][0], batches[0].nbytes)
        gpu.queue(handle or 1, "kernel", lambda: target().__setitem__(slice(None), batches[0].reshape(-1)))
        np.testing.assert_array_equal(runner.infer(frames), expected[0])
    del gpu.streams[55]


@pytest.mark.parametrize(
    ("array", "changes", "message"),
    [
        (np.zeros((1, *SIZE, 3), np.int16), {}, r"frames is int16 of shape \(1, 96, 128, 3\), expected uint8 of shape"),
        (np.zeros((*SIZE, 3), np.uint8), {}, r"shape \(96, 128, 3\), .*frames\[None\]"),
        (np.zeros((1, 3, *SIZE), np.uint8), {}, "; channels come last here"),
        (np.zeros((1, 64, 64, 3), np.uint8), {}, "export with --size 64x64"),
        (np.zeros((1, *SIZE, 3), np.uint8), {"strides": (9, 6, 3, 1)}, "frames is strided in GPU memory, expected C-"),
        (np.zeros((1, *SIZE, 3), np.uint8), {"typestr": "xx"}, "frames is of type 'xx'"),
        (np.zeros((1, *SIZE, 3), np.uint8), {"mask": object()}, "frames has a mask"),
        (np.zeros((1, *SIZE, 3), np.uint8), {"data": (4096, False)}, "frames is not in the memory of cuda:0"),
    ],
)
def test_bad_frames_on_the_gpu_are_refused(
    gpu: Gpu, engine: Path, upload: Any, array: UInt8Array, changes: dict[str, Any], message: str
) -> None:
    with TrtRunner(engine) as runner, pytest.raises(InputError, match=message):
        runner.infer(upload(array, **changes))


@pytest.mark.parametrize(
    ("array", "changes", "message"),
    [
        (np.zeros((2, *SIZE), np.int64), {}, r"out is int64 of shape \(2, 96, 128\), expected uint8 of shape"),
        (np.zeros((1, *SIZE), np.uint8), {}, r"out is uint8 of shape \(1, 96, 128\), expected .* \(2, 96, 128\)"),
        (np.zeros((2, *SIZE), np.uint8), {"data": (4096, True)}, "out is read-only"),
        (np.zeros((2, *SIZE), np.uint8), {"data": (4096, False)}, "out is not in the memory of cuda:0"),
    ],
)
def test_bad_out_on_the_gpu_is_refused(
    gpu: Gpu, engine: Path, upload: Any, batches: list[UInt8Array], array: UInt8Array, changes: Any, message: str
) -> None:
    with TrtRunner(engine) as runner, pytest.raises(InputError, match=message):
        runner.infer(batches[0], out=upload(array, **changes))


# Engines built for a graph


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were run to build an engine."""
    commands = []

    def run(command: list[str], env: dict[str, str], **_: Any) -> SimpleNamespace:
        *python, onnx, engine, flavour = command
        assert python == python_main("enet_deploy.runners.tensorrt.builder")
        commands.append([flavour, engine, env["CUDA_VISIBLE_DEVICES"]])
        write_engine(Path(onnx), Path(engine), flavour)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_the_engine_of_a_graph_is_built_once(
    gpu: Gpu, exported: Path, builds: list[list[str]], batches: list[UInt8Array], expected: list[UInt8Array]
) -> None:
    for _ in range(2):
        with open_runner(exported, "trt") as runner:
            np.testing.assert_array_equal(runner.infer(batches[0]), expected[0])
            assert runner.spec.artifact == exported
    ((flavour, engine, visible),) = builds
    assert (flavour, visible) == ("trt", "0") and "enet_deploy/engines" in engine


def test_engine_is_built_again_if_an_input_changes(
    gpu: Gpu, exported: Path, builds: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    open_runner(exported, "trt").close()
    changed = tmp_path / exported.name
    changed.write_bytes(exported.read_bytes() + b"\x7a\x00")  # an empty field more
    open_runner(changed, "trt").close()
    open_runner(exported, "trt", flavour="trt-rtx").close()
    monkeypatch.setitem(standin.VERSIONS, "trt", "10.14.1")
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "10.14.1")
    open_runner(exported, "trt").close()
    assert len({engine for _, engine, _ in builds}) == len(builds) == 4
    for engine in Path(builds[-1][1]).parent.glob("*.engine"):
        engine.write_bytes(b"damaged")
    open_runner(exported, "trt").close()
    assert builds[4] == builds[3]


def test_two_processes_build_the_same_engine_once(
    gpu: Gpu, exported: Path, builds: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = subprocess.run
    found: list[Any] = []

    def cached() -> None:
        found.append(cached_engine(exported, "trt", standin.VERSIONS["trt"], find_gpu(), 0))

    other = threading.Thread(target=cached)

    def run(*arguments: Any, **options: Any) -> Any:
        other.start()  # while this one builds
        other.join(0.5)
        assert other.is_alive() and not found
        return build(*arguments, **options)

    monkeypatch.setattr(subprocess, "run", run)
    cached()
    other.join()
    assert len(builds) == 1 and found[0] == found[1]


def test_engine_is_built_without_file_locks(
    gpu: Gpu, exported: Path, builds: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    open_runner(exported, "trt").close()
    assert len(builds) == 1


def test_a_cache_that_cannot_be_written_is_an_error(
    gpu: Gpu, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ArtifactError, match=r"cache .*file.*; .*XDG_CACHE_HOME"):
        open_runner(exported, "trt")


def test_engine_is_built_on_the_requested_gpu(
    gpu: Gpu, exported: Path, builds: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.count = 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    open_runner(exported, "trt", device="cuda:1").close()
    assert builds[0][-1] == "GPU-7"


@pytest.mark.parametrize(
    ("code", "stderr", "message"),
    [
        (2, "a bar\ntoo old; update it\n", r"was not built \(exit code 2\): too old; update it$"),
        (1, "Traceback\nKeyError: 'x'\n", r"was not built \(exit code 1\): KeyError: 'x'$"),
        (-9, "", r"was not built \(exit code -9\): it gave no reason$"),
    ],
)
def test_messages_of_the_builder_are_passed_on(
    gpu: Gpu, exported: Path, monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, message: str
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=code, stderr=stderr))
    with pytest.raises(BackendError, match=rf"^the engine of .*enet-fp32\.onnx {message}"):
        open_runner(exported, "trt")


def test_unknown_flavours_are_refused(exported: Path) -> None:
    with pytest.raises(InputError, match="flavour 'tensorflow', expected one of trt, trt-rtx"):
        open_runner(exported, "trt", flavour="tensorflow")


# TensorRT-RTX


def test_rtx_keeps_what_it_compiled_and_makes_its_own_graphs(
    gpu: Gpu, exported: Path, tmp_path: Path, batches: list[UInt8Array], expected: list[UInt8Array]
) -> None:
    path = write_engine(exported, tmp_path / "enet-rtx.engine", "trt-rtx", gpu=None)
    for known in (b"", b"kernels", b"kernels"):
        with open_runner(path) as runner:
            (loaded,) = gpu.engines
            (config,) = {id(config): config for config in loaded.configs}.values()
            assert config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
            assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"
            assert config.cache.content == known
            for batch, labels in zip(batches, expected, strict=True):
                np.testing.assert_array_equal(runner.infer(batch), labels)
            assert gpu.counts()["capture"] == 0 and runner.spec.runtime.endswith("CUDA graphs by TensorRT-RTX")
            del loaded, config
    (kept,) = (tmp_path / "cache" / "enet_deploy" / "runtime").iterdir()
    assert read_entry(kept) == b"kernels"
    with TrtRunner(path, cuda_graphs=False):
        (loaded,) = gpu.engines
        assert loaded.configs[0].cuda_graph_strategy is None
        del loaded


def test_rtx_is_profiled_without_its_graphs(gpu: Gpu, exported: Path, tmp_path: Path) -> None:
    path = write_engine(exported, tmp_path / "enet-rtx.engine", "trt-rtx", gpu=None)
    with TrtRunner(path) as runner:
        assert runner.profile(np.zeros((1, *SIZE, 3), np.uint8), calls=1)
    assert not gpu.alive()


def test_rtx_engines_of_another_machine_are_refused(gpu: Gpu, exported: Path, tmp_path: Path) -> None:
    path = write_engine(exported, tmp_path / "enet-rtx.engine", "trt-rtx", version="1.6.0.1")
    with pytest.raises(ArtifactError, match=r"TensorRT-RTX 1\.6\.0\.1, and 1\.7\.1\.116 .* --engine trt-rtx"):
        open_runner(path)


@pytest.mark.parametrize("validity", ["VALID", "SUBOPTIMAL"])
def test_rtx_engines_are_accepted_if_tensorrt_rtx_accepts_them(
    gpu: Gpu, exported: Path, tmp_path: Path, validity: str
) -> None:
    path = write_engine(exported, tmp_path / "enet-rtx.engine", "trt-rtx", compute_capabilities=("8.0",))
    with pytest.raises(ArtifactError, match=r"8\.0, .* --engine trt-rtx"):
        open_runner(path)
    gpu.validity = validity
    open_runner(path).close()


def test_rtx_that_cannot_be_asked_goes_by_the_card(
    gpu: Gpu, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_engine(exported, tmp_path / "enet-rtx.engine", "trt-rtx", compute_capabilities=("8.0",))
    monkeypatch.delattr(sys.modules["tensorrt_rtx"].Runtime, "get_engine_validity")
    with pytest.raises(ArtifactError, match=r"is for compute capability 8\.0, and this is "):
        open_runner(path)


def test_rtx_runner_without_a_cache_is_closed_too(
    gpu: Gpu, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standin.RuntimeCache, "serialize", lambda _: None)
    open_runner(write_engine(exported, tmp_path / "enet-rtx.engine", "trt-rtx")).close()
