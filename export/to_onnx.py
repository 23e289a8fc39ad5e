"""Weights -> one self-contained ONNX file that is checked, explains itself and is proved to compute the same."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

import enet_deploy
from enet_deploy.artifacts import METADATA_KEY, check_size, replacing, require_writable, sha256
from enet_deploy.data import UInt8Array
from enet_deploy.errors import InputError, ParityError
from enet_deploy.model import Segmenter, load_weights
from enet_deploy.runners import open_runner
from enet_deploy.scenes import street_scene

from .deploy import to_deploy

OPSET = 18
MAX_DISAGREEMENT = 1e-4  # share of pixels whose label may differ from PyTorch's


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
    size: tuple[int, int] | None = None,
    batch: int | None = 1,
    logits: bool = False,
    frames: UInt8Array | None = None,
) -> Export:
    """Export weights in deploy form: frames (N, H, W, 3) uint8 BGR -> labels (N, H, W) uint8.

    Args:
        weights: a .safetensors file that enet-train wrote.
        path: the ONNX file to write; it appears whole, or not at all.
        size: (height, width), divisible by 8; by default what the weights were trained for.
        batch: frames per call, or None for any number.
        logits: whether the graph also returns them, (N, C, H, W) float32.
        frames: (K, H, W, 3) uint8 BGR to hold the file against the weights; by default drawn street scenes.

    Raises ArtifactError for unusable weights, InputError for an impossible size, ParityError (and writes nothing)
    where more than 0.01 % of the pixels get another label in ONNX Runtime than in PyTorch.
    """
    require_writable(path)
    net, metadata = load_weights(weights)
    size = metadata.size if size is None else size
    check_size(size)
    if batch is not None and batch < 1:
        raise InputError(f"batch {batch}, expected at least 1, or None for any number")
    if frames is None:
        frames = np.stack([street_scene(seed, size)[0] for seed in range(8)])
    if frames.shape[1:] != (*size, 3) or len(frames) == 0:
        raise InputError(f"frames has shape {frames.shape}, expected (K, {size[0]}, {size[1]}, 3) with K >= 1")
    metadata = dataclasses.replace(
        metadata, size=size, weights_sha256=sha256(weights), details={**metadata.details, "versions": _versions()}
    )
    model = _export(to_deploy(net, metadata), size, batch, logits)
    _clean(model)
    model.metadata_props.add(key=METADATA_KEY, value=metadata.to_text())
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as temporary:
        onnx.save_model(model, temporary)
        agreement = _agreement(temporary, Segmenter(net, metadata.mean, metadata.std).eval(), frames, batch)
        if agreement < 1 - MAX_DISAGREEMENT:
            raise ParityError(
                f"{path} would give {1 - agreement:.4%} of the pixels another label than PyTorch does, expected at "
                f"most {MAX_DISAGREEMENT:.2%}; nothing was written. Please report it with the weights' recipe"
            )
        written = temporary.stat().st_size
    return Export(Path(path), agreement, len(frames), written, len(model.graph.node))


class _WithLogits(nn.Module):
    """For export alone: the labels and, as a second output, the logits they come from."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.segmenter.logits(frames)
        return logits.argmax(dim=1).to(torch.uint8), logits


def _export(segmenter: Segmenter, size: tuple[int, int], batch: int | None, logits: bool) -> onnx.ModelProto:
    # Tracing a batch of one would make a dynamic batch constant
    example = torch.zeros((2 if batch is None else batch, *size, 3), dtype=torch.uint8)
    module = _WithLogits(segmenter).eval() if logits else segmenter
    with _quiet():
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
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about packages and types that have no part in this network from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _clean(model: onnx.ModelProto) -> None:
    """Drop what the exporter wrote about its own machine: stack traces with file paths, module names, notes."""
    graph = model.graph
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, graph, model):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.value_info[:]
    _share_equal_constants(graph)
    used = {name for node in graph.node for name in node.input}
    for initializer in [i for i in graph.initializer if i.name not in used]:
        graph.initializer.remove(initializer)


def _share_equal_constants(graph: onnx.GraphProto) -> None:
    """Let operations that use equal constants use one of them: the exporter writes each unpooling's plane anew."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same = {
        i.name: first.setdefault((i.data_type, tuple(i.dims), onnx.numpy_helper.to_array(i).tobytes()), i.name)
        for i in graph.initializer
    }
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]


def _agreement(path: Path, reference: Segmenter, frames: UInt8Array, batch: int | None) -> float:
    """Share of pixels with the reference's label. Frames are repeated to fill the last batch."""
    count = batch or min(2, len(frames))
    same: list[float] = []
    with open_runner(path, backend="ort") as runner, torch.inference_mode():
        for start in range(0, len(frames), count):
            chunk = np.take(frames, range(start, start + count), axis=0, mode="wrap")
            same.append(float((reference(torch.from_numpy(chunk)).numpy() == runner.infer(chunk)).mean()))
    return float(np.mean(same))


def _versions() -> dict[str, str]:
    return {
        "enet_deploy": enet_deploy.__version__,
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
