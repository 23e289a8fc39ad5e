"""Fit the temperature that makes the confidences of a network honest.

Networks that were trained to the end are too sure of themselves. Logits divided by one number, the temperature, before
the softmax give the same labels and better probabilities (Guo et al., 2017).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from enet_deploy.artifacts import save_graph
from enet_deploy.data import DataSet
from enet_deploy.fit import fit_labels
from enet_deploy.images import UInt8Array
from enet_deploy.reliability import Reliability
from enet_deploy.runners import Runner, open_runner

from .scoring import Pair

STEP = 5  # only every STEP-th row and column is used: neighbouring pixels are nearly the same
_RANGE = (0.05, 20.0)  # of temperatures

Floats = npt.NDArray[np.float32]


def fit_confidence(
    model: onnx.ModelProto,
    pairs: Sequence[Pair] | DataSet,
    progress: Callable[[Any, str], Iterable[Pair]] = lambda pairs, _: pairs,
) -> dict[str, Any]:
    """Fit a temperature on the first half of the pairs, and return it with its effect on the second half.

    Halves and not every second image: frames of a drive resemble their neighbours.

    Args:
        model: a graph frames (1, H, W, 3) -> labels and logits.
        pairs: images with labels, at least two.
        progress: wraps the pairs; called with a title.

    Returns {"temperature", "fitted_on": images, "measured_on": images, "error_before", "error_after"}, the errors as in
    `Reliability.error`; or {} if a half has no labelled pixel.
    """
    half = len(pairs) // 2
    with tempfile.TemporaryDirectory() as folder:
        save_graph(model, Path(folder) / "graph.onnx")
        with open_runner(Path(folder) / "graph.onnx", "ort") as runner:
            runs = progress(pairs, "confidence")
            sampled = [_sample(runner, image, truth) for image, truth in runs if truth is not None]
    fitted, measured = _joined(sampled[:half]), _joined(sampled[half:])
    if not (fitted[1].size and measured[1].size):
        return {}
    temperature = float(f"{fit_temperature(*fitted):.4g}")
    return {
        "temperature": temperature,
        "fitted_on": half,
        "measured_on": len(pairs) - half,
        "error_before": round(_error(*measured, 1.0), 6),
        "error_after": round(_error(*measured, temperature), 6),
    }


def fit_temperature(logits: Floats, labels: UInt8Array) -> float:
    """Return the temperature at which the labels (K) are likeliest, given logits (K, C) of these pixels.

    The likelihood is concave in 1 / temperature, so its slope has one zero, which is found by halving.
    """
    true = float(np.take_along_axis(logits, labels[:, None].astype(np.int64), 1).mean())
    low, high = (1 / _RANGE[1], 1 / _RANGE[0])
    for _ in range(40):
        middle = (low * high) ** 0.5
        expected = float((_softmax(logits * middle) * logits).sum(axis=1).mean())
        low, high = (middle, high) if expected < true else (low, middle)
    return float(1 / (low * high) ** 0.5)


def _sample(runner: Runner, image: UInt8Array, truth: UInt8Array) -> tuple[Floats, UInt8Array]:
    """Return the logits (K, C) and true labels (K) of a grid of pixels that have a label."""
    logits = runner.logits(runner.preprocess(image))[0]
    spec = runner.spec
    labels = fit_labels(truth, spec.size, spec.fit, spec.classes.void)[::STEP, ::STEP]
    grid = np.moveaxis(logits[:, ::STEP, ::STEP], 0, -1)
    known = labels < len(runner.spec.classes)
    return grid[known], labels[known].astype(np.uint8)


def _joined(sampled: Sequence[tuple[Floats, UInt8Array]]) -> tuple[Floats, UInt8Array]:
    return np.concatenate([logits for logits, _ in sampled]), np.concatenate([labels for _, labels in sampled])


def _error(logits: Floats, labels: UInt8Array, temperature: float) -> float:
    probability = _softmax(logits / temperature)
    reliability = Reliability()
    reliability.update((probability.max(axis=1) * 255 + 0.5).astype(np.uint8), probability.argmax(axis=1) == labels)
    return reliability.error


def _softmax(logits: Floats) -> Floats:
    exponentials: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    total: Floats = exponentials.sum(axis=1, keepdims=True)
    return exponentials / total
