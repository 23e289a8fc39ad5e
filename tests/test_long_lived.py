"""A runner in a process that lives long: threads, forks, and being opened and closed. The soak itself is a command."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import SIZE, write_graph

from enet_deploy import BackendError, open_runner
from enet_deploy.benchmarks.studies import soak as soak_cli
from enet_deploy.data.scenes import street_scene
from enet_deploy.images import UInt8Array
from enet_deploy.runners import Runner

FRAMES = np.stack([street_scene(0, SIZE)[0]])
THREADS = 8
ON_CPU = ("torch", "ort", "openvino")


@pytest.fixture(params=ON_CPU)
def open_one(request: pytest.FixtureRequest, exported: Path, weights: Path) -> Callable[[], Runner]:
    """Opens a runner of the same network each time."""
    if request.param == "torch":
        return lambda: open_runner(weights, size=SIZE)
    pytest.importorskip({"ort": "onnxruntime"}.get(request.param, request.param))
    return lambda: open_runner(exported, request.param, threads=1)


@pytest.mark.slow
def test_eight_threads_with_a_runner_each_and_one_shared(open_one: Callable[[], Runner]) -> None:
    together = threading.Barrier(THREADS)

    def infer_with_own(_: int) -> list[UInt8Array]:
        with open_one() as runner:
            together.wait()
            return [runner.infer(FRAMES), *(shared.infer(FRAMES) for _ in range(3))]

    with open_one() as shared, ThreadPoolExecutor(THREADS) as pool:
        expected = shared.infer(FRAMES)
        assert expected.any()
        for labels in pool.map(infer_with_own, range(THREADS)):
            assert all(np.array_equal(one, expected) for one in labels)


def test_runner_refuses_to_work_in_a_fork(open_one: Callable[[], Runner]) -> None:
    with open_one() as runner:
        expected = runner.infer(FRAMES)
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            told = b""
            try:
                runner.close()  # does nothing, and does not wait for threads that are not here
                for use in (lambda: runner.infer(FRAMES), lambda: runner.segment(FRAMES[0]), runner.open):
                    with pytest.raises(BackendError) as error:
                        use()
                    told = str(error.value).encode()
            finally:
                os.write(writable, told or b"no error")
                os._exit(0)
        told = os.read(readable, 1000).decode()
        assert os.waitpid(child, 0)[1] == 0
        assert f"process {os.getpid()}" in told and f"{child}" in told
        assert np.array_equal(runner.infer(FRAMES), expected)  # the parent's is as it was


def label_in_child(artifact: Path, backend: str) -> bytes:
    with open_runner(artifact, backend) as runner:
        return runner.infer(FRAMES).tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_child_process_opens_its_own(exported: Path, method: str, backend: str) -> None:
    pytest.importorskip({"ort": "onnxruntime"}.get(backend, backend))
    with open_runner(exported, backend) as runner:
        expected = runner.infer(FRAMES).tobytes()
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply_async(label_in_child, (exported, backend)).get(60) == expected


@pytest.mark.docs
@pytest.mark.slow
def test_soak_command_finds_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        str(write_graph(tmp_path / "enet-fp32.onnx")),
        "--inferences",
        "80",
        "--reopenings",
        "4",
        "--max-growth",
        "100",
    ]
    arguments += ["--json", str(tmp_path / "soak.json")]
    assert soak_cli.main(arguments) == 0, capsys.readouterr().err
    assert "| open, infer, close | 4 |" in capsys.readouterr().out
    whole = json.loads((tmp_path / "soak.json").read_text())["phases"]
    phase = soak_cli.Phase(**whole[0])

    def interrupted(*_: object) -> Iterator[soak_cli.Phase]:
        yield phase
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(soak_cli, "phases", interrupted)
        assert soak_cli.main(arguments) == 130 and "| one thread, one runner | 80 |" in capsys.readouterr().out
    assert len(whole) == 4 and json.loads((tmp_path / "soak.json").read_text())["phases"] == whole[:1]
    kept: list[int] = []

    def leak() -> None:
        kept.append(os.dup(0))

    found = soak_cli.watch("leaking", leak, 20)
    assert found.flaw(max_growth=100) == "leaking kept 20 handles"
    for handle in kept:
        os.close(handle)
    hoard: list[bytes] = []
    found = soak_cli.watch("hoarding", lambda: hoard.append(os.urandom(1_000_000)), 40)
    assert found.flaw(max_growth=5).endswith(" MB"), found
    labels = iter(range(10_000))
    monkeypatch.setattr("enet_deploy.runners.base.Runner.infer", lambda *_: np.array([next(labels)]))
    assert soak_cli.main(arguments[:3]) == 1
    assert "labels of a frame changed" in capsys.readouterr().err


def test_library_is_quiet_until_asked(exported: Path) -> None:
    code = f"""
import logging, sys
import numpy as np
import enet_deploy
with enet_deploy.open_runner({str(exported)!r}) as runner:
    runner.segment(np.zeros((60, 80, 3), np.uint8))
logging.getLogger("enet_deploy.anything").warning("nobody configured logging, so nobody is told")
assert not logging.getLogger().handlers, "the application's to configure"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("enet_deploy").handlers)
