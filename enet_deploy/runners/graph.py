"""What runners of exported graphs (.onnx) share: reading the file, and checks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artifacts import Metadata
from ..errors import ArtifactError, BackendError, InputError

if TYPE_CHECKING:
    import onnx

MAX_THREADS = 1024  # more than any machine's cores; each takes memory

Signature = Mapping[str, tuple[str, Sequence[int | None]]]  # input or output -> (dtype, shape); None is any size


@contextmanager
def reading_text(path: Path) -> Iterator[None]:
    """Turn a UnicodeDecodeError into an ArtifactError: names or metadata of the graph at `path` are not UTF-8."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} has names or metadata that are not UTF-8 ({error}); export it again") from None


def parse_graph(content: bytes, path: Path) -> onnx.ModelProto:
    """Parse the content of the ONNX file at `path`.

    Raises ArtifactError that names `path` if it is no ONNX file, BackendError if the package onnx is not installed.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError:
        raise BackendError("the package 'onnx' is not installed; pip install onnx") from None
    with contextlib.suppress(DecodeError):
        model = onnx.load_model_from_string(content)
        if model.HasField("graph"):
            return model
    raise ArtifactError(f"{path} is no ONNX file, or damaged; export it again with enet-export")


def check_signature(signature: Signature, metadata: Metadata, path: Path) -> int | None:
    """Return the batch size of a graph `frames` -> `labels`; None for any.

    Raises ArtifactError that names `path` if the graph has other inputs, outputs, types or shapes.
    """
    batch = signature.get("frames", ("", [None]))[1][:1]
    wanted = {
        "frames": ("uint8", [*batch, *metadata.size, 3]),
        "labels": ("uint8", [*batch, *metadata.size]),
        "logits": ("float32", [*batch, len(metadata.classes), *metadata.size]),  # whatever type the graph computes in
        "confidence": ("uint8", [*batch, *metadata.size]),
    }
    required = {"frames", "labels"} | (signature.keys() & {"logits", "confidence"})
    if signature.keys() != required or any(signature[name] != wanted[name] for name in required):
        raise ArtifactError(
            f"{path} has the inputs and outputs {signature}, expected {wanted} (logits and confidence may be left "
            "out); export it with enet-export"
        )
    return batch[0] if batch else None


def check_threads(threads: Any) -> int:
    """Return `threads`. Raises InputError unless it is a whole number from 0, the library's own choice, to 1024."""
    if not isinstance(threads, int) or isinstance(threads, bool) or not 0 <= threads <= MAX_THREADS:
        raise InputError(f"threads {threads!r}, expected a whole number up to {MAX_THREADS}, 0 for one per core")
    return threads
