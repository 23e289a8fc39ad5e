"""What the deploy form gains on this CPU: `python -m enet_deploy.benchmarks.speed_cli`, one table of ratios.

Everything takes uint8 frames and gives uint8 labels. What ours is held against is what one has without this project:
the network as it was trained, called from PyTorch or exported as it is, with normalisation and argmax in numpy.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from enet_deploy import cli
from enet_deploy.artifacts import BUNDLED_WEIGHTS, Metadata, require_writable, sha256, write_json
from enet_deploy.calibration.qdq import quantize
from enet_deploy.calibration.record import record_for
from enet_deploy.data import UInt8Array
from enet_deploy.export.deploy import to_deploy
from enet_deploy.export.to_onnx import to_onnx
from enet_deploy.export.unpool_forms import (
    CHAIN,
    EQUALITY,
    FORMS,
    KEPT,
    Call,
    Graph,
    export,
    in_form,
    measure,
    onnxruntime_call,
    openvino_call,
)
from enet_deploy.model import load_weights
from enet_deploy.runners import open_runner
from enet_deploy.scenes import street_scene

from .environment import environment
from .timing import UNSTABLE, spread

SMALL, LARGE = (360, 480), (720, 960)

TORCH = "PyTorch as trained, numpy around it"
RUNNER = "PyTorch in this project's runner"
SCATTER = "plain export (scatter) in ONNX Runtime, numpy around it"
SLICES = "4-slice unpooling in OpenVINO, numpy around it"
EXACT, MASK = "exact unpooling in OpenVINO", "equality mask in OpenVINO"
AT = "fp32 openvino at {}x{}"


@dataclass(frozen=True)
class Row:
    """A ratio of two times: what `slower` takes over what `faster` takes, and what it should be.

    Attributes:
        slower, faster: names of calls, several where the fastest of them counts.
        least, most: the ratio's bounds.
    """

    slower: tuple[str, ...]
    faster: tuple[str, ...]
    least: float = 0.0
    most: float = float("inf")


BACKENDS = ("openvino", "ort")
FP32, INT8 = (tuple(f"{precision} {backend}" for backend in BACKENDS) for precision in ("fp32", "int8"))
ROWS = (
    Row((TORCH,), FP32, least=5.0),
    Row((RUNNER,), FP32),
    Row((SCATTER,), FP32, least=3.3),
    Row((SLICES,), ("fp32 openvino",), least=1.9),
    Row(("fp32 openvino",), ("int8 openvino",), least=1.7),
    Row((TORCH,), INT8, least=8.5),
    Row(("fp32 ort",), ("int8 ort",), least=1.3),
    Row((EXACT,), (MASK,), most=1.10),
    Row((AT.format(*LARGE),), (AT.format(*SMALL),), most=4.4),
)


def with_numpy(graph: Graph, metadata: Metadata, frames: UInt8Array) -> Call:
    """A call of what takes normalised images and gives logits."""
    mean, std = (np.array(values, np.float32) for values in (metadata.mean, metadata.std))

    def call() -> UInt8Array:
        images = np.ascontiguousarray(((frames - mean) / std).transpose(0, 3, 1, 2))
        labels: UInt8Array = graph(images).argmax(axis=1).astype(np.uint8)
        return labels

    return call


def in_pytorch(net: nn.Module) -> Graph:
    """Normalised images (N, 3, H, W) -> logits (N, C, H, W), eager and in the default layout."""

    def graph(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with torch.inference_mode():
            logits: npt.NDArray[Any] = net(torch.from_numpy(images)).numpy()
        return logits

    return graph


def plain_calls(weights: Path, frames: UInt8Array, folder: str) -> dict[str, Call]:
    """What one has without this project."""
    net, metadata = load_weights(weights)
    example = torch.zeros(1, 3, *frames.shape[1:3])
    graphs = {
        TORCH: in_pytorch(net),
        SCATTER: onnxruntime_call(export(net, example, f"{folder}/plain.onnx")),
        SLICES: openvino_call(export(in_form(net, FORMS[CHAIN]), example, f"{folder}/slices.onnx")),
    }
    return {name: with_numpy(graph, metadata, frames) for name, graph in graphs.items()}


def mask_calls(weights: Path, frames: UInt8Array, folder: str) -> dict[str, Call]:
    """The deploy form as it is, and with the mask that is wrong on ties."""
    segmenter = to_deploy(*load_weights(weights))
    calls: dict[str, Call] = {}
    for name, form in ((EXACT, FORMS[KEPT]), (MASK, FORMS[EQUALITY])):
        segmenter.net = in_form(segmenter.net, form)
        path = export(segmenter, torch.from_numpy(frames), f"{folder}/{name}.onnx")
        calls[name] = partial(openvino_call(path), frames)
    return calls


def our_calls(weights: Path, frames: UInt8Array, folder: str, opened: ExitStack) -> dict[str, Call]:
    """The exports, on the runners that a robot opens."""
    size = (frames.shape[1], frames.shape[2])
    record = record_for(sha256(weights), None)
    runner = opened.enter_context(open_runner(weights, "torch", size=size))
    calls: dict[str, Call] = {RUNNER: partial(runner.infer, frames)}
    for precision, change in (("fp32", None), ("int8", partial(quantize, record=record))):
        # any size may be timed, whatever int8 does to labels there; `enet-export` is what judges that
        path = to_onnx(
            weights, f"{folder}/enet-{precision}.onnx", size=size, quantize=change, max_disagreement=1.0
        ).path
        for backend in BACKENDS:
            runner = opened.enter_context(open_runner(path, backend))
            calls[f"{precision} {backend}"] = partial(runner.infer, frames)
    for other in (SMALL, LARGE):
        path = to_onnx(weights, f"{folder}/enet-{other[0]}.onnx", size=other).path
        runner = opened.enter_context(open_runner(path, "openvino"))
        calls[AT.format(*other)] = partial(runner.infer, street_scene(0, other)[0][None])
    return calls


def judge(row: Row, blocks: dict[str, list[float]]) -> dict[str, Any]:
    """The row's ratio: the median over the rounds, of which the machine was the same for both."""
    slower, faster = (min(names, key=lambda name: median(blocks[name])) for names in (row.slower, row.faster))
    ratios = [a / b for a, b in zip(blocks[slower], blocks[faster], strict=True)]
    ratio = median(ratios)
    bounds = [f">= {row.least:g}"] * (row.least > 0) + [f"<= {row.most:g}"] * (row.most < float("inf"))
    return {
        "slower": slower,
        "slower_ms": median(blocks[slower]),
        "faster": faster,
        "faster_ms": median(blocks[faster]),
        "ratio": ratio,
        "lowest": min(ratios),
        "highest": max(ratios),
        "wanted": " ".join(bounds),
        "reached": row.least <= ratio <= row.most if bounds else None,
    }


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """What `judge` found, as a table."""
    lines = ["| slower, ms | faster, ms | ratio (lowest to highest round) | wanted | |", "|---|---|---|---|---|"]
    for row in rows:
        slower, faster = (f"{row[name]}, {row[f'{name}_ms']:.1f}" for name in ("slower", "faster"))
        ratio = f"{row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})"
        verdict = {True: "reached", False: "not", None: ""}[row["reached"]]
        lines.append(f"| {slower} | {faster} | {ratio} | {row['wanted']} | {verdict} |")
    return "\n".join(lines)


def _compare(args: argparse.Namespace) -> None:
    cli.require_weights(args.weights)
    if args.json is not None:
        require_writable(args.json)
    machine = environment()
    frames = street_scene(0, args.size)[0][None]
    with ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory())
        calls = {
            **plain_calls(args.weights, frames, folder),
            **mask_calls(args.weights, frames, folder),
            **our_calls(args.weights, frames, folder, opened),
        }
        missing = {name for row in ROWS for name in (*row.slower, *row.faster)} - calls.keys()
        assert not missing, missing  # before minutes of measuring
        samples = measure(calls, args.rounds)
    blocks = {name: [median(block) for block in own] for name, own in samples.items()}
    rows = [judge(row, blocks) for row in ROWS]
    if args.json is not None:
        result = {"schema": 1, "environment": machine, "size": list(args.size), "rows": rows, "samples_ms": samples}
        write_json(args.json, result)
    print(as_markdown(rows))
    for name, own in samples.items():
        apart = spread(own)
        if apart > UNSTABLE:
            print(f"unstable: the blocks of {name} differ by {apart:.0%}; close other programs, or take more --rounds")


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        "python -m enet_deploy.benchmarks.speed_cli",
        description="What the deploy form gains on this CPU, uint8 frames in to uint8 labels out, in one run.",
    )
    parser.add_argument("--weights", type=Path, default=BUNDLED_WEIGHTS, help="with a calibration record (the bundled)")
    parser.add_argument("--size", type=cli.size, default="512x512", metavar="HxW", help="frame size (%(default)s)")
    parser.add_argument("--rounds", type=cli.positive, default=9, metavar="N", help="of blocks of calls (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and times there")
    return cli.run(parser, _compare, argv)


if __name__ == "__main__":
    raise SystemExit(main())
