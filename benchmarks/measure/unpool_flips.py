"""Unpool flips: how often a graph's max-pooling chooses another element of a window than PyTorch does in fp32.

The decoder puts each value back where the encoder took it from, so a flip moves a value by one pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from enet_deploy.images import UInt8Array

STAGES = ("bottleneck1_0", "bottleneck2_0")

Winners = dict[str, npt.NDArray[np.uint8]]  # stage -> (C, H, W): 4, 3, 2 or 1 for a window's first to fourth element


def flips(weights: Path, graphs: list[Path], frames: list[UInt8Array]) -> dict[Path, dict[str, float] | None]:
    """Graph -> stage -> share of windows whose winner differs from PyTorch's.

    Args:
        weights: the graphs were exported from these.
        graphs: .onnx files; ONNX Runtime runs them on the CPU.
        frames: each (1, H, W, 3) uint8 BGR, of the graphs' size.

    The share is None for a graph that does not name its winners, such as one of an earlier version.
    """
    expected = list(_of_weights(weights, frames))
    return {graph: _share(expected, _of_graph(graph, frames)) for graph in graphs}


def _share(expected: list[Winners], found: Iterator[Winners] | None) -> dict[str, float] | None:
    if found is None:
        return None
    pairs = list(zip(expected, found, strict=True))
    return {stage: float(np.mean([(a[stage] != b[stage]).mean() for a, b in pairs])) for stage in STAGES}


def _of_weights(weights: Path, frames: list[UInt8Array]) -> Iterator[Winners]:
    import torch

    from enet_deploy.model import Segmenter
    from enet_deploy.weights import load_weights

    net, metadata = load_weights(weights)
    segmenter = Segmenter(net, metadata.mean, metadata.std).eval()
    winners: Winners = {}
    for stage in STAGES:

        def keep(_: torch.nn.Module, inputs: Any, outputs: Any, stage: str = stage) -> None:
            winners[stage] = _code(outputs[1][0].numpy(), inputs[0].shape[-1])  # the indices of the first image

        net.get_submodule(f"{stage}.pool").register_forward_hook(keep)
    with torch.inference_mode():
        for frame in frames:
            segmenter(torch.tensor(frame))
            yield dict(winners)


def _code(indices: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.uint8]:
    """PyTorch's indices into the pooled plane, which is `width` wide -> 4, 3, 2 or 1."""
    rows, columns = np.divmod(indices, width)
    code: npt.NDArray[np.uint8] = (4 - 2 * (rows % 2) - columns % 2).astype(np.uint8)
    return code


def _of_graph(path: Path, frames: list[UInt8Array]) -> Iterator[Winners] | None:
    import onnx
    import onnxruntime as ort

    model = onnx.load(path)
    names = [f"{stage}.pool/winners" for stage in STAGES]
    if not set(names) <= {name for node in model.graph.node for name in node.output}:
        return None
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (batch, *_) = session.get_inputs()[0].shape
    copies = batch if isinstance(batch, int) else 1
    runs = (session.run(names, {"frames": np.repeat(frame, copies, axis=0)}) for frame in frames)
    return ({stage: out[0].astype(np.uint8) for stage, out in zip(STAGES, outs, strict=True)} for outs in runs)
