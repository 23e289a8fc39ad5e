"""The settings that a step reads and the findings that it writes. They are files, as a step's process may crash."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from enet_deploy import console
from enet_deploy.errors import EnetError
from enet_deploy.files import write_json

from ..typed_json import from_json
from .contract import NotHere

SCHEMA = 1

Size = tuple[int, int]


@dataclass(frozen=True)
class Settings:
    """Settings of all steps of a report.

    Attributes:
        rehearsal: whether the steps run on the CPU.
        data, split: a data set with labels; None for drawn scenes.
        flavour: of TensorRT; None for the first that is installed.
        sizes: (height, width) of frames. Most steps use the first one only.
        batches: frames per call, ascending, from 1 on.
        seconds: duration of each timing.
        warm_up, least, most: number of calls before a timing; smallest and largest number of calls in one.
        train_images: images that training speed is measured on; without a data set, so many scenes are drawn.
        train_batch: images per training step.
    """

    rehearsal: bool
    data: str | None = None
    split: str = "val"
    flavour: str | None = None
    sizes: tuple[Size, ...] = ((360, 480), (512, 512))
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    seconds: float = 1.0
    warm_up: int = 10
    least: int = 20
    most: int = 2000
    train_images: int = 64
    train_batch: int = 16

    @property
    def device(self) -> str:
        return "cpu" if self.rehearsal else "cuda"

    def write(self, work: Path) -> None:
        write_json(work / "settings.json", dataclasses.asdict(self))

    @classmethod
    def read(cls, work: Path) -> Settings:
        return from_json(cls, json.loads((work / "settings.json").read_text(encoding="utf-8")))


REHEARSAL = Settings(
    True, sizes=((48, 64),), batches=(1, 2), seconds=0.05, warm_up=1, least=2, most=10, train_images=8, train_batch=4
)


class Note(Protocol):
    """Add figures to the row of an attempt: column -> figure."""

    def __call__(self, **figures: object) -> None: ...


class Findings:
    """What a step has found so far, in a file.

    Attributes:
        path: of the file.
        failures: names of the attempts that failed.
    """

    def __init__(self, path: Path, step: str, rehearsal: bool) -> None:
        self.path = path
        self._rows: list[dict[str, object]] = []
        self._content: dict[str, object] = {"schema": SCHEMA, "rehearsal": rehearsal, "step": step, "skipped": None}
        self.failures: list[str] = []
        self._save()

    def _save(self) -> None:
        write_json(self.path, {**self._content, "findings": self._rows})

    def _note(self, row: dict[str, object], **figures: object) -> None:
        row |= {name: None if _is_nan(value) else value for name, value in figures.items()}
        print(*(f"{name}={value}" for name, value in figures.items()), flush=True)
        self._save()

    @contextmanager
    def attempt(self, table: str, **figures: object) -> Iterator[Note]:
        """Add a row, which the block fills. An exception in it is noted as `failed`, NotHere as `skipped`."""
        row: dict[str, object] = {"table": table}
        self._rows.append(row)
        self._note(row, **figures)
        try:
            yield partial(self._note, row)
        except NotHere as error:
            self._note(row, skipped=console.printable(str(error)))
        except Exception as error:  # noqa: BLE001  the next attempt has to run
            kind = "" if isinstance(error, EnetError) else f"{type(error).__name__}: "
            self._note(row, failed=console.printable(f"{kind}{error}")[:600])
            self.failures.append(" ".join(map(str, figures.values())))

    def skip(self, reason: str) -> None:
        """Note why the step, or the rest of it, was skipped."""
        self._content["skipped"] = console.printable(reason)
        self._save()


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
