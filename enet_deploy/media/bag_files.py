"""Which paths are ROS bags, and which files a bag has. Needs no package that reads them."""

from __future__ import annotations

from pathlib import Path

from ..files import is_folder
from ..images import IMAGE_SUFFIXES

ROS2_SUFFIXES = (".mcap", ".db3", ".mcap.zstd", ".db3.zstd")  # whose bags may also be folders of such files
BAG_SUFFIXES = (".bag", *ROS2_SUFFIXES)


def is_bag(path: Path) -> bool:
    """Whether a path names a ROS bag: by its suffix, or a folder of ROS 2's recorder, also one that was killed.

    A folder that no recorder has described and that holds images is one of images, whatever lies beside them.
    """
    if not is_folder(path):
        return path.name.lower().endswith(BAG_SUFFIXES)
    has_images = any(file.suffix.lower() in IMAGE_SUFFIXES for file in path.iterdir())
    return is_described(path) or (not has_images and bool(recordings(path)))


def is_described(folder: Path) -> bool:
    """Whether a folder has the metadata.yaml with which ROS 2's recorder ends; other programs write such names too."""
    try:
        return b"rosbag2_bagfile_information" in (folder / "metadata.yaml").read_bytes()
    except OSError:
        return False


def recordings(folder: Path) -> list[Path]:
    """The files of ROS 2's recorder in a folder, sorted.

    A recorder that was killed while it compressed leaves a file twice: then it is the uncompressed one that is whole.
    """
    files = sorted(file for file in folder.iterdir() if file.name.lower().endswith(ROS2_SUFFIXES))
    return [file for file in files if not (file.suffix.lower() == ".zstd" and file.with_suffix("") in files)]
