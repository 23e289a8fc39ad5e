"""What the node does with a message, without ROS: sensor_msgs/Image in, the fields of two of them out."""

from __future__ import annotations

import json
from typing import Any

from enet_deploy import Runner
from enet_deploy.images import overlay
from enet_deploy.media.ros import image_fields, to_bgr


class Segmentation:
    """Labels the pictures of messages.

    Args:
        runner: open, and used by this alone.
        alpha: share of the colours in the overlay, 0 to 1.
    """

    def __init__(self, runner: Runner, alpha: float = 0.5) -> None:
        self._runner, self._alpha = runner, alpha

    @property
    def classes(self) -> str:
        """What the ids mean, as JSON: names, colours (RGB) and the id of void."""
        return json.dumps(self._runner.spec.classes.to_json())

    def __call__(self, message: Any, with_overlay: bool = True) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The fields, without the header, of the label image (mono8) and of the overlay (bgr8).

        Args:
            message: a sensor_msgs/Image or CompressedImage, of ROS or of anything with its fields.
            with_overlay: False where nobody looks at it, which saves its time; then there is None.

        Raises DataError where the message has no picture that can be read.
        """
        image = to_bgr(message)
        labels = self._runner.segment(image)
        picture = None
        if with_overlay:
            picture = image_fields(overlay(image, labels, self._runner.spec.classes, self._alpha))
        return image_fields(labels), picture
