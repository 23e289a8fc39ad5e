"""Every reader refuses a JSON object with the same key twice; the parser alone would drop the first value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import write_graph

from enet_deploy.artifacts import METADATA_KEY, Metadata, graph_metadata
from enet_deploy.benchmarks.run import Run
from enet_deploy.calibration import sensitivity
from enet_deploy.classes import read_classes
from enet_deploy.errors import ArtifactError, DataError
from enet_deploy.export.record import Record
from enet_deploy.runners.tensorrt.card import EngineCard

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "class list": ("classes.json", lambda path: read_classes(path.parent)),
    "calibration record": ("record.json", Record.read),
    "result of enet-bench": ("run.json", Run.read),
    "sensitivity study": ("study.json", lambda path: sensitivity._read_state(path, "")),
    "card of an engine": ("a.engine.json", lambda path: EngineCard.load(path.with_suffix(""))),
    "metadata": ("metadata.json", lambda path: Metadata.from_text(path.read_text(), path)),
}


@pytest.mark.parametrize(("name", "read"), READERS.values(), ids=READERS.keys())
def test_key_that_is_there_twice(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    (tmp_path / name).write_text('{"names": ["a", "b"], "schema": 1, "nested": {"a": 1, "b": 2, "a": 3}}')
    with pytest.raises((ArtifactError, DataError), match=r"the key 'a' is there twice"):
        read(tmp_path / name)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize(("name", "read"), READERS.values(), ids=READERS.keys())
def test_number_that_is_not_finite(tmp_path: Path, name: str, read: Callable[[Path], object], number: str) -> None:
    (tmp_path / name).write_text(f'{{"names": ["a", "b"], "schema": 1, "nested": {{"a": {number}}}}}')
    with pytest.raises((ArtifactError, DataError), match=f"the number {number}, expected a finite one"):
        read(tmp_path / name)


def test_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('\ufeff{"names": ["a", "b"]}', encoding="utf-8")
    assert read_classes(tmp_path).names == ("a", "b")


def test_metadata_that_is_in_a_graph_twice(tmp_path: Path) -> None:
    import onnx

    model = onnx.load(write_graph(tmp_path / "a.onnx"))
    model.metadata_props.add(key=METADATA_KEY, value=model.metadata_props[0].value)
    with pytest.raises(ArtifactError, match=r"a\.onnx has .* 2 times"):
        graph_metadata(model, "a.onnx")
