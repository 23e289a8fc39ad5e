"""`python -m enet_deploy.benchmarks.studies.unpool_forms`: ways to write max-unpooling, timed in the whole network.

One run with --rounds 5 at 360x480, fp32, batch 1, on 2 idle cores of a Xeon (AVX-512), with torch 2.13.0,
onnxruntime 1.32.0 and openvino 2026.4.1. Differences of a tenth are noise.

    | form | wrong on ties | ONNX Runtime | OpenVINO |
    |---|---|---|---|
    | equality mask | 6.0% | 35.5 ms, x1.00 | 18.7 ms, x1.00 |
    | 4 slices, chain, pixel shuffle | 0.0% | 49.4 ms, x1.39 | 22.1 ms, x1.18 |
    | winner code, two wheres | 0.0% | 50.9 ms, x1.43 | 22.0 ms, x1.18 |
    | winner code, where to unpool | 0.0% | 44.1 ms, x1.24 | 18.9 ms, x1.01 |
    | winner code, multiplied (kept) | 0.0% | 39.0 ms, x1.10 | 18.7 ms, x1.00 |
    | winner code from slices | 0.0% | 45.0 ms, x1.27 | 18.9 ms, x1.01 |
    | 6-D broadcast | 0.0% | 91.5 ms, x2.58 | 37.4 ms, x2.00 |
    | indices, scatter (no TensorRT) | 0.0% | 49.2 ms, x1.39 | 334.7 ms, x17.88 |
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from enet_deploy.artifacts import BUNDLED_WEIGHTS
from enet_deploy.commands import cli
from enet_deploy.data.scenes import street_scene
from enet_deploy.export.deploy import to_deploy
from enet_deploy.export.to_onnx import quiet
from enet_deploy.export.unpool import MaxPool2x2, MaxUnpool2x2
from enet_deploy.export.unpool import _up as up
from enet_deploy.markdown import markdown_table
from enet_deploy.weights import load_weights

from ..measure.timing import times

Call = Callable[[], object]
Graph = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]  # its one input -> its first output
# The two halves of a form: x -> (pooled, winners) and (y, winners) -> unpooled
Form = tuple[Callable[..., tuple[Tensor, Any]], Callable[..., Tensor]]

POOL, UNPOOL = MaxPool2x2(), MaxUnpool2x2()
rank = POOL.rank

CALLS, DROPPED = 9, 3  # per block; caches and spinning threads of the form before disturb the first ones


def places(x: Tensor) -> tuple[Tensor, ...]:
    """The first, second, third and fourth element of every window, each a quarter of x."""
    return x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]


def equality_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    pooled = F.max_pool2d(x, 2)
    return pooled, x == up(pooled)


def equality_unpool(y: Tensor, mask: Tensor) -> Tensor:
    return up(y) * mask.to(y.dtype)


def chain_pool(x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    pooled = F.max_pool2d(x, 2)
    a, b, c, _ = (place == pooled for place in places(x))
    return pooled, (a, b & ~a, c & ~(a | b), ~(a | b | c))


def chain_unpool(y: Tensor, masks: tuple[Tensor, ...]) -> Tensor:
    parts = torch.stack([torch.where(mask, y, 0.0) for mask in masks], dim=2)  # (N, C, 4, H, W)
    return F.pixel_shuffle(parts.flatten(1, 2), 2)


def where_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    pooled = F.max_pool2d(x, 2)
    return pooled, F.max_pool2d(torch.where(x == up(pooled), rank(x), 0.0), 2)


def where_unpool(y: Tensor, winners: Tensor) -> Tensor:
    places = up(winners)
    return torch.where(places == rank(places), up(y), 0.0)


def slice_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    pooled = F.max_pool2d(x, 2)
    winners = torch.ones_like(pooled)
    for number, place in zip((2.0, 3.0, 4.0), reversed(places(x)[:3]), strict=True):
        winners = torch.where(place == pooled, number, winners)
    return pooled, winners


def windows(x: Tensor, side: int) -> Tensor:
    """(N, C, H, W) -> (N, C, H/side, side, W/side, side)"""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // side, side, w // side, side)


def broadcast_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    pooled = F.max_pool2d(x, 2)
    ranks = windows(rank(x[..., :2, :2])[None, None], 2)
    return pooled, torch.where(windows(x, 2) == windows(pooled, 1), ranks, 0.0).amax((3, 5))


def broadcast_unpool(y: Tensor, winners: Tensor) -> Tensor:
    ranks = windows(torch.tensor([[4.0, 3.0], [2.0, 1.0]])[None, None], 2)
    spread = torch.where(windows(winners, 1) == ranks, windows(y, 1), 0.0)
    return spread.flatten(4, 5).flatten(2, 3)


EQUALITY, CHAIN, KEPT = "equality mask", "4 slices, chain, pixel shuffle", "winner code, multiplied (kept)"
FORMS: dict[str, Form] = {
    EQUALITY: (equality_pool, equality_unpool),
    CHAIN: (chain_pool, chain_unpool),
    "winner code, two wheres": (where_pool, where_unpool),
    "winner code, where to unpool": (POOL, where_unpool),
    KEPT: (POOL, UNPOOL),
    "winner code from slices": (slice_pool, UNPOOL),
    "6-D broadcast": (broadcast_pool, broadcast_unpool),
    "indices, scatter (no TensorRT)": (nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)),
}


def wrong_on_ties(form: Form) -> float:
    """Share of elements that differ from PyTorch's on data with many ties, as flat or quantised images have them."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn((2, 16, 64, 64), generator=generator) * 4).round().clamp(min=-1) / 4
    y = torch.randn((2, 16, 32, 32), generator=generator)
    expected = F.max_unpool2d(y, F.max_pool2d(x, 2, return_indices=True)[1], [2, 2])
    pool, unpool = form
    return float((unpool(y, pool(x)[1]) != expected).float().mean())


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> object:
        return self.function(*inputs)


def in_form(net: nn.Module, form: Form) -> nn.Module:
    """A copy of an ENet with its two poolings and unpoolings in one form."""
    net = copy.deepcopy(net)
    pool, unpool = form
    for name in ("bottleneck1_0", "bottleneck2_0"):
        net.set_submodule(f"{name}.pool", Apply(pool))
    for name in ("bottleneck4_0", "bottleneck5_0"):
        net.set_submodule(f"{name}.unpool", Apply(unpool))
    return net


def export(module: nn.Module, example: Tensor, path: str, names: tuple[str, str] | None = None) -> str:
    """Export a module of one input without any rewrite; returns the path. `names`: of the input and the output."""
    given: dict[str, Any] = {} if names is None else {"input_names": names[:1], "output_names": names[1:]}
    with quiet():
        program = torch.onnx.export(module, (example,), dynamo=True, opset_version=18, verbose=False, **given)
    assert program is not None
    program.save(path, external_data=False)
    return path


def onnxruntime_call(path: str) -> Graph:
    import onnxruntime as ort

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    return lambda x: session.run(None, {name: x})[0]


def openvino_call(path: str) -> Graph:
    from enet_deploy.runners.openvino_runner import import_openvino

    ov = import_openvino()

    # f32: some CPUs would otherwise be given bfloat16
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(path, "CPU", config).create_infer_request()
    return lambda x: request.infer([x])[0]


def measure(calls: Mapping[str, Call], rounds: int) -> dict[str, list[list[float]]]:
    """Name -> milliseconds of its calls, in blocks that take turns."""
    blocks: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            blocks[name].append(times(call, CALLS - DROPPED, DROPPED))
    return blocks


def _time_forms(args: argparse.Namespace) -> None:
    net, metadata = load_weights(args.weights)
    segmenter = to_deploy(net, metadata)
    frames = street_scene(0, args.size)[0][None]
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, form in FORMS.items():
            segmenter.net = in_form(segmenter.net, form)
            files[name] = export(segmenter, torch.from_numpy(frames), f"{folder}/{name}.onnx")
        blocks = (
            measure({name: partial(load(path), frames) for name, path in files.items()}, args.rounds)
            for load in (onnxruntime_call, openvino_call)
        )
        medians = [{name: median(chain.from_iterable(own)) for name, own in backend.items()} for backend in blocks]
    rows = [
        (name, f"{wrong_on_ties(form):.1%}", *(f"{t[name]:.1f} ms, x{t[name] / t[EQUALITY]:.2f}" for t in medians))
        for name, form in FORMS.items()
    ]
    print(markdown_table(["form", "wrong on ties", "ONNX Runtime", "OpenVINO"], rows))


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        "python -m enet_deploy.benchmarks.studies.unpool_forms",
        description="Time forms of max-unpooling in the whole network, in ONNX Runtime and OpenVINO on the CPU.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--weights", type=Path, default=BUNDLED_WEIGHTS, help="a .safetensors file of enet-train")
    parser.add_argument("--size", type=cli.size, default="360x480", metavar="HxW", help="frame size")
    parser.add_argument("--rounds", type=cli.positive, default=5, help=f"blocks of {CALLS} calls per form")
    return cli.run(parser, _time_forms, argv)


if __name__ == "__main__":
    raise SystemExit(main())
