"""The start of a run: whether its recipe fits the data, its own network (random or from a file), and the teacher."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..artifacts import Metadata
from ..classes import ClassList
from ..errors import ArtifactError, InputError
from ..files import sha256
from ..model import STRIDE, ENet, Segmenter
from ..trained_on import KEY, TrainedOn, joined
from .crops import Statistics
from .prior import load_uncorrected
from .recipe import Recipe

log = logging.getLogger(__name__)


def require_patience_fits(recipe: Recipe, val_in_train: bool) -> None:
    """Raise InputError if a recipe has patience and all of val is trained on."""
    if recipe.patience and val_in_train:
        raise InputError(
            f"patience {recipe.patience}, but val is trained on and its mIoU keeps rising; expected 0, or "
            "--hold-out instead of --with-val"
        )


def require_fitting(recipe: Recipe, images: int, processes: int) -> None:
    """Raise InputError unless this number of images and processes can be trained on by a recipe."""
    share = recipe.batch // processes  # images of a step in each process
    if recipe.batch % processes:
        raise InputError(f"batch {recipe.batch} over {processes} processes, expected a multiple of {processes}")
    for height, width in (recipe.crop, recipe.final_crop):
        if share * (height // STRIDE) * (width // STRIDE) < 2:
            raise InputError(
                f"crop {height}x{width} with {share} image per process, expected more: batch norm needs two values "
                f"per channel; pass --batch {2 * processes}, or a larger --crop"
            )
    if images < recipe.batch:
        raise InputError(
            f"batch {recipe.batch} for {images} training images, expected at most {images}; pass --batch {images} or "
            "less"
        )


@dataclass(frozen=True)
class StartingPoint:
    """What a run starts from.

    Attributes:
        net: the network to train, on the CPU.
        metadata: of the weights it was read from; None for random weights.
        teacher: a network whose output is learnt beside the labels, on the training device; None without a teacher.
        details: of init and teacher, for the metadata of the new weights.
        trained_on: the images that init and teacher were trained on; None for one that does not say.
    """

    net: ENet
    metadata: Metadata | None
    teacher: Segmenter | None
    details: dict[str, Any]
    trained_on: tuple[TrainedOn | None, ...]

    def new_metadata(
        self, classes: ClassList, statistics: Statistics, recipe: Recipe, trained_on: TrainedOn
    ) -> Metadata:
        """The metadata of the new weights, for frames of the recipe's size and fit, which are trained on these images.

        Weights from a file keep the normalisation that they were trained with: their first layers depend on it.
        """
        known = statistics if self.metadata is None else self.metadata
        details = {**self.details, KEY: joined([trained_on, *self.trained_on]).to_json()}
        return Metadata(classes, known.mean, known.std, recipe.size, details=details, fit=recipe.fit)


def starting_point(
    init: str | Path | None, teacher: str | Path | None, classes: ClassList, recipe: Recipe, device: torch.device
) -> StartingPoint:
    """Make or read the networks. Random weights come from torch's global generator.

    Raises InputError if recipe and weights do not fit each other, and ArtifactError for a bad file.
    """
    if teacher is not None and not recipe.distill:
        raise InputError("distill 0 with a teacher, expected above 0; raise --distill, or leave out --teacher")
    metadata: Metadata | None = None
    segmenter: Segmenter | None = None
    details: dict[str, Any] = {}
    trained_on: list[TrainedOn | None] = []
    if init is None:
        net = ENet(len(classes), recipe.width, recipe.slopes)
    else:
        net, metadata = _initial_network(init, classes, recipe)
        trained_on.append(metadata.trained_on)
        details["init"] = _history(metadata) | {"sha256": sha256(init)}
    if teacher is not None:
        segmenter, of_teacher, width = _read_teacher(teacher, classes, device)
        trained_on.append(of_teacher.trained_on)
        details["teacher"] = _history(of_teacher) | {"sha256": sha256(teacher), "width": width}
    return StartingPoint(net, metadata, segmenter, details, tuple(trained_on))


def _history(metadata: Metadata) -> dict[str, Any]:
    """The details of weights, for those of other weights, which say themselves what both were trained on."""
    return {name: value for name, value in metadata.details.items() if name != KEY}


def _initial_network(path: str | Path, classes: ClassList, recipe: Recipe) -> tuple[ENet, Metadata]:
    """Weights to start from; if their classes are others, with a new last layer."""
    net, metadata = load_uncorrected(path)
    if metadata.classes.names != classes.names:
        log.info(
            f"{path} has other classes ({', '.join(metadata.classes.names)}): all layers are used but the last, which "
            "starts from random weights"
        )
        net.renew_classes(len(classes))
    if net.width != recipe.width:
        raise InputError(f"width {recipe.width}, but {path} has width {net.width}; pass --width {net.width}")
    if recipe.slopes == "channel" and net.slopes == "layer":
        raise InputError(f"slopes channel, but {path} has one slope per layer; pass --slopes layer")
    if recipe.slopes != net.slopes:
        log.info(f"{path} has a PReLU slope per channel: each layer starts from the mean of its slopes")
        net.share_slopes()
    return net, metadata


def _read_teacher(path: str | Path, classes: ClassList, device: torch.device) -> tuple[Segmenter, Metadata, int]:
    """The teacher, its metadata, and its width."""
    net, metadata = load_uncorrected(path)
    if metadata.classes.names != classes.names:
        raise ArtifactError(
            f"{path} has the classes {', '.join(metadata.classes.names)}, expected those of the data set, "
            f"{', '.join(classes.names)}; pass a teacher with these classes, or none"
        )
    teacher = Segmenter(net, metadata.mean, metadata.std).to(device).eval().requires_grad_(False)
    teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return teacher, metadata, net.width
