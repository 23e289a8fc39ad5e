"""What a runner must know of an ONNX file, read without the package onnx: metadata, inputs and outputs.

The numbers of the fields are those of onnx.proto, the encoding is protobuf's. Everything else is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from ..artifacts import METADATA_KEY, Metadata, only_metadata
from ..errors import ArtifactError
from .graph import Signature, reading_text

_FIXED = {1: 8, 5: 4}  # wire type -> bytes; type 0 is a varint, type 2 has its length before it
_DTYPES = {1: "float32", 2: "uint8", 10: "float16"}


def read_metadata(content: bytes, path: Path) -> Metadata:
    """Return the metadata of the ONNX file at `path`, whose content is given.

    Raises ArtifactError that names `path` if it is no ONNX file, or if it has no metadata of this package.
    """
    with _reading(path):
        (_,) = _messages(memoryview(content), 7)  # the graph, without which it is another file
        pairs = [list(_messages(entry, 1, 2)) for entry in _messages(memoryview(content), 14)]
        texts = [str(value, "utf-8") for key, value in pairs if key == METADATA_KEY.encode()]
    return only_metadata(texts, path)


def read_signature(content: bytes, path: Path) -> Signature:
    """Return the inputs and outputs of the ONNX file at `path`, whose content is given.

    Raises ArtifactError that names `path` if it is no ONNX file, or if it has weights in other files.
    """
    with _reading(path):
        (graph,) = _messages(memoryview(content), 7)
        if any(1 in _integers(tensor, 14) for tensor in _tensors(graph)):
            raise ArtifactError(f"{path} has weights in other files, expected all of them in it; export it again")
        return dict(map(_port, _messages(graph, 11, 12)))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        with reading_text(path):
            yield
    except (ValueError, IndexError, RecursionError):
        raise ArtifactError(f"{path} is no ONNX file, or damaged: its fields cannot be read; export it again") from None


def _tensors(graph: memoryview) -> Iterator[memoryview]:
    """Yield the weights of a graph: its initializers, and those in attributes, also of graphs within it."""
    yield from _messages(graph, 5)
    for attribute in chain.from_iterable(_messages(node, 5) for node in _messages(graph, 1)):
        yield from _messages(attribute, 5, 10)
        for inner in _messages(attribute, 6, 11):
            yield from _tensors(inner)


def _port(value: memoryview) -> tuple[str, tuple[str, list[int | None]]]:
    """Return (name, (dtype, shape)) of an input or output."""
    (name,), (kind,) = _messages(value, 1), _messages(value, 2)
    (tensor,) = _messages(kind, 1)
    (number,), (shape,) = _integers(tensor, 1), _messages(tensor, 2)
    sides = [next(_integers(side, 1), None) for side in _messages(shape, 1)]
    return str(name, "utf-8"), (_DTYPES.get(number, f"type {number}"), sides)


def _messages(message: memoryview, *numbers: int) -> Iterator[memoryview]:
    """Yield the values of these fields that are bytes: messages, texts."""
    return (value for number, value in _fields(message) if number in numbers and isinstance(value, memoryview))


def _integers(message: memoryview, number: int) -> Iterator[int]:
    return (value for found, value in _fields(message) if found == number and isinstance(value, int))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and value of each field. Raises ValueError or IndexError if it is no message of protobuf's."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        if key & 7 == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size, at = _varint(message, at) if key & 7 == 2 else (_FIXED.get(key & 7, len(message)), at)
        if at + size > len(message):
            raise ValueError("cut off, or of an unknown wire type")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the number at an offset, and the offset behind it."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (message[at] & 0x7F) << shift
        at += 1
        if message[at - 1] < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
