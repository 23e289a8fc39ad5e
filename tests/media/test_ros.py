"""ROS without ROS: messages of real bags, which rosbags writes and reads, the node's logic, enet-segment of a bag."""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from helpers import ROOT, SIZE
from videos import frames_of

from enet_deploy import CAMVID, DataError, colorize, open_runner
from enet_deploy.commands.segment import main
from enet_deploy.images import overlay
from enet_deploy.media.frames import Frame
from enet_deploy.media.ros import image_fields, to_bgr

pytest.importorskip("rosbags")
from bags import FRAMES, LATE, STAMPS, TOPIC, make_image, message_types, write_bag
from rosbags import highlevel, rosbag2

sys.path.insert(0, str(ROOT / "examples" / "ros2_node"))
from enet_segmentation.health import ERROR, OK, WARN, Health, Limits
from enet_segmentation.segmentation import Segmentation, label_info

from enet_deploy.media.bag_video import DEFINITIONS, FOXGLOVE, VIDEO_TYPES, PacketDecoder
from enet_deploy.media.bags import ZSTD, Bag

RED = np.full((4, 6, 3), (10, 20, 200), np.uint8)


def messages(path: Path, topic: str) -> Iterator[tuple[int, Any]]:
    """The time of a message in the bag, and the message."""
    with highlevel.AnyReader([path]) as reader:
        connections = [c for c in reader.connections if c.topic == topic]
        for connection, received, data in reader.messages(connections):
            yield received, reader.deserialize(data, connection.msgtype)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["drive.bag", "drive.mcap", "drive"])
@pytest.mark.parametrize("result", ["labels.bag", "labels.mcap"])
def test_labels_of_a_bag_have_its_stamps(exported: Path, tmp_path: Path, source: str, result: str) -> None:
    bag = write_bag(tmp_path / source)
    out = tmp_path / result
    assert main([str(exported), str(bag), "--topic", TOPIC, "--out", str(out)]) == 0
    found = list(messages(out, f"{TOPIC}/labels"))
    assert [received for received, _ in found] == [stamp + LATE for stamp in STAMPS]
    with open_runner(exported) as runner:
        for stamp, frame, (_, message) in zip(STAMPS, FRAMES, found, strict=True):
            assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec == stamp
            assert (message.header.frame_id, message.encoding, message.step) == ("front", "mono8", SIZE[1])
            assert np.array_equal(message.data.reshape(SIZE), runner.segment(frame))
    ((_, classes),) = messages(out, f"{TOPIC}/classes")
    assert json.loads(classes.data) == CAMVID.to_json()
    assert not list(tmp_path.glob(".*"))


def test_compressed_images_of_a_bag_and_a_video_of_them(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip("av")
    jpegs = [{"format": "jpeg", "data": cv2.imencode(".jpg", frame)[1].reshape(-1)} for frame in FRAMES]
    bag = write_bag(tmp_path / "drive.mcap", "CompressedImage", jpegs)
    monkeypatch.chdir(tmp_path)
    assert main([str(exported), str(bag), "--topic", TOPIC, "--out", "drive.mp4"]) == 0
    with av.open("drive.mp4") as video:
        times = [float(frame.time) for frame in video.decode(video=0)]
    assert times == pytest.approx([0, 0.040000333, 2.000000666], abs=2e-6)
    assert main([str(exported), str(bag)]) == 0  # by default a bag, of the one topic that there is
    assert len(list(messages(tmp_path / "drive-segmented.mcap", f"{TOPIC}/labels"))) == 3


def test_damaged_messages_are_counted_and_skipped(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = [image_fields(frame) for frame in FRAMES]
    fields[0]["height"] += 1
    fields[1]["encoding"] = "depth"
    out = tmp_path / "labels.mcap"
    bag = write_bag(tmp_path / "drive.bag", fields=fields)
    assert main([str(exported), str(bag), "--topic", TOPIC, "--out", str(out)]) == 0
    told = capsys.readouterr().err
    assert "1 frame of" in told and "2 could not be decoded" in told and "expected 97 rows of at least 384" in told
    assert [received for received, _ in messages(out, f"{TOPIC}/labels")] == [STAMPS[2] + LATE]


@pytest.mark.parametrize(
    ("name", "topic", "message"),
    [
        ("drive.bag", "/front", f"has no images under --topic /front, expected {TOPIC}"),
        ("drive.bag", "/chatter", f"has no images under --topic /chatter, expected {TOPIC}"),
        ("cut.bag", TOPIC, "cut.bag cannot be read as a ROS bag"),
        ("cut.mcap", TOPIC, "cut.mcap cannot be read as a ROS bag"),
        ("nowhere.mcap", TOPIC, "nowhere.mcap does not exist; expected a ROS bag"),
        ("pipe.bag", TOPIC, "pipe.bag is a device; expected a ROS bag"),
        ("many.bag", None, f"many.bag needs a --topic, expected {TOPIC} or /rear"),
    ],
)
def test_bad_bag_is_explained(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, topic: str | None, message: str
) -> None:
    write_bag(tmp_path / "drive.bag")
    write_bag(tmp_path / "many.bag", more=("/rear",))
    (tmp_path / "cut.bag").write_bytes((tmp_path / "drive.bag").read_bytes()[:5000])
    (tmp_path / "cut.mcap").write_bytes(b"\x89MCAP0\r\n" + bytes(100))
    os.mkfifo(tmp_path / "pipe.bag")
    options = [] if topic is None else ["--topic", topic]
    assert main([str(exported), str(tmp_path / name), *options, "--out", str(tmp_path / "a.bag")]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not (tmp_path / "a.bag").exists()


def padded(pixels: npt.NDArray[Any], encoding: str, is_bigendian: int = 0) -> dict[str, Any]:
    """Fields of an image whose rows have four bytes more than pixels, as cameras' DMA leaves them."""
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, -1)
    data = np.pad(rows, ((0, 0), (0, 4)), constant_values=99)
    return {
        "height": height, "width": width, "encoding": encoding, "is_bigendian": is_bigendian,
        "step": data.shape[1], "data": data.reshape(-1),
    }  # fmt: skip


def mosaic(pattern: str) -> npt.NDArray[np.uint8]:
    """RED as a sensor with these filters sees it: those of the first two rows, two each."""
    pixels = np.empty(RED.shape[:2], np.uint8)
    for index, color in enumerate(pattern):
        row, column = divmod(index, 2)
        pixels[row::2, column::2] = RED[row::2, column::2, "bgr".index(color)]
    return pixels


GREY = cv2.cvtColor(RED, cv2.COLOR_BGR2GRAY)
Y, U, V = cv2.cvtColor(RED, cv2.COLOR_BGR2YUV_I420).reshape(-1)[[0, 24, 30]]  # of limited range, as cameras send them
ENCODED = {
    "bgr8": RED,
    "8UC3": RED,
    "rgb8": RED[:, :, ::-1],
    "bgra8": np.dstack([RED, GREY]),
    "rgba8": np.dstack([RED[:, :, ::-1], GREY]),
    "mono8": GREY,
    "mono16": GREY.astype(np.uint16) * 256 + 77,
    "yuv422": np.tile(np.array([[U, Y], [V, Y]], np.uint8), (4, 3, 1)),
    "yuv422_yuy2": np.tile(np.array([[Y, U], [Y, V]], np.uint8), (4, 3, 1)),
    # the colours' plane of RED: a pair for 2x2 pixels
    "nv12": np.vstack([np.full((4, 6), Y, np.uint8), np.tile(np.array([U, V], np.uint8), (2, 3))]),
    "nv21": np.vstack([np.full((4, 6), Y, np.uint8), np.tile(np.array([V, U], np.uint8), (2, 3))]),
    **{f"bayer_{pattern}8": mosaic(pattern) for pattern in ("rggb", "bggr", "gbrg", "grbg")},
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_encodings_and_padded_rows(encoding: str) -> None:
    types = message_types(is_ros1=False)
    pixels = ENCODED[encoding].astype(np.uint16 if encoding == "mono16" else np.uint8)
    bgr = to_bgr(make_image(types, False, STAMPS[0], padded(pixels, encoding) | {"height": RED.shape[0]}))
    expected = np.dstack([GREY] * 3) if encoding.startswith("mono") else RED
    assert bgr.dtype == np.uint8 and bgr.flags.writeable and bgr.flags.c_contiguous
    assert np.abs(bgr.astype(int) - expected).max() <= (12 if encoding.startswith(("yuv", "nv")) else 1)
    if encoding == "mono16":
        swapped = make_image(types, False, STAMPS[0], padded(pixels.byteswap(), encoding, is_bigendian=1))
        assert np.array_equal(to_bgr(swapped), bgr)


def deep(pixels: npt.NDArray[Any], bits: int) -> npt.NDArray[Any]:
    return pixels.astype(np.uint16) << (bits - 8)


@pytest.mark.parametrize("is_bigendian", [0, 1])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("encoding", ["mono16", "bgr16", "rgb16", "bayer_rggb16", "16UC1"])
def test_sixteen_bits_of_which_fewer_are_in_use(encoding: str, bits: int, is_bigendian: int) -> None:
    bright = RED + 55  # its brightest value needs all bits
    pixels = {"mono16": GREY + 180, "16UC1": GREY + 180, "bgr16": bright, "rgb16": bright[:, :, ::-1]}.get(encoding)
    if pixels is None:
        pixels = mosaic("rggb") + 55
    wide = deep(pixels, bits)
    wide = wide.byteswap() if is_bigendian else wide
    bgr = to_bgr(make_image(message_types(False), False, STAMPS[0], padded(wide, encoding, is_bigendian)))
    expected = np.dstack([GREY + 180] * 3) if encoding in ("mono16", "16UC1") else bright
    assert np.abs(bgr.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("format_", "stored"),
    [
        ("rgb8; png compressed ", RED[:, :, ::-1]),
        ("bgr8; png compressed ", RED[:, :, ::-1]),
        ("rgb8; png compressed bgr8", RED),
        ("bgr8; png compressed bgr8", RED),
        ("rgba8; png compressed bgr8", RED),
        ("png", RED),
        ("rgb16; png compressed bgr16", deep(RED, 16)),
        ("bayer_rggb8; png compressed ", mosaic("rggb")),
        ("bayer_rggb8; png compressed bgr8", RED),
        ("mono8; png compressed ", GREY),
    ],
)
def test_format_of_a_compressed_image_says_how_its_channels_are_stored(
    format_: str, stored: npt.NDArray[np.uint8]
) -> None:
    content = cv2.imencode(".png", stored)[1].reshape(-1)
    expected = np.dstack([GREY] * 3) if format_.startswith("mono") else RED
    assert np.abs(to_bgr(SimpleNamespace(format=format_, data=content)).astype(int) - expected).max() <= 1


def test_compressed_distances_are_no_picture() -> None:
    with pytest.raises(DataError, match="compressedDepth"):
        to_bgr(SimpleNamespace(format="16UC1; compressedDepth png", data=np.zeros(20, np.uint8)))


def recorded(folder: Path, storage: Any, received: Sequence[int], mode: Any = None) -> Path:
    """A folder as `ros2 bag record` leaves it."""
    types = message_types(False)
    writer = rosbag2.Writer(folder, version=9, storage_plugin=storage)
    if mode:
        writer.set_compression(mode, rosbag2.CompressionFormat.ZSTD)
    with writer:
        images = writer.add_connection(TOPIC, "sensor_msgs/msg/Image", typestore=types)
        for index, time in enumerate(received):
            message = make_image(types, False, STAMPS[0], image_fields(FRAMES[index % 3]))
            writer.write(images, time, types.serialize_cdr(message, images.msgtype))
    return folder


SECONDS = [10**9 * second for second in (1, 2, 3)]


@pytest.mark.parametrize("storage", ["MCAP", "SQLITE3"])
@pytest.mark.parametrize(
    "what", ["folder", "file", "messages", "compressed file", "killed", "killed compressing", "killed before deleting"]
)
def test_what_a_recorder_leaves_is_read(tmp_path: Path, storage: str, what: str) -> None:
    if (storage, what) == ("MCAP", "messages"):
        pytest.skip("there is no such file")
    mode = {"messages": "MESSAGE", "compressed file": "FILE"}.get(what)
    suffix = ".mcap" if storage == "MCAP" else ".db3"
    path = recorded(tmp_path / "drive", rosbag2.StoragePlugin[storage], SECONDS, mode and rosbag2.CompressionMode[mode])
    if what.startswith("killed"):
        (path / "metadata.yaml").unlink()
    if what == "killed compressing":
        (path / f"drive{suffix}.zstd").write_bytes(ZSTD)
    if what == "killed before deleting":
        whole = recorded(tmp_path / "whole", rosbag2.StoragePlugin[storage], SECONDS, rosbag2.CompressionMode.FILE)
        (whole / f"whole{suffix}.zstd").rename(path / f"drive{suffix}.zstd")
    if what in ("file", "messages"):
        path /= f"drive{suffix}"
    if what == "compressed file":
        path /= f"drive{suffix}.zstd"
    found = frames_of(Bag(path, None))
    assert [frame.time for frame in found] == [0, 1, 2]
    assert all(np.array_equal(frame.image, picture) for frame, picture in zip(found, FRAMES, strict=True))


def test_recording_that_was_cut_off_is_read_as_far_as_it_is_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = recorded(tmp_path / "drive", rosbag2.StoragePlugin.MCAP, [10**9 * second for second in range(60)])
    (path / "metadata.yaml").unlink()
    os.truncate(path / "drive.mcap", (path / "drive.mcap").stat().st_size * 7 // 10)
    found = frames_of(Bag(path, None))
    assert 20 < len(found) < 42 and [frame.time for frame in found] == list(range(len(found)))
    assert "is cut off" in caplog.text


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        ([0, 10**9, 2 * 10**9], [0, 1, 2]),
        ([-2 * 10**9, -(10**9), 0], [0, 1, 2]),
        ([0, 1_790_000_000 * 10**9, 1_790_000_001 * 10**9], [0, 1_790_000_000, 1_790_000_001]),
        ([2**63 - 3 * 10**9, 2**63 - 2 * 10**9, 2**63 - 10**9], [0, 1, 2]),
        ([5, 5, 10**9 + 5], [0, 1e-6, 1]),
    ],
)
@pytest.mark.parametrize("storage", ["MCAP", "SQLITE3"])
def test_times_of_a_bag_rise_at_any_date(
    tmp_path: Path, storage: str, received: list[int], expected: list[float]
) -> None:
    if storage == "MCAP" and received[0] < 0:
        pytest.skip("MCAP counts from 1970")
    found = Bag(recorded(tmp_path / "drive", rosbag2.StoragePlugin[storage], received), None).frames()
    assert [float(frame.time) for frame in found if isinstance(frame, Frame) and frame.time is not None] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoding": "32FC1"}, "image encoding '32FC1', expected one of bgr8, 8UC3, rgb8"),
        ({"width": 0}, "for 4x0 (height x width) pixels"),
        ({"step": 17}, "in rows of 17 bytes, expected 4 rows of at least 18"),
        ({"data": np.zeros(70, np.uint8)}, "image message of 70 bytes for 4x6"),
        ({"height": 4_000_000_000}, "for 4000000000x6"),
        ({"encoding": "yuv422", "width": 5}, "4x5 pixels of yuv422"),
        ({"encoding": "nv12", "width": 5}, "4x5 pixels of nv12"),
        ({"encoding": "nv21", "height": 6}, "of nv21 in rows of 18 bytes"),
    ],
)
def test_message_that_is_not_whole(change: dict[str, Any], message: str) -> None:
    fields = image_fields(RED) | change
    with pytest.raises(DataError) as error:
        to_bgr(make_image(message_types(False), False, STAMPS[0], fields))
    assert message in str(error.value)


def test_logic_of_the_node(exported: Path) -> None:
    types = message_types(is_ros1=False)
    with open_runner(exported) as runner:
        segmentation = Segmentation(runner, alpha=0.3)
        message = make_image(types, False, STAMPS[0], padded(FRAMES[0], "bgr8"))
        outputs = segmentation(message, ("overlay", "color_mask", "confidence"))
        ids = runner.segment(FRAMES[0])
        assert np.array_equal(outputs["labels"].pop("data").reshape(SIZE), ids)
        assert outputs["labels"] == {"height": 96, "width": 128, "encoding": "mono8", "is_bigendian": 0, "step": 128}
        confidence = outputs["confidence"]["data"].reshape(SIZE)
        assert np.array_equal(confidence, runner.segment_with_confidence(FRAMES[0])[1]) and confidence.min() > 0
        for name, picture in (("overlay", overlay(FRAMES[0], ids, CAMVID, 0.3)), ("color_mask", colorize(ids, CAMVID))):
            assert (outputs[name]["encoding"], outputs[name]["step"]) == ("bgr8", 384)
            assert np.array_equal(outputs[name]["data"].reshape(*SIZE, 3), picture)
        assert set(segmentation(message)) == {"labels"}
        assert json.loads(segmentation.classes)["names"] == list(CAMVID.names)


def test_label_info_names_all_classes() -> None:
    info = label_info(list(CAMVID.names), SimpleNamespace, SimpleNamespace)
    assert [(one.class_id, one.class_name) for one in info.class_map] == list(enumerate(CAMVID.names))


def watch(health: Health, stamps: Sequence[int], busy: float = 0.01, pixels: int = 100) -> float:
    """Let images with these stamps, in milliseconds, arrive; return the time after the last."""
    for count, stamp in enumerate(stamps):
        health.arrived(stamp * 10**6, stamp / 1e3)
        health.labelled(np.full((16, 16, 3), pixels + count % 2, np.uint8), 0.05, busy, stamp / 1e3)
    return stamps[-1] / 1e3


def test_health_of_a_good_camera() -> None:
    health = Health(Limits(), now=10.0)
    report = health.report(watch(health, range(10_000, 20_000, 100)))
    assert (report.level, report.message) == (OK, "ok")
    assert report.values["rate (Hz)"] == "10.1" and report.values["images lost on the way"] == "0"
    assert report.values["latency from the stamp, largest (ms)"] == "50.0"


@pytest.mark.parametrize(("busy", "lost", "replaced"), [(0.01, 3, 0), (0.25, 0, 3)])
def test_missing_images_are_lost_or_replaced(busy: float, lost: int, replaced: int) -> None:
    health = Health(Limits(), now=1.0)
    stamps = [*range(1000, 3000, 100), 3100, 3400, 3500]
    report = health.report(watch(health, stamps, busy))
    assert report.values["images lost on the way"] == f"{lost}"
    assert report.values["images replaced by newer ones"] == f"{replaced}"
    assert (report.level == WARN) == (lost > 0)
    assert health.report(4.0).values["images lost on the way"] == "0"  # each is told once


def test_stamps_that_jitter_or_begin_again_are_no_loss() -> None:
    health = Health(Limits(), now=1.0)
    stamps = [1000, 1090, 1210, 1290, 1405, 1500, 1590, 500, 600, 700, 0, 0]
    assert health.report(watch(health, stamps)).values["images missing since the start"] == "0"


def test_dark_frozen_and_missing_cameras() -> None:
    health = Health(Limits(dark_level=10, frozen_after=2, stale_after=3), now=1.0)
    watch(health, [1000, 1100], pixels=3)
    dark = health.report(1.2)
    assert dark.level == WARN and "too dark" in dark.message and "3.0" in dark.message
    for second in range(1, 6):
        health.labelled(np.full((16, 16, 3), 100, np.uint8), None, 0.01, float(second))
    health.arrived(0, 5.0)
    frozen = health.report(5.1)
    assert frozen.level == WARN and "frozen" in frozen.message
    gone = health.report(8.5, cameras=1)
    assert gone.level == ERROR and "no image for 3.5 s" in gone.message
    health.limits = Limits(stale_after=10)
    assert health.report(9.0).level == OK


def test_compressed_image_of_a_kilobyte_does_not_take_all_memory() -> None:
    png = cv2.imencode(".png", np.zeros((1, 1), np.uint8))[1].tobytes()
    header = b"IHDR" + (32_000).to_bytes(4, "big") * 2 + png[24:29]
    bomb = png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]
    message = SimpleNamespace(format="png", data=np.frombuffer(bomb, np.uint8))
    with pytest.raises(DataError, match=r"^compressed image of .*'png' .*32000x32000"):
        to_bgr(message)


def coded_drive(path: Path, kind: str, codec: str, storage: str) -> Path:
    """A bag whose images are the packets of a video without frames that wait for later ones."""
    av = pytest.importorskip("av")
    types = message_types(False)
    types.register(DEFINITIONS)
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = SIZE[1], SIZE[0], "yuv420p", Fraction(1, 25)
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "qp": "0"}
    packets = [
        packet for frame in FRAMES for packet in encoder.encode(av.VideoFrame.from_ndarray(frame, format="bgr24"))
    ]
    packets += encoder.encode(None)
    time, header = types.types["builtin_interfaces/msg/Time"], types.types["std_msgs/msg/Header"]
    with rosbag2.Writer(path, version=9, storage_plugin=rosbag2.StoragePlugin[storage]) as writer:
        topic = writer.add_connection(TOPIC, kind, typestore=types)
        for index, packet in enumerate(packets):
            stamp, data = time(sec=index + 1, nanosec=7), np.frombuffer(bytes(packet), np.uint8)
            if kind == FOXGLOVE:
                message = types.types[kind](timestamp=stamp, frame_id="front", data=data, format="h264")
            else:
                about = {"width": SIZE[1], "height": SIZE[0], "encoding": "libx264;yuv420p;bgr8;bgr8", "pts": index}
                about |= {"flags": int(packet.is_keyframe), "is_bigendian": False}
                message = types.types[kind](header=header(stamp=stamp, frame_id="front"), data=data, **about)
            writer.write(topic, SECONDS[index], types.serialize_cdr(message, kind))
    return path


@pytest.mark.parametrize("storage", ["MCAP", "SQLITE3"])
@pytest.mark.parametrize("kind", VIDEO_TYPES)
def test_video_in_messages_is_decoded(tmp_path: Path, kind: str, storage: str) -> None:
    found = frames_of(Bag(coded_drive(tmp_path / "drive", kind, "libx264", storage), None))
    assert [(frame.time, frame.stamp, frame.frame_id) for frame in found] == [
        (second, (second + 1) * 10**9 + 7, "front") for second in range(3)
    ]
    for frame, picture in zip(found, FRAMES, strict=True):
        assert np.abs(frame.image.astype(int) - picture).mean() < 12  # colours are kept for 2x2 pixels


def test_video_of_an_unknown_format_and_a_drive_that_begins_between_key_frames() -> None:
    decoder = PacketDecoder()
    with pytest.raises(DataError, match="'theora'"):
        decoder.decode(SimpleNamespace(format="theora", data=b"abc"), 0)
    with pytest.raises(DataError, match="key frame"):
        decoder.decode(SimpleNamespace(format="h264", data=b"abc"), 0)


@pytest.mark.parametrize(
    ("profile", "encoding", "name"),
    [
        ("ros1", "ros1", "ROS 1 messages"),
        ("", "protobuf", "Protobuf"),
        ("", "json", "JSON"),
        ("x-own", None, "'x-own'"),
    ],
)
def test_mcap_of_other_messages_is_called_what_it_is(
    tmp_path: Path, profile: str, encoding: str | None, name: str
) -> None:
    def text(value: str) -> bytes:
        return len(value).to_bytes(4, "little") + value.encode()

    def record(kind: int, content: bytes) -> bytes:
        return bytes([kind]) + len(content).to_bytes(8, "little") + content

    channel = bytes(4) + text(TOPIC) + text(encoding or "") + bytes(4)
    content = record(0x01, text(profile) + text("a recorder")) + (record(0x04, channel) if encoding else b"")
    magic = b"\x89MCAP0\r\n"
    (tmp_path / "drive.mcap").write_bytes(magic + content + record(0x02, bytes(20)) + magic)
    with pytest.raises(DataError) as error:
        Bag(tmp_path / "drive.mcap", None)
    assert name in str(error.value) and "drive.mcap" in str(error.value)
