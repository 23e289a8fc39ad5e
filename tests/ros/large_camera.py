"""A camera of 1280x720 at 10 Hz, in a process of its own, as Fast DDS reads its profile once."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import rclpy
import robot as robots
from rclpy.signals import SignalHandlerOptions


def count(artifact: str, reliable: bool) -> int:
    """Send 60 images, each after the last one's labels, and return how many labels came. What is lost takes 5 s."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    robot = robots.Robot(Path(artifact))
    robot.run()
    labels = robot.listen(f"{robots.NAME}/labels")
    camera = robot.camera(reliable=reliable)
    assert robot.matched(camera)
    pixels = np.random.default_rng(0).integers(0, 255, (720, 1280, 3)).astype(np.uint8)
    robot.spin(2.0)  # until all have met, and the node has seen what the camera offers
    for sent in range(60):
        start = time.monotonic()
        camera.publish(robots.image(pixels))
        robot.until(lambda sent=sent: len(labels) > sent, 5.0)
        robot.spin(max(0.0, 0.1 - (time.monotonic() - start)))
    robot.close()
    rclpy.shutdown()
    return len(labels)
