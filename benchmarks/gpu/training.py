"""Steps about training: the speed of a training step in several ways, and a minute of `enet-train`."""

from __future__ import annotations

import csv
import dataclasses
import gc
import subprocess
import sys
import time
from collections.abc import Sequence

from enet_deploy.child import python_main
from enet_deploy.data import DataSet, open_data, spread
from enet_deploy.data.scenes import write_scenes

from .contract import must
from .session import Session, in_words

TRAIN_FOR = ("--minutes", "1")

# The loop, its type, and how its steps reach the device
WAYS = (
    ("enet-train", "bfloat16", "CUDA graph"),
    ("enet-train", "float32", "CUDA graph"),
    ("enet-train", "bfloat16", "eager"),
    ("enet-train", "float32", "eager"),
    ("the usual loop", "float32", "eager"),
    ("enet-train", "bfloat16", "compiled"),
)


def _training_data(session: Session) -> str:
    """The data set, or a folder of drawn scenes with train/ and val/."""
    if session.settings.data is not None:
        return session.settings.data
    root, count, size = session.work / "scenes", session.settings.train_images, session.settings.sizes[0]
    if not (root / "val").exists():
        write_scenes(root, "train", range(count), size)
        write_scenes(root, "val", range(count, count + max(2, count // 8)), size)
    return str(root)


def train_speed(session: Session, ways: Sequence[tuple[str, str, str]]) -> None:
    """Measure the images per second of training steps."""
    session.require("torch")
    import torch

    torch.backends.cudnn.benchmark = True  # as in enet-train
    size, batch = session.settings.sizes[0], session.settings.train_batch
    data = open_data(_training_data(session), "train")
    # no more images than needed, because each trainer reads them all
    data = dataclasses.replace(data, pairs=tuple(spread(data.pairs, session.settings.train_images)))
    for what, dtype, how in ways:
        shown = {"what": what, "dtype": dtype, "how": how, "batch": batch, "size": in_words(size)}
        with session.findings.attempt("training", **shown) as note:
            rate = _steps_per_second(session, data, what, dtype, how)
            note(step_ms=1e3 / rate, images_s=batch * rate)
        gc.collect()  # a trainer refers to itself; its graph would keep memory that the next one needs


def _steps_per_second(session: Session, data: DataSet, what: str, dtype: str, how: str) -> float:
    from ..measure.training import endless_recipe, measure, this_trainer, usual_loop

    if how == "compiled":
        session.require_compile()
    elif how == "CUDA graph":
        session.require_card()
    size, batch, device = session.settings.sizes[0], session.settings.train_batch, session.settings.device
    recipe = endless_recipe(size=size, crop=size, batch=batch, amp=dtype == "bfloat16")
    if what == "enet-train":
        compiled, captured = how == "compiled", how == "CUDA graph"
        loop = this_trainer(data, recipe, device, session.work / "speed", compiled=compiled, captured=captured)
    else:
        loop = usual_loop(data, recipe, device)
    (rate,) = measure({what: loop}, 2 * session.settings.seconds, 2, session.wait).values()
    return rate


def train_minute(session: Session) -> None:
    """Run enet-train for a minute, as people call it."""
    session.require("torch")
    settings, out, size = session.settings, session.work / "minute", in_words(session.settings.sizes[0])
    options = ["--size", size, "--device", settings.device, "--batch", str(settings.train_batch), "--amp"]
    options += ["--epochs", "1"] if settings.rehearsal else TRAIN_FOR
    command = python_main("enet_deploy.commands.train", _training_data(session), "--out", str(out), *options)
    shown = {"what": "enet-train, all of it", "dtype": "bfloat16", "batch": settings.train_batch, "size": size}
    with session.findings.attempt("training", **shown) as note:
        print("enet-train DATA --out RUN", *options, flush=True)
        begun = time.perf_counter()
        done = subprocess.run(command, stdout=sys.stdout, stderr=subprocess.STDOUT, cwd=session.work)
        note(seconds=time.perf_counter() - begun)
        must(done.returncode == 0, f"exit code {done.returncode}; the log says why")
        with (out / "log.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        note(epochs=len(rows), first_loss=float(rows[0]["loss"]), last_loss=float(rows[-1]["loss"]))
        scores = [float(row["val_miou"]) for row in rows if row.get("val_miou")]
        note(miou=scores[-1] if scores else None)
