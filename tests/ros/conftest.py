"""Fixtures of the node's tests. Without rclpy the tests are skipped, so nothing of ROS is imported here at the top."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import write_graph


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_graph(tmp_path_factory.mktemp("graph") / "enet-fp32.onnx", confidence=True)


@pytest.fixture(scope="session")
def ros() -> Iterator[None]:
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    yield
    rclpy.shutdown()


@pytest.fixture
def robot(artifact: Path, ros: None) -> Iterator[Any]:
    from robot import Robot

    robot = Robot(artifact)
    yield robot
    robot.close()
