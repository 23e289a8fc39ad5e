"""What an actor does, and the output folder, without a cluster: in a folder, and in a bucket in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers import one_line, save, write_graph

from enet_deploy import CAMVID, ArtifactError, DataError, InputError, open_runner
from enet_deploy.commands import fleet
from enet_deploy.data.scenes import street_scene

pytest.importorskip("pyarrow", reason="pyarrow is not installed; pip install 'enet-deploy[ray]'")
pytest.importorskip("fsspec", reason="fsspec is not installed; pip install 'enet-deploy[ray]'")
import fsspec
from pyarrow import parquet

from enet_deploy.fleet import labeller, output, sources
from enet_deploy.fleet.labeller import PartLabeller, Task, Tries
from enet_deploy.fleet.output import Output, identity, part_name
from enet_deploy.fleet.sources import Source

ASKED = {"backend": "ort", "device": None, "precision": None, "fit": None, "threads": 1}
SCENES = [street_scene(seed, (40, 60))[0] for seed in range(3)]


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    pytest.importorskip("onnxruntime")
    (tmp_path / "network").mkdir()
    return write_graph(tmp_path / "network" / "enet-fp32.onnx", confidence=True)


@pytest.fixture
def bucket() -> Iterator[str]:
    yield "memory://bucket"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def begun(source: Source, out: str, graph: Path, topic: str | None = None) -> tuple[Output, PartLabeller]:
    """A run with its first facts written, and an actor for it."""
    folder = Output(out)
    folder.begin(identity(graph, None, None, topic), source, graph)
    return folder, PartLabeller(Task(source.url, out, ASKED, output.hashes(graph), topic))


def rows_of(out: Output) -> list[dict[str, Any]]:
    found = []
    for path in sorted(out.fs.find(out.path("parts"))):
        with out.fs.open(path) as file:
            found += parquet.read_table(file).to_pylist()
    return found


def test_bucket_to_bucket(bucket: str, graph: Path) -> None:
    files = fsspec.filesystem("memory")
    for index, scene in enumerate(SCENES):
        files.pipe_file(f"/bucket/in/{index % 2}/{index}.png", cv2.imencode(".png", scene)[1].tobytes())
    files.pipe_file("/bucket/in/0/damaged.jpg", b"\xff\xd8\xff")
    files.pipe_file("/bucket/in/notes.md", b"no image")
    source = Source(f"{bucket}/in")
    names = source.names()
    assert names == ["0/0.png", "0/2.png", "0/damaged.jpg", "1/1.png"]
    out, actor = begun(source, f"{bucket}/out", graph)
    files.rm("/bucket/in/1/1.png")  # it vanishes after it was found
    assert actor({"part": [0], "names": [json.dumps(names)]})["frames"] == [4]
    rows = {row["file"]: row for row in rows_of(out)}
    assert [*rows] == names
    assert "damaged.jpg" in rows["0/damaged.jpg"]["error"] and "1/1.png" in rows["1/1.png"]["error"]
    with open_runner(graph, backend="ort") as runner:
        for name, scene in (("0/0.png", SCENES[0]), ("0/2.png", SCENES[2])):
            row, (labels, sure) = rows[name], runner.segment_with_confidence(scene)
            stored = cv2.imdecode(np.frombuffer(files.cat_file(f"/bucket/out/{row['labels']}"), np.uint8), -1)
            assert np.array_equal(stored, labels)
            assert (row["height"], row["width"], row["error"]) == (40, 60, None)
            assert row["confidence"] == pytest.approx(sure.mean() / 255)
            shares = [(labels == index).mean() for index in range(len(CAMVID))]
            assert [*row["shares"].values()] == pytest.approx(shares)
            assert [*row["shares"]] == [*CAMVID.names]


def test_list_of_images_and_a_bag(tmp_path: Path, graph: Path) -> None:
    bag = write_bag(tmp_path / "b" / "drive.bag")
    picture = save(tmp_path / "a" / "0.png", SCENES[0])
    listed = tmp_path / "files.txt"
    listed.write_text(f"{picture}\n\n{bag}\n{tmp_path}/gone.png\n{picture}\n")
    source = Source(f"{listed}")
    out, actor = begun(source, f"{tmp_path / 'out'}", graph)
    plan = out.plan(source, source.names())
    assert [*plan.values()] == [[f"{picture}", f"{tmp_path}/gone.png"], [f"{bag}"]]
    for number, names in plan.items():
        actor.label_part(number, names)
    rows = rows_of(out)
    assert [(row["file"], row["frame"]) for row in rows] == [
        (f"{picture}", None), (f"{tmp_path}/gone.png", None), (f"{bag}", "000000"), (f"{bag}", "000001"),
    ]  # fmt: skip
    assert "gone.png" in rows[1]["error"]
    for row in (rows[0], *rows[2:]):
        assert cv2.imread(out.path(row["labels"]), cv2.IMREAD_UNCHANGED).shape == (row["height"], row["width"])


def write_bag(path: Path) -> Path:
    """A bag with two images under one topic."""
    pytest.importorskip("rosbags")
    from enet_deploy.media.bags import BagFrame, label_bag
    from enet_deploy.media.frames import LabelledFrame

    path.parent.mkdir()
    with label_bag(path, "/camera", CAMVID) as write:
        for index in range(2):
            frame = BagFrame(SCENES[0], f"{index}", Fraction(index), stamp=index, frame_id="", received=index + 1)
            write(LabelledFrame(frame, np.full((40, 60), index, np.uint8), 0.0))
    return path


def test_bag_with_another_topic_is_a_row_with_an_error(tmp_path: Path, graph: Path) -> None:
    source = Source(f"{write_bag(tmp_path / 'in' / 'drive.bag')}")
    out, actor = begun(source, f"{tmp_path / 'out'}", graph, "/other")
    assert actor.label_part(0, source.names()) == (1, 1)
    assert "/other" in rows_of(out)[0]["error"]


def test_unfinished_part_of_a_killed_worker_is_not_written(tmp_path: Path) -> None:
    out = Output(f"{tmp_path}")
    out.write("parts/000004.parquet", b"whole")
    out.write("parts/.enet-x/000005.parquet", b"half")
    assert out.written() == {4}


def test_file_on_which_two_workers_died_is_a_row_with_an_error(tmp_path: Path, graph: Path) -> None:
    for index in range(3):
        folder = save(tmp_path / "in" / f"{index}.png", SCENES[index]).parent
    source = Source(f"{folder}")
    out, actor = begun(source, f"{tmp_path / 'out'}", graph)
    for _ in range(3):  # the first notes no file
        tries = Tries(out, 0).__enter__()
        assert not tries.killed("1.png")
        tries.begin("1.png")
    assert actor.label_part(0, source.names()) == (3, 1)
    errors = {row["file"]: row["error"] for row in rows_of(out)}
    assert errors["0.png"] is None and errors["2.png"] is None and "2 workers" in errors["1.png"]
    assert not out.exists("tries/000000")


def test_error_is_no_death(tmp_path: Path) -> None:
    for _ in range(4):
        with pytest.raises(OSError), Tries(Output(f"{tmp_path}"), 0) as tries:
            tries.begin("1.png")
            raise OSError
    assert not Tries(Output(f"{tmp_path}"), 0).killed("1.png")


def test_network_of_the_folder_is_opened_only_if_it_is_the_drivers(
    tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(f"{tmp_path}")
    out, actor = begun(source, f"{tmp_path / 'out'}", graph)
    task = actor._task
    monkeypatch.setattr(labeller, "open_runner", pytest.fail)
    out.write("network/enet-fp32.onnx", b"another")
    with pytest.raises(ArtifactError, match=task.files["enet-fp32.onnx"]):
        PartLabeller(task)
    out.write("enet.engine", b"code")
    with pytest.raises(ArtifactError, match=r"\.\./enet\.engine"):
        PartLabeller(replace(task, files={"../enet.engine": output.digest(b"code")}))


@pytest.mark.parametrize("error", [MemoryError("no room"), cv2.error("no room"), RuntimeError("no room")])
def test_any_error_of_a_file_is_its_row(
    tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    for index in range(2):
        folder = save(tmp_path / "in" / f"{index}.png", SCENES[index]).parent
    source = Source(f"{folder}")
    out, actor = begun(source, f"{tmp_path / 'out'}", graph)
    decode = labeller.image_of

    def fails(path: Path, content: bytes) -> Any:
        if path.name == "0.png":
            raise error
        return decode(path, content)

    monkeypatch.setattr(labeller, "image_of", fails)
    assert actor.label_part(0, source.names()) == (2, 1)
    assert "no room" in rows_of(out)[0]["error"]


def test_too_little_memory_to_label_is_a_row_and_a_lost_device_is_not(
    tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(f"{save(tmp_path / 'in' / '0.png', SCENES[0]).parent}")
    out, actor = begun(source, f"{tmp_path / 'out'}", graph)

    def fails(image: Any) -> Any:
        raise RuntimeError(reasons.pop(0))

    reasons = ["device lost", "bad_alloc"]
    monkeypatch.setattr(actor, "_labelled", fails)
    with pytest.raises(RuntimeError, match="device lost"):
        actor.label_part(0, source.names())
    assert actor.label_part(0, source.names()) == (1, 1)
    assert "bad_alloc" in rows_of(out)[0]["error"]


def test_name_that_is_not_utf8(tmp_path: Path, graph: Path) -> None:
    picture = save(tmp_path / "in" / "0.png", SCENES[0])
    try:
        picture.rename(picture.parent / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    source = Source(f"{picture.parent}")
    out, actor = begun(source, f"{tmp_path / 'out'}", graph)
    assert actor.label_part(0, out.plan(source, source.names())[0]) == (1, 1)
    row = rows_of(out)[0]
    assert row["file"] == r"\udcff.png" and "UTF-8" in row["error"]


def test_error_of_writing_fails_the_part(tmp_path: Path, graph: Path) -> None:
    source = Source(f"{save(tmp_path / 'in' / '0.png', SCENES[0]).parent}")
    out, actor = begun(source, f"{tmp_path / 'out'}", graph)
    Path(out.path("labels")).write_text("a file in the way")
    with pytest.raises(ArtifactError, match="labels"):
        actor.label_part(0, source.names())
    assert out.written() == set()


def test_notes_are_joined(tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(f"{save(tmp_path / 'in' / '0.png', SCENES[0]).parent}")
    out, actor = begun(source, f"{tmp_path / 'out'}", graph)
    decode, label = labeller.image_of, actor._labelled

    def noted(image: Any) -> Any:
        row, labels = label(image)
        return row | {"note": "unlike"}, labels

    monkeypatch.setattr(labeller, "image_of", lambda path, content: decode(path, content)._replace(note="guessed"))
    monkeypatch.setattr(actor, "_labelled", noted)
    actor.label_part(0, source.names())
    assert rows_of(out)[0]["note"] == "guessed; unlike"


def test_errors_of_a_bucket(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class ClientError(Exception):
        """As botocore's and aiohttp's, which are no OSError."""

    def refuses(*_: Any, **__: Any) -> Any:
        raise ClientError("AccessDenied")

    out = Output(f"{bucket}/out")
    out.write("run.json", b"{}")
    for name in ("exists", "cat_file", "pipe_file", "find", "rm"):
        monkeypatch.setattr(type(out.fs), name, refuses)
    for call in (
        lambda: out.exists("run.json"),
        lambda: out.text("run.json"),
        lambda: out.write("run.json", b""),
        lambda: out.remove("run.json"),
        out.written,
    ):
        with pytest.raises(ArtifactError, match="AccessDenied"):
            call()
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match=r"gone\.json"):
        out.text("gone.json")


def test_names_with_one_label_map_are_refused(tmp_path: Path) -> None:
    out, source = Output(f"{tmp_path / 'out'}"), Source("files.txt")
    names = ["/d/a.png", "gs://d/a.png", "s3://d/a.png"]
    assert out.plan(source, names) == {0: names}
    with pytest.raises(DataError, match=r"/d/a\.png and /x/\.\./d/a\.png"):
        out.plan(source, ["/x/../d/a.png"])
    assert out.plan(source, []) == {0: names}


def test_plan_grows_and_keeps_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "PART_SIZE", 2)
    source, out = Source(f"{tmp_path}"), Output(f"{tmp_path / 'out'}")
    first = out.plan(source, ["b.png", "c.png", "d.png", "drive.bag"])
    assert first == {0: ["b.png", "c.png"], 1: ["d.png"], 2: ["drive.bag"]}
    more = out.plan(source, ["a.png", "c.png", "d.png"])  # one is new, two are gone
    assert more == first | {3: ["a.png"]} and out.plan(source, []) == more


def test_task_that_comes_again_writes_nothing(tmp_path: Path, graph: Path) -> None:
    source = Source(f"{save(tmp_path / 'in' / '0.png', SCENES[0]).parent}")
    out, actor = begun(source, f"{tmp_path / 'out'}", graph)
    assert out.written() == set()
    assert actor.label_part(7, source.names()) == (1, 0)
    assert out.written() == {7}
    assert not out.exists("tries/000007")
    Path(out.path("labels/0.png.png")).unlink()
    assert actor.label_part(7, source.names()) == (1, 0)
    assert not out.exists("labels/0.png.png")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("a/b.png", "labels/a/b.png.png"),
        ("../../etc/b.png", "labels/etc/b.png.png"),
        ("s3://bucket/../../b.jpg", "labels/b.jpg.png"),
        ("s3://bucket/a/b.jpg", "labels/s3/bucket/a/b.jpg.png"),
        ("/data/drive.mcap", "labels/data/drive.mcap"),
    ],
)
def test_label_maps_stay_in_the_folder(name: str, expected: str) -> None:
    assert Source("files.txt").label_name(name) == expected


def test_folder_of_another_network_or_source_is_refused(tmp_path: Path, graph: Path) -> None:
    source, out = Source(f"{tmp_path}"), Output(f"{tmp_path / 'out'}")
    network = identity(graph, None, None, None)
    out.begin(network | {"precision": "bf16"}, source, graph)
    out.begin(network, source, graph)  # in place of a run that wrote nothing
    out.write(part_name(0), b"")
    out.begin(network, source, graph)
    before = out.text("run.json")
    with pytest.raises(InputError, match="weights_sha256.*" + network["weights_sha256"]):
        out.begin(network | {"weights_sha256": "0" * 64}, source, graph)
    with pytest.raises(InputError, match="precision 'fp32'"):
        out.begin(network | {"precision": "bf16"}, source, graph)
    other = write_graph(tmp_path / "enet-other.onnx")  # the same weights in another graph
    with pytest.raises(InputError, match=r"enet-fp32\.onnx.*enet-other\.onnx"):
        out.begin(identity(other, None, None, None) | {"weights_sha256": network["weights_sha256"]}, source, other)
    other = other.rename(tmp_path / graph.name)
    found = identity(other, None, None, None) | {"weights_sha256": network["weights_sha256"]}
    with pytest.raises(InputError, match=f"{network['artifact_sha256']}.*{found['artifact_sha256']}"):
        out.begin(found, source, other)
    with pytest.raises(InputError, match=r"source.*elsewhere"):
        out.begin(network, Source("elsewhere"), graph)
    assert out.text("run.json") == before
    out.write("run.json", b"{}")
    with pytest.raises(ArtifactError, match=r"run\.json"):
        out.begin(network, source, graph)
    out.remove("run.json")
    with pytest.raises(ArtifactError, match=r"run\.json"):
        out.begin(network, source, graph)
    assert not out.exists("run.json")
    out.write("plan.jsonl", b"[")
    with pytest.raises(ArtifactError, match=r"plan\.jsonl"):
        out.plan(source, [])


def test_parts_that_ray_did_not_hand_over_are_counted(
    tmp_path: Path, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed; pip install 'enet-deploy[ray]'")
    from enet_deploy.fleet import cluster

    monkeypatch.setattr(output, "PART_SIZE", 1)
    folder = save(tmp_path / "in" / "0.png", SCENES[0]).parent
    (folder / "1.png").write_bytes(b"damaged")
    source = Source(f"{folder}")
    out, actor = begun(source, f"{tmp_path / 'out'}", graph)
    parts = out.plan(source, source.names())

    class Dataset:
        def iter_rows(self) -> Iterator[dict[str, int]]:
            for number, names in parts.items():
                actor.label_part(number, names)
            yield {"part": 0, "frames": 1, "errors": 0}
            raise ray.exceptions.RayError("lost")

    monkeypatch.setattr(cluster, "_dataset", lambda *_: Dataset())
    assert [*cluster.label_parts(actor._task, parts, cluster.Workers(1, 0))] == [(1, 0), (1, 1)]


@pytest.mark.parametrize(("allowed", "expected"), [(3, 3), (0, os.cpu_count())])
def test_ray_gets_the_cores_that_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch, allowed: int, expected: int
) -> None:
    pytest.importorskip("ray", reason="ray is not installed; pip install 'enet-deploy[ray]'")
    from enet_deploy.fleet import cluster

    given: dict[str, Any] = {}
    monkeypatch.setattr(cluster.ray, "init", lambda **options: given.update(options))
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster, "allowed_threads", lambda: allowed)
    with cluster.connected(None):
        assert given["num_cpus"] == expected


def test_list_is_cut_at_line_ends_alone(tmp_path: Path) -> None:
    listed = tmp_path / "files.txt"
    listed.write_bytes("\ufeff/d/a.png\r\n /d/b\u2028c.png\n\n/d/\x85.png".encode())
    assert Source(f"{listed}").names() == ["/d/a.png", "/d/b\u2028c.png", "/d/\x85.png"]


def test_links_to_folders_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save(tmp_path / "in" / "0.png", SCENES[0]).parent
    linked = save(tmp_path / "elsewhere" / "1.png", SCENES[1])
    (folder / "2.png").symlink_to(linked)
    assert Source(f"{folder}").names() == ["0.png", "2.png"] and not caplog.records
    (folder / "more").symlink_to(linked.parent)
    assert Source(f"{folder}").names() == ["0.png", "2.png"] and f"{folder / 'more'}" in caplog.text


@pytest.mark.parametrize("text", ["gone/", "nothing://bucket/in", "empty", "empty.txt"])
def test_sources_without_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    with pytest.raises((DataError, InputError), match=text.split(":")[0]):
        Source(text).names()


def test_file_of_a_bucket_that_is_too_large(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").pipe_file("/bucket/a.png", b"12345")
    monkeypatch.setattr(sources, "MAX_BYTES", 4)
    with pytest.raises(DataError, match="5 bytes"):
        sources.Files(bucket).read("a.png")


@pytest.mark.parametrize("out", ["in/out", "in"])
def test_output_among_the_images_is_refused(
    tmp_path: Path, graph: Path, out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="ray is not installed; pip install 'enet-deploy[ray]'")
    folder = save(tmp_path / "in" / "0.png", SCENES[0]).parent
    assert fleet.main([f"{graph}", f"{folder}", f"{tmp_path / out}"]) == 2
    assert f"{tmp_path / out}" in one_line(capsys)
    assert [path.name for path in folder.iterdir()] == ["0.png"]


@pytest.mark.parametrize(
    "source, out, is_apart",
    [
        ("/bucket", "memory://bucket/out", True),
        ("memory://bucket/in", "memory://bucket/in2", True),
        ("memory://bucket/in/", "memory://bucket/in/out", False),
        ("memory://bucket", "memory://bucket", False),
        ("file://{}/in", "{}/in/out", False),
        ("file://{}/in", "file://{}/link/out", False),
        ("file://{}/in", "{}/out", True),
    ],
)
def test_folders_are_compared_on_their_file_system(tmp_path: Path, source: str, out: str, is_apart: bool) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    pair = Source(source.format(tmp_path)), Output(out.format(tmp_path))
    with nullcontext() if is_apart else pytest.raises(InputError, match=pair[1].root):
        fleet._require_apart(*pair)


def test_folder_of_engines_and_another_gpu_are_refused(
    tmp_path: Path, graph: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray", reason="ray is not installed; pip install 'enet-deploy[ray]'")
    words = [f"{tmp_path}", f"{tmp_path / 'out'}"]
    assert fleet.main([f"{graph.parent}", *words]) == 2
    assert f"{graph.parent}" in one_line(capsys)
    assert fleet.main([f"{graph}", *words, "--device", "cuda:1"]) == 2
    assert "cuda:1" in one_line(capsys)
