"""`enet-train` on drawn scenes: what a run leaves, that it learns, and that it resumes to the same bits."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from helpers import ROOT, write_scenes
from torch import nn

from enet_deploy.classes import CAMVID
from enet_deploy.commands import train as train_cli
from enet_deploy.data import DataSet, open_data
from enet_deploy.errors import EnetError
from enet_deploy.model import Segmenter
from enet_deploy.training import trainer as train
from enet_deploy.training.captured import CapturedGradients
from enet_deploy.training.objective import Objective
from enet_deploy.training.prior import load_uncorrected
from enet_deploy.training.recipe import PRESETS, Recipe
from enet_deploy.training.trainer import Trainer, read_checkpoint
from enet_deploy.weights import load_weights, save_weights

CPU = torch.device("cpu")
TINY = {"size": "48x64", "crop": "32x32", "batch": 4, "epochs": 2, "eval_every": 2}
STEPS = 2  # per epoch: eight images in batches of four
FILES = ["best.safetensors", "checkpoint.pt", "last.safetensors", "log.csv"]
TIMES = {"seconds": "", "val_seconds": ""}  # in a row of the log, what no two runs have alike
STILL = [
    "--scale",
    "1",
    "1",
    "--no-flip",
    "--color",
    "0",
    "--tint",
    "0",
    "--noise",
    "0",
    "--warmup",
    "0",
]  # the same pixels in every epoch

ROOM = {"names": ["floor", "wall", "door"], "colors": [[0, 90, 200], [200, 200, 0], [9, 9, 9]], "ignore_id": None}


def arguments(data: Path, out: Path, *options: str, **changes: Any) -> list[str]:
    recipe = TINY | changes
    return [
        str(data),
        "--out",
        str(out),
        "--device",
        "cpu",
        *(f"--{k.replace('_', '-')}={v}" for k, v in recipe.items()),
        *options,
    ]


def enet_train(data: Path, out: Path, *options: str, **changes: Any) -> int:
    return train_cli.main(arguments(data, out, *options, **changes))


def tensors(weights: Path) -> dict[str, Any]:
    return load_weights(weights)[0].state_dict()


def assert_same_tensors(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def splits(data: Path) -> tuple[DataSet, DataSet, str]:
    return open_data(data, "train"), open_data(data, "val"), "train"


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_refused(code: int, capsys: pytest.CaptureFixture[str], message: str) -> None:
    """Exit code 2, and one line that says why."""
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1
    assert re.match(rf"enet-train: error: .*{message}", error), error


@contextlib.contextmanager
def interrupted_in_the_second_epoch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C at the first step after a checkpoint was written."""
    original = Trainer._step

    def interrupted(trainer: Trainer, *args: Any) -> Any:
        if trainer.epoch == 1:
            raise KeyboardInterrupt
        return original(trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        patch.setattr("enet_deploy.training.trainer.CHECKPOINT_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run. Do not write to it."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert enet_train(scenes, out) == 0
    return out


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three classes of its own."""
    root = write_scenes(tmp_path_factory.mktemp("room"), {"train": 4, "val": 1})
    for _, path in (*open_data(root, "train").pairs, *open_data(root, "val").pairs):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED) % 3)
    (root / "classes.json").write_text(json.dumps(ROOM))
    return root


def test_run_leaves_weights_checkpoint_and_log(finished: Path) -> None:
    assert sorted(path.name for path in finished.iterdir()) == FILES
    log = rows(finished)
    assert [*log[0]] == [
        "epoch", "loss", "lr", "seconds", "val_miou", "val_pixel_accuracy", "val_dice", "val_class_average",
        "val_miou_void_counts", "val_pixel_accuracy_void_counts", "val_dice_void_counts",
        *(f"val_iou_{name}" for name in CAMVID.names), "val_seconds",
    ]  # fmt: skip
    scores = [float(iou) for name, iou in log[1].items() if name.startswith("val_iou_") and iou]  # "": not in val
    assert np.mean(scores) == pytest.approx(float(log[1]["val_miou"]))
    assert [row["epoch"] for row in log] == ["1", "2"]
    assert [bool(row["val_miou"]) for row in log] == [False, True]
    assert all(math.isfinite(float(row["loss"])) for row in log)
    _, best = load_weights(finished / "best.safetensors")
    _, last = load_weights(finished / "last.safetensors")
    assert best.details["figures"]["val_miou"] == pytest.approx(float(log[1]["val_miou"]), abs=1e-5)
    assert last.details["figures"]["epoch"] == 2
    assert last.classes == CAMVID and last.size == (48, 64)
    assert last.details["recipe"]["crop"] == [32, 32] and last.details["images"] == {"train": 8, "val": 4}


def test_mean_and_std_are_those_of_the_training_images(finished: Path, scenes: Path) -> None:
    pixels = np.concatenate([image.reshape(-1, 3) for image, _ in open_data(scenes, "train")]).astype(float)
    _, metadata = load_weights(finished / "last.safetensors")
    assert metadata.mean == pytest.approx(pixels.mean(axis=0), abs=1e-3)
    assert metadata.std == pytest.approx(pixels.std(axis=0), abs=1e-3)


def test_loss_falls_on_a_scene_seen_again_and_again(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "data", {"train": 2, "val": 1})
    options = {"crop": "48x64", "batch": 2, "epochs": 12, "eval_every": 12, "lr": 0.03, "power": 0, "ema": 0}
    options["class_weight_c"] = 1.1  # near-equal weights: two scenes have hardly a pixel of the rare classes
    assert enet_train(data, tmp_path / "run", *STILL, **options) == 0
    losses = [float(row["loss"]) for row in rows(tmp_path / "run")]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (Trainer, "_step", 1),
        (Trainer, "_step", STEPS + 1),
        (Trainer, "_evaluate", 0),
        (Path, "write_bytes", 3),
    ],
    ids=["first epoch", "second epoch", "evaluation", "writing a checkpoint"],
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


# Trains in children of a process that has torch already, each killed at another event; prints how many there are.
# An event is a step, a file half written, and a file about to get its name or just named.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from enet_deploy import train, train_cli

torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # imports for seconds; now, so that no child has to

def train_until(last, out):
    events = iter(range(last))
    def event():
        if next(events, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
    def wrap(owner, name, before, after):
        original = getattr(owner, name)
        def wrapped(*arguments):
            before(*arguments)
            event()
            result = original(*arguments)
            if after:
                event()
            return result
        setattr(owner, name, wrapped)
    write = Path.write_bytes
    wrap(train.Trainer, "_step", lambda *_: None, False)
    wrap(Path, "write_bytes", lambda path, content: write(path, content[: len(content) // 2]), False)
    wrap(Path, "write_text", lambda path, text: write(path, text.encode()[: len(text) // 2]), False)
    wrap(Path, "replace", lambda *_: None, True)
    code = train_cli.main([*sys.argv[3:], "--out", out])
    print(last - len(list(events)), flush=True)
    os._exit(code)

for last in map(int, sys.argv[1].split(",")):
    if os.fork() == 0:
        train_until(last, f"{sys.argv[2]}-{last}")
    os.wait()
"""


def killed_after(events: list[int], data: Path, out: Path) -> str:
    """Runs in the folders OUT-N, each of them killed after N events."""
    argv = [",".join(map(str, events)), str(out), *arguments(data, out, eval_every=1)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *argv],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_whole(out: Path) -> None:
    """Whatever stands under a final name is; names with a dot in front are nobody's."""
    for path in out.glob("[!.]*"):
        if path.suffix == ".safetensors":
            load_weights(path)
        elif path.name == "checkpoint.pt":
            read_checkpoint(out)
        else:
            assert path.name == "log.csv" and path.read_text().endswith("\n")
            assert all(None not in row.values() for row in rows(out))


def test_run_killed_at_any_moment_resumes_to_the_same_bits(scenes: Path, tmp_path: Path) -> None:
    count = int(killed_after([1000], scenes, tmp_path / "run"))
    whole = tmp_path / "run-1000"
    # half of them where the last files get their names, and nothing but the end of the run is left to do
    moments = [1, 4, count // 2, count - 8, count - 6, count - 4]
    assert killed_after(moments, scenes, tmp_path / "run") == ""
    for moment in moments:
        out = tmp_path / f"run-{moment}"
        assert_whole(out)
        begun = (out / "checkpoint.pt").exists()
        assert enet_train(scenes, out, *(["--resume"] if begun else []), eval_every=1) == 0
        for name in ("last.safetensors", "best.safetensors"):
            assert_same_tensors(tensors(out / name), tensors(whole / name))
        assert [row | TIMES for row in rows(out)] == [row | TIMES for row in rows(whole)]


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


@pytest.mark.parametrize("lost", ["optimizer", "images", "net"])
def test_checkpoint_that_lacks_a_part(
    finished: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    state = torch.load(finished / "checkpoint.pt", weights_only=True)
    del state[lost]
    torch.save(state, tmp_path / "checkpoint.pt")
    assert_refused(enet_train(scenes, tmp_path, "--resume"), capsys, r"checkpoint\.pt is not a whole checkpoint")


def test_other_images_than_the_run_began_with(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes((finished / "checkpoint.pt").read_bytes())
    data = write_scenes(tmp_path / "data", {"train": 4, "val": 1})
    assert_refused(
        enet_train(data, tmp_path, "--resume"), capsys, r"made with the training images 8 \(.*\), these are 4 "
    )


def test_finished_run_can_be_resumed(finished: Path, scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes((finished / "checkpoint.pt").read_bytes())
    assert train_cli.main([str(scenes), "--out", str(tmp_path), "--resume"]) == 0
    assert_same_tensors(tensors(tmp_path / "last.safetensors"), tensors(finished / "last.safetensors"))


def test_init_continues_from_weights(finished: Path, scenes: Path, tmp_path: Path) -> None:
    start = finished / "last.safetensors"
    # at a rate of zero only the running statistics move
    assert enet_train(scenes, tmp_path, "--init", str(start), lr=0, ema=0, epochs=1) == 0
    net, metadata = load_weights(tmp_path / "last.safetensors")
    before, before_metadata = load_weights(start)
    for name, parameter in before.named_parameters():  # the last bias is rounded: its correction was taken back between
        torch.testing.assert_close(net.get_parameter(name), parameter, rtol=0, atol=1e-6 * (name == "fullconv.bias"))
    assert not torch.equal(net.initial.bn.running_mean, before.initial.bn.running_mean)
    assert (metadata.mean, metadata.std) == (before_metadata.mean, before_metadata.std)


def test_weights_of_other_classes_give_all_but_their_last_layer(
    finished: Path, room: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = finished / "last.safetensors"
    with caplog.at_level("INFO"):
        # at a rate of zero the parameters stay as they began
        assert enet_train(room, tmp_path, "--init", str(start), lr=0, ema=0, epochs=1) == 0
    assert re.search(r"knows other classes \(sky, .*\): all is taken but the last layer, which starts", caplog.text)
    net, metadata = load_weights(tmp_path / "last.safetensors")
    had, has = dict(load_weights(start)[0].named_parameters()), dict(net.named_parameters())
    assert {name for name in has if not torch.equal(has[name], had[name])} == {"fullconv.weight", "fullconv.bias"}
    assert net.num_classes == 3 and has["fullconv.weight"].any() and metadata.classes.names == tuple(ROOM["names"])


MIOU = {1: 0.3, 2: 0.5, 3: 0.4, 4: 0.5, 5: 0.9}  # epoch -> val mIoU


def test_run_stops_when_its_patience_is_at_its_end(
    finished: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where it was interrupted in between, and with the same weights."""
    monkeypatch.setattr(Trainer, "_figures", lambda trainer: {"val_miou": MIOU[trainer.epoch]})
    options = {"epochs": 5, "eval_every": 1, "patience": 2, "ema": 0}
    with caplog.at_level("INFO"):
        assert enet_train(scenes, tmp_path / "whole", **options) == 0
    assert "stopped after epoch 4 of 5: 2 evaluations without a better val mIoU than 0.5000 of epoch 2" in caplog.text
    with interrupted_in_the_second_epoch(monkeypatch):
        assert enet_train(scenes, tmp_path / "broken", **options) == 130
    for _ in range(2):  # the second time there is nothing to do
        assert train_cli.main([str(scenes), "--out", str(tmp_path / "broken"), "--device", "cpu", "--resume"]) == 0
        assert [row["epoch"] for row in rows(tmp_path / "broken")] == ["1", "2", "3", "4"]
        for name in ("last.safetensors", "best.safetensors"):
            assert_same_tensors(*(tensors(tmp_path / run / name) for run in ("whole", "broken")))
    assert load_weights(tmp_path / "whole" / "best.safetensors")[1].details["figures"]["epoch"] == 2
    assert enet_train(scenes, tmp_path / "patient", **options | {"patience": 0}) == 0
    assert len(rows(tmp_path / "patient")) == 5


def test_no_patience_where_val_is_trained_on(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = enet_train(scenes, tmp_path, "--with-val", "--patience", "2")
    assert_refused(code, capsys, r"patience 2, but val is trained on, .*; expected 0, or --hold-out in place of --with")


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


@pytest.mark.parametrize(
    ("gpu", "largest", "advice"),
    [
        (True, 3, "; --batch 2 does$"),
        (False, 4, "; --batch 4 does$"),
        (False, 0, ", nor did one of its halves; pass a much smaller --batch, a smaller --crop or another --device$"),
    ],
    ids=["GPU", "CPU", "nothing fits"],
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
    assert_refused(code, capsys, "batch 8 of 32x32 crops does not fit into the memory of cpu" + advice)
    if largest:
        assert enet_train(scenes, tmp_path, batch=largest - largest % 2, epochs=1) == 0  # the advice is good


def test_out_of_memory_in_a_later_epoch(
    finished: Path, scenes: Path, tmp_path: Path, memory_for: Callable[[int, bool], None], capsys: Any
) -> None:
    state = torch.load(finished / "checkpoint.pt", weights_only=True)
    state["epoch"], state["recipe"]["epochs"] = 2, 3  # as if it had been begun on a larger GPU
    torch.save(state, tmp_path / "checkpoint.pt")
    memory_for(2, True)
    code = train_cli.main([str(scenes), "--out", str(tmp_path), "--device", "cpu", "--resume"])
    assert_refused(
        code, capsys, r"; --batch 2 does in another --out, where --init .*best\.safetensors goes on from here$"
    )


def test_three_classes_train_without_a_change(room: Path, tmp_path: Path) -> None:
    assert enet_train(room, tmp_path, epochs=1) == 0
    net, metadata = load_weights(tmp_path / "best.safetensors")
    assert net.num_classes == 3 and metadata.classes.to_json() == ROOM


def test_image_of_void_alone_is_passed_over(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "data", {"train": 2, "val": 1})
    cv2.imwrite(str(data / "trainannot" / "scene0000.png"), np.full((96, 128), CAMVID.ignore_id, np.uint8))
    assert enet_train(data, tmp_path / "run", batch=1, epochs=1) == 0
    assert math.isfinite(float(rows(tmp_path / "run")[0]["loss"]))


LOSSES = ["--aux", "0.4", "--lovasz", "1", "--lovasz-from", "0", "--noise", "8"]


def test_every_loss_at_once_still_gives_the_plain_network(
    finished: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wider teacher, a second head, Lovasz: what is saved is ENet, and a resumed run needs the same teacher."""
    assert enet_train(scenes, tmp_path / "wide", "--width", "2", epochs=1) == 0
    teacher = tmp_path / "wide" / "last.safetensors"
    assert load_weights(teacher)[0].width == 2
    assert enet_train(scenes, tmp_path / "run", *LOSSES, "--teacher", str(teacher)) == 0
    net, metadata = load_weights(tmp_path / "run" / "last.safetensors")
    assert net.width == 1 and net.state_dict().keys() == tensors(finished / "last.safetensors").keys()
    assert metadata.details["teacher"]["width"] == 2
    code = enet_train(scenes, tmp_path / "taught nothing", "--teacher", str(teacher), distill=0)
    assert_refused(code, capsys, r"distill 0 with a teacher, expected more; leave out --teacher, or --distill")
    assert metadata.details["recipe"]["lovasz"] == 1.0


def test_interrupted_run_with_every_loss_resumes_to_the_same_bits(
    finished: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = ["--teacher", str(finished / "last.safetensors")]
    assert enet_train(scenes, tmp_path / "whole", *LOSSES, *teacher) == 0
    with interrupted_in_the_second_epoch(monkeypatch):
        assert enet_train(scenes, tmp_path / "broken", *LOSSES, *teacher) == 130
    assert "the same command with --resume continues" in capsys.readouterr().err
    code = enet_train(scenes, tmp_path / "broken", "--resume")
    assert_refused(code, capsys, "was made with the --teacher of sha256 [0-9a-f]+, these are None; use the same")
    assert enet_train(scenes, tmp_path / "broken", "--resume", *teacher) == 0
    assert_same_tensors(*(tensors(tmp_path / run / "last.safetensors") for run in ("whole", "broken")))


def test_other_arithmetic_trains_too(scenes: Path, tmp_path: Path) -> None:
    assert enet_train(scenes, tmp_path, "--amp", epochs=1) == 0
    assert math.isfinite(float(rows(tmp_path)[0]["loss"]))


class Clock:
    """Stands in for the module `time`: epochs take 0.8 s, the first one 70, evaluations 2."""

    def __init__(self, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        took = {"_train_epoch": lambda: 70.0 if trainer.epoch == 0 else 0.8, "_evaluate": lambda: 2.0}
        for name, seconds in took.items():
            monkeypatch.setattr(trainer, name, functools.partial(self.take, getattr(trainer, name), seconds))

    def take(self, work: Callable[[], Any], seconds: Callable[[], float]) -> Any:
        self.now += seconds()
        return work()

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


def test_minutes_are_filled_with_one_schedule(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though libraries compile and choose kernels in the first epoch."""
    recipe = Recipe(size=(16, 16), crop=(16, 16), batch=4, minutes=1.5, warmup=6, eval_every=10, aux=0.0, noise=0.0)
    trainer = Trainer(*splits(scenes), tmp_path, recipe, CPU)
    clock = Clock(trainer, monkeypatch)
    monkeypatch.setattr("enet_deploy.training.trainer.time", clock)
    trainer.run()
    rates = [row["lr"] for row in trainer.history]
    assert 86 < clock.now <= 90 and trainer.recipe.epochs == len(rates) == trainer.epoch
    assert "val_miou" in trainer.history[0] and "val_miou" in trainer.history[-1]
    peak = rates.index(max(rates))
    assert peak == 2  # the warm-up of six steps ends with the four that are done: a tenth of the whole is less
    assert rates == [*sorted(rates[:peak]), *sorted(rates[peak:], reverse=True)] and rates[-1] < 0.1 * max(rates)
    state, recipe = read_checkpoint(tmp_path)
    assert Trainer(*splits(scenes), tmp_path, recipe, CPU, state=state).over


def test_minutes_that_end_in_the_warm_up(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second epoch is still run, and the warm-up ends with the first plan."""
    recipe = Recipe(size=(16, 16), crop=(16, 16), batch=4, minutes=1.3, warmup=1000, aux=0.0, noise=0.0)
    trainer = Trainer(*splits(scenes), tmp_path, recipe, CPU)
    monkeypatch.setattr("enet_deploy.training.trainer.time", Clock(trainer, monkeypatch))
    trainer.run()
    assert trainer.epoch > 2 and trainer.recipe.warmup == 2 * STEPS
    assert trainer.history[2]["lr"] > 0.5 * recipe.lr > 100 * trainer.history[0]["lr"]


def test_run_as_on_a_gpu(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, for so many minutes, and traced by torch.compile, whose compiler alone is left out."""
    compiled = functools.partialmethod(nn.Module.compile, backend="eager")
    monkeypatch.setattr(nn.Module, "compile", compiled)
    options = [str(scenes), "--out", str(tmp_path), "--size", "48x64", "--crop", "32x32", "--batch", "4", "--amp"]
    assert train_cli.main([*options, "--minutes", "0.03", "--warmup", "3", "--compile"]) == 0
    recipe = read_checkpoint(tmp_path)[1]
    assert recipe.minutes == 0.03 and recipe.epochs == len(rows(tmp_path))


def test_weights_that_are_no_numbers_are_not_saved(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a step is known before its weights are; a checkpoint of the last step's would be useless."""
    recipe = Recipe(size=(48, 64), crop=(32, 32), batch=4, epochs=3, eval_every=3)
    trainer = Trainer(*splits(scenes), tmp_path, recipe, CPU)
    train_epoch = trainer._train_epoch

    def poisoned() -> float:
        loss = train_epoch()
        if trainer.epoch == 1:
            trainer.net.fullconv.weight.data[0] = math.nan
        return loss

    monkeypatch.setattr(trainer, "_train_epoch", poisoned)
    monkeypatch.setattr("enet_deploy.training.trainer.CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(EnetError, match=r"no longer finite in epoch 2; .* after epoch 1, is in .*checkpoint\.pt"):
        trainer.run()
    state, _ = read_checkpoint(tmp_path)
    assert state["epoch"] == 1 and all(tensor.isfinite().all() for tensor in state["net"].values())


def test_evaluation_leaves_cudnn_on(scenes: Path, tmp_path: Path) -> None:
    seen = []
    trainer = Trainer(*splits(scenes), tmp_path, Recipe(size=(48, 64), crop=(32, 32), batch=4), CPU)
    cudnn = torch.backends.cudnn
    trainer.net.register_forward_hook(lambda *_: seen.append((cudnn.enabled, cudnn.benchmark)))
    before, cudnn.benchmark = cudnn.benchmark, True
    try:
        train.confusion(trainer.net, trainer.val, trainer.metadata)
        assert {*seen} == {(True, False)} and cudnn.benchmark
    finally:
        cudnn.benchmark = before


def test_correction_is_saved_and_taken_back(finished: Path) -> None:
    net, metadata = load_weights(finished / "last.safetensors")
    had = metadata.details["prior_correction"]
    assert had["alpha"] == Recipe().prior_correction
    plain, other = load_uncorrected(finished / "last.safetensors")
    shift = had["alpha"] * torch.tensor(had["class_weights"]).log()
    torch.testing.assert_close(plain.fullconv.bias, net.fullconv.bias + shift)
    assert "prior_correction" not in other.details
    state = torch.load(finished / "checkpoint.pt", weights_only=True)
    torch.testing.assert_close(plain.fullconv.bias.data, state["ema"]["fullconv.bias"])


@pytest.mark.parametrize(
    "broken",
    ["0.5", {"alpha": 0.5}, {"alpha": "x", "class_weights": [1.0] * 11}, {"alpha": 0.5, "class_weights": [1.0, 2.0]},
     {"alpha": 10**400, "class_weights": [1.0] * 11}, {"alpha": 0.5, "class_weights": [0.0] * 11},
     {"alpha": 0.5, "class_weights": None}],
)  # fmt: skip
def test_weights_with_a_foreign_correction_are_refused(
    finished: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: Any
) -> None:
    net, metadata = load_weights(finished / "last.safetensors")
    details = metadata.details | {"prior_correction": broken}
    save_weights(tmp_path / "w.safetensors", net, dataclasses.replace(metadata, details=details))
    code = enet_train(scenes, tmp_path / "out", "--init", str(tmp_path / "w.safetensors"))
    assert_refused(code, capsys, r"w\.safetensors has a prior_correction in its metadata that cannot be taken back")


def test_run_with_an_untouched_val_tries_other_corrections(
    scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert enet_train(scenes, tmp_path / "a", epochs=1, prior_correction=0.3) == 0
        (line,) = [text for text in caplog.messages if text.startswith("val mIoU of the last weights by --prior-corr")]
        found = dict(pair.split(": ") for pair in line.split("correction: ")[1].split("  "))
        assert [*found] == ["0", "0.25", "0.3", "0.5", "0.75", "1"]
        assert float(found["0.3"]) == pytest.approx(float(rows(tmp_path / "a")[-1]["val_miou"]), abs=1e-4)
        caplog.clear()
        assert enet_train(scenes, tmp_path / "b", "--with-val", epochs=1) == 0
    assert not [text for text in caplog.messages if "--prior-correction" in text]


def test_slopes_per_channel_become_one_per_layer_and_not_the_other_way(
    finished: Path,
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert load_weights(finished / "last.safetensors")[0].slopes == "layer"
    assert enet_train(scenes, tmp_path / "channel", "--slopes", "channel", epochs=1) == 0
    net, _ = load_weights(tmp_path / "channel" / "last.safetensors")
    assert net.slopes == "channel" and net.initial.act.weight.shape == (16,)
    options = ("--init", str(tmp_path / "channel" / "last.safetensors"))
    with caplog.at_level("INFO"):
        assert enet_train(scenes, tmp_path / "layer", *options, "--lr", "0", epochs=1) == 0
    assert "has a PReLU slope per channel: each layer starts from their mean" in caplog.text
    shared, _ = load_weights(tmp_path / "layer" / "last.safetensors")
    torch.testing.assert_close(shared.initial.act.weight, net.initial.act.weight.mean()[None])
    options = ("--slopes", "channel", "--init", str(finished / "last.safetensors"))
    code = enet_train(scenes, tmp_path / "back", *options)
    assert_refused(
        code, capsys, r"slopes channel, but .*last\.safetensors has one slope per layer; pass --slopes layer"
    )


def test_weights_of_another_width_are_refused(
    finished: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = enet_train(scenes, tmp_path, "--width", "2", "--init", str(finished / "last.safetensors"))
    assert_refused(code, capsys, r"width 2, but .*last\.safetensors has width 1; pass --width 1")


def test_val_without_a_label_is_refused_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_scenes(tmp_path / "data", {"train": 4, "val": 1})
    for path in (data / "valannot").iterdir():
        cv2.imwrite(str(path), np.full((96, 128), CAMVID.ignore_id, np.uint8))
    assert_refused(enet_train(data, tmp_path / "run"), capsys, "every val pixel is void")


def test_lovasz_sets_in_where_it_is_asked_to(scenes: Path, tmp_path: Path) -> None:
    losses = {}
    for start in ("0.5", "1"):
        out = tmp_path / start
        assert enet_train(scenes, out, "--lovasz", "5", "--lovasz-from", start) == 0
        losses[start] = [float(row["loss"]) for row in rows(out)]
    (first, second), (plain_first, plain_second) = losses["0.5"], losses["1"]
    assert first == plain_first and second > plain_second + 1


@pytest.mark.parametrize(
    ("options", "split", "counts"),
    [
        ([], "train", {"train": 8, "val": 4}),
        (["--with-val"], "train+val", {"train": 12, "val": 4}),
        (["--hold-out", "scene0001"], "train+val without scene0001*", {"train": 11, "val": 1}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_trained_on_and_what_scored(
    scenes: Path, tmp_path: Path, options: list[str], split: str, counts: dict[str, int]
) -> None:
    assert enet_train(scenes, tmp_path, *options, epochs=1) == 0
    details = load_weights(tmp_path / "last.safetensors")[1].details
    assert (details["split"], details["images"]) == (split, counts)


def test_more_images_from_another_folder(scenes: Path, room: Path, tmp_path: Path, capsys: Any) -> None:
    more = write_scenes(tmp_path / "more", {"train": 3, "val": 1})
    assert enet_train(scenes, tmp_path / "run", "--extra", str(more), epochs=1) == 0
    details = load_weights(tmp_path / "run" / "last.safetensors")[1].details
    assert (details["split"], details["images"]["train"]) == ("train + 3 more", 11)
    capsys.readouterr()
    code = enet_train(scenes, tmp_path / "other", "--extra", str(room))
    assert_refused(code, capsys, "data sets of different classes: .* has sky, .* has floor, wall, door; expected the")


def test_learning_curve_is_drawn(finished: Path, scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "checkpoint.pt").write_bytes((finished / "checkpoint.pt").read_bytes())
    curve = tmp_path / "curve.svg"
    assert train_cli.main([str(scenes), "--out", str(tmp_path), "--resume", "--curve", str(curve)]) == 0
    assert "mIoU" in curve.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume", "--lr", "0.1"], r"--lr 0\.1 with --resume, but the run in .* has 0\.002; resume without it"),
        (["--resume", "--crop", "64x64"], r"--crop \(64, 64\) with --resume, but .* has \(32, 32\)"),
        ([], r"holds a run already; --resume continues it, another --out starts a new one"),
    ],
    ids=["other rate", "other crop", "over an old run"],
)
def test_a_run_is_not_changed_half_way(
    finished: Path, scenes: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    before = {path: path.read_bytes() for path in finished.iterdir()}
    assert_refused(train_cli.main([str(scenes), "--out", str(finished), *options]), capsys, message)
    assert {path: path.read_bytes() for path in finished.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume"], r"checkpoint\.pt does not exist; there is no run to resume in .*: leave out --resume"),
        (["--batch", "9"], r"batch 9 for 8 training images, expected no more than there are; pass --batch 8 or less"),
        (["--device", "tpu"], r"device 'tpu' for torch, expected cpu, cuda or cuda:N"),
        (["--device", "cpu:x"], r"device 'cpu:x'"),
        (["--scale", "2", "0.5"], r"scale \(2\.0, 0\.5\), expected two positive numbers, smallest first"),
        (["--seed", "-1"], r"seed -1, expected"),
        (["--lr", "-1"], r"lr -1\.0, expected"),
        (["--weight-decay", "-1"], r"weight_decay -1\.0, expected"),
        (["--ema", "2"], r"ema 2\.0, expected"),
        (
            ["--lr", "1e30"],
            r"the loss is nan in step 2 of epoch 1; .* good state, after epoch 0, is in .*point\.pt",
        ),
        (["--final-crop", "64x64"], r"--final-crop 64x64 without --final-from, expected the share"),
        (["--final-from", "2"], r"final_from 2\.0, expected a share from 0 to 1"),
        (["--width", "0"], r"width 0, expected"),
        (["--lovasz-from", "nan"], r"lovasz_from nan, expected"),
        (["--lovasz-from", "1.5"], r"lovasz_from 1\.5, expected a share from 0 to 1"),
        (["--distill", "0.5"], r"--distill 0\.5 without --teacher, expected the weights to learn from"),
        (["--aux", "-1"], r"aux -1\.0, expected"),
        (["--hold-out", "x"], r"hold-out 'x' fits 0 of 12 images, expected some, not all; names look like 'scene0000"),
        (["--curve", "curve.gif"], r"curve\.gif has the suffix '\.gif', expected \.png or \.svg"),
        (["--minutes", "7"], r"--minutes 7\.0 with --epochs 2, expected one of them"),
        (["--prior-correction", "-1"], r"prior_correction -1\.0, expected"),
        (["--patience", "-1"], r"patience -1, expected"),
        (["--teacher", "none.safetensors"], r"none\.safetensors is not a file; expected weights"),
        (["--init", "none.safetensors"], r"none\.safetensors is not a file; expected weights"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert_refused(enet_train(scenes, tmp_path, *options), capsys, message)


@pytest.mark.parametrize(("option", "word"), [("--slopes", "pixel"), ("--optimizer", "sgd")])
def test_words_that_an_option_does_not_know(capsys: pytest.CaptureFixture[str], option: str, word: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        train_cli.main(["data", option, word])
    assert f"argument {option}: invalid choice: '{word}' (choose from" in capsys.readouterr().err


def test_every_field_of_the_recipe_is_explained() -> None:
    assert train_cli._explained().keys() == {field.name for field in dataclasses.fields(Recipe)}


def test_teachers_and_runs_of_other_classes_are_refused_before_an_image_is_read(
    finished: Path,
    room: Path,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(DataSet, "__getitem__", lambda *_: pytest.fail("an image was read"))
    code = enet_train(room, tmp_path, "--teacher", str(finished / "last.safetensors"))
    assert_refused(code, capsys, r"knows the classes sky, .*; the data set has floor, wall, door: take a teacher")
    code = train_cli.main([str(room), "--out", str(finished), "--resume"])
    assert_refused(
        code,
        capsys,
        r"checkpoint\.pt was made with the classes sky, .*, these are floor, wall, door; use the same, or another",
    )
    swapped = shutil.copytree(scenes, tmp_path / "swapped")
    names = [CAMVID.names[1], CAMVID.names[0], *CAMVID.names[2:], None]
    values = {"label_values": {str(id_): name for id_, name in enumerate(names)}}
    (swapped / "classes.json").write_text(json.dumps(CAMVID.to_json() | values))
    code = train_cli.main([str(swapped), "--out", str(finished), "--resume"])
    assert_refused(code, capsys, r"made with the values of classes in label maps, by hash \w{8}, these are \w{8}; use")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_cuda_is_refused_where_there_is_none(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = enet_train(scenes, tmp_path, "--device", "cuda")
    assert_refused(code, capsys, r"device 'cuda', but torch .* sees 0 CUDA devices; use cpu")


class Touch:
    """Pickled, it makes a file when it is loaded by whoever trusts it."""

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
    assert_refused(code, capsys, r"checkpoint\.pt is not a whole checkpoint of this version .*; start again")
    assert not touched.exists()


def test_classes_weigh_by_their_share(scenes: Path, tmp_path: Path) -> None:
    labels = np.concatenate([labels.ravel() for _, labels in open_data(scenes, "train")])
    shares = np.bincount(labels[labels != CAMVID.ignore_id], minlength=len(CAMVID)) / (labels != CAMVID.ignore_id).sum()
    trainer = Trainer(*splits(scenes), tmp_path, Recipe(crop=(64, 64), batch=4, class_weight_c=1.02), CPU)
    assert trainer.weight.tolist() == pytest.approx((1 / np.log(1.02 + shares)).tolist(), rel=1e-5)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """Of every training step: the images, and the network's tensors after it."""
    seen: list[tuple[Any, dict[str, Any]]] = []
    step = Trainer._step

    def watched(self: Trainer, images: Any, labels: Any) -> Any:
        loss = step(self, images, labels)
        seen.append((images, {name: value.clone() for name, value in self.net.state_dict().items()}))
        return loss

    monkeypatch.setattr(Trainer, "_step", watched)
    return seen


def test_average_of_the_weights_is_what_is_saved(
    scenes: Path, tmp_path: Path, steps: list[tuple[Any, dict[str, Any]]]
) -> None:
    """After the first step it is the network's weights, from then on decay * average + (1 - decay) * weights.

    The decay grows to the recipe's; at the second step it is 2/11. BatchNorm's statistics are those of the averaged
    weights on the crops: the first layer's can be computed by hand.
    """
    assert enet_train(scenes, tmp_path, *STILL, crop="48x64", epochs=1, ema=0.75, lr=0.01, prior_correction=0) == 0
    (images, first), (more_images, second) = steps
    net, metadata = load_weights(tmp_path / "last.safetensors")
    for name, value in net.named_parameters():
        torch.testing.assert_close(value.data, 2 / 11 * first[name] + 9 / 11 * second[name])
    assert not torch.equal(first["fullconv.weight"], second["fullconv.weight"])
    segmenter = Segmenter(net, metadata.mean, metadata.std)
    with torch.no_grad():
        maps = net.initial.conv(segmenter.normalise(torch.cat([images, more_images])))
    torch.testing.assert_close(net.initial.bn.running_mean[:13], maps.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("still", [True, False])
def test_every_epoch_has_another_order_and_other_crops(
    scenes: Path, tmp_path: Path, steps: list[tuple[Any, dict[str, Any]]], still: bool
) -> None:
    assert enet_train(scenes, tmp_path, *(STILL if still else []), crop="48x64") == 0
    first, second = (
        [image.numpy().tobytes() for images, _ in steps[i : i + STEPS] for image in images] for i in (0, 2)
    )
    assert len({*first}) == len({*second}) == 8  # every image once
    assert first != second
    assert ({*first} == {*second}) is still


def test_report_preset(scenes: Path, tmp_path: Path) -> None:
    """The student report's recipe; the size is not the data set's, as in the report."""
    options = ["--preset", "report", "--size", "64x96", "--crop", "32x32", "--epochs", "1"]
    assert train_cli.main([str(scenes), "--out", str(tmp_path), *options]) == 0
    report = Recipe(
        size=(512, 512), crop=(512, 512), final_crop=(512, 512), epochs=100, batch=5, lr=5e-4, weight_decay=2e-4,
        optimizer="adam", warmup=0, power=0.0, class_weight_c=1.02, prior_correction=0.0, aux=0.0, lovasz=0.0,
        scale=(1.0, 1.0), flip=False, color=0.0, tint=0.0, noise=0.0, ema=0.0, slopes="channel",
    )  # fmt: skip
    assert PRESETS["report"] == report
    assert vars(read_checkpoint(tmp_path)[1]) == vars(report) | {
        "size": (64, 96),
        "crop": (32, 32),
        "final_crop": (64, 96),
        "epochs": 1,
    }
    assert [row["lr"] for row in rows(tmp_path)] == ["0.0005"]


def repeat(module: nn.Module) -> Callable[[Callable[[], torch.Tensor]], tuple[Callable[[], None], torch.Tensor]]:
    """What CUDA graphs do, without a GPU: the same work again, its loss and gradients into the same memory."""

    def record(work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        loss = work()
        gradients = [parameter.grad for parameter in module.parameters()]

        def replay() -> None:
            loss.copy_(work())
            for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                if gradient is not None:
                    gradient.copy_(parameter.grad)

        return replay, loss

    return record


def test_captured_steps_are_the_eager_ones(scenes: Path, tmp_path: Path) -> None:
    """In float32 and bfloat16, with Lovasz-softmax and without; dropout and the statistics of BatchNorm too."""
    recipe = Recipe(size=(48, 64), crop=(32, 32), batch=2, epochs=4, eval_every=4, warmup=2, amp=True, lovasz_from=0.5)
    recipe = dataclasses.replace(recipe, final_crop=(48, 64), final_from=0.75)
    for name in ("eager", "captured"):
        trainer = Trainer(*splits(scenes), tmp_path / name, recipe, CPU)
        if name == "captured":
            record = repeat(trainer.objective)
            gradients = CapturedGradients(trainer._gradients, trainer.objective, record)
            trainer.captured, trainer.gradients = True, gradients
        trainer.run()
    found = [(shape[1], *variant) for shape, variant in gradients.recorded]
    assert found == [(32, False, False), (32, True, False), (32, True, True), (48, True, True)]
    assert_same_tensors(*(tensors(tmp_path / name / "last.safetensors") for name in ("eager", "captured")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing to capture")
def test_captured_steps_are_the_eager_ones_on_a_gpu(scenes: Path, tmp_path: Path) -> None:
    """The gradients of one batch, of every variant and size, and of the first again: all graphs share their memory."""
    recipe = Recipe(size=(48, 64), crop=(32, 32), batch=4)
    trainer = Trainer(*splits(scenes), tmp_path, recipe, torch.device("cuda"))
    trainer.model.train()
    captured, parameters = trainer.gradients, list(trainer.objective.parameters())
    variants = [(False, False), (True, False), (True, True), (False, True), (False, False)]
    for crop in (32, 32), (48, 64):
        trainer.crops.recipe = dataclasses.replace(recipe, crop=crop)
        images, labels = next(trainer.crops.batches([[0, 1, 2, 3]], 0))
        for variant in variants:
            found = []
            for gradients in (captured, trainer._gradients):
                torch.manual_seed(0)  # dropout
                loss = gradients(images, labels, variant).item()
                found.append((loss, torch.cat([p.grad.flatten().clone() for p in parameters if p.grad is not None])))
            assert found[0][0] == pytest.approx(found[1][0], rel=1e-2)
            assert torch.nn.functional.cosine_similarity(found[0][1], found[1][1], dim=0) > 0.99, (crop, variant)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing to wait for")
def test_a_step_never_waits_for_the_gpu(scenes: Path, tmp_path: Path) -> None:
    recipe = Recipe(size=(96, 128), crop=(64, 64), batch=2, aux=0.4, lovasz=1.0, lovasz_from=0.0, noise=8.0, amp=True)
    recipe = dataclasses.replace(recipe, warmup=0)
    trainer = Trainer(*splits(scenes), tmp_path, recipe, torch.device("cuda"))
    batches = trainer.crops.batches([[0, 1], [2, 3]], 0)
    trainer._step(*next(batches))  # kernels are chosen and memory is taken
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._step(*next(batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")


SCRIPT = """
import sys
import torch
import torch.distributed as dist
from enet_deploy import train, train_cli

run = train.Trainer.run

def run_and_compare(trainer):
    run(trainer)
    own = torch.cat([parameter.detach().flatten() for parameter in trainer.net.parameters()])
    both = [torch.empty_like(own) for _ in range(2)]
    dist.all_gather(both, own)
    print("the same weights" if torch.equal(*both) else "other weights", flush=True)

train.Trainer.run = run_and_compare
sys.exit(train_cli.main())
"""


def test_two_processes_train_one_network(scenes: Path, tmp_path: Path) -> None:
    # three interpreters that import torch: ten seconds
    script, out = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(script), *arguments(scenes, out, "--aux", "0.4", epochs=1)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    # each process saw other crops: without exchanged gradients the weights would differ
    assert done.stdout.count("the same weights") == 2, done.stdout
    assert sorted(path.name for path in out.iterdir()) == FILES
    # each process has half of a batch: the data set takes as many steps as in one process
    assert read_checkpoint(out)[0]["schedule"]["last_epoch"] == STEPS
