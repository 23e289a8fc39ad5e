"""The node for half an hour beside a camera of 1280x720 at 10 Hz: what is lost, how late, and what the process holds.

    PYTHONPATH=tests:tests/ros .venv-ros/bin/python tests/ros/endurance.py enet-int8-openvino.onnx --backend openvino

The artifact needs `enet-export --confidence`. No test: `make test-ros` takes the short way.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import rclpy
import robot as robots
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image

from enet_deploy.data.scenes import street_scene
from enet_deploy.environment import environment

RATE = 10  # images per second
PROFILE = robots.PACKAGE / "enet_segmentation" / "fastdds.xml"
WARM_UP = 5  # seconds that are not counted: the first frames are slow
OUTPUTS = ("labels", "confidence", "overlay")


class Latencies:
    """Milliseconds from an image's stamp to each of its outputs."""

    def __init__(self, robot: robots.Robot) -> None:
        self.found: dict[str, list[float]] = {name: [] for name in OUTPUTS}
        for name in OUTPUTS:
            robot.node.create_subscription(Image, f"{robots.NAME}/{name}", self._taker(name), 10)

    def _taker(self, name: str) -> Any:
        def take(message: Image) -> None:
            stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            self.found[name].append((time.time_ns() - stamp) / 1e6)

        return take

    def taken(self) -> dict[str, dict[str, float]]:
        """Figures of each output since the last call."""
        figures = {}
        for name, found in self.found.items():
            p50, p99, most = np.quantile(found, (0.5, 0.99, 1)).round(1).tolist() if found else (None, None, None)
            figures[name] = {"count": len(found), "p50_ms": p50, "p99_ms": p99, "max_ms": most}
            found.clear()
        return figures


def held(process: psutil.Process) -> dict[str, float]:
    """What the process holds, and the seconds of CPU that it has used."""
    with process.oneshot():
        used = process.cpu_times()
        return {
            "rss_mb": round(process.memory_info().rss / 1e6, 1),
            "threads": process.num_threads(),
            "handles": process.num_fds(),
            "cpu_s": round(used.user + used.system, 2),
        }


class Camera:
    """Sends an image every tenth of a second, whatever comes back."""

    def __init__(self, robot: robots.Robot, publisher: Any) -> None:
        self._robot, self._publisher, self._start, self._sent = robot, publisher, time.monotonic(), 0
        self._pixels = [street_scene(seed, (720, 1280))[0] for seed in range(4)]

    def send(self, seconds: int) -> int:
        """Send for so long, in the rhythm of the calls before; return how many."""
        self._start = self._start if self._sent else time.monotonic()
        for _ in range(RATE * seconds):
            self._robot.spin(max(0.0, self._start + self._sent / RATE - time.monotonic()))
            self._publisher.publish(robots.image(self._pixels[self._sent % len(self._pixels)]))
            self._sent += 1
        return RATE * seconds


def run(artifact: Path, backend: str, minutes: int) -> dict[str, Any]:
    """Return figures of each minute."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    robot = robots.Robot(artifact)
    process = robot.run("-p", f"backend:={backend}")
    publisher = robot.camera(reliable=False)
    assert robot.matched(publisher), process.communicate()
    latencies, levels = Latencies(robot), robot.listen("/diagnostics", DiagnosticArray)
    camera = Camera(robot, publisher)
    robot.spin(2.0)
    camera.send(WARM_UP)
    latencies.taken()
    node, rows, before = psutil.Process(process.pid), [], held(psutil.Process(process.pid))
    for minute in range(1, minutes + 1):
        levels.clear()
        begun = time.monotonic()
        sent = camera.send(60)
        now = held(node)
        cpu = (now["cpu_s"] - before["cpu_s"]) / (time.monotonic() - begun)
        warned = sorted({one.status[0].message for one in levels if one.status[0].level != DiagnosticStatus.OK})
        rows.append(
            {"minute": minute, "sent": sent, **latencies.taken(), **now, "cores": round(cpu, 3), "warned": warned}
        )
        before = now
        print(json.dumps(rows[-1]), flush=True)
    code, said = robot.end(process)
    robot.close()
    rclpy.shutdown()
    return {"exit": code, "said": said.splitlines(), "minutes": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if os.environ.get("FASTDDS_DEFAULT_PROFILES_FILE") != f"{PROFILE}":  # which Fast DDS reads once
        os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = f"{PROFILE}"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    found = {"environment": environment(), **run(args.artifact, args.backend, args.minutes)}
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
