"""Draw a legend, and pictures of image, truth and prediction side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from .classes import ClassList
from .images import UInt8Array, painted, resize_image, resize_labels

ROW = 22  # height of a line of text, in pixels
INK, PAPER = (40, 40, 40), (250, 250, 250)  # colours, BGR


def legend(classes: ClassList, height: int) -> UInt8Array:
    """Draw the classes' names and `overlay_colors`, (height, width, 3) uint8 BGR, in as many columns as they need."""
    rows = max(1, (height - ROW // 2) // ROW)
    columns = [
        _column(classes, range(start, min(start + rows, len(classes)))) for start in range(0, len(classes), rows)
    ]
    width = sum(column.shape[1] for column in columns)
    panel = np.full((height, width, 3), PAPER, np.uint8)
    left = 0
    for column in columns:
        shown = column[:height]
        panel[: shown.shape[0], left : left + shown.shape[1]] = shown
        left += shown.shape[1]
    return panel


def _column(classes: ClassList, ids: Sequence[int]) -> UInt8Array:
    texts = [classes.names[id_] for id_ in ids]
    width = max(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0] for text in texts)
    panel = np.full((ROW * len(texts) + ROW // 2, width + 40, 3), PAPER, np.uint8)
    for row, (id_, text) in enumerate(zip(ids, texts, strict=True)):
        top = row * ROW + 8
        cv2.rectangle(panel, (8, top), (22, top + 14), classes.overlay_colors[id_][::-1], cv2.FILLED)
        cv2.rectangle(panel, (8, top), (22, top + 14), INK)
        _write(panel, text, (30, top + 12))
    return panel


def panels(
    image: UInt8Array, label_maps: Mapping[str, UInt8Array], classes: ClassList, longest: int | None = None
) -> dict[str, UInt8Array]:
    """Paint an image and label maps of it: caption -> (h, w, 3) uint8 BGR, all of one size, the image first.

    Args:
        image: (H, W, 3) uint8 BGR, captioned "image".
        label_maps: caption -> (H, W) uint8 class ids, painted in `classes.overlay_colors`.
        classes: of the label maps.
        longest: scale the pictures down to at most this many pixels of their longer side.
    """
    scale = 1.0 if longest is None else min(1, longest / max(image.shape[:2]))
    size = max(1, round(scale * image.shape[0])), max(1, round(scale * image.shape[1]))
    pictures = {
        caption: painted(resize_labels(labels, size), classes.overlay_colors) for caption, labels in label_maps.items()
    }
    return {"image": resize_image(image, size), **pictures}


def side_by_side(pictures: Mapping[str, UInt8Array]) -> UInt8Array:
    """Join pictures of one height, each below its caption: (h + a line, sum of widths, 3) uint8 BGR."""
    return np.concatenate([_captioned(caption, picture) for caption, picture in pictures.items()], axis=1)


def _captioned(caption: str, picture: UInt8Array) -> UInt8Array:
    head = np.full((ROW + 4, picture.shape[1], 3), PAPER, np.uint8)
    _write(head, caption, (6, ROW - 4), picture.shape[1] - 12)
    return np.concatenate([head, picture])


def _write(picture: UInt8Array, text: str, left_bottom: tuple[int, int], room: int | None = None) -> None:
    """Write text, smaller if it is wider than `room` pixels."""
    width = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0]
    scale = 0.5 if room is None else 0.5 * min(1, room / width)
    cv2.putText(picture, text, left_bottom, cv2.FONT_HERSHEY_SIMPLEX, scale, INK, 1, cv2.LINE_AA)
