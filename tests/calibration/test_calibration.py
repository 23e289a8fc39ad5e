"""INT8: Q/DQ graphs, the ranges they are made from, the record of these, what each layer suffers, `enet-calibrate`."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from helpers import SIZE, SMALL, least_graph
from onnx import helper, numpy_helper

from enet_deploy import open_runner
from enet_deploy.artifacts import BUNDLED_WEIGHTS, QdqLayout, graph_metadata
from enet_deploy.calibration import cli, ranges
from enet_deploy.calibration.scoring import Evaluator, Score
from enet_deploy.calibration.sensitivity import (
    LayerSensitivity,
    keep_budget,
    measure_sensitivity,
    write_plot,
    write_table,
)
from enet_deploy.classes import CAMVID
from enet_deploy.data import find_images, open_data
from enet_deploy.data.scenes import street_scene
from enet_deploy.errors import ArtifactError, InputError, ParityError
from enet_deploy.export import cli as export_cli
from enet_deploy.export.int8 import (
    FLOAT_FOR_ORT,
    FLOAT_LAYERS,
    activations,
    insert_pairs,
    layers,
    output_tensors,
    quantize,
    quantize_weights,
    quantized_layers,
)
from enet_deploy.export.record import BUNDLED_RECORD, METHODS, Record, record_for
from enet_deploy.export.to_onnx import build_graph
from enet_deploy.files import sha256
from enet_deploy.images import UInt8Array, read_image
from enet_deploy.metrics import ConfusionMatrix

PAIR = ("QuantizeLinear", "DequantizeLinear")


def tensors_of(model: onnx.ModelProto) -> list[str]:
    return list(activations(model.graph, layers(model.graph).values()))


def make_record(amax: dict[str, float], outputs: dict[str, float] | None = None) -> Record:
    return Record(
        weights_sha256=sha256(BUNDLED_WEIGHTS),
        method="minmax",
        images={"count": 4, "split": "train", "sha256": "0" * 64},
        preprocessing={"size": list(SIZE), "mean": [1.0, 2.0, 3.0], "std": [4.0, 5.0, 6.0]},
        accuracy={"measure": "miou", "images": 4, "fp32": 0.5, "int8": 0.25, "tried": {"minmax": 0.25}},
        float_layers=FLOAT_LAYERS,
        amax=amax,
        float_tensors=[],
        outputs=outputs or {},
        versions={"onnx": onnx.__version__},
    )


def small_record(model: onnx.ModelProto) -> Record:
    return make_record(dict.fromkeys(tensors_of(model), 4.0), dict.fromkeys(output_tensors(model.graph), 4.0))


@pytest.fixture(scope="module")
def model(exported: Path) -> onnx.ModelProto:
    """The bundled network in float."""
    return onnx.load(exported)


@pytest.fixture(scope="module")
def images(scenes: Path) -> list[Path]:
    return ranges.sample(find_images(scenes, "train"), 4)


@pytest.fixture(scope="module")
def record(model: onnx.ModelProto, images: list[Path]) -> Record:
    """Ranges for every tensor of the bundled network, by the method that takes no time."""
    amax, outputs = (
        ranges.find_ranges(model, tensors, images, SIZE, ["minmax"])["minmax"]
        for tensors in (tensors_of(model), output_tensors(model.graph))
    )
    return make_record(amax, outputs)


@pytest.fixture(scope="module")
def quantized(model: onnx.ModelProto, record: Record) -> onnx.ModelProto:
    return quantize(model, record)


# --- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("axis", [0, 1])
def test_weights_have_one_scale_per_output_channel(axis: int, dtype: str) -> None:
    rng = np.random.default_rng(axis)
    weights = (rng.normal(size=(6, 5, 3, 2)) * rng.uniform(0.01, 100, (6, 5, 1, 1))).astype(dtype)
    values, scale = quantize_weights(weights, axis)

    channels = np.moveaxis(weights.astype(np.float64), axis, 0)
    plain = np.array([np.abs(channel).max() / 127 for channel in channels])
    assert values.dtype == np.int8 and scale.dtype == weights.dtype and scale.shape == plain.shape
    np.testing.assert_allclose(scale, plain, rtol=np.finfo(dtype).eps)
    for channel, whole, step in zip(channels, np.moveaxis(values, axis, 0), scale.astype(np.float64), strict=True):
        np.testing.assert_array_equal(whole, np.rint(channel / step))
        assert np.abs(whole).max() == 127 and whole.min() >= -127
        assert np.abs(whole * step - channel).max() <= step / 2 * (1 + 1e-5)


@pytest.mark.parametrize(("dtype", "small"), [("float32", 0.0), ("float16", 0.0), ("float16", 1e-5)])
def test_channel_of_zeros_or_too_small_for_a_scale(dtype: str, small: float) -> None:
    weights = np.ones((3, 2, 1, 1), dtype)
    weights[1] = small
    values, scale = quantize_weights(weights, 0)
    assert values[:, 0, 0, 0].tolist() == [127, 0, 127]
    assert scale[1] == 1 and np.isfinite(scale).all()


# --- the graph ---------------------------------------------------------------------------------------------------


def arrays(model: onnx.ModelProto) -> dict[str, npt.NDArray[np.generic]]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def nodes_of(model: onnx.ModelProto, *kinds: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in kinds]


def in_int8(model: onnx.ModelProto) -> set[str]:
    """Layers whose weights are int8."""
    made = {node.output[0]: node for node in nodes_of(model, "DequantizeLinear")}
    return {name for name, node in layers(model.graph).items() if node.input[1] in made}


def test_int8_is_symmetric_and_signed(quantized: onnx.ModelProto) -> None:
    values = arrays(quantized)
    pairs = nodes_of(quantized, *PAIR)
    assert pairs
    for node in pairs:
        zero_point = values[node.input[2]]
        assert zero_point.dtype == np.int8 and not zero_point.any(), node.name
        assert values[node.input[1]].dtype == np.float32 and (values[node.input[1]] > 0).all(), node.name


def test_activations_have_one_scale_and_weights_one_per_channel(
    model: onnx.ModelProto, record: Record, quantized: onnx.ModelProto
) -> None:
    before, after = arrays(model), arrays(quantized)
    for node in nodes_of(quantized, "QuantizeLinear"):
        assert after[node.input[1]] == np.float32(record.amax[node.input[0]] / 127)
    all_in_int8 = quantize(model, dataclasses.replace(record, float_layers={}))  # transposed convolutions too
    after = arrays(all_in_int8)
    made = {node.output[0]: node for node in nodes_of(all_in_int8, "DequantizeLinear")}
    seen = set()
    for name, node in layers(all_in_int8.graph).items():
        dequantize, axis = made[node.input[1]], {"Conv": 0, "ConvTranspose": 1}[node.op_type]
        values, scale = quantize_weights(before[layers(model.graph)[name].input[1]], axis)
        np.testing.assert_array_equal(after[dequantize.input[0]], values)
        np.testing.assert_array_equal(after[dequantize.input[1]], scale)
        assert [helper.get_attribute_value(a) for a in dequantize.attribute if a.name == "axis"] == [axis]
        seen.add(node.op_type)
    assert seen == {"Conv", "ConvTranspose"}


def test_nothing_else_changes(model: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
    """Without the pairs it is the float graph again: its operations, its order, its biases and other constants."""
    source = {f"{node.input[0].removesuffix('/int8')}/dequantized" for node in nodes_of(quantized, "DequantizeLinear")}
    stripped = onnx.ModelProto()
    stripped.CopyFrom(quantized)
    del stripped.graph.node[:]
    for node in quantized.graph.node:
        if node.op_type not in PAIR:
            kept = stripped.graph.node.add()
            kept.CopyFrom(node)
            kept.input[:] = [name.removesuffix("/dequantized") if name in source else name for name in node.input]
    assert list(stripped.graph.node) == list(model.graph.node)
    assert list(quantized.graph.input) == list(model.graph.input)
    assert list(quantized.graph.output) == list(model.graph.output)
    before, after = arrays(model), arrays(quantized)
    weights = {layers(model.graph)[name].input[1] for name in in_int8(quantized)}
    assert before.keys() - weights == before.keys() & after.keys()  # weights are there once, as int8
    for name in before.keys() & after.keys():
        np.testing.assert_array_equal(after[name], before[name])
    biases = [after[node.input[2]] for node in layers(quantized.graph).values() if len(node.input) > 2]
    assert len(biases) > 50 and {bias.dtype.name for bias in biases} == {"float32"}


def test_float_layers_stay_float(model: onnx.ModelProto, record: Record, quantized: onnx.ModelProto) -> None:
    everything = layers(model.graph)
    weights = arrays(model)
    left = {
        name
        for name, node in everything.items()
        if node.op_type == "ConvTranspose" or min(weights[node.input[1]].shape[:2]) <= 4  # channels in or out
    } | {f"fullconv.pixels.{i}" for i in range(4)}
    assert "initial.conv" in left and "bottleneck5_0.branch.2" in left
    assert in_int8(quantized) == quantized_layers(model.graph, FLOAT_LAYERS).keys() == everything.keys() - left

    more = dataclasses.replace(record, float_layers={**FLOAT_LAYERS, "stage2.*": "a pattern", "stage1.0.branch.0": "x"})
    further = {name for name in everything if name.startswith("stage2.")} | {"stage1.0.branch.0"}
    assert in_int8(quantize(model, more)) == everything.keys() - left - further


def test_pairs_stand_where_they_fuse_and_nowhere_else(quantized: onnx.ModelProto) -> None:
    dequantized = {node.output[0] for node in nodes_of(quantized, "DequantizeLinear")}
    convolved = {node.output[0] for name, node in layers(quantized.graph).items() if name in in_int8(quantized)}
    takers = {node.name for node in quantized.graph.node if dequantized & set(node.input)}
    expected = {node.name for name, node in layers(quantized.graph).items() if name in in_int8(quantized)}
    sums = [node for node in nodes_of(quantized, "Add") if convolved & set(node.input)]
    assert len(sums) > 20
    for node in sums:  # Conv + Add is one kernel only where the other operand is int8 too
        pooled = node.name == "stage1.3/Add"
        assert len(dequantized & set(node.input)) == (0 if pooled else 1), node.name
        expected |= set() if pooled else {node.name}
    assert takers == expected
    deciding = nodes_of(quantized, "MaxPool", "Equal", "Resize")  # pooling and winners see the float tensor
    assert len(deciding) > 8 and not dequantized & {name for node in deciding for name in node.input}
    assert not dequantized & {value.name for value in quantized.graph.output}
    assert not {"frames", "labels", "logits"} & {node.input[0] for node in nodes_of(quantized, "QuantizeLinear")}
    for name in in_int8(quantized):
        assert set(layers(quantized.graph)[name].input[:2]) <= dequantized


@pytest.mark.parametrize(("dtype", "precision"), [("float32", "int8"), ("float16", "fp16-int8")])
def test_graph_says_what_it_is(dtype: str, precision: str, tmp_path: Path) -> None:
    model = least_graph(dtype)
    record, before = small_record(model), model.SerializeToString(deterministic=True)
    result = quantize(model, record)
    assert model.SerializeToString(deterministic=True) == before  # the caller's is as it was
    metadata = graph_metadata(result, "the graph")
    calibration = {"sha256": record.sha256, "method": "minmax", "images": 4, "target": "all"}
    was = graph_metadata(model, "the graph")
    assert metadata == dataclasses.replace(
        was, precision=precision, details={**was.details, "calibration": calibration}
    )
    assert {values.dtype.name for values in arrays(result).values()} == {dtype, "int8"}
    onnx.checker.check_model(result, full_check=True)
    onnx.save_model(result, tmp_path / "enet.onnx")
    with open_runner(tmp_path / "enet.onnx") as runner:
        assert runner.spec.precision == precision
        assert len(np.unique(runner.infer(street_scene(0, SMALL)[0][None]))) > 1


def test_ort_layout_leaves_no_operation_between_int8_ones_in_float(model: onnx.ModelProto, record: Record) -> None:
    result = quantize(model, record, qdq_layout="ort")
    onnx.checker.check_model(result, full_check=True)
    values, made = arrays(result), {output: node for node in result.graph.node for output in node.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in result.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    quantized = in_int8(result)
    chosen = quantized_layers(model.graph, {**FLOAT_LAYERS, **FLOAT_FOR_ORT}).keys()
    assert quantized == chosen < quantized_layers(model.graph, FLOAT_LAYERS).keys()
    relus = 0
    for name in quantized:
        node = layers(result.graph)[name]
        assert all(made[tensor].op_type == "DequantizeLinear" for tensor in node.input), name  # weights and bias too
        if len(node.input) > 2:
            bias = made[node.input[2]]
            taken, weight = (values[made[tensor].input[1]] for tensor in node.input[:2])
            assert values[bias.input[0]].dtype == np.int32
            np.testing.assert_allclose(values[bias.input[1]], taken * weight, rtol=1e-6)
        (user,) = users[node.output[0]]
        if user.op_type == "Relu":  # part of the rounding behind it, from 0 up
            (user,) = users[user.output[0]]
            assert values[user.input[2]] == 0
            relus += 1
        else:
            assert values[user.input[2]] == 128
        assert user.op_type == "QuantizeLinear" and values[user.input[2]].dtype == np.uint8, name
    assert relus == 5
    sums = [node for node in nodes_of(result, "Add") if node.name.startswith(("stage1", "stage2", "stage3"))]
    assert len(sums) == 20
    for node in sums:
        assert {made[name].op_type for name in node.input} == {"DequantizeLinear"}, node.name


def test_ort_layout_gives_onnx_runtime_its_int8_kernels(model: onnx.ModelProto, record: Record, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    result = quantize(model, record, qdq_layout="ort")
    ort.InferenceSession(result.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kinds["QLinearConv"] == len(in_int8(result)) > 70
    assert kinds["QLinearAdd"] >= 20 and kinds["QLinearLeakyRelu"] > 60


def test_ort_layout_keeps_the_bias_of_a_channel_that_is_all_but_off() -> None:
    model = least_graph()
    weights = next(i for i in model.graph.initializer if i.name == "stage1.1.weight")
    values = numpy_helper.to_array(weights).copy()
    values[0], values[1] = 0, values[1] * 1e-12
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    result = quantize(model, small_record(model), qdq_layout="ort")
    after = arrays(result)
    stored = after["stage1.1/Conv/bias/int32"] * after["stage1.1/Conv/bias/scale"].astype(np.float64)
    np.testing.assert_allclose(stored, arrays(model)["stage1.1.bias"], atol=1e-3)


def test_ort_layout_leaves_nothing_to_quantise(model: onnx.ModelProto, record: Record) -> None:
    everything = quantized_layers(model.graph, [])
    rest = {name: "" for name in everything if name != "bottleneck4_0.shortcut.0"}
    one = dataclasses.replace(record, float_layers=rest)
    assert in_int8(quantize(model, one)) == {"bottleneck4_0.shortcut.0"}
    with pytest.raises(InputError, match="float_layers of the record and of this layout"):
        quantize(model, one, qdq_layout="ort")


def test_every_layer_can_be_quantised_alone(model: onnx.ModelProto, record: Record) -> None:
    for qdq_layout in get_args(QdqLayout):
        for name in layers(model.graph):
            one = onnx.ModelProto()
            one.CopyFrom(model)
            insert_pairs(one.graph, [layers(one.graph)[name]], record.ranges, qdq_layout)
            assert in_int8(one) == {name}
            onnx.checker.check_model(one)


def test_ort_layout_is_for_float32(tmp_path: Path) -> None:
    model = least_graph("float16")
    with pytest.raises(InputError, match="the graph is fp16"):
        quantize(model, small_record(model), qdq_layout="ort")


def labels_of(model: onnx.ModelProto, folder: Path, backend: str = "ort") -> UInt8Array:
    frames = np.stack([street_scene(1000 + i, SIZE)[0] for i in range(2)])
    onnx.save_model(model, folder / "graph.onnx")
    with open_runner(folder / "graph.onnx", backend) as runner:
        return runner.infer(frames)


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_int8_gives_the_labels_of_fp32(
    model: onnx.ModelProto, record: Record, quantized: onnx.ModelProto, tmp_path: Path, backend: str
) -> None:
    pytest.importorskip({"ort": "onnxruntime"}.get(backend, backend))
    onnx.checker.check_model(quantized, full_check=True)
    expected = labels_of(model, tmp_path)
    # Drawn, a quarter of the trained size, ranges of four images: 93 % was seen. CamVid has its own test below
    assert np.mean(labels_of(quantized, tmp_path, backend) == expected) >= 0.8
    for layout in ("openvino", "ort"):
        assert np.mean(labels_of(quantize(model, record, qdq_layout=layout), tmp_path, backend) == expected) >= 0.8
    if backend == "ort":
        narrow = dataclasses.replace(record, amax={tensor: amax / 20 for tensor, amax in record.amax.items()})
        assert np.mean(labels_of(quantize(model, narrow), tmp_path) == expected) < 0.5


def without_first(amax: dict[str, float]) -> dict[str, float]:
    return dict(list(amax.items())[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: {"weights_sha256": "f" * 64}, "ffffffffffff"),
        (lambda r: {"amax": {**r.amax, "strange": 1.0}}, r"strange \(1 in all\)"),
        (lambda r: {"amax": without_first(r.amax)}, r"normalised \(1 in all\)"),
        (lambda r: {"float_layers": {"*": "all"}}, "float_layers of the record"),
    ],
)
def test_record_that_does_not_fit_the_graph(change: Callable[[Record], dict[str, object]], message: str) -> None:
    model = least_graph()
    record = small_record(model)
    with pytest.raises((ArtifactError, InputError), match=message):
        quantize(model, dataclasses.replace(record, **change(record)))  # type: ignore[arg-type]


def test_quantised_graph_is_not_quantised_again(
    quantized: onnx.ModelProto, record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArtifactError, match="the graph is int8"):
        quantize(quantized, record)
    onnx.save_model(quantized, tmp_path / "enet-int8.onnx")
    assert export_cli.main([str(tmp_path / "enet-int8.onnx"), "--int8", "--out", str(tmp_path / "out")]) == 2
    assert "enet-int8.onnx is int8" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["enet-int8.onnx"]


# --- the record --------------------------------------------------------------------------------------------------


def test_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = make_record({"a": 1.0, "b/Max": 12.7})
    record.write(tmp_path / "new" / "record.json")
    again = Record.read(tmp_path / "new" / "record.json")
    assert again == record and again.sha256 == record.sha256 == sha256(tmp_path / "new" / "record.json")
    assert '\n    "b/Max": 12.7\n' in record.to_text()  # a line per tensor, fit for a diff
    assert dataclasses.replace(record, amax={"a": 1.5, "b/Max": 12.7}).sha256 != record.sha256


@pytest.mark.parametrize(
    "change",
    [
        {"amax": {"a": 0}},
        {"amax": {"a": -1.0}},
        {"amax": {"a": float("nan")}},
        {"amax": {"a": float("inf")}},
        {"amax": {"a": "1.0"}},
        pytest.param({"amax": {"a": 10**400}}, id="no float holds it"),
        {"amax": [1.0]},
        {"float_layers": {"fullconv": 3}},
        {"unknown": 1},
        # Found by this test: each was read, and a traceback when it was used
        {"images": {}},
        {"weights_sha256": 5},
        {"accuracy": None},
    ],
    ids=str,
)
def test_damaged_record(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**json.loads(make_record({"a": 1.0}).to_text()), **change}))
    with pytest.raises(ArtifactError, match=r"record\.json .*enet-calibrate"):
        Record.read(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"schema": 2}', b"\xff\xfe"])
def test_file_that_is_no_record(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"record\.json"):
        Record.read(tmp_path / "record.json")


def test_record_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**json.loads(make_record({"a": 1.0}).to_text()), "schema": 1}))
    with pytest.raises(ArtifactError, match=r"record\.json has schema 1, expected 2"):
        Record.read(path)


def test_missing_record_and_record_of_other_weights(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.json .*enet-calibrate"):
        record_for("", tmp_path / "none.json")
    make_record({"a": 1.0}).write(tmp_path / "record.json")
    with pytest.raises(ArtifactError, match=r"record\.json .*ffffffffffff.*--calibration"):
        record_for("f" * 64, tmp_path / "record.json")
    with pytest.raises(ArtifactError, match=r"enet-camvid\.json .*ffffffffffff"):
        record_for("f" * 64)


def test_bundled_record_is_of_the_bundled_network(exported: Path, tmp_path: Path) -> None:
    record, model = record_for(sha256(BUNDLED_WEIGHTS)), onnx.load(exported)
    assert list(record.amax) == tensors_of(model) and list(record.outputs) == output_tensors(model.graph)
    assert BUNDLED_RECORD.read_text(encoding="utf-8") == record.to_text()
    assert len(np.unique(labels_of(quantize(model, record), tmp_path))) > 1


def test_calibration_cache_of_tensorrt_10() -> None:
    assert make_record({"normalised": 127.0, "initial.act/Max": 2.54}).to_trt_cache("10.3.0") == (
        "TRT-100300-EntropyCalibration2\nnormalised: 3f800000\ninitial.act/Max: 3ca3d70a\n"  # 1.0 and 0.02
    )
    assert make_record({}).to_trt_cache("10.16.1") == "TRT-101601-EntropyCalibration2\n"


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("11.0.0", "'11.0.0', expected 10.x"),
        ("abc", "'abc', expected MAJOR.MINOR.PATCH"),
        ("10.3", "'10.3', expected MAJOR.MINOR.PATCH"),
        ("", "'', expected MAJOR.MINOR.PATCH"),
    ],
)
def test_version_without_a_calibration_cache(version: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_record({"a": 1.0}).to_trt_cache(version)


# --- images and ranges -------------------------------------------------------------------------------------------


def test_sample_is_spread_over_all_images() -> None:
    files = [Path(f"{i:03}.png") for i in range(367)]
    chosen = ranges.sample(files, 100)
    assert chosen == ranges.sample(files, 100) == sorted(set(chosen)) and len(chosen) == 100
    assert (chosen[0], chosen[-1]) == (files[0], files[-1])
    assert set(np.diff([files.index(file) for file in chosen])) == {3, 4}
    assert ranges.sample(files, 1000) == files and ranges.sample(files[:4], 4) == files[:4]


@pytest.mark.parametrize(("there", "asked", "message"), [(1, 100, "1 image "), (3, 9, "3 images"), (9, 2, "2 images")])
def test_too_few_images(there: int, asked: int, message: str) -> None:
    with pytest.raises(InputError, match=rf"{message}.* expected at least 4"):
        ranges.sample([Path(f"{i}.png") for i in range(there)], asked)


def test_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    digests = set()
    for name, content in (("a.png", b"1"), ("b.png", b"1"), ("a.png", b"2")):
        (tmp_path / name).write_bytes(content)
        digests.add(ranges.digest([tmp_path / name]))
    assert len(digests) == 3
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.png").write_bytes(b"2")
    assert ranges.digest([tmp_path / "new" / "a.png"]) in digests  # in whatever folder
    assert ranges.digest([tmp_path / "a.png", tmp_path / "b.png"]) not in digests


def magnitudes(model: onnx.ModelProto, tensors: list[str], images: list[Path]) -> dict[str, npt.NDArray[np.float32]]:
    """All that a tensor holds, over the images, as ONNX Runtime computes it when left to change nothing."""
    ort = pytest.importorskip("onnxruntime")
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in tensors)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    frames = [cv2.resize(read_image(image), graph_metadata(model, "").size[::-1]) for image in images]
    values = [session.run(tensors, {"frames": frame[None]}) for frame in frames]
    return {t: np.abs(np.concatenate([v[i].ravel() for v in values])) for i, t in enumerate(tensors)}


def test_minmax_is_the_largest_magnitude(model: onnx.ModelProto, record: Record, images: list[Path]) -> None:
    values = magnitudes(model, list(record.amax), images)
    assert record.amax == {tensor: float(magnitude.max()) for tensor, magnitude in values.items()}


def test_other_methods_clip(monkeypatch: pytest.MonkeyPatch, images: list[Path]) -> None:
    monkeypatch.setitem(ranges.BINS, "entropy", 300)  # its search is slow
    model = least_graph()
    tensors = tensors_of(model)
    seen: list[str] = []

    def progress(items: Sequence[Path], title: str) -> Sequence[Path]:
        seen.append(title)
        return items

    found = ranges.find_ranges(model, tensors, images, SMALL, ["mse", "entropy", "percentile", "minmax"], progress)
    assert list(found) == ["mse", "entropy", "percentile", "minmax"]
    assert len(seen) == 3  # percentile and mse come from one pass
    values = magnitudes(model, tensors, images)
    for method, amax in found.items():
        assert list(amax) == tensors
        for tensor in tensors:
            assert 0 < amax[tensor] <= found["minmax"][tensor] * 1.001, (method, tensor)
    for tensor in tensors:
        bin_ = values[tensor].max() / 1000
        outside = [np.mean(values[tensor] > found["percentile"][tensor] + step) for step in (bin_, -bin_)]
        assert outside[0] <= 1e-4 <= outside[1] + 1 / values[tensor].size


@pytest.mark.parametrize("method", METHODS)
def test_tensor_that_is_always_zero_has_a_range(
    method: str, monkeypatch: pytest.MonkeyPatch, images: list[Path]
) -> None:
    monkeypatch.setitem(ranges.BINS, "entropy", 300)
    model = least_graph()
    (bias,) = (i for i in model.graph.initializer if i.name == "stage1.0.branch.0.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(8, -1e6, np.float32), bias.name))  # what follows is dead
    (amax,) = ranges.find_ranges(model, ["stage1.0.branch.1/Relu"], images, SMALL, [method])[method].values()
    assert np.isfinite(amax) and amax > 0


def squared_error(values: npt.NDArray[np.float64], amax: float) -> float:
    step = amax / 127
    return float(np.mean((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2))


def test_least_squares_finds_the_least_squared_error() -> None:
    rng = np.random.default_rng(0)
    uniform = rng.uniform(0, 3, 20000)
    assert ranges.least_squares(*np.histogram(uniform, 2048, (0, 3))) == pytest.approx(3, rel=0.02)  # nothing to clip

    outlier = np.append(np.abs(rng.normal(size=20000)), 60.0)
    for values in (np.abs(rng.normal(size=20000)), rng.exponential(size=20000), outlier):
        amax = ranges.least_squares(*np.histogram(values, 2048, (0, values.max())))
        least = min(squared_error(values, trial) for trial in np.linspace(0.02, 1, 300) * values.max())
        assert amax < 0.95 * values.max()
        assert squared_error(values, amax) <= 1.02 * least
        assert squared_error(values, amax) < squared_error(values, values.max())


# --- what int8 costs ---------------------------------------------------------------------------------------------


def test_evaluator_by_labels(model: onnx.ModelProto, quantized: onnx.ModelProto, scenes: Path, exported: Path) -> None:
    pairs = []
    for image, labels in open_data(scenes, "val"):
        labels = cv2.resize(labels, (160, 120), interpolation=cv2.INTER_NEAREST)  # of another size than the graph
        labels[:, :20] = CAMVID.ignore_id
        pairs.append((cv2.resize(image, (160, 120)), labels))
    confusion = ConfusionMatrix(CAMVID)
    with open_runner(exported) as runner:
        for image, labels in pairs:
            confusion.update(labels, runner.segment(image))
    evaluator = Evaluator(model, pairs, CAMVID)
    assert (evaluator.measure, evaluator.count, evaluator.float_value) == ("miou", 4, confusion.scores().miou)
    assert evaluator.score(model, "again") == Score(evaluator.float_value, float("inf"), 1.0)
    score = evaluator.score(quantized, "int8")
    assert 0 < score.value != evaluator.float_value and 0 < score.snr < 60
    assert evaluator.drop(score) == pytest.approx(100 * (evaluator.float_value - score.value))


def test_evaluator_by_agreement_where_there_are_no_labels(
    model: onnx.ModelProto, quantized: onnx.ModelProto, tmp_path: Path
) -> None:
    evaluator = Evaluator(model, [(street_scene(1000 + i, SIZE)[0], None) for i in range(2)], CAMVID)
    assert (evaluator.measure, evaluator.float_value) == ("agreement", 1.0)
    expected = np.mean(labels_of(model, tmp_path) == labels_of(quantized, tmp_path))
    assert evaluator.score(quantized, "int8").value == pytest.approx(expected, abs=1e-3)


class Costs(Evaluator):
    """A evaluator by whom each layer in int8 costs what the test says, in points, and whose titles are remembered."""

    measure, count, float_value, sha256 = "miou", 4, 0.8, "these images"

    def __init__(self, **points: float) -> None:
        self.points = {name.replace("_", "."): value for name, value in points.items()}
        self.titles: list[str] = []

    def score(self, model: onnx.ModelProto, title: str) -> Score:
        self.titles.append(title)
        cost = sum(self.points.get(name, 0.0) for name in in_int8(model))
        return Score(round(self.float_value - cost / 100, 9), 40.0 - cost, 0.9)

    def drop(self, score: Score) -> float:
        return round(super().drop(score), 9)


LAYERS = ["initial.conv", "stage1.0.branch.0", "stage1.0.branch.2", "stage1.1", "fullconv"]
POINTS = {"stage1_1": 2.0, "fullconv": 9.0, "stage1_0_branch_0": 0.5}


def test_sensitivity_of_each_layer_alone(tmp_path: Path) -> None:
    model = least_graph()
    assert list(layers(model.graph)) == LAYERS
    sensitivities = measure_sensitivity(model, small_record(model).ranges, Costs(**POINTS), tmp_path / "state.json")
    assert sensitivities[:3] == [  # worst first, and those that stay float by default too
        LayerSensitivity("fullconv", 9.0, 31.0),
        LayerSensitivity("stage1.1", 2.0, 38.0),
        LayerSensitivity("stage1.0.branch.0", 0.5, 39.5),
    ]
    assert sorted(each.layer for each in sensitivities) == sorted(LAYERS)


def interrupt_at(layer: str) -> Callable[[Sequence[str], str], Iterator[str]]:
    def progress(names: Sequence[str], _title: str) -> Iterator[str]:
        for name in names:
            if name == layer:
                raise KeyboardInterrupt
            yield name

    return progress


def test_study_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    model = least_graph()
    record = small_record(model)
    undisturbed = measure_sensitivity(model, record.ranges, Costs(**POINTS), tmp_path / "undisturbed.json")
    first, second = Costs(**POINTS), Costs(**POINTS)
    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(model, record.ranges, first, tmp_path / "state.json", interrupt_at(LAYERS[2]))
    assert measure_sensitivity(model, record.ranges, second, tmp_path / "state.json") == undisturbed
    assert (first.titles, second.titles) == (LAYERS[:2], LAYERS[2:])

    other = dataclasses.replace(record, amax={tensor: 2 * amax for tensor, amax in record.amax.items()})
    third = Costs(**POINTS)
    measure_sensitivity(model, other.ranges, third, tmp_path / "state.json")
    assert third.titles == LAYERS  # another study is begun anew


def test_study_of_other_images_is_begun_anew(tmp_path: Path) -> None:
    model, other = least_graph(), Costs(fullconv=1.0)
    measure_sensitivity(model, small_record(model).ranges, Costs(**POINTS), tmp_path / "state.json")
    other.sha256 = "other images"
    sensitivities = measure_sensitivity(model, small_record(model).ranges, other, tmp_path / "state.json")
    assert other.titles == LAYERS and sensitivities[0] == LayerSensitivity("fullconv", 1.0, 39.0)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff"])
def test_damaged_state_of_a_study(tmp_path: Path, content: bytes) -> None:
    model = least_graph()
    (tmp_path / "state.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"state\.json"):
        measure_sensitivity(model, small_record(model).ranges, Costs(), tmp_path / "state.json")
    assert (tmp_path / "state.json").read_bytes() == content


def kept_within(points: float, evaluator: Costs, folder: Path) -> tuple[Record, Score]:
    model = least_graph()
    record = small_record(model)
    score = evaluator.score(quantize(model, record), "int8")
    float_layers, score = keep_budget(
        model,
        record.ranges,
        record.float_layers,
        score,
        evaluator,
        lambda: measure_sensitivity(model, record.ranges, evaluator, folder / "state.json"),
        points,
    )
    return dataclasses.replace(record, float_layers=float_layers), score


def test_worst_layers_are_left_in_float_until_the_budget_holds(tmp_path: Path) -> None:
    record, score = kept_within(0.6, Costs(**POINTS, stage1_0_branch_2=0.05), tmp_path)
    assert score.value == pytest.approx(0.8 - 0.0055)
    left = {name: why for name, why in record.float_layers.items() if name not in FLOAT_LAYERS}
    assert left == {
        "stage1.1": "alone in int8 it costs 2.00 points of miou (logits at 38.0 dB); "
        "with it in float int8 costs 0.55 instead of 2.55"
    }
    assert in_int8(quantize(least_graph(), record)) == {"stage1.0.branch.0", "stage1.0.branch.2"}

    record, score = kept_within(0.1, Costs(**POINTS, stage1_0_branch_2=0.05), tmp_path)
    assert list(record.float_layers)[len(FLOAT_LAYERS) :] == ["stage1.1", "stage1.0.branch.0"]


def test_budget_that_holds_costs_no_study(tmp_path: Path) -> None:
    evaluator = Costs(**POINTS)
    record, score = kept_within(2.5, evaluator, tmp_path)
    assert (record, evaluator.drop(score), evaluator.titles) == (small_record(least_graph()), 2.5, ["int8"])


def test_budget_that_never_holds(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"1\.00 points of miou, expected at most 0\.3"):
        kept_within(0.3, Costs(stage1_0_branch_0=1.0, stage1_0_branch_2=1.0, stage1_1=1.0), tmp_path)


SENSITIVITIES = [LayerSensitivity("fullconv", 1.25, 12.34), LayerSensitivity("stage1.1", -0.01, 200.0)]


def test_table_of_sensitivities(tmp_path: Path) -> None:
    write_table(tmp_path / "table.md", SENSITIVITIES, ["stage1.1"], "miou")
    assert (tmp_path / "table.md").read_text() == (
        "| layer, alone in int8 | miou, points | logits, dB | in the record |\n|---|---|---|---|\n"
        "| fullconv | -1.250 | 12.3 | float |\n| stage1.1 | +0.010 | 200.0 | int8 |\n"
    )


@pytest.mark.parametrize(("name", "start"), [("plot.png", b"\x89PNG"), ("plot.svg", b"<?xml")])
def test_plot_of_sensitivities(tmp_path: Path, name: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    write_plot(tmp_path / name, SENSITIVITIES, ["stage1.1", "fullconv"], ["stage1.1"], "miou")
    assert (tmp_path / name).read_bytes().startswith(start)
    assert [file.name for file in tmp_path.iterdir()] == [name]


# --- the command line --------------------------------------------------------------------------------------------


def use(monkeypatch: pytest.MonkeyPatch, model: onnx.ModelProto) -> None:
    """What the exporter will give, at once, instead of making it anew and at the trained size."""

    def made(*_args: object, **_options: object) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy

    monkeypatch.setattr(sys.modules[build_graph.__module__], "build_graph", made)


@pytest.fixture
def ready(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, model)


@pytest.fixture
def least(monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    model = least_graph()
    use(monkeypatch, model)
    return model


@pytest.mark.usefixtures("ready")
def test_from_images_to_an_int8_graph(
    scenes: Path,
    weights: Path,
    model: onnx.ModelProto,
    images: list[Path],
    record: Record,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, cache = tmp_path / "new" / "record.json", tmp_path / "cache" / "enet.cache"
    arguments = [str(scenes), "--method", "minmax", "--images", "4", "--out", str(out), "--trt-cache", str(cache)]
    assert cli.main(arguments) == 0
    made, printed = Record.read(out), capsys.readouterr()
    assert made.weights_sha256 == sha256(weights) and made.method == "minmax"
    frames = ranges.frame_range(images, SIZE)
    known = {"count": 4, "split": "train", "sha256": ranges.digest(images), "of_outputs": 4, "frames": frames}
    assert made.images == known
    assert made.preprocessing["size"] == [*SIZE] and len(made.preprocessing["mean"]) == 3
    assert made.amax == pytest.approx(record.amax, rel=1e-5) and list(made.amax) == list(record.amax)
    assert made.float_layers == FLOAT_LAYERS and made.versions["onnx"] == onnx.__version__
    accuracy = made.accuracy
    assert (accuracy["measure"], accuracy["images"]) == ("miou", 4)
    assert accuracy["tried"] == {"minmax": accuracy["int8"]} and 0 < accuracy["fp32"] < 1
    assert cache.read_text() == made.to_trt_cache("10.3.0")
    assert made.outputs.keys() == record.outputs.keys()
    of_ort = accuracy["ort"]
    assert f"in ONNX Runtime's layout (enet-export --int8 --target ort): {of_ort['int8']:.4f} (" in printed.out
    share = f"{len(quantized_layers(model.graph, FLOAT_LAYERS))} of {len(layers(model.graph))} layers in int8"
    assert f"{out}  minmax ranges of 4 images, {share}; miou on 4 images: fp32 0." in printed.out
    assert not printed.err and [file.name for file in out.parent.iterdir()] == ["record.json"]

    arguments = ["--int8", "--calibration", str(out), "--size", "96x128", "--max-disagreement", "1"]
    assert export_cli.main([*arguments, "--out", str(tmp_path / "export")]) == 0
    metadata = graph_metadata(onnx.load(tmp_path / "export" / "enet-int8.onnx"), "the graph")
    assert metadata.precision == "int8"
    calibration = {"sha256": sha256(out), "method": "minmax", "images": 4, "frames": made.images["frames"]}
    assert metadata.details["calibration"] == {**calibration, "target": "all"}

    assert export_cli.main([*arguments, "--target", "ort", "--out", str(tmp_path / "export")]) == 0
    metadata = graph_metadata(onnx.load(tmp_path / "export" / "enet-int8-ort.onnx"), "the graph")
    assert metadata.precision == "int8"
    assert metadata.details["calibration"] == {**calibration, "target": "ort"}


@pytest.mark.usefixtures("least")
def test_all_methods_are_tried_and_the_best_is_kept(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a folder of images without labels, twice the same."""
    monkeypatch.setitem(ranges.BINS, "entropy", 300)
    out = [tmp_path / name for name in ("first.json", "second.json")]
    for path in out:
        assert cli.main([str(scenes / "train"), "--images", "5", "--out", str(path)]) == 0
    assert out[0].read_bytes() == out[1].read_bytes()
    record, printed = Record.read(out[0]), capsys.readouterr().out
    tried = record.accuracy["tried"]
    assert list(tried) == list(METHODS) and tried[record.method] == max(tried.values())
    assert record.accuracy["int8"] == tried[record.method] < record.accuracy["fp32"] == 1
    assert record.accuracy["measure"] == "agreement"
    assert record.accuracy["images"] == 3  # not those that the ranges come from
    assert "agreement with fp32" in printed


def test_sensitivity_and_a_budget(
    scenes: Path,
    least: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys.modules[Evaluator.__module__], "Evaluator", lambda *_: Costs(**POINTS))
    made = [tmp_path / "record.json", tmp_path / "kept.json"]
    arguments = [str(scenes), "--images", "4", "--method", "minmax", "--sensitivity", str(tmp_path / "study")]
    assert cli.main([*arguments, "--out", str(made[0])]) == 0
    printed = capsys.readouterr().out
    assert Record.read(made[0]).float_layers == FLOAT_LAYERS
    assert "--max-drop 0.3" in printed
    assert "stage1.1                    -2.000 points of miou, logits at 38.0 dB" in printed
    assert {file.name for file in (tmp_path / "study").iterdir()} == {f"sensitivity.{s}" for s in ("json", "md", "png")}

    arguments = [str(scenes), "--images", "4", "--record", str(made[0]), "--max-drop", "0.6", "--out", str(made[1])]
    assert cli.main(arguments) == 0
    kept = Record.read(made[1])
    assert kept.amax == Record.read(made[0]).amax
    assert list(kept.float_layers) == [*FLOAT_LAYERS, "stage1.1"] and kept.accuracy["int8"] == 0.795
    assert in_int8(quantize(least, kept)) == {"stage1.0.branch.0", "stage1.0.branch.2"}
    assert "2 of 5 layers in int8; miou on 4 images: fp32 0.8000, int8 0.7950 (-0.50 points)" in capsys.readouterr().out


def test_cache_for_tensorrt_needs_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = record_for(sha256(BUNDLED_WEIGHTS))
    assert cli.main(["--trt-cache", str(tmp_path / "enet.cache"), "--trt-version", "10.7.0"]) == 0
    assert (tmp_path / "enet.cache").read_text() == record.to_trt_cache("10.7.0")
    assert "calibration cache of TensorRT 10.7.0, 84 tensors" in capsys.readouterr().out
    cached = {line.rsplit(": ", 1)[0] for line in (tmp_path / "enet.cache").read_text().splitlines()[1:]}
    assert cached == record.amax.keys() - set(record.float_tensors)  # 84 of 94: no range, no int8
    assert "stage5.0.act/Relu" not in cached and "stage4.1.act/Relu" in cached


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where to write: nothing else is in the folder."""
    return tmp_path / "out" / "record.json"


def refused(arguments: Sequence[object], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says on its one line when it refuses, having written nothing."""
    try:
        code: object = cli.main([*map(str, arguments)])
    except SystemExit as stopped:  # by argparse
        code = stopped.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("enet-calibrate: error: ") and error.count("\n") == 1
    assert not out.parent.exists()
    return error


@pytest.mark.usefixtures("least")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "DATA"),
        (["{scenes}/none"], "/none has neither a folder 'train'"),
        (["{scenes}", "--split", "test"], "folder 'test'"),
        (["{scenes}", "--images", "2"], "2 images"),
        (["{scenes}", "--record", "{scenes}/none.json"], "none.json does not exist"),
        (["--trt-cache", "{out}2", "--weights", "none.safetensors"], "none.safetensors"),
        (["{scenes}", "--trt-cache", "{out}"], "record.json"),
        (["--trt-cache", "{out}2", "--trt-version", "11.0.0"], "11.0.0"),
        (["--trt-cache", "{out}2", "--record", "{scenes}/train/scene0000.png"], "scene0000.png"),
        (["{scenes}", "--record", "r.json", "--method", "mse"], "--method mse with --record r.json"),
        (["--trt-cache", "{out}2", "--max-drop", "1"], "--max-drop"),
        (["{scenes}", "--record", "{out}"], "record.json would write over "),
        (["{scenes}", "--max-drop", "-1"], "--max-drop -1.0"),
    ],
)
def test_refusals(
    arguments: list[str], message: str, scenes: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [argument.format(scenes=scenes, out=out) for argument in arguments]
    assert message in refused([*filled, "--out", out], out, capsys)


@pytest.mark.usefixtures("least")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # Found by this test: each was refused after all was measured, or not at all
        (["--trt-cache", "{cache}", "--trt-version", "11.0.0"], "11.0.0"),
        (["--sensitivity", "{file}/study"], "{file}/study"),
        (["--max-drop", "nan"], "--max-drop nan"),
    ],
)
def test_refusals_before_the_long_work(
    arguments: list[str],
    message: str,
    scenes: Path,
    tmp_path: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("measured first")

    monkeypatch.setattr(ranges, "find_ranges", measured)
    (tmp_path / "file").write_text("not a folder")
    filled = [argument.format(file=tmp_path / "file", cache=tmp_path / "enet.cache") for argument in arguments]
    assert message.format(file=tmp_path / "file") in refused([scenes, *filled, "--out", out], out, capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("option", ["--out", "--trt-cache"])
@pytest.mark.usefixtures("least")
def test_folder_that_cannot_be_made(
    option: str, scenes: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    arguments = [scenes, "--out", out, option, tmp_path / "file" / "folder" / "record"]
    assert f"{tmp_path}/file/folder/record" in refused(arguments, out, capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def spoil_one_image(data: Path) -> str:
    for image in sorted((data / "train").iterdir())[1:]:
        image.unlink()
    return "1 image "


def spoil_no_labels(data: Path) -> str:
    sorted((data / "valannot").iterdir())[1].unlink()
    return "scene1001.png"


def spoil_classes(data: Path) -> str:
    names = [f"class {i}" for i in range(12)]
    (data / "classes.json").write_text(json.dumps({"names": names, "colors": [[0, 0, i] for i in range(12)]}))
    return "class 0, class 1"


def spoil_an_image(data: Path) -> str:
    (data / "train" / "scene0000.png").write_bytes(b"no image")
    return "scene0000.png"


def spoil_a_label(data: Path) -> str:
    cv2.imwrite(str(data / "valannot" / "scene1000.png"), np.full(SIZE, 77, np.uint8))
    return "77"


@pytest.mark.usefixtures("least")
@pytest.mark.parametrize("spoil", [spoil_one_image, spoil_no_labels, spoil_classes, spoil_an_image, spoil_a_label])
def test_refused_data(
    spoil: Callable[[Path], str], scenes: Path, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    message = spoil(data)
    assert message in refused([data, "--images", "4", "--out", out], out, capsys)


def test_interrupted_study_is_said_and_kept(
    scenes: Path,
    least: onnx.ModelProto,
    tmp_path: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small_record(least).write(tmp_path / "record.json")
    monkeypatch.setattr(
        cli.console, "progress", lambda items, title: interrupt_at(LAYERS[3])(items, "") if title == "layers" else items
    )
    arguments = [scenes, "--images", 4, "--record", tmp_path / "record.json", "--sensitivity", tmp_path / "study"]
    assert cli.main([*map(str, arguments), "--out", str(out)]) == 130
    assert "interrupted" in capsys.readouterr().err and not out.exists()
    kept = json.loads((tmp_path / "study" / "sensitivity.json").read_text())
    assert [layer["layer"] for layer in kept["layers"]] == LAYERS[:3]
