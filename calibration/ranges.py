"""Images -> the range of each tensor, by ONNX Runtime's calibrators."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from enet_deploy.data import spread
from enet_deploy.errors import InputError
from enet_deploy.images import UInt8Array, read_image, resize_image

PERCENTILE = 99.99  # of the magnitudes that stay inside
BINS = {"percentile": 2048, "entropy": 512}  # entropy's search takes their square, in Python
LEVELS = 255  # of symmetric int8
LEAST_IMAGES = 4


def sample(images: Sequence[Path], count: int) -> list[Path]:
    """`count` of the images, spread evenly over the sorted list; all of them where there are no more.

    Raises InputError where there are fewer than `LEAST_IMAGES`.
    """
    if min(len(images), count) < LEAST_IMAGES:
        raise InputError(
            f"{min(len(images), count)} image{'s' * (min(len(images), count) != 1)} to calibrate with, expected at "
            f"least {LEAST_IMAGES} and better 100: ranges of so few do not hold for the next"
        )
    return spread(images, count)


def digest(images: Iterable[Path]) -> str:
    """SHA-256 over names and contents."""
    total = hashlib.sha256()
    for image in images:
        total.update(os.fsencode(image.name) + b"\0" + hashlib.sha256(image.read_bytes()).digest())
    return total.hexdigest()


def find_ranges(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    images: Sequence[Path],
    size: tuple[int, int],
    methods: Sequence[str],
    progress: Callable[[Sequence[Path], str], Iterable[Path]] = lambda images, _: images,
) -> dict[str, dict[str, float]]:
    """Range of each tensor by each method: method -> tensor -> amax.

    Args:
        model: a float32 graph, frames (1, H, W, 3) uint8.
        tensors: whose range is wanted.
        images: files; each is resized to `size` = (H, W).
        methods: of `record.METHODS`. "minmax" takes the largest magnitude seen; "percentile" leaves 0.01 % of the
            values outside; "entropy" loses the least information (KL divergence, Migacz, "8-bit inference with
            TensorRT", GTC 2017); "mse" makes the mean squared error of rounding and clipping least.
        progress: wraps the images of a pass, with its title.
    """
    found: dict[str, dict[str, float]] = {}
    # percentile and mse come from one histogram
    for kind in dict.fromkeys("percentile" if method == "mse" else method for method in methods):
        with tempfile.TemporaryDirectory() as folder:
            calibrator = _calibrator(kind, model, tensors, Path(folder))
            for image in progress(images, f"{kind} ranges"):
                frame = resize_image(read_image(image), size)[None]
                # One at a time: what a pass collects is kept whole until it is counted
                _quietly(calibrator.collect_data, _Reader(frame))
            if kind in methods:
                ranges = _quietly(calibrator.compute_data)
                found[kind] = {t: _amax(*ranges[t].range_value) for t in tensors}
            if kind == "percentile" and "mse" in methods:
                histograms = calibrator.collector.get_histogram_dict()
                found["mse"] = {t: least_squares(*histograms[t][:2]) for t in tensors}
    return {method: found[method] for method in methods}


def least_squares(counts: npt.NDArray[Any], edges: npt.NDArray[Any]) -> float:
    """The amax that makes the squared error of int8 least, of a histogram of magnitudes.

    Args:
        counts, edges: as `numpy.histogram` gives them, edges from 0 up; of a tensor that is always zero they are
            from -0.5 to 0.5.
    """
    centers = (edges[:-1] + edges[1:]).astype(np.float64) / 2
    best, least = float(edges[-1]), np.inf
    candidates = edges[max(1, len(counts) // 64) :: max(1, len(counts) // 256)].astype(np.float64)
    for amax in candidates[candidates > 0]:
        step = amax / 127
        error = float((counts * (np.clip(np.rint(centers / step), 0, 127) * step - centers) ** 2).sum())
        if error < least:
            best, least = float(amax), error
    return best


class _Reader:
    """One frame, as ONNX Runtime's calibrators read data."""

    def __init__(self, frame: UInt8Array) -> None:
        self._feed: dict[str, UInt8Array] | None = {"frames": frame}

    def get_next(self) -> dict[str, UInt8Array] | None:
        feed, self._feed = self._feed, None
        return feed


def _calibrator(kind: str, model: onnx.ModelProto, tensors: Sequence[str], folder: Path) -> Any:
    from onnxruntime.quantization import calibrate

    onnx.save(model, folder / "model.onnx")
    augmented = str(folder / "augmented.onnx")
    options: dict[str, Any] = {"augmented_model_path": augmented, "symmetric": True}
    made = {
        "minmax": lambda: calibrate.MinMaxCalibrater(folder / "model.onnx", **options),
        "percentile": lambda: calibrate.PercentileCalibrater(
            folder / "model.onnx", **options, num_bins=BINS["percentile"], percentile=PERCENTILE
        ),
        "entropy": lambda: calibrate.EntropyCalibrater(
            folder / "model.onnx", **options, num_bins=BINS["entropy"], num_quantized_bins=LEVELS
        ),
    }
    calibrator = made[kind]()
    infos = {value.name: value for value in calibrator.model.graph.value_info}
    # It selects by kind of operation, and would collect twice as many tensors as get a scale
    calibrator.select_tensors_to_calibrate = lambda _: (set(tensors), infos)
    calibrator.augment_graph()
    calibrator.create_inference_session()
    return calibrator


def _quietly(call: Callable[..., Any], *args: Any) -> Any:
    """ONNX Runtime's calibrators print as they go."""
    with contextlib.redirect_stdout(io.StringIO()):
        return call(*args)


def _amax(low: Any, high: Any) -> float:
    """Symmetric: the larger magnitude. A tensor that is always zero gets 1: any scale is right for it."""
    amax = max(abs(float(np.min(low))), abs(float(np.max(high))))
    return amax or 1.0
