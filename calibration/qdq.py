"""Float graph + calibration record -> explicit Q/DQ graph.

Symmetric int8 throughout, as TensorRT takes it: zero points 0, one scale per activation tensor, one per output channel
of a weight, no quantised bias. Where the pairs stand:

- on what a quantised convolution takes, and on its weights: Q/DQ + Conv becomes an int8 convolution in TensorRT and in
  OpenVINO. Its output gets none: BatchNorm is folded and the activation follows in float, at whose end the next
  convolution's pair stands. That is where TensorRT's guide wants it for the fusion of Conv + activation + Q; PReLU it
  runs as a kernel of its own that ends in Q.
- on the other operand of a sum that a quantised convolution ends in: TensorRT and OpenVINO fuse Conv + Add only where
  the operand that is added is int8 too.
- on no concatenation: ENet's only one (the initial block) joins float branches, and its output meets the next
  convolution's pair.
- on nothing that decides the unpooling: pooling and winners see the float tensor, the convolution beside them its pair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from enet_deploy.artifacts import graph_metadata, set_graph_metadata
from enet_deploy.errors import ArtifactError, InputError

from .record import Record

# Operations that can be quantised -> the axis of the output channels in their weights
CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1}

# What stays float unless a record says otherwise: layers, by pattern, and why
FLOAT_LAYERS = {
    "initial.conv": "3 input channels: below what int8 kernels take, so that it costs conversions and gains nothing",
    "bottleneck4_0.branch.2": "transposed convolution: int8 kernels for it are slow, wrong or missing",
    "bottleneck5_0.branch.*": "4 channels within: too few for int8 kernels",
    "stage5.*": "4 channels within, at half the frame's size: conversions would cost more than they save",
    "fullconv": "its outputs are compared with each other by the argmax",
}
_INT8_OF = {"fp32": "int8", "fp16": "fp16-int8"}


def layers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Layers that can be quantised: path of the module, such as "stage2.3.branch.0" -> its node."""
    return {node.name.rpartition("/")[0]: node for node in graph.node if node.op_type in CHANNEL_AXIS}


def quantized_layers(graph: onnx.GraphProto, float_layers: Iterable[str]) -> dict[str, onnx.NodeProto]:
    """`layers` without those that match a name or pattern of `float_layers`."""
    patterns = list(float_layers)
    return {
        name: node
        for name, node in layers(graph).items()
        if not any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def activations(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> dict[str, list[onnx.NodeProto]]:
    """Tensors that get a pair where `nodes` are quantised -> the operations that take the pair's output.

    In the order of the graph; a tensor may go to others beside these, which take it as it is.
    """
    quantized = {node.name for node in nodes}
    outputs = {node.output[0] for node in graph.node if node.name in quantized}
    made = {output for node in graph.node for output in node.output}
    takers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.name in quantized:
            takers.setdefault(node.input[0], []).append(node)
        if node.op_type == "Add" and set(node.input) <= made and outputs & set(node.input):
            for name in set(node.input) - outputs:
                takers.setdefault(name, []).append(node)
    return takers


def float_tensors(graph: onnx.GraphProto, float_layers: Iterable[str]) -> list[str]:
    """Tensors that would get a pair if every layer were quantised, and get none because `float_layers` are not."""
    chosen = activations(graph, quantized_layers(graph, float_layers).values())
    return [tensor for tensor in activations(graph, layers(graph).values()) if tensor not in chosen]


def quantize(model: onnx.ModelProto, record: Record, source: str | Path = "the graph") -> onnx.ModelProto:
    """A copy of a float graph that computes in int8 where the record says, and says so in its metadata.

    `source` names the graph in errors.

    Raises ArtifactError where the graph is quantised already, came from other weights than the record, or the record
    lacks a tensor of the graph or has one that the graph lacks.
    """
    metadata = graph_metadata(model, source)
    if metadata.precision not in _INT8_OF:
        raise ArtifactError(f"{source} is {metadata.precision} already, expected fp32 or fp16; quantise the float one")
    record.require_weights(metadata.weights_sha256, "the calibration record")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    _require_tensors(graph, record)
    chosen = quantized_layers(graph, record.float_layers)
    if not chosen:
        raise InputError(
            "float_layers of the record covers every layer, expected some to quantise; export without --int8"
        )
    insert_pairs(graph, list(chosen.values()), record.amax)
    calibration = {"sha256": record.sha256, "method": record.method, "images": record.images["count"]}
    metadata = dataclasses.replace(
        metadata,
        precision=_INT8_OF[metadata.precision],
        details={**metadata.details, "calibration": calibration},
    )
    set_graph_metadata(result, metadata)
    return result


def _require_tensors(graph: onnx.GraphProto, record: Record) -> None:
    wanted = activations(graph, layers(graph).values()).keys()
    for what, names in (
        ("ranges for tensors that this graph does not have", record.amax.keys() - wanted),
        ("no ranges for tensors that this graph has", wanted - record.amax.keys()),
    ):
        if names:
            raise ArtifactError(
                f"the calibration record has {what}: {min(names)} ({len(names)} in all); it was made for another form "
                "of the network: make it again with this version, enet-calibrate DATA --weights WEIGHTS --out RECORD"
            )


def insert_pairs(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], amax: dict[str, float]) -> None:
    """Quantise `nodes` of `graph` in place."""
    initializers = {i.name: i for i in graph.initializer}
    zero = _add(graph, "zero_point", np.zeros((), np.int8))
    dtype = numpy_helper.to_array(initializers[nodes[0].input[1]]).dtype
    after: dict[str, list[onnx.NodeProto]] = {}  # tensor -> what is inserted behind its maker
    for tensor, takers in activations(graph, nodes).items():
        scale = _add(graph, f"{tensor}/scale", np.asarray(max(amax[tensor] / 127, np.finfo(dtype).tiny), dtype))
        pair = _pair(tensor, scale, zero)
        after[tensor] = pair
        for taker in takers:
            taker.input[:] = [pair[1].output[0] if name == tensor else name for name in taker.input]
    ordered = []
    for name in dict.fromkeys(node.input[1] for node in nodes):  # equal weights are stored once, for several layers
        users = [node for node in nodes if node.input[1] == name]
        ordered.append(_weights(graph, users, initializers[name]))
    for node in graph.node:
        ordered += [node, *(new for output in node.output for new in after.get(output, ()))]
    del graph.node[:]
    graph.node.extend(ordered)
    used = {name for node in graph.node for name in node.input}
    for initializer in [i for i in graph.initializer if i.name not in used]:
        graph.initializer.remove(initializer)


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


def _weights(graph: onnx.GraphProto, users: list[onnx.NodeProto], weight: onnx.TensorProto) -> onnx.NodeProto:
    """Store the weights of `users` as int8; the node that turns them back, which the backend folds into its kernel."""
    axis = CHANNEL_AXIS[users[0].op_type]
    values, scale = quantize_weights(numpy_helper.to_array(weight), axis)
    inputs = [
        _add(graph, f"{weight.name}/int8", values),
        _add(graph, f"{weight.name}/scale", scale),
        _add(graph, f"{weight.name}/zero_point", np.zeros(scale.shape, np.int8)),
    ]
    for node in users:
        node.input[1] = f"{weight.name}/dequantized"
    name = f"{weight.name}/DequantizeLinear"
    return onnx.helper.make_node("DequantizeLinear", inputs, [f"{weight.name}/dequantized"], name, axis=axis)


def quantize_weights(weights: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights -> int8 in [-127, 127] and a scale per channel along `axis`, of the weights' dtype.

    The scale is rounded to that dtype first, so that what is divided by is what will be multiplied with. A channel of
    zeros, or one too small for a half's scale, becomes zeros of scale 1.
    """
    others = tuple(a for a in range(weights.ndim) if a != axis)
    scale = (np.abs(weights.astype(np.float32)).max(axis=others) / 127).astype(weights.dtype)
    scale[scale < np.finfo(weights.dtype).tiny] = 1
    shape = [-1 if a == axis else 1 for a in range(weights.ndim)]
    steps = np.rint(weights.astype(np.float32) / scale.astype(np.float32).reshape(shape))
    return np.clip(steps, -127, 127).astype(np.int8), scale
