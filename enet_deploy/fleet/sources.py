"""What to label: images and bags in a folder, in a bucket, or in a list."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path

import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from ..errors import BackendError, DataError, InputError
from ..images import IMAGE_SUFFIXES, MAX_BYTES, read_content
from ..media.bag_files import BAG_SUFFIXES

log = logging.getLogger(__name__)

LIST_SUFFIX = ".txt"


class Files:
    """Files below a folder, on a local disk or behind a URL that fsspec knows. The folder need not exist.

    Args:
        url: of the folder.

    Raises InputError if the URL is of no known kind, BackendError if fsspec lacks a package for it.
    """

    def __init__(self, url: str) -> None:
        try:
            self.fs, self.root = fsspec.core.url_to_fs(url)
        except ValueError as error:
            raise InputError(f"{url}: {error}; expected a path, or a URL that fsspec knows, such as s3://") from None
        except ImportError as error:
            raise BackendError(f"{url}: {error}") from None

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """The path of a file by its name below the folder, as `fs` takes it."""
        return posixpath.join(self.root, name) if name else str(self.root)

    def read(self, name: str) -> bytes:
        """Return a file's content. Raises DataError if it is missing, too large or may not be read."""
        path = self.path(name)
        if self.is_local:
            return read_content(Path(path))
        try:
            size = self.fs.size(path)
            if size is not None and size > MAX_BYTES:
                raise DataError(f"{path} has {size} bytes, expected an image of at most {MAX_BYTES}")
            return bytes(self.fs.cat_file(path))
        except (FileNotFoundError, PermissionError, IsADirectoryError, KeyError) as error:
            raise DataError(f"{path} cannot be read: {type(error).__name__}; expected an image file") from None

    def local_copy(self, name: str, folder: Path) -> Path:
        """Return a local path of a file, which is fetched to `folder` if it lies elsewhere. Raises DataError."""
        path = self.path(name)
        if self.is_local:
            return Path(path)
        copy = folder / posixpath.basename(path)
        try:
            self.fs.get_file(path, str(copy))
        except (FileNotFoundError, PermissionError, KeyError) as error:
            raise DataError(f"{path} cannot be read: {type(error).__name__}; expected a ROS bag") from None
        return copy


class Source:
    """Images and bags that the text `url` names.

    Args:
        url: a folder, also of a bucket; one image or bag; or a text file with a path or URL per line, ending in .txt.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_list = url.lower().endswith(LIST_SUFFIX)
        self._opened: dict[str, Files] = {}

    def names(self) -> list[str]:
        """Return the name of each file, sorted: its path below the folder, or its line in the list.

        Raises DataError if there is none.
        """
        files = Files(self.url)
        try:
            names = self._found(files)
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001  each kind of bucket raises errors of its own
            raise DataError(f"{self.url} cannot be read: {type(error).__name__}: {error}") from None
        if not names:
            kinds = f"{' '.join(sorted(IMAGE_SUFFIXES))} {' '.join(BAG_SUFFIXES)}"
            raise DataError(f"{self.url} holds no image or bag, expected files with a suffix of {kinds}")
        return sorted(set(names))

    def _found(self, files: Files) -> list[str]:
        if self.is_list:
            text = files.read("").decode(errors="surrogateescape").removeprefix("\ufeff")  # as some editors write it
            # a name may have what else Python takes for the end of a line, such as U+2028
            lines = (line.strip(" \t\r") for line in text.split("\n"))
            return [absolute(line) for line in lines if line]
        if files.fs.isfile(files.root):
            return [""]
        if not files.fs.exists(files.root):
            raise DataError(f"{self.url} does not exist; expected a folder, an image, a bag, or a list of them (.txt)")
        start = len(files.root.rstrip("/")) + bool(files.root)
        found = files.fs.find(files.root, detail=True)
        links = [path for path, info in found.items() if info.get("islink") and files.fs.isdir(path)]
        if links:
            log.warning(
                "%s: links to folders are not followed, %d of them, such as %s; to label what is there, give a list: "
                "find -L FOLDER -type f > files.txt", self.url, len(links), links[0],
            )  # fmt: skip
        return [path[start:] for path in found if is_labelled(path)]

    def open(self, name: str) -> tuple[Files, str]:
        """Return the folder that a file lies in, and the file's name there. Raises as `Files`."""
        if not self.is_list:
            return self._opened.setdefault("", Files(self.url)), name
        folder, _, last = name.rpartition("/")
        files = self._opened.get(folder) or Files(f"{folder}/")
        self._opened = {folder: files}  # the last one alone: a list may name many
        return files, last

    def is_bag(self, name: str) -> bool:
        return (name or self.url).lower().endswith(BAG_SUFFIXES)

    def label_name(self, name: str) -> str:
        """Return where the label map of an image goes, below the output folder: labels/NAME.png.

        A bag has a folder of that name, without .png. The scheme of a URL becomes a folder: labels/s3/BUCKET/NAME.png.
        """
        name = name or posixpath.basename(self.url.rstrip("/"))
        inside = posixpath.normpath("/" + re.sub(r"([\w.+-]+)://", r"\1/", name)).lstrip("/")  # never above the folder
        return f"labels/{inside}" + ".png" * (not self.is_bag(name))


def is_labelled(path: str) -> bool:
    """Whether a path's suffix is an image's or a bag's. Hidden files are left out."""
    name = posixpath.basename(path).lower()
    return not name.startswith(".") and (posixpath.splitext(name)[1] in IMAGE_SUFFIXES or name.endswith(BAG_SUFFIXES))


def absolute(text: str) -> str:
    """Return a path that holds on each of a cluster's machines which has the same disk; a URL as it is."""
    return text if "://" in text else str(Path(text).absolute())
