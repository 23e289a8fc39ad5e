"""Fixtures: a small data set of drawn street scenes, the bundled weights, and one export of them."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal

# A shell's background jobs ignore the first, `nohup` the second, and so would all child processes of the tests
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks this small lose more to threads that wait for each other

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, SIZE, TEMPERATURE, made_once, write_scenes

import enet_deploy
from enet_deploy import console
from enet_deploy.artifacts import BUNDLED_WEIGHTS

console.FIRST_LINE = float("inf")  # a busy machine would add lines of progress to what tests look at

if Path(enet_deploy.__file__).parent == ROOT / "enet_deploy":  # and not an installed one, which is then tested
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [f"{ROOT}", os.environ.get("PYTHONPATH")]))  # of children


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave what starts Chromium to `make test-docs`."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.docs)


def pytest_collection_finish() -> None:
    gc.freeze()  # what was imported stays to the end; each garbage collection would look through it


@pytest.fixture(scope="session", autouse=True)
def exported_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let PyTorch's exporter, which takes seconds, export equal networks once in a test run."""
    if find_spec("torch") is None:  # in the environment of `make test-ros`
        yield
        return
    import onnx

    from enet_deploy.export import to_onnx

    export = to_onnx._exported_by_torch

    def export_once(module: Any, size: tuple[int, int], batch: int | None) -> onnx.ModelProto:
        def save(folder: Path) -> None:
            onnx.save(export(module, size, batch), folder / "graph.onnx")

        key = to_onnx._key(module, size, batch)
        return onnx.load(made_once(tmp_path_factory, f"exported-{key}", save) / "graph.onnx")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_onnx, "_exported_by_torch", export_once)
        yield


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and four validation scenes of 96x128. Do not write to it."""
    return write_scenes(tmp_path_factory.mktemp("scenes"), {"train": 8, "val": 4})


@pytest.fixture(scope="session")
def weights() -> Path:
    return BUNDLED_WEIGHTS


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """The bundled weights at 96x128, any batch, with logits and confidences. Do not write to its folder."""

    def export(folder: Path) -> None:
        from enet_deploy.export.to_onnx import to_onnx

        to_onnx(weights, folder / "enet-fp32.onnx", size=SIZE, batch=None, logits=True, confidence=TEMPERATURE)

    return made_once(tmp_path_factory, "export", export) / "enet-fp32.onnx"


@pytest.fixture(scope="session")
def quantized_graph(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`exported` in int8, by the bundled record."""

    def write(folder: Path) -> None:
        import onnx

        from enet_deploy.export.int8 import quantize
        from enet_deploy.export.record import BUNDLED_RECORD, Record

        onnx.save(quantize(onnx.load(exported), Record.read(BUNDLED_RECORD)), folder / "enet-int8.onnx")

    return made_once(tmp_path_factory, "int8", write) / "enet-int8.onnx"


@pytest.fixture(scope="session")
def graphs(
    exported: Path, quantized_graph: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Precision -> graph of the bundled weights and record at 96x128, any batch, with logits and confidences.

    Half takes long to export: take `exported` or `quantized_graph` where they will do.
    """

    def write(folder: Path) -> None:
        import onnx

        from enet_deploy.export.int8 import quantize
        from enet_deploy.export.record import BUNDLED_RECORD, Record
        from enet_deploy.export.to_onnx import build_graph

        half = build_graph(weights, "fp16", SIZE, batch=None, logits=True, confidence=TEMPERATURE)
        onnx.save(half, folder / "enet-fp16.onnx")
        onnx.save(quantize(half, Record.read(BUNDLED_RECORD)), folder / "enet-fp16-int8.onnx")

    folder = made_once(tmp_path_factory, "half", write)
    halves = {precision: folder / f"enet-{precision}.onnx" for precision in ("fp16", "fp16-int8")}
    return {"fp32": exported, "int8": quantized_graph, **halves}


@pytest.fixture(scope="session")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run. Do not write to it."""

    def train(folder: Path) -> None:
        from training_runs import enet_train

        assert enet_train(scenes, folder) == 0

    return made_once(tmp_path_factory, "finished", train)


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of three classes of its own."""
    import cv2
    from training_runs import ROOM

    from enet_deploy.data import open_data

    root = write_scenes(tmp_path_factory.mktemp("room"), {"train": 4, "val": 1})
    for _, path in (*open_data(root, "train").pairs, *open_data(root, "val").pairs):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED) % 3)
    (root / "classes.json").write_text(json.dumps(ROOM))
    return root


@pytest.fixture(scope="session")
def camvid() -> Path:
    """The real CamVid. The test is skipped if CAMVID_DIR is not set."""
    folder = os.environ.get("CAMVID_DIR")
    if not folder:
        pytest.skip("CAMVID_DIR is not set; it names a folder with CamVid's train/ trainannot/ val/ valannot/")
    return Path(folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    switches = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    switches += [
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
    ]  # a camera that shows a pattern
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=[*switches, "--disable-sync"])
        yield chromium
        chromium.close()
