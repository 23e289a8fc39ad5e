"""The metadata that weights, exported graphs and engines carry."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .classes import ClassList
from .errors import ArtifactError, InputError
from .files import parse_json
from .frame_range import FrameRange

METADATA_KEY = "enet_deploy"  # the only key in the metadata of safetensors and ONNX files; its value is JSON
SCHEMA = 1

BUNDLED_WEIGHTS = Path(__file__).parent / "weights" / "enet-camvid.safetensors"

PRECISIONS = ("fp32", "fp16", "int8", "fp16-int8")
LARGEST = 8192  # pixels per side, more than any camera has: a damaged file must not claim all memory

QdqLayout = Literal["all", "ort"]  # the backends that an int8 graph is laid out for; `export.int8` explains both


def check_size(size: tuple[int, int]) -> None:
    """Raise InputError unless both sides are positive multiples of 8 and at most `LARGEST`.

    Multiples of 8, because the encoder halves the image three times.
    """
    if max(size) > LARGEST:
        raise InputError(f"size {size[0]}x{size[1]}, expected at most {LARGEST} a side; take a smaller one")
    if any(side < 8 or side % 8 for side in size):
        near = "x".join(str(max(8, round(side / 8) * 8)) for side in size)
        raise InputError(f"size {size[0]}x{size[1]}, expected height and width divisible by 8; the nearest is {near}")


@dataclass(frozen=True)
class Metadata:
    """What a runner needs to know in addition to the tensors.

    Attributes:
        classes: names, colours, void id.
        mean, std: per channel, BGR, in the range [0, 255]; the network sees (frame - mean) / std.
        size: (height, width) that the weights were trained at, or that the graph was exported at.
        precision: one of `PRECISIONS`.
        weights_sha256: hash of the weights file that a graph was exported from; "" in the weights file itself.
        details: facts for people: recipe, figures, commit, tool versions.

    Raises InputError for an impossible value.
    """

    classes: ClassList
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: tuple[int, int]
    precision: str = "fp32"
    weights_sha256: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise InputError(f"mean {self.mean} and std {self.std}, expected finite numbers, std above 0")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision {self.precision!r:.40}, expected one of {', '.join(PRECISIONS)}")
        if not re.fullmatch("([0-9a-f]{64})?", self.weights_sha256):
            raise InputError(f"weights_sha256 {self.weights_sha256!r:.80}, expected 64 hex digits or ''")
        check_size(self.size)
        try:
            _ = self.calibrated_on
        except TypeError as error:
            raise InputError(f"frames of the calibration: {error}; expected contrast and noise") from None

    @property
    def qdq_layout(self) -> QdqLayout | Literal[""]:
        """The layout of an int8 graph, "all" or "ort"; "" if the graph is not quantised."""
        calibration = self.details.get("calibration")
        if not isinstance(calibration, dict):
            return ""
        return "ort" if calibration.get("target") == "ort" else "all"

    @property
    def calibrated_on(self) -> FrameRange | None:
        """The frames that the ranges of an int8 graph were measured on; None if the graph does not say."""
        calibration = self.details.get("calibration")
        frames = calibration.get("frames") if isinstance(calibration, dict) else None
        return None if frames is None else FrameRange(**frames)

    def to_text(self) -> str:
        return json.dumps(
            {
                "schema": SCHEMA,
                "classes": self.classes.to_json(),
                "mean": self.mean,
                "std": self.std,
                "size": self.size,
                "precision": self.precision,
                "weights_sha256": self.weights_sha256,
                "details": self.details,
            },
            sort_keys=True,
        )

    @classmethod
    def from_text(cls, text: str | None, source: str | Path) -> Metadata:
        """Parse what `to_text` wrote. Raises ArtifactError that names `source` if `text` is missing or invalid."""
        if text is None:
            raise ArtifactError(
                f"{source} carries no '{METADATA_KEY}' metadata (classes, mean, std, size); expected a file written "
                "by enet-train or enet-export"
            )
        try:
            value = parse_json(text)
            if value["schema"] != SCHEMA:
                raise ArtifactError(
                    f"{source} has metadata of schema {value['schema']!r}, expected {SCHEMA}; make it again with "
                    "this version of enet_deploy"
                )
            return cls(
                classes=ClassList.from_json(value["classes"]),
                mean=_triple(value["mean"]),
                std=_triple(value["std"]),
                size=(int(value["size"][0]), int(value["size"][1])),
                precision=str(value["precision"]),
                weights_sha256=str(value["weights_sha256"]),
                details=dict(value["details"]),
            )
        except (InputError, KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ArtifactError(f"{source} has damaged '{METADATA_KEY}' metadata: {error!r}; export it again") from None


def graph_metadata(model: Any, source: str | Path) -> Metadata:
    """Return the metadata of an onnx.ModelProto. Raises ArtifactError that names `source` if there is none."""
    texts = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if len(texts) > 1:
        raise ArtifactError(
            f"{source} has '{METADATA_KEY}' metadata {len(texts)} times, expected once; export it again"
        )
    return Metadata.from_text(texts[0] if texts else None, source)


def set_graph_metadata(model: Any, metadata: Metadata) -> None:
    """Replace all metadata of an onnx.ModelProto."""
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=metadata.to_text())


def _triple(values: Any) -> tuple[float, float, float]:
    b, g, r = values
    return float(b), float(g), float(r)
