"""Runs resume to the same bits after any interruption; checkpoints that are damaged or of another run are refused."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from helpers import ROOT, write_scenes
from training_runs import (
    FILES,
    STEPS,
    TIMES,
    arguments,
    assert_refused,
    assert_same_tensors,
    enet_train,
    interrupted_in_the_second_epoch,
    rows,
    splits,
    tensors,
)

from enet_deploy.classes import CAMVID
from enet_deploy.commands import train as train_cli
from enet_deploy.errors import ArtifactError
from enet_deploy.training.checkpoint import Checkpoint, RunIdentity, fitting_state
from enet_deploy.training.step import TrainingStep
from enet_deploy.training.trainer import Trainer
from enet_deploy.weights import load_weights, save_weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        pytest.param(TrainingStep, "__call__", 1, id="first epoch", marks=pytest.mark.slow),
        pytest.param(TrainingStep, "__call__", STEPS + 1, id="second epoch"),
        pytest.param(Trainer, "_evaluate", 0, id="evaluation", marks=pytest.mark.slow),
        pytest.param(Path, "write_bytes", 3, id="writing a checkpoint", marks=pytest.mark.slow),
    ],
)
def test_interrupted_run_resumes_to_the_same_bits(
    finished: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int
) -> None:
    original = getattr(owner, name)
    calls = iter(range(call + 1))

    def interrupted(*args: Any) -> Any:
        if next(calls) < call:
            return original(*args)
        if owner is Path:
            original(args[0], args[1][:1000])
        raise KeyboardInterrupt

    monkeypatch.setattr("enet_deploy.training.trainer.CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        assert enet_train(scenes, tmp_path) == 130
    assert not (tmp_path / "last.safetensors").exists()
    assert {path.name for path in tmp_path.iterdir()} <= set(FILES)  # no half-written file either

    assert enet_train(scenes, tmp_path, "--resume") == 0
    for file in ("last.safetensors", "best.safetensors"):
        assert_same_tensors(tensors(tmp_path / file), tensors(finished / file))
    for row, expected in zip(rows(tmp_path), rows(finished), strict=True):
        assert row | TIMES == expected | TIMES


# Trains in child processes of one that has imported torch: first undisturbed, then killed at each of the moments.
# An event is a step, a file half written, and a file about to get its name or just named. A moment is the number of
# events before it, and may be an expression of the `count` of all events.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from enet_deploy.commands import train as train_cli
from enet_deploy.training import evaluation
from enet_deploy.training.step import TrainingStep

evaluation.ALPHAS = ()

torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # imports for seconds; now, so that no child has to

def train_until(last, out):
    events = iter(range(last))
    def event():
        if next(events, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
    def wrap(owner, name, before, after):
        original = getattr(owner, name)
        def wrapped(*arguments, **options):
            before(*arguments)
            event()
            result = original(*arguments, **options)
            if after:
                event()
            return result
        setattr(owner, name, wrapped)
    write = Path.write_bytes
    wrap(TrainingStep, "__call__", lambda *_: None, False)
    wrap(Path, "write_bytes", lambda path, content: write(path, content[: len(content) // 2]), False)
    wrap(Path, "write_text", lambda path, text: write(path, text.encode()[: len(text) // 2]), False)
    wrap(Path, "replace", lambda *_: None, True)
    code = train_cli.main([*sys.argv[3:], "--out", f"{out}-{last}"])
    print(last - len(list(events)), file=open(f"{out}.count", "w"), flush=True)
    os._exit(code)

def in_child(last):
    if os.fork() == 0:
        train_until(last, sys.argv[2])
    return os.waitstatus_to_exitcode(os.wait()[1])

assert in_child(1000) == 0
count = int(Path(f"{sys.argv[2]}.count").read_text())
moments = [eval(moment) for moment in sys.argv[1].split(",")]
for moment in moments:
    assert in_child(moment) == -signal.SIGKILL
print(*moments)
"""


def killed_at(moments: str, data: Path, out: Path) -> list[int]:
    """Train in the folder OUT-1000, and in OUT-N for each moment N, killed there. Returns the moments as numbers."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, moments, str(out), *arguments(data, out, eval_every=1)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [*map(int, done.stdout.split())]


def assert_whole(out: Path) -> None:
    """Every file with a final name is whole; names that start with a dot are temporary."""
    for path in out.glob("[!.]*"):
        if path.suffix == ".safetensors":
            load_weights(path)
        elif path.name == "checkpoint.pt":
            Checkpoint.read(out)
        else:
            assert path.name == "log.csv" and path.read_text().endswith("\n")
            assert all(None not in row.values() for row in rows(out))


@pytest.mark.slow
def test_run_killed_at_any_moment_resumes_to_the_same_bits(scenes: Path, tmp_path: Path) -> None:
    # Half of them while the last files are renamed, when only the end of the run is left to do
    moments = killed_at("4, count // 2, count - 8, count - 5", scenes, tmp_path / "run")
    whole = tmp_path / "run-1000"
    assert len(moments) == 4
    for moment in moments:
        out = tmp_path / f"run-{moment}"
        assert_whole(out)
        begun = (out / "checkpoint.pt").exists()
        assert enet_train(scenes, out, *(["--resume"] if begun else []), eval_every=1) == 0
        for name in ("last.safetensors", "best.safetensors"):
            assert_same_tensors(tensors(out / name), tensors(whole / name))
        assert [row | TIMES for row in rows(out)] == [row | TIMES for row in rows(whole)]


@pytest.mark.slow
def test_terminated_run_says_how_to_go_on(scenes: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "enet_deploy.commands.train", *arguments(scenes, tmp_path, epochs=1000)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "log.csv").exists():
            assert process.poll() is None
            time.sleep(0.005)
        process.terminate()
        _, error = process.communicate()
    assert process.returncode == 143
    assert re.fullmatch(
        r"enet-train: interrupted; the same command with --resume continues after epoch \d+", error.splitlines()[-1]
    )
    assert {path.name for path in tmp_path.iterdir()} <= set(FILES)


@pytest.mark.slow
def test_run_from_other_weights_resumes_to_the_same_bits(
    finished: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, metadata = load_weights(finished / "last.safetensors")
    start = tmp_path / "start.safetensors"  # its mean, not the data set's, is the colour outside the images
    save_weights(start, net, dataclasses.replace(metadata, mean=(10.0, 200.0, 90.0)))
    assert enet_train(scenes, tmp_path / "whole", "--init", str(start), epochs=3, eval_every=3) == 0
    with interrupted_in_the_second_epoch(monkeypatch):
        assert enet_train(scenes, tmp_path / "broken", "--init", str(start), epochs=3, eval_every=3) == 130
    # the next epoch is not evaluated
    assert enet_train(scenes, tmp_path / "broken", "--resume", epochs=3, eval_every=3) == 0
    whole, broken = (tensors(tmp_path / run / "last.safetensors") for run in ("whole", "broken"))
    assert_same_tensors(whole, broken)


LOSSES = ["--aux", "0.4", "--lovasz", "1", "--lovasz-from", "0", "--noise", "8"]


@pytest.mark.slow
def test_interrupted_run_with_every_loss_resumes_to_the_same_bits(
    finished: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = ["--teacher", str(finished / "last.safetensors")]
    assert enet_train(scenes, tmp_path / "whole", *LOSSES, *teacher) == 0
    with interrupted_in_the_second_epoch(monkeypatch):
        assert enet_train(scenes, tmp_path / "broken", *LOSSES, *teacher) == 130
    assert "the same command with --resume continues" in capsys.readouterr().err
    code = enet_train(scenes, tmp_path / "broken", "--resume")
    assert_refused(code, capsys, "checkpoint.pt", "--teacher", "None")
    assert enet_train(scenes, tmp_path / "broken", "--resume", *teacher) == 0
    assert_same_tensors(*(tensors(tmp_path / run / "last.safetensors") for run in ("whole", "broken")))


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["optimizer", "identity", "net"])
def test_checkpoint_that_lacks_a_part(
    finished: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    state = torch.load(finished / "checkpoint.pt", weights_only=True)
    del state[lost]
    torch.save(state, tmp_path / "checkpoint.pt")
    assert_refused(enet_train(scenes, tmp_path, "--resume"), capsys, "checkpoint.pt")


def first(state: dict[str, Any]) -> dict[str, Any]:
    return state["optimizer"]["state"][0]


# What a field of a finished run's checkpoint is changed to
CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "rate is text": lambda s: s["recipe"].update(lr="x"),
    "epochs are a fraction": lambda s: s["recipe"].update(epochs=2.5),
    "flip is a number": lambda s: s["recipe"].update(flip=1),
    "no batch": lambda s: s["recipe"].update(batch=0),
    "half a size": lambda s: s["recipe"].update(size=[64]),
    "size of a list": lambda s: s["recipe"].update(size=[48, 64]),
    "three sides": lambda s: s["recipe"].update(crop=(32, 32, 32)),
    "enormous width": lambda s: s["recipe"].update(width=10**7),
    "no average in the recipe": lambda s: s["recipe"].update(ema=0.0),
    "no recipe": lambda s: s.update(recipe=[]),
    "other metadata": lambda s: s.update(metadata=7),
    "metadata of another size": lambda s: s.update(
        metadata=s["metadata"].replace('"size": [48, 64]', '"size": [48, 72]')
    ),
    "void is text": lambda s: s["identity"].update(void="11"),
    "processes are text": lambda s: s["identity"].update(processes="1"),
    "images are a number": lambda s: s["identity"].update(images=8),
    "epoch is text": lambda s: s.update(epoch="1"),
    "epoch is true": lambda s: s.update(epoch=True),
    "epoch below 0": lambda s: s.update(epoch=-1),
    "another epoch": lambda s: s.update(epoch=1),
    "step is a fraction": lambda s: s.update(step=4.0),
    "another step": lambda s: s.update(step=5),
    "best is not finite": lambda s: s.update(best=float("nan")),
    "best is text": lambda s: s.update(best="1"),
    "history is text": lambda s: s.update(history="ab"),
    "history of numbers": lambda s: s.update(history=[1, 2]),
    "history without a loss": lambda s: s["history"][0].pop("loss"),
    "history of text": lambda s: s["history"][0].update(loss="1"),
    "history of lists": lambda s: s["history"][0].update(val_miou=[1]),
    "weights of classes": lambda s: s.update(class_weights=torch.ones(3)),
    "half weights": lambda s: s.update(class_weights=s["class_weights"].half()),
    "net is a list": lambda s: s.update(net=[]),
    "net lacks a tensor": lambda s: s["net"].popitem(),
    "net has a number": lambda s: s["net"].update({next(iter(s["net"])): 1.0}),
    "shape in net": lambda s: s["net"].update({next(iter(s["net"])): torch.ones(3)}),
    "sparse tensor": lambda s: s["net"].update({next(iter(s["net"])): next(iter(s["net"].values())).to_sparse()}),
    "not finite": lambda s: next(iter(s["net"].values())).fill_(float("inf")),
    "average not finite": lambda s: next(iter(s["ema"].values())).fill_(float("nan")),
    "average is none": lambda s: s.update(ema=None),
    "optimizer is a list": lambda s: s.update(optimizer=[]),
    "optimizer has no state": lambda s: s["optimizer"].update(state={}),
    "optimizer of others": lambda s: s["optimizer"]["state"].update({9999: first(s)}),
    "short moment": lambda s: first(s).update(exp_avg=torch.zeros(1)),
    "moment of doubles": lambda s: first(s).update(exp_avg=first(s)["exp_avg"].double()),
    "negative square": lambda s: first(s)["exp_avg_sq"].fill_(-1),
    "moment not finite": lambda s: first(s)["exp_avg"].fill_(float("inf")),
    "step of many": lambda s: first(s).update(step=torch.zeros(5)),
    "step is an integer": lambda s: first(s).update(step=4),
    "other step": lambda s: first(s).update(step=torch.tensor(5.0)),
    "more in the state": lambda s: first(s).update(max_exp_avg_sq=torch.zeros(1)),
    "a field more": lambda s: s.update(more=1),
}  # fmt: skip


@pytest.fixture(scope="module")
def sound(finished: Path) -> dict[str, Any]:
    """A finished run's checkpoint. Do not change it."""
    state: dict[str, Any] = torch.load(finished / "checkpoint.pt", weights_only=True)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_checkpoint_with_a_wrong_field(
    sound: dict[str, Any],
    finished: Path,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Any,
) -> None:
    state = copy.deepcopy(sound)
    change(state)
    shutil.copy(finished / "checkpoint.pt", tmp_path)
    monkeypatch.setattr(torch, "load", lambda *_, **__: state)  # as saving and loading it takes most of the time
    assert_refused(train_cli.main([str(scenes), "--out", str(tmp_path), "--resume"]), capsys, "checkpoint.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_checkpoint_without_a_change_is_taken(
    sound: dict[str, Any], finished: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the test above: so it is the change that is refused there."""
    shutil.copy(finished / "checkpoint.pt", tmp_path)
    monkeypatch.setattr(torch, "load", lambda *_, **__: copy.deepcopy(sound))
    assert train_cli.main([str(scenes), "--out", str(tmp_path), "--resume"]) == 0


def test_flipped_bits_are_found(finished: Path, tmp_path: Path) -> None:
    content, path = (finished / "checkpoint.pt").read_bytes(), tmp_path / "checkpoint.pt"
    for share in (0.2, 0.4, 0.6, 0.8):
        damaged = bytearray(content)
        damaged[int(share * len(content))] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=r"checkpoint\.pt .*checksum"):
            Checkpoint.read(tmp_path)


def test_optimizers_memory_is_its_own(finished: Path) -> None:
    """A tensor of one value that claims to be large, and settings of the file, do not reach the fused kernels."""
    net = torch.nn.Conv2d(4, 5, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), 0.1, fused=True)
    saved: dict[str, Any] = {
        "state": {
            number: {
                "step": torch.tensor(1.0),
                "exp_avg": torch.ones(1).expand(parameter.shape),
                "exp_avg_sq": torch.ones(1).expand(parameter.shape),
            }
            for number, parameter in enumerate(net.parameters())
        },
        "param_groups": [{"params": [0, 1], "lr": 1e9, "betas": "x"}],
    }
    optimizer.load_state_dict(fitting_state(optimizer, saved, 1))
    for parameter in net.parameters():
        moment = optimizer.state[parameter]["exp_avg"]
        assert moment.stride() == parameter.stride() and moment.untyped_storage().nbytes() == 4 * parameter.numel()
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.slow
@pytest.mark.parametrize("change", ["", "image", "label map", "val"])
def test_data_is_known_by_its_content(
    finished: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes((finished / "checkpoint.pt").read_bytes())
    data = Path(shutil.copytree(scenes, tmp_path / "moved"))
    folders = {"image": "train", "label map": "trainannot", "val": "val"}
    if change:
        path = sorted((data / folders[change]).iterdir())[0]
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        pixels[0] = pixels[1]
        pixels[0, 0] = 1
        cv2.imwrite(str(path), pixels)
    code = train_cli.main([str(data), "--out", str(tmp_path), "--resume"])
    if change:
        assert_refused(code, capsys, "training images 8 (")
    else:
        assert code == 0


def test_other_images_than_the_run_began_with(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes((finished / "checkpoint.pt").read_bytes())
    data = write_scenes(tmp_path / "data", {"train": 4, "val": 1})
    assert_refused(enet_train(data, tmp_path, "--resume"), capsys, "training images 8 (", "4 (")


def test_another_void_than_the_run_began_with(scenes: Path, tmp_path: Path) -> None:
    """Crops are filled with the void of the data set, and the losses leave out the one of the run."""
    train, val, _ = splits(scenes)
    began, now = (
        RunIdentity.of(dataclasses.replace(train, classes=dataclasses.replace(CAMVID, ignore_id=void)), val, 1, None)
        for void in (None, 200)
    )
    with pytest.raises(ArtifactError, match=r"checkpoint\.pt .*void 255.* 200"):
        now.require_same(began, tmp_path)


def test_finished_run_can_be_resumed(finished: Path, scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes((finished / "checkpoint.pt").read_bytes())
    assert train_cli.main([str(scenes), "--out", str(tmp_path), "--resume"]) == 0
    assert_same_tensors(tensors(tmp_path / "last.safetensors"), tensors(finished / "last.safetensors"))


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("damage", ["cut", "text", "pickle", "zipped pickle", "other recipe"])
def test_bad_checkpoints_are_refused_and_run_no_code(
    finished: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    checkpoint, touched = tmp_path / "checkpoint.pt", tmp_path / "touched"
    if damage == "cut":
        checkpoint.write_bytes((finished / "checkpoint.pt").read_bytes()[:-5000])
    elif damage == "text":
        checkpoint.write_text("no checkpoint")
    elif damage == "pickle":
        checkpoint.write_bytes(pickle.dumps(Touch(touched)))
    elif damage == "zipped pickle":
        torch.save(Touch(touched), checkpoint)
    else:
        torch.save({"recipe": {"momentum": 0.9}}, checkpoint)
    code = enet_train(scenes, tmp_path, "--resume")
    assert_refused(code, capsys, "checkpoint.pt")
    assert not touched.exists()
