"""What weights say of the images that they were trained on, from training to every score."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import one_line
from training_runs import enet_train

from enet_deploy.artifacts import BUNDLED_WEIGHTS, Metadata
from enet_deploy.commands import api, evaluate
from enet_deploy.data import open_data
from enet_deploy.data.scenes import street_scene
from enet_deploy.errors import ArtifactError
from enet_deploy.export import mark
from enet_deploy.export.record import BUNDLED_RECORD
from enet_deploy.files import sha256
from enet_deploy.trained_on import KEY, TrainedOn, count, in_words, joined, pixel_hash
from enet_deploy.weights import load_weights, save_weights

SCENES = [street_scene(seed, (48, 64))[0] for seed in range(6)]
HASHES = [pixel_hash(scene) for scene in SCENES]


def told(weights: Path, data: Path, split: str, tmp_path: Path) -> int | None:
    """What enet-eval says how many images were trained on."""
    path = tmp_path / "scores.json"
    assert evaluate.main([str(weights), "--data", str(data), "--split", split, "--json", str(path)]) == 0
    found: int | None = json.loads(path.read_text())["trained_on"]
    return found


def test_hash_is_of_the_pixels() -> None:
    assert len(set(HASHES)) == 6 and {len(each) for each in HASHES} == {8}
    assert pixel_hash(np.asfortranarray(SCENES[0])) == HASHES[0]
    changed = SCENES[0].copy()
    changed[-1, -1, 0] ^= 1
    assert pixel_hash(changed) != HASHES[0]
    assert pixel_hash(SCENES[0].reshape(64, 48, 3)) != HASHES[0]  # the same bytes in another shape


def test_what_is_known_is_counted() -> None:
    all_of_it, part = TrainedOn(frozenset(HASHES[:4])), TrainedOn(frozenset(HASHES[:4]), is_complete=False)
    assert TrainedOn.from_json(json.loads(json.dumps(part.to_json()))) == part
    assert [count(known, HASHES[2:]) for known in (all_of_it, part, None)] == [2, 2, None]
    assert [count(known, HASHES[4:]) for known in (all_of_it, part, None)] == [0, None, None]
    more = TrainedOn(frozenset(HASHES[3:5]))
    assert joined([all_of_it, more]) == TrainedOn(frozenset(HASHES[:5]))
    assert joined([all_of_it, None]) == part and joined([part, more]).is_complete is False


@pytest.mark.parametrize(
    "value", [5, {}, {"hashes": "short", "complete": True}, {"hashes": "", "complete": 1}, {"hashes": "a b c d e"}]
)
def test_damaged_hashes_are_refused(value: object) -> None:
    _, metadata = load_weights(BUNDLED_WEIGHTS)
    stored = json.loads(metadata.to_text())
    stored["details"][KEY] = value
    with pytest.raises(ArtifactError, match=KEY):
        Metadata.from_text(json.dumps(stored), "a.onnx")


@pytest.mark.slow
def test_training_writes_it_and_scores_say_it(
    scenes: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = finished / "last.safetensors"
    assert told(weights, scenes, "val", tmp_path) == 0 and "not trained on: none of the 4" in capsys.readouterr().out
    assert told(weights, scenes, "train", tmp_path) == 8 and "TRAINED ON: 8 of the 8" in capsys.readouterr().out
    again = tmp_path / "again"  # other names, other bytes, the same pixels
    for folder in ("train", "trainannot"):
        (again / folder).mkdir(parents=True)
        for number, path in enumerate(sorted((scenes / folder).iterdir())):
            pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(str(again / folder / f"x{number}.tiff"), pixels)
    assert told(weights, again, "train", tmp_path) == 8


@pytest.mark.slow
def test_what_the_start_was_trained_on_counts_too(
    scenes: Path, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "data"  # the splits the other way round
    for here, there in (("train", "val"), ("val", "train")):
        shutil.copytree(scenes / here, data / there)
        shutil.copytree(scenes / f"{here}annot", data / f"{there}annot")
    start, old = finished / "last.safetensors", tmp_path / "old.safetensors"
    net, metadata = load_weights(start)
    details = {name: value for name, value in metadata.details.items() if name != KEY}
    save_weights(old, net, dataclasses.replace(metadata, details=details))
    assert told(old, scenes, "train", tmp_path) is None
    for init, of_val, complete in ((start, 8, True), (old, None, False)):
        out = tmp_path / init.stem
        caplog.clear()
        with caplog.at_level("INFO"):
            assert enet_train(data, out, "--init", str(init), epochs=1) == 0
        words = in_words(of_val, 8)
        at_start, sweep = [text for text in caplog.messages if words in text]
        assert at_start.startswith("val: ") and "--prior-correction" in sweep
        _, metadata = load_weights(out / "last.safetensors")
        assert metadata.trained_on is not None and metadata.trained_on.is_complete == complete
        assert KEY not in metadata.details["init"]  # once is enough
        assert told(out / "last.safetensors", data, "val", tmp_path) == of_val
        assert told(out / "last.safetensors", data, "train", tmp_path) == 4


def test_graphs_carry_it_and_stay_small(exported: Path, scenes: Path, tmp_path: Path) -> None:
    import onnx

    from enet_deploy.artifacts import graph_metadata

    known = graph_metadata(onnx.load(exported), exported).trained_on
    assert known is not None and len(known.hashes) == 540 and len(json.dumps(known.to_json())) < 5_000
    assert told(exported, scenes, "val", tmp_path) == 0


def test_the_python_function_says_it(
    exported: Path, scenes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import onnx

    from enet_deploy.artifacts import graph_metadata, save_graph, set_graph_metadata

    seen = TrainedOn(frozenset(pixel_hash(image) for image, _ in open_data(scenes, "val")))
    model = onnx.load(exported)
    metadata = graph_metadata(model, exported)
    set_graph_metadata(model, dataclasses.replace(metadata, details={**metadata.details, KEY: seen.to_json()}))
    save_graph(model, tmp_path / "seen.onnx")
    scores = [api.evaluate(path, scenes, backend="ort") for path in (exported, tmp_path / "seen.onnx")]
    assert scores[0] == scores[1]
    assert [record.message.split(" images")[0] for record in caplog.records] == ["TRAINED ON: 4 of the 4"]


@pytest.mark.slow
def test_old_weights_are_marked(scenes: Path, finished: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    shutil.copy(finished / "last.safetensors", weights)
    before, tensors = sha256(weights), load_weights(weights)[0].state_dict()
    assert mark.main([str(weights), str(scenes / "val")]) == 0
    assert sha256(weights) != before and told(weights, scenes, "val", tmp_path) == 4
    after = load_weights(weights)[0].state_dict()
    assert all(bool((after[name] == tensors[name]).all()) for name in tensors)


def test_weights_are_not_marked_if_their_record_cannot_be_written(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, record = tmp_path / "weights.safetensors", tmp_path / "records" / "record.json"
    record.parent.mkdir()
    shutil.copy(BUNDLED_WEIGHTS, weights)
    shutil.copy(BUNDLED_RECORD, record)
    make = tempfile.TemporaryFile

    def full(dir: Path) -> object:
        if dir == record.parent:
            raise OSError
        return make(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert mark.main([str(weights), str(scenes / "val"), "--record", str(record)]) == 2
    assert str(record) in one_line(capsys) and sha256(weights) == sha256(BUNDLED_WEIGHTS)


@pytest.mark.slow
def test_bundled_weights_know_camvid(camvid: Path) -> None:
    hashes = [[pixel_hash(image) for image, _ in open_data(camvid, split)] for split in ("train", "val")]
    for name, of_val in (("enet-camvid", 101), ("enet-camvid-train", 0)):
        _, metadata = load_weights(BUNDLED_WEIGHTS.with_name(f"{name}.safetensors"))
        assert [count(metadata.trained_on, each) for each in hashes] == [367, of_val]
