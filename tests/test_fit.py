"""Images of another shape than the network's frame: stretched, in a letterbox, or cropped; labels mapped back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from helpers import SIZE, write_graph
from training_runs import enet_train

from enet_deploy import InputError, open_runner
from enet_deploy.artifacts import Metadata, graph_metadata, save_graph, set_graph_metadata
from enet_deploy.commands import evaluate, segment
from enet_deploy.data.scenes import street_scene
from enet_deploy.fit import FITS, GREY, Fit, fit_image, fit_labels, unfit_labels, windows
from enet_deploy.images import resize_image, resize_labels
from enet_deploy.weights import load_weights

WIDE = (60, 200)  # an image of more than the frame's aspect, to be shown at SIZE


@pytest.mark.parametrize(
    ("image", "fit", "used", "filled"),
    [
        ((60, 200), "stretch", (0, 0, 60, 200), (0, 0, 96, 128)),
        ((60, 200), "letterbox", (0, 0, 60, 200), (29, 0, 38, 128)),  # scale 0.64
        ((60, 200), "crop", (0, 60, 60, 80), (0, 0, 96, 128)),  # scale 1.6
        ((192, 100), "letterbox", (0, 0, 192, 100), (0, 39, 96, 50)),
        ((192, 100), "crop", (58, 0, 75, 100), (0, 0, 96, 128)),
        ((1, 5000), "letterbox", (0, 0, 1, 5000), (47, 0, 1, 128)),
        ((5000, 1), "crop", (2499, 0, 1, 1), (0, 0, 96, 128)),
    ],
)
def test_windows(image: tuple[int, int], fit: Fit, used: tuple[int, ...], filled: tuple[int, ...]) -> None:
    assert windows(image, SIZE, fit) == (used, filled)


@pytest.mark.parametrize("fit", FITS)
def test_an_image_of_the_frames_aspect_is_resized_whatever_the_fit(fit: Fit) -> None:
    image, labels = street_scene(1, (48, 64))
    assert (fit_image(image, SIZE, fit) == resize_image(image, SIZE)).all()
    assert (unfit_labels(labels, SIZE, fit, 255) == resize_labels(labels, SIZE)).all()
    assert fit_image(image, (48, 64), fit) is image or np.shares_memory(fit_image(image, (48, 64), fit), image)


def test_border_and_what_is_left_out() -> None:
    image, labels = street_scene(1, WIDE)
    boxed, truth = fit_image(image, SIZE, "letterbox"), fit_labels(labels, SIZE, "letterbox", 255)
    assert (boxed[:29] == GREY).all() and (boxed[67:] == GREY).all() and boxed[29:67].std() > 10
    assert (truth[:29] == 255).all() and (truth[67:] == 255).all() and (truth[29:67] < 12).all()
    poisoned = np.full(SIZE, 9, np.uint8)
    poisoned[29:67] = 3
    assert (unfit_labels(poisoned, WIDE, "letterbox", 255) == 3).all()  # no label of the border comes back
    back = unfit_labels(np.full(SIZE, 3, np.uint8), WIDE, "crop", 255)
    assert (back[:, 60:140] == 3).all() and (back[:, :60] == 255).all() and (back[:, 140:] == 255).all()


@pytest.mark.parametrize("fit", FITS)
def test_true_labels_come_back_to_their_place(fit: Fit) -> None:
    """Through the frame and back, labels move by at most the rounding: edges change, areas do not."""
    _, labels = street_scene(3, (180, 320))
    back = unfit_labels(fit_labels(labels, SIZE, fit, 255), (180, 320), fit, 255)
    inside = back != 255
    assert inside.mean() > (0.7 if fit == "crop" else 0.999)
    assert (back == labels)[inside].mean() > 0.93
    for shift in (8, -8):  # a displacement is seen
        assert (np.roll(back, shift, 1) == labels)[inside].mean() < (back == labels)[inside].mean() - 0.02


@pytest.fixture
def boxed(exported: Path, tmp_path: Path) -> Path:
    """The export, with a letterbox in its metadata."""
    model = onnx.load(exported)
    set_graph_metadata(model, dataclasses.replace(graph_metadata(model, exported), fit="letterbox"))
    save_graph(model, tmp_path / "boxed.onnx")
    return tmp_path / "boxed.onnx"


def test_runner_fits_as_the_metadata_says_unless_told_otherwise(boxed: Path, exported: Path) -> None:
    image, _ = street_scene(5, WIDE)
    with open_runner(boxed, "ort") as runner, open_runner(exported, "ort", fit="letterbox") as told:
        assert runner.spec.fit == told.spec.fit == "letterbox"
        labels = runner.segment(image)
        assert (labels == told.segment(image)).all()
        by_hand = runner.infer(fit_image(image, SIZE, "letterbox")[None])[0][29:67]
        assert (labels == resize_labels(by_hand, WIDE)).all()
    with open_runner(boxed, "ort", fit="crop") as runner:
        labels = runner.segment(image)
        assert (labels[:, :60] == 11).all() and (labels[:, 60:140] < 11).all()
    with pytest.raises(InputError, match="'squeeze'"):
        open_runner(boxed, "ort", fit="squeeze")  # type: ignore[arg-type]


def test_metadata_without_a_fit_is_stretch(tmp_path: Path) -> None:
    model = onnx.load(write_graph(tmp_path / "a.onnx"))
    metadata = graph_metadata(model, "a")
    assert (
        Metadata.from_text(
            metadata.to_text().replace(', "fit": "stretch"', "").replace('"fit": "stretch", ', ""), "a"
        ).fit
        == "stretch"
    )
    assert Metadata.from_text(dataclasses.replace(metadata, fit="crop").to_text(), "a").fit == "crop"


def test_commands_take_a_fit(
    exported: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image, _ = street_scene(5, WIDE)
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("a.png", image)
    assert segment.main([str(exported), "a.png", "--backend", "ort", "--fit", "crop", "--labels", "ids.png"]) == 0
    assert (cv2.imread("ids.png", cv2.IMREAD_UNCHANGED)[:, :60] == 11).all()
    scores: list[Any] = []
    for fit in ("stretch", "crop"):  # of scenes of the frame's size: the same
        assert evaluate.main([str(exported), "--backend", "ort", "--data", str(scenes), "--fit", fit]) == 0
        title, *table = capsys.readouterr().out.splitlines()
        assert title.endswith(f"fit {fit}")
        scores.append(table)
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_training_keeps_its_fit(scenes: Path, tmp_path: Path) -> None:
    assert enet_train(scenes, tmp_path, "--size", "96x64", "--crop", "64x64", "--fit", "letterbox", epochs=1) == 0
    assert load_weights(tmp_path / "best.safetensors")[1].fit == "letterbox"
