"""The output folder of a run: which network made it, the plan of its parts, and which of them are written.

    run.json             the network, the source, the classes
    network/             the file that labels
    plan.jsonl           the names of the files of each part, one part a line
    labels/              label maps
    parts/000000.parquet a row per image
    tries/000000         only while a part is labelled: on which of its files a worker was when it died

The plan only grows, and a part is written whole, under its number. So whoever writes a part twice, as after a killed
worker, replaces its rows and adds none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..artifacts import Metadata, read_artifact
from ..errors import ArtifactError, DataError, EnetError, InputError
from ..files import atomic_write, digest, parse_json
from ..fit import Fit
from ..runners import artifact_files
from ..runners.onnx_file import read_metadata
from .sources import Files, Source

SCHEMA = 2
PART_SIZE = 64  # images; a bag is a part of its own


class Output(Files):
    """The output folder, local or in a bucket. Each method raises ArtifactError for what the file system raises."""

    @contextmanager
    def _used(self, name: str) -> Iterator[None]:
        try:
            yield
        except EnetError:
            raise
        except Exception as error:  # noqa: BLE001  each kind of bucket raises errors of its own
            raise ArtifactError(
                f"{self.path(name)} cannot be used: {type(error).__name__}: {error}; mend that, or name another output "
                "folder"
            ) from None

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole: on a disk under a temporary name, in a bucket in one request, as those are whole."""
        with self._used(name):
            if not self.is_local:
                self.fs.pipe_file(self.path(name), content)
                return
            with atomic_write(self.path(name)) as temporary:
                temporary.write_bytes(content)

    def exists(self, name: str) -> bool:
        with self._used(name):
            self.fs.invalidate_cache()  # other workers write, too
            return bool(self.fs.exists(self.path(name)))

    def content(self, name: str) -> bytes:
        with self._used(name):
            return bytes(self.fs.cat_file(self.path(name)))

    def text(self, name: str) -> str:
        content = self.content(name)
        with self._used(name):
            return content.decode()

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all in it, if it exists."""
        if self.exists(name):
            with self._used(name):
                self.fs.rm(self.path(name), recursive=True)

    def begin(self, network: dict[str, Any], source: Source, artifact: Path) -> None:
        """Note what this run is, or check that it is the one that the folder is of.

        Args:
            network: what labels depend on, see `identity`.
            source: of the images.
            artifact: is kept in the folder, from where each actor opens it.

        A run that has written no part, as without a cluster, is replaced. Raises InputError if the folder is of another
        network or source, ArtifactError if it cannot be used, also if it has parts and does not say of which network.
        """
        facts = {"schema": SCHEMA, "source": source.url, **network}
        has_facts = self.exists("run.json")
        if not self.written():
            for name in ("network", "plan.jsonl") if has_facts else ():
                self.remove(name)
            for file in artifact_files(artifact):
                self.write(f"network/{file.name}", read_artifact(file))
            self.write("run.json", json.dumps(facts, indent=2).encode())
            return
        if not has_facts:
            raise ArtifactError(
                f"{self.path('run.json')} is missing beside parts that are written, so that their network is unknown; "
                "put it back, or name another output folder"
            )
        try:
            found = parse_json(self.text("run.json"))
            key = next((key for key in facts if found[key] != facts[key]), None)
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{self.path('run.json')} is damaged: {error!r}; name another output folder") from None
        if key is not None:
            raise InputError(
                f"{self.root} is of a run with {key} {found[key]!r:.80}, and this command says {facts[key]!r:.80}; say "
                "the same to go on, or name another output folder"
            )

    def plan(self, source: Source, names: Sequence[str]) -> dict[int, list[str]]:
        """Return the names of each part's files: those planned before, then new parts of the names that are new.

        Raises DataError if two names have one label map.
        """
        parts = self._planned() if self.exists("plan.jsonl") else []
        known = {name for part in parts for name in part}
        new = [*_parts(source, [name for name in names if name not in known])]
        _require_distinct(source, [name for part in (*parts, *new) for name in part])
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
        with self._used("parts"):
            self.fs.invalidate_cache()
            found = self.fs.find(self.path("parts"), maxdepth=1)  # hidden folders below may have unfinished files
        stems = (Path(path).stem for path in found if path.endswith(".parquet"))
        return {int(stem) for stem in stems if stem.isdecimal()}


def part_name(number: int) -> str:
    return f"parts/{number:06}.parquet"


def _require_distinct(source: Source, names: Sequence[str]) -> None:
    """Raise DataError if two names have one label map: the second would replace the first's."""
    owners: dict[str, str] = {}
    for name in names:
        other = owners.setdefault(source.label_name(name), name)
        if other != name:
            raise DataError(
                f"{other} and {name} have one label map, {source.label_name(name)}; expected names that differ without "
                ". and .. and //; remove one from the list"
            )


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
        "artifact": artifact.name,
        "artifact_sha256": digest(read_artifact(artifact)),
    }


def hashes(artifact: Path) -> dict[str, str]:
    """Return the name and the SHA-256 of each file that opening an artifact reads; the artifact is the first."""
    return {file.name: digest(read_artifact(file)) for file in artifact_files(artifact)}


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
