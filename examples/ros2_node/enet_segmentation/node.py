"""The node: ~/image in; labels and what is made of them out, with /diagnostics. Its README lists the topics."""

from __future__ import annotations

import array
import re
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from enet_deploy import EnetError, InputError, Runner, Spec, open_runner

from .health import ERROR, Health, Limits
from .parameters import declare
from .segmentation import Segmentation, label_info

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ModuleNotFoundError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks
try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ModuleNotFoundError:  # not part of a small ROS installation
    LabelInfo = None

_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_QUIET_SECONDS = 5.0  # between two lines about the same kind of error
_LOOK_SECONDS = 0.2  # between two looks at the camera's reliability
_LOST = (
    "images are lost on the way to the node; start the camera with the Fast DDS profile of this package, see its README"
)


class SegmentationNode(Node):
    """Labels the images of a camera. `parameters` lists the parameters.

    Raises InputError for a parameter that is out of its range. `start` opens the artifact and subscribes.
    """

    def __init__(self) -> None:
        super().__init__("enet_segmentation")
        self.runner: Runner | None = None
        self._subscription: Any = None
        self._given = declare(self)
        self._said: dict[str, float] = {}  # kind of error -> when it was logged

    def start(self) -> None:
        """Open the artifact, announce the topics and subscribe.

        Raises EnetError if the artifact cannot be opened, InputError if a topic's quality is overridden with a wrong
        value.
        """
        given = self._given
        self.runner = open_runner(given["artifact"], given["backend"] or None, given["device"] or None)
        self.get_logger().info(_describe(self.runner.spec))
        self.segmentation = Segmentation(self.runner, given["alpha"])
        self.health = Health(self._limits(), time.monotonic())
        outputs = ["labels", "overlay", "color_mask", *["confidence"] * self.runner.spec.has_confidence]
        self._outputs = {name: self._image_publisher(f"~/{name}") for name in outputs}
        self._announce_classes()
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 1)
        self._reliability = ReliabilityPolicy.RELIABLE
        if given["reliability"] != "auto":
            self._reliability = ReliabilityPolicy[given["reliability"].upper()]
        else:
            self.create_timer(_LOOK_SECONDS, self._follow_camera)
        self._subscribe()
        self.create_timer(1.0, self._diagnose)

    def _image_publisher(self, topic: str) -> Any:
        overridable = QoSOverridingOptions.with_default_policies()
        try:
            return self.create_publisher(Image, topic, 1, qos_overriding_options=overridable)
        except Exception as error:  # noqa: BLE001  wrong values raise errors of several private types
            name = f"qos_overrides.{self.resolve_topic_name(topic)}.publisher"
            raise InputError(f"parameter {name}: {error}; expected what the node's README lists") from None

    def _announce_classes(self) -> None:
        """Publish the class list for all who subscribe later too."""
        assert self.runner is not None
        self._classes = self.create_publisher(String, "~/classes", _LATCHED)
        self._classes.publish(String(data=self.segmentation.classes))
        if LabelInfo is None:
            self.get_logger().info("no ~/label_info: the package vision_msgs is not installed")
            return
        self._label_info = self.create_publisher(LabelInfo, "~/label_info", _LATCHED)
        message = label_info(list(self.runner.spec.classes.names), LabelInfo, VisionClass)
        message.header.stamp = self.get_clock().now().to_msg()
        self._label_info.publish(message)

    def _subscribe(self) -> None:
        if self._subscription is not None:
            self.destroy_subscription(self._subscription)
        is_raw = self._given["image_transport"] == "raw"
        self._subscription = self.create_subscription(
            Image if is_raw else CompressedImage,
            "~/image" if is_raw else self.resolve_topic_name("~/image") + "/compressed",
            self._on_image,
            QoSProfile(depth=self._given["depth"], reliability=self._reliability),
            event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=self._given["reliability"] != "auto"),
        )

    def _follow_camera(self) -> None:
        """Subscribe as reliably as the camera publishes.

        A best-effort subscription loses most images above 0.5 MB in Fast DDS's shared memory of default size. A
        reliable one gets nothing from a best-effort camera. The policy "best available" looks at the camera once, when
        the node subscribes, and takes best effort if there is no camera yet.
        """
        cameras = self.get_publishers_info_by_topic(self._subscription.topic_name)
        offered = {camera.qos_profile.reliability for camera in cameras}
        if not offered:
            return
        wanted = (
            ReliabilityPolicy.RELIABLE if offered == {ReliabilityPolicy.RELIABLE} else ReliabilityPolicy.BEST_EFFORT
        )
        if wanted != self._reliability:
            self._reliability = wanted
            self._subscribe()

    def _on_image(self, message: Any) -> None:
        """Publish the labels of a message with its header; log an error, at most one line of a kind in a while."""
        start = time.monotonic()
        stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        if self.health.arrived(stamp, start):
            self._warn(_LOST)
        self.segmentation.alpha = self.get_parameter("alpha").value  # may be set at any time
        wanted = [name for name, publisher in self._outputs.items() if publisher.get_subscription_count()]
        try:
            outputs = self.segmentation(message, wanted)
        except EnetError as error:
            self.health.errors.append(f"{error}")
            self._warn(f"{error}")
            return
        for name, fields in outputs.items():
            # rclpy takes an array of bytes as it is, and checks every element of anything else
            data = array.array("B", fields["data"].tobytes())
            self._outputs[name].publish(Image(header=message.header, **{**fields, "data": data}))
        now = time.monotonic()
        latency = (self.get_clock().now().nanoseconds - stamp) / 1e9 if stamp else None
        assert self.segmentation.image is not None
        self.health.labelled(self.segmentation.image, latency, now - start, now)

    def _warn(self, message: str) -> None:
        """Log a warning, unless one of its kind, of the same words with any numbers, was logged a moment ago."""
        kind, now = re.sub(r"\d+", "0", message), time.monotonic()
        if now - self._said.get(kind, -_QUIET_SECONDS) >= _QUIET_SECONDS:
            if len(self._said) >= 100:
                self._said.clear()
            self._said[kind] = now
            self.get_logger().warning(message)

    def _limits(self) -> Limits:
        return Limits(*(self.get_parameter(name).value for name in ("dark_level", "frozen_after", "stale_after")))

    def _diagnose(self) -> None:
        self.health.limits = self._limits()
        cameras = self.count_publishers(self._subscription.topic_name)
        report = self.health.report(time.monotonic(), self.segmentation.range_warning(), cameras)
        if cameras and report.level == ERROR:
            self._warn(f"{report.message}: it sends none, or {_LOST}")
        status = DiagnosticStatus(
            level=report.level,
            name=self.get_fully_qualified_name(),
            message=report.message,
            hardware_id=self._subscription.topic_name,
            values=[KeyValue(key=key, value=value) for key, value in report.values.items()],
        )
        message = DiagnosticArray(status=[status])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def destroy_node(self) -> None:
        if self.runner is not None:
            self.runner.close()
        super().destroy_node()


def _describe(spec: Spec) -> str:
    """Describe the open runner in a line."""
    height, width = spec.size
    where = f"{spec.backend} on {spec.device}" + (f" ({spec.runtime})" if spec.runtime else "")
    return f"{spec.artifact}: {spec.precision}, {height}x{width}, {len(spec.classes)} classes, {where}"
