"""The steps of a GPU's report. `cli` runs each in a process of its own:

    python -m enet_deploy.benchmarks.gpu.steps STEP WORK FINDINGS.json

A step writes each finding at once, so that a crash or the time limit loses none of them. A rehearsal runs the same
steps on the CPU; a step that needs a card says so.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gc
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from enet_deploy import console
from enet_deploy.artifacts import BUNDLED_WEIGHTS, save_graph
from enet_deploy.child import python_main
from enet_deploy.commands import cli
from enet_deploy.data import DataSet, open_data, require_same_classes, spread
from enet_deploy.data.scenes import street_scene, write_scenes
from enet_deploy.errors import BackendError, EnetError, RequirementError, missing
from enet_deploy.files import atomic_write, sha256
from enet_deploy.images import UInt8Array
from enet_deploy.runners import Runner, open_runner
from enet_deploy.runners.tensorrt.card import EngineCard

from ..measure.timing import times
from .contract import CHECKS, Case, NotHere, must, on_device
from .findings import Findings, Note, Settings, Size

if TYPE_CHECKING:
    from enet_deploy.runners.tensorrt.builder import Build

PRECISIONS = ("fp16", "fp32", "int8", "fp16-int8")  # the likely best first
FRAMES = 8  # that labels are held against PyTorch's on in the contract
IMAGES = 32  # the same for engines
AHEAD_OF_TIME = "8.6"  # what a rehearsal compiles for: an RTX 3060
TRAIN_FOR = ("--minutes", "1")

# Rates that the estimate goes by
COPY = "copy inside the device, read and written"
PRODUCT = "matrix product, "
IN_GRAPH = "one small kernel of a CUDA graph"


@dataclass(frozen=True)
class Run:
    """What a step works with: the settings, a folder for its files, and where its findings go."""

    settings: Settings
    work: Path
    found: Findings


# --- what steps share ---------------------------------------------------------------------------------------------


def _words(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _frames(count: int, size: Size) -> UInt8Array:
    """(count, H, W, 3) uint8 BGR; of more than `FRAMES` scenes the same again."""
    return np.resize(np.stack([street_scene(seed, size)[0] for seed in range(min(count, FRAMES))]), (count, *size, 3))


def _reference(run: Run) -> UInt8Array:
    """Labels of `FRAMES` frames of the first size by PyTorch on the CPU, which computes float32 exactly."""
    path, size = run.work / "reference.npy", run.settings.sizes[0]
    if not path.exists():
        with open_runner(BUNDLED_WEIGHTS, "torch", size=size) as runner, atomic_write(path) as temporary:
            np.save(temporary, runner.infer(_frames(FRAMES, size)))
    labels: UInt8Array = np.load(path)
    return labels


def _graph(run: Run, precision: str, size: Size, dynamic: bool = False) -> Path:
    """The bundled weights as a graph for one frame, or for any number; exported once in a run."""
    import onnx

    from enet_deploy.export.int8 import quantize
    from enet_deploy.export.record import record_for
    from enet_deploy.export.to_onnx import build_graph

    path = run.work / f"enet-{precision}-{_words(size)}{'-dynamic' * dynamic}.onnx"
    if path.exists():
        return path
    if not dynamic:  # the same operations, for a fixed batch of one
        model = onnx.load(_graph(run, precision, size, dynamic=True))
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1
        del model.graph.value_info[:]  # they name the dynamic batch
    elif "int8" in precision:
        plain = _graph(run, "fp16" if "fp16" in precision else "fp32", size, dynamic=True)
        model = quantize(onnx.load(plain), record_for(sha256(BUNDLED_WEIGHTS)))
    else:
        model = build_graph(BUNDLED_WEIGHTS, precision, size, batch=None)
    with atomic_write(path) as temporary:
        save_graph(model, temporary)
    return path


def _flavour(run: Run) -> str:
    """The TensorRT to measure. Raises NotHere where none is available for the card in this machine."""
    from enet_deploy.runners.tensorrt.builder import BuildOptions, require_buildable
    from enet_deploy.runners.tensorrt.library import FLAVOURS, import_tensorrt

    if run.settings.rehearsal:
        raise NotHere("needs a card")
    reasons = []
    for flavour in (run.settings.flavour,) if run.settings.flavour else FLAVOURS:
        try:
            import_tensorrt(flavour)
            require_buildable(BuildOptions(flavour))
        except EnetError as error:
            reasons.append(str(error))
        else:
            return flavour
    raise NotHere("; ".join(reasons))


def _engine(run: Run, precision: str, size: Size, dynamic: bool = False) -> Path:
    """The engine of a graph for the card in this machine; built once in a run."""
    path = run.work / EngineCard.engine_name(f"enet-{precision}-{_words(size)}{'-dynamic' * dynamic}", _flavour(run))
    return path if path.exists() else _build(run, _flavour(run), precision, size, dynamic=dynamic).path


def _build(run: Run, flavour: str, precision: str, size: Size, ahead: tuple[str, ...] = (), *, dynamic: bool) -> Build:
    from enet_deploy.runners.tensorrt.builder import BuildOptions, to_engine

    graph = _graph(run, precision, size, dynamic)
    options = BuildOptions(flavour, ahead, max_batch=run.settings.batches[-1])
    return to_engine(graph, run.work / EngineCard.engine_name(graph, flavour), options)


def _require(run: Run, backend: str) -> None:
    """Raise NotHere unless a backend is available on the device of this run."""
    device = run.settings.device
    if backend == "trt":
        _flavour(run)
        return
    try:
        if backend == "torch":
            from enet_deploy.runners.torch_runner import torch_device

            torch_device(device)
        else:
            import onnxruntime

            if device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                cure = "pip uninstall onnxruntime, then pip install 'enet-deploy[gpu]'"
                raise NotHere(f"onnxruntime {onnxruntime.__version__} without CUDA; {cure}")
    except ModuleNotFoundError:
        raise NotHere(missing("torch" if backend == "torch" else "onnxruntime")) from None
    except BackendError as error:
        raise NotHere(str(error)) from None


def _open(run: Run, backend: str, precision: str, size: Size, dynamic: bool = True, **options: Any) -> Runner:
    """An open runner of the bundled weights, for any number of frames or for one."""
    if backend == "torch":
        return open_runner(BUNDLED_WEIGHTS, "torch", run.settings.device, size=size)
    if backend == "trt":
        return open_runner(_engine(run, precision, size, dynamic), "trt", **options)
    return open_runner(_graph(run, precision, size, dynamic), "ort", run.settings.device)


def _calls(run: Run, call: Callable[[], object]) -> int:
    """How many calls a timing has; after a warm-up."""
    settings = run.settings
    once = statistics.median(times(call, 3, dropped=settings.warm_up))
    return min(max(round(1e3 * settings.seconds / once), settings.least), settings.most)


def _timed(run: Run, call: Callable[[], object], frames: int) -> dict[str, object]:
    """Latency of a call that labels so many frames, and frames per second of calls back to back."""
    found = times(call, _calls(run, call))
    p50, p99 = np.quantile(found, (0.5, 0.99)).tolist()
    return {"p50_ms": p50, "p99_ms": p99, "fps": 1e3 * frames / statistics.fmean(found), "calls": len(found)}


def _wait(run: Run) -> Callable[[], None]:
    """What waits until the device is done with PyTorch's work."""
    import torch

    return (lambda: None) if run.settings.rehearsal else torch.cuda.synchronize


# --- (a) facts ----------------------------------------------------------------------------------------------------

SMI = (
    "name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit",
    "temperature.gpu",
)  # fmt: skip


def facts(run: Run) -> None:
    """The card, what reaches it, and what it does at best."""
    _smi(run, "at the start")
    from enet_deploy.runners.tensorrt.cuda import find_gpu, open_device
    from enet_deploy.runners.tensorrt.library import FLAVOURS, import_tensorrt

    with run.found.attempt("machine", what="CUDA device") as note:
        if run.settings.rehearsal:
            raise NotHere("needs a card")
        with open_device() as device:
            note(value=f"{find_gpu()}, through {device.package}")
    for flavour in FLAVOURS:
        with run.found.attempt("machine", what=f"engine '{flavour}'") as note:
            try:
                note(value=import_tensorrt(flavour).__version__)
            except BackendError as error:
                raise NotHere(str(error)) from None
    _require(run, "torch")
    import torch

    with run.found.attempt("machine", what="PyTorch") as note:
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        note(value=f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn}")
    _rates(run)


def _smi(run: Run, when: str) -> None:
    """What the driver's own tool tells: which card, how fast it is clocked, how hot it is."""
    with run.found.attempt("machine", what=f"nvidia-smi {when}") as note:
        command = ["nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=20)
        except OSError:  # a Jetson may have none
            raise NotHere("there is no nvidia-smi") from None
        if done.returncode:
            raise NotHere(done.stdout or done.stderr)
        # all: it counts cards by bus, CUDA the fastest first
        cards = [zip(SMI, line.split(", "), strict=False) for line in done.stdout.splitlines()]
        note(value="; ".join(", ".join(f"{name} {value}" for name, value in card) for card in cards))


def _rates(run: Run) -> None:
    """What copies, matrix products and launches reach: an estimate of any network's time begins here."""
    import torch

    device, wait, rehearsal = run.settings.device, _wait(run), run.settings.rehearsal
    size, side = (2**22, 256) if rehearsal else (2**28, 4096)
    here, there = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    host = torch.zeros(size, dtype=torch.uint8, pin_memory=not rehearsal)

    def rate(what: str, call: Callable[[], object], work: float, unit: str) -> None:
        with run.found.attempt("rates", what=what) as note:
            note(rate=work / _seconds(call, wait, run.settings.seconds), unit=unit)

    rate(COPY, lambda: there.copy_(here), 2 * size / 1e9, "GB/s")
    rate("copy to the device, pinned", lambda: here.copy_(host, non_blocking=True), size / 1e9, "GB/s")
    rate("copy to the host, pinned", lambda: host.copy_(here, non_blocking=True), size / 1e9, "GB/s")
    for dtype in (torch.float32, torch.float16):
        a = torch.ones(side, side, device=device, dtype=dtype)
        rate(PRODUCT + str(dtype)[6:], partial(torch.mm, a, a), 2 * side**3 / 1e12, "TFLOP/s")
    tiny = torch.zeros(1, device=device)
    with run.found.attempt("rates", what="one small operation of eager PyTorch") as note:
        note(rate=1e6 * _seconds(lambda: tiny.add_(1), wait, run.settings.seconds), unit="us")
    with run.found.attempt("rates", what=IN_GRAPH) as note:
        graph = _captured(run, lambda: [tiny.add_(1) for _ in range(500)])
        note(rate=1e6 * _seconds(graph, wait, run.settings.seconds) / 500, unit="us")


def _seconds(call: Callable[[], object], wait: Callable[[], None], seconds: float) -> float:
    """Of one of many calls that are queued one after the other, as many as take so long."""

    def took(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            call()
        wait()
        return time.perf_counter() - begun

    took(1)  # libraries load at the first call
    count = max(1, round(seconds / took(1)))  # not by the clock: a host queues minutes of work
    return took(count) / count


def _captured(run: Run, call: Callable[[], object]) -> Callable[[], None]:
    """What replays a call as a CUDA graph: the same memory is read and written."""
    if run.settings.rehearsal:
        raise NotHere("needs a card")
    import torch

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def estimate(run: Run) -> None:
    """What the network asks for, and how long the rates that `facts` has found make that take: no measurement."""
    from ..measure.profiling import expected_seconds, kernels

    facts = run.found.path.with_name("facts.json")
    rows = json.loads(facts.read_text(encoding="utf-8"))["findings"] if facts.exists() else []
    known = {row["what"]: row.get("rate") for row in rows if row["table"] == "rates"}
    size = run.settings.sizes[0]
    for precision, dtype in (("fp32", "float32"), ("fp16", "float16")):
        graph = _graph(run, precision, size)
        for merged in (True, False):
            found = kernels(graph, merged)
            shown = {"precision": precision, "size": _words(size), "merged": "all that can be" if merged else "nothing"}
            with run.found.attempt("estimate", **shown) as note:
                macs = sum(kernel.multiply_adds for kernel in found)
                note(kernels=len(found), gflop=2 * macs / 1e9, mb=sum(kernel.bytes for kernel in found) / 1e6)
                needed = [known[what] for what in (COPY, PRODUCT + dtype, IN_GRAPH) if known.get(what)]
                if len(needed) < 3:
                    raise NotHere("the rates of this machine are not all known")
                bandwidth, flops, launch = needed
                note(least_ms=1e3 * expected_seconds(found, 1e9 * bandwidth, 1e12 * flops, 1e-6 * launch))


# --- (b) the contract ---------------------------------------------------------------------------------------------


def contract(run: Run, backend: str) -> None:
    """What every backend promises, in fp32 on the device."""
    _require(run, backend)
    size = run.settings.sizes[0]
    opener = partial(_open, run, backend, "fp32", size)
    frames, expected = _frames(FRAMES, size), _reference(run)
    with run.found.attempt("contract", backend=backend, check="opens") as note, opener() as runner:
        note(told=runner.spec.runtime or f"{runner.spec.backend} on {runner.spec.device}")
        case = Case(opener, runner, frames, expected)
        for name, check in CHECKS.items():
            with run.found.attempt("contract", backend=backend, check=name) as note_check:
                note_check(told=check(case))


# --- (c) engines --------------------------------------------------------------------------------------------------


def engine(run: Run, precision: str) -> None:
    """An engine of one precision for this card: built, inspected, run, and held against PyTorch.

    A rehearsal compiles it ahead of time for another card, and does not run it.
    """
    from enet_deploy.export.to_onnx import MAX_DISAGREEMENT
    from enet_deploy.runners.tensorrt.library import import_tensorrt

    size, rehearsal = run.settings.sizes[0], run.settings.rehearsal
    if rehearsal:
        try:
            import_tensorrt("trt-rtx")
        except BackendError as error:
            raise NotHere(f"needs a card; and {error}") from None
    flavour, ahead = ("trt-rtx", (AHEAD_OF_TIME,)) if rehearsal else (_flavour(run), ())
    with run.found.attempt("engines", precision=precision, size=_words(size)) as note:
        note(**_told(_build(run, flavour, precision, size, ahead, dynamic=False)))
        if rehearsal:
            run.found.skip("needs a card: compiled ahead of time, not run")
            return
        begun = time.perf_counter()
        with _open(run, "trt", precision, size, dynamic=False) as runner:
            frames = _frames(1, size)
            runner.infer(frames)
            note(runtime=runner.spec.runtime, first_s=time.perf_counter() - begun)
            note(**_timed(run, partial(runner.infer, frames), 1))
            against = _parity(run, runner)
            note(**against)
            least, equal = 1 - MAX_DISAGREEMENT[precision], against["agreement"]
            must(equal >= least, f"{equal:.4%} of the labels are PyTorch's, at least {least:.2%} have to be")


def _told(build: Build) -> dict[str, object]:
    """What is known of an engine before it has run."""
    shares = build.card.precision_shares or {}
    return {
        "engine": f"{build.card.flavour} {build.card.version} for {', '.join(build.card.compute_capabilities)}",
        "build_s": build.seconds,
        "mb": build.bytes / 1e6,
        "layers": ", ".join(f"{share:.0%} {name}" for name, share in shares.items()) or "not told",
    }


def _pairs(run: Run, size: Size) -> Iterator[tuple[UInt8Array, UInt8Array | None]]:
    """(image, truth) of the data set, or (scene, None): what is drawn is no measure of accuracy."""
    if run.settings.data is None:
        yield from ((street_scene(seed, size)[0], None) for seed in range(IMAGES))
        return
    data = open_data(run.settings.data, run.settings.split)
    yield from (data[index] for index in spread(range(len(data)), IMAGES))


def _parity(run: Run, runner: Runner) -> dict[str, Any]:
    """Labels against PyTorch's on the CPU, and both against the truth where there is one."""
    from ..measure.parity import compare

    spec = runner.spec
    if run.settings.data is not None:
        data = open_data(run.settings.data, run.settings.split)
        require_same_classes(spec.classes, data.classes, run.settings.data, "the weights know")
    with open_runner(BUNDLED_WEIGHTS, "torch", size=spec.size) as reference:
        own, (parity,), _ = compare(reference, [runner], _pairs(run, spec.size))
    against, truth, of_pytorch = parity.figures(), parity.accuracy(), own.accuracy()
    assert against is not None and against.flips is not None  # there is a reference
    found = {"agreement": against.agreement, "images": len(against.frames), "miou_as_pytorch": against.miou}
    found |= {"boundary_flips": against.flips.boundary, "interior_flips": against.flips.interior}
    if truth is not None and of_pytorch is not None:
        found |= {"miou": truth.miou, "miou_change": 100 * (truth.miou - of_pytorch.miou)}
    return found


# --- (d) speed of runners -----------------------------------------------------------------------------------------


def speed(run: Run, backend: str) -> None:
    """Latency at batch 1 as a robot has it, then what batches bring, at each frame size."""
    _require(run, backend)
    precisions = ("fp32",) if backend == "torch" else ("fp16",) if backend == "trt" else ("fp16", "fp32")
    ways: tuple[dict[str, bool], ...] = ({"cuda_graphs": True}, {"cuda_graphs": False}) if backend == "trt" else ({},)
    for size in run.settings.sizes:
        for precision, options in itertools.product(precisions, ways):
            _latency(run, backend, precision, size, **options)
        _throughput(run, backend, precisions[0], size, zero_copy=backend == "trt")
    _smi(run, f"after {backend}")


def throughput(run: Run, precision: str) -> None:
    """What batches bring with TensorRT in another precision; what copies cost is known from the first."""
    _require(run, "trt")
    for size in run.settings.sizes:
        _throughput(run, "trt", precision, size, zero_copy=False)


def _latency(run: Run, backend: str, precision: str, size: Size, **options: Any) -> None:
    shown = {"backend": backend, "precision": precision, "size": _words(size), "batch": 1}
    if options:
        shown["graphs"] = "yes" if options["cuda_graphs"] else "no"
    frames = _frames(1, size)
    opener = partial(_open, run, backend, precision, size, dynamic=False, **options)
    with run.found.attempt("speed", **shown, memory="host") as note, opener() as runner:
        note(**_timed(run, lambda: runner.infer(frames), 1))
        note(stream_fps=_stream(run, runner, frames))
        if backend == "trt":
            with run.found.attempt("speed", **shown, memory="zero copy") as note_device:
                inside, out = on_device(frames)
                note_device(**_timed(run, lambda: runner.infer(inside, out=out), 1))


def _stream(run: Run, runner: Runner, frames: UInt8Array) -> float:
    """Frames per second with the next batch in flight."""
    count = _calls(run, lambda: runner.infer(frames))
    begun = time.perf_counter()
    for _ in runner.stream(frames for _ in range(count)):
        pass
    return count * len(frames) / (time.perf_counter() - begun)


def _throughput(run: Run, backend: str, precision: str, size: Size, *, zero_copy: bool) -> None:
    shown = {"backend": backend, "precision": precision, "size": _words(size)}
    opener = partial(_open, run, backend, precision, size)
    with run.found.attempt("batches", **shown, batch=1, memory="host") as note, opener() as runner:
        for batch in run.settings.batches:
            frames = _frames(batch, size)
            if batch == 1:
                note(**_timed(run, partial(runner.infer, frames), 1))
                continue
            with run.found.attempt("batches", **shown, batch=batch, memory="host") as note_batch:
                note_batch(**_timed(run, partial(runner.infer, frames), batch))
            if zero_copy:
                with run.found.attempt("batches", **shown, batch=batch, memory="zero copy") as note_batch:
                    inside, out = on_device(frames)
                    note_batch(**_timed(run, partial(runner.infer, inside, out=out), batch))


# --- (e) PyTorch --------------------------------------------------------------------------------------------------


FORMS = (("as trained", "float32"), ("deployed", "float32"), ("deployed", "float16"))


def pytorch(run: Run, forms: Sequence[tuple[str, str]], ways: Sequence[str]) -> None:
    """The network as PyTorch runs it, frames and labels on the device."""
    _require(run, "torch")
    size, expected = run.settings.sizes[0], _reference(run)
    for batch, (form, dtype), how in itertools.product((1, run.settings.batches[-1]), forms, ways):
        shown = {"form": form, "dtype": dtype, "how": how, "batch": batch, "size": _words(size)}
        with run.found.attempt("pytorch", **shown) as note:
            _time_network(run, form == "deployed", dtype == "float16", how, _frames(batch, size), expected, note)


def _time_network(
    run: Run, deployed: bool, half: bool, how: str, frames: UInt8Array, expected: UInt8Array, note: Note
) -> None:
    import torch

    from enet_deploy.export.deploy import to_deploy
    from enet_deploy.model import Segmenter
    from enet_deploy.weights import load_weights

    if how == "compiled":
        _require_compile(run)
    net, metadata = load_weights(BUNDLED_WEIGHTS)
    if deployed:
        module: torch.nn.Module = to_deploy(net, metadata, half=half)
    else:
        module = Segmenter(net, metadata.mean, metadata.std).eval()
    module = module.to(run.settings.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    wait, inside = _wait(run), torch.from_numpy(frames).to(run.settings.device)
    begun = time.perf_counter()
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        call: Callable[[], Any] = partial(module, inside)
        if how == "compiled":
            call = partial(torch.compile(module, mode="reduce-overhead", dynamic=False), inside)
        labels = torch.empty(frames.shape[:3], dtype=torch.uint8, device=inside.device)

        def keep(call: Callable[[], Any] = call) -> None:
            labels.copy_(call())

        once = _captured(run, keep) if how == "CUDA graph" else keep
        once()
        wait()
        share = float((labels[: len(expected)].cpu().numpy() == expected[: len(labels)]).mean())
        note(first_s=time.perf_counter() - begun, agreement=share)

        def whole() -> None:
            once()
            wait()

        note(**_timed(run, whole, len(frames)))


def _require_compile(run: Run) -> None:
    """Raise NotHere unless torch.compile works on the device: it needs Triton, which needs a C compiler."""
    if run.settings.rehearsal:
        raise NotHere("needs a card: a CPU compiles for minutes")
    import torch

    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=run.settings.device))
    except Exception as error:  # noqa: BLE001  of any of its parts
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise NotHere(f"torch.compile does not work here: {why}") from None


# --- (f) training -------------------------------------------------------------------------------------------------


def _training_data(run: Run) -> str:
    """The data set, or a folder of drawn scenes with train/ and val/."""
    if run.settings.data is not None:
        return run.settings.data
    root, count = run.work / "scenes", run.settings.train_images
    if not (root / "val").exists():
        write_scenes(root, "train", range(count), run.settings.sizes[0])
        write_scenes(root, "val", range(count, count + max(2, count // 8)), run.settings.sizes[0])
    return str(root)


# What is trained by, in which type, and how its steps reach the device
TRAINED = (
    ("enet-train", "bfloat16", "CUDA graph"),
    ("enet-train", "float32", "CUDA graph"),
    ("enet-train", "bfloat16", "eager"),
    ("enet-train", "float32", "eager"),
    ("the usual loop", "float32", "eager"),
    ("enet-train", "bfloat16", "compiled"),
)


def train_speed(run: Run, rows: Sequence[tuple[str, str, str]]) -> None:
    """Images per second of training steps."""
    _require(run, "torch")
    import torch

    torch.backends.cudnn.benchmark = True  # as in enet-train
    size, batch = run.settings.sizes[0], run.settings.train_batch
    data = open_data(_training_data(run), "train")
    # no more than are needed: each trainer reads them all
    data = dataclasses.replace(data, pairs=tuple(spread(data.pairs, run.settings.train_images)))
    for what, dtype, how in rows:
        with run.found.attempt("training", what=what, dtype=dtype, how=how, batch=batch, size=_words(size)) as note:
            rate = _steps_per_second(run, data, what, dtype, how)
            note(step_ms=1e3 / rate, images_s=batch * rate)
        gc.collect()  # a trainer refers to itself; its graph would keep memory that the next one needs


def _steps_per_second(run: Run, data: DataSet, what: str, dtype: str, how: str) -> float:
    from enet_deploy.training.recipe import Recipe

    from ..measure.training import measure, this_trainer, usual_loop

    if how == "compiled":
        _require_compile(run)
    elif how == "CUDA graph" and run.settings.rehearsal:
        raise NotHere("needs a card")
    size, batch, device = run.settings.sizes[0], run.settings.train_batch, run.settings.device
    # every loss from the start, and no warm-up, which is in float32
    recipe = Recipe(size=size, crop=size, batch=batch, epochs=10**6, warmup=0, lovasz_from=0.0, amp=dtype == "bfloat16")
    if what == "enet-train":
        out, compiled, captured = run.work / "speed", how == "compiled", how == "CUDA graph"
        loop = this_trainer(data, recipe, device, out, compiled=compiled, captured=captured)
    else:
        loop = usual_loop(data, recipe, device)
    (rate,) = measure({what: loop}, 2 * run.settings.seconds, 2, _wait(run)).values()
    return rate


def train_minute(run: Run) -> None:
    """A minute of enet-train, as people call it."""
    _require(run, "torch")
    out, size = run.work / "minute", _words(run.settings.sizes[0])
    options = ["--size", size, "--device", run.settings.device, "--batch", str(run.settings.train_batch), "--amp"]
    options += ["--epochs", "1"] if run.settings.rehearsal else TRAIN_FOR
    command = python_main("enet_deploy.commands.train", _training_data(run), "--out", str(out), *options)
    shown = {"what": "enet-train, all of it", "dtype": "bfloat16", "batch": run.settings.train_batch, "size": size}
    with run.found.attempt("training", **shown) as note:
        print("enet-train DATA --out RUN", *options, flush=True)
        begun = time.perf_counter()
        done = subprocess.run(command, stdout=sys.stdout, stderr=subprocess.STDOUT, cwd=run.work)
        note(seconds=time.perf_counter() - begun)
        must(done.returncode == 0, f"exit code {done.returncode}; the log says why")
        with (out / "log.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        note(epochs=len(rows), first_loss=float(rows[0]["loss"]), last_loss=float(rows[-1]["loss"]))
        scores = [float(row["val_miou"]) for row in rows if row.get("val_miou")]
        note(miou=scores[-1] if scores else None)


# --- the steps ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Attributes:
    title: for people.
    limit: seconds that it may take.
    """

    title: str
    limit: float
    run: Callable[[Run], None]


# In order of value: time may be over before the last one
STEPS: dict[str, Step] = {
    "facts": Step("The machine", 45, facts),
    **{f"contract-{name}": Step(f"The contract: {name}", 120, partial(contract, backend=name))
       for name in ("torch", "ort", "trt")},
    "estimate": Step("What to expect, from first principles", 120, estimate),  # two exports, by the CPU
    **{f"engine-{name}": Step(f"An engine in {name}", 120, partial(engine, precision=name)) for name in PRECISIONS},
    "speed-trt": Step("Speed: trt", 150, partial(speed, backend="trt")),  # three more engines are built for it
    **{f"speed-{name}": Step(f"Speed: {name}", 90, partial(speed, backend=name)) for name in ("torch", "ort")},
    "pytorch": Step("PyTorch itself", 90, partial(pytorch, forms=FORMS, ways=("eager", "CUDA graph"))),
    "train-speed": Step("Training speed", 90, partial(train_speed, rows=TRAINED[:-1])),
    "train-minute": Step("A minute of training", 110, train_minute),
    **{f"throughput-{name}": Step(f"Throughput: trt in {name}", 90, partial(throughput, precision=name))
       for name in ("int8", "fp16-int8", "fp32")},
    # a minute for each network: batches of 1 and 64, and forward and backward
    "pytorch-compiled": Step("PyTorch, compiled", 150, partial(pytorch, forms=FORMS[-1:], ways=("compiled",))),
    "train-compiled": Step("Training speed, compiled", 150, partial(train_speed, rows=TRAINED[-1:])),
}  # fmt: skip


def _run(args: argparse.Namespace) -> None:
    settings = Settings.read(args.work)
    found = Findings(args.findings, args.step, settings.rehearsal)
    try:
        STEPS[args.step].run(Run(settings, args.work, found))
    except NotHere as reason:
        found.skip(str(reason))
    if found.failures:
        raise RequirementError(f"{console.counted(len(found.failures), 'failure')}: {'; '.join(found.failures)}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser("steps", description="One step of a GPU's report; see enet_deploy.benchmarks.gpu.")
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("work", type=Path, metavar="WORK", help="folder with settings.json, for graphs and engines")
    parser.add_argument("findings", type=Path, metavar="FINDINGS.json", help="file to write")
    return cli.run(parser, _run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
