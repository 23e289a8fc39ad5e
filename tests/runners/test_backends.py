"""What is particular to one backend: its options, its devices, the precision it really computes in."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from helpers import SIZE, write_graph

from enet_deploy import BackendError, InputError, open_runner
from enet_deploy.artifacts import save_graph
from enet_deploy.data.scenes import street_scene
from enet_deploy.environment import processor
from enet_deploy.images import UInt8Array
from enet_deploy.runners import openvino_runner
from enet_deploy.runners.openvino_runner import OpenVinoRunner
from enet_deploy.runners.ort_runner import OrtRunner, _int8_overflows
from enet_deploy.runners.torch_runner import without_tf32


@pytest.fixture(scope="module")
def batches() -> list[UInt8Array]:
    """Four different batches of one frame."""
    return [street_scene(seed, SIZE)[0][None] for seed in range(4)]


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_graph_that_is_replaced_while_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """As an export does: what runs is what was checked, also from the cache, whose key is of that."""
    module = import_module(f"enet_deploy.runners.{backend}_runner")
    pytest.importorskip("onnxruntime" if backend == "ort" else backend)
    path, other = tmp_path / "a.onnx", tmp_path / "b.onnx"
    model = onnx.load(write_graph(path))
    save_graph(model, path)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(-weight, "weight"))
    save_graph(model, other)
    frame = street_scene(0, (16, 16))[0][None]
    with open_runner(path, backend) as runner:
        expected = runner.infer(frame)
    with open_runner(other, backend) as runner:
        assert (runner.infer(frame) != expected).any()

    def read_and_replace(path: Path) -> bytes:
        content = path.read_bytes()
        shutil.copy(other, path)
        return content

    options = {"cache": tmp_path / "cache"} if backend == "openvino" else {}
    content = path.read_bytes()
    for _ in range(2):
        path.write_bytes(content)
        with monkeypatch.context() as patched:
            patched.setattr(module, "read_artifact", read_and_replace)
            with open_runner(path, backend, **options) as runner:
                np.testing.assert_array_equal(runner.infer(frame), expected)


# PyTorch on CUDA


def test_torch_on_cuda_computes_without_tf32(
    weights: Path, batches: list[UInt8Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run on the CPU as if it were CUDA, and record what convolutions there would be allowed to do."""
    torch = pytest.importorskip("torch")
    conv = torch.backends.cudnn.conv
    monkeypatch.setattr("enet_deploy.runners.torch_runner.torch_device", lambda _: torch.device("cpu"))
    before, seen = conv.fp32_precision, []
    for device in ("cuda", "cpu"):
        with open_runner(weights, "torch", device, size=SIZE) as runner:
            runner._segmenter.net.register_forward_hook(lambda *_: seen.append(conv.fp32_precision))  # type: ignore[attr-defined]
            runner.infer(batches[0])
            runner.logits(batches[0])
            assert ("TF32 off" in runner.spec.runtime) == (device == "cuda")
    assert seen == ["ieee", "ieee", before, before] and before != "ieee"
    assert conv.fp32_precision == before


def test_tf32_comes_back_after_the_last_of_several_threads() -> None:
    torch = pytest.importorskip("torch")
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision

    def use(_: int) -> str:
        with without_tf32():
            time.sleep(0.001)  # the others come
            return str(conv.fp32_precision)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(use, range(32))) == {"ieee"}
    with pytest.raises(ZeroDivisionError), without_tf32():
        _ = 1 / 0
    assert conv.fp32_precision == before != "ieee"


# OpenVINO


def test_openvino_keeps_the_precision_of_the_graph(exported: Path, weights: Path, batches: list[UInt8Array]) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("torch")
    frames = np.concatenate(batches)
    # By default it computes in bfloat16 if the CPU can, which changes some 2 % of the labels
    with open_runner(exported, "openvino") as runner, open_runner(weights, size=SIZE) as reference:
        assert (runner.infer(frames) == reference.infer(frames)).mean() >= 0.9999


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_openvino_streams_what_it_infers(exported: Path, batches: list[UInt8Array], hint: str) -> None:
    pytest.importorskip("openvino")
    with OpenVinoRunner(exported, threads=2, hint=hint) as runner:
        expected = [runner.infer(batch) for batch in batches]
        # The copies that strided and read-only frames are turned into live until their labels are out
        flipped = (batch[:, :, ::-1].copy()[:, :, ::-1] for batch in batches)
        read_only = (np.frombuffer(batch.tobytes(), np.uint8).reshape(batch.shape) for batch in batches)
        for frames in (flipped, read_only):
            np.testing.assert_array_equal(list(runner.stream(frames, depth=4)), expected)


def test_openvino_infers_while_a_stream_is_open(exported: Path, batches: list[UInt8Array]) -> None:
    pytest.importorskip("openvino")
    with OpenVinoRunner(exported, threads=1) as runner:
        expected = [runner.infer(batch) for batch in batches]
        for labels, wanted in zip(runner.stream(batches, depth=3), expected, strict=True):
            np.testing.assert_array_equal(runner.infer(batches[0]), expected[0])
            np.testing.assert_array_equal(labels, wanted)


def test_openvino_with_a_number_of_threads_is_not_pinned_to_the_first_cores(exported: Path) -> None:
    """Pinned runners of several processes would all compute on the first core."""
    pytest.importorskip("openvino")
    with OpenVinoRunner(exported, threads=1) as runner:
        assert runner._with_labels.get_property("ENABLE_CPU_PINNING") is False


def test_openvino_caches_what_it_compiled(exported: Path, tmp_path: Path, batches: list[UInt8Array]) -> None:
    pytest.importorskip("openvino")
    labels = []
    for _ in range(2):
        with OpenVinoRunner(exported, cache=tmp_path / "a" / "b") as runner:
            labels.append(runner.infer(batches[0]))
    assert len(list((tmp_path / "a" / "b").iterdir())) == 1
    np.testing.assert_array_equal(*labels)


@pytest.mark.parametrize("at", ["creation", "start"])
def test_openvino_request_that_fails_comes_after_earlier_labels(
    exported: Path, batches: list[UInt8Array], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    pytest.importorskip("openvino")
    create, made = openvino_runner._create_request, []

    def fail(*_: Any) -> None:
        raise RuntimeError("no thread left")

    def second_fails(*arguments: Any, **outputs: Any) -> Any:
        made.append(create(*arguments, **outputs))
        if len(made) != 2:
            return made[-1]
        return fail() if at == "creation" else SimpleNamespace(start_async=fail, wait=lambda: None)

    with OpenVinoRunner(exported) as runner:
        expected = runner.infer(batches[0])
        monkeypatch.setattr(openvino_runner, "_create_request", second_fails)
        stream = runner.stream(batches[:3], depth=3)
        np.testing.assert_array_equal(next(stream), expected)
        with pytest.raises(BackendError, match="no thread left"):
            next(stream)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "cuda"}, BackendError, "device 'cuda' for openvino, expected cpu"),
        ({"precision": "bf16", "device": "cuda"}, BackendError, "device 'cuda' for openvino, expected cpu"),
        ({"hint": "speed"}, InputError, "hint 'speed', expected latency or throughput"),
        ({"threads": -1}, InputError, "threads -1"),
        ({"threads": "all"}, InputError, "threads 'all'"),
        ({"cache": "{exported}"}, InputError, "cache .*onnx"),
    ],
)
def test_openvino_refuses(exported: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
    pytest.importorskip("openvino")
    options = {key: exported if value == "{exported}" else value for key, value in options.items()}
    with pytest.raises(error, match=message):
        open_runner(exported, "openvino", **options)


# bf16


def skip_without_bf16() -> None:
    if not {"avx512_bf16", "amx_bf16"} & set(processor()[1].split()):
        pytest.skip("this CPU has neither AVX512_BF16 nor AMX")


@pytest.mark.slow
def test_openvino_computes_what_int8_leaves_in_bf16(graphs: dict[str, Path], batches: list[UInt8Array]) -> None:
    pytest.importorskip("openvino")
    skip_without_bf16()
    kinds = []
    for precision in (None, "bf16"):
        with OpenVinoRunner(graphs["int8"], threads=1, precision=precision) as runner:
            assert runner.spec.precision == ("int8" if precision is None else "bf16-int8")
            assert runner.spec.qdq_layout == "all"
            kinds.append({operation.kind.rpartition("_")[2].upper() for operation in runner.profile(batches[0], 1)})
    assert "I8" in kinds[0] and "BF16" not in kinds[0] and {"BF16", "I8"} <= kinds[1]
    with pytest.raises(BackendError, match=r"fp16\.onnx.*fp32 or int8"):
        open_runner(graphs["fp16"], "openvino", precision="bf16")


def test_bf16_needs_a_cpu_that_has_it(exported: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ov = pytest.importorskip("openvino")
    monkeypatch.setattr(ov.Core, "get_property", lambda *_: ["FP32", "INT8"])
    with pytest.raises(BackendError, match=r"INT8.*AVX512_BF16"):
        open_runner(exported, precision="bf16")
    monkeypatch.setattr("enet_deploy.runners.torch_runner.processor", lambda: ("Old Processor", "avx2 avx512f"))
    with pytest.raises(BackendError, match=r"Old Processor.*AVX512_BF16"):
        open_runner(weights, precision="bf16")


# ONNX Runtime on CUDA: which calls are made, by a stand-in for the package; whether they work needs a GPU


class Session:
    """What `onnxruntime.InferenceSession` is made with and told; signature and metadata are the real file's."""

    def __init__(self, real: Any, calls: list[Any]) -> None:
        self.get_inputs, self.get_outputs, self.get_modelmeta = real.get_inputs, real.get_outputs, real.get_modelmeta
        self.calls = calls
        self.provider = ""

    def get_providers(self) -> list[str]:
        return [self.provider, "CPUExecutionProvider"]

    def _bind_output(self, *arguments: Any) -> None:
        self.calls.append(("output", *arguments))
        *_, shape, address = arguments
        ctypes.memset(address, 0, math.prod(shape))  # labels of class 0

    def io_binding(self) -> SimpleNamespace:
        return SimpleNamespace(
            bind_ortvalue_input=lambda name, value: self.calls.append(("input", name, value)),
            bind_output=self._bind_output,
        )

    def run_with_iobinding(self, binding: Any) -> None:
        self.calls.append(("run",))


class DeviceValue:
    """`onnxruntime.OrtValue` on a device."""

    def __init__(self, array: UInt8Array, device: str, index: int) -> None:
        self.array, self.device, self.index, self.updates = array, device, index, 0

    def shape(self) -> list[int]:
        return list(self.array.shape)

    def update_inplace(self, array: UInt8Array) -> None:
        self.updates += 1


class FakeOrt:
    """onnxruntime-gpu, as far as the runner calls it. `made` holds (provider, options, session config) per session, and
    "preload" if libraries were loaded."""

    __version__, __file__ = "1.99", "/site/onnxruntime/__init__.py"
    OrtValue = SimpleNamespace(ortvalue_from_numpy=DeviceValue)

    def __init__(self, real: Any) -> None:
        self.real = real
        self.made: list[Any] = []
        self.calls: list[Any] = []
        self.falls_back, self.fails = False, ""

    def preload_dlls(self) -> None:
        print("Failed to load libcurand.so.10")
        self.made.append("preload")

    def get_available_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    def SessionOptions(self) -> Any:
        config: dict[str, str] = {}
        return SimpleNamespace(config=config, add_session_config_entry=config.__setitem__)

    def InferenceSession(self, graph: bytes | str, options: Any, providers: list[Any], enable_fallback: int) -> Session:
        assert not enable_fallback
        session = Session(self.real.InferenceSession(graph), self.calls)
        ((session.provider, choices),) = providers
        self.made.append((session.provider, choices, options.config))
        if self.fails and session.provider != "CPUExecutionProvider":
            raise RuntimeError(self.fails)
        if self.falls_back:
            session.provider = "CPUExecutionProvider"
        return session


@pytest.fixture
def fake_ort(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOrt]:
    fake = FakeOrt(pytest.importorskip("onnxruntime"))
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)  # type: ignore[arg-type]
    yield fake


STRICT = {"session.disable_cpu_ep_fallback": "1"}


def test_cuda_gets_its_frames_in_one_buffer_of_the_device(
    exported: Path, fake_ort: FakeOrt, batches: list[UInt8Array]
) -> None:
    with open_runner(exported, "ort", "cuda:1") as runner:
        assert (runner.spec.device, runner.spec.runtime) == ("cuda:1", "CUDAExecutionProvider")
        outs = [runner.infer(batch) for batch in batches[:2]]
        runner.infer(np.concatenate(batches))  # another shape: another buffer
    assert fake_ort.made == ["preload", ("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "0"}, STRICT)]
    values = [call[2] for call in fake_ort.calls if call[:2] == ("input", "frames")]
    assert values[0] is values[1] and values[0].updates == 1 and values[2] is not values[0]
    assert (values[0].device, values[0].index) == ("cuda", 1)
    bound = [call for call in fake_ort.calls if call[0] == "output"]
    assert bound[1] == ("output", "labels", "cpu", 0, np.uint8, (1, *SIZE), outs[1].ctypes.data)
    assert [call[0] for call in fake_ort.calls] == ["input", "output", "run"] * 3


@pytest.mark.parametrize(("precision", "tf32_override"), [("fp32", "0"), ("fp16", ""), ("fp32", ""), ("fp32", "1")])
def test_tensorrt_provider_is_allowed_the_graphs_precision_alone(
    tmp_path: Path, fake_ort: FakeOrt, monkeypatch: pytest.MonkeyPatch, precision: str, tf32_override: str
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", tf32_override)
    graph = write_graph(tmp_path / "a.onnx", precision)
    if (precision, tf32_override) in (("fp32", ""), ("fp32", "1")):
        with pytest.raises(BackendError, match=r"a\.onnx, a graph in fp32: .* NVIDIA_TF32_OVERRIDE=0"):
            open_runner(graph, "ort", "cuda", provider="tensorrt")
        return
    with open_runner(graph, "ort", "cuda", provider="tensorrt"):
        pass
    fp16 = str(int(precision == "fp16"))
    choices = {"device_id": "0", "trt_fp16_enable": fp16, "trt_int8_enable": "0"}
    assert fake_ort.made == ["preload", ("TensorrtExecutionProvider", choices, STRICT)]


def test_onnxruntime_that_falls_back_or_fails_is_an_error(exported: Path, fake_ort: FakeOrt) -> None:
    fake_ort.falls_back = True
    with pytest.raises(BackendError, match=r"'cuda' .*CPUExecutionProvider"):
        open_runner(exported, "ort", "cuda")
    fake_ort.fails = "CUDA failure 100: no CUDA-capable device is detected"
    with pytest.raises(BackendError, match=r"enet-fp32\.onnx .*CUDAExecutionProvider .*: CUDA failure 100"):
        open_runner(exported, "ort", "cuda")


def test_onnxruntime_preloads_its_libraries_silently(
    exported: Path, fake_ort: FakeOrt, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_runner(exported, "ort", "cuda"):
        assert capsys.readouterr().out == ""
    with open_runner(exported, "ort", "cpu"):
        assert fake_ort.made.count("preload") == 1
    monkeypatch.delattr(FakeOrt, "preload_dlls")  # before 1.21
    with open_runner(exported, "ort", "cuda"):
        pass


@pytest.mark.parametrize(
    ("provider", "library", "cure"),
    [
        ("cuda", "libcublasLt.so.13", r"pip install 'enet-deploy\[gpu\]'"),
        ("cuda", "libcuda.so.1", "install the NVIDIA driver"),
        ("tensorrt", "libnvinfer.so.10", "install the TensorRT that it was built for"),
    ],
)
def test_library_that_a_provider_lacks_is_named_with_its_cure(
    exported: Path, fake_ort: FakeOrt, monkeypatch: pytest.MonkeyPatch, provider: str, library: str, cure: str
) -> None:
    def load(path: str) -> None:
        assert path == f"/site/onnxruntime/capi/libonnxruntime_providers_{provider}.so"
        raise OSError(f"{library}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr("ctypes.CDLL", load)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    fake_ort.fails = "This session contains graph nodes that are assigned to the default CPU EP"
    with pytest.raises(BackendError, match=rf"device 'cuda': .* {library}: .*; {cure}$"):
        open_runner(exported, "ort", "cuda", provider=provider)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"provider": "cuda"}, "provider 'cuda' on device 'cpu'"),
        ({"device": "cuda", "provider": "rocm"}, "provider 'rocm' .*cuda or tensorrt"),
        ({"threads": 1.5}, "threads 1.5"),
    ],
)
def test_onnxruntime_refuses(exported: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OrtRunner(exported, **options)


@pytest.mark.parametrize("device", ["cuda:", "cuda:x", "gpu", "CPU"])
def test_onnxruntime_knows_its_devices(exported: Path, device: str) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(BackendError, match=f"device '{device}'.*cuda:N"):
        open_runner(exported, "ort", device)


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "expected"),
    [
        ("x86_64", "flags : avx512f avx512_vnni", False),
        ("AMD64", "flags : avx2 avx_vnni", False),
        ("x86_64", "flags : avx2", True),
        ("x86_64", None, True),  # without such a file
        ("aarch64", "Features : asimd", False),
    ],
)
def test_int8_kernels_that_overflow_are_known(
    machine: str, cpuinfo: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_text(_: Path, encoding: str, errors: str = "strict") -> str:
        if cpuinfo is None:
            raise FileNotFoundError
        return cpuinfo

    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", read_text)
    assert _int8_overflows() == expected


@pytest.mark.parametrize("overflows", [True, False])
def test_precise_int8_is_used_if_the_kernels_overflow(
    exported: Path, overflows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries: list[str] = []
    ort = pytest.importorskip("onnxruntime")

    class Options(ort.SessionOptions):  # type: ignore[misc]
        def add_session_config_entry(self, key: str, value: str) -> None:
            entries.append(f"{key}={value}")
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(ort, "SessionOptions", Options)
    monkeypatch.setattr("enet_deploy.runners.ort_runner._int8_overflows", lambda: overflows)
    with open_runner(exported, "ort"):
        assert ("session.x64quantprecision=1" in entries) == overflows


# Threads


@pytest.mark.parametrize("backend", ["ort", "openvino", "opencv"])
@pytest.mark.parametrize("threads", [-1, 1.5, "2", None, 1025, 100_000, 2**31, 2**63])
def test_threads_have_bounds(exported: Path, backend: str, threads: Any) -> None:
    with pytest.raises(InputError, match=str(threads)):
        open_runner(exported, backend, threads=threads)


MASKED = """
import glob, os, sys, numpy as np
core = min(os.sched_getaffinity(0))
os.sched_setaffinity(0, {core})
from enet_deploy import open_runner
with open_runner(sys.argv[1], sys.argv[2]) as runner:
    runner.infer(np.zeros((1, *runner.spec.size, 3), np.uint8))
    masks = {tuple(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")}
assert masks == {(core,)}, masks
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) < 2, reason="no mask is possible")
@pytest.mark.parametrize("backend", ["ort", "openvino", "opencv"])
def test_threads_stay_on_the_cores_that_they_may_use(exported: Path, backend: str) -> None:
    pytest.importorskip({"ort": "onnxruntime", "opencv": "cv2"}.get(backend, backend))
    if backend == "opencv" and not hasattr(cv2.dnn, "ENGINE_NEW"):
        pytest.skip(f"OpenCV {cv2.__version__} is older than version 5")
    done = subprocess.run([sys.executable, "-c", MASKED, str(exported), backend], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
