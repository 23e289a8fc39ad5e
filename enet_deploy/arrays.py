"""The checks that every public function makes of the arrays and numbers that it is given."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import InputError

MOST_PIXELS = (1 << 31) - 1  # of a picture: OpenCV counts with 32 bits


def is_uint8(value: Any, kind: type[Any] = np.ndarray) -> bool:
    """Return whether `value` is a `kind` of dtype uint8. A masked array is not: its mask would be lost."""
    return isinstance(value, kind) and value.dtype == np.uint8 and not isinstance(value, np.ma.MaskedArray)


def described(value: Any, kind: type[Any] = np.ndarray) -> str:
    """Return what `value` is, in words, if it is not what was expected."""
    if isinstance(value, np.ma.MaskedArray):
        return f"a masked array of {value.dtype}"
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, kind) else f"a {type(value).__name__}"


def check_image(image: Any) -> None:
    """Raise InputError unless `image` is (h, w, 3) uint8 with at least one pixel."""
    if image is None:
        raise InputError("image is None, expected a picture; cv2.imread returns None for a file that it cannot read")
    if not is_uint8(image) or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"image is {described(image)}, expected uint8 of shape (height, width, 3) in BGR order")
    if 0 in image.shape:
        raise InputError(f"image has shape {image.shape}, expected at least one pixel")


def check_label_map(labels: Any, shape: tuple[int, ...] | None = None) -> None:
    """Raise InputError unless `labels` is (h, w) uint8 with at least one pixel; of this shape, if it is given."""
    expected = "(height, width)" if shape is None else f"{shape}"
    if not is_uint8(labels) or labels.ndim != 2 or (shape is not None and labels.shape != shape):
        raise InputError(f"labels is {described(labels)}, expected uint8 of shape {expected}, class ids")
    if 0 in labels.shape:
        raise InputError(f"labels has shape {labels.shape}, expected at least one pixel")


def check_picture_size(size: Any) -> None:
    """Raise InputError unless `size` is (height, width), two whole numbers of at least 1."""
    is_pair = isinstance(size, tuple | list) and len(size) == 2 and all(map(_is_whole, size))
    if not is_pair or min(size) < 1 or int(size[0]) * int(size[1]) > MOST_PIXELS:
        raise InputError(
            f"size {size!r:.60}, expected two whole numbers of at least 1: (height, width), of at most {MOST_PIXELS} "
            "pixels"
        )


def check_count(name: str, value: Any) -> None:
    """Raise InputError that says `name` unless `value` is a whole number of at least 1."""
    if not _is_whole(value) or value < 1:
        raise InputError(f"{name} {value!r:.60}, expected a whole number of at least 1")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
