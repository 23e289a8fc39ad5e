"""Start and end the node, in order at every moment.

A signal sets a flag, which is looked at between the steps of the start and ten times a second after it. No exception
and no shutdown by another thread comes in between, so nothing is left half done. rclpy's own handlers would raise in
the middle of a callback, and `rclpy.spin` was seen to wait forever after one.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

PROFILE = Path(__file__).parent / "fastdds.xml"
_WAIT_SECONDS = 0.1

_signals: list[int] = []


def _stop(number: int, _: Any) -> None:
    _signals.append(number)


def profile_variable() -> str:
    """Return the variable that names Fast DDS's profiles; it was renamed in ROS 2 Kilted."""
    name = "FASTRTPS" if os.environ.get("ROS_DISTRO") in ("humble", "iron", "jazzy") else "FASTDDS"
    return f"{name}_DEFAULT_PROFILES_FILE"


def main() -> int:
    """Run the node until a signal. Returns 128 + the signal's number, or 2 after an error of one line."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), _stop)
    os.environ.setdefault(profile_variable(), f"{PROFILE}")
    return _run() or 128 + _signals[0]


def _run() -> int:
    # Imported here: a signal that comes during the seconds of these imports has a handler
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    from enet_deploy import EnetError

    from .node import SegmentationNode

    if _signals:
        return 0
    try:
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:  # noqa: BLE001  wrong --ros-args raise errors of several private types
        return _fail(f"arguments {' '.join(sys.argv[1:])!r}: {error}; expected as ros2 run takes them")
    node = None
    try:
        node = SegmentationNode()
        if not _signals:
            node.start()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not _signals:
            executor.spin_once(timeout_sec=_WAIT_SECONDS)
        executor.shutdown()
    except EnetError as error:
        return _fail(f"{error}")
    finally:
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


def _fail(message: str) -> int:
    print(f"enet_segmentation: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
