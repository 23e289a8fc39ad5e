"""What runs beside us: nothing reports to anybody, and no module of the current folder is run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from enet_deploy.benchmarks.measure.processes import Processes
from enet_deploy.child import python, python_main
from enet_deploy.runners.openvino_runner import _telemetry_was_chosen

OPEN = """
import os, sys, time
import numpy as np
from enet_deploy import open_runner
with open_runner(sys.argv[1], sys.argv[2], threads=1) as runner:
    runner.infer(np.zeros((1, *runner.spec.size, 3), np.uint8))
    time.sleep(float(sys.argv[3]))
print(os.environ["ORT_DISABLE_TELEMETRY"], *(name for name in sys.modules if name.startswith("openvino_telemetry")))
"""


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a new user, who has chosen nothing."""
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    known = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name and name != "CI"}
    return {**known, "HOME": str(home), "XDG_CACHE_HOME": "", "TMPDIR": str(home / "tmp"), **more}


def left_in(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_backends_open_without_telemetry(backend: str, exported: Path, tmp_path: Path) -> None:
    pytest.importorskip({"ort": "onnxruntime"}.get(backend, backend))
    command = [sys.executable, "-c", OPEN, str(exported), backend, "0"]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr
    assert left_in(tmp_path) == []


@pytest.mark.slow
def test_choice_of_the_user_is_kept(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino_telemetry")
    code = "import enet_deploy, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    chosen = environment(tmp_path, ORT_DISABLE_TELEMETRY="0")
    assert subprocess.check_output([sys.executable, "-c", code], env=chosen, text=True) == "0\n"
    consent = tmp_path / "intel" / "openvino_telemetry"
    consent.parent.mkdir()
    consent.write_text("0")  # no: OpenVINO then imports its telemetry, which reads this and sends nothing
    command = [sys.executable, "-c", OPEN, str(exported), "openvino", "0"]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True)
    assert "openvino_telemetry" in done.stdout.split(), done.stderr
    assert left_in(tmp_path) == [consent] and consent.read_text() == "0"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_backend_reaches_for_the_network(exported: Path, tmp_path: Path) -> None:
    strace = ["strace", "-f", "-e", "trace=connect,sendto,sendmmsg", "-o"]
    home, children = environment(tmp_path / "home"), {}
    for backend in ("ort", *(["openvino"] if find_spec("openvino") else [])):  # at once, because each waits for long
        command = [sys.executable, "-c", OPEN, str(exported), backend, "5"]  # telemetry begins after a second or so
        children[backend] = subprocess.Popen([*strace, str(tmp_path / backend), *command], env=home)
    for backend, child in children.items():
        assert child.wait(300) == 0, backend
        traced = (tmp_path / backend).read_text(errors="replace")
        assert "exited with 0" in traced and not re.search(r"AF_INET|htons\(53\)", traced), backend


# The current folder


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder has modules in it that leave a file when they are imported. Returns the file."""
    folder, trace = tmp_path / "unpacked", tmp_path / "trace"
    folder.mkdir()
    for name in ("cv2", "pickle", "logging", "runpy", "multiprocessing", "re", "numpy", "onnx"):
        (folder / f"{name}.py").write_text(f"open({str(trace)!r}, 'a').write({name!r}); raise ImportError('planted')")
    monkeypatch.chdir(folder)
    return trace


def test_children_run_nothing_of_the_current_folder(trapped: Path) -> None:
    code = "import cv2, os; print(os.getcwd(), sys.argv[1])"
    done = subprocess.run(python(code, "argument"), capture_output=True, text=True)
    assert done.stdout.split() == [str(trapped.parent / "unpacked"), "argument"], done.stderr
    for module in ("enet_deploy.runners.tensorrt.builder", "enet_deploy.benchmarks.gpu.steps"):
        command = python_main(module, "none.onnx", "none.engine", "trt")
        assert "Traceback" not in subprocess.run(command, capture_output=True, text=True).stderr
    assert not trapped.exists()


def test_measuring_processes_run_nothing_of_the_current_folder(trapped: Path) -> None:
    with Processes() as processes:
        processes.start("one", partial(str, "made"))
        assert processes.ask("one", len) == 4
        assert processes.ask("one", os_folder) == str(trapped.parent / "unpacked")
    assert not trapped.exists()
    assert Path.cwd() == trapped.parent / "unpacked"


def os_folder(_: object) -> str:
    return str(Path.cwd())


def test_no_other_way_to_start_python() -> None:
    """`python -m` and `python -c` are written in one place."""
    root = Path(__file__).parent.parent
    files = [
        path
        for folder in ("enet_deploy", "export", "calibration", "benchmarks")
        for path in root.glob(f"{folder}/**/*.py")
    ]
    assert len(files) > 50
    assert {path.name for path in files if "sys.executable" in path.read_text(encoding="utf-8")} == {"child.py"}


def test_no_code_comes_with_a_file() -> None:
    """No call that loads a library of operations for a graph, or code from weights, is written anywhere."""
    root = Path(__file__).parent.parent
    loads = r"register_custom_ops_library|add_extension|load_library|plugin_registry|pickle\.load|jit\.load"
    loads += "|weights_only=False"
    for folder in ("enet_deploy", "export", "calibration", "benchmarks"):
        for path in root.glob(f"{folder}/**/*.py"):
            assert not re.search(loads, path.read_text(encoding="utf-8")), path


def test_user_without_a_home_opens_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert not _telemetry_was_chosen()
