"""What weights and exported files say about themselves, and writing them so that no half file is ever seen."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .classes import ClassList
from .errors import ArtifactError, InputError
from .files import parse_json

METADATA_KEY = "enet_deploy"  # the one key, in safetensors' and in ONNX's metadata; its value is JSON
SCHEMA = 1

BUNDLED_WEIGHTS = Path(__file__).parent / "weights" / "enet-camvid.safetensors"

PRECISIONS = ("fp32", "fp16", "int8", "fp16-int8")
LARGEST = 8192  # side of a frame, more than a camera gives: no file is to name a size that takes all memory


def check_size(size: tuple[int, int]) -> None:
    """Raise InputError unless both sides are positive multiples of 8, as the encoder halves the image three times, and
    no larger than `LARGEST`."""
    if max(size) > LARGEST:
        raise InputError(f"size {size[0]}x{size[1]}, expected at most {LARGEST} a side; take a smaller one")
    if any(side < 8 or side % 8 for side in size):
        near = "x".join(str(max(8, round(side / 8) * 8)) for side in size)
        raise InputError(f"size {size[0]}x{size[1]}, expected height and width divisible by 8; the nearest is {near}")


@dataclass(frozen=True)
class Metadata:
    """All that a runner has to know beside the tensors.

    Attributes:
        classes: names, colours, void id.
        mean, std: per channel, BGR, on the scale of [0, 255]; the network sees (frame - mean) / std.
        size: (height, width) that the weights were trained for or the graph was exported at.
        precision: one of `PRECISIONS`.
        weights_sha256: of the weights file an exported graph came from; "" in the weights themselves.
        details: facts for people: recipe, figures, commit, tool versions.
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
            raise InputError(f"weights_sha256 {self.weights_sha256!r:.80}, expected 64 hex digits, or none")
        check_size(self.size)

    @property
    def layout(self) -> str:
        """Of an int8 graph, whose kernels it was made for: "all", or "ort"; else ""."""
        calibration = self.details.get("calibration")
        if not isinstance(calibration, dict):
            return ""
        return "ort" if calibration.get("target") == "ort" else "all"

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
        """The inverse of `to_text`. Raises ArtifactError, naming `source`, where `text` is not of that form."""
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
    """What an onnx.ModelProto says about itself. Raises ArtifactError, naming `source`, where it does not."""
    texts = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if len(texts) > 1:
        raise ArtifactError(
            f"{source} has '{METADATA_KEY}' metadata {len(texts)} times, expected once; export it again"
        )
    return Metadata.from_text(texts[0] if texts else None, source)


def set_graph_metadata(model: Any, metadata: Metadata) -> None:
    """Let an onnx.ModelProto say this about itself, and nothing else."""
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=metadata.to_text())


def _triple(values: Any) -> tuple[float, float, float]:
    b, g, r = values
    return float(b), float(g), float(r)
