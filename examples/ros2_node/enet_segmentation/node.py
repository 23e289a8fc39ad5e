"""The node: ~/image in; ~/labels (mono8 class ids), ~/overlay and ~/classes (JSON, latched) out."""

from __future__ import annotations

import array
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from enet_deploy import EnetError, InputError, open_runner

from .segmentation import Segmentation


class SegmentationNode(Node):
    """Parameters: artifact, backend, device, alpha, compressed (input), reliability (of the input), depth."""

    def __init__(self) -> None:
        super().__init__("enet_segmentation")
        defaults = {"artifact": "", "backend": "", "device": "", "alpha": 0.5, "compressed": False}
        # best_effort receives from any camera; a reliable subscription gets nothing from a best_effort publisher
        defaults |= {"reliability": "best_effort", "depth": 1}
        given = {name: self.declare_parameter(name, default).value for name, default in defaults.items()}
        if not given["artifact"]:
            raise InputError(
                "parameter artifact is empty, expected a file: --ros-args -p artifact:=/path/enet-fp32.onnx"
            )
        if given["reliability"].upper() not in ReliabilityPolicy.__members__:
            raise InputError(f"parameter reliability '{given['reliability']}', expected best_effort or reliable")
        self.runner = open_runner(given["artifact"], given["backend"] or None, given["device"] or None)
        self.segmentation = Segmentation(self.runner, given["alpha"])
        self.get_logger().info(f"{self.runner.spec}")
        newest = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=given["depth"],
            reliability=ReliabilityPolicy[given["reliability"].upper()],
        )
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.labels = self.create_publisher(Image, "~/labels", 1)
        self.overlay = self.create_publisher(Image, "~/overlay", 1)
        self.classes = self.create_publisher(String, "~/classes", latched)
        self.classes.publish(String(data=self.segmentation.classes))
        self.diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 1)
        self.create_timer(1.0, self.diagnose)
        self.create_subscription(CompressedImage if given["compressed"] else Image, "~/image", self.on_image, newest)

    def on_image(self, message: Any) -> None:
        """Publish the labels of a message with its header; if that fails, log why, at most every five seconds."""
        try:
            watched = self.overlay.get_subscription_count() > 0
            labels, overlay = self.segmentation(message, with_overlay=watched)
        except EnetError as error:
            self.get_logger().warning(str(error), throttle_duration_sec=5.0)
            return
        for publisher, fields in ((self.labels, labels), (self.overlay, overlay)):
            if fields is not None:
                # rclpy takes an array of bytes as it is, and checks every element of anything else
                data = array.array("B", fields["data"].tobytes())
                publisher.publish(Image(header=message.header, **{**fields, "data": data}))

    def diagnose(self) -> None:
        """Publish a warning if images since the last call were unlike those that int8 was calibrated on."""
        status = DiagnosticStatus(name=self.get_fully_qualified_name(), hardware_id="", **self.segmentation.diagnosis())
        array_ = DiagnosticArray(status=[status])
        array_.header.stamp = self.get_clock().now().to_msg()
        self.diagnostics.publish(array_)

    def destroy_node(self) -> None:
        self.runner.close()
        super().destroy_node()


def main() -> None:
    rclpy.init()
    try:
        node = SegmentationNode()
    except EnetError as error:
        raise SystemExit(f"enet_segmentation: error: {error}") from None
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):  # Ctrl-C, and SIGTERM from the launcher
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
