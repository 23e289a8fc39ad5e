"""Read the images of a topic from a ROS bag, and write a bag with their labels. ROS 1 (.bag) and 2 (.mcap, .db3).

ROS itself is not needed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rosbags import highlevel, rosbag1, rosbag2
from rosbags.typesys import Stores, get_typestore

from ..classes import ClassList
from ..errors import DataError, InputError
from ..files import atomic_write
from .frames import Frame, Frames, FrameSource, LabelledFrame
from .ros import image_fields, to_bgr
from .sinks import Sink

NANO = 1_000_000_000
IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")


@dataclass(frozen=True)
class BagFrame(Frame):
    """A frame of a bag.

    Attributes:
        stamp: time in its header, in nanoseconds.
        frame_id: of its header.
        received: time at which the bag received it, in nanoseconds.
    """

    stamp: int = 0
    frame_id: str = ""
    received: int = 0


class Bag(FrameSource):
    """The images of one topic, raw or compressed, in the order in which the bag received them.

    Without a `topic`, take the only topic that has images. Raises DataError if the bag cannot be read, InputError if
    the topic has no images or several topics have some.
    """

    def __init__(self, path: Path, topic: str | None) -> None:
        super().__init__(str(path))
        if not path.exists():
            raise DataError(f"{path} does not exist; expected a ROS bag")
        try:
            self._reader = highlevel.AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
            self._reader.open()
        except Exception as error:  # noqa: BLE001  a damaged bag makes rosbags raise errors of many types
            advice = "; if its recorder was cut off, `mcap recover` may repair it" * (path.suffix == ".mcap")
            raise DataError(f"{path} cannot be read as a ROS bag: {error or repr(error)}{advice}") from None
        images = [c for c in self._reader.connections if c.msgtype in IMAGE_TYPES]
        known = sorted({c.topic for c in images})
        if topic not in known and (topic is not None or len(known) != 1):
            self._reader.close()
            if not known:
                raise InputError(f"{path} has no images, expected messages of {' or '.join(IMAGE_TYPES)}")
            flaw = "needs a --topic" if topic is None else f"has no images under --topic {topic}"
            raise InputError(f"{path} {flaw}, expected {' or '.join(known)}")
        self.topic = topic or known[0]
        self._connections = [c for c in images if c.topic == self.topic]
        self.total = sum(c.msgcount for c in self._connections)
        self._start = 0  # when the first image was received; other topics may begin earlier

    def frames(self) -> Frames:
        with closing(self._reader):
            messages = self._reader.messages(self._connections)
            for count in itertools.count():
                try:
                    message = next(messages, None)
                except Exception as error:  # noqa: BLE001  as above
                    yield DataError(f"{self.name} cannot be read to its end: {error!r}")
                    return
                if message is None:
                    return
                self._start = self._start or message[1]
                yield self._read(count, *message)

    def _read(self, count: int, connection: Any, received: int, data: bytes) -> BagFrame | DataError:
        try:
            return self._frame(count, connection, received, data)
        except DataError as error:
            return DataError(f"{self.name}: message {count} of {self.topic}: {error}")
        except Exception as error:  # noqa: BLE001  as above
            return DataError(f"{self.name}: message {count} of {self.topic} is damaged: {error!r}")

    def _frame(self, count: int, connection: Any, received: int, data: bytes) -> BagFrame:
        message: Any = self._reader.deserialize(data, connection.msgtype)
        header, time = message.header, Fraction(received - self._start, NANO)
        stamp = header.stamp.sec * NANO + header.stamp.nanosec
        return BagFrame(to_bgr(message), f"{count:06}", time, stamp, header.frame_id, received)


@contextmanager
def label_bag(path: Path, topic: str, classes: ClassList) -> Iterator[Sink]:
    """Write the labels of a bag's frames to a new bag.

    TOPIC/labels holds mono8 images with the header and time of their frames, TOPIC/classes the class list once, as
    JSON. A .bag is of ROS 1, an .mcap of ROS 2. The file appears when the block ends without an error. Raises
    ArtifactError if it cannot be written.
    """
    with atomic_write(path) as temporary, TemporaryDirectory(dir=temporary.parent) as folder:
        is_ros1 = path.suffix.lower() == ".bag"
        types = get_typestore(Stores.ROS1_NOETIC if is_ros1 else Stores.ROS2_HUMBLE)
        written = Path(folder) / path.name
        if is_ros1:
            writer: Any = rosbag1.Writer(written)
        else:
            writer = rosbag2.Writer(Path(folder) / "bag", version=9, storage_plugin=rosbag2.StoragePlugin.MCAP)
            written = Path(folder) / "bag" / "bag.mcap"
        serialize = types.serialize_ros1 if is_ros1 else types.serialize_cdr
        with writer:
            images = writer.add_connection(f"{topic}/labels", IMAGE_TYPES[0], typestore=types)
            names = writer.add_connection(f"{topic}/classes", "std_msgs/msg/String", typestore=types)
            text = json.dumps(classes.to_json())
            string = types.types[names.msgtype]
            image, header, time = (
                types.types[name] for name in (IMAGE_TYPES[0], "std_msgs/msg/Header", "builtin_interfaces/msg/Time")
            )
            has_classes = False

            def write(item: LabelledFrame) -> None:
                nonlocal has_classes
                frame = item.frame
                assert isinstance(frame, BagFrame)
                if not has_classes:
                    writer.write(names, frame.received, serialize(string(data=text), names.msgtype))
                    has_classes = True
                fields = {"seq": 0} if is_ros1 else {}
                stamp = time(sec=frame.stamp // NANO, nanosec=frame.stamp % NANO)
                message = image(
                    header=header(stamp=stamp, frame_id=frame.frame_id, **fields), **image_fields(item.labels)
                )
                writer.write(images, frame.received, serialize(message, images.msgtype))

            yield write
        written.replace(temporary)
