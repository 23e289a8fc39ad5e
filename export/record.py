"""The calibration record: for each tensor the largest magnitude that int8 represents, and how it was measured."""

from __future__ import annotations

import dataclasses
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enet_deploy.artifacts import BUNDLED_WEIGHTS, check_size, check_temperature, with_digest, without_digest
from enet_deploy.bundled import NAMES, weights_file
from enet_deploy.errors import ArtifactError, InputError
from enet_deploy.files import atomic_write, digest, parse_json
from enet_deploy.frame_range import FrameRange

SCHEMA = 2
METHODS = ("minmax", "percentile", "entropy", "mse")  # explained in `calibration.ranges.find_ranges`
BUNDLED_RECORD = BUNDLED_WEIGHTS.with_suffix(".json")
BUNDLED_RECORDS = tuple(weights_file(name).with_suffix(".json") for name in NAMES)


@dataclass(frozen=True)
class Record:
    """The result of `enet-calibrate`. Its JSON has a line per tensor, so that people can read and compare it.

    Attributes:
        weights_sha256: hash of the weights that it belongs to.
        method: one of `METHODS`.
        images: {"count", "split", "sha256"} of the sampled files; the hash is over names and contents. "frames" holds
            the fields of `FrameRange`; earlier records lack it.
        preprocessing: {"size", "mean", "std"} that were applied to the images.
        accuracy: {"measure": "miou" or "agreement", "images", "trained_on": how many of these the weights were trained
            on or None, "fp32", "int8", "agreement": share of fp32's labels, "ort": {"int8", "agreement"} of the layout
            "ort", "tried": {method: value}, "chosen_by": what the values in "tried" are, "miou" or "agreement"}.
            Earlier records lack "trained_on" and "chosen_by".
        float_layers: layer, or pattern of layers -> the reason why it is not quantised.
        amax: tensor -> magnitude that becomes 127; behind a ReLU in the layout "ort" it becomes 255.
        float_tensors: the tensors of `amax` that only float layers take.
        outputs: tensor -> magnitude of outputs of layers, by percentile on images["of_outputs"] images. Only the layout
            "ort" quantises these (see `int8`).
        versions: versions of the tools.
        confidence: what `calibration.temperature.fit_confidence` found; {} without labels and in earlier records.
    """

    weights_sha256: str
    method: str
    images: dict[str, Any]
    preprocessing: dict[str, Any]
    accuracy: dict[str, Any]
    float_layers: dict[str, str]
    amax: dict[str, float]
    float_tensors: list[str]
    outputs: dict[str, float]
    versions: dict[str, str]
    confidence: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_text(self) -> str:
        """Return the JSON text, with a digest of the content in it: a changed magnitude would give other labels."""
        fields = dataclasses.asdict(self)
        if not self.confidence:  # so that the text of an earlier record, and its hash, stay
            del fields["confidence"]
        return json.dumps(with_digest({"schema": SCHEMA, **fields}), indent=2, allow_nan=False) + "\n"

    @property
    def ranges(self) -> dict[str, float]:
        """The magnitudes of all tensors that any layout and any choice of layers may quantise."""
        return {**self.amax, **self.outputs}

    @property
    def sha256(self) -> str:
        """The hash of the JSON text, which graphs and engines carry."""
        return digest(self.to_text().encode())

    def write(self, path: str | Path) -> None:
        """Write the JSON file atomically. Raises ArtifactError if that fails."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.to_text(), encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Record:
        """Read and check a JSON file. Raises ArtifactError if it is missing or is no record."""
        again = "make it again: enet-calibrate DATA --weights WEIGHTS --out RECORD"
        try:
            value = without_digest(parse_json(Path(path).read_text(encoding="utf-8")))
            schema = value.pop("schema")
            if schema != SCHEMA:
                raise ArtifactError(f"{path} has schema {schema}, expected {SCHEMA}: another version made it; {again}")
            record = cls(**value)
            for tensor, amax in (*record.amax.items(), *record.outputs.items()):
                if type(amax) not in (int, float) or not 0 < amax < 1e6:  # 127 steps of fp16 reach 8e6
                    raise ValueError(f"amax {amax!r} of {tensor}, expected a number above 0 and below 1e6")
                if not (tensor.isascii() and tensor.isprintable()):  # a line of TensorRT's cache
                    raise ValueError(f"tensor {tensor!r}, expected a name in printable ASCII")
            check_temperature(record.confidence.get("temperature", 1.0))
            if not isinstance(record.weights_sha256, str):
                raise ValueError("weights_sha256 has to be text")
            if record.method not in METHODS:
                raise ValueError(f"method {record.method!r:.40}, expected one of {', '.join(METHODS)}")
            check_size(tuple(record.preprocessing["size"]))
            if not (isinstance(record.images["count"], int) and isinstance(record.accuracy, dict)):
                raise ValueError("images has to say their count, accuracy has to be an object")
            if "frames" in record.images:
                FrameRange(**record.images["frames"])
            if not set(record.float_tensors) <= record.amax.keys():
                raise ValueError("float_tensors has to name tensors of amax")
            if not all(isinstance(why, str) for why in record.float_layers.values()):
                raise ValueError("float_layers has to say why, in words, of each layer")
        except FileNotFoundError:
            raise ArtifactError(f"{path} does not exist; expected a calibration record: {again}") from None
        except (OSError, AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} is no calibration record: {error!r}; {again}") from None
        return record

    def require_weights(self, weights_sha256: str, source: str | Path) -> None:
        """Raise ArtifactError that names `source` unless the record is of these weights: others have other ranges."""
        if self.weights_sha256 != weights_sha256:
            raise ArtifactError(
                f"{source} was calibrated with other weights (SHA-256 {self.weights_sha256[:12]}..., expected "
                f"{weights_sha256[:12]}...); make one for these: enet-calibrate DATA --weights WEIGHTS --out RECORD, "
                "and name it with --calibration RECORD"
            )

    def to_trt_cache(self, version: str) -> str:
        """Return the record as a calibration cache of TensorRT 10, for trtexec --calib and builders that accept one.

        After a header with TensorRT's version there is a line per tensor: its scale amax / 127 as a big-endian float32
        in hex. Tensors of float layers are left out, so TensorRT has no range to quantise them. Which of the others it
        quantises is its own choice: the accuracy in the record is that of the Q/DQ graph.

        Raises InputError as `cache_header`.
        """
        lines = [cache_header(version)]
        taken = {tensor: amax for tensor, amax in self.amax.items() if tensor not in self.float_tensors}
        lines += [f"{tensor}: {struct.pack('>f', amax / 127).hex()}" for tensor, amax in taken.items()]
        return "\n".join(lines) + "\n"


def cache_header(version: str) -> str:
    """Return the first line of a calibration cache. TensorRT ignores a cache of another version.

    Args:
        version: the builder's version, such as "10.3.0".

    Raises InputError for a version without calibration caches: since TensorRT 11, Q/DQ is the only way.
    """
    try:
        major, minor, patch = (int(part) for part in version.split(".")[:3])
    except ValueError:
        raise InputError(f"TensorRT version '{version}', expected MAJOR.MINOR.PATCH such as 10.3.0") from None
    if major != 10:
        raise InputError(
            f"TensorRT version '{version}', expected 10.x: 11 takes no calibration cache, and older versions are not "
            "supported; use the graph of enet-export --int8"
        )
    return f"TRT-{major * 10000 + minor * 100 + patch}-EntropyCalibration2"


def record_for(weights_sha256: str, path: str | Path | None = None) -> Record:
    """Read the record at `path`, or the bundled one of these weights. Raises ArtifactError if it is of others."""
    record = bundled_record(weights_sha256) if path is None else None
    if record is None:
        path = BUNDLED_RECORD if path is None else path
        record = Record.read(path)
        record.require_weights(weights_sha256, path)
    return record


def bundled_record(weights_sha256: str) -> Record | None:
    """Return the bundled record of these weights; None if there is none."""
    return next((each for each in map(Record.read, BUNDLED_RECORDS) if each.weights_sha256 == weights_sha256), None)
