"""The metadata that weights, exported graphs and engines carry, with a digest of the whole file in it.

A digest shows damage, as of a disk or a copy, not intent: whoever changes a file can compute it again.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from .bundled import weights_file
from .classes import ClassList
from .errors import ArtifactError, InputError
from .files import atomic_write, digest, parse_json
from .fit import Fit, check_fit
from .frame_range import FrameRange
from .trained_on import KEY as TRAINED_ON
from .trained_on import TrainedOn

METADATA_KEY = "enet_deploy"  # the only key in the metadata of safetensors and ONNX files; its value is JSON
SCHEMA = 1

BUNDLED_WEIGHTS = weights_file("enet-camvid")

# How the digest stands in the file: in JSON, in safetensors files in JSON inside JSON. Its own digits count as zeros
_DIGEST = re.compile(rb'(content_sha256\\*": \\*")([0-9a-f]{64})')
_NO_DIGEST = "0" * 64
_CONTENT = "content_sha256"  # the same in a JSON file

PRECISIONS = ("fp32", "fp16", "int8", "fp16-int8")
LARGEST = 8192  # pixels per side, more than any camera has: a damaged file must not claim all memory

QdqLayout = Literal["all", "openvino", "ort"]  # backends that an int8 graph is laid out for; see `export.int8`


def require_file(path: Path, expected: str = "a file written by enet-train or enet-export") -> None:
    """Raise ArtifactError that names `path`, and what was expected, unless an ordinary file is there."""
    try:
        if path.is_file():
            return
        why = "is a folder or a device" if path.exists() else "does not exist"
    except OSError as error:
        why = f"cannot be reached ({error.strerror})"
    raise ArtifactError(f"{path} {why}; expected {expected}")


def read_artifact(path: Path) -> bytes:
    """Return the content of a file. Raises ArtifactError that names it if it cannot be read, or is no ordinary file."""
    require_file(path)  # reading a pipe would wait without end
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); expected a file that you may read") from None


def check_size(size: tuple[int, int]) -> None:
    """Raise InputError unless both sides are positive multiples of 8 and at most `LARGEST`.

    Multiples of 8, because the encoder halves the image three times.
    """
    if max(size) > LARGEST:
        raise InputError(f"size {size[0]}x{size[1]}, expected at most {LARGEST} a side; take a smaller one")
    if any(side < 8 or side % 8 for side in size):
        near = "x".join(str(max(8, round(side / 8) * 8)) for side in size)
        raise InputError(f"size {size[0]}x{size[1]}, expected height and width divisible by 8; the nearest is {near}")


def check_temperature(value: Any) -> None:
    """Raise InputError unless `value` is a number from 0.01 to 100, which every precision can compute with."""
    if type(value) not in (int, float) or not 0.01 <= value <= 100:
        raise InputError(f"temperature {value!r:.40}, expected a number from 0.01 to 100")


@dataclass(frozen=True)
class Metadata:
    """What a runner needs to know in addition to the tensors.

    Attributes:
        classes: names, colours, void id.
        mean, std: per channel, BGR, in the range [0, 255]; the network sees (frame - mean) / std.
        size: (height, width) that the weights were trained at, or that the graph was exported at.
        precision: one of `PRECISIONS`.
        fit: how an image of another shape becomes a frame, one of `fit.FITS`; as the weights were trained.
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
    fit: Fit = "stretch"

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise InputError(f"mean {self.mean} and std {self.std}, expected finite numbers, std above 0")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision {self.precision!r:.40}, expected one of {', '.join(PRECISIONS)}")
        if not re.fullmatch("([0-9a-f]{64})?", self.weights_sha256):
            raise InputError(f"weights_sha256 {self.weights_sha256!r:.80}, expected 64 hex digits or ''")
        check_size(self.size)
        check_fit(self.fit)
        try:
            _ = self.calibrated_on
        except TypeError as error:
            raise InputError(f"frames of the calibration: {error}; expected contrast and noise") from None
        check_temperature(self.temperature)
        _ = self.trained_on

    @property
    def qdq_layout(self) -> QdqLayout | Literal[""]:
        """The layout of an int8 graph; "" if the graph is not quantised."""
        calibration = self.details.get("calibration")
        if not isinstance(calibration, dict):
            return ""
        layouts: tuple[QdqLayout, ...] = get_args(QdqLayout)
        return next((layout for layout in layouts if layout == calibration.get("target")), "all")

    @property
    def calibrated_on(self) -> FrameRange | None:
        """The frames that the ranges of an int8 graph were measured on; None if the graph does not say."""
        calibration = self.details.get("calibration")
        frames = calibration.get("frames") if isinstance(calibration, dict) else None
        return None if frames is None else FrameRange(**frames)

    @property
    def temperature(self) -> Any:
        """What the logits are divided by before the softmax of a confidence; 1 unless enet-calibrate has fitted one."""
        confidence = self.details.get("confidence")
        return confidence.get("temperature", 1.0) if isinstance(confidence, dict) else 1.0

    @property
    def trained_on(self) -> TrainedOn | None:
        """The images that the weights were trained on; None if the weights do not say."""
        value = self.details.get(TRAINED_ON)
        return None if value is None else TrainedOn.from_json(value)

    def to_text(self) -> str:
        """Return it as JSON. Raises InputError if a number in `details` is not finite, which `from_text` refuses."""
        value = {
            "schema": SCHEMA,
            "classes": self.classes.to_json(),
            "mean": self.mean,
            "std": self.std,
            "size": self.size,
            "precision": self.precision,
            "fit": self.fit,
            "weights_sha256": self.weights_sha256,
            "details": self.details,
            "content_sha256": _NO_DIGEST,  # until `sealed` has the whole file
        }
        try:
            return json.dumps(value, sort_keys=True, allow_nan=False)
        except ValueError as error:
            raise InputError(f"details {self.details!r:.80}: {error}; expected finite numbers") from None

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
                fit=check_fit(value.get("fit", "stretch")),  # files of before had no other
                weights_sha256=str(value["weights_sha256"]),
                details=dict(value["details"]),
            )
        except (InputError, KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ArtifactError(f"{source} has damaged '{METADATA_KEY}' metadata: {error!r}; export it again") from None


def graph_metadata(model: Any, source: str | Path) -> Metadata:
    """Return the metadata of an onnx.ModelProto. Raises ArtifactError that names `source` if there is none."""
    return only_metadata([entry.value for entry in model.metadata_props if entry.key == METADATA_KEY], source)


def only_metadata(texts: Sequence[str], source: str | Path) -> Metadata:
    """Parse the texts under our key in a graph. Raises ArtifactError that names `source` unless there is one."""
    if len(texts) > 1:
        raise ArtifactError(
            f"{source} has '{METADATA_KEY}' metadata {len(texts)} times, expected once; export it again"
        )
    return Metadata.from_text(texts[0] if texts else None, source)


def set_graph_metadata(model: Any, metadata: Metadata) -> None:
    """Replace all metadata of an onnx.ModelProto."""
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=metadata.to_text())


def sealed(content: bytes) -> bytes:
    """Put the digest of a file's content into its metadata; see `check_digest`."""
    blank, _ = _blanked(content)
    return _DIGEST.sub(lambda found: found[1] + digest(blank).encode(), blank, count=1)


def check_digest(content: bytes, source: str | Path) -> bool:
    """Return whether a file has a digest of its content; files of earlier versions, and edited graphs, have none.

    Raises ArtifactError that names `source` if the content has another digest: a bit in it has changed.
    """
    blank, expected = _blanked(content)
    if expected == _NO_DIGEST:
        return False
    if digest(blank) != expected:
        raise ArtifactError(
            f"{source} has the SHA-256 {digest(blank)[:12]}..., expected {expected[:12]}... by its own metadata: it "
            "changed after it was written; copy or export it again, or save your edit of a graph with "
            "enet_deploy.artifacts.save_graph"
        )
    return True


def _blanked(content: bytes) -> tuple[bytes, str]:
    """Return the content with zeros in place of its digest, and the digest; zeros if it has none."""
    found = _DIGEST.search(content)
    if found is None:
        return content, _NO_DIGEST
    return content[: found.start(2)] + _NO_DIGEST.encode() + content[found.end(2) :], found[2].decode()


def with_digest(value: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the digest of its content in it, for `without_digest`."""
    return {**value, _CONTENT: _content_digest(value)}


def without_digest(value: dict[str, Any]) -> dict[str, Any]:
    """Return the object that `with_digest` was given; one of an earlier version, without a digest, as it is.

    Raises ValueError if its content has another digest: it changed after it was written.
    """
    content = {key: each for key, each in value.items() if key != _CONTENT}
    found = _content_digest(content)
    if value.get(_CONTENT, found) != found:
        raise ValueError(
            f"content of the SHA-256 {found[:12]}..., expected {value[_CONTENT]!r:.13}... by its own {_CONTENT}: it "
            "changed after it was written; remove that line if you edited it yourself"
        )
    return content


def _content_digest(value: dict[str, Any]) -> str:
    return digest(json.dumps(value, sort_keys=True).encode())


def save_graph(model: Any, path: str | Path) -> None:
    """Write an onnx.ModelProto with our metadata as a file with a digest.

    Raises ArtifactError if it has no such metadata, if a weight in it is NaN, infinite or in another file, or if the
    file cannot be written.
    """
    require_finite(model, path)
    if any(map(_is_external, _tensors(model))):
        raise ArtifactError(
            f"{path} has weights in other files, expected all of them in it, as its digest is of one file; load them "
            "with onnx.load"
        )
    set_graph_metadata(model, graph_metadata(model, path))
    with atomic_write(path) as temporary:
        temporary.write_bytes(sealed(model.SerializeToString()))


def check_graph(content: bytes, source: str | Path) -> bool:
    """Raise ArtifactError that names `source` if a graph was changed, or if a weight of it is NaN or infinite.

    The weights of a graph with a digest were checked when it was written. Those of others are checked here, if the
    package onnx is installed.

    Returns whether it has a digest. All that it computes is in the content then; others may name further files.
    """
    if check_digest(content, source):
        return True
    with contextlib.suppress(ModuleNotFoundError):
        import onnx
        from google.protobuf.message import DecodeError

        with contextlib.suppress(DecodeError):  # the backend says what is wrong with it
            require_finite(onnx.load_model_from_string(content), source)
    return False


def require_finite(model: Any, source: str | Path) -> None:
    """Raise ArtifactError that names `source` if a weight in an onnx.ModelProto is NaN or infinite."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    for tensor in _tensors(model):
        if tensor.data_type not in floats or _is_external(tensor):
            continue
        try:
            finite = np.isfinite(numpy_helper.to_array(tensor)).all()
        except ValueError:  # fewer bytes than its shape: the backend says so
            continue
        if not finite:
            raise ArtifactError(
                f"{source} has values in {tensor.name!r:.80} that are NaN or infinite, expected finite ones; export it "
                "again from weights that enet-train wrote"
            )


def _tensors(model: Any) -> Iterator[Any]:
    """The weights of an onnx.ModelProto."""
    yield from model.graph.initializer
    yield from (a.t for node in model.graph.node for a in node.attribute if a.HasField("t"))


def _is_external(tensor: Any) -> bool:
    return bool(tensor.data_location == tensor.EXTERNAL)


def _triple(values: Any) -> tuple[float, float, float]:
    b, g, r = values
    return float(b), float(g), float(r)
