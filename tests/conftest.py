"""Fixtures: a small data set of drawn street scenes, the bundled weights, and one export of them."""

from __future__ import annotations

import json
import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background jobs, whose children ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # networks this small lose more to threads that wait for each other

from pathlib import Path

import pytest
from helpers import ROOT, SIZE, TEMPERATURE, write_scenes

import enet_deploy
from enet_deploy.artifacts import BUNDLED_WEIGHTS

if Path(enet_deploy.__file__).parent == ROOT / "enet_deploy":  # and not an installed one, which is then tested
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [f"{ROOT}", os.environ.get("PYTHONPATH")]))  # of children


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training and four validation scenes of 96x128. Do not write to it."""
    return write_scenes(tmp_path_factory.mktemp("scenes"), {"train": 8, "val": 4})


@pytest.fixture(scope="session")
def weights() -> Path:
    return BUNDLED_WEIGHTS


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    """The bundled weights at 96x128, any batch, with logits and confidences."""
    from enet_deploy.export.to_onnx import to_onnx

    path = tmp_path_factory.mktemp("export") / "enet-fp32.onnx"
    to_onnx(weights, path, size=SIZE, batch=None, logits=True, confidence=TEMPERATURE)
    return path


@pytest.fixture(scope="session")
def graphs(exported: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Precision -> graph of the bundled weights and record at 96x128, any batch, with logits and confidences."""
    import onnx

    from enet_deploy.export.int8 import quantize
    from enet_deploy.export.record import record_for
    from enet_deploy.export.to_onnx import build_graph
    from enet_deploy.files import sha256

    folder = tmp_path_factory.mktemp("graphs")
    paths = {precision: folder / f"enet-{precision}.onnx" for precision in ("fp16", "int8", "fp16-int8")}
    record = record_for(sha256(weights))
    half = build_graph(weights, "fp16", SIZE, batch=None, logits=True, confidence=TEMPERATURE)
    onnx.save(half, paths["fp16"])
    onnx.save(quantize(onnx.load(exported), record), paths["int8"])
    onnx.save(quantize(half, record), paths["fp16-int8"])
    return {"fp32": exported, **paths}


@pytest.fixture(scope="session")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run. Do not write to it."""
    from training_runs import enet_train

    out = tmp_path_factory.mktemp("runs") / "finished"
    assert enet_train(scenes, out) == 0
    return out


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
    """The real CamVid; the test is skipped where CAMVID_DIR does not say where it is."""
    folder = os.environ.get("CAMVID_DIR")
    if not folder:
        pytest.skip("CAMVID_DIR is not set; it names a folder with CamVid's train/ trainannot/ val/ valannot/")
    return Path(folder)
