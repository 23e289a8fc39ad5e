"""Files: atomic writes, locks, hashes."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import ArtifactError


def sha256(path: str | Path) -> str:
    """Return the hex digest of a file's bytes."""
    return digest(Path(path).read_bytes())


def digest(content: bytes) -> str:
    """Return the SHA-256 of `content` in hex."""
    import hashlib  # lazy, as the imports below: keeps `import enet_deploy` fast

    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. It becomes `path` if the block succeeds and is deleted if it fails.

    A reader of `path` sees the old file or the whole new one, even after a crash or on a full disk. If `path` is a
    symbolic link, the file that it points to is replaced.

    Raises ArtifactError if the folder is not writable, or if `path` exists and is no regular file.
    """
    import secrets

    path = _replaceable(path)
    # The leading dot keeps data set readers from taking a leftover of a crash for one of their files
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error}; choose a writable folder") from None
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
    """Raise ArtifactError if `atomic_write` could not write `path`. Call it before long work, not after it."""
    import tempfile

    if str(path) == "-":
        raise ArtifactError("cannot write -: standard output already carries the text; name a file")
    path = _replaceable(path)
    folder = next(parent for parent in path.parents if parent.exists())
    try:  # os.access() is not enough: it tells root that a read-only file system is writable
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        raise ArtifactError(f"cannot write {path}: {folder} is not a writable folder; choose another") from None


def _replaceable(path: str | Path) -> Path:
    """Resolve symbolic links. Raises ArtifactError if the target exists and is no regular file."""
    path = Path(path).resolve()
    if path.exists() and not path.is_file():
        raise ArtifactError(f"cannot write {path}: it is a folder or a device; name a regular file")
    return path


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes while the block runs. `path` is an existing file or folder.

    On systems without such locks (Windows, some network file systems) nothing is locked.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            descriptor = os.open(path, os.O_RDONLY)
            held.callback(os.close, descriptor)  # closing releases the lock, and so does a crash
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` atomically as indented JSON. Raises ArtifactError if that fails."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
