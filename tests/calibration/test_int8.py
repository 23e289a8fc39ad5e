"""The int8 graph: rounded weights, and where the pairs of QuantizeLinear and DequantizeLinear stand."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from helpers import SMALL, least_graph
from int8_graphs import PAIR, arrays, in_int8, labels_of, nodes_of, small_record
from onnx import helper, numpy_helper

from enet_deploy import open_runner
from enet_deploy.artifacts import QdqLayout, graph_metadata
from enet_deploy.data.scenes import street_scene
from enet_deploy.errors import ArtifactError, InputError
from enet_deploy.export import cli as export_cli
from enet_deploy.export.int8 import (
    FLOAT_FOR_ORT,
    FLOAT_LAYERS,
    insert_pairs,
    layers,
    quantize,
    quantize_weights,
    quantized_layers,
)
from enet_deploy.export.record import Record

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
    for node in sums:  # Conv + Add is one kernel only if the other operand is int8 too
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


@pytest.mark.slow
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


@pytest.mark.slow
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
