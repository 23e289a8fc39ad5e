"""Process a message of the node, without ROS: from a sensor_msgs/Image to the fields of the output images."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from enet_deploy import Runner, colorize
from enet_deploy.frame_range import RangeMonitor
from enet_deploy.images import UInt8Array, overlay
from enet_deploy.media.ros import image_fields, to_bgr


class Segmentation:
    """Labels the images of messages.

    Args:
        runner: open; nothing else may use it.
        alpha: share of the colours in the overlay, 0 to 1.

    Attributes:
        alpha: as above; may be set at any time.
        monitor: counts the images that are unlike those that an int8 graph was calibrated on.
        image: (h, w, 3) uint8 BGR, the last image that could be read.
    """

    def __init__(self, runner: Runner, alpha: float = 0.5) -> None:
        self._runner, self.alpha = runner, alpha
        self.monitor = RangeMonitor(runner.spec)
        self._segment = self.monitor.watched(runner.segment)
        self._segment_with_confidence = self.monitor.watched(runner.segment_with_confidence)
        self.image: UInt8Array | None = None

    @property
    def classes(self) -> str:
        """The class list as JSON: names, colours (RGB) and the id of void."""
        return json.dumps(self._runner.spec.classes.to_json())

    def range_warning(self) -> str:
        """Say how many images since the last call were unlike those that int8 was calibrated on; "" if none was."""
        summary = self.monitor.summary()
        self.monitor.outside, self.monitor.first = 0, ""
        return summary

    def __call__(self, message: Any, wanted: Collection[str] = ()) -> dict[str, dict[str, Any]]:
        """Return output -> fields of a sensor_msgs/Image without the header.

        Args:
            message: a sensor_msgs/Image or CompressedImage, or any object with its fields.
            wanted: the outputs beside "labels" (mono8, class ids): "overlay" and "color_mask" (bgr8), "confidence"
                (mono8, 255 times the probability of the label; of an artifact that was exported with --confidence).

        Raises DataError if the message holds no image that can be read.
        """
        self.image = to_bgr(message)
        classes = self._runner.spec.classes
        outputs = {}
        if "confidence" in wanted:
            labels, confidence = self._segment_with_confidence(self.image)
            outputs["confidence"] = image_fields(confidence)
        else:
            labels = self._segment(self.image)
        outputs["labels"] = image_fields(labels)
        if "overlay" in wanted:
            outputs["overlay"] = image_fields(overlay(self.image, labels, classes, self.alpha))
        if "color_mask" in wanted:
            outputs["color_mask"] = image_fields(colorize(labels, classes))
        return outputs


def label_info(classes: list[str], message_type: Any, class_type: Any) -> Any:
    """Return a vision_msgs/LabelInfo of these names. The types are arguments, as vision_msgs may not be installed."""
    return message_type(class_map=[class_type(class_id=id_, class_name=name) for id_, name in enumerate(classes)])
