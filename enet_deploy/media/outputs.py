"""Choose a sink for each output that the user names: by suffix a video, an image, a folder, a bag or a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files import exists, identity, require_outputs, require_short_name
from ..images import IMAGE_SUFFIXES
from . import sinks
from .bag_files import is_bag
from .frames import FrameSource, Stop
from .image_files import ImageFiles
from .renderer import FrameRenderer

NEW_BAGS = (".bag", ".mcap")  # suffixes of bags that can be written


@dataclass(frozen=True)
class Outputs:
    """The outputs that the user named. A path of "-" is standard output; None means no such output.

    Attributes:
        out: overlays, as a video, an image or a folder of images; or a bag with labels.
        labels: class ids, as PNG files.
        masks: labels in the classes' colours, as `out`.
        confidence: confidences, as `labels`.
        json: a line of JSON per frame.
        show: whether to show the overlays in a window.
    """

    out: str | None = None
    labels: str | None = None
    masks: str | None = None
    confidence: str | None = None
    json: str | None = None
    show: bool = False

    @property
    def paths(self) -> list[str]:
        return [path for path in (self.out, self.labels, self.masks, self.confidence, self.json) if path is not None]

    @property
    def has_picture(self) -> bool:
        """Whether `FrameRenderer.picture` is drawn for any of them."""
        return self.show or (self.out is not None and not self._is_bag)

    @property
    def _is_bag(self) -> bool:
        return self.out is not None and Path(self.out).suffix.lower() in NEW_BAGS

    def require_usable(self, source: FrameSource, reads: Sequence[str | Path]) -> None:
        """Check the paths before the work.

        Args:
            source: of the frames.
            reads: what is read besides the source, as for `require_outputs`.

        Raises InputError if a path is given twice or is read, ArtifactError if one cannot be written.
        """
        paths = [path for path in self.paths if path != "-"]
        if "-" in self.paths and sys.stdout is None:  # closed by the shell's `>&-`
            raise InputError("standard output is closed, expected a file or a pipe for -")
        if len(self.paths) > len(paths) + 1:
            raise InputError(f"outputs {', '.join(self.paths)}, expected a different path for each")
        folders = [path for path in paths if path != self.json and names_folder(path)]
        inputs = source.paths if isinstance(source, ImageFiles) else [Path(source.name)]
        # the folder that a frame is named in, and the one that it lies in if its name is a link
        taken = {identity(folder) for path in inputs for folder in (path.parent, Path(os.path.realpath(path)).parent)}
        for path in folders:
            if identity(path) in taken:
                raise InputError(f"{path} holds the input frames; write to another folder")
        # the pictures of image files have known names, which may be too long
        named = [Path(folder) / f"{path.stem}.png" for folder in folders for path in getattr(source, "paths", [])]
        for picture in named:
            require_short_name(picture)
        files = [path for path in paths if path not in folders]
        require_outputs(files, [*inputs, *reads], folders)

    def open(
        self, stack: ExitStack, source: FrameSource, renderer: FrameRenderer, every: int, stopped: Stop
    ) -> list[sinks.Sink]:
        """Open a sink for each output; `stack` closes them.

        Args:
            stack: finishes the files if it ends without an error, else removes them.
            source: of the frames.
            renderer: of the pictures.
            every: only every N-th frame of the source comes.
            stopped: set when the user closes the window.

        Raises InputError if the source has no such output, BackendError without a screen for `show`.
        """
        by_path: dict[str, sinks.Sink] = {}
        if self.out is not None and self._is_bag:
            from .bags import Bag, label_bag

            if not isinstance(source, Bag):
                raise InputError(f"--out {self.out} is a bag, and {source.name} is not; expected a video or a folder")
            by_path[self.out] = stack.enter_context(label_bag(Path(self.out), source.topic, renderer.classes))
        elif self.out is not None:
            by_path[self.out] = _picture_sink(stack, "--out", self.out, renderer.picture, source, every)
        if self.masks is not None:
            by_path[self.masks] = _picture_sink(stack, "--masks", self.masks, renderer.mask, source, every)
        maps = (("labels", self.labels, renderer.labels), ("confidence", self.confidence, renderer.confidence))
        for option, path, render in maps:
            if path is None:
                continue
            if path != "-" and not names_folder(path) and Path(path).suffix.lower() != ".png":
                raise InputError(
                    f"--{option} {path}, expected a folder (no dot in its name), a .png file, or -: other formats may "
                    "change values"
                )
            by_path[path] = _picture_sink(stack, f"--{option}", path, render, source, every)
        if self.json is not None:
            by_path[self.json] = stack.enter_context(sinks.json_lines(self.json, renderer.classes))
        if self.show:
            by_path["--show"] = sinks.window(source.name, renderer.picture, stopped)
        # Standard output last: if its reader leaves, the other outputs have the frame already
        return [by_path[path] for path in sorted(by_path, key=lambda path: path == "-")]


def _picture_sink(
    stack: ExitStack, option: str, path: str, render: sinks.Renderer, source: FrameSource, every: int
) -> sinks.Sink:
    """Open a sink for pictures by the path's suffix: a video, one image, a folder of images, or "-" for raw bytes.

    Raises InputError if the source has no such output.
    """
    suffix = Path(path).suffix.lower()
    if path == "-":
        return sinks.raw_bytes(render)
    if names_folder(path):
        return sinks.image_files(Path(path), render)
    if suffix in sinks.VIDEO_CODECS:
        if isinstance(source, ImageFiles) and not source.has_times:
            raise InputError(
                f"{option} {path} for images, which have no times; add --fps F, or name a folder or an image"
            )
        return stack.enter_context(sinks.video_file(Path(path), render, source, every))
    if suffix not in IMAGE_SUFFIXES:
        raise InputError(
            f"{option} {path}, expected a folder (no dot in its name), -, an image, or a video: "
            f"{', '.join(sinks.VIDEO_CODECS)}"
        )
    if source.total != 1:
        raise InputError(f"{option} {path} is one image, and {source.name} has more frames; name a folder or a video")
    return sinks.image_file(Path(path), render)


def names_folder(path: str) -> bool:
    """Whether a path names a folder for images rather than one file."""
    return path.endswith(("/", os.sep)) or Path(path).is_dir() or not Path(path).suffix


def default_out(texts: Sequence[str], source: FrameSource) -> str:
    """The `out` to take if the user names no output: a path in the current folder.

    Args:
        texts: the arguments that name the source.
        source: that they name.

    Raises InputError for standard input.
    """
    text = texts[0]
    if len(texts) > 1:
        return "images-segmented/"
    if text == "-":
        raise InputError("no output for the frames of standard input; give --out, --labels, --masks, --json or --show")
    path = Path(text)
    if isinstance(source, ImageFiles):
        if path.is_file():
            return f"{path.stem}-segmented.png"
        return f"{path.resolve().name if path.is_dir() else 'images'}-segmented/"
    if not exists(path):
        return "camera-segmented.mp4"
    if is_bag(path):
        stem = path.name.removesuffix(".zstd").rpartition(".")[0] or path.resolve().name
        return f"{stem}-segmented{'.bag' if path.suffix.lower() == '.bag' else '.mcap'}"
    return f"{path.stem}-segmented.mp4"
