"""A run of enet-bench as data. `Run` owns the JSON: reading, checking, writing and the schema version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from enet_deploy.console import printable
from enet_deploy.errors import ArtifactError
from enet_deploy.files import parse_json, write_json

from .measure.machine import Load
from .measure.parity import Accuracy
from .measure.profiling import Peaks
from .result import Result
from .typed_json import LATER, from_json, to_json
from .verdict import Verdict, stability, verdicts

SCHEMA = 2


@dataclass(frozen=True)
class Images:
    """What the runners saw.

    Attributes:
        count: of the images to compare labels on; an interrupted run looked at fewer (`Run.compared`).
        size: (height, width) of the first image.
        data, split: name and split of the data set; None without one.
        video: name of the video that was timed; None without one.
    """

    count: int
    size: tuple[int, int]
    data: str | None
    split: str | None
    video: str | None


@dataclass(frozen=True)
class Reference:
    """PyTorch fp32 with the weights that all artifacts came from, and its own accuracy if there is a truth."""

    backend: str
    accuracy: Accuracy | None


@dataclass(frozen=True)
class Run:
    """A whole run.

    Attributes:
        partial: whether it was interrupted.
        environment: of the machine before the run, as `environment.environment` gives it.
        load: of other programs during the run; None if it was not recorded.
        images: None if that was not recorded.
        peaks: of the processor; None without profiles.
        reference: None if the weights were not available.
        results: the runners, the first of which is the baseline.
        sweep: the runners again at other sizes and batches, only timed.
        compared: number of images that labels were compared on; None if none were, and in old files.

    Raises ValueError for values that contradict each other.
    """

    partial: bool
    environment: dict[str, Any]
    load: Load | None
    images: Images | None
    peaks: Peaks | None
    reference: Reference | None
    results: tuple[Result, ...]
    sweep: tuple[Result, ...]
    compared: int | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError("results is empty, expected at least one runner")
        _require_environment(self.environment)
        self._require_one_class_list()
        if self.peaks is None and any(result.profile is not None for result in self.results):
            raise ValueError("peaks is null beside a profile, expected the processor's peaks")
        every = _compared(_named((*self.results, *self.sweep)))
        object.__setattr__(self, "results", every[: len(self.results)])
        object.__setattr__(self, "sweep", every[len(self.results) :])

    def _require_one_class_list(self) -> None:
        known = [self.accuracy_of_reference, *(result.accuracy for result in (*self.results, *self.sweep))]
        lists = {tuple(accuracy.per_class) for accuracy in known if accuracy is not None}
        if len(lists) > 1:
            raise ValueError("per_class differs between runners, expected the same classes")

    @property
    def accuracy_of_reference(self) -> Accuracy | None:
        return None if self.reference is None else self.reference.accuracy

    @cached_property
    def verdict(self) -> tuple[Verdict, ...]:
        """For each device, what to take."""
        return tuple(verdicts(self.results, self.accuracy_of_reference))

    @cached_property
    def stability(self) -> tuple[str, ...]:
        """What casts doubt on the run; empty if it can be trusted."""
        governor = self.environment.get("governor")
        return tuple(stability(self.results, self.load, governor, partial=self.partial))

    @classmethod
    def from_json(cls, value: Any) -> Run:
        """Check the JSON of a run. Derived values in it are computed again. Raises ValueError."""
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            found = value.get("schema") if isinstance(value, dict) else value
            raise ValueError(f"schema {found!r:.40}, expected {SCHEMA}")
        return from_json(cls, _printable(value))

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            **to_json(self),
            "results": [result.to_json() for result in self.results],
            "sweep": [result.to_json() for result in self.sweep],
            "verdict": to_json(self.verdict),
            "stability": list(self.stability),
        }

    @classmethod
    def read(cls, path: str | Path) -> Run:
        """Read and check a file of `write`. Raises ArtifactError that names the file."""
        try:
            return cls.from_json(parse_json(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise ArtifactError(
                f"{path} cannot be read: {error.strerror}; expected a file of enet-bench --json"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{path} is no result of enet-bench --json: {error!s:.160}") from None

    def write(self, path: str | Path) -> None:
        """Write the JSON, whole or not at all. Raises ArtifactError if that fails."""
        write_json(path, self.to_json())


def _printable(value: Any) -> Any:
    """The same value with `printable` texts: names, processors and versions come from foreign files."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_printable(each) for each in value]
    if isinstance(value, dict):
        return {printable(name): _printable(each) for name, each in value.items()}
    return value


def _require_environment(environment: dict[str, Any]) -> None:
    for name in ("processor", "system", "commit", "time"):
        if not isinstance(environment.get(name), str):
            raise ValueError(f"environment.{name} is {environment.get(name)!r:.40}, expected text")
    if "cores" not in environment:
        raise ValueError("environment lacks 'cores'")
    if not isinstance(environment.get("packages", {}), dict):
        raise ValueError(f"environment.packages is {environment['packages']!r:.40}, expected an object")
    gpus = environment.get("gpus") or []
    if not (isinstance(gpus, list) and all(isinstance(gpu, dict) for gpu in gpus)):
        raise ValueError(f"environment.gpus is {gpus!r:.40}, expected a list of objects")


def _named(results: Sequence[Result]) -> list[Result]:
    """The results with unique names: backend, precision and layout, then batch and size, file, number as needed."""
    names = [_short_name(result) for result in results]
    if len({result.size for result in results}) > 1:
        names = [f"{name} {each.size[0]}x{each.size[1]}" for name, each in zip(names, results, strict=True)]
    files = [(name, Path(result.artifact).name) for name, result in zip(names, results, strict=True)]
    same = {name: {file for other, file in files if other == name} for name in names}
    names = [name if len(same[name]) == 1 else f"{name} {file}" for name, file in files]
    numbered = [
        name if names.count(name) == 1 else f"{name} ({names[: index + 1].count(name)})"
        for index, name in enumerate(names)
    ]
    return [replace(result, name=name) for result, name in zip(results, numbered, strict=True)]


def _short_name(result: Result) -> str:
    layout = f"-{result.qdq_layout}" if result.qdq_layout not in (None, "all") else ""
    device = "" if result.device in ("cpu", "cuda") else f" {result.device}"
    batch = f" x{result.batch}" if result.batch > 1 else ""
    return f"{result.backend} {result.precision}{layout}{device}{batch}"


def _compared(results: Sequence[Result]) -> tuple[Result, ...]:
    """The results with their speed against the first one of the same size and batch."""
    baselines: dict[tuple[tuple[int, int], int], Result] = {}
    for result in results:
        baselines.setdefault((result.size, result.batch), result)
    return tuple(
        replace(result, speed=result.speed_over(baselines[result.size, result.batch], side_by_side=True))
        for result in results
    )
