"""Curves: a picture, and event files that TensorBoard reads, also of a run that was interrupted."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_runs import assert_refused, enet_train, interrupted_in_the_second_epoch, rows

from enet_deploy.classes import CAMVID
from enet_deploy.commands import train as train_cli
from enet_deploy.training.evaluation import Example
from enet_deploy.training.logs import PICTURE_SIDE, example_picture
from enet_deploy.training.trainer import Trainer


def events(folder: Path) -> Any:
    """What TensorBoard shows of the event files in a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return accumulator.EventAccumulator(str(folder)).Reload()


def steps_of(found: Any, tag: str) -> list[int]:
    return [event.step for event in found.Scalars(tag)]


@pytest.mark.slow
def test_event_files_continue_after_an_interruption(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    board = tmp_path / "new" / "board"
    options = ("--tensorboard", str(board))
    with interrupted_in_the_second_epoch(monkeypatch):
        assert enet_train(scenes, tmp_path / "run", *options, epochs=3, eval_every=1) == 130
    assert steps_of(events(board), "train/loss") == [1]
    assert enet_train(scenes, tmp_path / "run", "--resume", *options, epochs=3, eval_every=1) == 0
    found = events(board)
    for column, tag in (
        ("loss", "train/loss"),
        ("lr", "train/lr"),
        ("val_miou", "val/miou"),
        ("val_iou_sky", "val_iou/sky"),
    ):
        assert steps_of(found, tag) == [1, 2, 3]
        values = [float(row[column]) for row in rows(tmp_path / "run")]
        assert [event.value for event in found.Scalars(tag)] == pytest.approx(values)
    names = found.Tags()["images"]
    assert len(names) == 4 and [event.step for event in found.Images(names[0])] == [1, 2, 3]


@pytest.mark.slow
def test_event_files_of_what_was_undone_are_hidden_and_a_new_folder_has_the_whole_curve(
    finished: Path, scenes: Path, tmp_path: Path
) -> None:
    """As after a power cut: the events of an epoch are there, and the checkpoint is of the one before."""
    pytest.importorskip("tensorboard")
    from enet_deploy.training.logs import TensorBoard

    board = TensorBoard(tmp_path, CAMVID, 0)
    board.write([{"epoch": epoch, "loss": 1.0} for epoch in (1, 2, 3)], list)
    board.close()
    board = TensorBoard(tmp_path, CAMVID, 1)
    board.write([{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 5.0}], list)
    board.close()
    assert [(event.step, event.value) for event in events(tmp_path).Scalars("train/loss")] == [(1, 1.0), (2, 5.0)]
    (tmp_path / "checkpoint.pt").write_bytes((finished / "checkpoint.pt").read_bytes())
    options = ["--out", str(tmp_path), "--device", "cpu", "--resume", "--tensorboard", str(tmp_path / "other")]
    assert train_cli.main([str(scenes), *options]) == 0
    assert steps_of(events(tmp_path / "other"), "train/loss") == [1, 2]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_epochs_of_a_failed_write_are_written_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that is full for a while: the thread that writes ends with the error."""
    pytest.importorskip("tensorboard")
    from tensorboard.summary.writer.record_writer import RecordWriter

    from enet_deploy.training.logs import TensorBoard

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    board, history = TensorBoard(tmp_path, CAMVID, 0), [{"epoch": epoch, "loss": float(epoch)} for epoch in (1, 2, 3)]
    board.write(history[:1], list)
    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "write", full)
        with pytest.raises(OSError, match="No space left"):
            board.write(history[:2], list)
    board.write(history, list)
    board.close()
    assert [(event.step, event.value) for event in events(tmp_path).Scalars("train/loss")] == [(1, 1), (2, 2), (3, 3)]


def test_without_the_package_tensorboard_is_refused_before_the_training(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # importing it fails
    code = enet_train(scenes, tmp_path / "run", "--tensorboard", str(tmp_path / "board"))
    assert_refused(code, capsys, "'tensorboard'", "enet-deploy[tensorboard]")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--curve", "--tensorboard"])
def test_reports_that_cannot_be_written_are_refused_before_the_training(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    pytest.importorskip("tensorboard" if option == "--tensorboard" else "matplotlib")
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "curve.png"
    assert_refused(enet_train(scenes, tmp_path / "run", option, str(path)), capsys, str(path))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_training_goes_on_if_a_curve_cannot_be_written(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("matplotlib")
    curve, score = tmp_path / "curve.png", Trainer._val_scores

    def spoiled(trainer: Trainer) -> dict[str, float]:
        curve.unlink()  # drawn at the start
        curve.mkdir()
        return score(trainer)

    monkeypatch.setattr(Trainer, "_val_scores", spoiled)
    assert enet_train(scenes, tmp_path / "run", "--curve", str(curve), epochs=1) == 0
    assert str(curve) in caplog.text and (tmp_path / "run/last.safetensors").exists()


@pytest.mark.slow
def test_learning_curve_is_drawn(finished: Path, scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "checkpoint.pt").write_bytes((finished / "checkpoint.pt").read_bytes())
    curve = tmp_path / "curve.svg"
    assert train_cli.main([str(scenes), "--out", str(tmp_path), "--resume", "--curve", str(curve)]) == 0
    assert "mIoU" in curve.read_text()


def test_example_pictures_are_small_and_show_image_truth_and_prediction() -> None:
    labels = np.full((960, 1280), 3, np.uint8)
    example = Example("a.png", np.full((360, 480, 3), 77, np.uint8), labels, np.full_like(labels, 5))
    picture = example_picture(example, CAMVID)
    assert picture.shape[1] == 3 * PICTURE_SIDE and picture.dtype == np.uint8
    row = picture[-10, PICTURE_SIDE // 2 :: PICTURE_SIDE]
    assert row.tolist() == [[77] * 3, list(CAMVID.overlay_colors[3][::-1]), list(CAMVID.overlay_colors[5][::-1])]
