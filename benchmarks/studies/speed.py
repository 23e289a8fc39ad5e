"""What the deploy form gains on this CPU: `python -m enet_deploy.benchmarks.studies.speed`, one table of ratios.

Every contender takes uint8 frames and gives uint8 labels, in its own process. The baselines do not use this project:
they are the network as it was trained, called from PyTorch or exported without changes, with normalisation and argmax
in numpy. A row's ratio is the median of its rounds' ratios, not the ratio of the medians shown.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from enet_deploy import console
from enet_deploy.artifacts import BUNDLED_WEIGHTS, Metadata, QdqLayout
from enet_deploy.commands import cli
from enet_deploy.data.scenes import street_scene
from enet_deploy.environment import environment
from enet_deploy.export.deploy import to_deploy
from enet_deploy.export.int8 import quantize
from enet_deploy.export.record import record_for
from enet_deploy.export.to_onnx import to_onnx
from enet_deploy.files import require_outputs, sha256, write_json
from enet_deploy.images import UInt8Array
from enet_deploy.markdown import markdown_table
from enet_deploy.runners import open_runner
from enet_deploy.weights import load_weights

from ..measure.processes import Processes
from ..measure.timing import times
from ..statistics import spread
from ..verdict import UNSTABLE
from .unpool_forms import CHAIN, EQUALITY, FORMS, KEPT, Graph, export, in_form, onnxruntime_call, openvino_call

Size = tuple[int, int]
Call = Callable[[], object]
Maker = Callable[[], Call]

SMALL, LARGE = (360, 480), (720, 960)

TORCH = "PyTorch as trained, numpy around it"
RUNNER = "PyTorch in this project's runner"
SCATTER = "plain export (scatter) in ONNX Runtime, numpy around it"
SLICES = "4-slice unpooling in OpenVINO, numpy around it"
EXACT, MASK = "exact unpooling in OpenVINO", "equality mask in OpenVINO"
AT = "{} openvino at {}x{}"
CAMERA = (720, 1280)
SEGMENT, STREAM = (f"int8 openvino, {way} of {CAMERA[0]}x{CAMERA[1]}" for way in ("segment()", "stream()"))


@dataclass(frozen=True)
class Row:
    """The time of `slower` divided by the time of `faster`, and the goal for this ratio.

    Attributes:
        slower, faster: names of calls; of several names, the fastest call counts.
        least, most: bounds of the ratio.
    """

    slower: tuple[str, ...]
    faster: tuple[str, ...]
    least: float = 0.0
    most: float = float("inf")


CALLS = 12  # in a block
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
    Row((AT.format("fp32", *LARGE),), (AT.format("fp32", *SMALL),), most=4.4),
    Row((SEGMENT,), (AT.format("int8", *SMALL),), most=1 / 0.85),  # resizing at both ends, 15 % of the whole
    Row((STREAM,), (AT.format("int8", *SMALL),), most=1 / 0.85),
)


def with_numpy(graph: Graph, metadata: Metadata, size: Size) -> Call:
    """A call of a graph that takes normalised images and gives logits."""
    frames = frames_of(size)
    mean, std = (np.array(values, np.float32) for values in (metadata.mean, metadata.std))

    def call() -> UInt8Array:
        images = np.ascontiguousarray(((frames - mean) / std).transpose(0, 3, 1, 2))
        labels: UInt8Array = graph(images).argmax(axis=1).astype(np.uint8)
        return labels

    return call


def frames_of(size: Size) -> UInt8Array:
    """The input of every call: one synthetic scene, (1, H, W, 3) uint8 BGR."""
    return street_scene(0, size)[0][None]


def plain_pytorch(weights: Path, size: Size) -> Call:
    """The network as it was trained: eager and in the default layout."""
    net, metadata = load_weights(weights)

    def graph(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with torch.inference_mode():
            logits: npt.NDArray[Any] = net(torch.from_numpy(images)).numpy()
        return logits

    return with_numpy(graph, metadata, size)


def plain_graph(load: Callable[[str], Graph], path: str, weights: Path, size: Size) -> Call:
    """An export of the network as it was trained."""
    return with_numpy(load(path), load_weights(weights)[1], size)


def in_openvino(path: str, size: Size) -> Call:
    """An export that takes frames."""
    return partial(openvino_call(path), frames_of(size))


def in_runner(path: Path, backend: str, size: Size) -> Call:
    """`Runner.infer`, which a robot calls."""
    options: dict[str, Any] = {"size": size} if backend == "torch" else {}
    return partial(open_runner(path, backend, **options).open().infer, frames_of(size))


def segmenting(path: Path) -> Call:
    """`Runner.segment`: a camera's frame in, labels of its size out."""
    return partial(open_runner(path, "openvino").open().segment, frames_of(CAMERA)[0])


def streaming(path: Path) -> Call:
    """The same through `Runner.stream`, one frame's labels per call, with the next frame in flight."""
    runner = open_runner(path, "openvino").open()
    batches = runner.stream(map(runner.preprocess, repeat(frames_of(CAMERA)[0])))
    return lambda: runner.postprocess(next(batches)[0], CAMERA)


def plain_makers(weights: Path, size: Size, folder: str) -> dict[str, Maker]:
    """The baselines: what is available without this project."""
    net, example = load_weights(weights)[0], torch.zeros(1, 3, *size)
    scatter = export(net, example, f"{folder}/plain.onnx")
    slices = export(in_form(net, FORMS[CHAIN]), example, f"{folder}/slices.onnx")
    return {
        TORCH: partial(plain_pytorch, weights, size),
        SCATTER: partial(plain_graph, onnxruntime_call, scatter, weights, size),
        SLICES: partial(plain_graph, openvino_call, slices, weights, size),
    }


def mask_makers(weights: Path, size: Size, folder: str) -> dict[str, Maker]:
    """The deploy form with its own unpooling, and with the equality mask, which is wrong on ties."""
    segmenter = to_deploy(*load_weights(weights))
    makers: dict[str, Maker] = {}
    for name, form in ((EXACT, FORMS[KEPT]), (MASK, FORMS[EQUALITY])):
        segmenter.net = in_form(segmenter.net, form)
        path = export(segmenter, torch.from_numpy(frames_of(size)), f"{folder}/{name}.onnx")
        makers[name] = partial(in_openvino, path, size)
    return makers


def our_makers(weights: Path, size: Size, folder: str) -> dict[str, Maker]:
    """This project's exports in its runners."""
    record = record_for(sha256(weights), None)

    def exported(name: str, size: Size, qdq_layout: QdqLayout | None = None) -> Path:
        change = None if qdq_layout is None else partial(quantize, record=record, qdq_layout=qdq_layout)
        path = f"{folder}/enet-{name}.onnx"
        # any size may be timed, whatever int8 does to the labels there; `enet-export` checks the labels
        to_onnx(weights, path, size=size, quantize=change, max_disagreement=None if qdq_layout is None else 1.0)
        return Path(path)

    float_graph = exported("fp32", size)
    makers: dict[str, Maker] = {
        RUNNER: partial(in_runner, weights, "torch", size),
        "fp32 openvino": partial(in_runner, float_graph, "openvino", size),
        "fp32 ort": partial(in_runner, float_graph, "ort", size),
        "int8 openvino": partial(in_runner, exported("int8", size, "all"), "openvino", size),
        "int8 ort": partial(in_runner, exported("int8-ort", size, "ort"), "ort", size),
    }
    for other in (SMALL, LARGE):
        graph = exported(f"fp32-{other[0]}", other)
        makers[AT.format("fp32", *other)] = partial(in_runner, graph, "openvino", other)
    graph = exported(f"int8-{SMALL[0]}", SMALL, "all")
    makers[AT.format("int8", *SMALL)] = partial(in_runner, graph, "openvino", SMALL)
    makers[SEGMENT], makers[STREAM] = partial(segmenting, graph), partial(streaming, graph)
    return makers


def evaluate_row(row: Row, blocks: dict[str, list[float]]) -> dict[str, Any]:
    """The row's ratio as JSON: the median over the rounds, because both ran on the same machine state in a round."""
    slower, faster = (min(names, key=lambda name: median(blocks[name])) for names in (row.slower, row.faster))
    ratios = [a / b for a, b in zip(blocks[slower], blocks[faster], strict=True)]
    ratio = median(ratios)
    bounds = [f">= {row.least:.3g}"] * (row.least > 0) + [f"<= {row.most:.3g}"] * (row.most < float("inf"))
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
    """The results of `evaluate_row` as a table."""
    headings = ["slower, ms", "faster, ms", "ratio (lowest to highest round)", "wanted", ""]
    return markdown_table(headings, map(_cells, rows))


def _cells(row: dict[str, Any]) -> list[str]:
    slower, faster = (f"{row[name]}, {row[f'{name}_ms']:.1f}" for name in ("slower", "faster"))
    ratio = f"{row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})"
    return [slower, faster, ratio, row["wanted"], {True: "reached", False: "not", None: ""}[row["reached"]]]


def _measure(args: argparse.Namespace) -> None:
    cli.require_weights(args.weights)
    require_outputs([args.json], [])
    machine = environment()
    with tempfile.TemporaryDirectory() as folder:
        makers = {
            name: maker
            for some in (plain_makers, mask_makers, our_makers)
            for name, maker in some(args.weights, args.size, folder).items()
        }
        missing = {name for row in ROWS for name in (*row.slower, *row.faster)} - makers.keys()
        assert not missing, missing  # before minutes of measuring
        samples: dict[str, list[list[float]]] = {name: [] for name in makers}
        with Processes() as processes:
            for name, maker in makers.items():
                processes.start(name, maker)
            for _ in console.progress(range(args.rounds), "rounds"):
                for name, own in samples.items():
                    own.append(processes.ask(name, times, CALLS))
    blocks = {name: [median(block) for block in own] for name, own in samples.items()}
    rows = [evaluate_row(row, blocks) for row in ROWS]
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
        "python -m enet_deploy.benchmarks.studies.speed",
        description="What the deploy form gains on this CPU, from uint8 frames to uint8 labels. It takes a few "
        "minutes, about one of them to export and load everything.",
    )
    parser.add_argument("--weights", type=Path, default=BUNDLED_WEIGHTS, help="with a calibration record (the bundled)")
    parser.add_argument(
        "--size",
        type=cli.size,
        default="512x512",
        metavar="HxW",
        help="frame size of the rows that do not name one (%(default)s)",
    )
    parser.add_argument(
        "--rounds", type=cli.positive, default=9, metavar="N", help="blocks of calls per row (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and times to FILE")
    return cli.run(parser, _measure, argv)


if __name__ == "__main__":
    raise SystemExit(main())
