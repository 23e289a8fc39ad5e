"""Bags with a few images, written by rosbags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers import SIZE
from rosbags import rosbag1, rosbag2
from rosbags.typesys import Stores, get_typestore

from enet_deploy.data.scenes import street_scene
from enet_deploy.media.ros import image_fields

TOPIC = "/camera/image_raw"
FRAMES = [street_scene(seed, SIZE)[0] for seed in range(3)]
STAMPS = [1_700_000_000_000_000_123, 1_700_000_000_040_000_456, 1_700_000_002_000_000_789]  # of the camera
LATE = 7_000_000  # ns until the bag has a message


def message_types(is_ros1: bool) -> Any:
    return get_typestore(Stores.ROS1_NOETIC if is_ros1 else Stores.ROS2_HUMBLE)


def make_image(types: Any, is_ros1: bool, stamp: int, fields: dict[str, Any], kind: str = "Image") -> Any:
    sequence = {"seq": 5} if is_ros1 else {}
    time = types.types["builtin_interfaces/msg/Time"](sec=stamp // 10**9, nanosec=stamp % 10**9)
    header = types.types["std_msgs/msg/Header"](stamp=time, frame_id="front", **sequence)
    return types.types[f"sensor_msgs/msg/{kind}"](header=header, **fields)


def write_bag(
    path: Path, kind: str = "Image", fields: list[dict[str, Any]] | None = None, more: Sequence[str] = ()
) -> Path:
    """A bag with these images, and topics for more. Its suffix says ROS 1, or ROS 2 as one file or as a folder."""
    is_ros1 = path.suffix == ".bag"
    types = message_types(is_ros1)
    folder = path.with_suffix("")
    storage = rosbag2.StoragePlugin.MCAP if path.suffix == ".mcap" else rosbag2.StoragePlugin.SQLITE3
    writer: Any = rosbag1.Writer(path) if is_ros1 else rosbag2.Writer(folder, version=9, storage_plugin=storage)
    with writer:
        images = writer.add_connection(TOPIC, f"sensor_msgs/msg/{kind}", typestore=types)
        for topic in more:
            writer.add_connection(topic, f"sensor_msgs/msg/{kind}", typestore=types)
        names = writer.add_connection("/chatter", "std_msgs/msg/String", typestore=types)
        for stamp, one in zip(STAMPS, fields or [image_fields(frame) for frame in FRAMES], strict=False):
            message = make_image(types, is_ros1, stamp, one, kind)
            text = types.types["std_msgs/msg/String"](data="hello")
            for connection, what in ((images, message), (names, text)):
                serialize = types.serialize_ros1 if is_ros1 else types.serialize_cdr
                writer.write(connection, stamp + LATE, serialize(what, connection.msgtype))
    if path.suffix == ".mcap":
        (folder / f"{folder.name}.mcap").rename(path)
    return path if path.suffix else folder
