"""The Python function behind `enet-bench`: the same work, with typed arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from enet_deploy.arrays import check_count
from enet_deploy.artifacts import BUNDLED_WEIGHTS
from enet_deploy.commands import cli
from enet_deploy.errors import InputError

from .bench import PRECISIONS
from .cli import make_parser, measured
from .run import Run


def benchmark(
    artifacts: Sequence[str | Path] = (),
    *,
    weights: str | Path = BUNDLED_WEIGHTS,
    precisions: Sequence[str] = (),
    calibration: str | Path | None = None,
    backends: Sequence[str] | None = None,
    device: str | None = None,
    threads: int = 0,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    frames: int = 100,
    data: str | Path | None = None,
    split: str = "val",
) -> Run:
    """Measure latency, throughput and parity of runners, side by side in one run, as `enet-bench` does.

    Args:
        artifacts: weights, graphs, engines or names of bundled weights; the first is the baseline. Without any,
            `weights` and their exports.
        weights: parity is measured against these.
        precisions: of the exports; by default fp32.
        calibration: record for their int8; by default that of the bundled weights.
        backends: by default all that are installed, except "trt".
        device: by default each backend's own.
        threads: of the CPU; 0 for each backend's choice.
        size: (height, width) of the frames; by default the artifacts' own.
        batch: frames per call; by default the artifacts' own.
        frames: the least that is timed of each runner.
        data: data set, for real images and accuracy; by default drawn street scenes.
        split: of `data`.

    Returns the run: `run.results` has the figures of each runner, `run.write(path)` writes it as `--json` does.
    Ctrl-C ends it early, and `run.partial` is then True; before the first whole round it raises KeyboardInterrupt.
    Raises as `enet-bench` ends: InputError, ArtifactError, BackendError or DataError.
    """
    for each in precisions:
        if each not in PRECISIONS:
            raise InputError(f"precision {each!r:.60}, expected one of {', '.join(PRECISIONS)}")
    if batch is not None:
        check_count("batch", batch)
    values = {
        "artifacts": [*map(Path, artifacts)],
        "weights": cli.weights(str(weights)),
        "precisions": [*precisions],
        "calibration": None if calibration is None else Path(calibration),
        "backends": None if backends is None else [*backends],
        "device": device,
        "threads": threads,
        "sizes": () if size is None else [size],
        "batches": () if batch is None else [batch],
        "frames": frames,
        "data": None if data is None else str(data),
        "split": split,
    }
    return measured(cli.call_with(make_parser(), [], **values))
