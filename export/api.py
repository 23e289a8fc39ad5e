"""The Python function behind `enet-export`: the same work, with typed arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from enet_deploy.artifacts import BUNDLED_WEIGHTS, QdqLayout
from enet_deploy.commands import cli
from enet_deploy.errors import InputError
from enet_deploy.fit import Fit

from .cli import exported, make_parser


def export(
    weights: str | Path = BUNDLED_WEIGHTS,
    out: str | Path = ".",
    *,
    name: str = "enet",
    precision: str = "fp32",
    target: QdqLayout = "all",
    calibration: str | Path | None = None,
    size: tuple[int, int] | None = None,
    batch: int | None = 1,
    logits: bool = False,
    confidence: bool = False,
    fit: Fit | None = None,
    data: str | Path | None = None,
    split: str = "val",
    max_disagreement: float | None = None,
    engine: str | None = None,
    compute_capability: Sequence[str] = (),
    html: str | Path | None = None,
    npm: str | Path | None = None,
) -> Path:
    """Export weights to OUT/NAME-PRECISION.onnx, compared with PyTorch, as `enet-export` does.

    In fp16 and int8, for the target "all", an engine is built without being asked for if TensorRT and a GPU are here.
    If that fails, a line says why.

    Args:
        weights: a file of enet-train, or the name of bundled weights.
        out: folder to write to.
        name: beginning of the file's name.
        precision: "fp32", "fp16", "int8" or "fp16-int8".
        target: backend that int8 is laid out for; "all" runs on every one.
        calibration: record of `calibrate`, for int8 or confidences; by default that of the bundled weights.
        size: (height, width) of the frames; by default as the weights were trained.
        batch: frames per call; None for any number.
        logits: the graph also returns the logits.
        confidence: the graph also returns confidences, with the temperature in the calibration record.
        fit: how runners make frames of images; by default as the weights were trained.
        data: data set with images to compare labels on; by default drawn street scenes.
        split: of `data`.
        max_disagreement: share of pixels that may get another label than in PyTorch.
        engine: also build an engine, "trt" for this machine's GPU or "trt-rtx", and raise if that fails.
        compute_capability: GPUs of "trt-rtx", such as ["8.6"].
        html: also write this page, which runs the graph in a browser.
        npm: folder of the npm package onnxruntime-web, which the page needs; by default node_modules here or above.

    Returns the path of the graph. Raises ArtifactError for unusable weights, InputError for impossible values,
    ParityError if more labels differ than allowed, BackendError if an engine cannot be built here.
    """
    if isinstance(compute_capability, str):  # a sequence too, of its characters
        raise InputError(f'compute_capability "{compute_capability}", expected a list such as ["{compute_capability}"]')
    values = {
        "weights": cli.weights(str(weights)),
        "out": str(out),
        "name": name,
        "precision": precision,
        "qdq_layout": target,
        "calibration": None if calibration is None else Path(calibration),
        "size": size,
        "batch": batch,
        "dynamic_batch": batch is None,
        "logits": logits,
        "confidence": confidence,
        "fit": fit,
        "data": None if data is None else str(data),
        "split": split,
        "max_disagreement": max_disagreement,
        "engine": engine,
        "compute_capability": tuple(compute_capability),
        "html": None if html is None else Path(html),
        "npm": None if npm is None else Path(npm),
    }
    return exported(cli.call_with(make_parser(), [], **values))
