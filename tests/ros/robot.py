"""A robot for the node: real rclpy on this machine's loopback, in a domain of its own."""

from __future__ import annotations

import array
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from helpers import ROOT
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

DOMAIN = 1 + os.getpid() % 100
os.environ |= {"ROS_DOMAIN_ID": f"{DOMAIN}", "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
PACKAGE = ROOT / "examples" / "ros2_node"
NAME = "/enet_segmentation"
SECONDS = 60.0  # until something counts as failed; the machine may be busy


def command(artifact: Path, *arguments: str) -> list[str]:
    code = (
        f"import sys; sys.path.insert(0, {str(PACKAGE)!r}); from enet_segmentation.main import main; sys.exit(main())"
    )
    return [sys.executable, "-c", code, "--ros-args", "-p", f"artifact:={artifact}", *arguments]


class Robot:
    """A node of the test's own that sends images and collects what comes back."""

    def __init__(self, artifact: Path) -> None:
        self.artifact = artifact
        self.node = rclpy.create_node("robot")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._processes: list[subprocess.Popen[str]] = []
        self.received: dict[str, list[Any]] = {}

    def run(self, *arguments: str, artifact: Path | None = None) -> subprocess.Popen[str]:
        """Start the node in a process of its own."""
        process = subprocess.Popen(command(artifact or self.artifact, *arguments), text=True, stderr=subprocess.PIPE)
        self._processes.append(process)
        return process

    def camera(self, topic: str = f"{NAME}/image", kind: Any = Image, reliable: bool = True, depth: int = 5) -> Any:
        reliability = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        quiet = PublisherEventCallbacks(use_default_callbacks=False)  # rclpy's own raise a deprecation warning of rclpy
        return self.node.create_publisher(
            kind, topic, QoSProfile(depth=depth, reliability=reliability), event_callbacks=quiet
        )

    def listen(self, topic: str, kind: Any = Image, latched: bool = False, reliable: bool = True) -> list[Any]:
        """Collect the messages of a topic in the list that is returned."""
        found = self.received.setdefault(topic, [])
        qos = QoSProfile(depth=100, reliability=ReliabilityPolicy[("BEST_EFFORT", "RELIABLE")[reliable]])
        qos.durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
        self.node.create_subscription(kind, topic, found.append, qos)
        return found

    def spin(self, seconds: float) -> None:
        self.until(lambda: False, seconds)

    def until(self, happened: Callable[[], bool], seconds: float = SECONDS) -> bool:
        """Take part in the traffic until something happened; return whether it did."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if happened():
                return True
            self._executor.spin_once(timeout_sec=0.02)
        return happened()

    def matched(self, camera: Any) -> bool:
        """Wait until the node listens to this camera."""
        return self.until(lambda: camera.get_subscription_count() > 0)

    def end(self, process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send the signal; return the exit code and what was said on standard error."""
        process.send_signal(number)
        _, said = process.communicate(timeout=SECONDS)
        return process.returncode, said

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self._executor.shutdown()
        self.node.destroy_node()


def image(pixels: np.ndarray, encoding: str = "bgr8", nanoseconds: int = 0, frame_id: str = "front") -> Image:
    """A message with these pixels (h, w, ...) and this stamp; without one, that of now."""
    message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding)
    stamp = nanoseconds or time.time_ns()
    message.header.frame_id = frame_id
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 10**9)
    message.step = pixels.nbytes // pixels.shape[0]
    message.data = array.array("B", pixels.tobytes())  # of anything else rclpy checks every element
    return message
