"""Files that changed after they were written: refused, or read as they were."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import SIZE, write_graph
from onnx import numpy_helper

from enet_deploy import ArtifactError, InputError, open_runner
from enet_deploy.artifacts import check_digest, graph_metadata, save_graph, sealed, set_graph_metadata
from enet_deploy.cache import private_folder, read_entry, write_entry
from enet_deploy.data.scenes import street_scene
from enet_deploy.export.record import BUNDLED_RECORD, Record
from enet_deploy.files import sha256
from enet_deploy.images import UInt8Array
from enet_deploy.runners.tensorrt.builder import read_graph
from enet_deploy.runners.tensorrt.card import EngineCard
from enet_deploy.weights import Weights


def flipped(content: bytes, position: int, bit: int = 0x40) -> bytes:
    changed = bytearray(content)
    changed[position] ^= bit
    return bytes(changed)


@pytest.fixture
def frames() -> UInt8Array:
    return street_scene(3, SIZE)[0][None]


@pytest.mark.parametrize("artifact", ["weights", "exported"])
def test_every_changed_bit_is_found(artifact: str, request: pytest.FixtureRequest) -> None:
    content = request.getfixturevalue(artifact).read_bytes()
    assert check_digest(content, "file")
    key = content.index(b"content_sha256")
    positions = [*np.random.default_rng(0).integers(0, len(content), 100), 0, key - 40, len(content) - 1]
    for position in map(int, positions):
        with pytest.raises(ArtifactError, match="SHA-256"):
            check_digest(flipped(content, position), "file")
    with pytest.raises(ArtifactError, match="SHA-256"):
        check_digest(content[:-1], "file")
    # a bit of the key leaves all that the file says as it was
    assert not check_digest(flipped(content, key), "file")


@pytest.mark.parametrize(
    ("artifact", "opened"),
    [
        ("weights", Weights.read),
        ("weights", open_runner),
        ("exported", open_runner),
        ("exported", lambda path: open_runner(path, "openvino")),
        ("exported", read_graph),
    ],
    ids=["Weights.read", "torch", "ort", "openvino", "trt"],
)
def test_changed_weights_are_refused_by_all_that_read_them(
    artifact: str, opened: Callable[[Path], object], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if "openvino" in request.node.callspec.id:
        pytest.importorskip("openvino")
    path = request.getfixturevalue(artifact)
    changed = tmp_path / path.name
    content = path.read_bytes()
    changed.write_bytes(flipped(content, len(content) * 2 // 3))
    with pytest.raises(ArtifactError, match=path.name):
        opened(changed)


@pytest.mark.slow
def test_files_without_a_digest_are_read(weights: Path, exported: Path, tmp_path: Path, frames: UInt8Array) -> None:
    """Files of earlier versions, and graphs that onnx saved after our function has set their metadata."""
    with open_runner(exported) as runner:
        labels = runner.infer(frames)
    old = tmp_path / "old.safetensors"
    old.write_bytes(weights.read_bytes().replace(b"content_sha256", b"details_sha256"))
    assert Weights.read(old).metadata == Weights.read(weights).metadata
    model = onnx.load(exported)
    set_graph_metadata(model, graph_metadata(model, exported))
    for save in (onnx.save, save_graph):
        save(model, tmp_path / "edited.onnx")
        with open_runner(tmp_path / "edited.onnx") as runner:
            np.testing.assert_array_equal(runner.infer(frames), labels)
    assert check_digest((tmp_path / "edited.onnx").read_bytes(), "file")


def test_graph_is_saved_whole_and_in_one_file_or_not_at_all(exported: Path, tmp_path: Path) -> None:
    model, path = onnx.load(exported), tmp_path / "a.onnx"
    path.write_bytes(b"old")
    onnx.save_model(model, tmp_path / "parts.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(ArtifactError, match=r"a\.onnx has weights in other files"):
        save_graph(onnx.load(tmp_path / "parts.onnx", load_external_data=False), path)
    with pytest.raises(ArtifactError, match=r"cannot write .*a\.onnx/b\.onnx"):
        save_graph(onnx.load(exported), path / "b.onnx")
    assert path.read_bytes() == b"old"


def test_metadata_that_could_not_be_read_again_is_refused(exported: Path) -> None:
    metadata = graph_metadata(onnx.load(exported), exported)
    with pytest.raises(InputError, match=r"\{'loss': nan\}"):
        replace(metadata, details={"loss": math.nan}).to_text()


def test_a_file_without_our_metadata_cannot_be_sealed() -> None:
    assert sealed(b"other") == b"other" and not check_digest(b"other", "file")


@pytest.mark.slow
def test_changed_records_and_cards_are_refused(exported: Path, tmp_path: Path) -> None:
    """A changed magnitude gives other labels, a changed name of a class a wrong name; both are sound JSON."""
    engine, record = tmp_path / "a.engine", tmp_path / "record.json"
    engine.write_bytes(b"code")
    metadata = graph_metadata(onnx.load(exported), exported)
    hashes = sha256(engine), sha256(exported)
    EngineCard(*hashes, "trt", "10.3.0", ("8.6",), "X", False, False, {"fp32": 1.0}, metadata).write(engine)
    Record.read(BUNDLED_RECORD).write(record)
    for path, read in (
        (EngineCard.path(engine), lambda: EngineCard.load(engine)),
        (record, lambda: Record.read(record)),
    ):
        whole, sound = path.read_bytes(), read()
        for position in map(int, np.random.default_rng(0).integers(0, len(whole), 300)):
            path.write_bytes(flipped(whole, position, 1 << position % 8))
            try:
                assert read() == sound, position  # white space, and the digits of a number that mean the same
            except ArtifactError as error:
                assert path.name in f"{error}" or engine.name in f"{error}"
        path.write_bytes(whole.replace(b"sky", b"sly") if path != record else whole.replace(b".5", b".6", 1))
        with pytest.raises(ArtifactError, match="content_sha256"):
            read()
        edited = {key: value for key, value in json.loads(path.read_text()).items() if key != "content_sha256"}
        path.write_text(json.dumps(edited))  # by hand, or by an earlier version
        assert read() != sound


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_graph_with_a_weight_that_is_no_number_is_refused(value: float, tmp_path: Path) -> None:
    path = write_graph(tmp_path / "least.onnx")
    model = onnx.load(path)
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight.flat[0] = value
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "weight"))
    onnx.save(model, path)
    openers: list[Callable[[], object]] = [
        lambda: open_runner(path, "ort"),
        lambda: read_graph(path),
        lambda: save_graph(model, path),
    ]
    if find_spec("openvino"):
        openers.append(lambda: open_runner(path, "openvino"))
    for opener in openers:
        with pytest.raises(ArtifactError, match=r"weight.*NaN or infinite"):
            opener()


# The cache


def test_damaged_and_foreign_entries_are_not_read(tmp_path: Path) -> None:
    path, other = tmp_path / "a.blob", tmp_path / "b.blob"
    assert read_entry(path) == b""
    write_entry(path, b"compiled")
    write_entry(other, b"another")
    assert read_entry(path) == b"compiled"
    whole = path.read_bytes()
    for content in (*(flipped(whole, i) for i in range(len(whole))), whole[:-1], b"", other.read_bytes()):
        path.write_bytes(content)
        assert read_entry(path) == b""


@pytest.mark.slow
def test_openvino_compiles_again_what_its_cache_lost(exported: Path, tmp_path: Path, frames: UInt8Array) -> None:
    pytest.importorskip("openvino")

    def labels(graph: Path, cache: Path | None) -> UInt8Array:
        with open_runner(graph, "openvino", threads=1, cache=cache) as runner:
            return runner.infer(frames)

    expected = labels(exported, None)
    np.testing.assert_array_equal(labels(exported, tmp_path / "cache"), expected)
    (blob,) = (tmp_path / "cache").iterdir()
    whole = blob.read_bytes()
    np.testing.assert_array_equal(labels(exported, tmp_path / "cache"), expected)  # out of the cache
    assert blob.read_bytes() == whole

    model = onnx.load(exported)
    kernel = next(t for t in model.graph.initializer if t.name.startswith("fullconv") and len(t.dims) == 4)
    kernel.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kernel)[::-1].copy(), kernel.name))
    save_graph(model, tmp_path / "other.onnx")
    assert (labels(tmp_path / "other.onnx", tmp_path / "others") != expected).any()
    (others,) = (tmp_path / "others").iterdir()
    assert others.name != blob.name
    for content in (flipped(whole, len(whole) // 2), whole[:1000], others.read_bytes()):
        blob.write_bytes(content)
        np.testing.assert_array_equal(labels(exported, tmp_path / "cache"), expected)
        assert read_entry(blob)  # written again


def test_folder_of_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = private_folder(tmp_path / "new" / "cache")
    assert folder.stat().st_mode & 0o777 == 0o700
    linked = tmp_path / "link"
    linked.symlink_to(folder)
    assert private_folder(linked) == linked
    folder.chmod(0o777)
    with pytest.raises(ArtifactError, match="mode 777"):
        private_folder(folder)
    folder.chmod(0o700)
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="file"):
        private_folder(tmp_path / "file")
    owner = folder.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    for path in (folder, linked):
        with pytest.raises(ArtifactError, match=f"user {owner}"):
            private_folder(path)


def test_both_caches_refuse_a_folder_of_others(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    from enet_deploy.runners.tensorrt.cuda import Gpu
    from enet_deploy.runners.tensorrt.engine import cached_engine

    gpu: Any = Gpu("NVIDIA X", "8.6")
    for folder in (tmp_path / "cache", tmp_path / "enet_deploy"):
        folder.mkdir()
        folder.chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match="777"):
        open_runner(exported, "openvino", cache=tmp_path / "cache")
    with pytest.raises(ArtifactError, match="777"):
        cached_engine(exported, "trt", "10.0", gpu, 0)
