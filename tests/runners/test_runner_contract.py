"""The runner contract, held against every backend that opens here and, through a fake one, against the base class."""

from __future__ import annotations

import gc
import itertools
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import tensorrt_standin
from helpers import SIZE, TEMPERATURE

from enet_deploy import BACKENDS, CAMVID, ArtifactError, BackendError, InputError, Runner, Spec, open_runner
from enet_deploy.artifacts import METADATA_KEY, Metadata, save_graph
from enet_deploy.data.scenes import street_scene
from enet_deploy.environment import processor
from enet_deploy.files import sha256
from enet_deploy.images import UInt8Array
from enet_deploy.runners import backend_for, backends_for
from enet_deploy.runners.opencv_runner import OpenCvRunner
from enet_deploy.runners.openvino_runner import OpenVinoRunner
from enet_deploy.runners.ort_runner import OrtRunner
from enet_deploy.runners.tensorrt.card import EngineCard
from enet_deploy.runners.tensorrt.cuda import find_gpu
from enet_deploy.runners.tensorrt.engine import cached_engine
from enet_deploy.runners.tensorrt.library import import_tensorrt
from enet_deploy.runners.tensorrt.runner import TrtRunner
from enet_deploy.runners.torch_runner import TorchRunner

HEIGHT, WIDTH = SIZE


class FakeRunner(Runner):
    """Labels are the red channel modulo the number of classes. It needs numpy alone and has no logits."""

    backend = "fake"

    def __init__(self, artifact: str | Path, device: str = "cpu", batch: int | None = None) -> None:
        super().__init__(artifact, device)
        self._batch = batch

    def _open(self) -> Spec:
        self._table = np.arange(256, dtype=np.uint8) % len(CAMVID)
        metadata = Metadata(CAMVID, (0, 0, 0), (1, 1, 1), SIZE, weights_sha256=sha256(self.artifact))
        return self._make_spec(metadata, self._batch, has_logits=False)

    def _run(self, frames: UInt8Array, out: UInt8Array) -> None:
        assert frames.flags.c_contiguous
        out[:] = self._table[frames[..., 2]]

    def _run_logits(self, frames: UInt8Array) -> npt.NDArray[np.float32]:
        raise AssertionError("the base class must not ask for logits that are not there")

    def _close(self) -> None:
        del self._table


# case -> (class, the package it needs, the fixture with its artifact, options). A new backend is one line here.
CASES: dict[str, tuple[type[Runner], str, str, dict[str, Any]]] = {
    "fake": (FakeRunner, "numpy", "weights", {}),
    "torch": (TorchRunner, "torch", "weights", {"size": SIZE}),
    "torch-bf16": (TorchRunner, "torch", "weights", {"size": SIZE, "precision": "bf16"}),
    "ort": (OrtRunner, "onnxruntime", "exported", {"threads": 1}),
    "openvino": (OpenVinoRunner, "openvino", "exported", {"threads": 1}),
    "openvino-bf16": (OpenVinoRunner, "openvino", "exported", {"threads": 1, "precision": "bf16"}),
    "opencv": (OpenCvRunner, "cv2", "exported", {}),
    "trt": (TrtRunner, "onnxruntime", "engine", {}),  # which runs the stand-in's engines
    "torch-cuda": (TorchRunner, "torch", "weights", {"size": SIZE, "device": "cuda"}),
    "ort-cuda": (OrtRunner, "onnxruntime", "exported", {"device": "cuda"}),
}


def test_every_backend_is_held_to_the_contract() -> None:
    assert {case[0].backend for case in CASES.values()} == {"fake", *BACKENDS}


def skip_without_bf16() -> None:
    if not {"avx512_bf16", "amx_bf16"} & set(processor()[1].split()):
        pytest.skip("this CPU has neither AVX512_BF16 nor AMX")


def skip_with_old_opencv(runner_class: type[Runner]) -> None:
    if runner_class is OpenCvRunner and not hasattr(cv2.dnn, "ENGINE_NEW"):
        pytest.skip(f"OpenCV {cv2.__version__} is older than version 5")


def skip_without_cuda(package: str) -> None:
    if not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    if package == "onnxruntime" and "CUDAExecutionProvider" not in import_module(package).get_available_providers():
        pytest.skip("this onnxruntime is built without CUDA; onnxruntime-gpu is")


@pytest.fixture(scope="module")
def engine(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The engine of `exported`: a real one if TensorRT and a GPU are there, else one for the stand-ins."""
    folder, flavour = tmp_path_factory.mktemp("engine"), tensorrt_standin.real_flavour()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        if flavour is not None:
            yield cached_engine(exported, flavour, import_tensorrt(flavour).__version__, find_gpu(), 0)
            return
        gpu = tensorrt_standin.Gpu()
        with tensorrt_standin.installed(gpu):
            yield tensorrt_standin.write_engine(exported, folder / "enet-fp32.engine")
        assert (gpu.alive(), gpu.complaints) == ({}, [])


SLOW = ("torch", "torch-bf16", "openvino", "openvino-bf16")  # test_backends.py has quick tests of both backends


@pytest.fixture(
    scope="module", params=[pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in CASES]
)
def make(request: pytest.FixtureRequest) -> Callable[[], Runner]:
    """Makes a runner that is not open yet."""
    runner_class, package, artifact, options = CASES[request.param]
    pytest.importorskip(package)
    if "device" in options:
        skip_without_cuda(package)
    if "precision" in options:
        skip_without_bf16()
    skip_with_old_opencv(runner_class)
    return partial(runner_class, request.getfixturevalue(artifact), **options)


@pytest.fixture(scope="module")
def runner(make: Callable[[], Runner]) -> Iterator[Runner]:
    """An open runner for any number of frames. Do not close it."""
    with make() as runner:
        yield runner


@pytest.fixture(scope="module")
def batches() -> list[UInt8Array]:
    """Six different batches of two frames."""
    frames = np.stack([street_scene(seed, SIZE)[0] for seed in range(12)])
    return list(frames.reshape(6, 2, HEIGHT, WIDTH, 3))


# Life


def test_file_is_needed_only_to_open(make: Callable[[], Runner], tmp_path: Path) -> None:
    runner = type(make())(tmp_path / "none")
    with pytest.raises(ArtifactError, match="none does not exist"):
        runner.open()
    runner.close()


def test_open_close_reopen(make: Callable[[], Runner], batches: list[UInt8Array]) -> None:
    runner = make()
    runner.close()
    assert runner.open() is runner
    spec, labels = runner.spec, runner.infer(batches[0])
    assert runner.open().spec is spec  # nothing was loaded again
    runner.close()
    runner.close()
    calls: list[Callable[[], object]] = [
        lambda: runner.spec,
        lambda: runner.infer(batches[0]),
        lambda: runner.logits(batches[0]),
        lambda: runner.segment(batches[0][0]),
        lambda: runner.stream([]),
    ]
    for call in calls:
        with pytest.raises(BackendError, match=r"is not open"):
            call()
    with runner as again:
        assert again is runner and runner.spec == spec
        np.testing.assert_array_equal(runner.infer(batches[0]), labels)


def test_leaving_a_with_block_closes_also_on_an_error(make: Callable[[], Runner]) -> None:
    with pytest.raises(ZeroDivisionError), make() as runner:
        _ = 1 / 0
    with pytest.raises(BackendError, match="is not open"):
        _ = runner.spec


def test_runners_live_side_by_side(make: Callable[[], Runner], batches: list[UInt8Array]) -> None:
    with make() as first:
        with make() as second:
            expected = first.infer(batches[0])
            second.infer(batches[1])
            np.testing.assert_array_equal(second.infer(batches[0]), expected)
            with ThreadPoolExecutor(2) as pool:  # at once
                for labels in pool.map(lambda one: one.infer(batches[0]), [first, second] * 4):
                    np.testing.assert_array_equal(labels, expected)
        np.testing.assert_array_equal(first.infer(batches[0]), expected)  # closing one leaves the other


def test_calls_from_other_threads(runner: Runner, batches: list[UInt8Array]) -> None:
    expected = [runner.infer(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for labels, wanted in zip(pool.map(runner.infer, batches), expected, strict=True):
            np.testing.assert_array_equal(labels, wanted)


def test_closed_by_another_thread_between_check_and_run(weights: Path, batches: list[UInt8Array]) -> None:
    class ClosedMeanwhile(FakeRunner):
        def _checked(self, frames: Any) -> UInt8Array:
            frames = super()._checked(frames)
            self.close()
            return frames

    with ClosedMeanwhile(weights) as runner, pytest.raises(BackendError, match="is not open"):
        runner.infer(batches[0])


def test_spec(runner: Runner, request: pytest.FixtureRequest, weights: Path) -> None:
    spec = runner.spec
    runner_class, _, _, options = CASES[request.node.callspec.params["make"]]
    assert spec.backend == runner_class.backend
    device = "cuda" if spec.backend == "trt" else options.get("device", "cpu")
    assert (spec.artifact, spec.device) == (runner.artifact, device)
    assert spec.precision == options.get("precision", "fp32")
    assert (spec.size, spec.batch, spec.classes) == (SIZE, None, CAMVID)
    assert spec.weights_sha256 == sha256(weights)


# infer


def test_labels_are_class_ids(runner: Runner, batches: list[UInt8Array]) -> None:
    for frames in (batches[0], batches[0][:1], np.concatenate(batches)):
        labels = runner.infer(frames)
        assert labels.dtype == np.uint8 and labels.shape == (len(frames), HEIGHT, WIDTH)
        assert labels.max() < len(CAMVID) and len(np.unique(labels)) > 2


def test_each_frame_has_its_own_labels(runner: Runner, batches: list[UInt8Array]) -> None:
    both = runner.infer(batches[0])
    assert (both[0] != both[1]).any()
    for frame, labels in zip(batches[0], both, strict=True):
        # another batch size may take another kernel, whose rounding may turn a near tie
        assert (runner.infer(frame[None])[0] == labels).mean() > 0.999


def test_result_is_the_callers(runner: Runner, batches: list[UInt8Array]) -> None:
    first = runner.infer(batches[0])
    kept = first.copy()
    second = runner.infer(batches[1])
    assert (second != kept).any() and not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)
    first[:] = 255
    np.testing.assert_array_equal(runner.infer(batches[0]), kept)


def test_out_is_filled_and_returned(runner: Runner, batches: list[UInt8Array]) -> None:
    out = np.full((3, 2, HEIGHT, WIDTH), 255, np.uint8)
    view = out[1]
    assert runner.infer(batches[0], out=view) is view
    np.testing.assert_array_equal(view, runner.infer(batches[0]))
    assert (out[::2] == 255).all()  # and nothing around it


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.empty((2, HEIGHT, WIDTH), np.int64), r"out is int64 of shape \(2, 96, 128\), expected uint8 of shape"),
        (np.empty((1, HEIGHT, WIDTH), np.uint8), r"out is uint8 of shape \(1, 96, 128\), expected .* \(2, 96, 128\)"),
        (np.empty((2, HEIGHT, WIDTH, 1), np.uint8), r"out is uint8 of shape \(2, 96, 128, 1\), expected"),
        ([[0]], r"out is a list, expected uint8 of shape \(2, 96, 128\)"),
        (np.broadcast_to(np.uint8(0), (2, HEIGHT, WIDTH)), "out is strided or read-only"),
        (np.empty((2, HEIGHT, 2 * WIDTH), np.uint8)[..., ::2], "out is strided or read-only"),
        (np.frombuffer(bytes(2 * HEIGHT * WIDTH), np.uint8).reshape(2, HEIGHT, WIDTH), "out is strided or read-only"),
    ],
    ids=["int64", "one frame", "four axes", "list", "broadcast", "strided", "read-only"],
)
def test_bad_out_is_refused(runner: Runner, batches: list[UInt8Array], out: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        runner.infer(batches[0], out=out)


def test_layout_in_memory_makes_no_difference(runner: Runner, batches: list[UInt8Array]) -> None:
    frames = batches[0]
    wide = np.zeros((2, HEIGHT, 2 * WIDTH, 4), np.uint8)
    wide[:, :, ::2, :3] = frames
    read_only = np.frombuffer(frames.tobytes(), np.uint8).reshape(frames.shape)
    turned = frames[:, ::-1, ::-1].copy()[:, ::-1, ::-1]
    expected = runner.infer(frames)
    for same in (wide[:, :, ::2, :3], read_only, turned, np.asfortranarray(frames)):
        before = same.copy()
        np.testing.assert_array_equal(runner.infer(same), expected)
        np.testing.assert_array_equal(same, before)


BAD_FRAMES = [
    (np.zeros((1, HEIGHT, WIDTH, 3), np.uint16), "frames is uint16"),
    (np.zeros((1, HEIGHT, WIDTH, 3), np.float32), "frames is float32 of shape .*, expected uint8 of shape"),
    ([[0]], r"frames is a list, expected uint8 of shape \(N, 96, 128, 3\), BGR"),
    (np.zeros((HEIGHT, WIDTH, 3), np.uint8), r"shape \(96, 128, 3\), .*frames\[None\]"),
    (np.zeros((HEIGHT, WIDTH), np.uint8), r"shape \(96, 128\), expected"),
    (np.zeros((1, 1, HEIGHT, WIDTH, 3), np.uint8), r"shape \(1, 1, 96, 128, 3\), expected"),
    (np.zeros((1, 3, HEIGHT, WIDTH), np.uint8), r"shape \(1, 3, 96, 128\), .*channels"),
    (np.zeros((1, HEIGHT, WIDTH, 4), np.uint8), r"shape \(1, 96, 128, 4\), expected"),
    (np.zeros((1, WIDTH, HEIGHT, 3), np.uint8), r"shape \(1, 128, 96, 3\), .*--size 128x96"),
    (np.zeros((0, HEIGHT, WIDTH, 3), np.uint8), "no frame"),
]


@pytest.mark.parametrize(("frames", "message"), BAD_FRAMES)
def test_bad_frames_are_refused(runner: Runner, frames: Any, message: str) -> None:
    for call in (runner.infer, runner.logits, lambda frames: next(runner.stream([frames])), runner.profile):
        with pytest.raises(InputError, match=message):
            call(frames)


@pytest.fixture(params=["fake", "ort", "openvino", "opencv"])
def pair_runner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runner]:
    """An open runner of exactly two frames per call."""
    if request.param == "fake":
        runner: Runner = FakeRunner(request.getfixturevalue("weights"), batch=2)
    else:
        runner_class, package, _, _ = CASES[request.param]
        pytest.importorskip(package)
        skip_with_old_opencv(runner_class)
        onnx = pytest.importorskip("onnx")
        model = onnx.load(request.getfixturevalue("exported"))
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 2
        save_graph(model, tmp_path / "two.onnx")
        runner = runner_class(tmp_path / "two.onnx")
    with runner:
        yield runner


def test_fixed_batch(pair_runner: Runner, batches: list[UInt8Array]) -> None:
    assert pair_runner.spec.batch == 2
    assert pair_runner.infer(batches[0]).shape == (2, HEIGHT, WIDTH)
    for frames in (batches[0][:1], np.concatenate(batches[:2])):
        with pytest.raises(InputError, match=r"expected uint8 of shape \(2, 96, 128, 3\).*--dynamic-batch"):
            pair_runner.infer(frames)
    with pytest.raises(InputError, match=r"takes 2 at a time"):
        pair_runner.segment(batches[0][0])


# Backends that fail


def silent(runner: Runner, patch: pytest.MonkeyPatch, rows: int) -> None:
    """Let the backend write the first `rows` rows of labels and then return as if all was well."""

    def run(frames: UInt8Array, out: UInt8Array) -> None:
        out[:, :rows] = 0

    patch.setattr(runner, "_run", run)
    # the backends with a stream of their own
    done = SimpleNamespace(start_async=lambda: None, wait=lambda: None)
    patch.setattr("enet_deploy.runners.openvino_runner._create_request", lambda *_, **__: done)
    patch.setattr("enet_deploy.runners.tensorrt.lane.Lane.finish", lambda lane: None)


@pytest.mark.parametrize("rows", [0, HEIGHT - 1])
def test_labels_that_were_not_written_are_an_error(
    make: Callable[[], Runner], batches: list[UInt8Array], rows: int
) -> None:
    with make() as runner, pytest.MonkeyPatch.context() as patch:
        out = runner.infer(batches[0])  # labels of another call
        silent(runner, patch, rows)
        calls: list[Callable[[], object]] = [
            lambda: runner.infer(batches[1]),
            lambda: runner.infer(batches[1], out=out),
            lambda: runner.segment(batches[1][0]),
            lambda: list(runner.stream(batches)),
        ]
        for call in calls:
            with pytest.raises(BackendError, match="id 255"):
                call()


class Foreign(Exception):
    """Raised by somebody else in the middle of a call, as by the handler of a signal."""


@pytest.mark.parametrize(
    ("raised", "expected", "named"),
    [
        (RuntimeError("kernel 7 failed"), BackendError, "kernel 7 failed"),
        (MemoryError("std::bad_alloc"), BackendError, "too little memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), BackendError, "too little memory"),
        (Foreign("late"), Foreign, "late"),
        (KeyboardInterrupt("now"), KeyboardInterrupt, "now"),
    ],
)
def test_errors_of_a_backend_are_raised_as_ours(
    make: Callable[[], Runner], batches: list[UInt8Array], raised: BaseException, expected: type[Exception], named: str
) -> None:
    def fail(*_: object) -> None:
        raise raised

    with make() as runner:
        expected_labels = runner.infer(batches[0])
        with pytest.MonkeyPatch.context() as patch:
            for method in ("_run", "_run_logits", "_profile"):
                patch.setattr(runner, method, fail)
            calls: list[Callable[[], object]] = [lambda: runner.infer(batches[0]), lambda: runner.profile(batches[0])]
            if runner.spec.has_logits:
                calls.append(lambda: runner.logits(batches[0]))
            for call in calls:
                with pytest.raises(expected, match=named):
                    call()
        np.testing.assert_array_equal(runner.infer(batches[0]), expected_labels)  # it is usable again


def test_out_is_the_callers_after_an_error(weights: Path, batches: list[UInt8Array]) -> None:
    """Something raises in the caller, as a signal's handler does, while PyTorch's thread computes."""
    pytest.importorskip("torch")
    go_on = threading.Event()

    class Interrupted(ThreadPoolExecutor):
        def submit(self, function: Any, /, *arguments: Any) -> Any:
            super().submit(go_on.wait, 60)
            super().submit(function, *arguments)

            def result() -> None:
                raise Foreign

            return SimpleNamespace(result=result)

    with TorchRunner(weights, size=SIZE) as runner:
        runner._thread.shutdown()
        runner._thread = Interrupted(1)
        out = np.zeros(batches[0].shape[:3], np.uint8)
        with pytest.raises(Foreign):
            runner.infer(batches[0], out=out)
        out[:] = 200
        go_on.set()
    assert (out == 200).all()  # close() has waited for the thread


def test_logits_that_are_no_numbers_are_an_error(runner: Runner, batches: list[UInt8Array]) -> None:
    if not runner.spec.has_logits:
        pytest.skip("the fake runner has no logits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_run_logits", lambda frames: np.full((2, 11, *SIZE), np.nan, np.float32))
        with pytest.raises(BackendError, match="no numbers"):
            runner.logits(batches[0])


NO_MEMORY = """
import os, resource, sys, numpy as np
from enet_deploy import BackendError, open_runner
runner = open_runner(sys.argv[1], sys.argv[2])
frames = np.random.default_rng(0).integers(0, 256, (48, *runner.spec.size, 3), np.uint8)
out = np.full(frames.shape[:3], 9, np.uint8)
now = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (now + (4 << 20),) * 2)
try:
    runner.infer(frames, out=out)
except BackendError:
    os._exit(0)
os._exit(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("case", ["torch", "ort", "openvino", "opencv"])
def test_no_memory_is_an_error(case: str, request: pytest.FixtureRequest) -> None:
    _, package, artifact, _ = CASES[case]
    pytest.importorskip(package)
    command = [sys.executable, "-c", NO_MEMORY, str(request.getfixturevalue(artifact)), case]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# stream


@pytest.mark.parametrize("depth", [1, 2, 20])
def test_stream_is_infer_in_order(runner: Runner, batches: list[UInt8Array], depth: int) -> None:
    expected = [runner.infer(batch) for batch in batches]
    streamed = list(runner.stream(iter(batches), depth))  # kept all: each is the caller's
    np.testing.assert_array_equal(streamed, expected)


def test_stream_of_nothing_is_empty(runner: Runner) -> None:
    assert list(runner.stream([])) == []


@pytest.mark.parametrize("depth", [1, 3])
def test_stream_keeps_depth_in_flight_and_may_be_left(runner: Runner, batches: list[UInt8Array], depth: int) -> None:
    fetched = itertools.count()
    endless = (batch for batch in itertools.cycle(batches) if next(fetched) >= 0)
    stream = runner.stream(endless, depth)
    np.testing.assert_array_equal(next(stream), runner.infer(batches[0]))
    assert next(fetched) == depth
    stream.close()  # type: ignore[attr-defined]
    runner.infer(batches[0])  # the runner is free again


def test_errors_come_out_of_the_stream(runner: Runner, batches: list[UInt8Array]) -> None:
    def camera() -> Iterator[UInt8Array]:
        yield batches[0]
        raise RuntimeError("unplugged")

    with pytest.raises(RuntimeError, match="unplugged"):
        list(runner.stream(camera()))
    stream = runner.stream([batches[0], batches[0][0], batches[1]])
    next(stream)
    with pytest.raises(InputError, match=r"shape \(96, 128, 3\)"):
        next(stream)
    assert list(stream) == []  # it has ended
    with pytest.raises(InputError, match="depth 0"):
        runner.stream(batches, depth=0)
    runner.infer(batches[0])


def test_runner_closed_under_a_stream(make: Callable[[], Runner], batches: list[UInt8Array]) -> None:
    with make() as runner:
        stream = runner.stream(batches)
        next(stream)
    with pytest.raises(BackendError, match="is not open"):
        list(stream)


@pytest.mark.slow
def test_stream_ended_by_the_garbage_collector_blocks_no_call(
    make: Callable[[], Runner], batches: list[UInt8Array]
) -> None:
    """It may run in the middle of any call, also of one that holds the runner's lock."""
    with make() as runner:
        labels = runner.infer(batches[0])
        stream = runner.stream(itertools.cycle(batches), depth=4)
        next(stream)
        forgotten: list[Any] = [runner.stream(itertools.cycle(batches), depth=4)]
        next(forgotten[0])
        forgotten.append(forgotten)
        ends = threading.Thread(target=stream.close, daemon=True)
        with runner._lock:
            ends.start()
            ends.join(60)
            assert not ends.is_alive()
            del forgotten
            gc.collect()  # in this thread
        np.testing.assert_array_equal(runner.infer(batches[0]), labels)


# segment


@pytest.mark.parametrize("size", [(50, 70), (720, 1280), (1, 1), (96, 127)])
def test_segment_takes_any_size(runner: Runner, size: tuple[int, int]) -> None:
    labels = runner.segment(street_scene(1, size)[0] if size != (1, 1) else np.full((1, 1, 3), 99, np.uint8))
    assert labels.shape == size and labels.dtype == np.uint8 and labels.max() < len(CAMVID)


def test_segment_resizes_bilinear_in_and_nearest_out(runner: Runner, batches: list[UInt8Array]) -> None:
    small = batches[0][0]
    labels = runner.infer(small[None])[0]
    np.testing.assert_array_equal(runner.segment(small), labels)  # at its own size: no resizing at all
    # every pixel twice as high and three times as wide, scaled back by averaging, is the image again
    large = small.repeat(2, axis=0).repeat(3, axis=1)
    np.testing.assert_array_equal(runner.segment(large), labels.repeat(2, axis=0).repeat(3, axis=1))
    stripes = np.tile(np.uint8([[[0], [100]]]), (HEIGHT, WIDTH, 3))
    assert (runner.preprocess(stripes) == 50).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((50, 70), np.uint8), r"image is uint8 of shape \(50, 70\), expected uint8 of shape \(height, width"),
        (np.zeros((50, 70, 4), np.uint8), r"image is uint8 of shape \(50, 70, 4\), expected"),
        (np.zeros((50, 70, 3), np.float32), "image is float32 of shape"),
        (np.zeros((50, 70, 3), np.uint16), "image is uint16 of shape"),
        (np.zeros((1, 50, 70, 3), np.uint8), r"image is uint8 of shape \(1, 50, 70, 3\)"),
        (np.zeros((0, 70, 3), np.uint8), r"image has shape \(0, 70, 3\)"),
        (None, "image is None, .*cv2.imread"),  # what cv2.imread gives for a file that is not there
    ],
)
def test_bad_images_are_refused(runner: Runner, image: Any, message: str) -> None:
    for call in (runner.segment, runner.preprocess):
        with pytest.raises(InputError, match=message):
            call(image)


@pytest.mark.parametrize(
    ("labels", "size", "named"),
    [
        (np.zeros(SIZE, np.int64), (50, 70), "int64"),
        (np.zeros((1, *SIZE), np.uint8), (50, 70), r"\(1, 96, 128\)"),
        (np.zeros((90, 120), np.uint8), (50, 70), r"\(90, 120\)"),
        (np.zeros(SIZE, np.uint8), (0, 70), r"\(0, 70\)"),
        (np.zeros(SIZE, np.uint8), (50, 70, 3), r"\(50, 70, 3\)"),
        (np.zeros(SIZE, np.uint8), (50.5, 70), "50.5"),
    ],
)
def test_bad_labels_are_refused(runner: Runner, labels: Any, size: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        runner.postprocess(labels, size)


# logits


def test_labels_are_the_largest_logits(runner: Runner, batches: list[UInt8Array]) -> None:
    if not runner.spec.has_logits:
        with pytest.raises(ArtifactError, match=r"'logits'.*--logits"):
            runner.logits(batches[0])
        return
    logits = runner.logits(batches[0])
    assert logits.dtype == np.float32 and logits.shape == (2, len(CAMVID), HEIGHT, WIDTH)
    np.testing.assert_array_equal(logits.argmax(axis=1), runner.infer(batches[0]))
    kept = logits.copy()
    runner.logits(batches[1])
    np.testing.assert_array_equal(logits, kept)


def test_confidence_is_the_probability_of_the_label(runner: Runner, batches: list[UInt8Array]) -> None:
    if not runner.spec.has_confidence:
        for call, argument in (
            (runner.infer_with_confidence, batches[0]),
            (runner.segment_with_confidence, batches[0][0]),
        ):
            with pytest.raises(ArtifactError, match=r"'confidence'.*--confidence"):
                call(argument)
        return
    labels, confidence = runner.infer_with_confidence(batches[0])
    np.testing.assert_array_equal(labels, runner.infer(batches[0]))
    temperature = 1 if runner.artifact.suffix == ".safetensors" else TEMPERATURE  # which is fitted later than weights
    logits = runner.logits(batches[0]).astype(np.float64) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probability = powers.max(axis=1) / powers.sum(axis=1)
    assert confidence.dtype == np.uint8 and confidence.shape == labels.shape
    assert np.abs(confidence - 255 * probability).max() <= 0.51
    kept = confidence.copy()
    image = batches[1][0][:50, :70]
    small = runner.segment_with_confidence(image)
    np.testing.assert_array_equal(small[0], runner.segment(image))
    assert small[1].shape == (50, 70) and small[1].min() > 0
    np.testing.assert_array_equal(confidence, kept)


def test_confidences_that_were_not_written_are_an_error(runner: Runner, batches: list[UInt8Array]) -> None:
    if not runner.spec.has_confidence:
        pytest.skip("the fake runner has no confidences")

    def half(frames: UInt8Array, labels: UInt8Array, confidence: UInt8Array) -> None:
        labels.fill(3)
        confidence[0] = 9

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_run_confidence", half)
        with pytest.raises(BackendError, match="confidences"):
            runner.infer_with_confidence(batches[0])


def test_backends_agree(runner: Runner, weights: Path, batches: list[UInt8Array]) -> None:
    if runner.spec.backend == "fake":
        pytest.skip("the fake runner runs no network")
    pytest.importorskip("torch")
    frames = np.concatenate(batches)
    with TorchRunner(weights, size=SIZE) as reference:
        agreement = (runner.infer(frames) == reference.infer(frames)).mean()
        # a rounding error may choose another winner of a pooling window, which moves a value by one pixel
        difference = np.quantile(np.abs(runner.logits(frames) - reference.logits(frames)), 0.99)
    if runner.spec.precision == "bf16":  # 8 bits of mantissa, on drawn scenes, whose flat areas have many near ties
        assert 0.97 <= agreement < 1 and 1e-3 < difference < 1
    else:
        assert agreement >= 0.999 and difference < 1e-3


# open_runner


def test_profile_names_the_operations_or_says_that_it_cannot(runner: Runner, batches: list[UInt8Array]) -> None:
    labels = runner.infer(batches[0])
    if runner.backend in ("fake", "torch"):
        with pytest.raises(BackendError, match=f"backend .{runner.backend}. "):
            runner.profile(batches[0])
    elif (runner.backend, runner.device) == ("ort", "cuda"):
        with pytest.raises(BackendError, match="started on cuda"):
            runner.profile(batches[0])
    else:
        operations = runner.profile(batches[0], calls=2)
        assert operations and all(operation.ms > 0 for operation in operations)
        assert "initial.conv/Conv" in {name for o in operations for name in o.names}
        with pytest.raises(InputError, match="calls 0"):
            runner.profile(batches[0], calls=0)
    assert (runner.infer(batches[0]) == labels).all()


def test_open_runner_chooses_by_suffix(exported: Path, weights: Path) -> None:
    assert backend_for(exported) in ("openvino", "ort") and backend_for(str(weights)) == "torch"
    assert backends_for(exported) == ("ort", "openvino", "opencv", "trt")
    with open_runner(exported, threads=1) as runner:
        assert runner.backend == backend_for(exported) and runner.spec.device == "cpu"
    with open_runner(str(weights), "torch", size=(32, 40)) as runner:
        assert isinstance(runner, TorchRunner) and runner.spec.size == (32, 40)


@pytest.mark.parametrize(
    ("artifact", "options", "error", "message"),
    [
        ("exported", {"backend": "tflite"}, InputError, "backend 'tflite'.*torch, ort"),
        ("exported", {"backend": "torch"}, InputError, r"onnx for backend 'torch', expected a \.safetensors file"),
        ("weights", {"backend": "ort"}, InputError, r"safetensors for backend 'ort', expected a \.onnx file"),
        ("weights", {"backend": "openvino"}, InputError, r"safetensors for backend 'openvino', expected a \.onnx file"),
        ("exported", {"backend": "ort", "speed": 9}, InputError, r"option 'speed' .*, expected threads, provider"),
        ("weights", {"threads": 1}, InputError, r"option 'threads' for backend 'torch', expected size"),
        ("weights", {"size": (90, 128)}, InputError, "size 90x128.*88x128"),
        ("exported", {"device": "tpu"}, BackendError, "device 'tpu' for onnxruntime"),
        ("exported", {"backend": "ort", "device": ""}, InputError, "device '', expected 'cpu'"),
        ("exported", {"device": 3}, InputError, "device 3, expected 'cpu'"),
        ("exported", {"backend": "opencv", "device": "cuda"}, BackendError, "device 'cuda' for opencv, expected cpu"),
        ("exported", {"backend": "ort", "precision": "bf16"}, BackendError, "'bf16' for backend 'ort'.*openvino"),
        ("exported", {"backend": "opencv", "precision": "bf16"}, BackendError, "'bf16' for backend 'opencv'.*openvino"),
        ("weights", {"backend": "torch", "precision": "fp16"}, BackendError, "'fp16' for backend 'torch'.*bf16"),
        ("exported", {"precision": "fp8"}, InputError, "precision 'fp8'"),
        ("weights", {"device": "tpu"}, BackendError, "device 'tpu' for torch"),
    ],
)
def test_open_runner_refuses(
    request: pytest.FixtureRequest, artifact: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_runner(request.getfixturevalue(artifact), **options)


def test_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"has the suffix '\.pth', expected \.safetensors \(torch\), \.onnx \(ort, openvino"
    ):
        open_runner(tmp_path / "enet.pth")
    with pytest.raises(ArtifactError, match=r"none\.onnx does not exist"):
        open_runner(tmp_path / "none.onnx")


def test_cuda_is_refused_without_a_cuda_device(weights: Path, exported: Path) -> None:
    if pytest.importorskip("torch").cuda.is_available():
        pytest.skip("a CUDA device is there")
    with pytest.raises(BackendError, match=r"device 'cuda'.* 0 CUDA devices"):
        open_runner(weights, device="cuda")
    if "CUDAExecutionProvider" not in pytest.importorskip("onnxruntime").get_available_providers():
        with pytest.raises(BackendError, match=r"device 'cuda' needs onnxruntime's CUDAExecutionProvider; .*\[gpu\]"):
            open_runner(exported, device="cuda")


@pytest.mark.parametrize(
    ("backend", "package", "artifact", "extra"),
    [
        ("torch", "torch", "weights", "torch"),
        ("ort", "onnxruntime", "exported", "cpu"),
        ("openvino", "openvino", "exported", "cpu"),
    ],
)
def test_missing_package_is_named_with_its_cure(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    package: str,
    artifact: str,
    extra: str,
) -> None:
    path = request.getfixturevalue(artifact)
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"backend '{backend}': .*'{package}' is not installed; pip install 'enet-deploy\[{extra}\]'"
    with pytest.raises(BackendError, match=message):
        open_runner(path, backend)


def foreign_onnx(path: Path, metadata: str | None) -> None:
    """A graph of float images, with `metadata` under this project's key."""
    from onnx import TensorProto, helper, save

    images, doubled = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "foreign", [images], [doubled])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    if metadata is not None:
        helper.set_model_props(model, {METADATA_KEY: metadata})
    save(model, path)


OURS = Metadata(CAMVID, (0, 0, 0), (1, 1, 1), SIZE).to_text()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "no 'enet_deploy' metadata"),
        (
            OURS,
            r"\{'x': \('float32', .*expected \{'frames': \('uint8', .*96, 128, 3\]\), 'lab",
        ),
        ("{", "'enet_deploy' metadata: JSONDecodeError"),
        ("[]", "'enet_deploy' metadata: TypeError"),
        (OURS.replace('"schema": 1', '"schema": 99'), "schema 99, expected 1"),
        (OURS.replace('"size": [96, 128]', '"size": [96]'), "'enet_deploy' metadata: IndexError"),
    ],
)
@pytest.mark.parametrize("runner_class", [OrtRunner, OpenVinoRunner, OpenCvRunner])
def test_foreign_graphs_are_refused(
    tmp_path: Path, metadata: str | None, message: str, runner_class: type[Runner]
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip(CASES[runner_class.backend][1])
    skip_with_old_opencv(runner_class)
    foreign_onnx(tmp_path / "foreign.onnx", metadata)
    with pytest.raises(ArtifactError, match=message):
        runner_class(tmp_path / "foreign.onnx").open()


@pytest.mark.parametrize("keep", [0, 1000, -100])
def test_damaged_files_are_refused(make: Callable[[], Runner], tmp_path: Path, keep: int) -> None:
    runner = make()
    if runner.backend == "fake":
        pytest.skip("the fake runner reads no file")
    damaged = tmp_path / f"damaged{runner.artifact.suffix}"
    damaged.write_bytes(runner.artifact.read_bytes()[:keep])
    if EngineCard.path(runner.artifact).is_file():
        shutil.copy(EngineCard.path(runner.artifact), EngineCard.path(damaged))
    runner = type(runner)(damaged)
    with pytest.raises(ArtifactError, match=rf"damaged\{damaged.suffix} (is no.*: .*|has the SHA-256)"):
        runner.open()
    with pytest.raises(BackendError, match="is not open"):
        runner.infer(np.zeros((1, HEIGHT, WIDTH, 3), np.uint8))


def test_warning_if_both_onnxruntime_packages_are_installed(
    exported: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "importlib.metadata.version", lambda name: {"onnxruntime": "1.1", "onnxruntime-gpu": "1.2"}[name]
    )
    with open_runner(exported, "ort"):
        pass
    assert "onnxruntime 1.1 and onnxruntime-gpu 1.2" in caplog.text
