"""What an actor does: label the files of a part, write their label maps, then the part's rows."""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import pyarrow
import pyarrow.parquet

from ..errors import ArtifactError, BackendError, DataError, EnetError, InputError, is_out_of_memory
from ..files import digest, parse_json, require_short_name
from ..images import UInt8Array, encode, image_of
from ..media.frames import FrameSource
from ..runners import Runner, open_runner
from .output import Output, part_name
from .sources import Source

DEATHS = 2  # of workers on one file, then it is left out
AHEAD = 8  # files that are fetched, or label maps that are written, beside the work: a bucket answers slowly
Row = dict[str, Any]
KILLS = f"{DEATHS} workers died on this file (a crash, or too little memory); expected a file that a worker can read"


@dataclass(frozen=True)
class Task:
    """What is the same for all parts: where things are, and how `open_runner` is called.

    Attributes:
        files: SHA-256 by name of those in OUT/network, the artifact first. An engine runs code, so that the driver's
            own files count and not what lies in OUT.
    """

    source: str
    out: str
    runner: dict[str, Any]
    files: dict[str, str]
    topic: str | None = None


class PartLabeller:
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
            raise InputError(
                f"{next(iter(task.files))} takes {self.runner.spec.batch} frames per call, expected 1 or any"
            )
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
            for name, expected in self._task.files.items():
                path = self._out.path(f"network/{name}")
                if Path(name).name != name:
                    raise ArtifactError(f"{path}, expected the name of a file in that folder")
                content = self._out.content(f"network/{name}")
                if digest(content) != expected:
                    raise ArtifactError(
                        f"{path} has SHA-256 {digest(content)}, expected {expected}, as the file has that you gave; "
                        "name another output folder"
                    )
                (Path(folder) / name).write_bytes(content)
            return open_runner(Path(folder) / next(iter(self._task.files)), **self._task.runner)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Label parts. `batch` has their numbers as "part" and their files' names as JSON in "names".

        Returns the numbers, how many frames each part has, and how many of them could not be labelled.
        """
        done = [self.label_part(int(n), json.loads(t)) for n, t in zip(batch["part"], batch["names"], strict=True)]
        return {"part": batch["part"], "frames": [each[0] for each in done], "errors": [each[1] for each in done]}

    def label_part(self, number: int, names: list[str]) -> tuple[int, int]:
        """Label the files and write the part, unless it is there: a task may come again. Returns both counts."""
        if self._out.exists(part_name(number)):
            return counts(self._out, number)
        with Tries(self._out, number) as tries:
            rows = self._labelled_rows(names, tries)
            content = io.BytesIO()
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, self._schema), content)
            self._out.write(part_name(number), content.getvalue())  # last: what has rows has label maps
        return len(rows), sum("error" in row for row in rows)

    def _labelled_rows(self, names: list[str], tries: Tries) -> list[Row]:
        """Return the rows of a part's files, when all their label maps are written."""
        rows = [self._error_row(name, KILLS) for name in names if tries.killed(name)]
        with ThreadPoolExecutor(AHEAD) as pool, TemporaryDirectory(prefix="enet-fleet-") as folder:
            fetch = partial(self._read, folder=Path(folder))
            writing: deque[Future[None]] = deque()

            def write(name: str, content: bytes) -> None:
                writing.append(pool.submit(self._out.write, name, content))
                if len(writing) > AHEAD:
                    writing.popleft().result()

            for name, read in ahead(pool, fetch, [name for name in names if not tries.killed(name)]):
                tries.begin(name)
                rows += self._rows(name, read, write)
            for each in writing:
                each.result()
        return rows

    def _read(self, name: str, folder: Path) -> bytes | Path:
        """Return the content of an image, or the path of a bag, which is fetched to `folder` if need be."""
        files, inside = self._source.open(name)
        return files.local_copy(inside, folder) if self._source.is_bag(name) else files.read(inside)

    def _rows(self, name: str, read: Callable[[], bytes | Path], write: Callable[[str, bytes], None]) -> Iterator[Row]:
        """Yield a row per frame of a file, and one for what cannot be read; hand each label map to `write`."""
        target = self._source.label_name(name)
        for frame, image in self._images(name, target, read):
            path = target if frame is None else f"{target}/{frame}.png"
            if isinstance(image, Exception):
                yield self._error_row(name, image)
                continue
            pixels, note = image
            try:
                found, labels = self._labelled(pixels)
                content = encode(path, labels)
            except Exception as error:
                if not (isinstance(error, cv2.error | DataError | InputError) or is_out_of_memory(error)):
                    raise  # such as a lost GPU, which would make an error of each file
                yield {**self._error_row(name, error), "frame": frame}
                continue
            write(path, content)
            size: Row = {"height": len(labels), "width": labels.shape[1]}
            notes = "; ".join(filter(None, [note, found.pop("note")])) or None
            yield {"file": name or self._source.url, "frame": frame, "labels": path, **size, **found, "note": notes}

    def _error_row(self, name: str, error: Exception | str) -> Row:
        """Return the row of a file without labels. Parquet takes UTF-8 alone, other bytes of a name are escaped."""
        text = str(error) if isinstance(error, EnetError | str) else f"{type(error).__name__}: {error}"
        row = {"file": name or self._source.url, "error": text}
        return {key: value.encode(errors="backslashreplace").decode() for key, value in row.items()}

    def _images(
        self, name: str, target: str, read: Callable[[], bytes | Path]
    ) -> Iterator[tuple[str | None, tuple[UInt8Array, str | None] | Exception]]:
        """Yield the name of each frame, None for an image file, and its pixels with a note, or the error.

        Raises BackendError and ImportError, which are about the machine and not about the file.
        """
        try:
            _require_utf8(target)
            for part in Path(target).parts:
                require_short_name(Path(part))
            content = read()
            if isinstance(content, Path):
                yield from self._bag_frames(content)
            else:
                loaded = image_of(Path(name or self._source.url), content)
                others = loaded.header.pictures - 1
                notes = [loaded.note, f"{others} more pictures are not read" if others > 0 else ""]
                yield None, (loaded.image, "; ".join(filter(None, notes)))
        except (BackendError, ImportError):
            raise
        except Exception as error:  # noqa: BLE001  decoders and buckets raise errors of their own
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
        return row | {"note": f"unlike what int8 was calibrated on: {flaw}" if flaw else ""}, labels


def counts(out: Output, number: int) -> tuple[int, int]:
    """Return how many frames a part that is written has, and how many of them could not be labelled."""
    written = io.BytesIO(out.content(part_name(number)))
    errors = pyarrow.parquet.read_table(written, columns=["error"])["error"]
    return len(errors), len(errors) - errors.null_count


class Tries:
    """On which files of a part workers have died, as a context around a try.

    The first try notes no files, as a note for each takes time.

    Args:
        out: has the notes, for the worker that tries next.
        number: of the part.
    """

    def __init__(self, out: Output, number: int) -> None:
        self._out, self._path = out, f"tries/{number:06}"
        self._is_first = not out.exists(self._path)
        self._deaths: list[str] = [] if self._is_first else parse_json(out.text(self._path))

    def __enter__(self) -> Tries:
        if self._is_first:
            self._note([])
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._out.remove(self._path)
        else:  # nobody died
            with suppress(ArtifactError):
                self._note(self._deaths)

    def _note(self, names: list[str]) -> None:
        self._out.write(self._path, json.dumps(names).encode())

    def killed(self, name: str) -> bool:
        """Whether so many workers died on a file that nobody should try it again."""
        return self._deaths.count(name) >= DEATHS

    def begin(self, name: str) -> None:
        """Note that the next thing is this file, if the part is tried again."""
        if not self._is_first:
            self._note([*self._deaths, name])


def _require_utf8(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{name} is not UTF-8, and Parquet takes no other names; rename the file") from None


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


def open_once(task: Task) -> dict[str, str]:
    """Open the runner, so that what it raises is known before the work begins. Returns facts to show."""
    spec = PartLabeller(task).runner.spec
    return {"backend": spec.backend, "precision": spec.precision}
