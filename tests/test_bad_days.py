"""What nobody plans: processes killed at any moment, full disks, two exports at once, and files made to do harm.

What is killed, starved or measured is a child of a process of its own, which has loaded and prepared what takes
seconds, and forks at each moment. So every moment is tried, and not the few that a sleep would find.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import SIZE, TEMPERATURE, least_graph, stored, write_graph

from enet_deploy import open_runner
from enet_deploy.artifacts import BUNDLED_WEIGHTS, graph_metadata, save_graph, without_digest
from enet_deploy.benchmarks import cli as bench_cli
from enet_deploy.calibration import cli as calibration_cli
from enet_deploy.commands import evaluate
from enet_deploy.errors import ArtifactError
from enet_deploy.export import cli as export_cli
from enet_deploy.export.record import BUNDLED_RECORD
from enet_deploy.runners.tensorrt.builder import read_graph
from enet_deploy.runners.tensorrt.card import EngineCard

Command = Callable[[], int]
Prepare = Callable[[], None]
Files = dict[str, bytes]

KILLED = -signal.SIGKILL
FRAME = f"{SIZE[0]}x{SIZE[1]}"

# --- a process of its own, and its children ----------------------------------------------------------------------


def alone(function: Callable[..., None], *arguments: object) -> None:
    """Run a function of this file in a fresh process, which no other test's threads are in."""
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r})\nimport test_bad_days\n"
    code += f"test_bad_days.{function.__name__}(*sys.argv[1:])"
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


class Child:
    """A command in a fork of this process; `prepare` runs before it."""

    def __init__(self, command: Command, prepare: Prepare = lambda: None) -> None:
        read, write = os.pipe()
        self._told = os.fdopen(read)
        self.pid = os.fork()
        if not self.pid:
            code = 70
            try:
                os.dup2(write, 1)
                os.dup2(write, 2)
                prepare()
                code = command()
                sys.stdout.flush()
            except BaseException:  # noqa: BLE001  also SystemExit must not get out into the parent's code
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(write)

    def wait(self) -> tuple[int, str]:
        """Exit code, or minus the signal that ended it; what it printed."""
        _, status, self.usage = os.wait4(self.pid, 0)
        return os.waitstatus_to_exitcode(status), self._told.read()


def at_event(number: int, folder: Path, what: signal.Signals = signal.SIGKILL) -> Prepare:
    """Send itself a signal before the number-th thing that Python does to the folder or what is in it."""

    def prepare() -> None:
        count = itertools.count()

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            touched = event in EVENTS and any(f"{argument}".startswith(str(folder)) for argument in arguments[:2])
            if touched and next(count) == number:
                os.kill(os.getpid(), what)

        sys.addaudithook(hook)

    return prepare


EVENTS = {"open", "os.mkdir", "os.remove", "os.rename"}


def at_byte(number: int, ends: bool) -> Prepare:
    """Let no file grow beyond so many bytes: the kernel ends the process there, or fails its writing as a full disk."""

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if ends else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))

    return prepare


def files(folder: Path) -> Files:
    """What stands under a final name; unfinished files have a dot in front, and are nobody's."""
    found = folder.iterdir() if folder.is_dir() else []
    return {path.name: path.read_bytes() for path in sorted(found) if not path.name.startswith(".")}


def restore(folder: Path, content: Files) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if content:
        folder.mkdir(parents=True)
    for name, each in content.items():
        (folder / name).write_bytes(each)


def killed_at_each_moment(folder: Path, command: Command, earlier: Files, check: Callable[[Files], None]) -> Files:
    """Kill the command at each moment, and look what is left; run it again from each state that it can leave.

    Before, the folder holds what an earlier run left. Returns what the undisturbed command makes.
    """
    whole = undisturbed(folder, command, earlier)
    largest = max(map(len, whole.values()))
    bytes_ = (at_byte(count, ends=True) for count in (0, largest // 2))
    seen = []
    for prepare in itertools.chain(bytes_, (at_event(number, folder) for number in itertools.count())):
        restore(folder, earlier)
        code, told = Child(command, prepare).wait()
        left = files(folder)
        assert all(left[name] in (earlier.get(name), whole.get(name)) for name in left), (code, told)
        check(left)
        if code == 0:
            assert left == whole
            return whole
        assert code in (KILLED, -signal.SIGXFSZ), (code, told)
        state = left, sorted(path.read_bytes() for path in folder.glob(".*/**/*") if path.is_file())
        if state not in seen:
            seen.append(state)
            assert undisturbed(folder, command) == whole
    raise AssertionError


def killed_now_and_then(folder: Path, command: Command, earlier: Files) -> None:
    """Kill the command at moments that are no call of Python's; an undisturbed one then makes what it always does."""
    started = time.perf_counter()
    whole = undisturbed(folder, command, earlier)
    seconds = time.perf_counter() - started
    for share in (0.4, 0.8):
        restore(folder, earlier)
        child = Child(command)
        time.sleep(share * seconds)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        left = files(folder)
        assert all(left[name] in (earlier.get(name), whole.get(name)) for name in left)
    assert undisturbed(folder, command) == whole


def undisturbed(folder: Path, command: Command, earlier: Files | None = None) -> Files:
    if earlier is not None:
        restore(folder, earlier)
    code, told = Child(command).wait()
    assert code == 0, told
    return files(folder)


def starved(folder: Path, command: Command, earlier: Files, limit: int) -> None:
    """On a full disk the command says so on one line, and leaves what was there."""
    restore(folder, earlier)
    code, told = Child(command, at_byte(limit, ends=False)).wait()
    assert code == 2 and told.count("\n") == 1 and ": error: cannot write " in told and "free space" in told, told
    assert files(folder) == earlier and len(list(folder.glob(".*"))) == 0


def built_already(path: str) -> None:
    """Let the exporter give this graph, and compare no labels: both take long and touch no file."""
    from enet_deploy.export import to_onnx

    def build_graph(*arguments: object, **options: object) -> onnx.ModelProto:
        model = onnx.load(path)
        model.doc_string = f"{arguments[1:]}{options}"
        return model

    to_onnx.build_graph = build_graph
    to_onnx._agreement = lambda *_: 1.0


# --- killed, on a full disk, and two at once ---------------------------------------------------------------------


@pytest.mark.slow
def test_graph_is_built_the_same_again(exported: Path, tmp_path: Path) -> None:
    from enet_deploy.export.to_onnx import to_onnx

    to_onnx(BUNDLED_WEIGHTS, tmp_path / "again.onnx", size=SIZE, batch=None, logits=True, confidence=TEMPERATURE)
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


@pytest.mark.slow
def test_export_killed_on_a_full_disk_and_twice_at_once(tmp_path: Path, exported: Path) -> None:
    alone(_export, tmp_path / "out", exported)


def _export(out: str, exported: str) -> None:
    built_already(exported)
    folder, arguments = Path(out), ["--size", FRAME, "--out", out]

    def plain() -> int:
        return export_cli.main(arguments)

    def with_logits() -> int:
        return export_cli.main([*arguments, "--logits"])

    earlier = {"enet-fp32.onnx": b"an earlier one"}
    whole = killed_at_each_moment(folder, plain, earlier, lambda left: None)
    starved(folder, plain, earlier, 100_000)
    killed_now_and_then(folder, plain, earlier)
    other = undisturbed(folder, with_logits, {})
    for number in itertools.count(step=3):
        if not met(folder, plain, with_logits, number):
            break
        assert files(folder) in (whole, other) and whole != other
    with open_runner(folder / "enet-fp32.onnx", threads=1) as runner:
        assert runner.spec.size == SIZE


def met(folder: Path, one: Command, other: Command, number: int) -> bool:
    """Run one command up to its number-th moment, the other until it ends or waits, then the rest of the one.

    Returns False if the one had no such moment.
    """
    restore(folder, {})
    first = Child(one, at_event(number, folder, signal.SIGSTOP))
    stopped = os.waitid(os.P_PID, first.pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
    assert stopped is not None
    second = Child(other)
    while os.waitid(os.P_PID, second.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and not waits(second):
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGCONT)
    for child in (first, second):
        code, told = child.wait()
        assert code == 0, told
    return stopped.si_status == signal.SIGSTOP


def waits(child: Child) -> bool:
    """Whether it waits for a file that another process has locked."""
    locks = Path("/proc/locks").read_text().splitlines()
    return any(f" {child.pid} " in lock for lock in locks if " -> " in lock)


@pytest.mark.slow
def test_engine_killed_on_a_full_disk_and_twice_at_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
    alone(_engine, tmp_path)


def _engine(place: str) -> None:
    import tensorrt_rtx  # noqa: F401  once, not in each child

    folder, graphs = Path(place) / "out", [Path(place) / f"{number}" / "enet-fp32.onnx" for number in range(2)]
    for graph, precision in zip(graphs, ("fp32", "fp16"), strict=True):
        graph.parent.mkdir()
        write_graph(graph, precision)

    def built(graph: Path) -> int:
        arguments = ["--engine", "trt-rtx", "--compute-capability", "8.6", "--out", str(folder)]
        return export_cli.main([str(graph), *arguments])

    def new() -> int:
        return built(graphs[0])

    def old() -> int:
        return built(graphs[1])

    def without_manifest(left: Files) -> Files:
        return {name: content for name, content in left.items() if name != "fleet.json"}

    engine = folder / "enet-fp32-rtx.engine"
    earlier = undisturbed(folder, old, {})
    refused = []

    def check(left: Files) -> None:
        """An engine is loaded with its own card alone: between the two names there is nothing to load.

        fleet.json comes last. Until then it lists another hash, and `open_runner` takes the engine by its name alone.
        """
        whole = without_manifest(left) in map(without_manifest, (earlier, after))
        try:
            assert EngineCard.load(engine)[1] == left[engine.name] and whole
        except ArtifactError as error:
            assert not whole
            refused.append(f"{error}")

    after = undisturbed(folder, new, earlier)
    killed_now_and_then(folder, new, earlier)
    built_engines(graphs, [after[engine.name], earlier[engine.name]])
    for before in (earlier, {}):
        assert killed_at_each_moment(folder, new, before, check) == after
        starved(folder, new, before, len(after[engine.name]) // 2)
    assert any("is not the file that" in why for why in refused)  # old engine, new card
    assert any("only its enet-fp32-rtx.engine.json" in why for why in refused)
    for number in itertools.count():
        if not met(folder, new, old, number):
            break
        assert files(folder) in (earlier, after)


def built_engines(graphs: list[Path], engines: list[bytes]) -> None:
    """Let the builder give these engines from now on: a build takes long and touches no file."""
    from enet_deploy.runners.tensorrt import builder

    known = {graph.read_bytes(): engine for graph, engine in zip(graphs, engines, strict=True)}
    builder._build = lambda _trt, model, *_: known[model]


@pytest.mark.slow
def test_calibration_killed_and_on_a_full_disk(tmp_path: Path, scenes: Path) -> None:
    onnx.save(least_graph(), tmp_path / "least.onnx")
    alone(_calibration, tmp_path / "out", scenes, tmp_path / "least.onnx")


def _calibration(out: str, scenes: str, graph: str) -> None:
    built_already(graph)
    folder, measured_once = Path(out), Path(f"{out}.json")
    arguments = [scenes, "--images", "4", "--out", f"{out}/record.json"]

    def measured() -> int:
        return calibration_cli.main([*arguments, "--method", "minmax"])

    def kept() -> int:
        return calibration_cli.main([*arguments, "--record", str(measured_once)])

    earlier = {"record.json": b"an earlier one"}
    killed_now_and_then(folder, measured, earlier)
    whole = files(folder)
    measured_once.write_bytes(whole["record.json"])
    assert killed_at_each_moment(folder, kept, earlier, lambda left: None) == whole
    # Graphs are written to the folder of temporary files too, and its disk can be full
    restore(folder, earlier)
    code, told = Child(measured, at_byte(1000, ends=False)).wait()
    assert code == 2 and told.count("\n") == 1 and "File too large; free space" in told, told
    assert files(folder) == earlier


# --- files made to do harm: weights ------------------------------------------------------------------------------


def safetensors_of(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def weights_with(**metadata: object) -> bytes:
    """The bundled weights, which say something else of themselves."""
    content = BUNDLED_WEIGHTS.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    said = {**json.loads(header["__metadata__"]["enet_deploy"]), **metadata}
    header["__metadata__"]["enet_deploy"] = json.dumps(said)
    return safetensors_of(header, content[end:])


def tensor(count: int) -> dict[str, Any]:
    return {"initial.bn.weight": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}


class Planted:
    """Unpickled, it makes a file."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("planted",)


ESCAPES = "\x1b[2J\x1b]0;owned\x07"
MARKUP = "<script>a()</script>"
OTHERS = ["floor", "wall", "door", "car", "tree", "sky", "sign", "pole", "road", "fence"]


def weights_that_harm() -> dict[str, tuple[bytes, str]]:
    """What -> (content of the file, what is said about it)."""
    said = {"__metadata__": json.loads(BUNDLED_WEIGHTS.read_bytes()[8:][: _header_length()])["__metadata__"]}
    text = said["__metadata__"]["enet_deploy"]
    said["__metadata__"]["enet_deploy"] = text.replace("content_sha256", "none")  # its digest would be enough to refuse
    colors = [[0, 0, i] for i in range(11)]
    return {
        "header of 4 GiB": (struct.pack("<Q", 4 << 30) + b"{", "header too large"),
        "pickle": (pickle.dumps(Planted()), "is not a whole safetensors file"),
        "cut in the middle": (BUNDLED_WEIGHTS.read_bytes()[:700_000], "is not a whole safetensors file"),
        "cut in the header": (BUNDLED_WEIGHTS.read_bytes()[:100], "is not a whole safetensors file"),
        "deep header": (safetensors_of(b'{"a":' * 100_000), "recursion limit exceeded"),
        "deep metadata": (safetensors_of({"__metadata__": {"enet_deploy": "[" * 100_000}}), "RecursionError"),
        "huge metadata": (safetensors_of({"__metadata__": {"enet_deploy": "9" * 50_000_000}}), "has damaged"),
        "huge tensor": (safetensors_of({**said, **tensor(1 << 40)}), "is not a whole safetensors file"),
        # Found by this test: each took all memory, or ended in a traceback
        "huge network": (safetensors_of({**said, **tensor(32_000)}, bytes(128_000)), "weights of another network"),
        "huge frames": (weights_with(size=[8 * 10**15, 8]), "expected at most 8192 a side"),
        "unknown precision": (weights_with(precision="fp33"), "precision 'fp33', expected one of fp32, "),
        "escapes as a class": (
            weights_with(classes={"names": [ESCAPES, *OTHERS], "colors": colors, "ignore_id": 11}), "class name"
        ),
        "escapes as a schema": (weights_with(schema=ESCAPES), "has metadata of schema"),
        "escapes as a precision": (weights_with(precision=ESCAPES), "precision"),
    }  # fmt: skip


def _header_length() -> int:
    return int(struct.unpack("<Q", BUNDLED_WEIGHTS.read_bytes()[:8])[0])


@pytest.mark.slow
def test_weights_that_harm(tmp_path: Path) -> None:
    alone(_weights, tmp_path)


def _weights(place: str) -> None:
    """Each is refused on one line that any terminal may be given, at once and in little memory; no code in it runs."""
    from enet_deploy.export import to_onnx  # noqa: F401  all that a child would load

    os.chdir(place)
    path = Path("mine.safetensors")
    arguments = ["--weights", str(path), "--out", "out"]
    path.write_bytes(b"")
    start = Child(lambda: export_cli.main(arguments))
    start.wait()
    for what, (content, expected) in weights_that_harm().items():
        path.write_bytes(content)
        refused_cheaply(what, arguments, expected, start.usage.ru_maxrss)
    with path.open("wb") as file:  # takes no space on the disk
        file.write(struct.pack("<Q", 4 << 30) + b"{")
        file.truncate(9 << 29)
    refused_cheaply(
        "sparse file", arguments, "expected at most 1073741824; these are no weights", start.usage.ru_maxrss
    )
    assert [file.name for file in Path().iterdir()] == ["mine.safetensors"]


def refused_cheaply(what: str, arguments: list[str], expected: str, kilobytes: int) -> None:
    child = Child(lambda: export_cli.main(arguments))
    code, told = child.wait()
    assert code == 2 and expected in told and told[:-1].isprintable() and len(told) < 1000, (what, told[:2000])
    assert child.usage.ru_maxrss < kilobytes + 400_000 and child.usage.ru_utime < 5, (what, child.usage)


# --- files made to do harm: graphs, engines and results ----------------------------------------------------------


def name_other_file(tensor: onnx.TensorProto, location: str) -> None:
    length = len(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, location, 0, length)
    tensor.ClearField("raw_data")


@pytest.mark.slow
@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "link.bin"])
def test_graph_that_names_other_files(location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "graphs"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(10_000))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = write_graph(folder / "enet-fp32.onnx")
    model = onnx.load(path)
    name_other_file(model.graph.initializer[0], location)
    path.write_bytes(model.SerializeToString())
    for backend in ("ort", *(["openvino"] if find_spec("openvino") else [])):
        with pytest.raises(ArtifactError, match=r"enet-fp32.onnx is no ONNX file that .* can load"):
            open_runner(path, backend)
    for main, arguments in ((export_cli.main, ["--int8"]), (bench_cli.main, ["--frames", "10", "--backend", "ort"])):
        assert main([str(path), *arguments, *(["--out", str(folder)] if main is export_cli.main else [])]) == 2
        error = capsys.readouterr().err
        assert error.count("error:") == 1 and "enet-fp32.onnx is no ONNX file" in error.splitlines()[-1]
    assert sorted(file.name for file in folder.iterdir()) == ["enet-fp32.onnx", "link.bin"]


def in_subgraph(graph: onnx.GraphProto) -> onnx.TensorProto:
    branch = graph.node.add(op_type="If").attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g
    return branch.initializer.add()


def in_subgraphs(graph: onnx.GraphProto) -> onnx.TensorProto:
    attribute = graph.node.add(op_type="If").attribute.add(name="branches", type=onnx.AttributeProto.GRAPHS)
    return attribute.graphs.add().initializer.add()


# Where a tensor can be in an ONNX file -> a new one there
PLACES: dict[str, Callable[[onnx.ModelProto], onnx.TensorProto]] = {
    "initializer": lambda model: model.graph.initializer.add(),
    "sparse values": lambda model: model.graph.sparse_initializer.add().values,
    "sparse indices": lambda model: model.graph.sparse_initializer.add().indices,
    "attribute": lambda model: model.graph.node[0].attribute.add().t,
    "attribute, several": lambda model: model.graph.node[0].attribute.add().tensors.add(),
    "attribute, sparse": lambda model: model.graph.node[0].attribute.add().sparse_tensor.values,
    "attribute, several sparse": lambda model: model.graph.node[0].attribute.add().sparse_tensors.add().indices,
    "subgraph": lambda model: in_subgraph(model.graph),
    "subgraphs": lambda model: in_subgraphs(model.graph),
    "function": lambda model: model.functions.add().node.add().attribute.add().t,
    "function's default": lambda model: model.functions.add().attribute_proto.add().t,
}


@pytest.mark.parametrize("add_tensor", PLACES.values(), ids=PLACES.keys())
def test_no_engine_is_built_of_other_files(
    add_tensor: Callable[[onnx.ModelProto], onnx.TensorProto], tmp_path: Path
) -> None:
    """Found by this test: TensorRT opens any file that a graph names, relative to the current folder."""
    path = write_graph(tmp_path / "enet-fp32.onnx")
    read_graph(path)
    for location in (onnx.TensorProto.EXTERNAL, onnx.TensorProto.DEFAULT):
        model = onnx.load(path)
        tensor = add_tensor(model)
        tensor.external_data.add(key="location", value="secret.bin")
        tensor.data_location = location
        path.with_name("other.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ArtifactError, match=r"other\.onnx names other files"):
            read_graph(path.with_name("other.onnx"))


@pytest.mark.parametrize("kind", [".onnx", ".engine"])
def test_escapes_as_a_class(kind: str, tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"enet{kind}"
    model = onnx.load(write_graph(tmp_path / "enet.onnx"))
    said = json.loads(graph_metadata(model, path).to_text())
    said["classes"]["names"][0] = ESCAPES
    if kind == ".onnx":
        model.metadata_props[0].value = json.dumps(said)
        onnx.save(model, path)
    else:
        pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
        path.write_bytes(b"")
        EngineCard.path(path).write_text(json.dumps({"schema": 1, "metadata": said}))
    assert evaluate.main([str(path), "--data", str(scenes)]) == 2
    error = capsys.readouterr().err
    assert error[:-1].isprintable() and "class name" in error and "x1b[2J" in error


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_metadata_that_is_no_text(backend: str, tmp_path: Path) -> None:
    pytest.importorskip({"ort": "onnxruntime"}.get(backend, backend))
    path = write_graph(tmp_path / "enet.onnx")
    content = path.read_bytes()
    assert content.count(b'"building"') == 1
    path.write_bytes(content.replace(b'"building"', b'"b\xff\xfelding"'))
    with pytest.raises(ArtifactError, match=r"enet.onnx (has names or metadata that are not UTF-8|is no ONNX file)"):
        open_runner(path, backend)


@pytest.mark.slow
def test_openvinos_cache_is_of_the_graph_and_not_of_its_name_or_time(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path, cache, frame = tmp_path / "enet.onnx", tmp_path / "cache", np.full((1, *SIZE, 3), 90, np.uint8)
    labels = []
    for graph in (changed(exported), onnx.load(exported)):
        save_graph(graph, path)
        os.utime(path, (2e9, 2e9))  # as if the second were written at the same moment, or the clock went back
        with open_runner(path, "openvino", threads=1, cache=cache) as runner:
            labels.append(runner.logits(frame))
    with open_runner(exported, "openvino", threads=1) as runner:
        np.testing.assert_array_equal(labels[1], runner.logits(frame))
    assert not np.array_equal(*labels)


def changed(path: Path) -> onnx.ModelProto:
    """The graph with another mean."""
    model = onnx.load(path)
    mean = next(i for i in model.graph.initializer if i.name == "mean")
    mean.raw_data = (onnx.numpy_helper.to_array(mean) + 50).astype(np.float32).tobytes()
    return model


def harmful_run() -> dict[str, Any]:
    """A result whose every name would move the cursor, rename the window, or run in a browser."""
    run = stored()
    name = f"\x1b]0;a\x07{MARKUP}\u202e\ud800"
    for result in run["results"]:
        result |= {"artifact": f"{name}.onnx", "device": name, "runtime": name, "options": {name: name}}
        sky, other = result["accuracy"]["per_class"].values()
        result["accuracy"]["per_class"] = {name: sky, f"{name} too": other}
    accuracy = run["reference"]["accuracy"]
    accuracy["per_class"] = run["results"][0]["accuracy"]["per_class"]
    run["environment"] |= dict.fromkeys(("processor", "system", "governor", "time", "commit"), name)
    run["environment"]["packages"] = {name: name}
    run["images"] |= {"data": name, "video": name}
    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:constrained_layout")  # names as long as these leave a chart no room
def test_results_whose_names_are_markup_and_escapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps(harmful_run()))
    second.write_text(json.dumps(harmful_run()))
    outputs = {kind: tmp_path / f"a.{kind}" for kind in ("html", "markdown", "csv", "json")}
    options = [part for kind, path in outputs.items() for part in (f"--{kind}", str(path))]
    assert bench_cli.main(["show", str(first), *options]) == 0
    assert bench_cli.main(["compare", str(first), str(second)]) == 0
    printed = capsys.readouterr()
    for text in (printed.out, printed.err, *(path.read_text(encoding="utf-8") for path in outputs.values())):
        assert all(line.isprintable() for line in text.split("\n"))
    page = outputs["html"].read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    )  # a script that came through would not be run
    outside_code = re.sub(r"^```.*?^```$", "", outputs["markdown"].read_text(), flags=re.DOTALL | re.MULTILINE)
    assert "<" not in outside_code.replace("\\<", "")


def test_record_whose_names_are_escapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "record.json"
    record = without_digest(json.loads(BUNDLED_RECORD.read_text()))  # which would be enough to refuse it
    tensor = next(iter(record["amax"]))
    for change in ({"method": ESCAPES}, {"amax": {**record["amax"], f"{ESCAPES}\n{tensor}": 1.0}}):
        path.write_text(json.dumps({**record, **change}))
        assert calibration_cli.main(["--record", str(path), "--trt-cache", str(tmp_path / "enet.cache")]) == 2
        error = capsys.readouterr().err
        assert error[:-1].isprintable() and "is no calibration record" in error
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_reader_who_leaves_costs_no_file(scenes: Path, tmp_path: Path) -> None:
    """As `| head -1` does."""
    command = [
        sys.executable,
        "-m",
        "enet_deploy.commands.data",
        "check",
        str(scenes),
        "--json",
        str(tmp_path / "a.json"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.close()
        assert (child.stderr.read(), child.wait(300)) == (b"", 0)
    assert json.loads((tmp_path / "a.json").read_text())["schema"] == 1


@pytest.mark.slow
def test_termination_leaves_no_temporary_file(exported: Path, tmp_path: Path) -> None:
    arguments = [str(exported), "--backend", "ort", "--frames", "1000000", "--json", str(tmp_path / "a.json")]
    command = [sys.executable, "-m", "enet_deploy.benchmarks.cli", *arguments]
    (tmp_path / "temporary").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as child:
        while not child.stdout.readline().startswith(b"timing"):
            assert child.poll() is None
        time.sleep(0.5)
        child.terminate()
        told = child.communicate()[1]
        assert child.returncode == 143 and b"enet-bench: interrupted" in told, told
    assert [path.name for path in (tmp_path / "temporary").iterdir() if path.name != ".ses"] == []  # ONNX Runtime's
