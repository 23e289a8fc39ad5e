"""`enet-fleet` with the real Ray: killed workers, drivers and nodes lose nothing and write nothing twice."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
from helpers import write_graph

from enet_deploy import open_runner
from enet_deploy.control_groups import allowed_threads
from enet_deploy.data.scenes import street_scene

PART_SIZE = 64  # as enet_deploy.fleet.output has it, which needs pyarrow

pytest.importorskip("ray", reason="ray is not installed; pip install 'enet-deploy[ray]'")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of Ray's own code

SCENES = [street_scene(seed, (60, 80))[0] for seed in range(4)]
PARTS = 30
FILES = PARTS * PART_SIZE
COMMAND = [sys.executable, "-m", "enet_deploy.commands.fleet"]
PATIENCE = 300  # seconds: Ray takes long to start on a busy machine


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, one of them damaged."""
    folder = tmp_path_factory.mktemp("images")
    contents = [cv2.imencode(".png", scene)[1].tobytes() for scene in SCENES]
    for index in range(FILES):
        (folder / f"{index:04}.png").write_bytes(contents[index % len(SCENES)])
    (folder / "0007.png").write_bytes(b"damaged")
    return folder


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_graph(tmp_path_factory.mktemp("graph") / "enet-fp32.onnx")


def start(*words: str | Path, command: list[str] = COMMAND) -> subprocess.Popen[str]:
    return subprocess.Popen([*command, *map(str, words)], stderr=subprocess.PIPE, text=True)


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def parts(out: Path) -> int:
    return len([*(out / "parts").glob("*.parquet")])


def finish(driver: subprocess.Popen[str]) -> str:
    """Wait for its end; return what it said."""
    said = driver.communicate(timeout=PATIENCE)[1]
    assert driver.returncode == 0, said
    return said


def check(out: Path, graph: Path) -> None:
    """Every file has one row, and the labels are the runner's."""
    from pyarrow import parquet

    rows = parquet.read_table(out / "parts").to_pylist()
    assert Counter(row["file"] for row in rows) == Counter(f"{index:04}.png" for index in range(FILES))
    assert [row["file"] for row in rows if row["error"]] == ["0007.png"]
    with open_runner(graph) as runner:
        expected = [runner.segment(scene) for scene in SCENES]
    for row in rows:
        if not row["error"]:
            labels = cv2.imread(str(out / row["labels"]), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(labels, expected[int(row["file"][:4]) % len(SCENES)])
    assert not [path for path in out.rglob("*") if path.name.startswith(".enet-")]


def written(out: Path) -> dict[Path, int]:
    """The parts, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in (out / "parts").glob("*.parquet")}


def actors(driver: subprocess.Popen[str]) -> list[Any]:
    """The processes of the actors that a driver on this machine has."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if "PartLabeller" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_killed_worker_then_killed_driver_then_sigterm(images: Path, graph: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    driver = start(graph, images, out, "--workers", "2")
    until(lambda: parts(out) >= 2)
    actors(driver)[0].kill()
    at_kill = parts(out)
    until(lambda: parts(out) >= at_kill + 3)
    processes = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL and driver.stderr.read().count("\n") <= 1  # not even a traceback
    assert psutil.wait_procs(processes, 120)[1] == []  # nobody writes on without the driver
    there = written(out)
    assert len(there) < PARTS

    driver = start(graph, images, out)
    until(lambda: parts(out) >= len(there) + 2)
    driver.terminate()
    said = driver.communicate(timeout=PATIENCE)[1]
    assert driver.returncode == 143 and "interrupted" in said and "Traceback" not in said, said
    assert len(there) < parts(out) < PARTS

    said = finish(start(graph, images, out))
    assert f" of {PARTS} parts" in said
    assert there.items() <= written(out).items()
    check(out, graph)


def test_removed_node(images: Path, graph: Path, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    out = tmp_path / "out"
    handler = signal.getsignal(signal.SIGTERM)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        driver = start(graph, images, out, "--address", cluster.address)
        until(lambda: parts(out) >= 4)
        cluster.remove_node(node, allow_graceful=False)
        assert parts(out) < PARTS
        finish(driver)
    finally:
        cluster.shutdown()
        signal.signal(signal.SIGTERM, handler)  # Ray's would end the tests' process in another way
    check(out, graph)


# `enet-fleet` with a class of __main__, which Ray sends to its workers whole
CRASHING = """
import os
from enet_deploy.commands import fleet
from enet_deploy.fleet import cluster, labeller

class Crashing(labeller.PartLabeller):
    def _images(self, name, *rest):
        if name.startswith("crash"):
            os._exit(1)
        return super()._images(name, *rest)

cluster.PartLabeller = Crashing
raise SystemExit(fleet.main())
"""
SLOW = """
import time
from enet_deploy.commands import fleet
from enet_deploy.fleet import cluster

cluster.OPEN_SECONDS = 1
cluster.open_once = lambda task: time.sleep(60)
raise SystemExit(fleet.main())
"""


def test_file_that_kills_its_worker_then_a_damaged_one(graph: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a", "crash0", "crash1", "d"):
        assert cv2.imwrite(str(folder / f"{name}.png"), SCENES[0])
    finish(start(graph, folder, out, "--workers", "1", command=[sys.executable, "-c", CRASHING]))
    errors = {row["file"]: row["error"] for row in parquet.read_table(out / "parts").to_pylist()}
    assert errors["a.png"] is None and errors["d.png"] is None
    assert len(errors) == 4 and "died" in errors["crash0.png"] and "died" in errors["crash1.png"]
    assert not (out / "tries").exists()

    (folder / "new.png").write_bytes(b"damaged")
    finish(start(graph, folder, out, "--workers", "1"))  # other frames of this run could be read
    assert "new.png" in parquet.read_table(out / "parts" / "000001.parquet").to_pylist()[0]["error"]


def test_cluster_that_does_not_open_the_network_in_time(images: Path, graph: Path, tmp_path: Path) -> None:
    said = refused(graph, images, tmp_path / "out", "--workers", "1", command=[sys.executable, "-c", SLOW])
    assert f"of {allowed_threads() or os.cpu_count()} CPUs" in said


def refused(*words: str | Path, command: list[str] = COMMAND) -> str:
    """The one line with which the command ends."""
    done = subprocess.run([*command, *map(str, words)], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout, done.stderr
    return done.stderr


def test_address_without_a_cluster(images: Path, graph: Path, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # takes connections and says nothing
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert address in refused(graph, images, tmp_path / "out", "--address", address)
    assert "ray://head:10001" in refused(graph, images, tmp_path / "out", "--address", "ray://head:10001")


def test_what_only_the_cluster_can_tell_is_one_line(images: Path, tmp_path: Path) -> None:
    unknown = write_graph(tmp_path / "enet-fp32.onnx", unknown_operation=True)
    assert "enet-fp32.onnx" in refused(unknown, images, tmp_path / "a", "--workers", "1")
    workers = f"{(os.cpu_count() or 1) + 1}"
    assert workers in refused(unknown, images, tmp_path / "b", "--workers", workers)
