"""Confidences: how honest they are, and the temperature that makes them so."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from helpers import SIZE

from enet_deploy import BUNDLED_WEIGHTS, ArtifactError, InputError, open_runner
from enet_deploy.calibration import cli
from enet_deploy.calibration.temperature import fit_confidence, fit_temperature
from enet_deploy.data import open_data
from enet_deploy.export.cli import main as export
from enet_deploy.export.record import BUNDLED_RECORD, Record
from enet_deploy.export.to_onnx import build_graph
from enet_deploy.reliability import Reliability


def test_error_of_honest_and_of_proud_confidences() -> None:
    confidence = np.repeat(np.array([51, 204], np.uint8), 1000)  # 0.2 and 0.8
    honest = np.concatenate([np.arange(1000) < 200, np.arange(1000) < 800])
    reliability = Reliability()
    reliability.update(confidence, honest)
    assert reliability.error == pytest.approx(0)
    assert reliability.bins() == [
        {"confidence": pytest.approx(0.2), "accuracy": 0.2, "pixels": 1000},
        {"confidence": pytest.approx(0.8), "accuracy": 0.8, "pixels": 1000},
    ]
    reliability.update(np.full(2000, 255, np.uint8), np.arange(2000) < 1000)  # certain, and wrong every other time
    assert reliability.error == pytest.approx(0.25)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_found_again(temperature: float) -> None:
    chance = np.random.default_rng(1)
    honest = chance.normal(size=(40_000, 5)) * 2
    chosen = (honest + chance.gumbel(size=honest.shape)).argmax(axis=1)  # a draw from the softmax
    found = fit_temperature((honest * temperature).astype(np.float32), chosen.astype(np.uint8))
    assert found == pytest.approx(temperature, rel=0.05)


@pytest.mark.slow
def test_temperature_goes_from_images_into_the_graph(scenes: Path, exported: Path, tmp_path: Path) -> None:
    found = fit_confidence(onnx.load(exported), open_data(scenes, "val"))
    assert (found["fitted_on"], found["measured_on"]) == (2, 2)
    assert 0.05 < found["temperature"] < 20 and found["error_after"] != found["error_before"]
    record = Record.read(BUNDLED_RECORD)
    path = tmp_path / "record.json"
    Record(**{**record.__dict__, "confidence": found}).write(path)
    assert Record.read(path).confidence == found
    size = "x".join(map(str, SIZE))
    arguments = ["--confidence", "--logits", "--size", size, "--out", str(tmp_path)]
    assert export([*arguments, "--calibration", str(path)]) == 0
    with open_runner(tmp_path / "enet-fp32.onnx") as runner, open_runner(BUNDLED_WEIGHTS, size=SIZE) as plain:
        image = open_data(scenes, "val")[0][0]
        logits = runner.logits(runner.preprocess(image))[0] / found["temperature"]
        expected = 255 / np.exp(logits - logits.max(axis=0)).sum(axis=0)
        assert np.abs(runner.segment_with_confidence(image)[1] - expected).max() <= 0.51
        assert not np.array_equal(plain.segment_with_confidence(image)[1], runner.segment_with_confidence(image)[1])


def test_no_temperature_is_fitted_on_images_that_were_trained_on(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluator = SimpleNamespace(measure="miou", count=2, trained_on=1)
    assert cli._fit_confidence(onnx.load(exported), evaluator) == {}  # type: ignore[arg-type]
    assert "trained on" in capsys.readouterr().out


def test_record_without_a_temperature_has_the_text_of_earlier_versions() -> None:
    record = Record(**{**Record.read(BUNDLED_RECORD).__dict__, "confidence": {}})
    assert "confidence" not in record.to_text()


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), "hot", None])
def test_impossible_temperature_is_refused(temperature: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="temperature"):
        build_graph(BUNDLED_WEIGHTS, size=SIZE, confidence=temperature if temperature is not None else 1e9)
    path = tmp_path / "record.json"
    Record(**{**Record.read(BUNDLED_RECORD).__dict__, "confidence": {"temperature": "hot"}}).write(path)
    with pytest.raises(ArtifactError, match="hot"):
        Record.read(path)
