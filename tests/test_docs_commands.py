"""Every command of the pages runs: page by page, in the order of the page, in one folder, on drawn data.

Figures become small by `FIGURES`, `ADDED` and `CONDITIONS`, so that a page takes seconds; no option is left out. What
needs a program or a device that a test has not got is in `test_docs.PROGRAMS` and `test_docs.DEVICES`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import onnx
import pytest
from helpers import ROOT, SIZE, InProcess, pooling, write_scenes
from test_docs import (
    DEVICES,
    FENCE,
    SCRIPTS,
    WITH_COMMANDS,
    call,
    fences,
    main_of,
    name,
    simple_commands,
    why_not_run,
)

from enet_deploy.artifacts import BUNDLED_WEIGHTS, graph_metadata, set_graph_metadata
from enet_deploy.benchmarks.measure import plan, timing
from enet_deploy.benchmarks.studies import soak
from enet_deploy.bundled import graph_file
from enet_deploy.calibration import ranges
from enet_deploy.data.scenes import street_scene
from enet_deploy.environment import processor
from enet_deploy.files import sha256

pytestmark = [pytest.mark.docs, pytest.mark.slow]
for package in ("openvino", "av", "rosbags", "tensorboard", "jinja2", "matplotlib"):
    pytest.importorskip(package)

SMALL = f"{SIZE[0]}x{SIZE[1]}"
SOAK = "enet_deploy.benchmarks.studies.soak"
TRAIN, BENCH, EXPORT = (SCRIPTS[f"enet-{name}"] for name in ("train", "bench", "export"))

# Module -> option -> the figure that it gets in place of the page's
FIGURES = {
    TRAIN: {"--batch": "4", "--epochs": "2", "--eval-every": "1", "--minutes": "0.01", "--width": "2"},
    BENCH: {"--frames": "1", "--batch": "2,1", "--size": f"{SMALL},64x96"},
    SCRIPTS["enet-data"]: {"--count": "1"},
    SCRIPTS["enet-segment"]: {"--raw": SMALL},
}
# Module, option and figure where a page leaves it to the default; unless the command matches a pattern
ADDED = [
    (TRAIN, "--size", "48x64", None),
    (TRAIN, "--crop", "32x32", None),
    (TRAIN, "--batch", "4", "--batch"),
    (TRAIN, "--epochs", "2", "--epochs|--minutes"),
    (BENCH, "--frames", "1", "--frames|^compare|^show"),
    (BENCH, "--threads", "1", "^compare|^show"),
    (BENCH, "--size", SMALL, r"--size|\.onnx|^compare|^show"),
    (SCRIPTS["enet-calibrate"], "--images", "4", None),
    (EXPORT, "--size", SMALL, r"\.onnx|--weights"),
    (EXPORT, "--max-disagreement", "1", r"\.onnx"),  # small frames, and weights of two epochs, decide by little
    (SOAK, "--inferences", "20", None),
    (SOAK, "--reopenings", "2", None),
    (SOAK, "--max-growth", "1000", None),
]
# Conditions on times, which a busy machine does not meet, and on labels, more of which differ in small frames
CONDITIONS = {
    "p90_ms<=20": "p90_ms<=1e9",
    "speedup_low>=2": "speedup_low>=0",
    "speedup_low>=0.95": "speedup_low>=0",
    "agreement>=0.99": "agreement>=0.9",
    "miou_drop<=0.3": "miou_drop<=100",
}
# For scripts: a video in place of a camera, a second in place of a minute
SCRIPT_WORDS = {"0": "drive.mp4", "60": "1"}

# Module, constant and small figure of what takes long and no option changes
SMALLER: list[tuple[ModuleType, str, object]] = [
    (timing, "PATIENCE", 0.0),
    (timing, "WINDOW", 1),
    (timing, "DROPPED", 1),
    (timing, "LEAST_ROUNDS", 2),
    (plan, "SCENES", 2),
    (soak, "THREADS", 2),
    (ranges, "BINS", {"percentile": 2048, "entropy": 256}),
]

# What a reader of the page has before he begins
GIVEN = {
    "docs/benchmarking-and-ci.md": "CAMVID DATA SCENES old.safetensors old.json mine.safetensors a.onnx b.onnx "
    "robot.onnx drive.mp4 yesterday.json enet-fp32.onnx",
    "docs/fleet.md": "enet-int8-openvino.onnx drives",
    "docs/jetson.md": "",
    "docs/max-unpooling.md": "segnet.onnx",
    "docs/precision-and-engines.md": "CAMVID DATA mine.safetensors robot.onnx street.jpg",
    "docs/quickstart.md": "street.jpg",
    "docs/robots.md": "enet-fp32.onnx enet-int8.onnx drive.mp4 drive.mcap",
    "docs/segment.md": "enet-int8.onnx enet-fp32.onnx drive.mp4 drive.mcap pictures DATA",
    "docs/serving.md": "enet-fp16.onnx",
    "docs/training.md": "CAMVID DATA",
    "docs/your-data.md": "DATA DRAWN drive.mp4",
    "examples/ros2_node/README.md": "enet-fp32.onnx drive.mcap",
}
KEPT = {("docs/quickstart.md", "--size")}  # that of the bundled graph, beside which they are run

# What depends on the machine and the environment
if not {"avx512_bf16", "amx_bf16"} & set(processor()[1].split()):
    DEVICES["bf16"] = "this CPU has neither AVX512_BF16 nor AMX"
for package, pattern in {
    "ray": "^enet-fleet ",
    "tensorrt_rtx": "--engine trt-rtx ",
    "tritonclient": "--triton ",
}.items():
    if find_spec(package) is None:
        DEVICES[pattern] = f"{package} is not installed"


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone's folder. One export gives graphs with any outputs and batch, and enet-bench starts no processes."""
    from enet_deploy.export import to_onnx

    build = to_onnx.build_graph

    def build_part(
        weights: Any,
        precision: str = "fp32",
        size: Any = None,
        batch: int | None = 1,
        logits: bool = False,
        confidence: float | None = None,
        fit: Any = None,
    ) -> onnx.ModelProto:
        assert confidence in (None, 1.0) and fit is None
        weights = to_onnx._read(weights)
        size = size or weights.metadata.size
        if weights.sha256 == sha256(BUNDLED_WEIGHTS) and (precision, size) == ("fp32", weights.metadata.size):
            return onnx.load(graph_file("enet-camvid"))  # it is this export
        whole = build(weights, precision, size, None, logits=True, confidence=1.0)
        return part_of(whole, batch, ["labels", *["logits"] * logits, *["confidence"] * (confidence is not None)])

    monkeypatch.setattr(to_onnx, "build_graph", build_part)
    monkeypatch.setattr("enet_deploy.benchmarks.bench.Processes", InProcess)
    for module, constant, small in SMALLER:
        monkeypatch.setattr(module, constant, small)
    monkeypatch.chdir(tmp_path)
    for folder in ("enet_deploy", "examples", "tests"):
        Path(folder).symlink_to(ROOT / folder)


def part_of(model: onnx.ModelProto, batch: int | None, outputs: list[str]) -> onnx.ModelProto:
    """The graph for this batch with these outputs alone."""
    graph, needed = model.graph, set(outputs)
    for port in [port for port in graph.output if port.name not in needed]:
        graph.output.remove(port)
    for node in reversed(list(graph.node)):
        if needed.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            needed.update(node.input)
    for port in (*graph.input, *graph.output) if batch is not None else ():
        port.type.tensor_type.shape.dim[0].dim_value = batch
    metadata = graph_metadata(model, "graph.onnx")
    details = {key: value for key, value in metadata.details.items() if key in outputs or key != "confidence"}
    set_graph_metadata(model, replace(metadata, details=details))
    return model


def small_weights(path: Path) -> Path:
    """The bundled weights, for frames of `SIZE`."""
    from enet_deploy.weights import load_weights, save_weights

    net, metadata = load_weights(BUNDLED_WEIGHTS)
    save_weights(path, net, replace(metadata, size=SIZE))
    return path


def scenes(root: Path) -> Path:
    """A data set with a drive that can be held out."""
    write_scenes(root, {"train": 8, "val": 2, "test": 1})
    for folder, wanted in (("train", 4), ("val", 1)):
        for path in sorted(Path(root / folder).iterdir())[:wanted]:
            for each in (path, root / f"{folder}annot" / path.name):
                each.rename(each.with_name(f"0001TP{each.name}"))
    return root


def pictures(folder: Path) -> Path:
    folder.mkdir()
    for seed in range(2):
        cv2.imwrite(str(folder / f"{seed}.png"), street_scene(seed, SIZE)[0])
    return folder


def run_before(path: Path) -> None:
    """The run of today.json, with another file of the last runner."""
    run = json.loads(Path("today.json").read_text())
    run["results"][-1]["artifact_sha256"] = "0" * 64
    path.write_text(json.dumps(run))


def graph(path: Path) -> None:
    from enet_deploy.export.int8 import quantize
    from enet_deploy.export.record import bundled_record
    from enet_deploy.export.to_onnx import to_onnx

    weights = small_weights(path.with_suffix(".safetensors")) if path.stem in ("a", "b") else BUNDLED_WEIGHTS
    record = bundled_record(sha256(weights)) if "int8" in path.stem else None
    change = None if record is None else partial(quantize, record=record)
    form = {"precision": "fp16", "batch": None} if "fp16" in path.stem else {}
    to_onnx(weights, path, size=SIZE, quantize=change, max_disagreement=1.0, **form)


def give(given: str, path: Path) -> None:
    """Make what a page says that its reader has."""
    from bags import write_bag
    from videos import write_video

    makers: dict[str, Callable[[Path], object]] = {
        "CAMVID": scenes,
        "DATA": scenes,
        "SCENES": scenes,
        "DRAWN": scenes,
        "old.safetensors": lambda path: shutil.copy(BUNDLED_WEIGHTS, path),
        "old.json": lambda path: shutil.copy(BUNDLED_WEIGHTS.with_suffix(".json"), path),
        "mine.safetensors": small_weights,
        "drive.mp4": write_video,
        "drive.mcap": write_bag,
        "pictures": pictures,
        "drives": pictures,
        "street.jpg": lambda path: cv2.imwrite(str(path), street_scene(0, SIZE)[0]),
        "segnet.onnx": lambda path: onnx.save(pooling(), path),
        "yesterday.json": run_before,
    }
    makers.get(given, graph)(path)


def smaller(module: str, arguments: list[str], page: str) -> list[str]:
    """The arguments with small figures."""
    figures, made = FIGURES.get(module, {}), list(arguments)
    for at, word in enumerate(made[:-1]):
        made[at + 1] = figures.get(word, made[at + 1])
    for condition, harmless in CONDITIONS.items():
        made = [word.replace(condition, harmless) for word in made]
    line = " ".join(arguments)
    for of, option, figure, unless in ADDED:
        if of == module and not (unless and re.search(unless, line)) and (page, option) not in KEPT:
            made += [option, figure]
    return made


def run(words: list[str], page: str) -> int:
    """Run a command and return its exit code."""
    called, fed = call(words), None
    command = words[1:] if called is None else ["-m", called.module, *smaller(called.module, called.arguments, page)]
    if words[0] == "torchrun":
        command[:0] = ["-m", "torch.distributed.run", "--standalone", *words[1 : words.index("-m")]]
    if "--raw" in command:
        fed = street_scene(0, SIZE)[0].tobytes() * 2
    is_foreign = called is None or called.module == SCRIPTS["enet-fleet"]  # Ray warns where warnings are errors
    if is_foreign or words[0] == "torchrun" or fed is not None:
        return subprocess.run([sys.executable, *command], input=fed, check=False).returncode
    arguments = command[2:]
    try:
        return int(main_of(called.module)(arguments))
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize("page", [page for page in WITH_COMMANDS if fences(page, "")], ids=name)
def test_commands_run(page: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = GIVEN.get(name(page), "").split()
    text = page.read_text(encoding="utf-8")
    for block in FENCE.finditer(text):
        if block[1]:
            continue
        left_out = False
        for line in block[2].replace("\\\n", " ").splitlines():
            for words in filter(None, simple_commands(line)):
                if why_not_run(words):
                    left_out = True
                    continue
                words[0] = words[0].removeprefix(".venv/bin/")
                words = words if call(words) else [SCRIPT_WORDS.get(word, word) for word in words]
                for file in given:
                    if not Path(file).exists() and any(re.match(rf"{re.escape(file)}(/|$)", word) for word in words):
                        give(file, Path(file))
                code = run(words, name(page))
                told = capfd.readouterr()
                assert code == 0, f"{line}\n{told.out}\n{told.err}"
                for file in re.findall(r"# (?:.*: )?([\w-]+\.(?:onnx|mp4|mcap))\b", line):
                    assert Path(file).is_file(), line
        if not left_out:
            after = re.match(r"[^#`]*?writes `([^`]+)`(?:[^.]*?, `([^`]+)`)?", text[block.end() :])
            for file in filter(None, after.groups() if after else ()):
                assert list(tmp_path.rglob(file)), file
