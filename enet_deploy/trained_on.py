"""Which images weights were trained on: a short hash of each image's pixels travels in the metadata.

Scores on such images show fit, not accuracy on new images. The hash is of the decoded pixels, so an image that was
saved again without loss, under whatever name, is still recognised. One that was resized or compressed is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from .errors import InputError
from .images import UInt8Array

Rest = TypeVar("Rest")

KEY = "trained_on"  # in the metadata's details
_LENGTH = 8  # characters of a hash, 48 bits: among a million images one other image in 3e8 is taken for one of them


@dataclass(frozen=True)
class TrainedOn:
    """The images that weights were trained on, also as a part of the weights that they started from, or of a teacher.

    Attributes:
        hashes: `pixel_hash` of each image.
        is_complete: False if the weights that they started from, or a teacher's, do not say what they were trained on.
    """

    hashes: frozenset[str]
    is_complete: bool = True

    @classmethod
    def from_json(cls, value: Any) -> TrainedOn:
        """Read what `to_json` returned. Raises InputError for another form."""
        text, complete = (value.get(name) if isinstance(value, dict) else None for name in ("hashes", "complete"))
        if not isinstance(text, str) or not re.fullmatch(rf"([\w-]{{{_LENGTH}}})*", text, re.ASCII):
            raise InputError(f"{KEY} has the hashes {text!r:.60}, expected {_LENGTH} characters for each image")
        if not isinstance(complete, bool):
            raise InputError(f"{KEY} has complete {complete!r:.60}, expected true or false")
        return cls(frozenset(text[i : i + _LENGTH] for i in range(0, len(text), _LENGTH)), complete)

    def to_json(self) -> dict[str, Any]:
        """Eight characters for each image, in one string."""
        return {"hashes": "".join(sorted(self.hashes)), "complete": self.is_complete}


def pixel_hash(image: UInt8Array) -> str:
    """The hash of a decoded image, (h, w, 3) uint8 BGR: 8 characters."""
    import base64  # lazy, as hashlib: a robot imports this file and hashes no image
    import hashlib

    size = "x".join(map(str, image.shape[:2])).encode()
    content = np.ascontiguousarray(image).data
    return base64.urlsafe_b64encode(hashlib.blake2b(content, digest_size=6, person=size).digest()).decode("ascii")


def hashing(pairs: Iterable[tuple[UInt8Array, Rest]], hashes: list[str]) -> Iterator[tuple[UInt8Array, Rest]]:
    """Pass the pairs on, and append the hash of each image to `hashes`."""
    for image, rest in pairs:
        hashes.append(pixel_hash(image))
        yield image, rest


def joined(parts: Sequence[TrainedOn | None]) -> TrainedOn:
    """The images of all parts; None stands for weights that do not say."""
    known = [part for part in parts if part is not None]
    hashes = frozenset().union(*(part.hashes for part in known))
    return TrainedOn(hashes, len(known) == len(parts) and all(part.is_complete for part in known))


def count(known: TrainedOn | None, hashes: Sequence[str]) -> int | None:
    """Return how many of these images the weights were trained on.

    None if the weights do not say. None too if they name only a part of their images, and none of these is in it.
    """
    if known is None:
        return None
    found = sum(each in known.hashes for each in hashes)
    return found if found or known.is_complete else None


def in_words(trained_on: int | None, images: int) -> str:
    """Say how many of the images were trained on.

    Args:
        trained_on: from `count`.
    """
    if trained_on is None:
        return "not known whether these images were trained on: the weights do not say"
    if trained_on == 0:
        return f"not trained on: none of the {images} images"
    return f"TRAINED ON: {trained_on} of the {images} images, so this shows fit, not accuracy on new images"
