"""How good is a quantised graph? By mIoU where there are labels, else by agreement with the float graph."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from enet_deploy.classes import ClassList
from enet_deploy.data import DataSet
from enet_deploy.images import UInt8Array
from enet_deploy.metrics import ConfusionMatrix
from enet_deploy.runners import Runner, open_runner

Pair = tuple[UInt8Array, UInt8Array | None]  # image (h, w, 3) uint8 BGR, labels (h, w) uint8 or None
SNR_BYTES = 256 << 20  # of logits that are kept: 35 frames at 360x480, never fewer than one


@dataclass(frozen=True)
class Score:
    """How a graph does.

    Attributes:
        value: of the judge's measure, in [0, 1].
        snr: of the logits against the float graph's, in dB.
        agreement: share of pixels with the float graph's label, which enet-export has a limit for.
    """

    value: float
    snr: float
    agreement: float


class Judge:
    """Scores quantised forms of one float graph on one set of images, by ONNX Runtime on the CPU.

    Args:
        model: the float graph, frames (1, H, W, 3) -> labels and logits.
        pairs: images, all with labels or all without.
        progress: wraps the pairs of one run, with its title.

    Attributes:
        measure: "miou" or "agreement".
        count: images.
        float_value: what the float graph itself scores.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        pairs: Sequence[Pair] | DataSet,
        classes: ClassList,
        progress: Callable[[Any, str], Iterable[Pair]] = lambda pairs, _: pairs,
    ) -> None:
        self._pairs, self._classes, self._progress = pairs, classes, progress
        self.measure = "agreement" if pairs[0][1] is None else "miou"
        self._labels: list[UInt8Array] = []
        self._digest = hashlib.sha256()
        self._logits: list[npt.NDArray[np.float32]] = []
        self.count = len(pairs)
        self.float_value = self.score(model, "fp32").value

    def drop(self, score: Score) -> float:
        """What quantising costs, in points (hundredths)."""
        return 100 * (self.float_value - score.value)

    @property
    def sha256(self) -> str:
        """Of what the float graph says to the images: the same for the same study alone."""
        return self._digest.hexdigest()

    def to_json(self, score: Score) -> dict[str, Any]:
        """What a record keeps of it."""
        return {
            "measure": self.measure,
            "images": self.count,
            "fp32": round(self.float_value, 6),
            "int8": round(score.value, 6),
            "agreement": round(score.agreement, 6),
        }

    def score(self, model: onnx.ModelProto, title: str) -> Score:
        """Run a graph on every image; the first to be run, the float one, is what the others are held against."""
        confusion = ConfusionMatrix(self._classes)
        signal = noise = same = 0.0
        first = not self._labels
        with tempfile.TemporaryDirectory() as folder:
            onnx.save(model, Path(folder) / "graph.onnx")
            with open_runner(Path(folder) / "graph.onnx", "ort") as runner:
                for index, (image, truth) in enumerate(self._progress(self._pairs, title)):
                    logits = runner.logits(runner.preprocess(image))
                    labels = logits[0].argmax(axis=0).astype(np.uint8)
                    if first:
                        self._keep(labels, logits)
                    same += float((labels == self._labels[index]).mean())
                    if index < len(self._logits):
                        signal += float(np.square(self._logits[index]).sum(dtype=np.float64))
                        noise += float(np.square(logits - self._logits[index]).sum(dtype=np.float64))
                    self._count(confusion, runner, index, labels, truth)
        scores = confusion.scores()
        value = scores.miou if self.measure == "miou" else scores.pixel_accuracy
        return Score(value, 10 * math.log10(signal / noise) if noise else math.inf, same / self.count)

    def _keep(self, labels: UInt8Array, logits: npt.NDArray[np.float32]) -> None:
        """What the float graph says is what the others are held against."""
        self._labels.append(labels)
        self._digest.update(logits.tobytes())
        if not self._logits or (len(self._logits) + 1) * logits.nbytes <= SNR_BYTES:
            self._logits.append(logits)

    def _count(
        self, confusion: ConfusionMatrix, runner: Runner, index: int, labels: UInt8Array, truth: UInt8Array | None
    ) -> None:
        if truth is None:
            confusion.update(self._labels[index], labels)
        else:
            confusion.update(truth, runner.postprocess(labels, (truth.shape[0], truth.shape[1])))
