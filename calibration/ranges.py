"""Images -> the range of each tensor, measured with ONNX Runtime's calibrators."""

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
from enet_deploy.fit import Fit, fit_image
from enet_deploy.frame_range import measure
from enet_deploy.images import UInt8Array, read_content, read_image

PERCENTILE = 99.99  # share of the magnitudes inside the range, in percent
BINS = {"percentile": 2048, "entropy": 512}  # the entropy search is quadratic in them, in Python
LEVELS = 255  # values of symmetric int8
LEAST_IMAGES = 4


def sample(images: Sequence[Path], count: int) -> list[Path]:
    """Return `count` images, spread evenly over the sorted list, or all if there are fewer.

    Raises InputError if there are fewer than `LEAST_IMAGES`.
    """
    if min(len(images), count) < LEAST_IMAGES:
        raise InputError(
            f"{min(len(images), count)} image{'s' * (min(len(images), count) != 1)} to calibrate with, expected at "
            f"least {LEAST_IMAGES}, better 100: ranges of so few images do not hold for others"
        )
    return spread(images, count)


def digest_of_files(images: Iterable[Path]) -> str:
    """Return the SHA-256 over names and contents of these files, in hex."""
    total = hashlib.sha256()
    for image in images:
        total.update(os.fsencode(image.name) + b"\0" + hashlib.sha256(read_content(image)).digest())
    return total.hexdigest()


def frame_range(images: Iterable[Path], size: tuple[int, int]) -> dict[str, float]:
    """Return {"contrast": least, "noise": largest} of these files at `size` = (H, W), to make a `FrameRange` of."""
    contrasts, noises = zip(*(measure(read_image(image), size) for image in images), strict=True)
    return {"contrast": round(min(contrasts), 2), "noise": round(max(noises), 3)}


def find_ranges(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    images: Sequence[Path],
    size: tuple[int, int],
    methods: Sequence[str],
    progress: Callable[[Sequence[Path], str], Iterable[Path]] = lambda images, _: images,
    fit: Fit = "stretch",
) -> dict[str, dict[str, float]]:
    """Measure the range of each tensor by each method. Returns method -> tensor -> amax.

    Args:
        model: a float32 graph, frames (1, H, W, 3) uint8.
        tensors: names of the tensors.
        images: image files; each is resized to `size` = (H, W), as `fit` says.
        methods: some of `record.METHODS`. "minmax" takes the largest magnitude; "percentile" leaves 0.01 % of the
            values outside; "entropy" loses the least information (KL divergence, Migacz, "8-bit inference with
            TensorRT", GTC 2017); "mse" has the smallest mean squared error of rounding and clipping.
        progress: wraps the images of one pass; called with its title.
    """
    found: dict[str, dict[str, float]] = {}
    # percentile and mse come from one histogram
    for kind in dict.fromkeys("percentile" if method == "mse" else method for method in methods):
        with tempfile.TemporaryDirectory() as folder:
            calibrator = _calibrator(kind, model, tensors, Path(folder))
            for image in progress(images, f"{kind} ranges"):
                frame = fit_image(read_image(image), size, fit)[None]
                # One image at a time: a call keeps all its values in memory before it counts them
                _quietly(calibrator.collect_data, _Reader(frame))
            if kind in methods:
                ranges = _quietly(calibrator.compute_data)
                found[kind] = {t: _amax(*ranges[t].range_value) for t in tensors}
            if kind == "percentile" and "mse" in methods:
                histograms = calibrator.collector.get_histogram_dict()
                found["mse"] = {t: least_squares(*histograms[t][:2]) for t in tensors}
    return {method: found[method] for method in methods}


def least_squares(counts: npt.NDArray[Any], edges: npt.NDArray[Any]) -> float:
    """Return the amax with the smallest squared error of int8, for a histogram of magnitudes.

    Args:
        counts, edges: histogram as from `numpy.histogram`, with edges from 0 up; from -0.5 to 0.5 for a tensor that is
            always zero.
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
    """One frame, in the form that ONNX Runtime's calibrators read."""

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
    # By default it selects tensors by type of operation: twice as many as need a range
    calibrator.select_tensors_to_calibrate = lambda _: (set(tensors), infos)
    calibrator.augment_graph()
    calibrator.create_inference_session()
    return calibrator


def _quietly(call: Callable[..., Any], *args: Any) -> Any:
    """Call without output: ONNX Runtime's calibrators print their progress."""
    with contextlib.redirect_stdout(io.StringIO()):
        return call(*args)


def _amax(low: Any, high: Any) -> float:
    """Return the larger magnitude. A tensor that is always zero gets 1, because any scale is correct for it."""
    amax = max(abs(float(np.min(low))), abs(float(np.max(high))))
    return amax or 1.0
