"""The accuracy of a quantised graph: mIoU if there are labels, else agreement with the float graph."""

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

from enet_deploy import trained_on
from enet_deploy.artifacts import graph_metadata, save_graph
from enet_deploy.classes import ClassList
from enet_deploy.data import DataSet
from enet_deploy.images import UInt8Array
from enet_deploy.metrics import ConfusionMatrix
from enet_deploy.runners import Runner, open_runner

Pair = tuple[UInt8Array, UInt8Array | None]  # image (h, w, 3) uint8 BGR, labels (h, w) uint8 or None
SNR_BYTES = 256 << 20  # logits of the float graph kept in memory: 35 frames at 360x480, at least one


@dataclass(frozen=True)
class Score:
    """The accuracy of a graph.

    Attributes:
        value: mIoU or agreement, in [0, 1]; see `Evaluator.measure`.
        snr: signal-to-noise ratio of the logits, against the float graph's, in dB.
        agreement: share of pixels with the float graph's label, in [0, 1]. enet-export has a limit for it.
    """

    value: float
    snr: float
    agreement: float


class Evaluator:
    """Scores quantised forms of one float graph on one set of images, with ONNX Runtime on the CPU.

    Args:
        model: the float graph, frames (1, H, W, 3) -> labels and logits.
        pairs: images (h, w, 3) uint8 BGR with labels (h, w) uint8, or all with None.
        classes: the classes of the labels.
        progress: wraps the pairs of one run; called with its title.

    Attributes:
        measure: "miou" if there are labels, else "agreement".
        pairs: as above.
        count: number of images.
        float_value: score of the float graph itself.
        trained_on: how many of the images its weights were trained on; None if they do not say.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        pairs: Sequence[Pair] | DataSet,
        classes: ClassList,
        progress: Callable[[Any, str], Iterable[Pair]] = lambda pairs, _: pairs,
    ) -> None:
        self.pairs, self._classes, self._progress = pairs, classes, progress
        self.measure = "agreement" if pairs[0][1] is None else "miou"
        self._labels: list[UInt8Array] = []
        self._digest = hashlib.sha256()
        self._logits: list[npt.NDArray[np.float32]] = []
        self._hashes: list[str] = []
        self.count = len(pairs)
        self.float_value = self.score(model, "fp32").value
        self.trained_on = trained_on.count(graph_metadata(model, "the graph").trained_on, self._hashes)

    @property
    def choose_by(self) -> str:
        """What good ranges are told by: `measure`, or "agreement" if the weights were trained on some of the images.

        On such images mIoU is fit: it hardly changes with the ranges, and says little about other images.
        """
        return "agreement" if self.trained_on else self.measure

    def merit(self, score: Score) -> float:
        """Return the figure of `choose_by`, in [0, 1]; the higher, the better."""
        return score.value if self.choose_by == self.measure else score.agreement

    def drop(self, score: Score) -> float:
        """Return what quantising costs, in points (hundredths) of the measure."""
        return 100 * (self.float_value - score.value)

    @property
    def sha256(self) -> str:
        """Hash of the images' labels and of the float graph's outputs on them; identifies a study."""
        return self._digest.hexdigest()

    def to_json(self, score: Score) -> dict[str, Any]:
        """Return the part of `Record.accuracy` that describes this score."""
        return {
            "measure": self.measure,
            "images": self.count,
            "trained_on": self.trained_on,
            "fp32": round(self.float_value, 6),
            "int8": round(score.value, 6),
            "agreement": round(score.agreement, 6),
        }

    def score(self, model: onnx.ModelProto, title: str) -> Score:
        """Run a graph on all images. The first graph, the float one, is the reference for the others."""
        confusion = ConfusionMatrix(self._classes)
        signal = noise = same = 0.0
        first = not self._labels
        with tempfile.TemporaryDirectory() as folder:
            save_graph(model, Path(folder) / "graph.onnx")
            with open_runner(Path(folder) / "graph.onnx", "ort") as runner:
                for index, (image, truth) in enumerate(self._progress(self.pairs, title)):
                    logits = runner.logits(runner.preprocess(image))
                    labels = logits[0].argmax(axis=0).astype(np.uint8)
                    if first:
                        self._hashes.append(trained_on.pixel_hash(image))
                        self._keep(labels, logits, truth)
                    same += float((labels == self._labels[index]).mean())
                    if index < len(self._logits):
                        signal += float(np.square(self._logits[index]).sum(dtype=np.float64))
                        noise += float(np.square(logits - self._logits[index]).sum(dtype=np.float64))
                    self._count(confusion, runner, index, labels, truth)
        scores = confusion.scores()
        value = scores.miou if self.measure == "miou" else scores.pixel_accuracy
        return Score(value, 10 * math.log10(signal / noise) if noise else math.inf, same / self.count)

    def _keep(self, labels: UInt8Array, logits: npt.NDArray[np.float32], truth: UInt8Array | None) -> None:
        """Keep the outputs of the float graph as the reference."""
        self._labels.append(labels)
        self._digest.update(logits.tobytes() + (b"" if truth is None else truth.tobytes()))
        if not self._logits or (len(self._logits) + 1) * logits.nbytes <= SNR_BYTES:
            self._logits.append(logits)

    def _count(
        self, confusion: ConfusionMatrix, runner: Runner, index: int, labels: UInt8Array, truth: UInt8Array | None
    ) -> None:
        if truth is None:
            confusion.update(self._labels[index], labels)
        else:
            confusion.update(truth, runner.postprocess(labels, (truth.shape[0], truth.shape[1])))
