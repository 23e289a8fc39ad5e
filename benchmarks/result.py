"""The result of one runner in a run: what was measured of it, and what follows from that alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .measure.parity import Accuracy, ParityFigures
from .measure.profiling import Profile
from .measure.timing import WarmUp
from .statistics import Rounds, Speed, Summary, outliers, speed, spread
from .typed_json import JSON_NAME, LATER, to_json

SHORTEST = 1e-6  # ms; a shorter time is damage, and its inverse would not be a sensible rate


@dataclass(frozen=True)
class Result:
    """One runner's part of a run. Field names are the JSON's, unless noted.

    Attributes:
        backend, device, precision, runtime: as in `Spec`.
        qdq_layout: as in `Spec`; None for graphs that are not int8. "layout" in JSON.
        artifact: the file, as the user named it.
        options: the runner's options.
        size: (height, width) of a frame.
        batch: frames per call.
        timed: the stage that runners are compared by, "infer" or "total".
        latency_ms, samples_ms: of that stage; the samples are in the order taken.
        stages_ms: of every stage.
        blocks: number of calls in each round.
        stream_ms: per call, of each round through `Runner.stream`.
        model_bytes: size of the artifact.
        peak_bytes: peak memory of a process with this runner alone.
        parity, accuracy: against PyTorch and against the truth; None if not measured.
        profile: where the time goes; None if not asked for, or if the backend does not tell.
        trained_on: how many of the images that labels were compared on its weights were trained on; None if they do not
            say, or if no labels were compared.
        artifact_sha256: hash of the artifact; "" in old files.
        export: options of the `enet-export` that makes the artifact, which the run made for itself; None if
            the user named it.
        name, speed: set by `Run`: a name that is unique in the run, and the speed against the first runner of the
            same size and batch.

    Raises ValueError for values that contradict each other.
    """

    backend: str
    device: str
    precision: str
    qdq_layout: str | None = field(metadata={JSON_NAME: "layout"})
    artifact: str
    runtime: str
    options: dict[str, Any]
    size: tuple[int, int]
    batch: int
    warm_up: WarmUp | None
    timed: str
    latency_ms: Summary
    stages_ms: dict[str, Summary]
    samples_ms: tuple[float, ...]
    blocks: tuple[int, ...]
    stream_ms: tuple[float, ...]
    model_bytes: int
    peak_bytes: int
    parity: ParityFigures | None
    accuracy: Accuracy | None
    profile: Profile | None
    trained_on: int | None = field(default=None, metadata=LATER)
    artifact_sha256: str = field(default="", metadata=LATER)
    export: tuple[str, ...] | None = field(default=None, metadata=LATER)
    name: str = field(default="", metadata={JSON_NAME: None})
    speed: Speed = field(default=Speed(1.0, 1.0, 1.0), metadata={JSON_NAME: None})

    def __post_init__(self) -> None:
        for name in ("batch", "size", "model_bytes", "peak_bytes"):
            value = getattr(self, name)
            if np.min(value) < 1:
                raise ValueError(f"{name} {value}, expected at least 1")
        if not self.samples_ms or min(self.blocks, default=0) < 1 or sum(self.blocks) != len(self.samples_ms):
            raise ValueError(f"{len(self.samples_ms)} samples_ms in blocks of {self.blocks!r:.40}")
        if "total" not in self.stages_ms or self.timed not in self.stages_ms:
            raise ValueError(f"stages_ms of {list(self.stages_ms)}, expected 'total' and '{self.timed}'")
        summaries = (self.latency_ms, *self.stages_ms.values())
        means = (value for each in summaries for value in (each.p50, each.mean))
        if min((*means, *self.samples_ms, *self.stream_ms)) < SHORTEST:
            raise ValueError(f"a time below {SHORTEST} ms")

    def to_json(self) -> dict[str, Any]:
        """The measured fields, then the derived ones."""
        return {
            **to_json(self),
            "name": self.name,
            "fps": self.fps,
            "stream_fps": self.stream_fps,
            "spread": self.spread,
            "outliers": self.outliers,
            "speed": to_json(self.speed),
        }

    @property
    def fps(self) -> float:
        """Frames per second, from the mean latency."""
        return 1e3 * self.batch / self.latency_ms.mean

    @property
    def stream_fps(self) -> float | None:
        """Frames per second through `Runner.stream`; None if it was not timed."""
        return 1e3 * self.batch / (sum(self.stream_ms) / len(self.stream_ms)) if self.stream_ms else None

    @property
    def ms_per_frame(self) -> float:
        """Median."""
        return self.latency_ms.p50 / self.batch

    @property
    def rounds(self) -> Rounds:
        """The samples of each round, in milliseconds per call."""
        rounds, start = [], 0
        for length in self.blocks:
            rounds.append(self.samples_ms[start : start + length])
            start += length
        return rounds

    @property
    def spread(self) -> float:
        """See `statistics.spread`."""
        return spread(self.rounds)

    @property
    def outliers(self) -> int:
        """See `statistics.outliers`."""
        return outliers(self.samples_ms)

    def speed_over(self, baseline: Result, *, side_by_side: bool) -> Speed:
        """How many times faster per frame this is than a baseline; see `statistics.speed`."""
        theirs, own = ([[ms / each.batch for ms in calls] for calls in each.rounds] for each in (baseline, self))
        return speed(theirs, own, side_by_side=side_by_side)

    @property
    def quality(self) -> float | None:
        """What is traded against speed: mIoU if it is known, else the share of labels equal to PyTorch's."""
        if self.accuracy is not None:
            return self.accuracy.miou
        return None if self.parity is None else self.parity.agreement
