"""Every reader of foreign files against files that were whole: `make fuzz`, or python tests/fuzz.py SECONDS [TARGET].

Each reads what it is given, or raises EnetError; anything else is a bug, as is taking all memory or no end. There are
two kinds of targets. *Damaged*: bytes changed as by a bad disk; if the format has checksums, what is read is what the
whole file says, or an error. *Crafted*: a field changed, with lengths and checksums that fit, so that it gets past the
first check. For each target the run prints how many inputs were read and refused, and how many lines of the package a
tenth of them reached.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import faulthandler
import hashlib
import io
import json
import logging
import os
import posixpath
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnx
from helpers import stored, write_graph, write_scenes
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from media.test_ros import TOPIC, write_bag
from videos import write_video

import enet_deploy
from enet_deploy import open_runner
from enet_deploy.artifacts import (
    BUNDLED_WEIGHTS,
    METADATA_KEY,
    Metadata,
    graph_metadata,
    sealed,
    set_graph_metadata,
    without_digest,
)
from enet_deploy.benchmarks import cli as bench_cli
from enet_deploy.classes import CAMVID, LabelValues, read_classes
from enet_deploy.data import DataSet
from enet_deploy.data.check import check
from enet_deploy.data.scenes import street_scene
from enet_deploy.data.unzip import unzip
from enet_deploy.errors import DataError, EnetError
from enet_deploy.export.record import BUNDLED_RECORD, Record
from enet_deploy.files import sha256
from enet_deploy.images import read_image, silence_opencv
from enet_deploy.media.bags import Bag
from enet_deploy.media.frames import Frame, FrameSource, LabelledFrame, Stop
from enet_deploy.media.outputs import Outputs
from enet_deploy.media.renderer import FrameRenderer
from enet_deploy.media.ros import image_fields
from enet_deploy.media.sinks import VIDEO_CODECS
from enet_deploy.media.video import VideoFile
from enet_deploy.runners.tensorrt.builder import read_graph
from enet_deploy.runners.tensorrt.card import EngineCard
from enet_deploy.weights import Weights, load_weights, save_weights

PACKAGE = str(Path(enet_deploy.__file__).parent)
EXAMPLES = 10  # of a target, before the next has its turn
TRACED = 10  # of so many inputs, one: tracing is slow
PATIENCE = 60  # seconds that one example may take
MEMORY = 8 << 30
NOTE = 2000  # characters shown of a failing input

texts = st.one_of(
    st.text(max_size=8), st.sampled_from(["", "$a$", "\x1b[2J", "<b>", "../x", "=1", "NaN", "9" * 5000, "int8", "cpu"])
)
numbers = st.one_of(
    st.integers(-2, 300), st.floats(), st.sampled_from([10**400, -(10**30), 2**31, 2**63, 8 * 10**15, 1e308, 1e-320])
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)


def near(value: Any) -> st.SearchStrategy[Any]:
    """Values of the same type, so that a check of types passes."""
    if isinstance(value, bool):
        return st.just(not value)
    if isinstance(value, int):
        return st.sampled_from([value + 1, value - 1, 2 * value, -value, 0])
    if isinstance(value, float):
        return st.sampled_from([1.01 * value, -value, 1000 * value, 0.0, float("nan"), float("inf")])
    if isinstance(value, str):
        return st.sampled_from([f"{value}x", value[:-1], value.upper(), ""])
    return st.just(value)


@st.composite
def changed_json(draw: st.DrawFn, whole: Any) -> Any:
    """With one to three of its values changed a little, replaced, left out, repeated or renamed, at any depth."""
    value = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        inside, key = value, None
        parent = None
        while isinstance(inside, dict | list) and inside and (parent is None or draw(st.integers(0, 4))):
            keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
            parent, key = inside, draw(st.sampled_from(keys))
            inside = inside[key]
        if parent is None:
            return draw(values)
        how = draw(st.sampled_from(["near", "near", "near", "replace", "remove", "repeat", "rename"]))
        if how == "near":
            parent[key] = draw(near(inside))
        elif how == "replace":
            parent[key] = draw(values)
        elif how == "remove":
            del parent[key]
        elif isinstance(parent, list):
            parent *= draw(st.integers(2, 3))
        else:
            parent[draw(texts)] = parent.pop(key) if how == "rename" else parent[key]
    return value


@st.composite
def changed_bytes(draw: st.DrawFn, whole: bytes, head: int = 400) -> bytes:
    """With one to four bytes or pieces changed, mostly at the head, where sizes and kinds are said; or cut short."""
    content = bytearray(whole)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
        end = len(content) if draw(st.booleans()) else min(head, len(content))
        at = draw(st.integers(0, max(0, end - 1)))
        how = draw(st.sampled_from(["bit", "bit", "byte", "piece", "cut", "double"]))
        if how == "bit" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "byte" and content:
            content[at] = draw(st.integers(0, 255))
        elif how == "piece":
            content[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
        elif how == "cut":
            del content[at:]
        elif how == "double":
            content[at:at] = content[at : at + 64]
    return bytes(content)


# --- the targets: what is changed, and what reads it ---------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A reader and what it is fed.

    Attributes:
        inputs: draws the inputs.
        read: reads one, and returns what it read.
        whole: what `read` returns for the whole file, if a damaged one must give the same; None if it need not.
    """

    inputs: st.SearchStrategy[Any]
    read: Callable[[Any], object]
    whole: object = None


def targets(folder: Path) -> dict[str, Target]:
    groups = (of_weights, of_graphs, of_json, of_images, of_zips, of_bags, of_videos, of_sinks, of_check)
    return {name: target for group in groups for name, target in group(folder).items()}


def of_weights(folder: Path) -> dict[str, Target]:
    save_weights(folder / "whole.safetensors", *load_weights(BUNDLED_WEIGHTS))
    content = (folder / "whole.safetensors").read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    key, said = METADATA_KEY, json.loads(header["__metadata__"][METADATA_KEY])

    def weights(changed: bytes) -> str:
        read = Weights.read(written(folder / "fuzz.safetensors", changed))
        return digest(read.net.state_dict().values(), read.metadata.to_text())

    def of_header(changed: dict[str, Any]) -> str:
        text = json.dumps(changed).encode()
        return weights(sealed(struct.pack("<Q", len(text)) + text + content[end:]))

    def of_metadata(changed: Any) -> str:
        return of_header({**header, "__metadata__": {key: json.dumps(changed)}})

    return {
        "weights, damaged": Target(changed_bytes(content, end), weights, weights(content)),
        "weights, header": Target(changed_json(header), of_header),
        "weights, metadata": Target(changed_json(said), of_metadata),
    }


def of_graphs(folder: Path) -> dict[str, Target]:
    graph = write_graph(folder / "whole.onnx")
    model = onnx.load(graph)
    metadata = graph_metadata(model, graph)
    set_graph_metadata(model, metadata)
    said, whole = metadata.to_text(), sealed(model.SerializeToString())
    image = street_scene(0, (48, 32))[0]

    def labels(backend: str) -> Callable[[bytes], str]:
        def read(changed: bytes) -> str:
            with open_runner(written(folder / "fuzz.onnx", changed), backend, threads=1) as runner:
                return digest([runner.segment(image)])

        return read

    def of_metadata(backend: str) -> Callable[[str], str]:
        def read(changed: str) -> str:
            model.metadata_props[0].value = changed
            return labels(backend)(sealed(model.SerializeToString()))

        return read

    changed = changed_json(json.loads(said)).map(json.dumps)
    damaged = changed_bytes(said.encode()).map(lambda text: text.decode("latin1"))
    return {
        "metadata": Target(st.one_of(changed, damaged), lambda text: Metadata.from_text(text, "file")),
        "graph of an engine": Target(changed_bytes(whole), lambda c: read_graph(written(folder / "e.onnx", c))),
        **{
            f"{name}, {backend}": target
            for backend in ("ort", "openvino")
            for name, target in {
                "graph, damaged": Target(changed_bytes(whole), labels(backend), labels(backend)(whole)),
                "graph, metadata": Target(changed, of_metadata(backend)),
            }.items()
        },
    }


def of_json(folder: Path) -> dict[str, Target]:
    graph, engine = folder / "whole.onnx", folder / "whole.engine"
    engine.write_bytes(b"no engine")
    metadata = graph_metadata(onnx.load(graph), graph)
    EngineCard(
        sha256(engine), sha256(graph), "trt-rtx", "1.7.1", ("8.6",), None, False, False, {"fp32": 1.0}, metadata
    ).write(engine)
    # as of an earlier version: a digest would refuse each change before it is looked at
    card, record = (without_digest(json.loads(path.read_text())) for path in (EngineCard.path(engine), BUNDLED_RECORD))

    def read_card(changed: bytes) -> object:
        written(EngineCard.path(engine), changed)
        return EngineCard.load(engine)

    def read_record(changed: bytes) -> str:
        return Record.read(written(folder / "record.json", changed)).to_trt_cache("10.3.0")

    def read_class_list(changed: bytes) -> object:
        written(folder / "classes.json", changed)
        return read_classes(folder)

    def show(changed: bytes) -> None:
        path = written(folder / "run.json", changed)
        texts = [part for kind in ("markdown", "csv", "json") for part in (f"--{kind}", str(folder / f"shown.{kind}"))]
        for arguments in (["show", str(path), *texts], ["compare", str(path), str(path)]):
            require_exit(bench_cli.main, arguments)

    def show_page(changed: bytes) -> None:
        path = written(folder / "run.json", changed)
        require_exit(bench_cli.main, ["show", str(path), "--html", str(folder / "shown.html")])

    classes = {**CAMVID.to_json(), "label_values": {"7": "sky", "#ff8000": "road", "0": None}}
    return {
        "card of an engine": Target(json_bytes(card), read_card),
        "calibration record": Target(json_bytes(record), read_record),
        "classes.json": Target(json_bytes(classes), read_class_list),
        "result of enet-bench": Target(json_bytes(stored()), show),
        "report of a result": Target(json_bytes(stored()), show_page),
    }


def encoded(suffix: str, pixels: npt.NDArray[Any]) -> bytes:
    return cv2.imencode(suffix, pixels)[1].tobytes()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(png):
        length = struct.unpack(">I", png[at : at + 4])[0]
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += 12 + length


@st.composite
def crafted_png(draw: st.DrawFn, whole: bytes) -> bytes:
    """With changed fields, chunks or pixels, and checksums that fit."""
    chunks = list(png_chunks(whole))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(chunks) - 1))
        kind, content = chunks[at]
        how = draw(st.sampled_from(["content", "pixels", "pixels", "new", "repeat", "remove"]))
        if how == "content":
            chunks[at] = kind, draw(changed_bytes(content)) if content else draw(st.binary(max_size=9))
        elif how == "pixels":
            for number, (kind, content) in enumerate(chunks):
                if kind == b"IDAT":
                    with contextlib.suppress(zlib.error):
                        pixels = draw(changed_bytes(zlib.decompress(content)))
                        chunks[number] = kind, zlib.compress(pixels)
        elif how == "new":
            kind = draw(st.sampled_from([b"tRNS", b"PLTE", b"eXIf", b"tEXt", b"acTL", b"iCCP", b"gAMA", b"IHDR"]))
            chunks.insert(at, (kind, draw(st.binary(max_size=24))))
        elif how == "repeat":
            chunks.insert(at, chunks[at])
        elif len(chunks) > 1:
            del chunks[at]
    return whole[:8] + b"".join(png_chunk(*chunk) for chunk in chunks)


def of_images(folder: Path) -> dict[str, Target]:
    image, labels = street_scene(0, (32, 48))
    png, label_map = encoded(".png", image), encoded(".png", labels)

    def read(changed: bytes) -> str:
        pixels = read_image(written(folder / "image.png", changed))
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3, pixels.shape
        return digest([pixels])

    def read_labels(changed: bytes) -> str:
        path = written(folder / "labels.png", changed)
        found = DataSet(CAMVID, ((path, path),), LabelValues.of(CAMVID)).read_labels(0)
        assert np.isin(found, [*range(len(CAMVID)), CAMVID.void]).all(), np.unique(found)
        return digest([found])

    others = [encoded(suffix, image) for suffix in (".jpg", ".bmp", ".webp", ".tiff", ".ppm")]
    return {
        "PNG, damaged": Target(changed_bytes(png), read, read(png)),
        "PNG, crafted": Target(crafted_png(png), read),
        "other images": Target(st.one_of(*map(changed_bytes, others)), read),
        "label map, damaged": Target(changed_bytes(label_map), read_labels, read_labels(label_map)),
        "label map, crafted": Target(crafted_png(label_map), read_labels),
    }


MEMBERS = [
    "train/a.png",
    "é.png",
    "a",
    "a/b",
    "b/",
    "../x",
    "/x",
    "a/../b",
    "C:x",
    "a\\b",
    ".",
    "",
    "\u202e",
    300 * "x",
]


@st.composite
def zip_file(draw: st.DrawFn) -> tuple[bytes, dict[str, bytes]]:
    """A zip file with checksums that fit, and what it holds."""
    members = draw(st.dictionaries(st.one_of(st.sampled_from(MEMBERS), texts), st.binary(max_size=64), max_size=4))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in members.items():
            member = zipfile.ZipInfo("name")
            member.filename = name
            member.compress_type = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]))
            member.external_attr = draw(st.sampled_from([0o644, 0o100644, 0o120777, 0o20644, 0])) << 16
            with contextlib.suppress(UnicodeEncodeError):  # a lone surrogate
                file.writestr(member, content)
    return archive.getvalue(), members


def of_zips(folder: Path) -> dict[str, Target]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("train/a.png", "trainannot/é.png"):
            file.writestr(name, encoded(".png", street_scene(0, (32, 48))[1]))

    def contents(changed: bytes) -> dict[str, bytes]:
        home = Path(tempfile.mkdtemp(dir=folder))
        try:
            unzip(written(folder / "fuzz.zip", changed), home / "new")
            files = [path for path in (home / "new").rglob("*") if path.is_file()]
            return {path.relative_to(home / "new").as_posix(): path.read_bytes() for path in files}
        finally:
            left = {path.name for path in home.iterdir()}
            shutil.rmtree(home)
            assert left <= {"new"}, left

    def crafted(changed: tuple[bytes, dict[str, bytes]]) -> None:
        content, members = changed
        wanted = {posixpath.normpath(name): text for name, text in members.items() if not name.endswith("/")}
        assert contents(content) == wanted

    def damaged(changed: bytes) -> list[bytes]:
        return sorted(contents(changed).values())  # nothing but its length protects a name

    return {
        "zip, damaged": Target(changed_bytes(archive.getvalue(), len(archive.getvalue())), damaged),
        "zip, crafted": Target(zip_file(), crafted),
    }


def read_frames(source: FrameSource) -> int:
    """Read a source to its end: whole pictures at times that rise, or errors. Raises DataError if all are errors."""
    last, count, flaw = Fraction(-1), 0, None
    for frame in source.frames():
        if isinstance(frame, DataError):
            flaw = frame
            continue
        assert frame.image.dtype == np.uint8 and frame.image.ndim == 3 and frame.image.size, frame.image.shape
        assert frame.time is not None and frame.time > last, (frame.time, last)
        last, count = frame.time, count + 1
    if flaw and not count:
        raise flaw
    return count


def of_bags(folder: Path) -> dict[str, Target]:
    image = street_scene(0, (16, 24))[0]
    fields = image_fields(image)
    names = ["mono8", "bgr8", "rgba8", "mono16", "16UC1", "8UC3", "bayer_rggb8", "yuv422", "yuv422_yuy2", "", "depth"]
    number = st.one_of(st.integers(0, 100), st.sampled_from([2**31, 2**32 - 1]))
    raw = st.fixed_dictionaries(
        {
            "height": st.one_of(st.just(16), number),
            "width": st.one_of(st.just(24), number),
            "step": st.one_of(st.just(72), number),
            "encoding": st.one_of(st.just("bgr8"), st.sampled_from(names)),
            "is_bigendian": st.integers(0, 1),
            "data": st.one_of(
                st.just(fields["data"].reshape(-1)),
                st.integers(0, 4000).map(lambda size: np.full(size, 7, np.uint8)),
            ),
        }
    )
    packed = st.fixed_dictionaries(
        {
            "format": st.sampled_from(["png", "jpeg", "bgr8; jpeg compressed bgr8", "rgb8; png compressed rgb8", "x"]),
            "data": st.one_of(crafted_png(encoded(".png", image)), changed_bytes(encoded(".jpg", image))).map(
                lambda content: np.frombuffer(content, np.uint8)
            ),
        }
    )
    kinds = {"Image": raw, "CompressedImage": packed}

    def crafted(changed: tuple[str, str, list[dict[str, Any]]]) -> int:
        suffix, kind, messages = changed
        path = folder / f"crafted{suffix}"
        path.unlink(missing_ok=True)
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        return read_frames(Bag(write_bag(path, kind, messages), TOPIC))

    def damaged(changed: tuple[str, bytes]) -> int:
        return read_frames(Bag(written(folder / f"damaged{changed[0]}", changed[1]), None))

    whole = {suffix: write_bag(folder / f"whole{suffix}", fields=[fields] * 3).read_bytes() for suffix in SUFFIXES}
    return {
        "bag, damaged": Target(
            st.sampled_from(SUFFIXES).flatmap(lambda s: st.tuples(st.just(s), changed_bytes(whole[s]))), damaged
        ),
        "bag, crafted": Target(
            st.sampled_from(list(kinds)).flatmap(
                lambda k: st.tuples(st.sampled_from(SUFFIXES), st.just(k), st.lists(kinds[k], min_size=1, max_size=3))
            ),
            crafted,
        ),
    }


SUFFIXES = (".bag", ".mcap")


def of_videos(folder: Path) -> dict[str, Target]:
    whole = {
        suffix: write_video(folder / f"whole{suffix}", codec).read_bytes()
        for suffix, codec in ((".mp4", "libx264"), (".mkv", "libx264"), (".avi", "mpeg4"), (".ts", "libx264"))
    }

    def damaged(changed: tuple[str, bytes]) -> int:
        return read_frames(VideoFile(written(folder / f"damaged{changed[0]}", changed[1])))

    inputs = st.sampled_from(list(whole)).flatmap(lambda s: st.tuples(st.just(s), changed_bytes(whole[s], 2000)))
    return {"video, damaged": Target(inputs, damaged)}


class Listed(FrameSource):
    """Frames that are in memory."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        super().__init__("listed")
        self._frames, self.total = frames, len(frames)

    def frames(self) -> Iterator[Frame]:  # type: ignore[override]
        yield from self._frames


@st.composite
def labelled(draw: st.DrawFn) -> list[LabelledFrame]:
    """One to three frames of any size at times that rise."""
    ticks = draw(st.lists(st.integers(0, 10**9), min_size=1, max_size=3, unique=True))
    times = [Fraction(tick, 1000) for tick in sorted(ticks)]  # Matroska keeps milliseconds
    items = []
    for number, time_ in enumerate(times):
        height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
        pixels = np.full((height, width, 3), draw(st.integers(0, 255)), np.uint8)
        labels = np.full((height, width), draw(st.sampled_from([*range(len(CAMVID)), 255])), np.uint8)
        items.append(LabelledFrame(Frame(pixels, f"{number:06}", time_), labels, draw(st.floats(0, 1e6))))
    return items


def of_sinks(folder: Path) -> dict[str, Target]:
    def write(changed: tuple[list[LabelledFrame], str]) -> None:
        items, out = changed
        home = Path(tempfile.mkdtemp(dir=folder))
        source = Listed([item.frame for item in items])
        outputs = Outputs(*(str(home / name) for name in (out, "labels/", "masks/", "lines.json")))
        outputs.require_usable(source, reads=[])
        with ExitStack() as stack:
            for sink in outputs.open(stack, source, FrameRenderer(CAMVID, 0.5, True), 1, Stop()):
                for item in items:
                    sink(item)
        for item in items:  # what was written is what was given
            found = cv2.imread(str(home / "labels" / f"{item.frame.name}.png"), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(found, item.labels)
        lines = (home / "lines.json").read_text().splitlines()
        assert len(lines) == len(items) and all(json.loads(line) for line in lines)
        if (home / out).suffix in VIDEO_CODECS:
            assert read_frames(VideoFile(home / out)) == len(items)
        shutil.rmtree(home)

    outs = ["out/", "out.mp4", "out.mkv", "out.webm", "out.png", "out.bag", "out"]
    return {"sinks": Target(st.tuples(labelled(), st.sampled_from(outs)), write)}


def of_check(folder: Path) -> dict[str, Target]:
    data = write_scenes(folder / "data", {"train": 1, "val": 1})
    image, labels = (next((data / name).iterdir()) for name in ("train", "trainannot"))
    whole = {path: path.read_bytes() for path in (image, labels)}
    classes = CAMVID.to_json()

    def read(changed: tuple[Path, bytes]) -> int:
        path, content = changed
        try:
            report = check(
                written(path, content).parent if path.name == "classes.json" else written(path, content).parents[1]
            )
            lines = report.lines()
            assert all(line.isprintable() for line in lines), lines
            json.dumps(report.to_json(), allow_nan=False)
            return len(report.problems)
        finally:
            (data / "classes.json").unlink(missing_ok=True)
            for each, original in whole.items():
                each.write_bytes(original)

    files = st.sampled_from([image, labels]).flatmap(
        lambda path: st.tuples(st.just(path), st.one_of(changed_bytes(whole[path]), crafted_png(whole[path])))
    )
    lists = st.tuples(st.just(data / "classes.json"), json_bytes(classes))
    return {"check of a data set": Target(st.one_of(files, lists), read)}


def json_bytes(whole: Any) -> st.SearchStrategy[bytes]:
    text = json.dumps(whole).encode()
    return st.one_of(changed_json(whole).map(lambda value: json.dumps(value).encode()), changed_bytes(text, len(text)))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def digest(arrays: Any, text: str = "") -> str:
    """The same for the same shapes, types, values and text."""
    total = hashlib.sha256(text.encode())
    for array in map(np.asarray, arrays):
        total.update(f"{array.shape} {array.dtype} ".encode() + array.tobytes())
    return total.hexdigest()


def require_exit(main: Callable[[list[str]], int], arguments: list[str]) -> None:
    """A command ends well, or says on one line that anyone may print what is wrong."""
    error = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
        code = main(arguments)
    said = error.getvalue()
    assert (code, said) == (0, "") or (code == 2 and said[:-1].isprintable()), (code, said)
    if code:
        raise EnetError(said)


# --- the run -----------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What became of a target's inputs, in how many seconds; the lines of the package that they reached."""

    read: int = 0
    refused: int = 0
    seconds: float = 0.0
    lines: set[tuple[str, int]] = dataclasses.field(default_factory=set)

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        """Note each line of the package that this thread reaches in the block."""

        def enter(frame: FrameType, _: str, __: object) -> Callable[..., Any] | None:
            return line if f"{frame.f_code.co_filename}".startswith(PACKAGE) else None

        def line(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
            if event == "line":
                self.lines.add((frame.f_code.co_filename, frame.f_lineno))
            return line

        sys.settrace(enter)
        try:
            yield
        finally:
            sys.settrace(None)


def fuzz(name: str, target: Target, tally: Tally) -> None:
    """Try `EXAMPLES` inputs of a target."""

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink), print_blob=False,
    )  # fmt: skip
    @given(target.inputs)
    def attempt(changed: Any) -> None:
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        try:
            number = tally.read + tally.refused
            with tally.tracing() if number % TRACED == 0 else contextlib.nullcontext():
                found = target.read(changed)
            assert target.whole is None or found == target.whole, f"{name}: read as something else, without an error"
            tally.read += 1
        except EnetError as error:
            assert f"{error}", name
            tally.refused += 1
        finally:
            faulthandler.cancel_dump_traceback_later()

    attempt()


def main() -> None:
    seconds, names = float(sys.argv[1]), sys.argv[2:]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    silence_opencv()
    logging.disable()
    warnings.simplefilter("ignore")
    sys.stderr = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libpng's complaints, a line for each example
    with tempfile.TemporaryDirectory() as folder:
        found = {name: target for name, target in targets(Path(folder)).items() if not names or name in names}
        tallies = {name: Tally() for name in found}
        failed: dict[str, Exception] = {}
        while len(failed) < len(found) and sum(tally.seconds for tally in tallies.values()) < seconds:
            name = min((each for each in found if each not in failed), key=lambda each: tallies[each].seconds)
            started = time.monotonic()
            try:
                fuzz(name, found[name], tallies[name])
            except Exception as error:  # noqa: BLE001  the others go on
                failed[name] = error
            tallies[name].seconds += time.monotonic() - started
        for name, tally in tallies.items():
            print(
                f"{name:<26}{tally.read:>7} read,{tally.refused:>7} refused, {len(tally.lines):>4} lines reached, "
                f"{tally.seconds:.0f} s{', FAILED' * (name in failed)}"
            )
    for name, failure in failed.items():
        print(f"\n{name}:")
        failure.__notes__ = [note[:NOTE] for note in getattr(failure, "__notes__", [])]  # one holds the whole input
        traceback.print_exception(failure, file=sys.stdout)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
