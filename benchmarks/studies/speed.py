"""What the deploy form gains on this CPU: `python -m enet_deploy.benchmarks.studies.speed`, one table of ratios.

Every contender takes uint8 frames and gives uint8 labels, in its own process. The baselines do not use this project:
they are the network as it was trained, called from PyTorch or exported without changes, with normalisation and argmax
in numpy. A row's ratio is the median of its rounds' ratios, not the ratio of the medians shown.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from enet_deploy import console
from enet_deploy.artifacts import BUNDLED_WEIGHTS, QdqLayout
from enet_deploy.commands import cli
from enet_deploy.environment import environment
from enet_deploy.errors import BackendError
from enet_deploy.export.deploy import to_deploy
from enet_deploy.export.int8 import quantize
from enet_deploy.export.record import record_for
from enet_deploy.export.to_onnx import to_onnx
from enet_deploy.files import require_outputs, sha256, write_json
from enet_deploy.markdown import markdown_table
from enet_deploy.runners import open_runner
from enet_deploy.weights import load_weights

from ..measure.processes import Processes
from ..measure.timing import times
from ..statistics import spread
from ..verdict import UNSTABLE
from .calls import (
    CAMERA,
    FRAMES,
    Call,
    Size,
    frames_of,
    in_openvino,
    in_runner,
    labelling_a_video,
    matrix_product,
    plain_graph,
    plain_pytorch,
    segmenting,
    streaming,
    with_all_streams,
    write_video,
)
from .unpool_forms import CHAIN, EQUALITY, FORMS, KEPT, export, in_form, onnxruntime_call, openvino_call

Maker = Callable[[], Call]

SMALL, LARGE = (360, 480), (720, 960)

TORCH = "PyTorch as trained, numpy around it"
RUNNER = "PyTorch in this project's runner"
SCATTER = "plain export (scatter) in ONNX Runtime, numpy around it"
SLICES = "4-slice unpooling in OpenVINO, numpy around it"
EXACT, MASK = "exact unpooling in OpenVINO", "equality mask in OpenVINO"
AT = "{} openvino at {}x{}"
SEGMENT, STREAM = (f"int8 openvino, {way} of {CAMERA[0]}x{CAMERA[1]}" for way in ("segment()", "stream()"))
LIMIT = "the network's multiply-adds as one matrix product in numpy"
THROUGHPUT = "int8 openvino, stream() with the hint throughput"
VIDEO = f"enet-segment's pipeline: {FRAMES} frames of H.264 at {CAMERA[0]}x{CAMERA[1]} to JSON"
ALONE = f"int8 openvino at {SMALL[0]}x{SMALL[1]}, {FRAMES} times"


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
FP32 = tuple(f"fp32 {backend}" for backend in BACKENDS)
FASTEST = ("bf16 openvino", "int8 openvino", "bf16-int8 openvino")
ROWS = (
    Row((TORCH,), FP32, least=6.0),
    Row((TORCH,), FASTEST, least=10.0),
    Row(("fp32 openvino",), (LIMIT,), most=1.5),
    Row((RUNNER,), FP32),
    Row((SCATTER,), FP32, least=3.3),
    Row((SLICES,), ("fp32 openvino",), least=1.9),
    Row(("fp32 openvino",), ("bf16 openvino",)),
    Row(("fp32 openvino",), ("int8 openvino",), least=1.7),
    Row(("fp32 openvino",), ("bf16-int8 openvino",)),
    Row(("fp32 ort",), ("int8 ort",), least=1.4),
    Row(("int8 openvino",), (THROUGHPUT,), least=1.25),
    Row((EXACT,), (MASK,), most=1.10),
    Row((AT.format("fp32", *LARGE),), (AT.format("fp32", *SMALL),), most=4.4),
    Row((SEGMENT,), (AT.format("int8", *SMALL),), most=1 / 0.85),  # resizing at both ends, 15 % of the whole
    Row((STREAM,), (AT.format("int8", *SMALL),), most=1 / 0.85),
    Row((VIDEO,), (ALONE,), most=1 / 0.85),
)


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

    float_graph, int8_graph = exported("fp32", size), exported("int8-openvino", size, "openvino")
    makers: dict[str, Maker] = {
        RUNNER: partial(in_runner, weights, "torch", size),
        "fp32 openvino": partial(in_runner, float_graph, "openvino", size),
        "fp32 ort": partial(in_runner, float_graph, "ort", size),
        "int8 openvino": partial(in_runner, int8_graph, "openvino", size),
        THROUGHPUT: partial(with_all_streams, int8_graph, size),
        LIMIT: partial(matrix_product, weights, size),
        "int8 ort": partial(in_runner, exported("int8-ort", size, "ort"), "ort", size),
    }
    if _computes_bf16(float_graph):
        for name, graph in (("bf16", float_graph), ("bf16-int8", int8_graph)):
            makers[f"{name} openvino"] = partial(in_runner, graph, "openvino", size, "bf16")
    for other in (SMALL, LARGE):
        graph = exported(f"fp32-{other[0]}", other)
        makers[AT.format("fp32", *other)] = partial(in_runner, graph, "openvino", other)
    graph = exported(f"int8-{SMALL[0]}", SMALL, "openvino")
    makers[AT.format("int8", *SMALL)] = partial(in_runner, graph, "openvino", SMALL)
    makers[SEGMENT], makers[STREAM] = partial(segmenting, graph), partial(streaming, graph)
    makers[VIDEO] = partial(labelling_a_video, graph, write_video(Path(folder, "drive.mp4")))
    makers[ALONE] = partial(in_runner, graph, "openvino", SMALL, times=FRAMES)
    return makers


def _computes_bf16(graph: Path) -> bool:
    try:
        open_runner(graph, "openvino", precision="bf16").close()
    except BackendError as error:
        print(f"without the rows of bf16: {error}")
        return False
    return True


def measurable(rows: Sequence[Row], names: Container[str]) -> list[Row]:
    """Return the rows of which both sides have a call, with the calls that there are."""
    kept = []
    for row in rows:
        slower, faster = (tuple(name for name in side if name in names) for side in (row.slower, row.faster))
        if slower and faster:
            kept.append(replace(row, slower=slower, faster=faster))
    return kept


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
        samples: dict[str, list[list[float]]] = {name: [] for name in makers}
        with Processes() as processes:
            for name, maker in makers.items():
                processes.start(name, maker)
            for _ in console.progress(range(args.rounds), "rounds"):
                for name, own in samples.items():
                    own.append(processes.ask(name, times, CALLS))
    blocks = {name: [median(block) for block in own] for name, own in samples.items()}
    rows = [evaluate_row(row, blocks) for row in measurable(ROWS, blocks)]
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
