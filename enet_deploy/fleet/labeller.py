"""What an actor does: label the files of a part, write their label maps, then the part's rows."""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import pyarrow
import pyarrow.parquet

from ..errors import ArtifactError, DataError, InputError
from ..files import require_short_name
from ..images import UInt8Array, encode, image_of
from ..media.frames import FrameSource
from ..runners import Runner, artifact_files, open_runner
from .output import Output, part_name
from .sources import Source

AHEAD = 8  # files that are fetched, or label maps that are written, beside the work: a bucket answers slowly
Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What is the same for all parts: where things are, and how `open_runner` is called."""

    source: str
    out: str
    runner: dict[str, Any]
    topic: str | None = None


class Labeller:
    """Opens the runner once. A call labels the files of one part and writes its rows.

    Attributes:
        runner: that is open.

    Raises as `open_runner`.
    """

    def __init__(self, task: Task) -> None:
        cv2.setNumThreads(1)  # an actor has one core
        self._task, self._source, self._out = task, Source(task.source), Output(task.out)
        self.runner = self._opened()
        if self.runner.spec.batch not in (None, 1):
            raise InputError(f"{self._out.artifact} takes {self.runner.spec.batch} frames per call, expected 1 or any")
        names = self.runner.spec.classes.names
        self._schema = pyarrow.schema(
            [
                *((name, pyarrow.string()) for name in ("file", "frame", "labels")),
                *((name, pyarrow.int32()) for name in ("height", "width")),
                ("shares", pyarrow.struct([(name, pyarrow.float32()) for name in names])),
                ("confidence", pyarrow.float32()),
                *((name, pyarrow.string()) for name in ("note", "error")),
            ]
        )

    def _opened(self) -> Runner:
        """Open a local copy of the network: the output folder may be a bucket."""
        with TemporaryDirectory(prefix="enet-fleet-") as folder:
            path = Path(folder) / self._out.artifact
            for file in artifact_files(path):
                file.write_bytes(self._out.fs.cat_file(self._out.path(f"network/{file.name}")))
            return open_runner(path, **self._task.runner)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Label parts. `batch` has their numbers as "part" and their files' names as JSON in "names".

        Returns the numbers, how many frames each part has, and how many of them could not be labelled.
        """
        counts = [self.label_part(int(n), json.loads(t)) for n, t in zip(batch["part"], batch["names"], strict=True)]
        return {"part": batch["part"], "frames": [c[0] for c in counts], "errors": [c[1] for c in counts]}

    def label_part(self, number: int, names: list[str]) -> tuple[int, int]:
        """Label the files and write the part, unless it is there: a task may come again. Returns both counts."""
        if self._out.exists(part_name(number)):
            return 0, 0
        with ThreadPoolExecutor(AHEAD) as pool, TemporaryDirectory(prefix="enet-fleet-") as folder:
            fetch = partial(self._read, folder=Path(folder))
            writing: deque[Future[None]] = deque()

            def write(name: str, content: bytes) -> None:
                writing.append(pool.submit(self._out.write, name, content))
                if len(writing) > AHEAD:
                    writing.popleft().result()

            rows = [row for name, read in ahead(pool, fetch, names) for row in self._rows(name, read, write)]
            for each in writing:
                each.result()
        content = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, self._schema), content)
        self._out.write(part_name(number), content.getvalue())  # last: what has rows has label maps
        return len(rows), sum("error" in row for row in rows)

    def _read(self, name: str, folder: Path) -> bytes | Path:
        """Return the content of an image, or the path of a bag, which is fetched to `folder` if need be."""
        files, inside = self._source.open(name)
        return files.local_copy(inside, folder) if self._source.is_bag(name) else files.read(inside)

    def _rows(self, name: str, read: Callable[[], bytes | Path], write: Callable[[str, bytes], None]) -> Iterator[Row]:
        """Yield a row per frame of a file, and one for what cannot be read; hand each label map to `write`."""
        target = self._source.label_name(name)
        for frame, image in self._images(name, target, read):
            path = target if frame is None else f"{target}/{frame}.png"
            row: Row = {"file": name or self._source.url, "frame": frame}
            if isinstance(image, Exception):
                yield {**row, "error": str(image)}
                continue
            pixels, note = image
            found, labels = self._labelled(pixels)
            write(path, encode(path, labels))
            yield {**row, "labels": path, "height": len(labels), "width": labels.shape[1], "note": note, **found}

    def _images(
        self, name: str, target: str, read: Callable[[], bytes | Path]
    ) -> Iterator[tuple[str | None, tuple[UInt8Array, str | None] | Exception]]:
        """Yield the name of each frame, None for an image file, and its pixels with a note, or the error."""
        try:
            for part in Path(target).parts:
                require_short_name(Path(part))
            content = read()
            if isinstance(content, Path):
                yield from self._bag_frames(content)
            else:
                loaded = image_of(Path(name or self._source.url), content)
                others = loaded.header.pictures - 1
                yield (
                    None,
                    (loaded.image, loaded.note or (f"{others} more pictures are not read" if others > 0 else None)),
                )
        except (ArtifactError, DataError, InputError) as error:
            yield None, error

    def _bag_frames(self, path: Path) -> Iterator[tuple[str | None, tuple[UInt8Array, str | None] | Exception]]:
        from ..media.bags import Bag

        bag: FrameSource = Bag(path, self._task.topic)
        frame = None
        for frame in bag.frames():
            yield (None, frame) if isinstance(frame, DataError) else (frame.name, (frame.image, None))
        if frame is None:
            yield None, DataError(f"{path} holds no frame, expected at least one")

    def _labelled(self, image: UInt8Array) -> tuple[Row, UInt8Array]:
        """Return a row's figures of an image (h, w, 3), and its labels (h, w)."""
        spec, confidence = self.runner.spec, None
        if spec.has_confidence:
            labels, sure = self.runner.segment_with_confidence(image)
            confidence = float(sure[sure > 0].mean() / 255)
        else:
            labels = self.runner.segment(image)
        counts = np.bincount(labels.ravel(), minlength=256)[: len(spec.classes)] / labels.size
        row: Row = {"shares": dict(zip(spec.classes.names, counts.tolist(), strict=True)), "confidence": confidence}
        flaw = spec.calibrated_on.flaw(image, spec.size) if spec.calibrated_on is not None else ""
        return row | ({"note": f"unlike what int8 was calibrated on: {flaw}"} if flaw else {}), labels


def ahead(
    pool: ThreadPoolExecutor, read: Callable[[str], bytes | Path], names: list[str]
) -> Iterator[tuple[str, Callable[[], bytes | Path]]]:
    """Yield each name with a function that returns what `read` does, or raises it; the next are read meanwhile."""
    waiting: deque[tuple[str, Future[bytes | Path]]] = deque()
    for name in names:
        waiting.append((name, pool.submit(read, name)))
        if len(waiting) > AHEAD:
            first, future = waiting.popleft()
            yield first, future.result
    for first, future in waiting:
        yield first, future.result


def opens(task: Task) -> dict[str, str]:
    """Open the runner, so that what it raises is known before the work begins. Returns facts to show."""
    spec = Labeller(task).runner.spec
    return {"backend": spec.backend, "precision": spec.precision}
