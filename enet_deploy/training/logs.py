"""Reports of a run for people: log.csv, a line of text per epoch, and event files for TensorBoard."""

from __future__ import annotations

import contextlib
import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..classes import ClassList
from ..console import printable
from ..drawing import panels, side_by_side
from ..files import atomic_write, utf8_path
from ..images import UInt8Array
from .evaluation import CLASS_IOU, Example

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Row = Mapping[str, float]  # the figures of one epoch, by column of log.csv

PICTURE_SIDE = 480  # pixels of the longer side of an example picture, so that event files stay small

log = logging.getLogger(__name__)


def write_csv(path: Path, history: Sequence[Row]) -> None:
    """Write one line per epoch, the whole file or nothing. A value that an epoch does not have is left empty."""
    columns = list(dict.fromkeys(name for row in history for name in row))
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


def log_epoch(row: Row, epochs: int) -> None:
    """Log the main figures of an epoch; those per class and those that count void are in log.csv only."""
    names = [name for name in row if name != "epoch" and not name.startswith(CLASS_IOU) and "void_counts" not in name]
    log.info("  ".join([f"epoch {row['epoch']:.0f}/{epochs}", *(f"{name} {row[name]:.5g}" for name in names)]))


def log_correction_sweep(mious: Mapping[float, float], doubt: str) -> None:
    """Log the result of `evaluation.correction_sweep`.

    Args:
        doubt: why these figures may show fit; "" for none.
    """
    figures = "  ".join(f"{alpha:g}: {miou:.4f}" for alpha, miou in mious.items())
    log.info(f"val mIoU of the last weights by --prior-correction{doubt and f' ({doubt})'}: {figures}")


def require_tensorboard(folder: Path) -> None:
    """Raise ModuleNotFoundError or ArtifactError if event files cannot be written; call this before the long work."""
    import torch.utils.tensorboard  # noqa: F401

    utf8_path(folder, "tensorboard")


class TensorBoard:
    """Event files of a run, in one folder: curves over epochs, and example pictures.

    Args:
        folder: is created when the first events are written.
        classes: of the data set, for the colours of label maps.
        epoch: the epoch that the run continues from, 0 for a new run. TensorBoard then hides events of later epochs
            that an interrupted run left in the folder. If the folder has no event file, the curves of the earlier
            epochs are written anew.
    """

    def __init__(self, folder: Path, classes: ClassList, epoch: int) -> None:
        self.folder, self.classes = folder, classes
        self.written = epoch if any(folder.glob("events.out.tfevents.*")) else 0
        self._writer: SummaryWriter | None = None

    def write(self, history: Sequence[Row], examples: Callable[[], Sequence[Example]]) -> None:
        """Write the epochs of `history` that are not written yet; if the last of them was evaluated, pictures too.

        Raises OSError if the files cannot be written. The next call then writes these epochs again.
        """
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            self._writer = SummaryWriter(utf8_path(self.folder, "tensorboard"), purge_step=self.written + 1)
        try:
            self._add(self._writer, history[self.written :], examples)
        except OSError:
            self.close()  # its thread has ended, so it can write no more
            raise
        self.written = len(history)

    def _add(self, writer: SummaryWriter, rows: Sequence[Row], examples: Callable[[], Sequence[Example]]) -> None:
        for row in rows:
            for name in row.keys() - {"epoch"}:
                writer.add_scalar(_tag(name), row[name], int(row["epoch"]))
        if rows and "val_miou" in rows[-1]:
            for example in examples():
                rgb = np.ascontiguousarray(example_picture(example, self.classes)[..., ::-1])
                name = f"examples/{printable(example.name)}"
                writer.add_image(name, rgb, int(rows[-1]["epoch"]), dataformats="HWC")
        writer.flush()

    def close(self) -> None:
        """Close the files. What could not be written is lost."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()


def _tag(column: str) -> str:
    """The name of a curve; TensorBoard groups curves by what is in front of the slash."""
    if column.startswith(CLASS_IOU):
        return f"val_iou/{column.removeprefix(CLASS_IOU)}"
    return f"val/{column.removeprefix('val_')}" if column.startswith("val_") else f"train/{column}"


def example_picture(example: Example, classes: ClassList) -> UInt8Array:
    """Image, truth and prediction side by side: (h, w, 3) uint8 BGR."""
    label_maps = {"truth": example.labels, "prediction": example.predicted}
    return side_by_side(panels(example.frame, label_maps, classes, PICTURE_SIDE))
