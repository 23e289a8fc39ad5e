"""The output folder of a run: which network made it, the plan of its parts, and which of them are written.

    run.json             the network, the source, the classes
    network/             the file that labels
    plan.jsonl           the names of the files of each part, one part a line
    labels/              label maps
    parts/000000.parquet a row per image

The plan only grows, and a part is written whole, under its number. So whoever writes a part twice, as after a killed
worker, replaces its rows and adds none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..artifacts import Metadata, read_artifact
from ..errors import ArtifactError, InputError
from ..files import atomic_write, digest, parse_json
from ..fit import Fit
from ..runners import artifact_files
from ..runners.onnx_file import read_metadata
from .sources import Files, Source

SCHEMA = 1
PART_SIZE = 64  # images; a bag is a part of its own


class Output(Files):
    """The output folder, local or in a bucket."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole: on a disk under a temporary name, in a bucket in one request, as those are whole."""
        if not self.is_local:
            self.fs.pipe_file(self.path(name), content)
            return
        with atomic_write(self.path(name)) as temporary:
            temporary.write_bytes(content)

    def exists(self, name: str) -> bool:
        return bool(self.fs.exists(self.path(name)))

    def text(self, name: str) -> str:
        """Return the text of a file of the run. Raises ArtifactError if it cannot be read."""
        try:
            return bytes(self.fs.cat_file(self.path(name))).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{self.path(name)} cannot be read: {error}; name another output folder") from None

    def begin(self, network: dict[str, Any], source: Source, artifact: Path) -> None:
        """Note what this run is, or check that it is the one that the folder is of.

        Args:
            network: what labels depend on, see `identity`.
            source: of the images.
            artifact: is kept in the folder, from where each actor opens it.

        Raises InputError if the folder is of another network or source, ArtifactError if it cannot be used.
        """
        facts = {"schema": SCHEMA, "source": source.url, **network, "artifact": artifact.name}
        if not self.exists("run.json"):
            for file in artifact_files(artifact):
                self.write(f"network/{file.name}", read_artifact(file))
            self.write("run.json", json.dumps(facts, indent=2).encode())
            return
        try:
            found = parse_json(self.text("run.json"))
            different = [key for key in facts if key != "artifact" and found[key] != facts[key]]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{self.path('run.json')} is damaged: {error!r}; name another output folder") from None
        if different:
            key = different[0]
            raise InputError(
                f"{self.root} is of a run with {key} {found[key]!r:.80}, expected {facts[key]!r:.80}; name another "
                "output folder"
            )

    @property
    def artifact(self) -> str:
        return str(parse_json(self.text("run.json"))["artifact"])

    def plan(self, source: Source, names: Sequence[str]) -> dict[int, list[str]]:
        """Return the names of each part's files: those planned before, then new parts of the names that are new."""
        parts = self._planned() if self.exists("plan.jsonl") else []
        known = {name for part in parts for name in part}
        new = [*_parts(source, [name for name in names if name not in known])]
        if new:
            self.write("plan.jsonl", "".join(f"{json.dumps(part)}\n" for part in (*parts, *new)).encode())
        return dict(enumerate([*parts, *new]))

    def _planned(self) -> list[list[str]]:
        try:
            return [json.loads(line) for line in self.text("plan.jsonl").splitlines()]
        except ValueError as error:
            raise ArtifactError(f"{self.path('plan.jsonl')} is damaged: {error}; name another output folder") from None

    def written(self) -> set[int]:
        """Return the numbers of the parts that are written."""
        self.fs.invalidate_cache()
        stems = (Path(path).stem for path in self.fs.find(self.path("parts")) if path.endswith(".parquet"))
        return {int(stem) for stem in stems if stem.isdecimal()}


def part_name(number: int) -> str:
    return f"parts/{number:06}.parquet"


def _parts(source: Source, names: Sequence[str]) -> Iterator[list[str]]:
    images = [name for name in names if not source.is_bag(name)]
    for start in range(0, len(images), PART_SIZE):
        yield images[start : start + PART_SIZE]
    yield from ([name] for name in names if source.is_bag(name))


def identity(artifact: Path, precision: str | None, fit: Fit | None, topic: str | None) -> dict[str, Any]:
    """Return what the labels of a run depend on. Raises ArtifactError if the artifact cannot be read."""
    metadata, weights = _metadata(artifact)
    return {
        "weights_sha256": weights,
        "precision": precision or metadata.precision,
        "size": [*metadata.size],
        "fit": fit or metadata.fit,
        "topic": topic,
        "classes": metadata.classes.to_json(),
    }


def _metadata(artifact: Path) -> tuple[Metadata, str]:
    """Return an artifact's metadata, and the hash of the weights that it is or comes from."""
    if artifact.suffix == ".engine":
        from ..runners.tensorrt.card import EngineCard

        metadata = EngineCard.read(artifact).metadata
        return metadata, metadata.weights_sha256
    content = read_artifact(artifact)
    if artifact.suffix == ".onnx":
        metadata = read_metadata(content, artifact)
        return metadata, metadata.weights_sha256 or digest(content)
    from ..weights import Weights

    return Weights.read(artifact).metadata, digest(content)
