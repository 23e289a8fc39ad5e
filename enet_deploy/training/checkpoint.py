"""The state of a run on disk: `checkpoint.pt`, all that is needed to resume it to the same bits."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..artifacts import Metadata
from ..data import DataSet
from ..errors import ArtifactError
from ..files import atomic_write
from .recipe import Recipe

CHECKPOINT = "checkpoint.pt"  # in a run's folder


@dataclass(frozen=True)
class RunIdentity:
    """What has to be the same when a run is resumed, in words for an error message.

    Attributes:
        classes: names, in order.
        images: number of training images, and a hash of the names of all images.
        label_values: hash of the classes' values in label maps.
        processes: number of processes that train together.
        teacher: sha256 of the teacher's weights; None without a teacher.
    """

    classes: str
    images: str
    label_values: str
    processes: int
    teacher: str | None

    @classmethod
    def of(cls, train: DataSet, val: DataSet, processes: int, teacher: str | None) -> RunIdentity:
        names = "\n".join(f"{image.parent.name}/{image.name}" for data in (train, val) for image, _ in data.pairs)
        return cls(
            ", ".join(train.classes.names),
            f"{len(train)} ({_short_hash(os.fsencode(names))})",
            _short_hash(repr(sorted(train.values_in_use().items())).encode()),
            processes,
            teacher,
        )

    def require_same(self, other: RunIdentity, out: Path) -> None:
        """Raise ArtifactError if the run in folder `out`, which is `other`, cannot be resumed as this one."""
        for what, name in (
            ("classes", "classes"),
            ("training images", "images"),
            ("values of classes in label maps, by hash", "label_values"),
            ("processes", "processes"),
            ("--teacher of sha256", "teacher"),
        ):
            if getattr(self, name) != getattr(other, name):
                raise ArtifactError(
                    f"{out / CHECKPOINT} was made with the {what} {getattr(other, name)}, these are "
                    f"{getattr(self, name)}; use the same, or another --out"
                )


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run at the end of an epoch.

    Attributes:
        metadata: of the weights, with the normalisation that the run uses.
        epoch, step: that are done.
        best: highest val mIoU so far; -1 before the first evaluation.
        history: figures by epoch, as in log.csv.
        class_weights: (C,) float32, on the CPU.
        net, ema, optimizer: state dicts; `ema` is None if the recipe has no average.
    """

    recipe: Recipe
    metadata: Metadata
    identity: RunIdentity
    epoch: int
    step: int
    best: float
    history: list[dict[str, float]]
    class_weights: Tensor
    net: dict[str, Any]
    ema: dict[str, Any] | None
    optimizer: dict[str, Any]

    def write(self, out: Path) -> None:
        """Write it into the folder `out`, the whole file or nothing."""
        # not dataclasses.asdict as a whole: it would copy every tensor
        state = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        state |= {
            "recipe": dataclasses.asdict(self.recipe),
            "metadata": self.metadata.to_text(),
            "identity": dataclasses.asdict(self.identity),
        }
        content = io.BytesIO()  # if these bytes do not fit on the disk, that is an OSError as everywhere else
        torch.save(state, content)
        with atomic_write(out / CHECKPOINT) as temporary:
            temporary.write_bytes(content.getvalue())

    @classmethod
    def read(cls, out: str | Path) -> Checkpoint:
        """Read the state that a run left in the folder `out`. Runs no code from the file.

        Raises ArtifactError if there is none, or if it is damaged or of another version.
        """
        path = Path(out) / CHECKPOINT
        if not path.is_file():
            raise ArtifactError(f"{path} does not exist; there is no run to resume in {out}: leave out --resume")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state |= {
                "recipe": Recipe(**state["recipe"]),
                "metadata": Metadata.from_text(state["metadata"], path),
                "identity": RunIdentity(**state["identity"]),
                "epoch": int(state["epoch"]),
            }
            return cls(**state)
        except Exception as error:  # noqa: BLE001  torch.load raises whatever the bytes lead it to
            raise ArtifactError(
                f"{path} is not a whole checkpoint of this version ({type(error).__name__}); start again with another "
                "--out"
            ) from None


@contextlib.contextmanager
def reading_checkpoint(out: Path) -> Iterator[None]:
    """Turn errors in this block, where a checkpoint's state is used, into an ArtifactError: the file is damaged."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{out / CHECKPOINT} is not a whole checkpoint ({error!r}); start again with another --out"
        ) from None
