"""Files: written whole or not at all, locked, hashed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import ArtifactError


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    return digest(Path(path).read_bytes())


def digest(content: bytes) -> str:
    import hashlib  # here, as are others below: a robot imports this file, most often for nothing of the kind

    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends well, and vanishes when it does not.

    A reader of `path` sees the old file or the whole new one, also after a crash or a full disk. Where `path` is a
    link, the file it points to is replaced.
    Raises ArtifactError where the folder cannot be written, or `path` is there and no ordinary file.
    """
    import secrets

    path = _replaceable(path)
    # A name with a dot in front: should a crash leave it behind, no data set takes it for one of its files
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error}; choose a folder that can be written") from None
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error}; free space or choose another folder") from None
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: str | Path) -> None:
    """Raise ArtifactError where `atomic_write` could not write `path`: for before the long work, not after it."""
    import tempfile

    if str(path) == "-":
        raise ArtifactError("cannot write -: standard output has the text already; name a file")
    path = _replaceable(path)
    folder = next(parent for parent in path.parents if parent.exists())
    try:  # asking for the permission is not enough: the superuser has it where nothing can be written
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        raise ArtifactError(f"cannot write {path}: {folder} is no folder that can be written; choose another") from None


def _replaceable(path: str | Path) -> Path:
    """The file itself where `path` is a link. Raises ArtifactError where it is there and no ordinary file."""
    path = Path(os.path.realpath(path))  # unlike Path.resolve, it accepts links in a circle
    if path.is_symlink():
        raise ArtifactError(f"cannot write {path}: its links form a circle; remove them")
    if path.exists() and not path.is_file():
        raise ArtifactError(f"cannot write {path}: it is a folder or a device; name an ordinary file")
    return path


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """One process at a time, for two files that belong together; `path` is a file or a folder that is there.

    Where there are no such locks (Windows, some network file systems) nothing is held.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            descriptor = os.open(path, os.O_RDONLY)
            held.callback(os.close, descriptor)  # which lets go, as a crash does
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def parse_json(text: str) -> Any:
    """Parse JSON. Raises ValueError if it is damaged, or has a key twice in one object: the parser would drop one."""
    return json.loads(text, object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!a:.60} is there twice in one object, expected once")
    return value


def write_json(path: str | Path, value: Any) -> None:
    """Write `value`, whole or not at all, indented for people. Raises ArtifactError where that fails."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
