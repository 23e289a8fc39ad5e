"""What int8 costs, the sensitivity of each layer, and the layers that a budget leaves in float."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from helpers import SIZE, least_graph
from int8_graphs import LAYERS, POINTS, Costs, in_int8, interrupt_at, labels_of, small_record

from enet_deploy import open_runner
from enet_deploy.calibration.scoring import Evaluator, Score
from enet_deploy.calibration.sensitivity import (
    LayerSensitivity,
    keep_budget,
    measure_sensitivity,
    write_plot,
    write_table,
)
from enet_deploy.classes import CAMVID
from enet_deploy.data import open_data
from enet_deploy.data.scenes import street_scene
from enet_deploy.errors import ArtifactError, ParityError
from enet_deploy.export.int8 import (
    FLOAT_LAYERS,
    layers,
    quantize,
)
from enet_deploy.export.record import Record
from enet_deploy.metrics import ConfusionMatrix
from enet_deploy.trained_on import in_words


def test_evaluator_by_labels(model: onnx.ModelProto, quantized: onnx.ModelProto, scenes: Path, exported: Path) -> None:
    pairs = []
    for image, labels in open_data(scenes, "val"):
        labels = cv2.resize(labels, (160, 120), interpolation=cv2.INTER_NEAREST)  # of another size than the graph
        labels[:, :20] = CAMVID.ignore_id
        pairs.append((cv2.resize(image, (160, 120)), labels))
    confusion = ConfusionMatrix(CAMVID)
    with open_runner(exported) as runner:
        for image, labels in pairs:
            confusion.update(labels, runner.segment(image))
    evaluator = Evaluator(model, pairs, CAMVID)
    assert (evaluator.measure, evaluator.count, evaluator.float_value) == ("miou", 4, confusion.scores().miou)
    assert evaluator.score(model, "again") == Score(evaluator.float_value, float("inf"), 1.0)
    score = evaluator.score(quantized, "int8")
    assert 0 < score.value != evaluator.float_value and 0 < score.snr < 60
    assert evaluator.drop(score) == pytest.approx(100 * (evaluator.float_value - score.value))
    corrected = [(image, np.zeros_like(labels)) for image, labels in pairs]
    assert Evaluator(model, corrected, CAMVID).sha256 != evaluator.sha256 == Evaluator(model, pairs, CAMVID).sha256


def test_evaluator_measures_agreement_without_labels(
    model: onnx.ModelProto, quantized: onnx.ModelProto, tmp_path: Path
) -> None:
    evaluator = Evaluator(model, [(street_scene(1000 + i, SIZE)[0], None) for i in range(2)], CAMVID)
    assert (evaluator.measure, evaluator.float_value) == ("agreement", 1.0)
    expected = np.mean(labels_of(model, tmp_path) == labels_of(quantized, tmp_path))
    assert evaluator.score(quantized, "int8").value == pytest.approx(expected, abs=1e-3)


def test_sensitivity_of_each_layer_alone(tmp_path: Path) -> None:
    model = least_graph()
    assert list(layers(model.graph)) == LAYERS
    sensitivities = measure_sensitivity(model, small_record(model).ranges, Costs(**POINTS), tmp_path / "state.json")
    assert sensitivities[:3] == [  # worst first, and those that stay float by default too
        LayerSensitivity("fullconv", 9.0, 31.0),
        LayerSensitivity("stage1.1", 2.0, 38.0),
        LayerSensitivity("stage1.0.branch.0", 0.5, 39.5),
    ]
    assert sorted(each.layer for each in sensitivities) == sorted(LAYERS)


def test_study_resumes_after_an_interruption(tmp_path: Path) -> None:
    model = least_graph()
    record = small_record(model)
    undisturbed = measure_sensitivity(model, record.ranges, Costs(**POINTS), tmp_path / "undisturbed.json")
    first, second = Costs(**POINTS), Costs(**POINTS)
    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(model, record.ranges, first, tmp_path / "state.json", interrupt_at(LAYERS[2]))
    assert measure_sensitivity(model, record.ranges, second, tmp_path / "state.json") == undisturbed
    assert (first.titles, second.titles) == (LAYERS[:2], LAYERS[2:])

    other = dataclasses.replace(record, amax={tensor: 2 * amax for tensor, amax in record.amax.items()})
    third = Costs(**POINTS)
    measure_sensitivity(model, other.ranges, third, tmp_path / "state.json")
    assert third.titles == LAYERS  # another study is begun anew


def test_study_of_other_images_starts_again(tmp_path: Path) -> None:
    model, other = least_graph(), Costs(fullconv=1.0)
    measure_sensitivity(model, small_record(model).ranges, Costs(**POINTS), tmp_path / "state.json")
    other.sha256 = "other images"
    sensitivities = measure_sensitivity(model, small_record(model).ranges, other, tmp_path / "state.json")
    assert other.titles == LAYERS and sensitivities[0] == LayerSensitivity("fullconv", 1.0, 39.0)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff"])
def test_damaged_state_of_a_study(tmp_path: Path, content: bytes) -> None:
    model = least_graph()
    (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"state\.json"):
        measure_sensitivity(model, small_record(model).ranges, Costs(), tmp_path / "state.json")
    assert (tmp_path / "state.json").read_bytes() == content


def kept_within(points: float, evaluator: Costs, folder: Path) -> tuple[Record, Score]:
    model = least_graph()
    record = small_record(model)
    score = evaluator.score(quantize(model, record), "int8")
    float_layers, score = keep_budget(
        model,
        record.ranges,
        record.float_layers,
        score,
        evaluator,
        lambda: measure_sensitivity(model, record.ranges, evaluator, folder / "state.json"),
        points,
    )
    return dataclasses.replace(record, float_layers=float_layers), score


def test_worst_layers_are_left_in_float_until_the_budget_holds(tmp_path: Path) -> None:
    record, score = kept_within(0.6, Costs(**POINTS, stage1_0_branch_2=0.05), tmp_path)
    assert score.value == pytest.approx(0.8 - 0.0055)
    left = {name: why for name, why in record.float_layers.items() if name not in FLOAT_LAYERS}
    assert left == {
        "stage1.1": "alone in int8 it costs 2.00 points of miou (logits at 38.0 dB); "
        "with it in float int8 costs 0.55 instead of 2.55"
    }
    assert in_int8(quantize(least_graph(), record)) == {"stage1.0.branch.0", "stage1.0.branch.2"}

    record, score = kept_within(0.1, Costs(**POINTS, stage1_0_branch_2=0.05), tmp_path)
    assert list(record.float_layers)[len(FLOAT_LAYERS) :] == ["stage1.1", "stage1.0.branch.0"]


def test_budget_that_holds_costs_no_study(tmp_path: Path) -> None:
    evaluator = Costs(**POINTS)
    record, score = kept_within(2.5, evaluator, tmp_path)
    assert (record, evaluator.drop(score), evaluator.titles) == (small_record(least_graph()), 2.5, ["int8"])


def test_budget_that_never_holds(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"1\.00 points of miou, expected at most 0\.3"):
        kept_within(0.3, Costs(stage1_0_branch_0=1.0, stage1_0_branch_2=1.0, stage1_1=1.0), tmp_path)


SENSITIVITIES = [LayerSensitivity("fullconv", 1.25, 12.34), LayerSensitivity("stage1.1", -0.01, 200.0)]


def test_table_of_sensitivities(tmp_path: Path) -> None:
    write_table(tmp_path / "table.md", SENSITIVITIES, ["stage1.1"], Costs(), "90cc36fce9e86ca")
    title, text, scored, table = (tmp_path / "table.md").read_text().split("\n\n")
    assert title == "# Int8: each layer alone" and "90cc36fce9e8," in text and "4 images" in text and "miou" in text
    assert scored == in_words(0, 4)
    assert table == (
        "| layer, alone in int8 | miou, points | logits, dB | in the record |\n|---|---|---|---|\n"
        "| fullconv | -1.250 | 12.3 | float |\n| stage1.1 | +0.010 | 200.0 | int8 |\n"
    )


@pytest.mark.parametrize(("name", "start"), [("plot.png", b"\x89PNG"), ("plot.svg", b"<?xml")])
def test_plot_of_sensitivities(tmp_path: Path, name: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    write_plot(tmp_path / name, SENSITIVITIES, ["stage1.1", "fullconv"], ["stage1.1"], "miou")
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [file.name for file in tmp_path.iterdir()] == [name]
