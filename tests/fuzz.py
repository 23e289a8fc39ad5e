"""Every reader of foreign files against files that were whole: `make fuzz`, or python tests/fuzz.py SECONDS.

Each reads what it is given, or raises EnetError; anything else is a bug, as is taking all memory or no end.
"""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import io
import json
import os
import resource
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import onnx
from helpers import stored, write_graph
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from enet_deploy import open_runner
from enet_deploy.artifacts import BUNDLED_WEIGHTS, Metadata, graph_metadata
from enet_deploy.benchmarks import cli as bench_cli
from enet_deploy.classes import CAMVID, LabelValues, read_classes
from enet_deploy.data import DataSet
from enet_deploy.data.scenes import street_scene
from enet_deploy.data.unzip import unzip
from enet_deploy.errors import EnetError
from enet_deploy.export.record import BUNDLED_RECORD, Record
from enet_deploy.files import sha256
from enet_deploy.images import read_image
from enet_deploy.runners.tensorrt.builder import read_graph
from enet_deploy.runners.tensorrt.card import EngineCard
from enet_deploy.weights import load_weights

EXAMPLES = 50  # of a target, before the next has its turn
PATIENCE = 60  # seconds that one example may take
MEMORY = 8 << 30

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


@st.composite
def changed_json(draw: st.DrawFn, whole: Any) -> Any:
    """With one to three of its values replaced, left out, repeated or renamed, at any depth."""
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
        how = draw(st.sampled_from(["replace", "replace", "remove", "repeat", "rename"]))
        if how == "replace":
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
    for _ in range(draw(st.integers(1, 4))):
        end = len(content) if draw(st.booleans()) else min(head, len(content))
        at = draw(st.integers(0, max(0, end - 1)))
        how = draw(st.sampled_from(["byte", "byte", "piece", "cut", "double"]))
        if how == "byte" and content:
            content[at] = draw(st.integers(0, 255))
        elif how == "piece":
            content[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
        elif how == "cut":
            del content[at:]
        elif how == "double":
            content[at:at] = content[at : at + 64]
    return bytes(content)


# --- the targets: what is changed, and what reads it ---------------------------------------------------------------

Read = Callable[[Any], object]


def targets(folder: Path) -> dict[str, tuple[st.SearchStrategy[Any], Read]]:
    return {**of_weights_and_graphs(folder), **of_json(folder), **of_images(folder)}


def of_weights_and_graphs(folder: Path) -> dict[str, tuple[st.SearchStrategy[Any], Read]]:
    content = BUNDLED_WEIGHTS.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    graph = write_graph(folder / "whole.onnx")
    model = onnx.load(graph)
    said = graph_metadata(model, graph).to_text()

    def weights(changed: bytes) -> None:
        load_weights(written(folder / "fuzz.safetensors", changed))

    def weights_header(changed: Any) -> None:
        text = json.dumps(changed).encode()
        weights(struct.pack("<Q", len(text)) + text + content[end:])

    def runner(backend: str) -> Read:
        def read(changed: str | bytes) -> None:
            model.metadata_props[0].value = changed
            path = written(folder / "fuzz.onnx", model.SerializeToString())
            open_runner(path, backend, threads=1).close()

        return read

    metadata = changed_json(json.loads(said)).map(json.dumps)
    return {
        "weights, bytes": (changed_bytes(content, end), weights),
        "weights, header": (changed_json(header), weights_header),
        "metadata": (
            st.one_of(metadata, changed_bytes(said.encode()).map(lambda text: text.decode("latin1"))),
            lambda changed: Metadata.from_text(changed, "file"),
        ),
        "graph of an engine": (changed_bytes(graph.read_bytes()), lambda c: read_graph(written(folder / "e.onnx", c))),
        "metadata in ONNX Runtime": (metadata, runner("ort")),
        "metadata in OpenVINO": (metadata, runner("openvino")),
    }


def of_json(folder: Path) -> dict[str, tuple[st.SearchStrategy[Any], Read]]:
    graph, engine = folder / "whole.onnx", folder / "whole.engine"
    engine.write_bytes(b"no engine")
    metadata = graph_metadata(onnx.load(graph), graph)
    EngineCard(
        sha256(engine), sha256(graph), "trt-rtx", "1.7.1", ("8.6",), None, False, False, {"fp32": 1.0}, metadata
    ).write(engine)
    card, record = (json.loads(path.read_text()) for path in (EngineCard.path(engine), BUNDLED_RECORD))

    def read_card(changed: bytes) -> None:
        written(EngineCard.path(engine), changed)
        EngineCard.load(engine)

    def read_record(changed: bytes) -> None:
        Record.read(written(folder / "record.json", changed)).to_trt_cache("10.3.0")

    def read_class_list(changed: bytes) -> None:
        written(folder / "classes.json", changed)
        read_classes(folder)

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
        "card of an engine": (json_bytes(card), read_card),
        "calibration record": (json_bytes(record), read_record),
        "classes.json": (json_bytes(classes), read_class_list),
        "result of enet-bench": (json_bytes(stored()), show),
        "report of a result": (json_bytes(stored()), show_page),
    }


def of_images(folder: Path) -> dict[str, tuple[st.SearchStrategy[Any], Read]]:
    image, labels = street_scene(0, (32, 48))
    encoded = {
        suffix: cv2.imencode(suffix, image)[1].tobytes() for suffix in (".png", ".jpg", ".bmp", ".webp", ".tiff")
    }
    label_map = cv2.imencode(".png", labels)[1].tobytes()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("train/a.png", "trainannot/é.png"):
            file.writestr(name, label_map)

    def read_label_map(changed: bytes) -> None:
        path = written(folder / "labels.png", changed)
        DataSet(CAMVID, ((path, path),), LabelValues.of(CAMVID)).read_labels(0)

    return {
        "image": (
            st.one_of(*map(changed_bytes, encoded.values())),
            lambda changed: read_image(written(folder / "image.png", changed)),
        ),
        "label map": (changed_bytes(label_map), read_label_map),
        "zip file": (
            changed_bytes(archive.getvalue()),
            lambda changed: unzip(written(folder / "fuzz.zip", changed), Path(tempfile.mkdtemp(dir=folder)) / "new"),
        ),
    }


def json_bytes(whole: Any) -> st.SearchStrategy[bytes]:
    text = json.dumps(whole).encode()
    return st.one_of(changed_json(whole).map(lambda value: json.dumps(value).encode()), changed_bytes(text, len(text)))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def require_exit(main: Callable[[list[str]], int], arguments: list[str]) -> None:
    """A command ends well, or says on one line that anyone may print what is wrong."""
    error = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
        code = main(arguments)
    said = error.getvalue()
    assert (code, said) == (0, "") or (code == 2 and said[:-1].isprintable()), (code, said)


# --- the run -----------------------------------------------------------------------------------------------------


def fuzz(name: str, strategy: st.SearchStrategy[Any], read: Read) -> int:
    """Try `EXAMPLES` of a target; returns how many of them were read."""
    taken = 0

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink), print_blob=False,
    )  # fmt: skip
    @given(strategy)
    def attempt(changed: Any) -> None:
        nonlocal taken
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        try:
            read(changed)
            taken += 1
        except EnetError as error:
            assert f"{error}", name
        finally:
            faulthandler.cancel_dump_traceback_later()

    attempt()
    return taken


def main() -> None:
    seconds = float(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    warnings.simplefilter("ignore")
    sys.stderr = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libpng's complaints, a line for each example
    with tempfile.TemporaryDirectory() as folder:
        found = targets(Path(folder))
        tried, read, spent = (dict.fromkeys(found, 0.0) for _ in range(3))
        while sum(spent.values()) < seconds:
            name = min(found, key=lambda each: spent[each])  # all get the same share of the time
            started = time.monotonic()
            read[name] += fuzz(name, *found[name])
            spent[name] += time.monotonic() - started
            tried[name] += EXAMPLES
        for name in found:
            print(f"{name:<26}{tried[name]:>8.0f} tried, {read[name]:.0f} of them read, {spent[name]:.0f} s")


if __name__ == "__main__":
    main()
