"""Read the images of a topic from a ROS bag, and write a bag with their labels. ROS 1 (.bag) and 2 (.mcap, .db3).

ROS itself is not needed.
"""

from __future__ import annotations

import importlib
import io
import itertools
import json
import logging
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rosbags import highlevel, rosbag1, rosbag2
from rosbags.typesys import Stores, get_typestore

from ..classes import ClassList
from ..errors import DataError, InputError
from ..files import atomic_write
from ..images import MAX_BYTES, UInt8Array
from .bag_files import is_described, recordings
from .bag_video import DEFINITIONS, FOXGLOVE, VIDEO_TYPES, PacketDecoder
from .frames import Clock, Frame, Frames, FrameSource, LabelledFrame
from .ros import image_fields, to_bgr
from .sinks import Sink

log = logging.getLogger(__name__)

NANO = 1_000_000_000
EARLIEST = -(1 << 63)  # else messages of before 1970 are left out
ZSTD = b"\x28\xb5\x2f\xfd"  # how compressed data begins; a message begins with 0, its byte order
MCAP = b"\x89MCAP0\r\n"
MCAP_END = b"\x0f" + (4).to_bytes(8, "little") + bytes(4) + b"\x02" + (20).to_bytes(8, "little") + bytes(20) + MCAP
IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
_HEADER, _CHANNEL = 0x01, 0x04  # records of an .mcap
_ENCODINGS = {
    "ros1": "ROS 1 messages",
    "protobuf": "Protobuf",
    "json": "JSON",
    "flatbuffer": "FlatBuffers",
    "cdr": "CDR",
}
_Decoded = tuple[tuple[int, int, str, int], UInt8Array]  # number, stamp, frame_id and time of a message, and its image
READ_TYPES = (*IMAGE_TYPES, *VIDEO_TYPES)
STRING_TYPE = "std_msgs/msg/String"


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
    """The images of one topic, raw, compressed or coded as video, in the order in which the bag received them.

    A bag may be compressed. It may also lack metadata.yaml or the end of its .mcap, because its recorder was killed;
    then all whole records are read.

    Without a `topic`, take the only topic that has images. Raises DataError if the bag cannot be read, InputError if
    the topic has no images or several topics have some.
    """

    def __init__(self, path: Path, topic: str | None) -> None:
        super().__init__(str(path))
        if not (path.is_file() or path.is_dir()):  # a pipe would be read without end
            raise DataError(f"{path} {'is a device' if path.exists() else 'does not exist'}; expected a ROS bag")
        self._stack = ExitStack()
        try:
            folder = self._stack.enter_context(TemporaryDirectory(prefix="enet-bag-"))
            files = [_readable(file, Path(folder)) for file in _opened(path)]
            for file in files:
                _require_ros2(file, path)
            known_types = get_typestore(Stores.ROS2_HUMBLE)
            known_types.register(DEFINITIONS)
            self._reader = highlevel.AnyReader(files, default_typestore=known_types)
            self._reader.open()
            self._stack.callback(self._reader.close)
        except DataError:
            self._stack.close()
            raise
        except Exception as error:  # noqa: BLE001  a damaged bag makes rosbags raise errors of many types
            self._stack.close()
            raise DataError(f"{path} cannot be read as a ROS bag: {error or repr(error)}") from None
        images = [c for c in self._reader.connections if c.msgtype in READ_TYPES]
        known = sorted({c.topic for c in images})
        if topic not in known and (topic is not None or len(known) != 1):
            self._stack.close()
            if not known:
                raise InputError(f"{path} has no images, expected messages of {' or '.join(READ_TYPES)}")
            flaw = "needs a --topic" if topic is None else f"has no images under --topic {topic}"
            raise InputError(f"{path} {flaw}, expected {' or '.join(known)}")
        self.topic = topic or known[0]
        self._connections = [c for c in images if c.topic == self.topic]
        self.total = sum(c.msgcount for c in self._connections)
        self._start: int | None = None  # when the first image was received; other topics may begin earlier
        self._clock = Clock(self.name, self.rate)
        self._decoder = PacketDecoder()

    def frames(self) -> Frames:
        with closing(self._stack):
            messages = self._reader.messages(self._connections, start=EARLIEST)
            for count in itertools.count():
                try:
                    message = next(messages, None)
                except Exception as error:  # noqa: BLE001  as above
                    yield DataError(f"{self.name} cannot be read to its end: {error!r}")
                    return
                if message is None:
                    yield from self._guarded(count, self._decoder.flush)
                    return
                if self._start is None:
                    self._start = message[1]
                yield from self._guarded(count, partial(self._decoded, count, *message))

    def _guarded(self, count: int, decode: Callable[[], list[_Decoded]]) -> Iterator[BagFrame | DataError]:
        """Yield the frames that `decode` returns for a message, or the error in their place."""
        try:
            for (number, stamp, frame_id, received), image in decode():
                time = self._clock.time(Fraction(received - (self._start or 0), NANO))
                yield BagFrame(image, f"{number:06}", time, stamp, frame_id, received)
        except DataError as error:
            yield DataError(f"{self.name}: message {count} of {self.topic}: {error}")
        except Exception as error:  # noqa: BLE001  as above
            yield DataError(f"{self.name}: message {count} of {self.topic} is damaged: {error!r}")

    def _decoded(self, count: int, connection: Any, received: int, data: bytes) -> list[_Decoded]:
        if self._reader.is2 and data[: len(ZSTD)] == ZSTD:
            data = _unpacked(data)
        message: Any = self._reader.deserialize(data, connection.msgtype)
        if connection.msgtype == FOXGLOVE:  # which has no header
            stamp, frame_id = message.timestamp, message.frame_id
        else:
            stamp, frame_id = message.header.stamp, message.header.frame_id
        tag = (count, stamp.sec * NANO + stamp.nanosec, frame_id, received)
        if connection.msgtype in VIDEO_TYPES:
            return self._decoder.decode(message, tag)
        return [(tag, to_bgr(message))]


def _require_ros2(file: Path, path: Path) -> None:
    """Raise DataError that names `path` and what is in it, if `file` is an .mcap of other messages than ROS 2's."""
    if file.suffix.lower() != ".mcap" or not file.is_file():
        return
    with file.open("rb") as opened:
        profile, encodings = _mcap_contents(opened, file.stat().st_size)
    if profile in (None, "ros2"):
        return
    found = " and ".join(sorted(_ENCODINGS.get(name, name) for name in encodings)) or f"profile '{profile}'"
    raise DataError(
        f"{path} is an MCAP file of {found}, expected ROS 2 messages (profile ros2, CDR); record or convert it as ROS "
        "2, or give its video or images as files"
    )


def _mcap_contents(file: Any, size: int) -> tuple[str | None, set[str]]:
    """Return the profile of an .mcap, None if it has no header, and the encodings of its channels outside of chunks."""
    if file.read(len(MCAP)) != MCAP:
        return None, set()
    profile, encodings = None, set()
    while len(head := file.read(9)) == 9 and (end := file.tell() + int.from_bytes(head[1:], "little")) <= size:
        if head[0] == _HEADER:
            profile = _text(file)
        elif head[0] == _CHANNEL:
            file.seek(4, io.SEEK_CUR)  # its number and that of its schema
            _text(file)  # its topic
            encodings.add(_text(file))
        file.seek(end)
    return profile, encodings


def _text(file: Any) -> str:
    length = int.from_bytes(file.read(4), "little")
    return str(file.read(min(length, 1000)).decode(errors="replace"))


def _opened(path: Path) -> list[Path]:
    """What to open for a bag: itself, or the files of a folder that its recorder has not described."""
    if not path.is_dir() or is_described(path):
        return [path]
    log.warning("%s has no metadata.yaml of a recorder, as if it was killed; its files are read", path)
    return recordings(path)


def _readable(path: Path, folder: Path) -> Path:
    """The file itself, or a whole, uncompressed copy of it in `folder`. Raises DataError if it does not fit there."""
    if path.suffix.lower() == ".zstd":
        unpacked = folder / path.stem
        with _zstd().open(str(path), "rb") as file:
            _copy(file, unpacked, path)
        path = unpacked
    if path.suffix.lower() == ".mcap" and path.is_file():
        with path.open("rb") as file:
            end = _whole_records(file, path.stat().st_size)
            if end is not None:
                mended = folder / f"whole-{path.name}"
                file.seek(0)
                _copy(file, mended, path, end)
                with mended.open("ab") as copy:
                    copy.write(MCAP_END)
                log.warning("%s is cut off, as its recorder was; of its messages, the whole ones are read", path)
                return mended
    return path


def _whole_records(file: Any, size: int) -> int | None:
    """The end of the last whole record in an .mcap that is cut off; None if it is complete, or has no record."""
    file.seek(max(0, size - len(MCAP)))
    if file.read() == MCAP:
        return None
    file.seek(len(MCAP))
    end = None
    while len(head := file.read(9)) == 9 and 0 < head[0] < 0x0F:
        end_of_this = file.tell() + int.from_bytes(head[1:], "little")
        if end_of_this > size:
            break
        file.seek(end_of_this)
        end = end_of_this
    return end


def _copy(file: Any, target: Path, source: Path, size: int | None = None) -> None:
    """Copy a file, or its first `size` bytes. Raises DataError if the disk of `target` has no room for it."""
    left = size
    with target.open("wb") as copy:
        while piece := file.read(1 << 20 if left is None else min(left, 1 << 20)):
            left = None if left is None else left - len(piece)
            if shutil.disk_usage(target.parent).free < (64 << 20):
                raise DataError(
                    f"{source} does not fit into {target.parent}; free space, or set TMPDIR to another folder"
                )
            copy.write(piece)


def _zstd() -> Any:
    """The library for zstd that rosbags brings, or Python's own."""
    for name in ("compression.zstd", "backports.zstd", "zstandard"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise DataError("the bag is compressed, and there is no package to read it; pip install backports.zstd")


def _unpacked(data: bytes) -> bytes:
    with _zstd().open(io.BytesIO(data), "rb") as file:
        content: bytes = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DataError(f"it unpacks to over {MAX_BYTES} bytes, expected an image")
    return content


@contextmanager
def label_bag(path: Path, topic: str, classes: ClassList) -> Iterator[Sink]:
    """Write the labels of a bag's frames to a new bag.

    TOPIC/labels holds mono8 images with the header and time of their frames, TOPIC/classes the class list once, as
    JSON. A .bag is of ROS 1, an .mcap of ROS 2. The file appears when the block ends without an error. Raises
    ArtifactError if it cannot be written.
    """
    with atomic_write(path) as temporary, TemporaryDirectory(dir=temporary.parent) as folder:
        is_ros1 = path.suffix.lower() == ".bag"
        written = Path(folder) / (path.name if is_ros1 else "bag/bag.mcap")
        if is_ros1:
            writer: Any = rosbag1.Writer(written)
        else:
            writer = rosbag2.Writer(written.parent, version=9, storage_plugin=rosbag2.StoragePlugin.MCAP)
        with writer:
            yield _LabelWriter(path, writer, topic, classes, is_ros1)
        written.replace(temporary)


class _LabelWriter:
    """A sink for an open bag of one ROS version. Errors name the file `path`."""

    def __init__(self, path: Path, writer: Any, topic: str, classes: ClassList, is_ros1: bool) -> None:
        self._path, self._writer, self._classes = path, writer, classes
        types = get_typestore(Stores.ROS1_NOETIC if is_ros1 else Stores.ROS2_HUMBLE)
        self._types, self._serialize = types.types, types.serialize_ros1 if is_ros1 else types.serialize_cdr
        self._images = writer.add_connection(f"{topic}/labels", IMAGE_TYPES[0], typestore=types)
        self._names = writer.add_connection(f"{topic}/classes", STRING_TYPE, typestore=types)
        self._more_fields = {"seq": 0} if is_ros1 else {}  # of a header
        self._has_classes = False

    def __call__(self, item: LabelledFrame) -> None:
        frame = item.frame
        assert isinstance(frame, BagFrame)
        if not self._has_classes:
            self._put(self._names, frame, data=json.dumps(self._classes.to_json()))
            self._has_classes = True
        stamp = self._types["builtin_interfaces/msg/Time"](sec=frame.stamp // NANO, nanosec=frame.stamp % NANO)
        header = self._types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame.frame_id, **self._more_fields)
        self._put(self._images, frame, header=header, **image_fields(item.labels))

    def _put(self, connection: Any, frame: BagFrame, **fields: Any) -> None:
        message = self._types[connection.msgtype](**fields)
        try:
            self._writer.write(connection, frame.received, self._serialize(message, connection.msgtype))
        except (ArithmeticError, ValueError, struct.error) as error:
            raise DataError(
                f"the stamp {frame.stamp} ns, received at {frame.received} ns, of frame {frame.name} does not fit into "
                f"{self._path}: {error}; write a bag of the other ROS version"
            ) from None
