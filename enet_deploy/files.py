"""Files: atomic writes, outputs kept apart from inputs, locks, hashes."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .errors import ArtifactError, InputError

NAME_BYTES = 255  # of a file's name, on the file systems of Linux and macOS
_UNFINISHED = re.compile(r"\.enet-[0-9a-f]{8}")
_looked_through: set[Path] = set()  # folders in which this process has removed what killed ones left


def sha256(path: str | Path) -> str:
    """Return the hex digest of a file's bytes."""
    return digest(Path(path).read_bytes())


def digest(content: bytes) -> str:
    """Return the SHA-256 of `content` in hex."""
    import hashlib  # lazy, as the imports below: keeps `import enet_deploy` fast

    return hashlib.sha256(content).hexdigest()


def is_folder(path: str | Path) -> bool:
    """Whether a path is a folder; False also if that cannot be found out, as below a folder that may not be read."""
    try:
        return Path(path).is_dir()
    except OSError:
        return False


def exists(path: Path) -> bool:
    """Whether something has this name; False for a text that is too long to be one, such as a pipeline."""
    try:
        return path.exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path. It becomes `path` if the block succeeds and is deleted if it fails.

    A reader of `path` sees the old file or the whole new one, even after a crash or on a full disk. If `path` is a
    link, the file that it points to is replaced. A replaced file's mode stays, and its owner and group if this user
    may set them. The temporary path has the name of `path`, in a hidden folder beside it (see `hidden_folder`).

    Raises ArtifactError if the folder cannot be written, or if `path` exists and is no ordinary file.
    """
    path = _replaceable(path)
    with hidden_folder(path.parent, path) as folder:
        temporary = folder / path.name
        try:
            temporary.touch(exist_ok=False)
        except OSError as error:
            raise ArtifactError(f"cannot write {path}: {error}; choose a writable folder") from None
        try:
            yield temporary
            _keep_mode_and_owner(path, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise ArtifactError(f"cannot write {path}: {error}; free space or choose another folder") from None


@contextlib.contextmanager
def hidden_folder(parent: Path, path: Path) -> Iterator[Path]:
    """A new folder, `.enet-` and 8 hex digits, in which `path` is made; it vanishes when the block ends.

    It is locked until then. A process that is killed leaves it behind, without the lock, and the next one that writes
    into `parent` removes it. Raises ArtifactError, naming `path`, if `parent` cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if parent not in _looked_through:
            _looked_through.add(parent)
            _remove_unfinished(parent)
        held = False
        while not held:  # another process may take the new folder for a killed one's, before it is locked
            folder = parent / f".enet-{os.urandom(4).hex()}"
            folder.mkdir()
            lock = _lock(folder, wait=True)
            held = lock is not None
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error}; choose a writable folder") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unlock(lock)


def _remove_unfinished(parent: Path) -> None:
    """Remove what killed processes of this user left in a folder."""
    with contextlib.suppress(OSError, AttributeError):  # Windows has no user ids
        for entry in os.scandir(parent):
            if not _UNFINISHED.fullmatch(entry.name) or not entry.is_dir(follow_symlinks=False):
                continue
            if entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                lock = _lock(Path(entry.path), wait=False)
                if lock is not None and lock >= 0:
                    shutil.rmtree(entry.path, ignore_errors=True)
                    _unlock(lock)


def _keep_mode_and_owner(path: Path, temporary: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        old, new = path.stat(), temporary.stat()
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            with contextlib.suppress(PermissionError):
                os.chown(temporary, -1, old.st_gid)
            with contextlib.suppress(PermissionError):
                os.chown(temporary, old.st_uid, -1)
        if stat.S_IMODE(old.st_mode) != stat.S_IMODE(new.st_mode):
            temporary.chmod(stat.S_IMODE(old.st_mode))


def require_outputs(
    files: Iterable[str | Path | None],
    reads: Iterable[str | Path | None],
    folders: Iterable[str | Path] = (),
) -> None:
    """Check before the long work what a command will write against what it reads. Every command calls this.

    Two paths are the same if they lead to one file, also through symbolic or hard links or by another spelling.

    Args:
        files: to write; None is no file.
        reads: files that are read, and folders all of whose files are; None is none.
        folders: that get PNG files.

    Raises ArtifactError if an output cannot be written, InputError if it is read, lies in a folder that is read, or is
    written twice.
    """
    outputs, into = [path for path in files if path is not None], [*folders]
    for path in outputs:
        require_writable(path)
    for path in into:
        if os.path.isfile(path):  # noqa: PTH113  False also in a folder that may not be entered
            raise InputError(f"{path} is a file, expected a folder; name another, or one with an image's suffix")
        require_writable(Path(path) / "1.png")
    taken, read_folders = _what_is_read(path for path in reads if path is not None)
    written: dict[object, str | Path] = {}
    for path in outputs + into:
        read = taken.get(identity(path)) or _folder_around(path, read_folders)
        if read is not None:
            raise InputError(f"{path} would write over {read}, which is read; name another file or folder")
        if identity(path) in written:
            raise InputError(
                f"{written[identity(path)]} and {path} are the same, expected a different path for each output"
            )
        written[identity(path)] = path
    for folder in map(Path, into):
        for entry in folder.glob("*.png"):
            read = taken.get(identity(entry)) or (entry.is_symlink() and _folder_around(entry, read_folders)) or None
            if read is not None:
                raise InputError(f"{entry} leads to {read}, which is read; write to another folder")
        for path in map(Path, outputs):
            if path.suffix.lower() == ".png" and identity(path.parent) == identity(folder):
                raise InputError(f"{path} lies in {folder}, which gets images of such names; name another file")


def _what_is_read(paths: Iterable[str | Path]) -> tuple[dict[object, Path], dict[object, Path]]:
    """By identity: the files that are read, and the folders."""
    files: dict[object, Path] = {}
    folders: dict[object, Path] = {}
    for path in map(Path, paths):
        if not is_folder(path):
            files[identity(path)] = path
            continue
        for here, _, _ in os.walk(path):
            folders[identity(here)] = Path(here)
            with contextlib.suppress(OSError):
                for entry in os.scandir(here):  # a file without links to it is found by its folder
                    if entry.is_symlink() or (entry.is_file() and entry.stat().st_nlink > 1):
                        files[identity(entry.path)] = Path(entry.path)
    return files, folders


def _folder_around(path: str | Path, folders: dict[object, Path]) -> Path | None:
    """Which of the folders a path is, or lies in; None if none."""
    if not folders:
        return None
    real = Path(os.path.realpath(path))
    return next((folders[key] for key in map(identity, (real, *real.parents)) if key in folders), None)


def identity(path: str | Path) -> object:
    """The same for two paths if they lead to the same file, or would once it exists."""
    real = os.path.realpath(path)
    with contextlib.suppress(OSError):
        info = os.stat(real)  # noqa: PTH116  a text is enough
        if info.st_ino:  # 0 on some network file systems
            return info.st_dev, info.st_ino
    parent, name = os.path.split(real)
    # some file systems take names for the same that differ in case or in the form of their accents
    return (identity(parent), unicodedata.normalize("NFC", name).casefold()) if name else real


def require_writable(path: str | Path) -> None:
    """Raise ArtifactError if `atomic_write` could not write `path`. Call it before long work, not after it."""
    import tempfile

    if str(path) == "-":
        raise ArtifactError("cannot write -: standard output already carries the text; name a file")
    for part in (Path(path), *Path(path).parents):
        require_short_name(part)
    path = _replaceable(path)
    folder = next(parent for parent in path.parents if parent.exists())
    try:  # asking for the permission is not enough: the superuser has it where nothing can be written
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        raise ArtifactError(f"cannot write {path}: {folder} is not a writable folder; choose another") from None


def require_short_name(path: Path) -> None:
    """Raise ArtifactError if no file can have this name."""
    size = len(os.fsencode(path.name))
    if size > NAME_BYTES:
        raise ArtifactError(
            f"cannot write {path}: a name of {size} bytes, expected at most {NAME_BYTES}; choose a shorter one"
        )


def utf8_path(path: Path, library: str, other: str = "") -> str:
    """Return a path for a library that takes no other text than UTF-8, whatever the locale.

    Raises ArtifactError that names the library, and `other` as another remedy, if the path is not UTF-8.
    """
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError:
        remedy = "rename it or its folder" + f", or {other}" * bool(other)
        raise ArtifactError(f"{path} is not UTF-8, and {library} takes no other paths; {remedy}") from None


def _replaceable(path: str | Path) -> Path:
    """The file itself if `path` is a link. Raises ArtifactError if it exists and is no ordinary file."""
    real = Path(os.path.realpath(path))
    try:
        if real.is_symlink():  # links in a circle lead nowhere
            raise ArtifactError(f"cannot write {path}: its links form a circle; name an ordinary file")
        if real.exists() and not real.is_file():
            raise ArtifactError(f"cannot write {real}: it is a folder or a device; name an ordinary file")
    except OSError as error:  # a folder that may not be entered
        raise ArtifactError(f"cannot write {path}: {error}; choose a writable folder") from None
    return real


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """One process at a time, for two files that belong together; `path` is a file or a folder that exists.

    Where there are no such locks (Windows, some network file systems) nothing is held.
    """
    lock = _lock(Path(os.path.realpath(path)), wait=True)
    try:
        yield
    finally:
        _unlock(lock)


@contextlib.contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Let no other process into a block like this one for the same folder, which is created if needed.

    Raises ArtifactError if one is in it, or if the folder cannot be written. Locks as `file_lock`.
    """
    path = folder / ".enet-running"
    is_new = not is_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
        lock = _lock(path, wait=False)
    except OSError as error:
        raise ArtifactError(f"cannot write {folder}: {error}; choose a writable folder") from None
    if lock is None:
        raise ArtifactError(f"{folder} is being written by another process; wait for its end, or name another folder")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _unlock(lock)
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if it is still empty


def _lock(path: Path, wait: bool) -> int | None:
    """Lock a file or a folder; its descriptor, or -1 where there are no locks.

    None if another process has it and this one should not wait, or if the path is gone or another one's by now.
    """
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except (ImportError, OSError):
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        is_there = os.path.samestat(os.fstat(descriptor), path.lstat())
    except (BlockingIOError, FileNotFoundError):
        is_there = False
    except OSError:  # a file system without locks
        os.close(descriptor)
        return -1
    if is_there:
        return descriptor
    os.close(descriptor)
    return None


def _unlock(lock: int | None) -> None:
    if lock is not None and lock >= 0:
        os.close(lock)  # which lets go, as a crash does


def parse_json(text: str) -> Any:
    """Parse JSON, also with the byte order mark that some editors write.

    Raises ValueError if it is damaged, has a key twice in one object (the parser would drop one), or a number that is
    not finite (which JSON does not have, and Python's parser takes).
    """
    return json.loads(
        text.removeprefix("\ufeff"), object_pairs_hook=_unique_keys, parse_constant=_finite, parse_float=_finite
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!a:.60} is there twice in one object, expected once")
    return value


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"the number {number:.60}, expected a finite one")
    return value


def write_json(path: str | Path, value: Any) -> None:
    """Write `value`, whole or not at all, indented for people. Raises ArtifactError if that fails."""
    with atomic_write(path) as temporary:
        temporary.write_text(_NUMBERS.sub(_on_one_line, json.dumps(value, indent=2, allow_nan=False)) + "\n", "utf-8")


_NUMBERS = re.compile(r"\[\n\s+([^][{}\"]*?)\n\s+\]")  # a list that holds neither texts nor lists
_LINE = 100  # characters of a list on one line


def _on_one_line(found: re.Match[str]) -> str:
    line = f"[{' '.join(found[1].split())}]"
    return line if len(line) <= _LINE else found[0]
