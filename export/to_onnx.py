"""Weights -> one self-contained ONNX file that is checked, explains itself and is proved to compute the same.

The precision lives in the file: "fp32", or "fp16" with half weights and arithmetic between uint8 frames and uint8
labels. Int8 is made of either by `enet_deploy.calibration`.
"""

from __future__ import annotations

import ast
import dataclasses
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

import enet_deploy
from enet_deploy.artifacts import check_size, graph_metadata, set_graph_metadata
from enet_deploy.data.scenes import street_scene
from enet_deploy.errors import InputError, ParityError
from enet_deploy.files import atomic_write, require_writable, sha256
from enet_deploy.images import UInt8Array
from enet_deploy.runners import Runner, open_runner
from enet_deploy.weights import load_weights

from .deploy import DeploySegmenter, interleave, labels_of, to_deploy

OPSET = 19  # the first whose QuantizeLinear and DequantizeLinear take half
# precision -> share of pixels whose label may differ from PyTorch's
MAX_DISAGREEMENT = {"fp32": 1e-4, "fp16": 1e-3, "int8": 2e-2, "fp16-int8": 2e-2}
_REMEDY = {
    "fp32": "Please report it with the weights' recipe",
    "fp16": "A network that has not learnt for long decides by little: train on",
    "int8": "A network that has not learnt for long decides by little: train on; where int8 costs mIoU too, calibrate "
    "with --max-drop, which leaves the worst layers in float",
}
_REMEDY["fp16-int8"] = _REMEDY["int8"]


@dataclass(frozen=True)
class Export:
    """What was written and how well it agrees with the weights.

    Attributes:
        path: the ONNX file.
        agreement: share of pixels with PyTorch's label, over `frames` frames.
        bytes: size of the file.
        nodes: operations in the graph.
    """

    path: Path
    agreement: float
    frames: int
    bytes: int
    nodes: int


def to_onnx(
    weights: str | Path,
    path: str | Path,
    *,
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
    batch: int | None = 1,
    logits: bool = False,
    frames: UInt8Array | None = None,
    quantize: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None,
    max_disagreement: float | None = None,
) -> Export:
    """Export weights in deploy form: frames (N, H, W, 3) uint8 BGR -> labels (N, H, W) uint8.

    Args:
        weights: a .safetensors file that enet-train wrote.
        path: the ONNX file to write; it appears whole, or not at all.
        precision: "fp32", or "fp16" for half weights and arithmetic.
        size: (height, width), divisible by 8; by default what the weights were trained for.
        batch: frames per call, or None for any number.
        logits: whether the graph also returns them, (N, C, H, W) float32.
        frames: (K, H, W, 3) uint8 BGR to hold the file against the weights; by default drawn street scenes.
        quantize: makes the int8 graph of this one, `enet_deploy.export.int8.quantize` with its record.
        max_disagreement: share of pixels that may get another label than in PyTorch; by default `MAX_DISAGREEMENT`.

    Raises ArtifactError for unusable weights, InputError for an impossible size or precision, ParityError (and writes
    nothing) where more pixels than that get another label in ONNX Runtime than in PyTorch.
    """
    require_writable(path)
    model = build_graph(weights, precision, size, batch, logits)
    if quantize is not None:
        model = quantize(model)
    with open_runner(weights, "torch", size=graph_metadata(model, path).size) as reference:
        return save_verified(model, path, reference, frames, max_disagreement)


def build_graph(
    weights: str | Path,
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
    batch: int | None = 1,
    logits: bool = False,
) -> onnx.ModelProto:
    """The graph that `to_onnx` writes, with its metadata and not yet verified. Arguments and errors as there."""
    if precision not in ("fp32", "fp16"):
        raise InputError(f"precision '{precision}', expected fp32 or fp16; int8 is made of either by `quantize`")
    net, metadata = load_weights(weights)
    size = metadata.size if size is None else size
    check_size(size)
    if batch is not None and batch < 1:
        raise InputError(f"batch {batch}, expected at least 1, or None for any number")
    metadata = dataclasses.replace(
        metadata,
        size=size,
        precision=precision,
        weights_sha256=sha256(weights),
        details={**metadata.details, "versions": _versions()},
    )
    model = _export(to_deploy(net, metadata, half=precision == "fp16"), size, batch, logits)
    _name_by_module(model.graph)
    _clean(model)
    set_graph_metadata(model, metadata)
    return model


def save_verified(
    model: onnx.ModelProto,
    path: str | Path,
    reference: Runner,
    frames: UInt8Array | None = None,
    max_disagreement: float | None = None,
) -> Export:
    """Write a graph once ONNX Runtime has given the reference's labels with it. Arguments and errors as `to_onnx`."""
    metadata = graph_metadata(model, path)
    limit = MAX_DISAGREEMENT[metadata.precision] if max_disagreement is None else max_disagreement
    remedy = _REMEDY[metadata.precision]
    if frames is None:
        frames = np.stack([street_scene(seed, metadata.size)[0] for seed in range(8)])
        if metadata.precision != "fp32":
            remedy = f"Hold it against images of --data, which are seldom as near a tie as drawn ones. {remedy}"
    if frames.shape[1:] != (*metadata.size, 3) or len(frames) == 0:
        height, width = metadata.size
        raise InputError(f"frames has shape {frames.shape}, expected (K, {height}, {width}, 3) with K >= 1")
    onnx.checker.check_model(model, full_check=True)
    with atomic_write(path) as temporary:
        onnx.save_model(model, temporary)
        with open_runner(temporary, backend="ort") as runner:
            agreement = _agreement(runner, reference, frames)
        if agreement < 1 - limit:
            raise ParityError(
                f"{path} would give {1 - agreement:.4%} of the pixels another label than "
                f"{Path(reference.artifact).name} does, expected at most {limit:.2%} in {metadata.precision}; nothing "
                f"was written. {remedy}, or allow it with --max-disagreement"
            )
        written = temporary.stat().st_size
    return Export(Path(path), agreement, len(frames), written, len(model.graph.node))


class _WithLogits(nn.Module):
    """For export alone: the labels and, as a second output, the logits they come from."""

    def __init__(self, segmenter: DeploySegmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.segmenter.scores(frames)
        return labels_of(scores), interleave(scores).float()


def _export(segmenter: DeploySegmenter, size: tuple[int, int], batch: int | None, logits: bool) -> onnx.ModelProto:
    # Tracing a batch of one would make a dynamic batch constant
    example = torch.zeros((2 if batch is None else batch, *size, 3), dtype=torch.uint8)
    module = _WithLogits(segmenter).eval() if logits else segmenter
    with quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["frames"],
            output_names=["labels", "logits"] if logits else ["labels"],
            dynamic_shapes=({0: torch.export.Dim("batch")},) if batch is None else None,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's notes about packages and types that have no part in this network from the user."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("torch.onnx", "onnx_ir"))}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _name_by_module(graph: onnx.GraphProto) -> None:
    """Name operations, tensors and weights by their place in the network: "stage2.3.branch.0/Conv" for "conv2d_41".

    Profiles, calibration records and TensorRT's refusals speak of these names, so they have to mean something, and to
    stay the same whatever the exporter counts.
    """
    names = {value.name: value.name for value in (*graph.input, *graph.output)}
    for initializer in graph.initializer:
        names[initializer.name] = initializer.name = _place(initializer.name)
    seen: Counter[str] = Counter()
    for node in graph.node:
        scopes = ast.literal_eval({p.key: p.value for p in node.metadata_props}["pkg.torch.onnx.name_scopes"])
        base = "/".join(filter(None, (_place(scopes[-2]), node.op_type)))
        node.name = f"{base}_{seen[base]}" if seen[base] else base
        seen[base] += 1
        (output,) = node.output
        names.setdefault(output, re.sub(r"(\.pool)/MaxPool_1$", r"\1/winners", node.name))
        if node.name == "initial.conv/Conv":  # made by another operation in a half graph than in a float one
            names[node.input[0]] = "normalised"
    for node in graph.node:
        node.input[:] = [names[name] if name else "" for name in node.input]
        node.output[:] = [names[name] for name in node.output]


def _place(name: str) -> str:
    """A module's path within the network, of its path within what was exported."""
    return re.sub(r"^(segmenter\.?)?(net\.?)?", "", name)


def _clean(model: onnx.ModelProto) -> None:
    """Drop what the exporter wrote about its own machine: stack traces with file paths, module names, notes."""
    graph = model.graph
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, graph, model):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.value_info[:]
    _compare_as_is(graph)
    _share_equal_constants(graph)
    _give_own_biases(graph)
    used = {name for node in graph.node for name in node.input}
    for initializer in [i for i in graph.initializer if i.name not in used]:
        graph.initializer.remove(initializer)


def _compare_as_is(graph: onnx.GraphProto) -> None:
    """Let Equal take halves: the exporter casts both sides to float first, which changes nothing but the time."""
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    constants = {i.name: i for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "Equal" and any(name in casts for name in node.input):
            for name in node.input:
                if name in constants:  # a plane of ranks, whose cast the exporter has carried out
                    half = onnx.numpy_helper.to_array(constants[name]).astype(np.float16)
                    constants[name].CopyFrom(onnx.numpy_helper.from_array(half, name))
            node.input[:] = [casts[name].input[0] if name in casts else name for name in node.input]
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for cast in casts.values():
        if cast.output[0] not in used:
            graph.node.remove(cast)


def _share_equal_constants(graph: onnx.GraphProto) -> None:
    """Let operations that use equal constants use one of them: the exporter writes each unpooling's plane anew."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same = {
        i.name: first.setdefault((i.data_type, tuple(i.dims), onnx.numpy_helper.to_array(i).tobytes()), i.name)
        for i in graph.initializer
    }
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]


def _give_own_biases(graph: onnx.GraphProto) -> None:
    """Let no two convolutions use one bias, which the exporter makes of equal ones: OpenVINO would not fuse it."""
    biases = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    used: set[str] = set()
    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) > 2:
            if node.input[2] in used:
                own = f"{node.name.removesuffix('/Conv')}.bias"
                graph.initializer.append(onnx.numpy_helper.from_array(biases[node.input[2]], own))
                node.input[2] = own
            used.add(node.input[2])


def _agreement(runner: Runner, reference: Runner, frames: UInt8Array) -> float:
    """Share of pixels with the reference's label. Frames are repeated to fill the last batch."""
    count = runner.spec.batch or min(2, len(frames))
    same: list[float] = []
    for start in range(0, len(frames), count):
        chunk = np.take(frames, range(start, start + count), axis=0, mode="wrap")
        same.append(float((reference.infer(chunk) == runner.infer(chunk)).mean()))
    return float(np.mean(same))


def _versions() -> dict[str, str]:
    return {
        "enet_deploy": enet_deploy.__version__,
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
