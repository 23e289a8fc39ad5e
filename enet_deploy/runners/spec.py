"""What a runner says of itself, and the checks of arrays against it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import described, is_uint8
from ..classes import ClassList
from ..errors import InputError
from ..fit import Fit
from ..frame_range import FrameRange
from ..trained_on import TrainedOn


@dataclass(frozen=True)
class Spec:
    """Facts about an open runner.

    Attributes:
        artifact: the file that it runs.
        backend: for example "ort".
        device: for example "cpu".
        precision: what it computes in: the graph's own precision, for example "fp32", or what was asked for: "bf16" of
            fp32 weights or an fp32 graph, "bf16-int8" of an int8 graph whose float layers are computed in bf16.
        size: (height, width) of the frames in pixels.
        batch: frames per call; None for any number.
        classes: the meaning of the label ids.
        has_logits: whether `logits` can be called.
        has_confidence: whether `infer_with_confidence` and `segment_with_confidence` can be called.
        weights_sha256: hash of the weights file that the artifact is, or was exported from.
        runtime: the library and settings in use, in words, if the backend has more than one; else "".
        qdq_layout: layout of an int8 graph, "all", "openvino" or "ort"; else "".
        calibrated_on: the frames that the ranges of an int8 graph were measured on, if it says; else None.
        fit: how `segment` makes frames of images: "stretch", "letterbox" or "crop" (see `enet_deploy.fit`).
        trained_on: the images that the weights were trained on, if they say; else None.
    """

    artifact: Path
    backend: str
    device: str
    precision: str
    size: tuple[int, int]
    batch: int | None
    classes: ClassList
    has_logits: bool
    weights_sha256: str
    runtime: str = ""
    qdq_layout: str = ""
    calibrated_on: FrameRange | None = None
    has_confidence: bool = False
    fit: Fit = "stretch"
    trained_on: TrainedOn | None = None


@dataclass(frozen=True)
class Operation:
    """One operation as a backend executes it.

    Attributes:
        names: the operations of the graph that it computes; empty if the backend added it.
        kind: the backend's name for it, for example "Conv" or "Reorder f32".
        ms: duration in milliseconds.
    """

    names: tuple[str, ...]
    kind: str
    ms: float


def check_frames(frames: Any, spec: Spec, kind: type[Any] = np.ndarray) -> None:
    """Raise InputError unless `frames` is a `kind` with the dtype and shape that `infer` takes."""
    height, width = spec.size
    wanted = f"uint8 of shape ({spec.batch or 'N'}, {height}, {width}, 3), BGR"
    if not is_uint8(frames, kind):
        raise InputError(f"frames is {described(frames, kind)}, expected {wanted}")
    shape = frames.shape
    if len(shape) == 3 and shape[2] == 3:
        raise InputError(f"frames has shape {shape}, expected {wanted}; pass frames[None], or use segment()")
    if len(shape) == 4 and shape[1] == 3 and shape[3] != 3:
        raise InputError(f"frames has shape {shape}, expected {wanted}; channels come last here")
    if len(shape) != 4 or shape[3] != 3:
        raise InputError(f"frames has shape {shape}, expected {wanted}")
    if shape[1:3] != spec.size:
        raise InputError(
            f"frames has shape {shape}, expected {wanted}; segment() takes any size, "
            f"or export with --size {shape[1]}x{shape[2]}"
        )
    if shape[0] == 0:
        raise InputError("frames has no frame in it, expected at least one")
    if spec.batch is not None and shape[0] != spec.batch:
        raise InputError(f"frames has shape {shape}, expected {wanted}; export with --dynamic-batch for any number")


def check_out(out: Any, shape: tuple[int, ...], kind: type[Any] = np.ndarray) -> None:
    """Raise InputError unless `out` is a `kind` of dtype uint8 with this shape."""
    if not is_uint8(out, kind) or out.shape != shape:
        raise InputError(f"out is {described(out, kind)}, expected uint8 of shape {shape}")
