"""The label maps beside a source's images, and the score of the labels against them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from ..classes import ClassList, is_cityscapes
from ..data import open_data, require_same_classes
from ..errors import DataError, InputError
from ..metrics import ConfusionMatrix
from .frames import FrameSource, LabelledFrame
from .image_files import ImageFiles


class GroundTruth:
    """The label maps that lie beside a source's images.

    Attributes:
        confusion: counts the pixels of all frames that were given to `add_to`.

    Raises InputError if the source is not one split of a data set, DataError if label maps are missing or of other
    classes.
    """

    def __init__(self, source: FrameSource, classes: ClassList) -> None:
        splits = splits_of(source)
        if len(splits) != 1:
            raise InputError(
                f"--compare for {source.name}, expected images of one folder NAME with NAMEannot beside it, or of one "
                "split of Cityscapes"
            )
        ((root, split),) = splits
        self._data = open_data(root, split)
        require_same_classes(classes, self._data.classes, root, "the artifact knows")
        self._index = {image.stem: index for index, (image, _) in enumerate(self._data.pairs)}
        self.confusion = ConfusionMatrix(classes)

    def add_to(self, item: LabelledFrame) -> LabelledFrame:
        """Return the frame with its true labels, and count its pixels. Raises DataError if it has no label map."""
        index = self._index.get(item.frame.name)
        if index is None:
            raise DataError(f"{item.frame.name} has no label map in the data set; add it, or leave out --compare")
        truth = self._data.read_labels(index)
        if truth.shape != item.labels.shape:
            image, label_map = self._data.pairs[index]
            raise DataError(f"{label_map} is not of the size of {image}; a label map has the size of its image")
        self.confusion.update(truth, item.labels)
        return dataclasses.replace(item, truth=truth)


def splits_of(source: FrameSource) -> set[tuple[Path, str]]:
    """The data sets and splits that a source's images belong to, each as `split_of`; none if it has no image files."""
    return {split_of(path) for path in source.paths} if isinstance(source, ImageFiles) else set()


def label_folders(source: FrameSource) -> list[Path]:
    """The folders that hold label maps of a source's images, read or not: no output belongs there."""
    folders = (
        root / "gtFine" / split if is_cityscapes(root) else root / f"{split}annot" for root, split in splits_of(source)
    )
    return [folder for folder in folders if folder.is_dir()]


def split_of(image: Path) -> tuple[Path, str]:
    """The root of the data set that an image belongs to by its folder, with links to it resolved, and its split."""
    folder = Path(os.path.realpath(image.parent))
    if folder.parent.parent.name == "leftImg8bit":  # Cityscapes has a folder per city
        return folder.parents[2], folder.parent.name
    return folder.parent, folder.name
