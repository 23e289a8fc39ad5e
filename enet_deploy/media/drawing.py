"""Pictures for people: a legend, and image, truth and prediction side by side."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ..classes import ClassList
from ..images import UInt8Array

ROW = 22  # pixels of the height of a line of text
INK, PAPER = (40, 40, 40), (250, 250, 250)


def legend(classes: ClassList, height: int) -> UInt8Array:
    """The classes' colours and names, (height, width, 3) uint8 BGR, in as many columns as they need."""
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
        cv2.rectangle(panel, (8, top), (22, top + 14), classes.colors[id_][::-1], cv2.FILLED)
        cv2.rectangle(panel, (8, top), (22, top + 14), INK)
        _write(panel, text, (30, top + 12))
    return panel


def side_by_side(panels: Sequence[tuple[str, UInt8Array]]) -> UInt8Array:
    """Pictures of one height, each below its caption: (h + a line, sum of widths, 3) uint8 BGR."""
    return np.concatenate([_captioned(caption, picture) for caption, picture in panels], axis=1)


def _captioned(caption: str, picture: UInt8Array) -> UInt8Array:
    head = np.full((ROW + 4, picture.shape[1], 3), PAPER, np.uint8)
    _write(head, caption, (6, ROW - 4), picture.shape[1] - 12)
    return np.concatenate([head, picture])


def _write(picture: UInt8Array, text: str, left_bottom: tuple[int, int], room: int | None = None) -> None:
    """Text, smaller where the room for it is less wide."""
    width = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0]
    scale = 0.5 if room is None else 0.5 * min(1, room / width)
    cv2.putText(picture, text, left_bottom, cv2.FONT_HERSHEY_SIMPLEX, scale, INK, 1, cv2.LINE_AA)
