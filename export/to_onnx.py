"""Weights -> one self-contained ONNX file, checked and verified against PyTorch.

`to_onnx` builds the deploy form, exports it with torch.onnx, cleans the graph (`graph`), checks it, compares its labels
with PyTorch's, and writes it. The file has its own precision: "fp32", or "fp16" with half-precision weights and
arithmetic between uint8 frames and uint8 labels. `int8` makes int8 graphs of both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

import enet_deploy
from enet_deploy.artifacts import check_size, check_temperature, graph_metadata, save_graph, set_graph_metadata
from enet_deploy.data.scenes import street_scene
from enet_deploy.errors import InputError, ParityError
from enet_deploy.files import atomic_write, require_writable
from enet_deploy.fit import Fit
from enet_deploy.images import UInt8Array
from enet_deploy.runners import Runner, open_runner
from enet_deploy.weights import Weights

from .deploy import DeploySegmenter, confidence_of, interleave, labels_of, to_deploy
from .graph import clean, name_by_module

OPSET = 19  # the first version in which QuantizeLinear and DequantizeLinear accept fp16
# precision -> largest share of pixels whose label may differ from PyTorch's
MAX_DISAGREEMENT = {"fp32": 1e-4, "fp16": 1e-3, "int8": 2e-2, "fp16-int8": 2e-2}
_REMEDY = {
    "fp32": "Please report it with the weights' recipe",
    "fp16": "A network that was not trained for long decides many pixels by small margins: train on",
    "int8": "A network that was not trained for long decides many pixels by small margins: train on; if int8 costs "
    "mIoU too, calibrate with --max-drop, which leaves the worst layers in float",
}
_REMEDY["fp16-int8"] = _REMEDY["int8"]
KEPT = 4  # exported graphs of about 1.5 MB: one network in fp32 and fp16, for two sizes
_exported: dict[str, bytes] = {}


@dataclass(frozen=True)
class Export:
    """The result of an export.

    Attributes:
        path: the ONNX file.
        agreement: share of pixels with the reference's label, in [0, 1].
        frames: number of frames that were compared.
        bytes: size of the file.
        nodes: operations in the graph.
    """

    path: Path
    agreement: float
    frames: int
    bytes: int
    nodes: int


def to_onnx(
    weights: str | Path | Weights,
    path: str | Path,
    *,
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
    batch: int | None = 1,
    logits: bool = False,
    confidence: float | None = None,
    fit: Fit | None = None,
    frames: UInt8Array | None = None,
    quantize: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None,
    max_disagreement: float | None = None,
) -> Export:
    """Export weights in deploy form: frames (N, H, W, 3) uint8 BGR -> labels (N, H, W) uint8.

    Args:
        weights: a .safetensors file that enet-train wrote, or the same already read.
        path: the ONNX file to write, atomically.
        precision: "fp32", or "fp16" for half-precision weights and arithmetic.
        size: (height, width), divisible by 8; by default the size that the weights were trained at.
        batch: frames per call; None for any number.
        logits: the graph also returns the logits, (N, C, H, W) float32.
        confidence: the graph also returns confidences, (N, H, W) uint8, 255 times the softmax probability of the label;
            this number is the temperature that divides the logits before the softmax, 1 for none.
        fit: how runners of the file make frames of images; by default as the weights were trained.
        frames: (K, H, W, 3) uint8 BGR, to compare the labels on; by default synthetic street scenes.
        quantize: makes the int8 graph, for example `enet_deploy.export.int8.quantize` with its record.
        max_disagreement: largest share of pixels, in [0, 1], that may get another label than in PyTorch; by default
            `MAX_DISAGREEMENT`.

    Raises ArtifactError for unusable weights, InputError for an impossible size, precision or share, ParityError if
    more pixels differ than allowed. Then nothing is written.
    """
    require_writable(path)
    weights = _read(weights)
    model = build_graph(weights, precision, size, batch, logits, confidence, fit)
    if quantize is not None:
        model = quantize(model)
    size = graph_metadata(model, path).size
    with open_runner(weights.path, "torch", size=size, weights=weights) as reference:
        return save_verified(model, path, reference, frames, max_disagreement)


def build_graph(
    weights: str | Path | Weights,
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
    batch: int | None = 1,
    logits: bool = False,
    confidence: float | None = None,
    fit: Fit | None = None,
) -> onnx.ModelProto:
    """Return the graph of `to_onnx`, before it is quantised and compared. Arguments and errors as there."""
    if precision not in ("fp32", "fp16"):
        raise InputError(f"precision '{precision}', expected fp32 or fp16; int8 is made of either by `quantize`")
    if batch is not None and batch < 1:
        raise InputError(f"batch {batch}, expected at least 1, or None for any number")
    if confidence is not None:
        check_temperature(confidence)
    weights = _read(weights)
    size = weights.metadata.size if size is None else size
    check_size(size)
    segmenter = to_deploy(weights.net, weights.metadata, half=precision == "fp16")
    model = _export(_Outputs(segmenter, logits, confidence).eval(), size, batch)
    name_by_module(model.graph)
    clean(model)
    metadata = dataclasses.replace(
        weights.metadata,
        size=size,
        precision=precision,
        fit=weights.metadata.fit if fit is None else fit,
        weights_sha256=weights.sha256,
        details={
            **weights.metadata.details,
            "versions": _versions(),
            **({} if confidence is None else {"confidence": {"temperature": confidence}}),
        },
    )
    set_graph_metadata(model, metadata)
    return model


def _read(weights: str | Path | Weights) -> Weights:
    return weights if isinstance(weights, Weights) else Weights.read(weights)


def _export(module: _Outputs, size: tuple[int, int], batch: int | None) -> onnx.ModelProto:
    """Export a module, or take what this process exported of an equal one: the exporter takes seconds."""
    key = _key(module, size, batch)
    content = _exported.get(key)
    if content is None:
        content = _exported_by_torch(module, size, batch).SerializeToString()
        while len(_exported) >= KEPT:
            _exported.pop(next(iter(_exported)), None)
        _exported[key] = content
    return onnx.load_model_from_string(content)


def _key(module: _Outputs, size: tuple[int, int], batch: int | None) -> str:
    """Return a hash of all that the exported graph depends on."""
    found = hashlib.sha256(f"{size} {batch} {module}".encode())
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def _exported_by_torch(module: _Outputs, size: tuple[int, int], batch: int | None) -> onnx.ModelProto:
    # An example batch of 1 would make a dynamic batch a constant
    example = torch.zeros((2 if batch is None else batch, *size, 3), dtype=torch.uint8)
    with quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["frames"],
            output_names=module.names,
            dynamic_shapes=({0: torch.export.Dim("batch")},) if batch is None else None,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


class _Outputs(nn.Module):
    """The segmenter with the outputs of a graph, for export only.

    Args:
        segmenter: in deploy form.
        logits: whether logits (N, C, H, W) float32 come out beside the labels (N, H, W) uint8.
        confidence: temperature of the confidences (N, H, W) uint8, which come out too; None for none.
    """

    def __init__(self, segmenter: DeploySegmenter, logits: bool, confidence: float | None) -> None:
        super().__init__()
        self.segmenter, self._logits, self._temperature = segmenter, logits, confidence
        self.names = ["labels", *["logits"] * logits, *["confidence"] * (confidence is not None)]

    def extra_repr(self) -> str:
        return f"{self.names}, {self._temperature}"

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        scores = self.segmenter.scores(frames)
        outputs = [labels_of(scores)]
        if self._logits:
            outputs.append(interleave(scores).float())
        if self._temperature is not None:
            outputs.append(confidence_of(scores, self._temperature))
        return tuple(outputs)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's notes about packages and types that this network does not use."""
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


def _versions() -> dict[str, str]:
    return {
        "enet_deploy": enet_deploy.__version__,
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def save_verified(
    model: onnx.ModelProto,
    path: str | Path,
    reference: Runner,
    frames: UInt8Array | None = None,
    max_disagreement: float | None = None,
) -> Export:
    """Check a graph, compare its labels in ONNX Runtime with the reference's, and write it.

    Arguments and errors as `to_onnx`.
    """
    metadata = graph_metadata(model, path)
    limit = MAX_DISAGREEMENT[metadata.precision] if max_disagreement is None else max_disagreement
    if not 0 <= limit <= 1:
        raise InputError(f"max_disagreement {limit}, expected a share from 0 to 1")
    remedy, shown = _REMEDY[metadata.precision], "given frames"
    if frames is None:
        shown = "drawn scenes"
        frames = np.stack([street_scene(seed, metadata.size)[0] for seed in range(8)])
        if metadata.precision != "fp32":
            remedy = f"Compare on real images with --data: synthetic ones have more near ties. {remedy}"
    if frames.shape[1:] != (*metadata.size, 3) or len(frames) == 0:
        height, width = metadata.size
        raise InputError(f"frames has shape {frames.shape}, expected (K, {height}, {width}, 3) with K >= 1")
    onnx.checker.check_model(model, full_check=True)
    with atomic_write(path) as temporary:
        save_graph(model, temporary)
        with open_runner(temporary, backend="ort") as runner:
            agreement = _agreement(runner, reference, frames)
        if agreement < 1 - limit:
            raise ParityError(
                f"{path} would give {1 - agreement:.4%} of the pixels another label than "
                f"{Path(reference.artifact).name} does, expected at most {limit:.2%} in {metadata.precision}; nothing "
                f"was written. {remedy}, or allow it with --max-disagreement"
            )
        verified = {"agreement": round(agreement, 6), "frames": len(frames), "on": shown}
        _add_detail(model, "verified", verified)
        save_graph(model, temporary)
        size = temporary.stat().st_size
    return Export(Path(path), agreement, len(frames), size, len(model.graph.node))


def _add_detail(model: onnx.ModelProto, name: str, value: dict[str, object]) -> None:
    metadata = graph_metadata(model, "the graph")
    set_graph_metadata(model, dataclasses.replace(metadata, details={**metadata.details, name: value}))


def _agreement(runner: Runner, reference: Runner, frames: UInt8Array) -> float:
    """Return the share of pixels with the reference's label. Frames that are repeated to fill a batch do not count."""
    count = runner.spec.batch or min(2, len(frames))
    same: list[float] = []
    for start in range(0, len(frames), count):
        chunk = np.take(frames, range(start, start + count), axis=0, mode="wrap")
        equal = reference.infer(chunk) == runner.infer(chunk)
        same += equal.mean(axis=(1, 2))[: len(frames) - start].tolist()
    return float(np.mean(same))
