"""What several test files build on: small data sets, image files, a graph, a stored run."""

from __future__ import annotations

import configparser
import fcntl
import gc
import os
import pickle
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import enet_deploy.data.scenes
from enet_deploy import CAMVID
from enet_deploy.artifacts import BUNDLED_WEIGHTS, METADATA_KEY, Metadata
from enet_deploy.benchmarks.statistics import Summary
from enet_deploy.errors import EnetError
from enet_deploy.files import sha256

ROOT = Path(__file__).parent.parent

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
CONSOLE_SCRIPTS = dict(
    line.split(" = ") for line in SETUP["options.entry_points"]["console_scripts"].strip().splitlines()
)

SIZE = (96, 128)  # of the fixtures: small enough that a test takes milliseconds

TEMPERATURE = 1.25  # of the fixtures' confidences

FIRST_SEED = {"train": 0, "val": 1000, "test": 2000}


def write_scenes(root: Path, counts: dict[str, int]) -> Path:
    """A data set in the SegNet layout: counts["train"] scenes in train/ and trainannot/, and so on."""
    for split, count in counts.items():
        first = FIRST_SEED[split]
        enet_deploy.data.scenes.write_scenes(root, split, range(first, first + count), SIZE)
    return root


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def image(height: int = 6, width: int = 8) -> np.ndarray:
    return np.full((height, width, 3), (10, 20, 30), np.uint8)


def label_map(value: int = 3, height: int = 6, width: int = 8) -> np.ndarray:
    return np.full((height, width), value, np.uint8)


def claim(path: Path, side: int) -> None:
    """An image file of a few bytes that says it has `side` rows and columns."""
    png = cv2.imencode(".png", label_map())[1].tobytes()
    header = png[12:16] + side.to_bytes(4, "big") * 2 + png[24:29]
    path.write_bytes(png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:])


def write_graph(path: Path, precision: str = "fp32", unknown_operation: bool = False, confidence: bool = False) -> Path:
    """The smallest graph of the deployed kind: frames (1, 16, 16, 3) uint8 -> labels (1, 16, 16) uint8.

    Its confidences, if asked for, are one more than the labels.
    """
    type_ = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    kernel = np.random.default_rng(0).normal(size=(4, 3, 3, 3))
    weight = numpy_helper.from_array(kernel.astype(helper.tensor_dtype_to_np_dtype(type_)), "weight")
    nodes = [
        helper.make_node("Cast", ["frames"], ["numbers"], to=type_),
        helper.make_node("Transpose", ["numbers"], ["image"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["image", "weight"], ["scores"], pads=[1, 1, 1, 1]),
        helper.make_node("ArgMax", ["scores"], ["ids"], axis=1, keepdims=0),
        helper.make_node("Cast", ["ids"], ["labels"], to=TensorProto.UINT8),
    ]
    outputs = [helper.make_tensor_value_info("labels", TensorProto.UINT8, (1, 16, 16))]
    if confidence:
        nodes.append(helper.make_node("Cast", ["more"], ["confidence"], to=TensorProto.UINT8))
        nodes.insert(4, helper.make_node("Add", ["ids", "one"], ["more"]))
        outputs.append(helper.make_tensor_value_info("confidence", TensorProto.UINT8, (1, 16, 16)))
    if unknown_operation:
        nodes[3].input[0] = "sharp"
        nodes.insert(3, helper.make_node("Sharpen", ["scores"], ["sharp"], "decoder/sharpen", domain="elsewhere"))
    graph = helper.make_graph(
        nodes,
        "least",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, (1, 16, 16, 3))],
        outputs,
        [weight, *[numpy_helper.from_array(np.array(1), "one")] * confidence],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("elsewhere", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    metadata = Metadata(CAMVID, (110.0, 108.0, 105.0), (78.0, 79.0, 78.0), (16, 16), precision)
    model.metadata_props.add(key=METADATA_KEY, value=metadata.to_text())
    onnx.save_model(model, path)
    return path


ROUNDS = [0, 1, 2, 0, 1] * 2  # how the machine drifts, the same for all


def result(
    backend: str, precision: str, ms: float, agreement: float, miou: float, layout: str | None = None
) -> dict[str, Any]:
    """The JSON of a runner's part of a run without its derived values: ten rounds of two calls."""
    samples = [ms * (1 + 0.02 * drift) + extra for drift in ROUNDS for extra in (0, 0.1)]
    stages = {"pre": [1.0], "infer": samples, "post": [0.5], "total": [ms + 1.5]}
    return {
        "backend": backend, "device": "cpu", "precision": precision, "layout": layout, "timed": "infer",
        "artifact": f"a/enet-{precision}.onnx", "runtime": "", "options": {"threads": 0}, "size": [360, 480],
        "batch": 1, "warm_up": {"calls": 10, "settled": True, "ms": ms},
        "latency_ms": asdict(Summary.of(samples)),
        "stages_ms": {stage: asdict(Summary.of(times)) for stage, times in stages.items()},
        "samples_ms": samples, "blocks": [2] * 10, "stream_ms": [ms + 1] * 10,
        "model_bytes": 1_730_000, "peak_bytes": 182_000_000,
        "parity": {
            "agreement": agreement, "frames": [agreement],
            "flips": {"boundary": 0.9 * (1 - agreement), "interior": 0.1 * (1 - agreement), "band": 0.2},
            "max_abs_logit": 0.5, "p99_abs_logit": 0.01,
            "unpool_flips": None if backend == "torch" else {"bottleneck1_0": 0.0, "bottleneck2_0": 0.125},
            "miou": agreement, "dice": agreement, "per_class": {},
        },
        "accuracy": {
            "pixel_accuracy": 0.9, "dice": miou + 0.1, "miou": miou, "class_average": 0.8,
            "per_class": {"sky": {"iou": miou, "dice": 0.8}, "a|<b>$x$": {"iou": None, "dice": None}},
            "absent": ["a|<b>$x$"], "void_counts": False, "confusion": [[90, 10, 0], [20, 80, 0], [5, 5, 0]],
        },
        "profile": None,
    }  # fmt: skip


def stored() -> dict[str, Any]:
    """The JSON of a run without its derived values."""
    return {
        "schema": 2,
        "partial": False,
        "environment": {
            "time": "2026-11-23T07:00:00+0000", "processor": "A Processor", "cores": 2, "system": "Linux",
            "governor": None, "omp_num_threads": None, "commit": "0123456789abcdef", "packages": {"openvino": "2026.4"},
            "gpus": [{"name": "NVIDIA H100", "driver": "580.159"}, {"name": "NVIDIA T4", "driver": "580.159"}],
        },
        "load": {"others": 0.0, "stolen": 0.01},
        "images": {"count": 101, "size": [360, 480], "data": "camvid", "split": "val", "video": None},
        "peaks": None,
        "reference": {"backend": "torch", "accuracy": result("torch", "fp32", 60, 1.0, 0.742)["accuracy"]},
        "results": [
            result("torch", "fp32", 60, 1.0, 0.742),
            result("openvino", "fp32", 20, 0.9999999, 0.742),
            result("openvino", "int8", 15, 0.994, 0.7415, "all"),
        ],
        "sweep": [],
    }  # fmt: skip


SMALL = (16, 24)  # size of `least_graph`


def least_graph(dtype: str = "float32") -> onnx.ModelProto:
    """A minimal graph with all that int8 depends on: a sum, layers that stay float, logits. Frames are (1, 16, 24, 3).

    Its metadata names the bundled weights, so that records of them fit.
    """
    rng = np.random.default_rng(0)
    type_ = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    constants = {"mean": np.full((1, 3, 1, 1), 110.0), "std": np.full((1, 3, 1, 1), 80.0)}
    nodes = [
        helper.make_node("Cast", ["frames"], ["numbers"], to=type_),
        helper.make_node("Transpose", ["numbers"], ["image"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["image", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["normalised"]),
    ]

    def layer(name: str, kind: str, taken: str, shape: tuple[int, ...]) -> str:
        outputs = shape[0 if kind == "Conv" else 1]
        constants[f"{name}.weight"] = rng.normal(0, 1 / np.sqrt(shape[0] * 5), shape)
        constants[f"{name}.bias"] = rng.normal(0, 0.1, outputs)
        inputs, output = [taken, f"{name}.weight", f"{name}.bias"], f"{name}/{kind}"
        nodes.append(helper.make_node(kind, inputs, [output], output, pads=[1, 1, 1, 1]))
        return output

    def other(kind: str, name: str, *inputs: str) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"{name}/{kind}"], f"{name}/{kind}"))
        return nodes[-1].output[0]

    skip = other("Relu", "initial.act", layer("initial.conv", "Conv", "normalised", (8, 3, 3, 3)))
    branch = other("Relu", "stage1.0.branch.1", layer("stage1.0.branch.0", "Conv", skip, (8, 8, 3, 3)))
    branch = layer("stage1.0.branch.2", "Conv", branch, (8, 8, 3, 3))
    stage = other("Relu", "stage1.0.act", other("Add", "stage1.0", skip, branch))
    stage = other("Relu", "stage1.1.act", layer("stage1.1", "Conv", stage, (8, 8, 3, 3)))
    scores = layer("fullconv", "ConvTranspose", stage, (8, 11, 3, 3))
    nodes += [
        helper.make_node("Cast", [scores], ["logits"], to=TensorProto.FLOAT),
        helper.make_node("ArgMax", [scores], ["ids"], axis=1, keepdims=0),
        helper.make_node("Cast", ["ids"], ["labels"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "least",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, (1, *SMALL, 3))],
        [
            helper.make_tensor_value_info("labels", TensorProto.UINT8, (1, *SMALL)),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 11, *SMALL)),
        ],
        [numpy_helper.from_array(values.astype(dtype), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    precision = "fp16" if dtype == "float16" else "fp32"
    metadata = Metadata(CAMVID, (110.0,) * 3, (80.0,) * 3, SMALL, precision, sha256(BUNDLED_WEIGHTS), {"versions": {}})
    model.metadata_props.add(key=METADATA_KEY, value=metadata.to_text())
    return model


def pooling(kernel: Sequence[int] = (2, 2), indices: Sequence[onnx.NodeProto] = (), opset: int = 11) -> onnx.ModelProto:
    """A SegNet of one level as legacy exporters write it: Conv, MaxPool with indices, Conv, MaxUnpool."""
    rng = np.random.default_rng(1)
    weights = {name: rng.integers(-1, 2, (4, c, 3, 3)).astype(np.float32) / 4 for name, c in (("down", 3), ("up", 4))}
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    size = {"kernel_shape": kernel, "strides": kernel}
    nodes = [
        helper.make_node("Conv", ["x", "down"], ["a"], **same),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["pooled", "indices"], "encoder/pool", **size),
        *indices,
        helper.make_node("Conv", ["pooled", "up"], ["c"], **same),
        helper.make_node(
            "MaxUnpool", ["c", indices[-1].output[0] if indices else "indices"], ["y"], "decoder/unpool", **size
        ),
    ]
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, 3, 12, 12))]
    results = [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 4, 12, 12))]
    constants = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "segnet", ports, results, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command printed on stderr; nothing is on stdout."""
    captured = capsys.readouterr()
    assert not captured.out and captured.err.count("\n") == 1
    return captured.err


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that `make` fills once in a test run; the workers of pytest-xdist share it."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, unfinished = root / name, root / f"{name}.unfinished"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            shutil.rmtree(unfinished, ignore_errors=True)  # of a worker whose `make` failed
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


class InProcess:
    """In place of `Processes`, with all objects in this process: libraries are imported once.

    What goes to an object and comes back is pickled, and errors become an EnetError, as there.

    Args:
        objects: that are made already, by name.
        interrupted_at: number of the call of `ask` that raises KeyboardInterrupt, as by Ctrl-C.
    """

    def __init__(self, objects: dict[str, Any] | None = None, interrupted_at: int | None = None) -> None:
        self.objects, self._interrupted_at = dict(objects or {}), interrupted_at
        self.asked: list[tuple[str, str]] = []

    def __enter__(self) -> InProcess:
        gc.freeze()  # a block of calls ends with a garbage collection, which has little to look through in a worker
        return self

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()
        for each in self.objects.values():
            each.runner.close()

    def start(self, name: str, make: Callable[[], object]) -> None:
        self.objects[name] = self._called(name, _pickled(make))
        gc.freeze()

    def ask(self, name: str, function: Callable[..., Any], *arguments: object) -> Any:
        if len(self.asked) == self._interrupted_at:
            raise KeyboardInterrupt
        self.asked.append((name, function.__name__))
        function, arguments = _pickled((function, arguments))
        return _pickled(self._called(name, function, self.objects[name], *arguments))

    def _called(self, name: str, function: Callable[..., Any], *arguments: object) -> Any:
        try:
            return function(*arguments)
        except EnetError:
            raise
        except Exception as error:
            raise EnetError(f"{name}: {error}") from error


def _pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))
