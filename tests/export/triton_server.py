"""A real Triton server on free ports, out of the wheel of nvidia-pytriton."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from helpers import ROOT

WHERE = """
import pathlib, sysconfig, pytriton
print(pathlib.Path(pytriton.__file__).parent, sysconfig.get_config_var("LIBDIR"), sysconfig.get_python_version())
"""


class Server(NamedTuple):
    """A server that runs: its process, its ports, and the file with what it prints."""

    process: subprocess.Popen[bytes]
    http: int
    grpc: int
    log: Path

    def end(self) -> int:
        """Send SIGTERM; return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://localhost:{self.http}/v2/{path}", timeout=10) as answer:
            return bytes(answer.read())


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def serve(python: str, repository: Path, folder: Path) -> Iterator[Server]:
    """Start a server and wait until it is ready.

    Args:
        python: interpreter of an environment with nvidia-pytriton, and with what the model's runner needs.
        repository: of models.
        folder: for its log, and for the backend, whose part for this version of Python has a place of its own.
    """
    found = subprocess.run([python, "-c", WHERE], capture_output=True, text=True, check=True).stdout.split()
    package, libraries, version = Path(found[0]), found[1], found[2]
    backend = folder / "backends/python"
    backend.mkdir(parents=True)
    stub = package / "tritonserver/python_backend_stubs" / version / "triton_python_backend_stub"
    for file in (*(package / "tritonserver/backends/python").glob("*.*"), stub):
        (backend / file.name).symlink_to(file)
    http, grpc = free_ports(2)
    command = [f"{package}/tritonserver/bin/tritonserver", f"--model-repository={repository}"]
    command += [f"--backend-directory={folder / 'backends'}", "--allow-metrics=false"]
    command += [f"--http-port={http}", f"--grpc-port={grpc}", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]
    environment = os.environ | {
        "LD_LIBRARY_PATH": f"{libraries}:{package.parent / 'nvidia_pytriton.libs'}",
        "PATH": f"{Path(python).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}",
    }
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    server = Server(process, http, grpc, log)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(server: Server) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and server.process.poll() is None:
        try:
            server.get("health/ready")
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(server.log.read_text(errors="replace"))
