"""The node ends in order after a signal at any moment, also while it starts and while it works on an image."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed; `make test-ros` makes an environment with it")
from robot import NAME, Robot, image

ROUNDS = int(os.environ.get("ENET_SIGNAL_ROUNDS", "6"))  # 200 take a quarter of an hour


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("moment", ["start", "work"])
def test_signal_at_a_random_moment(robot: Robot, number: int, code: int, moment: str) -> None:
    chance = random.Random(number)
    camera, picture = robot.camera(), image(np.full((480, 640, 3), 90, np.uint8))
    labels = robot.listen(f"{NAME}/labels")
    for count in range(ROUNDS):
        process = robot.run()
        if moment == "work":
            labels.clear()
            picture.header.frame_id = f"{count}"  # labels of the last process may still come
            assert robot.until(lambda: camera.publish(picture) or any(one.header == picture.header for one in labels))
            end = time.monotonic() + chance.uniform(0, 0.3)
            while time.monotonic() < end:  # as many as fit, so that it is at work on one
                camera.publish(picture)
        else:
            assert handlers_are_set(process.pid)
            time.sleep(chance.uniform(0, 3))
        returned, said = robot.end(process, number)
        assert (returned, "Traceback" in said, "error" in said) == (code, False, False), said


def handlers_are_set(pid: int) -> bool:
    """Wait until the process handles SIGTERM. Until then it is Python that starts, and ends as any program does."""
    mask = 1 << (signal.SIGTERM - 1)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith("SigCgt")]
        if int(line.split()[1], 16) & mask:
            return True
        time.sleep(0.005)
    return False
