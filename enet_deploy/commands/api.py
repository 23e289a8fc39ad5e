"""The Python functions behind `enet-train`, `enet-eval` and `enet-segment`: the same work, with typed arguments."""

from __future__ import annotations

import dataclasses
import logging
import signal
from collections.abc import Sequence
from pathlib import Path

from .. import trained_on
from ..data import open_data
from ..fit import Fit
from ..metrics import Scores
from ..runners import open_runner
from ..training.recipe import Recipe
from . import cli
from . import evaluate as evaluate_command
from . import segment as segment_command
from . import train as train_command

log = logging.getLogger(__name__)


def train(
    data: str | Path,
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    init: str | Path | None = None,
    teacher: str | Path | None = None,
    device: str | None = None,
    resume: bool = False,
) -> Path:
    """Train as `enet-train` does; it logs its progress to `enet_deploy`.

    Args:
        data: data set with train/ trainannot/ val/ valannot/.
        out: the run's folder; gets best.safetensors, last.safetensors, log.csv and the state to resume from.
        recipe: how to train; by default the project's own recipe. Crops follow `size` unless they are given too.
        init: weights to start from, a file or the name of bundled weights.
        teacher: weights whose output is learnt too.
        device: "cpu", "cuda" or "cuda:N"; by default "cuda" if there is one.
        resume: continue the run in `out`.

    Returns the path of best.safetensors, the weights with the highest val mIoU.

    Raises DataError for an unusable data set, ArtifactError for unusable weights, InputError for impossible values, and
    EnetError if the device has too little memory.
    """
    default = Recipe()
    given = {} if recipe is None else dataclasses.asdict(recipe)
    changed = {name: value for name, value in given.items() if value != getattr(default, name)}
    init, teacher = (None if path is None else cli.weights(str(path)) for path in (init, teacher))
    words = {"out": str(out), "init": init, "teacher": teacher, "device": device, "resume": resume}
    train_command.run(cli.call_with(train_command.make_parser(), [data], **words, **changed))
    return Path(out) / "best.safetensors"


def evaluate(
    artifact: str | Path,
    data: str | Path,
    *,
    split: str = "val",
    backend: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    fit: Fit | None = None,
    void_counts: bool = False,
) -> Scores:
    """Score an artifact on a split of a data set, at the size of the label maps, as `enet-eval` does.

    Logs a warning if the artifact was trained on some of the images.

    Args:
        artifact: as `open_runner` takes it.
        data: folder with SPLIT/ and SPLITannot/.
        split: "train", "val" or "test".
        backend: as `open_runner` takes it, like the next three.
        device: by default the backend's own.
        precision: by default the artifact's own.
        fit: by default the artifact's own.
        void_counts: count void pixels as mistakes.

    Raises DataError if the data set is unusable or has other classes, and as `open_runner`.
    """
    images = open_data(data, split)
    with open_runner(artifact, backend, device, precision, fit=fit) as runner:
        confusion, known = evaluate_command.score(runner, images, data, split)
    if known:
        log.warning(trained_on.in_words(known, len(images)))
    return confusion.scores(void_counts)


def segment(
    artifact: str | Path,
    source: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    labels: str | Path | None = None,
    masks: str | Path | None = None,
    confidence: str | Path | None = None,
    json: str | Path | None = None,
    legend: bool = False,
    every: int = 1,
    backend: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    fit: Fit | None = None,
) -> None:
    """Label every frame of a source and write the result, as `enet-segment` does. For one array: `Runner.segment`.

    Args:
        artifact: as `open_runner` takes it.
        source: an image or several, a folder or pattern of images, a video, a camera's number, a URL, a ROS bag, or
            "sample". A live source has no end of its own; a signal ends it.
        out: overlays, by suffix a video, an image or a folder; of a bag also a bag with the labels. Without any
            output, an overlay in the current folder; of a bag, labels.
        labels: class ids, as a .png file or a folder of such files.
        masks: labels in the classes' colours, as a video, an image or a folder.
        confidence: confidences from 0 to 255, as `labels`; of an artifact that was exported with them.
        json: a file with a line of JSON per frame.
        legend: whether overlays have a legend.
        every: label every N-th frame only.
        backend: as `open_runner` takes it, like the next three.
        device: by default the backend's own.
        precision: by default the artifact's own.
        fit: by default the artifact's own.

    Raises DataError if there is nothing to read, InputError for no source and for outputs that are read, and as
    `open_runner`. A signal ends it once the files are finished: Ctrl-C raises KeyboardInterrupt, SIGTERM and SIGHUP
    SystemExit with 143 and 129.
    """
    sources = [source] if isinstance(source, str | Path) else source
    paths = {"out": out, "labels": labels, "masks": masks, "confidence": confidence, "json": json}
    values = {name: None if path is None else str(path) for name, path in paths.items()}
    where = {"backend": backend, "device": device, "precision": precision, "fit": fit}
    words = [artifact, *sources]
    args = cli.call_with(segment_command.make_parser(), words, **values, **where, legend=legend, every=every)
    try:
        segment_command.run(args, is_command=False)
    except SystemExit as stopped:
        if stopped.code != 128 + signal.SIGINT:
            raise
        raise KeyboardInterrupt from None  # what Ctrl-C is in Python; the files are finished
