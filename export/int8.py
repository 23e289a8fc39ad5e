"""Float graph + calibration record -> explicit Q/DQ graph.

All quantisation is symmetric, with one scale per activation tensor and one per output channel of a weight. The backends
disagree on where QuantizeLinear/DequantizeLinear pairs must be. So there are three layouts (`QdqLayout`):

"all" runs on every backend: int8, zero points 0, no quantised bias. Pairs are

- on the input and the weights of each quantised convolution: Q/DQ + Conv becomes an int8 convolution in TensorRT and
  OpenVINO. Its output has no pair: BatchNorm is folded, the activation is computed in float, and the pair of the next
  convolution follows it. TensorRT's guide recommends this for the fusion of Conv + activation + Q.
- on the other operand of a sum after a quantised convolution: TensorRT and OpenVINO fuse Conv + Add only if the added
  operand is int8 too. If both operands come from convolutions, the first one, the shortcut, gets the pair.
- on no tensor that decides the unpooling: pooling and winners use the float tensor, the convolution beside them uses
  the pair, and the sum before them adds floats. (With a pair there, OpenVINO moves its scale behind the sum, and in
  fp16 compares a rounded tensor with an unrounded one: 92 % of fp32's labels instead of 99 %.)

"openvino" has one more pair, on the output of the convolution that is added. OpenVINO then computes convolution, sum,
activation and rounding in one kernel; without that pair it does not fuse the sum, because it finds a multiplication
(the scale of the weights) between the convolution and its bias (`isSuitableParentForFusingSumActivation` in OpenVINO's
snippets_mark_skipped.cpp). TensorRT fuses better without it, so "all" does not have it.

"ort" is for ONNX Runtime's CPU kernels, and TensorRT refuses it. These kernels have int8 inputs and int8 outputs only.
So there is also a pair behind each quantised convolution, sum and activation, and biases are int32. An operation that
lacks one of them is computed in float and its weights are dequantised at each call, which is what ONNX Runtime does
with the layout "all". Activations are uint8 with zero point 128; behind a ReLU with zero point 0, so that the rounding
includes the ReLU. The second pooling decides on rounded values, because its input exists as int8 only. Max with a slope
per channel has no int8 kernel: this layout is for networks with one slope per layer.

On x86 without VNNI, ONNX Runtime's kernels for uint8 with int8 overflow unless `session.x64quantprecision` is set, as
this project's runner does there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from enet_deploy.artifacts import QdqLayout, graph_metadata, set_graph_metadata
from enet_deploy.errors import ArtifactError, InputError

from .graph import remove_unused_initializers
from .record import Record

# Operation that can be quantised -> axis of the output channels in its weights
CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1}

# Layers that calibration leaves in float from the start: pattern -> reason. The export follows the record alone
FLOAT_LAYERS = {
    "initial.*": "3 input channels: no faster in int8, and what the first pooling decides on",
    "bottleneck4_0.branch.2": "transposed convolution: int8 kernels for it are slow, wrong or missing",
    "bottleneck5_0.branch.*": "4 channels within: too few for int8 kernels",
    "stage5.*": "4 channels within, at half the frame's size: conversions would cost more than they save",
    "fullconv*": "its outputs are compared with each other by the argmax",
}
FLOAT_FOR_ORT = {  # the same in the layout "ort", in addition
    "bottleneck?_0.shortcut.0": "the unpooling behind it is float, and faster in the layout of a float convolution",
}
_INT8_OF = {"fp32": "int8", "fp16": "fp16-int8"}


def layers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return the layers that can be quantised: path of the module, such as "stage2.3.branch.0" -> its node."""
    return {node.name.rpartition("/")[0]: node for node in graph.node if node.op_type in CHANNEL_AXIS}


def quantized_layers(graph: onnx.GraphProto, float_layers: Iterable[str]) -> dict[str, onnx.NodeProto]:
    """Return `layers` without those that match a name or pattern in `float_layers`."""
    patterns = list(float_layers)
    return {
        name: node
        for name, node in layers(graph).items()
        if not any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def activations(
    graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto], qdq_layout: QdqLayout = "all"
) -> dict[str, list[onnx.NodeProto]]:
    """Return the tensors that get a pair if `nodes` are quantised -> the operations that take the pair's output.

    In the order of the graph. Other operations may take the same tensor without the pair.
    """
    quantized = {node.name for node in nodes}
    if qdq_layout == "ort":
        return _for_ort(graph, quantized)
    return _for_sums(graph, quantized, both_operands=qdq_layout == "openvino")


def _for_sums(graph: onnx.GraphProto, quantized: set[str], both_operands: bool) -> dict[str, list[onnx.NodeProto]]:
    outputs = {node.output[0] for node in graph.node if node.name in quantized}
    made = {output for node in graph.node for output in node.output}
    pooled = _pooled_sums(graph)
    takers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.name in quantized:
            takers.setdefault(node.input[0], []).append(node)
        if node.op_type == "Add" and set(node.input) <= made and outputs & set(node.input) and node.name not in pooled:
            for name in node.input if both_operands else set(node.input) - outputs or node.input[:1]:
                takers.setdefault(name, []).append(node)
    return takers


def _pooled_sums(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the sums that are pooled, directly or after their activation."""
    makers = {output: node for node in graph.node for output in node.output}
    tensors = [node.input[0] for node in graph.node if node.op_type == "MaxPool"]
    sums = set()
    for tensor in tensors:
        maker = makers.get(tensor)
        if maker is not None and maker.op_type == "Add":
            sums.add(maker.name)
        elif maker is not None and maker.op_type in ("LeakyRelu", "Max", "Mul", "PRelu", "Relu"):
            tensors.extend(maker.input)
    return sums


def _for_ort(graph: onnx.GraphProto, quantized: set[str]) -> dict[str, list[onnx.NodeProto]]:
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    made = {output for node in graph.node for output in node.output}
    computed: set[str] = set()  # tensors that int8 kernels compute
    takers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        follows = node.op_type in ("Add", "LeakyRelu", "Relu") and computed & set(node.input) and made >= {*node.input}
        if node.name in quantized or follows:
            for name in node.input if follows else node.input[:1]:
                if name not in computed:  # computed in float, and taken as float by others
                    takers.setdefault(name, []).append(node)
            (output,) = node.output
            computed.add(output)
            if [user.op_type for user in users[output]] != ["Relu"]:  # a single ReLU is part of this kernel
                takers[output] = users[output]
    return takers


def float_tensors(graph: onnx.GraphProto, float_layers: Iterable[str]) -> list[str]:
    """Return the tensors that get no pair because these layers stay float."""
    chosen = activations(graph, quantized_layers(graph, float_layers).values())
    return [tensor for tensor in activations(graph, layers(graph).values()) if tensor not in chosen]


def quantize(
    model: onnx.ModelProto, record: Record, source: str | Path = "the graph", qdq_layout: QdqLayout = "all"
) -> onnx.ModelProto:
    """Return an int8 copy of a float graph, with the record in its metadata. Errors name the graph `source`.

    Raises InputError for an fp16 graph in the layout "ort", whose kernels need float32 scales, or if no layer is left
    to quantise; ArtifactError if the graph is quantised already, or if the record is of other weights or of another
    form of the network.
    """
    metadata = graph_metadata(model, source)
    if metadata.precision not in _INT8_OF:
        raise ArtifactError(f"{source} is {metadata.precision} already, expected fp32 or fp16; quantise the float one")
    if qdq_layout == "ort" and metadata.precision != "fp32":
        raise InputError(
            f"{source} is {metadata.precision}, expected fp32: ONNX Runtime's int8 kernels need it; "
            "export without --fp16"
        )
    record.require_weights(metadata.weights_sha256, "the calibration record")
    _require_tensors(model.graph, record)
    result = quantized_copy(model, record.ranges, record.float_layers, qdq_layout)
    calibration = {
        "sha256": record.sha256, "method": record.method, "images": record.images["count"], "target": qdq_layout
    }  # fmt: skip
    if "frames" in record.images:
        calibration["frames"] = record.images["frames"]
    details = {**metadata.details, "calibration": calibration}
    metadata = dataclasses.replace(metadata, precision=_INT8_OF[metadata.precision], details=details)
    set_graph_metadata(result, metadata)
    return result


def quantized_copy(
    model: onnx.ModelProto, ranges: dict[str, float], float_layers: Iterable[str], qdq_layout: QdqLayout = "all"
) -> onnx.ModelProto:
    """Return a copy of a float graph in which all but these layers are quantised. Its metadata is not changed.

    Args:
        ranges: tensor -> largest magnitude that int8 represents.

    Raises InputError if no layer is left to quantise.
    """
    chosen = quantized_layers(model.graph, in_float(float_layers, qdq_layout))
    if not chosen:
        raise InputError(
            f"float_layers of the record{' and of this layout' * (qdq_layout == 'ort')} covers every layer, expected "
            "some to quantise; export without --int8"
        )
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = layers(result.graph)
    insert_pairs(result.graph, [nodes[name] for name in chosen], ranges, qdq_layout)
    return result


def in_float(float_layers: Iterable[str], qdq_layout: QdqLayout) -> list[str]:
    """Return the layers, or patterns of layers, that stay float in a layout, given those of the record."""
    return [*float_layers, *(FLOAT_FOR_ORT if qdq_layout == "ort" else ())]


def output_tensors(graph: onnx.GraphProto) -> list[str]:
    """Return the tensors that get a pair only in the layout "ort", if every layer is quantised."""
    everything = list(layers(graph).values())
    both = activations(graph, everything)
    return [tensor for tensor in activations(graph, everything, "ort") if tensor not in both]


def _require_tensors(graph: onnx.GraphProto, record: Record) -> None:
    wanted = {*activations(graph, layers(graph).values()), *output_tensors(graph)}
    for what, names in (
        ("ranges for tensors that this graph does not have", record.ranges.keys() - wanted),
        ("no ranges for tensors that this graph has", wanted - record.ranges.keys()),
    ):
        if names:
            raise ArtifactError(
                f"the calibration record has {what}: {min(names)} ({len(names)} in all); it was made for another form "
                "of the network: make it again with this version, enet-calibrate DATA --weights WEIGHTS --out RECORD"
            )


def insert_pairs(
    graph: onnx.GraphProto, nodes: list[onnx.NodeProto], ranges: dict[str, float], qdq_layout: QdqLayout = "all"
) -> None:
    """Quantise `nodes` of `graph` in place. `ranges`: tensor -> largest magnitude that int8 represents."""
    initializers = {i.name: i for i in graph.initializer}
    dtype = numpy_helper.to_array(initializers[nodes[0].input[1]]).dtype
    kinds = {output: node.op_type for node in graph.node for output in node.output}
    zeros = {
        "int8": _add(graph, "zero_point", np.zeros((), np.int8)),
        "uint8": _add(graph, "zero_point/128", np.full((), 128, np.uint8)),
        "positive": _add(graph, "zero_point/0", np.zeros((), np.uint8)),
    }
    scales: dict[str, np.ndarray] = {}  # dequantised tensor -> its scale
    after: dict[str, list[onnx.NodeProto]] = {}  # tensor -> nodes to insert behind its maker
    for tensor, takers in activations(graph, nodes, qdq_layout).items():
        positive = qdq_layout == "ort" and kinds[tensor] == "Relu"
        kind = "positive" if positive else "uint8" if qdq_layout == "ort" else "int8"
        step = np.asarray(max(ranges[tensor] / (255 if positive else 127), np.finfo(dtype).tiny), dtype)
        pair = _pair(tensor, _add(graph, f"{tensor}/scale", step), zeros[kind])
        scales[pair[1].output[0]] = step
        after[tensor] = pair
        for taker in takers:
            taker.input[:] = [pair[1].output[0] if name == tensor else name for name in taker.input]
    ordered = []
    for name in dict.fromkeys(node.input[1] for node in nodes):  # several layers may share equal weights
        users = [node for node in nodes if node.input[1] == name]
        least = _least_scale(users, initializers, scales) if qdq_layout == "ort" else 0.0
        node, scales[node.output[0]] = _weights(graph, users, initializers[name], least)
        ordered.append(node)
    if qdq_layout == "ort":
        ordered += _biases(graph, nodes, initializers, scales)
    for node in graph.node:
        ordered += [node, *(new for output in node.output for new in after.get(output, ()))]
    del graph.node[:]
    graph.node.extend(ordered)
    remove_unused_initializers(graph)


def _add(graph: onnx.GraphProto, name: str, values: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def _pair(tensor: str, scale: str, zero: str) -> list[onnx.NodeProto]:
    return [
        onnx.helper.make_node("QuantizeLinear", [tensor, scale, zero], [f"{tensor}/int8"], f"{tensor}/QuantizeLinear"),
        onnx.helper.make_node(
            "DequantizeLinear", [f"{tensor}/int8", scale, zero], [f"{tensor}/dequantized"], f"{tensor}/DequantizeLinear"
        ),
    ]


def _weights(
    graph: onnx.GraphProto, users: list[onnx.NodeProto], weight: onnx.TensorProto, least: npt.ArrayLike
) -> tuple[onnx.NodeProto, np.ndarray]:
    """Store the weights of `users` as int8.

    Returns the DequantizeLinear node, which the backend folds into its kernel, and the scale.
    """
    axis = CHANNEL_AXIS[users[0].op_type]
    values, scale = quantize_weights(numpy_helper.to_array(weight), axis, least)
    inputs = [
        _add(graph, f"{weight.name}/int8", values),
        _add(graph, f"{weight.name}/scale", scale),
        _add(graph, f"{weight.name}/zero_point", np.zeros(scale.shape, np.int8)),
    ]
    for node in users:
        node.input[1] = f"{weight.name}/dequantized"
    name = f"{weight.name}/DequantizeLinear"
    return onnx.helper.make_node("DequantizeLinear", inputs, [f"{weight.name}/dequantized"], name, axis=axis), scale


def _least_scale(
    users: list[onnx.NodeProto], initializers: dict[str, onnx.TensorProto], scales: dict[str, np.ndarray]
) -> npt.NDArray[np.float64]:
    """Return the smallest scale per output channel for which int32 can hold the biases of `users`."""
    least = np.zeros(1)
    for node in users:
        if len(node.input) > 2:
            bias = np.abs(numpy_helper.to_array(initializers[node.input[2]]).astype(np.float64))
            least = np.maximum(least, bias / 2**30 / scales[node.input[0]])
    return least


def _biases(
    graph: onnx.GraphProto,
    nodes: list[onnx.NodeProto],
    initializers: dict[str, onnx.TensorProto],
    scales: dict[str, np.ndarray],
) -> list[onnx.NodeProto]:
    """Store the biases of `nodes` as int32, with the scale of the sums: input scale times weight scale."""
    new = []
    for node in nodes:
        if len(node.input) > 2:
            step = scales[node.input[0]] * scales[node.input[1]]
            steps = np.rint(numpy_helper.to_array(initializers[node.input[2]]).astype(np.float64) / step)
            inputs = [
                _add(graph, f"{node.name}/bias/int32", steps.astype(np.int32)),
                _add(graph, f"{node.name}/bias/scale", step),
            ]
            node.input[2] = f"{node.name}/bias/dequantized"
            name = f"{node.name}/bias/DequantizeLinear"
            new.append(onnx.helper.make_node("DequantizeLinear", inputs, [node.input[2]], name, axis=0))
    return new


def quantize_weights(weights: np.ndarray, axis: int, least: npt.ArrayLike = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Return weights as int8 in [-127, 127], and a scale per channel along `axis` in the weights' dtype.

    The scale is rounded to that dtype before it is used, so that the backend multiplies with exactly the divisor. A
    channel that is zero, or too small for an fp16 scale, becomes zeros with scale `least` or 1. No scale is below
    `least`.
    """
    others = tuple(a for a in range(weights.ndim) if a != axis)
    scale = (np.abs(weights.astype(np.float32)).max(axis=others) / 127).astype(weights.dtype)
    least = np.asarray(least)
    scale = np.where(scale < np.finfo(weights.dtype).tiny, np.where(least > 0, least, 1), np.maximum(scale, least))
    scale = scale.astype(weights.dtype)
    shape = [-1 if a == axis else 1 for a in range(weights.ndim)]
    steps = np.rint(weights.astype(np.float32) / scale.astype(np.float32).reshape(shape))
    return np.clip(steps, -127, 127).astype(np.int8), scale
