"""Fixtures of the tests of int8: the bundled network in float and in int8, and the ranges for it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from helpers import SIZE
from int8_graphs import make_record, tensors_of

from enet_deploy.calibration import ranges
from enet_deploy.data import find_images
from enet_deploy.export.int8 import (
    output_tensors,
    quantize,
)
from enet_deploy.export.record import Record


@pytest.fixture(scope="session")
def model(exported: Path) -> onnx.ModelProto:
    """The bundled network in float."""
    return onnx.load(exported)


@pytest.fixture(scope="session")
def images(scenes: Path) -> list[Path]:
    return ranges.sample(find_images(scenes, "train"), 4)


@pytest.fixture(scope="session")
def record(model: onnx.ModelProto, images: list[Path]) -> Record:
    """Ranges for every tensor of the bundled network, by the method that takes no time."""
    amax, outputs = (
        ranges.find_ranges(model, tensors, images, SIZE, ["minmax"])["minmax"]
        for tensors in (tensors_of(model), output_tensors(model.graph))
    )
    return make_record(amax, outputs)


@pytest.fixture(scope="session")
def quantized(model: onnx.ModelProto, record: Record) -> onnx.ModelProto:
    return quantize(model, record)
