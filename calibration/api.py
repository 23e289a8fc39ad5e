"""The Python function behind `enet-calibrate`: the same work, with typed arguments."""

from __future__ import annotations

from pathlib import Path

from enet_deploy.artifacts import BUNDLED_WEIGHTS
from enet_deploy.commands import cli
from enet_deploy.export.record import Record

from .cli import make_parser, run


def calibrate(
    data: str | Path,
    out: str | Path = "calibration.json",
    *,
    weights: str | Path = BUNDLED_WEIGHTS,
    method: str = "auto",
    images: int = 100,
    split: str = "train",
    size: tuple[int, int] | None = None,
    sensitivity: str | Path | None = None,
    max_drop: float | None = None,
) -> Record:
    """Measure the ranges for int8 and what int8 costs, as `enet-calibrate` does, and write both to a record.

    Args:
        data: data set, or a folder of images without labels.
        out: the JSON file to write.
        weights: a file of enet-train, or the name of bundled weights.
        method: "minmax", "percentile", "entropy", "mse", or "auto" for the best of them on val, by agreement with
            fp32 if the weights were trained on val.
        images: how many to measure on, spread over the split.
        split: of `data`.
        size: (height, width) of the frames; by default as the weights were trained.
        sensitivity: a folder, to quantise each layer alone and write table and plot there.
        max_drop: points that int8 may cost; the most sensitive layers stay in float until it does not cost more.

    Returns what was written. Raises DataError for an unusable data set, ArtifactError for unusable weights, InputError
    for impossible values, ParityError if `max_drop` is not kept before one layer is left in int8.
    """
    values = {
        "weights": cli.weights(str(weights)),
        "method": method,
        "images": images,
        "split": split,
        "out": Path(out),
        "size": size,
        "sensitivity": None if sensitivity is None else str(sensitivity),
        "max_drop": max_drop,
    }
    run(cli.call_with(make_parser(), [data], **values))
    return Record.read(out)
