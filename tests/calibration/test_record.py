"""The calibration record: its file, the weights it belongs to, and TensorRT's cache made from it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from int8_graphs import labels_of, make_record, tensors_of

from enet_deploy.artifacts import BUNDLED_WEIGHTS, without_digest
from enet_deploy.errors import ArtifactError, InputError
from enet_deploy.export.int8 import (
    output_tensors,
    quantize,
)
from enet_deploy.export.record import BUNDLED_RECORD, BUNDLED_RECORDS, Record, bundled_record, record_for
from enet_deploy.files import sha256


def test_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = make_record({"a": 1.0, "b/Max": 12.7})
    record.write(tmp_path / "new" / "record.json")
    again = Record.read(tmp_path / "new" / "record.json")
    assert again == record and again.sha256 == record.sha256 == sha256(tmp_path / "new" / "record.json")
    assert '\n    "b/Max": 12.7\n' in record.to_text()  # a line per tensor, fit for a diff
    assert dataclasses.replace(record, amax={"a": 1.5, "b/Max": 12.7}).sha256 != record.sha256


def fields_of(record: Record) -> dict[str, Any]:
    """The JSON of a record that somebody edits: without its digest, which would be enough to refuse it."""
    return without_digest(json.loads(record.to_text()))


@pytest.mark.parametrize(
    "change",
    [
        {"amax": {"a": 0}},
        {"amax": {"a": -1.0}},
        {"amax": {"a": float("nan")}},
        {"amax": {"a": float("inf")}},
        {"amax": {"a": "1.0"}},
        pytest.param({"amax": {"a": 10**400}}, id="no float holds it"),
        {"amax": [1.0]},
        {"float_layers": {"fullconv": 3}},
        {"unknown": 1},
        # Found by this test: each was read, and a traceback when it was used
        {"images": {}},
        {"weights_sha256": 5},
        {"accuracy": None},
    ],
    ids=str,
)
def test_damaged_record(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**fields_of(make_record({"a": 1.0})), **change}))
    with pytest.raises(ArtifactError, match=r"record\.json .*enet-calibrate"):
        Record.read(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"schema": 2}', b"\xff\xfe"])
def test_file_that_is_no_record(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"record\.json"):
        Record.read(tmp_path / "record.json")


def test_record_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**fields_of(make_record({"a": 1.0})), "schema": 1}))
    with pytest.raises(ArtifactError, match=r"record\.json has schema 1, expected 2"):
        Record.read(path)


def test_missing_record_and_record_of_other_weights(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.json .*enet-calibrate"):
        record_for("", tmp_path / "none.json")
    make_record({"a": 1.0}).write(tmp_path / "record.json")
    with pytest.raises(ArtifactError, match=r"record\.json .*ffffffffffff.*--calibration"):
        record_for("f" * 64, tmp_path / "record.json")
    with pytest.raises(ArtifactError, match=r"enet-camvid\.json .*ffffffffffff"):
        record_for("f" * 64)


def test_each_bundled_network_has_its_record() -> None:
    for path in BUNDLED_RECORDS:
        weights_sha256 = sha256(path.with_suffix(".safetensors"))
        assert bundled_record(weights_sha256) == record_for(weights_sha256) == Record.read(path)
    assert bundled_record("f" * 64) is None


def test_bundled_record_is_of_the_bundled_network(exported: Path, tmp_path: Path) -> None:
    record, model = record_for(sha256(BUNDLED_WEIGHTS)), onnx.load(exported)
    assert list(record.amax) == tensors_of(model) and list(record.outputs) == output_tensors(model.graph)
    assert BUNDLED_RECORD.read_text(encoding="utf-8") == record.to_text()
    assert len(np.unique(labels_of(quantize(model, record), tmp_path))) > 1


def test_calibration_cache_of_tensorrt_10() -> None:
    assert make_record({"normalised": 127.0, "initial.act/Max": 2.54}).to_trt_cache("10.3.0") == (
        "TRT-100300-EntropyCalibration2\nnormalised: 3f800000\ninitial.act/Max: 3ca3d70a\n"  # 1.0 and 0.02
    )
    assert make_record({}).to_trt_cache("10.16.1") == "TRT-101601-EntropyCalibration2\n"


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("11.0.0", "'11.0.0', expected 10.x"),
        ("abc", "'abc', expected MAJOR.MINOR.PATCH"),
        ("10.3", "'10.3', expected MAJOR.MINOR.PATCH"),
        ("", "'', expected MAJOR.MINOR.PATCH"),
    ],
)
def test_version_without_a_calibration_cache(version: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_record({"a": 1.0}).to_trt_cache(version)
