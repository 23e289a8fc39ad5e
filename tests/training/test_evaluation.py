"""What is evaluated and saved: averaged weights, their scores, and the sweep over prior corrections."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_runs import CPU, enet_train, rows, splits

from enet_deploy.training import evaluation
from enet_deploy.training.prior import ALPHAS
from enet_deploy.training.recipe import Recipe
from enet_deploy.training.trainer import Trainer
from enet_deploy.weights import load_weights


def test_evaluation_leaves_cudnn_on(scenes: Path, tmp_path: Path) -> None:
    seen = []
    trainer = Trainer(*splits(scenes), tmp_path, Recipe(size=(48, 64), crop=(32, 32), batch=4), CPU)
    cudnn = torch.backends.cudnn
    trainer.step.net.register_forward_hook(lambda *_: seen.append((cudnn.enabled, cudnn.benchmark)))
    before, cudnn.benchmark = cudnn.benchmark, True
    try:
        evaluation.confusion(trainer.step.net, trainer.val, trainer.metadata)
        assert {*seen} == {(True, False)} and cudnn.benchmark
    finally:
        cudnn.benchmark = before


@pytest.mark.slow
def test_run_with_an_untouched_val_tries_other_corrections(
    scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "ALPHAS", ALPHAS)
    with caplog.at_level("INFO"):
        assert enet_train(scenes, tmp_path / "a", epochs=1, prior_correction=0.3) == 0
        (line,) = [text for text in caplog.messages if text.startswith("val mIoU of the last weights by --prior-corr")]
        found = dict(pair.split(": ") for pair in line.split("correction: ")[1].split("  "))
        assert [*found] == ["0", "0.25", "0.3", "0.5", "0.75", "1"]
        assert float(found["0.3"]) == pytest.approx(float(rows(tmp_path / "a")[-1]["val_miou"]), abs=1e-4)
        caplog.clear()
        assert enet_train(scenes, tmp_path / "b", "--with-val", epochs=1) == 0
    assert not [text for text in caplog.messages if "--prior-correction" in text]
    (done,) = [text for text in caplog.messages if text.startswith("done: ")]
    assert "last.safetensors" in done and "best.safetensors" not in done  # val did not choose it


def test_examples_are_val_images_with_labels_and_predictions(finished: Path, scenes: Path) -> None:
    net, metadata = load_weights(finished / "last.safetensors")
    _, val, _ = splits(scenes)
    found = evaluation.examples(net, val, metadata, count=3)
    assert [example.name for example in found] == ["scene1000.png", "scene1001.png", "scene1003.png"]
    assert {(example.frame.shape, example.labels.shape, example.predicted.shape) for example in found} == {
        ((48, 64, 3), (96, 128), (96, 128))
    }
    assert (found[1].labels == val[1][1]).all()
