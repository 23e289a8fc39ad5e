"""Unpack a data set's zip file from an untrusted source: all of it, or nothing."""

from __future__ import annotations

import lzma
import os
import posixpath
import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from ..console import progress
from ..errors import ArtifactError, DataError
from ..files import NAME_BYTES, hidden_folder

MAX_FILES = 1_000_000
MAX_NAME = 1000  # characters of a member's name, with its folders
MAX_DEPTH = 50  # folders of a member
MAX_RATIO = 100  # size of the content over size of the zip; images hardly compress
SMALL = 1 << 30  # bytes of content for which any ratio is allowed: uncompressed label maps compress well


def unzip(path: str | Path, folder: str | Path) -> int:
    """Unpack a zip file into a new folder; return the number of its files.

    The names and sizes of all members are checked before anything is written, and the folder appears when it is
    complete. Raises DataError if the file is damaged, no zip file or unsafe, ArtifactError if the folder exists or
    cannot be written.
    """
    folder = Path(folder).resolve()
    try:
        if not Path(path).is_file():
            raise DataError(f"{path} is not a file, expected a zip file")
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
        UnicodeError,
    ) as error:
        raise DataError(f"{path} cannot be unpacked: {error}; expected a whole zip file, fetch it again") from None
    return len(members)


def _require_harmless(path: Path, members: list[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    _require_short(path, members)
    folders = {part.as_posix() for member in members for part in PurePosixPath(member.filename).parents}
    for member in members:
        name = posixpath.normpath(member.filename)
        flaw = _flaw(member) or ("is in it twice" if name in seen else "")
        if not flaw and name in folders and not member.is_dir():
            flaw = "is a file and a folder"
        if flaw:
            raise DataError(
                f"{path} has the member {member.filename[:100]!a}, which {flaw}; expected files below one folder, so "
                "nothing was unpacked: get the zip from another source"
            )
        seen.add(name)
    size, packed = sum(member.file_size for member in members), path.stat().st_size
    if len(members) > MAX_FILES or size > max(SMALL, MAX_RATIO * packed):
        raise DataError(
            f"{path} of {packed} bytes would become {len(members)} files of {size} bytes; expected at most {MAX_FILES} "
            f"files and {MAX_RATIO} times its size: it may be a zip bomb; if you trust it, unpack it with another tool"
        )


def _require_short(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Before anything is done with the names: a name of 64 kB has 32,000 folders, and each folder's name is as long."""
    for member in members:
        parts = member.filename.split("/")
        longest = (
            max(len(part.encode(errors="surrogatepass")) for part in parts) if len(member.filename) <= MAX_NAME else 0
        )
        if len(member.filename) > MAX_NAME or len(parts) > MAX_DEPTH or longest > NAME_BYTES:
            raise DataError(
                f"{path} has the member {member.filename[:100]!a}..., of {len(member.filename)} characters in "
                f"{len(parts)} folders; expected at most {MAX_NAME} in {MAX_DEPTH}, each of at most {NAME_BYTES} "
                "bytes, so nothing was unpacked: get the zip from another source"
            )


def _flaw(member: zipfile.ZipInfo) -> str:
    """What makes a member unsafe to unpack; "" if nothing does."""
    name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
    if posixpath.normpath(name) == ".":
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
    if os.path.lexists(folder):  # even an empty one may be a mount point, or a shell's current folder
        raise ArtifactError(f"{folder} exists already; name a new folder, such as {folder / 'data'}")
    with hidden_folder(folder.parent, folder) as hidden:
        unfinished = hidden / "data"
        try:
            unfinished.mkdir()
            free, size = shutil.disk_usage(unfinished).free, sum(member.file_size for member in members)
            if size > free:
                raise ArtifactError(
                    f"{folder} needs {size} bytes and {free} are free; free space or choose another folder"
                )
            for member in progress(members, folder.name):
                archive.extract(member, unfinished)
            unfinished.replace(folder)
        except OSError as error:
            raise ArtifactError(f"cannot write {folder}: {error}; free space or choose another folder") from None
