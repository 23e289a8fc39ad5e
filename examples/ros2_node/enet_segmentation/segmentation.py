"""Process a message of the node, without ROS: from a sensor_msgs/Image to the fields of two output images."""

from __future__ import annotations

import json
from typing import Any

from enet_deploy import Runner
from enet_deploy.frame_range import RangeMonitor
from enet_deploy.images import overlay
from enet_deploy.media.ros import image_fields, to_bgr


class Segmentation:
    """Labels the images of messages.

    Args:
        runner: open; nothing else may use it.
        alpha: share of the colours in the overlay, 0 to 1.

    Attributes:
        monitor: counts the images that are unlike those that an int8 graph was calibrated on.
    """

    def __init__(self, runner: Runner, alpha: float = 0.5) -> None:
        self._runner, self._alpha = runner, alpha
        self.monitor = RangeMonitor(runner.spec)
        self._segment = self.monitor.watched(runner.segment)

    @property
    def classes(self) -> str:
        """The class list as JSON: names, colours (RGB) and the id of void."""
        return json.dumps(self._runner.spec.classes.to_json())

    def diagnosis(self) -> dict[str, Any]:
        """Return the fields of a DiagnosticStatus about the images since the last call: its level, OK or WARN, why."""
        summary = self.monitor.summary()
        self.monitor.outside, self.monitor.first = 0, ""
        return {"level": b"\1" if summary else b"\0", "message": summary or "ok"}

    def __call__(self, message: Any, with_overlay: bool = True) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Return the fields, without the header, of the label image (mono8) and of the overlay (bgr8).

        Args:
            message: a sensor_msgs/Image or CompressedImage, or any object with its fields.
            with_overlay: False saves the time for the overlay and returns None for it.

        Raises DataError if the message holds no image that can be read.
        """
        image = to_bgr(message)
        labels = self._segment(image)
        fields = None
        if with_overlay:
            fields = image_fields(overlay(image, labels, self._runner.spec.classes, self._alpha))
        return image_fields(labels), fields
