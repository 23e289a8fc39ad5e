"""Arrays that are not what a public function says it takes: refused by all of them, by one check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SIZE

from enet_deploy import CAMVID, InputError, Runner, colorize, open_runner
from enet_deploy.data.scenes import street_scene
from enet_deploy.images import overlay, resize_image, resize_labels
from enet_deploy.metrics import ConfusionMatrix

IMAGE, LABELS = street_scene(3, SIZE)

# What is not uint8, made of what is
OTHERS: dict[str, Callable[[Any], Any]] = {
    "float16": lambda a: a.astype(np.float16),
    "float32 from 0 to 1": lambda a: a.astype(np.float32) / 255,
    "bool": lambda a: a > 1,
    "int8": lambda a: a.astype(np.int8),
    "int64": lambda a: a.astype(np.int64),
    "uint16": lambda a: a.astype(np.uint16) * 257,
    "big-endian uint16": lambda a: a.astype(">u2"),
    "object": lambda a: a.astype(object),
    "bytes of one": lambda a: np.frombuffer(a.tobytes(), "V1").reshape(a.shape),
    "masked": lambda a: np.ma.masked_array(a, a > 1),
    "list": lambda a: a.tolist(),
    "memoryview": memoryview,
    "nothing": lambda a: None,
    "no pixel": lambda a: a[..., :0, :0],
    "a side more": lambda a: a[..., None],
}


@pytest.fixture(scope="module")
def runner(exported: Path) -> Iterator[Runner]:
    with open_runner(exported, threads=1) as opened:
        yield opened


def doors(runner: Runner) -> dict[str, tuple[Callable[[Any], object], Any]]:
    """Public functions of arrays, each with an array that it takes."""

    def counted(truth: Any, prediction: Any) -> None:
        ConfusionMatrix(CAMVID).update(truth, prediction)

    return {
        "segment": (runner.segment, IMAGE),
        "preprocess": (runner.preprocess, IMAGE),
        "infer": (runner.infer, IMAGE[None]),
        "infer, out": (lambda out: runner.infer(IMAGE[None], out), np.zeros((1, *SIZE), np.uint8)),
        "logits": (runner.logits, IMAGE[None]),
        "stream": (lambda frames: next(runner.stream([frames])), IMAGE[None]),
        "profile": (lambda frames: runner.profile(frames, 1), IMAGE[None]),
        "postprocess": (lambda labels: runner.postprocess(labels, (50, 60)), LABELS),
        "resize_image": (lambda image: resize_image(image, (8, 8)), IMAGE),
        "resize_labels": (lambda labels: resize_labels(labels, (8, 8)), LABELS),
        "colorize": (lambda labels: colorize(labels, CAMVID), LABELS),
        "overlay": (lambda image: overlay(image, LABELS, CAMVID), IMAGE),
        "overlay, labels": (lambda labels: overlay(IMAGE, labels, CAMVID), LABELS),
        "truth": (lambda truth: counted(truth, LABELS), LABELS),
        "prediction": (lambda prediction: counted(LABELS, prediction), LABELS),
    }


@pytest.mark.parametrize("kind", OTHERS)
def test_other_arrays_are_refused_at_every_door(runner: Runner, kind: str) -> None:
    for name, (call, array) in doors(runner).items():
        if (name, kind) != ("infer, out", "nothing"):  # which is no `out`
            with pytest.raises(InputError):
                call(OTHERS[kind](array))
                pytest.fail(f"{name} takes {kind}")


def test_right_arrays_are_taken_at_every_door(runner: Runner) -> None:
    class Other(np.ndarray[Any, Any]):
        pass

    for call, array in doors(runner).values():
        call(array)
        call(array.copy().view(Other))


@pytest.mark.parametrize(
    "size", [(0, 5), (-1, 5), (1.5, 2), (True, 3), (10**9, 10**9), (2**31, 1), "ab", None, (1,), (1, 2, 3)]
)
def test_sizes_that_are_none_are_refused(runner: Runner, size: Any) -> None:
    for call in (lambda: runner.postprocess(LABELS, size), lambda: resize_image(IMAGE, size)):
        with pytest.raises(InputError, match=r"size .*expected two whole numbers"):
            call()
    assert runner.postprocess(LABELS, (np.int64(5), 6)).shape == (5, 6)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", None, True])
def test_counts_that_are_none_are_refused(runner: Runner, value: Any) -> None:
    for call in (lambda: runner.stream([], depth=value), lambda: runner.profile(IMAGE[None], value)):
        with pytest.raises(InputError, match=f"{value!r}, expected a whole number"):
            call()


def test_out_in_the_memory_of_the_frames_is_refused(runner: Runner) -> None:
    frames = IMAGE[None].copy()
    with pytest.raises(InputError, match="shares memory"):
        runner.infer(frames, out=frames.reshape(-1)[: LABELS.size].reshape(1, *SIZE))
    np.testing.assert_array_equal(frames[0], IMAGE)
