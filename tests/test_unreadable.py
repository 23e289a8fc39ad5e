"""Files that this user may not read: every reader names the file, in an error of this package."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from helpers import image, save, stored, write_graph

from enet_deploy import open_runner
from enet_deploy.artifacts import BUNDLED_WEIGHTS, graph_metadata, save_graph
from enet_deploy.benchmarks.run import Run
from enet_deploy.calibration.ranges import digest_of_files
from enet_deploy.classes import read_declaration
from enet_deploy.commands.inspect import describe
from enet_deploy.data.unzip import unzip
from enet_deploy.errors import ArtifactError, DataError, EnetError
from enet_deploy.export.record import BUNDLED_RECORD, Record
from enet_deploy.export.rewrite import rewrite_unpool
from enet_deploy.files import atomic_write, only_process, require_outputs, require_writable, sha256
from enet_deploy.images import read_image
from enet_deploy.media.frames import Stop
from enet_deploy.media.open import open_source
from enet_deploy.runners.tensorrt.builder import read_graph
from enet_deploy.runners.tensorrt.card import EngineCard
from enet_deploy.runners.tensorrt.cuda import Gpu
from enet_deploy.runners.tensorrt.engine import cached_engine
from enet_deploy.training.checkpoint import CHECKPOINT, Checkpoint
from enet_deploy.weights import load_weights

GPU: Any = Gpu("NVIDIA X", "8.6")
READERS: dict[str, list[Callable[[Path], object]]] = {
    "a.onnx": [
        *(lambda path, name=name: open_runner(path, name).close() for name in ("ort", "openvino")),
        lambda path: cached_engine(path, "trt", "10.0", GPU, 0), describe, read_graph,
        lambda path: rewrite_unpool(path, path.parent / "new.onnx"),
    ],
    "a.safetensors": [load_weights, describe],
    "a.engine": [EngineCard.load],
    "a.engine.json": [lambda path: EngineCard.load(path.with_suffix(""))],
    "record.json": [Record.read],
    "bench.json": [Run.read],
    "classes.json": [lambda path: read_declaration(path.parent)],
    "a.png": [read_image, lambda path: digest_of_files([path])],
    CHECKPOINT: [lambda path: Checkpoint.read(path.parent)],
    "a.zip": [lambda path: unzip(path, path.parent.parent / "new")],
}  # fmt: skip


@contextlib.contextmanager
def not_readable(path: Path) -> Iterator[None]:
    """Take all permissions from a file or a folder; for root, who needs none, be another user meanwhile."""
    user, mode = os.geteuid(), path.stat().st_mode & 0o777
    path.chmod(0)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        path.chmod(mode)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("unreadable")
    graph, engine = folder / "a.onnx", folder / "a.engine"
    save_graph(onnx.load(write_graph(graph)), graph)
    engine.write_bytes(b"code")
    hashes, metadata = (sha256(engine), sha256(graph)), graph_metadata(onnx.load(graph), graph)
    EngineCard(*hashes, "trt", "10.3.0", ("8.6",), "X", False, False, {"fp32": 1.0}, metadata).write(engine)
    shutil.copy(BUNDLED_WEIGHTS, folder / "a.safetensors")
    shutil.copy(finished / CHECKPOINT, folder)
    Record.read(BUNDLED_RECORD).write(folder / "record.json")
    (folder / "bench.json").write_text(json.dumps(stored()))
    (folder / "classes.json").write_text('{"names": ["floor", "wall"], "ignore_id": null}')
    save(folder / "a.png", image())
    shutil.make_archive(str(folder / "a"), "zip", folder, "a.png")
    for parent in folder.parents:  # pytest's own have mode 700
        if parent.stat().st_uid == os.geteuid() and parent.stat().st_mode & 0o5 != 0o5 and "pytest" in parent.name:
            parent.chmod(0o755)
    folder.chmod(0o755)
    return folder


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_cannot_be_read_is_named(folder: Path, name: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", f"{folder}/a.png")  # a file: no engine is built
    path = folder / name
    for read in READERS[name]:
        with contextlib.suppress(EnetError):  # whole, but nothing to rewrite; and modules are imported
            read(path)
        with (
            not_readable(path if what == "file" else folder),
            pytest.raises((ArtifactError, DataError), match=f"{folder.name}.*(Permission|ermitted)") as error,
        ):
            read(path)
        assert not isinstance(error.value, OSError)


@pytest.mark.parametrize("name", ["", "a.png", "none.mcap"])
def test_source_that_cannot_be_reached_is_named(folder: Path, name: str) -> None:
    with not_readable(folder), pytest.raises(DataError, match=f"{folder.name}.*(Permission|ermitted)"):
        open_source(str(folder / name), Stop())


WRITERS: list[Callable[[Path], object]] = [
    require_writable, lambda path: require_outputs([path], [path.with_name("b")]),
    lambda path: require_outputs([], [], [path]), lambda path: atomic_write(path).__enter__(),
    lambda path: only_process(path).__enter__(),
]  # fmt: skip


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("name", ["new", "new/more", "a.png"])
def test_what_cannot_be_written_is_named(folder: Path, name: str, write: Callable[[Path], object]) -> None:
    with not_readable(folder), pytest.raises(ArtifactError, match=f"cannot write .*{folder.name}"):
        write(folder / name)
