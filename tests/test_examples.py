"""The examples run as their docstrings say."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import cv2
import pytest
from helpers import ROOT, SIZE

from enet_deploy import open_runner
from enet_deploy.data.scenes import street_scene

EXAMPLES = ROOT / "examples"
FRAMES = [street_scene(seed, SIZE)[0] for seed in range(3)]


def run(*command: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([str(part) for part in command], input=stdin, capture_output=True, timeout=120)


@pytest.mark.slow
def test_camera_loop(exported: Path, tmp_path: Path) -> None:
    for index, frame in enumerate(FRAMES):
        cv2.imwrite(str(tmp_path / f"{index}.png"), frame)
    script = EXAMPLES / "camera_loop.py"
    done = run(sys.executable, script, exported, tmp_path / "%d.png", "road")  # OpenCV reads numbered images as a video
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 0 and len(lines) == 3, done.stderr
    assert all(re.fullmatch(r"road ahead [ \d]\d?\d%: (go|stop)", line) for line in lines), lines
    code = [line for line in script.read_text().splitlines()[2:] if line.strip()]
    assert len(code) <= 20
    for arguments, said in {(exported,): b"usage", (exported, "no.mp4", "road"): b"no frame from no.mp4"}.items():
        done = run(sys.executable, script, *arguments)
        assert done.returncode == 1 and said in done.stderr and b"Traceback" not in done.stderr


def test_cuda_zero_copy_says_what_it_lacks(exported: Path) -> None:
    """The runner's own tests check on a GPU that it works, with arrays of torch."""
    done = run(sys.executable, EXAMPLES / "cuda_zero_copy.py", exported)
    if done.returncode:
        assert done.stderr.decode().startswith("cuda_zero_copy: ") and done.stderr.count(b"\n") == 1, done.stderr


@pytest.mark.slow
def test_program_in_cpp_gives_the_same_labels(exported: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    wheel = Path(openvino.__file__).parent
    if not (wheel / "include").is_dir():
        pytest.skip("this OpenVINO comes without its headers")
    section = (EXAMPLES / "c_abi.md").read_text().split("## OpenVINO")[1]
    source = tmp_path / "segment.cpp"
    source.write_text(re.search(r"```cpp\n(.*?)```", section, re.DOTALL)[1])
    (library,) = (wheel / "libs").glob("libopenvino.so.*")
    flags = ["-std=c++17", "-Wall", "-Werror", f"-I{wheel / 'include'}", f"-Wl,-rpath,{wheel / 'libs'}"]
    built = run("g++", source, *flags, library, "-o", tmp_path / "segment")
    assert built.returncode == 0, built.stderr.decode()
    done = run(tmp_path / "segment", exported, stdin=b"".join(frame.tobytes() for frame in FRAMES))
    with open_runner(exported, backend="openvino") as runner:
        assert done.stdout == b"".join(runner.infer(frame[None]).tobytes() for frame in FRAMES), done.stderr


def test_ros2_package_is_one() -> None:
    """It cannot be built without ROS. The files that colcon reads exist and agree on its name."""
    package = EXAMPLES / "ros2_node"
    name = xml.etree.ElementTree.parse(package / "package.xml").getroot().findtext("name")
    setup = (package / "setup.py").read_text()
    assert f'name = "{name}"' in setup and (package / "resource" / name).is_file()
    for path in re.findall(r'"((?:launch/|package)[^"]*\.\w+)"', setup):
        assert (package / path).is_file()
    module, function = re.search(r"segmentation = {name}\.(\w+):(\w+)", setup).groups()
    node = ast.parse((package / name / f"{module}.py").read_text())
    assert function in {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
