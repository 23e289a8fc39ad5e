"""`benchmarks.studies.architectures`: the networks are those of the papers, and all are timed alike."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from enet_deploy import open_runner
from enet_deploy.benchmarks.studies import architectures
from enet_deploy.benchmarks.studies.networks import (
    NETS,
    SegNet,
    UNet,
    multiply_adds,
    open_untrained,
    parameters,
    untrained,
)
from enet_deploy.data.scenes import street_scene

pytestmark = pytest.mark.docs


def test_sizes_are_those_of_the_papers() -> None:
    # VGG-16's 13 convolutions without biases, and back; with a pair of BatchNorm's numbers per map
    vgg = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    weights = sum(9 * a * b for a, b in pairwise(vgg))
    back = [*vgg[:0:-1], 64]
    mirrored = sum(9 * a * b for a, b in pairwise(back[:-1]))
    norms = 2 * (sum(vgg[1:]) + sum(back[1:-1]))
    assert parameters(SegNet(11)) == weights + mirrored + norms + (9 * 64 + 1) * 11
    assert round(parameters(SegNet(11)) / 1e6, 2) == 29.44  # Paszke 2016 counts 29.46
    assert parameters(UNet(2)) == 31_031_810  # of Ronneberger's network with three channels in and two classes


@pytest.mark.slow
@pytest.mark.parametrize(  # sides that halve evenly, and that do not, which ENet does not take
    ("name", "size"), [*((name, (64, 96)) for name in NETS), ("SegNet", (90, 120)), ("U-Net", (90, 120))]
)
def test_any_even_size(name: str, size: tuple[int, int]) -> None:
    net, _ = untrained(name, (64, 96))
    with torch.inference_mode():
        assert net(torch.rand(1, 3, *size)).shape == (1, 11, *size)


def test_padding_before_a_pooling_is_ceil_mode() -> None:
    from enet_deploy.benchmarks.studies.networks import _even

    x = torch.rand(1, 4, 45, 61).relu()
    assert torch.equal(F.max_pool2d(_even(x), 2), F.max_pool2d(x, 2, ceil_mode=True))


@pytest.mark.slow
def test_multiply_adds_of_a_known_network() -> None:
    assert multiply_adds(torch.nn.Conv2d(3, 8, 3, padding=1), (10, 20)) == 10 * 20 * 8 * 27


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SegNet", "U-Net"])
def test_graph_and_pytorch_agree(name: str, tmp_path: Path) -> None:
    size = (48, 64)
    path = tmp_path / "net.onnx"
    architectures._export(name, size, path)
    frames = street_scene(0, size)[0][None]
    with open_untrained(name, size) as reference, open_runner(path, "ort") as runner:
        assert runner.spec.size == size
        assert np.mean(reference.infer(frames) == runner.infer(frames)) > 0.99


@pytest.mark.slow
def test_command(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(architectures, "_export", lambda name, size, path: shutil.copy(exported, path))
    monkeypatch.setattr(architectures, "_export_deployed", lambda size, folder, path: shutil.copy(exported, path))
    monkeypatch.setattr(architectures, "BACKENDS", ("torch", "ort"))
    monkeypatch.setattr(architectures, "ROUNDS", 2)
    out = tmp_path / "out.json"
    assert architectures.main(["--size", "96x128", "--json", str(out)]) == 0
    assert '"fewer parameters than U-Net and SegNet": holds, 86 and 82 times fewer' in capsys.readouterr().out
    result = json.loads(out.read_text())
    assert [net["name"] for net in result["nets"]] == list(architectures.ORDER)
    enet, segnet, _, deployed = result["nets"]
    assert deployed["ms"].keys() == {"ort"} and segnet["multiply_adds"] > 50 * enet["multiply_adds"]
    assert architectures.main(["--json", str(tmp_path)]) == 2  # a folder
    assert str(tmp_path) in capsys.readouterr().err
    assert segnet["peak_bytes"]["torch"] > enet["peak_bytes"]["torch"]
    for backend, blocks in segnet["samples_ms"].items():
        assert segnet["ms"][backend] == np.median(blocks) and np.shape(blocks) == (2, architectures.CALLS)
        ratios = np.median(blocks, axis=1) / np.median(enet["samples_ms"][backend], axis=1)
        assert segnet["enet_speed"][backend]["ratio"] == pytest.approx(np.median(ratios))
