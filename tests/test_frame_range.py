"""Frames unlike those that int8 was calibrated on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SIZE

from enet_deploy import ArtifactError, InputError, open_runner
from enet_deploy.artifacts import Metadata
from enet_deploy.calibration.ranges import frame_range
from enet_deploy.classes import CAMVID
from enet_deploy.commands.segment import main
from enet_deploy.data import find_images
from enet_deploy.data.corruptions import brightness, contrast, noise
from enet_deploy.frame_range import FrameRange, RangeMonitor
from enet_deploy.images import UInt8Array, encode, read_image


def black(image: UInt8Array) -> UInt8Array:
    return noise(np.zeros_like(image), 3)


def dark(image: UInt8Array) -> UInt8Array:
    return noise(brightness(image, 0.1), 8)


def test_frames_far_from_the_calibration_are_found(scenes: Path) -> None:
    known = FrameRange(**frame_range(find_images(scenes, "train"), SIZE))
    for path in find_images(scenes, "val"):
        image = read_image(path)
        assert not known.flaw(image, SIZE) and not known.flaw(np.repeat(image, 2, axis=1), SIZE)
        assert not known.flaw(brightness(image, 0.5), SIZE)
        for change in (black, dark, lambda image: contrast(image, 0.05), lambda image: noise(image // 2, 64)):
            assert known.flaw(change(image), SIZE), change


@pytest.mark.slow
def test_enet_segment_tells_of_them_for_int8_alone(
    exported: Path, quantized_graph: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = read_image(find_images(scenes, "val")[0])
    (tmp_path / "black.png").write_bytes(encode("black.png", black(image)))
    told = {}
    for precision, graph in (("fp32", exported), ("int8", quantized_graph)):
        arguments = [str(graph), str(tmp_path / "black.png"), "--labels", str(tmp_path / precision)]
        assert main(arguments) == 0
        told[precision] = capsys.readouterr().err
    assert "calibrated" not in told["fp32"]
    assert "1 unlike those that int8 was calibrated on (contrast " in told["int8"]


@pytest.mark.slow
def test_the_monitor_changes_no_labels(quantized_graph: Path, scenes: Path) -> None:
    image = dark(read_image(find_images(scenes, "val")[0]))
    with open_runner(quantized_graph) as runner:
        assert runner.spec.calibrated_on is not None
        monitor = RangeMonitor(runner.spec)
        assert np.array_equal(monitor.watched(runner.segment)(image), runner.segment(image))
        assert monitor.outside == 1
        with pytest.raises(InputError):
            monitor.watched(runner.segment)(image.astype(np.float32))  # type: ignore[arg-type]
        assert monitor.outside == 1


@pytest.mark.parametrize(
    "frames", [5, [], {"contrast": 1.0}, {"contrast": "1", "noise": 1.0}, {"contrast": math.nan, "noise": 1.0}]
)
def test_damaged_range_is_refused(frames: Any) -> None:
    with pytest.raises(InputError):
        Metadata(CAMVID, (1, 1, 1), (1, 1, 1), (8, 8), "int8", details={"calibration": {"frames": frames}})
    text = Metadata(CAMVID, (1, 1, 1), (1, 1, 1), (8, 8), "int8").to_text()
    with pytest.raises(ArtifactError):
        Metadata.from_text(text.replace('"details": {}', '"details": {"calibration": {"frames": 5}}'), "file")
