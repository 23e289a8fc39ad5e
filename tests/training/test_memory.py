"""Steps that run out of memory name the batch that fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import CPU, assert_refused, enet_train, splits

from enet_deploy.commands import train as train_cli
from enet_deploy.training.objective import Objective
from enet_deploy.training.recipe import Recipe
from enet_deploy.training.trainer import Trainer


@pytest.fixture
def memory_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bool], None]:
    """Called with a number, lets training steps run out of memory whose batch is larger; on a GPU, or on the CPU."""
    forward = Objective.forward

    def limit(largest: int, gpu: bool) -> None:
        def limited(self: Any, x: torch.Tensor, *others: Any) -> Any:
            found = forward(self, x, *others)
            if len(x) > largest and gpu:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            if len(x) > largest:
                torch.empty(1 << 60, dtype=torch.uint8)
            return found

        monkeypatch.setattr(Objective, "forward", limited)

    return limit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpu", "largest", "advice"),
    [
        pytest.param(True, 3, "--batch 2 does\n", id="GPU"),
        pytest.param(False, 4, "--batch 4 does\n", id="CPU", marks=pytest.mark.slow),
        pytest.param(False, 0, "smaller --batch", id="nothing fits"),
    ],
)
def test_out_of_memory_names_the_batch_that_fits(
    scenes: Path,
    tmp_path: Path,
    memory_for: Callable[[int, bool], None],
    capsys: pytest.CaptureFixture[str],
    gpu: bool,
    largest: int,
    advice: str,
) -> None:
    memory_for(largest, gpu)
    code = enet_train(scenes, tmp_path, batch=8)
    assert_refused(code, capsys, "batch 8 of 32x32", "cpu", advice)
    if largest:
        assert enet_train(scenes, tmp_path, batch=largest - largest % 2, epochs=1) == 0  # the advice is good


def test_largest_step_is_of_the_crop_with_most_pixels(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(size=(48, 64), crop=(48, 32), final_crop=(32, 64), final_from=0.5, batch=4)
    trainer, seen = Trainer(*splits(scenes), tmp_path, recipe, CPU), []
    monkeypatch.setattr(trainer.step, "largest", lambda images, labels: seen.append(images.shape))
    trainer._largest_step(2)
    assert seen == [(2, 32, 64, 3)]


@pytest.mark.slow
def test_out_of_memory_in_a_later_epoch(
    finished: Path, scenes: Path, tmp_path: Path, memory_for: Callable[[int, bool], None], capsys: Any
) -> None:
    state = torch.load(finished / "checkpoint.pt", weights_only=True)
    state["epoch"], state["recipe"]["epochs"] = 2, 3  # as if it had been begun on a larger GPU
    torch.save(state, tmp_path / "checkpoint.pt")
    memory_for(2, True)
    code = train_cli.main([str(scenes), "--out", str(tmp_path), "--device", "cpu", "--resume"])
    assert_refused(code, capsys, "--batch 2 does in another --out", "--init", "best.safetensors")
