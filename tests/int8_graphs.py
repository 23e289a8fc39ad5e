"""What the tests of int8 build on: records of ranges, and questions to a quantized graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from helpers import SIZE
from onnx import numpy_helper

from enet_deploy import open_runner
from enet_deploy.artifacts import BUNDLED_WEIGHTS
from enet_deploy.calibration.scoring import Evaluator, Score
from enet_deploy.data.scenes import street_scene
from enet_deploy.export.int8 import (
    FLOAT_LAYERS,
    activations,
    layers,
    output_tensors,
)
from enet_deploy.export.record import Record
from enet_deploy.files import sha256
from enet_deploy.images import UInt8Array

PAIR = ("QuantizeLinear", "DequantizeLinear")


def tensors_of(model: onnx.ModelProto) -> list[str]:
    return list(activations(model.graph, layers(model.graph).values()))


def make_record(amax: dict[str, float], outputs: dict[str, float] | None = None) -> Record:
    return Record(
        weights_sha256=sha256(BUNDLED_WEIGHTS),
        method="minmax",
        images={"count": 4, "split": "train", "sha256": "0" * 64},
        preprocessing={"size": list(SIZE), "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]},
        accuracy={"measure": "miou", "images": 4, "fp32": 0.5, "int8": 0.25, "tried": {"minmax": 0.25}},
        float_layers=FLOAT_LAYERS,
        amax=amax,
        float_tensors=[],
        outputs=outputs or {},
        versions={"onnx": onnx.__version__},
    )


def small_record(model: onnx.ModelProto) -> Record:
    return make_record(dict.fromkeys(tensors_of(model), 4.0), dict.fromkeys(output_tensors(model.graph), 4.0))


def arrays(model: onnx.ModelProto) -> dict[str, npt.NDArray[np.generic]]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def nodes_of(model: onnx.ModelProto, *kinds: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in kinds]


def in_int8(model: onnx.ModelProto) -> set[str]:
    """Layers whose weights are int8."""
    made = {node.output[0]: node for node in nodes_of(model, "DequantizeLinear")}
    return {name for name, node in layers(model.graph).items() if node.input[1] in made}


def labels_of(model: onnx.ModelProto, folder: Path, backend: str = "ort") -> UInt8Array:
    frames = np.stack([street_scene(1000 + i, SIZE)[0] for i in range(2)])
    onnx.save_model(model, folder / "graph.onnx")
    with open_runner(folder / "graph.onnx", backend) as runner:
        return runner.infer(frames)


class Costs(Evaluator):
    """An evaluator for which each layer in int8 costs what the test says, in points. It remembers the titles."""

    measure, count, float_value, sha256, trained_on = "miou", 4, 0.8, "these images", 0

    def __init__(self, **points: float) -> None:
        self.points = {name.replace("_", "."): value for name, value in points.items()}
        self.titles: list[str] = []

    def score(self, model: onnx.ModelProto, title: str) -> Score:
        self.titles.append(title)
        cost = sum(self.points.get(name, 0.0) for name in in_int8(model))
        return Score(round(self.float_value - cost / 100, 9), 40.0 - cost, 0.9)

    def drop(self, score: Score) -> float:
        return round(super().drop(score), 9)


LAYERS = ["initial.conv", "stage1.0.branch.0", "stage1.0.branch.2", "stage1.1", "fullconv"]
POINTS = {"stage1_1": 2.0, "fullconv": 9.0, "stage1_0_branch_0": 0.5}


def interrupt_at(layer: str) -> Callable[[Sequence[str], str], Iterator[str]]:
    def progress(names: Sequence[str], _title: str) -> Iterator[str]:
        for name in names:
            if name == layer:
                raise KeyboardInterrupt
            yield name

    return progress
