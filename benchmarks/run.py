"""A run as data: what the JSON holds, what is worked out from it, and files of earlier versions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enet_deploy.console import printable
from enet_deploy.errors import ArtifactError, EnetError
from enet_deploy.files import parse_json
from enet_deploy.runners import Spec

from .measure.machine import Load
from .measure.parity import Parity
from .measure.profiling import Peaks
from .measure.timing import Timing
from .statistics import compare, outliers, rounds, spread, summary
from .verdict import stability, verdict

SCHEMA = 2
"""History:
1: one process for all runners; samples without the rounds that they came in, which were five.
2: a process each; `timed`, `blocks`, `stream_ms`, `warm_up`, `layout`, `load`, `images`, `sweep`, `partial`; flips by
   place, p99 of the logits' differences, confusion matrices; and what is worked out: names, speed, outliers, verdict,
   stability.
"""

Run = dict[str, Any]


@dataclass
class Result:
    """One runner's part of a run.

    Attributes:
        spec: the runner.
        artifact: the file, as the user knows it.
        options: that the runner was opened with.
        timing: its samples.
        model_bytes, peak_bytes: size of the artifact; peak memory of a process with this runner alone.
        parity: against PyTorch and against the truth, as far as these are known.
        profile: where its time goes, `profiling.to_json`, where that was asked for and its backend tells.
        swept: whether it was only timed, for the sweep of sizes and batches.
    """

    spec: Spec
    artifact: str
    options: dict[str, Any]
    timing: Timing
    model_bytes: int
    peak_bytes: int
    parity: Parity | None = None
    profile: dict[str, Any] | None = None
    swept: bool = False

    def to_json(self) -> dict[str, Any]:
        timing, spec = self.timing, self.spec
        stages = {stage: [ms for block in blocks for ms in block] for stage, blocks in timing.blocks.items()}
        return {
            "backend": spec.backend,
            "device": spec.device,
            "precision": spec.precision,
            "layout": spec.layout or None,
            "artifact": self.artifact,
            "runtime": spec.runtime,
            "options": self.options,
            "size": list(spec.size),
            "batch": timing.batch,
            "warm_up": asdict(timing.warm_up),
            "timed": timing.judged,
            "latency_ms": summary(stages[timing.judged]),
            "stages_ms": {stage: summary(ms) for stage, ms in stages.items()},
            "samples_ms": [round(ms, 4) for ms in stages[timing.judged]],
            "blocks": [len(block) for block in timing.blocks[timing.judged]],
            "stream_ms": [round(ms, 4) for ms in timing.stream],
            "model_bytes": self.model_bytes,
            "peak_bytes": self.peak_bytes,
            "parity": self.parity and self.parity.parity_json(),
            "accuracy": self.parity and self.parity.accuracy_json(),
            "profile": self.profile,
        }


def to_run(
    results: Sequence[Result],
    reference: Parity | None,
    *,
    environment: dict[str, Any],
    load: Load,
    images: dict[str, Any],
    peaks: Peaks | None,
    partial: bool,
) -> Run:
    """The whole run; the fields are described in the README.

    Args:
        reference: PyTorch's own accuracy, or None where the weights were not at hand.
        environment, load: of the machine, before the run and beside it.
        images: what the runners saw, in words.
        peaks: of the processor, for the profiles.
        partial: whether the run was interrupted.
    """
    run = {
        "schema": SCHEMA,
        "partial": partial,
        "environment": environment,
        "load": asdict(load),
        "images": images,
        "peaks": None if peaks is None else asdict(peaks),
        "reference": None if reference is None else {"backend": "torch", "accuracy": reference.accuracy_json()},
        "results": [result.to_json() for result in results if not result.swept],
        "sweep": [result.to_json() for result in results if result.swept],
    }
    return complete(run)


def read(path: str | Path) -> Run:
    """A stored run, brought to this version's form.

    Raises ArtifactError where the file is missing or was not written by enet-bench.
    """
    with blamed(path):
        try:
            run = _printable(parse_json(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            why = error.strerror
            raise ArtifactError(f"{path} cannot be read: {why}; expected a file of enet-bench --json") from None
        if run["schema"] not in (1, SCHEMA):
            raise ArtifactError(
                f"{path} is of schema {run['schema']!r}, expected 1 or {SCHEMA}; read it with a later version"
            )
        return complete(_from_first(run) if run["schema"] == 1 else run)


def _printable(value: Any) -> Any:
    """The same run, every text made `printable`: names, processors and versions are shown as they are."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_printable(each) for each in value]
    if isinstance(value, dict):
        return {printable(name): _printable(each) for name, each in value.items()}
    return value


@contextmanager
def blamed(path: str | Path) -> Iterator[None]:
    """What goes wrong inside is for the file's contents, which may be anything: raises ArtifactError for it."""
    try:
        yield
    except (EnetError, OSError):
        raise
    except Exception as error:  # noqa: BLE001  a JSON file can be wrong in any way
        why = f"it lacks {error}" if isinstance(error, KeyError) else f"{error}"
        raise ArtifactError(f"{path} is no result of enet-bench --json: {why:.80}") from None


def _from_first(run: Run) -> Run:
    """Schema 1 -> 2; what was not measured then is null."""
    results = [
        {"timed": "infer", "layout": None, "warm_up": None, "stream_ms": [], "profile": None, **result}
        | {
            "blocks": _five_blocks(len(result["samples_ms"])),
            "parity": result["parity"] and {"flips": None, "p99_abs_logit": None, **result["parity"]},
            "accuracy": result["accuracy"] and {"confusion": None, **result["accuracy"]},
        }
        for result in run["results"]
    ]
    added: Run = {"partial": False, "load": None, "images": None, "peaks": None, "sweep": []}
    return {**added, **run, "schema": SCHEMA, "results": results}


def _five_blocks(calls: int) -> list[int]:
    """The rounds of schema 1: 52 calls came in blocks of 10, 10, 11, 10 and 11."""
    return [n for n in (calls * (i + 1) // 5 - calls * i // 5 for i in range(5)) if n]


def complete(run: Run) -> Run:
    """With what is worked out: names, rates, speed against the first of the same size and batch, verdict, stability."""
    every = [*run["results"], *run["sweep"]]
    for name, result in zip(_names(every), every, strict=True):
        result["name"] = name
        result["fps"] = 1e3 * result["batch"] / result["latency_ms"]["mean"]
        result["stream_fps"] = 1e3 * result["batch"] / _mean(result["stream_ms"]) if result["stream_ms"] else None
        result["spread"] = spread(rounds(result))
        result["outliers"] = outliers(result["samples_ms"])
        baseline = next(r for r in every if (r["size"], r["batch"]) == (result["size"], result["batch"]))
        result["speed"] = asdict(compare(baseline, result, side_by_side=True))
    run["verdict"] = verdict(run)
    run["stability"] = stability(run)
    return run


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _names(results: list[dict[str, Any]]) -> list[str]:
    """What tells the runners of one run apart: backend, precision and layout, then batch and size, file, number."""
    names = []
    for r in results:
        layout = f"-{r['layout']}" if r["layout"] not in (None, "all") else ""
        device = "" if r["device"] in ("cpu", "cuda") else f" {r['device']}"
        names.append(f"{r['backend']} {r['precision']}{layout}{device}" + (f" x{r['batch']}" if r["batch"] > 1 else ""))
    if len({tuple(r["size"]) for r in results}) > 1:
        names = [f"{name} {r['size'][0]}x{r['size'][1]}" for name, r in zip(names, results, strict=True)]
    files = [(name, Path(r["artifact"]).name) for name, r in zip(names, results, strict=True)]
    same = {name: {file for other, file in files if other == name} for name in names}
    names = [name if len(same[name]) == 1 else f"{name} {file}" for name, file in files]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: index + 1].count(name)})"
        for index, name in enumerate(names)
    ]
