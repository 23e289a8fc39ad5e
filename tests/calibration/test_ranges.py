"""The images that are measured, and the ranges that each method finds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from helpers import SMALL, least_graph
from int8_graphs import tensors_of
from onnx import numpy_helper

from enet_deploy.artifacts import graph_metadata
from enet_deploy.calibration import ranges
from enet_deploy.errors import InputError
from enet_deploy.export.record import METHODS, Record
from enet_deploy.images import read_image


def test_sample_is_spread_over_all_images() -> None:
    files = [Path(f"{i:03}.png") for i in range(367)]
    chosen = ranges.sample(files, 100)
    assert chosen == ranges.sample(files, 100) == sorted(set(chosen)) and len(chosen) == 100
    assert (chosen[0], chosen[-1]) == (files[0], files[-1])
    assert set(np.diff([files.index(file) for file in chosen])) == {3, 4}
    assert ranges.sample(files, 1000) == files and ranges.sample(files[:4], 4) == files[:4]


@pytest.mark.parametrize(("there", "asked", "message"), [(1, 100, "1 image "), (3, 9, "3 images"), (9, 2, "2 images")])
def test_too_few_images(there: int, asked: int, message: str) -> None:
    with pytest.raises(InputError, match=rf"{message}.* expected at least 4"):
        ranges.sample([Path(f"{i}.png") for i in range(there)], asked)


def test_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    digests = set()
    for name, content in (("a.png", b"1"), ("b.png", b"1"), ("a.png", b"2")):
        (tmp_path / name).write_bytes(content)
        digests.add(ranges.digest_of_files([tmp_path / name]))
    assert len(digests) == 3
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "a.png").write_bytes(b"2")
    assert ranges.digest_of_files([tmp_path / "new" / "a.png"]) in digests  # in whatever folder
    assert ranges.digest_of_files([tmp_path / "a.png", tmp_path / "b.png"]) not in digests


def magnitudes(model: onnx.ModelProto, tensors: list[str], images: list[Path]) -> dict[str, npt.NDArray[np.float32]]:
    """All values of each tensor over the images, as ONNX Runtime computes them without optimisation."""
    ort = pytest.importorskip("onnxruntime")
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in tensors)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    frames = [cv2.resize(read_image(image), graph_metadata(model, "").size[::-1]) for image in images]
    values = [session.run(tensors, {"frames": frame[None]}) for frame in frames]
    return {t: np.abs(np.concatenate([v[i].ravel() for v in values])) for i, t in enumerate(tensors)}


def test_minmax_is_the_largest_magnitude(model: onnx.ModelProto, record: Record, images: list[Path]) -> None:
    values = magnitudes(model, list(record.amax), images)
    assert record.amax == {tensor: float(magnitude.max()) for tensor, magnitude in values.items()}


def test_other_methods_clip(monkeypatch: pytest.MonkeyPatch, images: list[Path]) -> None:
    monkeypatch.setitem(ranges.BINS, "entropy", 300)  # its search is slow
    model = least_graph()
    tensors = tensors_of(model)
    seen: list[str] = []

    def progress(items: Sequence[Path], title: str) -> Sequence[Path]:
        seen.append(title)
        return items

    found = ranges.find_ranges(model, tensors, images, SMALL, ["mse", "entropy", "percentile", "minmax"], progress)
    assert list(found) == ["mse", "entropy", "percentile", "minmax"]
    assert len(seen) == 3  # percentile and mse come from one pass
    values = magnitudes(model, tensors, images)
    for method, amax in found.items():
        assert list(amax) == tensors
        for tensor in tensors:
            assert 0 < amax[tensor] <= found["minmax"][tensor] * 1.001, (method, tensor)
    for tensor in tensors:
        bin_ = values[tensor].max() / 1000
        outside = [np.mean(values[tensor] > found["percentile"][tensor] + step) for step in (bin_, -bin_)]
        assert outside[0] <= 1e-4 <= outside[1] + 1 / values[tensor].size


@pytest.mark.parametrize("method", METHODS)
def test_tensor_that_is_always_zero_has_a_range(
    method: str, monkeypatch: pytest.MonkeyPatch, images: list[Path]
) -> None:
    monkeypatch.setitem(ranges.BINS, "entropy", 300)
    model = least_graph()
    (bias,) = (i for i in model.graph.initializer if i.name == "stage1.0.branch.0.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(8, -1e6, np.float32), bias.name))  # what follows is dead
    (amax,) = ranges.find_ranges(model, ["stage1.0.branch.1/Relu"], images, SMALL, [method])[method].values()
    assert np.isfinite(amax) and amax > 0


def squared_error(values: npt.NDArray[np.float64], amax: float) -> float:
    step = amax / 127
    return float(np.mean((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2))


def test_least_squares_finds_the_least_squared_error() -> None:
    rng = np.random.default_rng(0)
    uniform = rng.uniform(0, 3, 20000)
    assert ranges.least_squares(*np.histogram(uniform, 2048, (0, 3))) == pytest.approx(3, rel=0.02)  # nothing to clip

    outlier = np.append(np.abs(rng.normal(size=20000)), 60.0)
    for values in (np.abs(rng.normal(size=20000)), rng.exponential(size=20000), outlier):
        amax = ranges.least_squares(*np.histogram(values, 2048, (0, values.max())))
        least = min(squared_error(values, trial) for trial in np.linspace(0.02, 1, 300) * values.max())
        assert amax < 0.95 * values.max()
        assert squared_error(values, amax) <= 1.02 * least
        assert squared_error(values, amax) < squared_error(values, values.max())
