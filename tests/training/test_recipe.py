"""Recipes check themselves, and need no torch."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
from helpers import ROOT

from enet_deploy.errors import InputError
from enet_deploy.training.recipe import PRESETS, Recipe, shown


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", (96, 100)), ("crop", (0, 8)), ("final_crop", (8, 9)), ("final_from", 2.0), ("final_from", -0.1),
        ("epochs", 0), ("minutes", -1.0), ("batch", 0), ("lr", -1.0), ("lr", math.inf), ("weight_decay", -1.0),
        ("optimizer", "sgd"), ("warmup", -1), ("power", -1.0), ("class_weight_c", 1.0), ("class_weight_c", math.inf),
        ("prior_correction", -1.0), ("aux", -1.0), ("lovasz", math.nan), ("lovasz_from", math.nan),
        ("lovasz_from", 1.5), ("distill", -1.0), ("width", 0), ("slopes", "pixel"), ("scale", (2.0, 0.5)),
        ("scale", (0.0, 1.0)), ("color", 1.0), ("tint", -0.1), ("noise", -1.0), ("ema", 2.0), ("eval_every", 0),
        ("patience", -1), ("seed", -1), ("seed", 2**32),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        Recipe(**{field: value})
    assert (shown(value) if "size" in field or "crop" in field else str(value)) in str(caught.value)
    assert field in str(caught.value) or isinstance(value, tuple)


def test_report_preset_is_the_student_report_s_recipe() -> None:
    assert PRESETS["report"] == Recipe(
        size=(512, 512), crop=(512, 512), final_crop=(512, 512), epochs=100, batch=5, lr=5e-4, weight_decay=2e-4,
        optimizer="adam", warmup=0, power=0.0, class_weight_c=1.02, prior_correction=0.0, aux=0.0, lovasz=0.0,
        scale=(1.0, 1.0), flip=False, color=0.0, tint=0.0, noise=0.0, ema=0.0, slopes="channel",
    )  # fmt: skip


def test_recipe_and_schedule_import_no_torch() -> None:
    code = "import sys; from enet_deploy.training import recipe, schedule; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
