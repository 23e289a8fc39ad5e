"""The page of a training run: what it says while the run lasts and after it, and that names cannot break out of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import pytest
from helpers import write_scenes
from test_train import ROOM, arguments, enet_train, interrupted_in_the_second_epoch

from enet_deploy.commands import train as train_cli
from enet_deploy.data import open_data
from enet_deploy.training.trainer import Trainer

pytest.importorskip("matplotlib")
curve_page = pytest.importorskip("enet_deploy.training.curve_page")  # of jinja2

REFRESH = '<meta http-equiv="refresh"'
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose class and file names are HTML."""
    root = write_scenes(tmp_path_factory.mktemp("hostile"), {"train": 4, "val": 2})
    for split in ("train", "val"):
        for image, labels in open_data(root, split).pairs:
            cv2.imwrite(str(labels), cv2.imread(str(labels), cv2.IMREAD_UNCHANGED) % 3)
            for path in (image, labels):
                path.rename(path.with_name(f"<b>{path.name}"))
    (root / "classes.json").write_text(json.dumps(ROOM | {"names": [EVIL, "glossy wall", "$door$"]}))
    return root


def text_of(page: Path) -> str:
    """What is read on it."""
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page.read_text(encoding="utf-8"), flags=re.S).split())


def test_page_while_a_run_lasts_and_after_it(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "new" / "page.html"
    options = ("--curve", str(page))
    with interrupted_in_the_second_epoch(monkeypatch):
        assert enet_train(scenes, tmp_path / "run", *options, epochs=3, eval_every=1) == 130
    assert REFRESH not in page.read_text()
    assert "Ended early, after epoch 1 of 3; the same command with --resume continues after epoch 1" in text_of(page)
    seen = []
    watched = curve_page.write_page

    def watch(path: Path, trainer: Trainer, examples: Sequence[curve_page.Example]) -> None:
        watched(path, trainer, examples)
        seen.append(REFRESH in page.read_text() and re.search(r"Epoch \d of 3, [\d.]+ s to go", text_of(page)))

    monkeypatch.setattr(curve_page, "write_page", watch)
    assert enet_train(scenes, tmp_path / "run", "--resume", *options, epochs=3, eval_every=1) == 0
    html, text = page.read_text(), text_of(page)
    assert all(seen[:-1]) and len(seen) == 3
    assert REFRESH not in html and "Finished: 3 epochs" in text and list(page.parent.iterdir()) == [page]
    assert "8 images: train" in text and "4 images, which were not trained on" in text
    assert html.count('class="panels"') == 4 and "prediction" in text  # four val images of three panels
    assert html.count('src="data:') == 2 + 4 * 3 and not re.search(r'(src|href|srcset)="(?!data:)', html)
    # the whole curve, also of what was before the interruption
    lines = re.findall(r'<polyline points="([^"]*)"', html)
    assert len(lines) == 11 and max(len(line.split()) for line in lines) == 3


def test_names_are_text_on_the_page(hostile: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert enet_train(hostile, tmp_path / "run", "--curve", str(page), "--with-val", epochs=1) == 0
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html and "<b>" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html and "&lt;b&gt;scene" in html
    assert "Val was trained on" in text_of(page) and "2 images, which were trained on" in text_of(page)


def test_checkpoint_of_before_there_were_classes_in_the_history(scenes: Path, tmp_path: Path) -> None:
    import torch

    assert enet_train(scenes, tmp_path / "run", epochs=1) == 0
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    state["history"] = [{k: v for k, v in row.items() if not k.startswith("val_iou_")} for row in state["history"]]
    del state["history"][0]["val_seconds"], state["recipe"]["patience"]
    torch.save(state, tmp_path / "run" / "checkpoint.pt")
    page = tmp_path / "page.html"
    assert enet_train(scenes, tmp_path / "run", "--resume", "--curve", str(page), epochs=1) == 0
    assert "evaluated by a version that kept none" in text_of(page) and "sky" in text_of(page)


def test_training_goes_on_where_the_page_cannot_be_written(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    page = tmp_path / "page.html"
    monkeypatch.setattr(Trainer, "examples", lambda _: page.unlink() or page.mkdir() or [])  # after the first writing
    assert enet_train(scenes, tmp_path / "run", "--curve", str(page), epochs=1) == 0
    assert "no learning curve this time: cannot write" in caplog.text and (tmp_path / "run/last.safetensors").exists()


def test_time_that_is_left() -> None:
    recipe: Any = type("", (), {"epochs": 7, "eval_every": 3})
    history = [
        {"epoch": 1, "seconds": 10.0},
        {"epoch": 2, "seconds": 10.0},
        {"epoch": 3, "seconds": 10.0, "val_seconds": 5},
    ]
    assert curve_page._seconds_left(history, recipe) == 4 * 10 + 2 * 5  # evaluations after epochs 6 and 7
    assert [curve_page._duration(seconds) for seconds in (0.25, 59, 200, 7500)] == [
        "0.25 s", "59 s", "3 min 20 s", "2 h 5 min",
    ]  # fmt: skip


def test_page_that_cannot_be_is_refused_before_the_training(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for name in ("file/page.html", "."):
        assert train_cli.main([*arguments(scenes, tmp_path / "run"), "--curve", str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()
