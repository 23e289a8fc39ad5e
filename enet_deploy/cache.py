"""The cache: private folders, and files that are read only if they are what was written under this name."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import tempfile
from pathlib import Path

from .errors import ArtifactError
from .files import atomic_write, digest

log = logging.getLogger(__name__)

_DEFAULT = "XDG_CACHE_HOME for the default one"
_DIGEST_BYTES = 65  # 64 hex digits and a line feed


def cache_folder() -> Path:
    """Return the folder for files that can be created again: $XDG_CACHE_HOME/enet_deploy or ~/.cache/enet_deploy.

    Call `private_folder` before you read from it or write to it: a user without a home has one in the folder for
    temporary files, where others can make it first.
    """
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "enet_deploy"
    try:
        return Path.home() / ".cache" / "enet_deploy"
    except RuntimeError:  # a container's user without a home
        return Path(tempfile.gettempdir()) / f"enet_deploy-{os.getuid()}"


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner can enter, unless it exists, and return it.

    Raises ArtifactError if it cannot be made, belongs to another user, or can be written by others: what lies in it
    would be theirs.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        owners = {os.lstat(path).st_uid, path.stat().st_uid}  # of a link, and of the folder that it leads to
        mode = path.stat().st_mode
    except OSError as error:
        raise ArtifactError(f"cache {path}: {error}; choose another folder ({_DEFAULT})") from None
    if not stat.S_ISDIR(mode):
        raise ArtifactError(f"cache {path} is a file, expected a folder, or a place for one")
    if owners != {os.geteuid()}:
        owner = (owners - {os.geteuid()}).pop()
        raise ArtifactError(
            f"cache {path} belongs to user {owner}, expected yours ({os.geteuid()}): who owns it decides what you run; "
            f"choose another folder ({_DEFAULT})"
        )
    if mode & 0o022:
        raise ArtifactError(
            f"cache {path} has the mode {stat.S_IMODE(mode):o}, which lets others write to it, expected 700; "
            "delete it, or, if you trust what is in it, chmod -R go-w it"
        )
    return path


def private_folder_if_possible(path: Path) -> Path | None:
    """Return `private_folder`, or None with a warning in the log: for files that only save time."""
    try:
        return private_folder(path)
    except ArtifactError as error:
        log.warning("%s; nothing is kept for the next time", error)
        return None


def read_entry(path: Path) -> bytes:
    """Return what `write_entry` wrote to this path; b"" if there is nothing, or if it is damaged or another's."""
    try:
        content = path.read_bytes()
    except OSError:
        return b""
    expected, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return content if expected == _digest_line(path, content) else b""


def write_entry(path: Path, content: bytes) -> None:
    """Write a file that `read_entry` reads, if that is possible: a cache that is full or read-only is no error."""
    with contextlib.suppress(ArtifactError), atomic_write(path) as temporary:
        temporary.write_bytes(_digest_line(path, content) + content)


def _digest_line(path: Path, content: bytes) -> bytes:
    return digest(path.name.encode() + b"\n" + content).encode() + b"\n"
