"""The README's Python runs as it stands there, and its commands exist."""

from __future__ import annotations

import configparser
import re
import shutil
from pathlib import Path

import cv2
import pytest
from helpers import ROOT
from torch import nn

from enet_deploy.data.scenes import street_scene

README = (ROOT / "README.md").read_text(encoding="utf-8")


class SegNet(nn.Module):
    """As little of one as the README's lines need."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)


def test_python_of_the_readme_runs(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")  # which they name
    (tmp_path / "demo").mkdir()
    shutil.copy(exported, tmp_path / "demo" / "enet-fp32.onnx")
    cv2.imwrite(str(tmp_path / "street.jpg"), street_scene(0, (240, 320))[0])
    monkeypatch.chdir(tmp_path)
    names = {"segnet": SegNet()}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    assert cv2.imread("labels.png").shape == (240, 320, 3)
    assert not any(isinstance(module, nn.MaxUnpool2d) for module in names["exportable"].modules())


def test_commands_of_the_readme_are_installed() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    scripts = {line.split(" = ")[0] for line in setup["options.entry_points"]["console_scripts"].strip().splitlines()}
    assert set(re.findall(r"\benet-[a-z]+\b", README)) - {"enet-deploy", "enet-camvid"} == scripts
