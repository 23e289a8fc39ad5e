"""Steps about inference: the runner contract, engines, the speed of runners, and the network in PyTorch itself."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from enet_deploy.artifacts import BUNDLED_WEIGHTS
from enet_deploy.data import open_data, require_same_classes, spread
from enet_deploy.data.scenes import street_scene
from enet_deploy.errors import BackendError
from enet_deploy.images import UInt8Array
from enet_deploy.runners import Runner, open_runner

from .contract import CHECKS, ContractCase, NotHere, must, on_device
from .findings import Note, Size
from .machine import note_smi
from .session import FRAMES, NEEDS_CARD, Session, in_words, scenes

if TYPE_CHECKING:
    import torch

    from enet_deploy.runners.tensorrt.builder import Build

IMAGES = 32  # an engine's labels are compared with PyTorch's on these
AHEAD_OF_TIME = "8.6"  # a rehearsal compiles for this capability: an RTX 3060

# Backend -> precisions whose latency is measured; the first of them also in batches
PRECISIONS = {"torch": ("fp32",), "trt": ("fp16",), "ort": ("fp16", "fp32")}
FORMS = (("as trained", "float32"), ("deployed", "float32"), ("deployed", "float16"))


def contract(session: Session, backend: str) -> None:
    """Check what every backend promises, in fp32 on the device."""
    session.require(backend)
    size = session.settings.sizes[0]
    opener = partial(session.open, backend, "fp32", size)
    frames, expected = scenes(FRAMES, size), session.reference()
    with session.findings.attempt("contract", backend=backend, check="opens") as note, opener() as runner:
        note(told=runner.spec.runtime or f"{runner.spec.backend} on {runner.spec.device}")
        case = ContractCase(opener, runner, frames, expected)
        for name, check in CHECKS.items():
            with session.findings.attempt("contract", backend=backend, check=name) as note_check:
                note_check(told=check(case))


def engine(session: Session, precision: str) -> None:
    """Build an engine of one precision for this card, inspect it, run it, and compare its labels with PyTorch's.

    A rehearsal compiles it ahead of time for another card, and does not run it.
    """
    from enet_deploy.runners.tensorrt.library import import_tensorrt

    size, rehearsal = session.settings.sizes[0], session.settings.rehearsal
    if rehearsal:
        try:
            import_tensorrt("trt-rtx")
        except BackendError as error:
            raise NotHere(f"{NEEDS_CARD}; and {error}") from None
    flavour, ahead = ("trt-rtx", (AHEAD_OF_TIME,)) if rehearsal else (session.flavour(), ())
    with session.findings.attempt("engines", precision=precision, size=in_words(size)) as note:
        note(**_described(session.build(flavour, precision, size, ahead)))
        if rehearsal:
            session.findings.skip(f"{NEEDS_CARD}: compiled ahead of time, not run")
        else:
            _run_engine(session, precision, size, note)


def _run_engine(session: Session, precision: str, size: Size, note: Note) -> None:
    from enet_deploy.export.to_onnx import MAX_DISAGREEMENT

    begun = time.perf_counter()
    with session.open("trt", precision, size, dynamic=False) as runner:
        frames = scenes(1, size)
        runner.infer(frames)
        note(runtime=runner.spec.runtime, first_s=time.perf_counter() - begun)
        note(**session.timed(partial(runner.infer, frames), 1))
        against = _parity(session, runner)
    note(**against)
    least, equal = 1 - MAX_DISAGREEMENT[precision], against["agreement"]
    must(equal >= least, f"{equal:.4%} of the labels are PyTorch's, expected at least {least:.2%}")


def _described(build: Build) -> dict[str, object]:
    """What is known of an engine before it runs."""
    shares = build.card.precision_shares or {}
    return {
        "engine": f"{build.card.flavour} {build.card.version} for {', '.join(build.card.compute_capabilities)}",
        "build_s": build.seconds,
        "mb": build.bytes / 1e6,
        "layers": ", ".join(f"{share:.0%} {name}" for name, share in shares.items()) or "not told",
    }


def _pairs(session: Session, runner: Runner) -> Iterator[tuple[UInt8Array, UInt8Array | None]]:
    """(image, truth) of the data set. Without one (scene, None): drawn scenes do not measure accuracy."""
    settings = session.settings
    if settings.data is None:
        return ((street_scene(seed, runner.spec.size)[0], None) for seed in range(IMAGES))
    data = open_data(settings.data, settings.split)
    require_same_classes(runner.spec.classes, data.classes, settings.data, "the weights know")
    return (data[index] for index in spread(range(len(data)), IMAGES))


def _parity(session: Session, runner: Runner) -> dict[str, Any]:
    """Compare labels with PyTorch's on the CPU, and both with the truth if there is one."""
    from ..measure.parity import compare

    with open_runner(BUNDLED_WEIGHTS, "torch", size=runner.spec.size) as reference:
        own, (parity,), _ = compare(reference, [runner], _pairs(session, runner))
    against, truth, of_pytorch = parity.figures(), parity.accuracy(), own.accuracy()
    assert against is not None and against.flips is not None  # there is a reference
    found = {"agreement": against.agreement, "images": len(against.frames), "miou_as_pytorch": against.miou}
    found |= {"boundary_flips": against.flips.boundary, "interior_flips": against.flips.interior}
    if truth is not None and of_pytorch is not None:
        found |= {"miou": truth.miou, "miou_change": 100 * (truth.miou - of_pytorch.miou)}
    return found


def speed(session: Session, backend: str) -> None:
    """Measure the latency of one frame, as a robot has it, and then what batches gain, at each frame size."""
    session.require(backend)
    precisions = PRECISIONS[backend]
    ways: list[dict[str, bool]] = [{"cuda_graphs": True}, {"cuda_graphs": False}] if backend == "trt" else [{}]
    for size in session.settings.sizes:
        for precision, options in itertools.product(precisions, ways):
            _latency(session, backend, precision, size, **options)
        _batches(session, backend, precisions[0], size, zero_copy=backend == "trt")
    note_smi(session, f"after {backend}")


def throughput(session: Session, precision: str) -> None:
    """Measure how the speed of TensorRT grows with the batch in this precision, with arrays of the host."""
    session.require("trt")
    for size in session.settings.sizes:
        _batches(session, "trt", precision, size, zero_copy=False)


def _latency(session: Session, backend: str, precision: str, size: Size, **options: Any) -> None:
    shown = {"backend": backend, "precision": precision, "size": in_words(size), "batch": 1}
    if options:
        shown["graphs"] = "yes" if options["cuda_graphs"] else "no"
    frames = scenes(1, size)
    opener = partial(session.open, backend, precision, size, dynamic=False, **options)
    with session.findings.attempt("speed", **shown, memory="host") as note, opener() as runner:
        note(**session.timed(partial(runner.infer, frames), 1))
        note(stream_fps=_stream(session, runner, frames))
        if backend == "trt":
            _zero_copy(session, runner, frames, "speed", shown)


def _zero_copy(session: Session, runner: Runner, frames: UInt8Array, table: str, shown: dict[str, Any]) -> None:
    with session.findings.attempt(table, **shown, memory="zero copy") as note:
        inside, out = on_device(frames)
        note(**session.timed(partial(runner.infer, inside, out=out), len(frames)))


def _stream(session: Session, runner: Runner, frames: UInt8Array) -> float:
    """Frames per second with the next batch in flight."""
    count = session.calls(partial(runner.infer, frames))
    begun = time.perf_counter()
    for _ in runner.stream(itertools.repeat(frames, count)):
        pass
    return count * len(frames) / (time.perf_counter() - begun)


def _batches(session: Session, backend: str, precision: str, size: Size, *, zero_copy: bool) -> None:
    shown: dict[str, Any] = {"backend": backend, "precision": precision, "size": in_words(size)}
    first, *more = session.settings.batches
    opener = partial(session.open, backend, precision, size)
    with session.findings.attempt("batches", **shown, batch=first, memory="host") as note, opener() as runner:
        note(**session.timed(partial(runner.infer, scenes(first, size)), first))
        for batch in more:
            frames = scenes(batch, size)
            with session.findings.attempt("batches", **shown, batch=batch, memory="host") as note_batch:
                note_batch(**session.timed(partial(runner.infer, frames), batch))
            if zero_copy:
                _zero_copy(session, runner, frames, "batches", {**shown, "batch": batch})


def pytorch(session: Session, forms: Sequence[tuple[str, str]], ways: Sequence[str]) -> None:
    """Time the network in PyTorch, with frames and labels on the device."""
    session.require("torch")
    size, expected = session.settings.sizes[0], session.reference()
    for batch, (form, dtype), how in itertools.product((1, session.settings.batches[-1]), forms, ways):
        shown = {"form": form, "dtype": dtype, "how": how, "batch": batch, "size": in_words(size)}
        with session.findings.attempt("pytorch", **shown) as note:
            if how == "compiled":
                session.require_compile()
            network = _network(form, dtype, session.settings.device)
            _time_network(session, network, how, scenes(batch, size), expected, note)


def _network(form: str, dtype: str, device: str) -> torch.nn.Module:
    import torch

    from enet_deploy.export.deploy import to_deploy
    from enet_deploy.model import Segmenter
    from enet_deploy.weights import load_weights

    net, metadata = load_weights(BUNDLED_WEIGHTS)
    if form == "deployed":
        module: torch.nn.Module = to_deploy(net, metadata, half=dtype == "float16")
    else:
        module = Segmenter(net, metadata.mean, metadata.std).eval()
    return module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _time_network(
    session: Session, network: torch.nn.Module, how: str, frames: UInt8Array, expected: UInt8Array, note: Note
) -> None:
    import torch

    inside = torch.from_numpy(frames).to(session.settings.device)
    labels = torch.empty(frames.shape[:3], dtype=torch.uint8, device=inside.device)
    begun = time.perf_counter()
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        call: Callable[..., Any] = network
        if how == "compiled":
            call = torch.compile(network, mode="reduce-overhead", dynamic=False)
        once: Callable[[], object] = lambda: labels.copy_(call(inside))  # noqa: E731
        if how == "CUDA graph":
            once = session.captured(once)

        def whole() -> None:
            once()
            session.wait()

        whole()
        share = float((labels[: len(expected)].cpu().numpy() == expected[: len(labels)]).mean())
        note(first_s=time.perf_counter() - begun, agreement=share)
        note(**session.timed(whole, len(frames)))
