"""Clean-up of the graph that torch.onnx exports: meaningful names, no traces of the machine, no needless operations."""

from __future__ import annotations

import ast
import re
from collections import Counter

import numpy as np
import onnx


def name_by_module(graph: onnx.GraphProto) -> None:
    """Name operations, tensors and weights by their place in the network: "stage2.3.branch.0/Conv" for "conv2d_41".

    Profiles, calibration records and TensorRT's messages use these names. So they must have a meaning, and must not
    depend on the exporter's counters.
    """
    names = {value.name: value.name for value in (*graph.input, *graph.output)}
    for initializer in graph.initializer:
        names[initializer.name] = initializer.name = _module_path(initializer.name)
    seen: Counter[str] = Counter()
    for node in graph.node:
        scopes = ast.literal_eval({p.key: p.value for p in node.metadata_props}["pkg.torch.onnx.name_scopes"])
        base = "/".join(filter(None, (_module_path(scopes[-2]), node.op_type)))
        node.name = f"{base}_{seen[base]}" if seen[base] else base
        seen[base] += 1
        (output,) = node.output
        names.setdefault(output, re.sub(r"(\.pool)/MaxPool_1$", r"\1/winners", node.name))
        if node.name == "initial.conv/Conv":  # fp16 and fp32 graphs make this tensor with different operations
            names[node.input[0]] = "normalised"
    for node in graph.node:
        node.input[:] = [names[name] if name else "" for name in node.input]
        node.output[:] = [names[name] for name in node.output]


def _module_path(name: str) -> str:
    """Return a module's path within the network, given its path within the exported module."""
    return re.sub(r"^(segmenter\.?)?(net\.?)?", "", name)


def clean(model: onnx.ModelProto) -> None:
    """Remove stack traces, file paths and notes of the exporter, and operations and constants that are not needed."""
    graph = model.graph
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, graph, model):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.value_info[:]
    _compare_without_casts(graph)
    _share_equal_constants(graph)
    remove_unused_initializers(graph)
    _separate_biases(graph)


def remove_unused_initializers(graph: onnx.GraphProto) -> None:
    """Remove the initializers that no node of the graph takes."""
    used = {name for node in graph.node for name in node.input}
    for initializer in [i for i in graph.initializer if i.name not in used]:
        graph.initializer.remove(initializer)


def _compare_without_casts(graph: onnx.GraphProto) -> None:
    """Let Equal compare fp16 tensors directly. The exporter casts both sides to fp32, which only costs time."""
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    constants = {i.name: i for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "Equal" and any(name in casts for name in node.input):
            for name in node.input:
                if name in constants:  # a plane of ranks: the exporter has already cast it
                    half = onnx.numpy_helper.to_array(constants[name]).astype(np.float16)
                    constants[name].CopyFrom(onnx.numpy_helper.from_array(half, name))
            node.input[:] = [casts[name].input[0] if name in casts else name for name in node.input]
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for cast in casts.values():
        if cast.output[0] not in used:
            graph.node.remove(cast)


def _share_equal_constants(graph: onnx.GraphProto) -> None:
    """Let equal constants be one constant. The exporter writes a new plane of ranks for each unpooling."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same = {
        i.name: first.setdefault((i.data_type, tuple(i.dims), onnx.numpy_helper.to_array(i).tobytes()), i.name)
        for i in graph.initializer
    }
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]


def _separate_biases(graph: onnx.GraphProto) -> None:
    """Give each convolution its own bias. OpenVINO does not fuse a bias that several convolutions share."""
    biases = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    used: set[str] = set()
    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) > 2:
            if node.input[2] in used:
                own = f"{node.name.removesuffix('/Conv')}.bias"
                graph.initializer.append(onnx.numpy_helper.from_array(biases[node.input[2]], own))
                node.input[2] = own
            used.add(node.input[2])
