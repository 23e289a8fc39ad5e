"""What the runners of exported graphs (.onnx) check alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..artifacts import Metadata
from ..errors import ArtifactError, InputError

Signature = Mapping[str, tuple[str, Sequence[int | None]]]  # input or output -> (dtype, shape; None: any)


@contextmanager
def reading_text(path: Path) -> Iterator[None]:
    """Raise ArtifactError where a library gives a graph's names and metadata as text, and they are none."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} has names or metadata that are not UTF-8 ({error}); export it again") from None


def check_signature(found: Signature, metadata: Metadata, path: Path) -> int | None:
    """The batch size of a graph `frames` -> `labels`, None for any; ArtifactError for any other graph."""
    batch = found.get("frames", ("", [None]))[1][:1]
    wanted = {
        "frames": ("uint8", [*batch, *metadata.size, 3]),
        "labels": ("uint8", [*batch, *metadata.size]),
        "logits": ("float32", [*batch, len(metadata.classes), *metadata.size]),  # whatever the graph computes in
    }
    required = {"frames", "labels"} | (found.keys() & {"logits"})
    if found.keys() != required or any(found[name] != wanted[name] for name in required):
        raise ArtifactError(
            f"{path} has the inputs and outputs {found}, expected {wanted} (logits may be left out); "
            "export it with enet-export"
        )
    return batch[0] if batch else None


def check_threads(threads: Any) -> int:
    """Raise InputError unless it is a number of threads, 0 for the library's own choice."""
    if not isinstance(threads, int) or threads < 0:
        raise InputError(f"threads {threads!r}, expected a whole number, 0 for one per core")
    return threads
