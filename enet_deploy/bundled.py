"""What comes with the package: weights, graphs of them, a picture; and the names that stand for them.

`enet-segment enet-camvid sample` needs no file. A name of weights stands for two files in weights/: NAME.safetensors
for PyTorch, and NAME-fp32.onnx for all other backends, so that a machine without PyTorch needs no export. The graphs
are made from the weights by

    enet-export --weights NAME --name NAME --out enet_deploy/weights
"""

from __future__ import annotations

from pathlib import Path

NAMES = ("enet-camvid", "enet-camvid-train")
SAMPLE = Path(__file__).parent / "data" / "sample.jpg"  # a drawn scene, `data.scenes.street_scene(3000, (720, 960))`

_FOLDER = Path(__file__).parent / "weights"


def weights_file(name: str | Path) -> Path:
    """Return the weights that a name stands for; any other path as it is."""
    return _FOLDER / f"{name}.safetensors" if str(name) in NAMES else Path(name)


def graph_file(name: str | Path) -> Path:
    """Return the fp32 graph, for one frame of 360x480, that a name stands for; any other path as it is."""
    return _FOLDER / f"{name}-fp32.onnx" if str(name) in NAMES else Path(name)


def artifact_file(name: str | Path, backend: str | None) -> Path:
    """Return the file that a name stands for on a backend; any other path as it is."""
    return weights_file(name) if backend == "torch" else graph_file(name)


def picture(source: str) -> str:
    """Return the sample picture's path for "sample", unless a file has that name; any other text as it is."""
    return str(SAMPLE) if source == "sample" and not Path(source).exists() else source
