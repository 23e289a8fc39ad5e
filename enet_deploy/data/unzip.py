"""Unpacking a data set's zip file, which comes from outside: all of it, or nothing."""

from __future__ import annotations

import lzma
import os
import posixpath
import re
import secrets
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from ..console import progress
from ..errors import ArtifactError, DataError

MAX_FILES = 1_000_000
MAX_RATIO = 100  # of the content to the zip; images hardly shrink
SMALL = 1 << 30  # bytes that may shrink more: label maps that are not compressed themselves


def unzip(path: str | Path, folder: str | Path) -> int:
    """Unpack a zip file into a new folder; return how many files it held.

    The names and sizes of all its members are judged before anything is written, and the folder appears when it is
    whole. Raises DataError where the file is damaged, no zip file, or not to be unpacked, ArtifactError where the
    folder is there already or cannot be written.
    """
    folder = Path(folder).resolve()
    if not Path(path).is_file():
        raise DataError(f"{path} is no file, expected a zip file")
    try:
        with zipfile.ZipFile(path) as archive:
            _require_harmless(Path(path), archive.infolist())
            members = [member for member in archive.infolist() if not member.is_dir()]
            _unpack(archive, members, folder)
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,
        OSError,
        UnicodeDecodeError,
    ) as error:
        raise DataError(f"{path} cannot be unpacked: {error}; expected a whole zip file, fetch it again") from None
    return len(members)


def _require_harmless(path: Path, members: list[zipfile.ZipInfo]) -> None:
    places: set[str] = set()
    within = {part.as_posix() for member in members for part in PurePosixPath(member.filename).parents}
    for member in members:
        place = posixpath.normpath(member.filename)
        flaw = _flaw(member) or ("is in it twice" if place in places else "")
        if not flaw and place in within and not member.is_dir():
            flaw = "is a file and a folder"
        if flaw:
            raise DataError(
                f"{path} has the member {member.filename[:100]!a}, which {flaw}; expected files below one folder, so "
                "nothing was unpacked: take the zip from somewhere else"
            )
        places.add(place)
    size, packed = sum(member.file_size for member in members), path.stat().st_size
    if len(members) > MAX_FILES or size > max(SMALL, MAX_RATIO * packed):
        raise DataError(
            f"{path} of {packed} bytes would become {len(members)} files of {size} bytes; expected at most {MAX_FILES} "
            f"files and {MAX_RATIO} times its size: it is a zip bomb, or to be unpacked by other means"
        )


def _flaw(member: zipfile.ZipInfo) -> str:
    """What keeps a member from being unpacked; "" where nothing does."""
    name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
    if not name:
        return "has no name"
    if ".." in name.split("/") or name.startswith("/"):
        return "leads out of the folder"
    if re.match("[A-Za-z]:", name) or "\\" in name or not name.isprintable():
        return "has a drive, a backslash or a control character"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if member.flag_bits & 1:
        return "is encrypted"
    return ""


def _unpack(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path) -> None:
    if os.path.lexists(folder):  # even an empty one may be a mount point, or where somebody's shell is
        raise ArtifactError(f"{folder} is there already; name a folder that is not, such as {folder / 'data'}")
    unfinished = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    try:
        unfinished.mkdir(parents=True)
        free, size = shutil.disk_usage(unfinished).free, sum(member.file_size for member in members)
        if size > free:
            raise ArtifactError(f"{folder} would take {size} bytes and {free} are free; free space or choose another")
        for member in progress(members, folder.name):
            archive.extract(member, unfinished)
        unfinished.replace(folder)
    except OSError as error:
        raise ArtifactError(f"cannot write {folder}: {error}; free space or choose another folder") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
