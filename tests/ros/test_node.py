"""The node with the real rclpy: topics, cameras of all kinds, parameters."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from enet_deploy import CAMVID, colorize, open_runner
from enet_deploy.data.scenes import street_scene
from enet_deploy.images import overlay

pytest.importorskip("rclpy", reason="rclpy is not installed; `make test-ros` makes an environment with it")
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import DescribeParameters, SetParameters
from rclpy.parameter import Parameter
from robot import NAME, PACKAGE, Robot, image
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

SIZE = (96, 128)
QUALITY = f"qos_overrides.{NAME}/labels.publisher"
SCENE = street_scene(0, SIZE)[0]


def send_until(robot: Robot, camera: Any, found: list[Any], message: Any, count: int = 1) -> None:
    """Send a message until `count` more are found: what is sent before all have met is lost, as with any camera."""
    wanted = len(found) + count

    def arrived() -> bool:
        camera.publish(message)
        robot.until(lambda: len(found) >= wanted, 0.2)
        return len(found) >= wanted

    assert robot.until(arrived)


def pixels_of(message: Image) -> np.ndarray:
    shape = (message.height, message.width, 3) if message.encoding == "bgr8" else (message.height, message.width)
    return np.frombuffer(message.data, np.uint8).reshape(shape)


def test_topics_and_their_content(robot: Robot, artifact: Path) -> None:
    robot.run("-p", "alpha:=0.3")
    found = {name: robot.listen(f"{NAME}/{name}") for name in ("labels", "overlay", "color_mask", "confidence")}
    classes = robot.listen(f"{NAME}/classes", String, latched=True)
    camera = robot.camera()
    assert robot.matched(camera)
    send_until(robot, camera, found["color_mask"], image(SCENE, nanoseconds=1_700_000_000_000_000_123))
    assert robot.until(lambda: all(found.values()) and bool(classes))
    with open_runner(artifact) as runner:
        labels = runner.segment(SCENE)
    expected = {
        "labels": labels,
        "overlay": overlay(SCENE, labels, CAMVID, 0.3),
        "color_mask": colorize(labels, CAMVID),
        "confidence": labels + 1,  # of the artifact of these tests
    }
    for name, messages in found.items():
        header = messages[-1].header
        assert (header.frame_id, header.stamp.sec, header.stamp.nanosec) == ("front", 1_700_000_000, 123)
        assert np.array_equal(pixels_of(messages[-1]), expected[name]), name
    assert json.loads(classes[0].data) == CAMVID.to_json()


@pytest.mark.parametrize("reliable", [True, False], ids=["reliable", "best effort"])
def test_all_images_of_a_large_camera_arrive(artifact: Path, reliable: bool) -> None:
    """1280x720 at 10 Hz, from a camera that is started with the package's profile, as the launch file does."""
    folder = Path(__file__).parent
    path = os.pathsep.join((f"{folder}", f"{folder.parent}", os.environ.get("PYTHONPATH", "")))
    profile = {"FASTDDS_DEFAULT_PROFILES_FILE": f"{PACKAGE / 'enet_segmentation' / 'fastdds.xml'}"}
    code = f"from large_camera import count; print(count({str(artifact)!r}, {reliable}))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path, **profile})
    assert done.stdout == "60\n", done.stderr


def test_camera_of_best_effort_that_comes_late_goes_away_and_comes_back(robot: Robot) -> None:
    robot.run("-p", "stale_after:=0.5")
    labels = robot.listen(f"{NAME}/labels")
    status = robot.listen("/diagnostics", DiagnosticArray)
    levels = lambda: {one.status[0].level for one in status[-2:]}  # noqa: E731
    assert robot.until(lambda: levels() == {DiagnosticStatus.ERROR})  # no camera yet
    for reliable in (False, True, False):
        camera = robot.camera(reliable=reliable)
        send_until(robot, camera, labels, image(SCENE), 3)
        robot.node.destroy_publisher(camera)
        status.clear()
        assert robot.until(lambda: levels() == {DiagnosticStatus.ERROR})


def test_camera_that_changes_size_and_encoding(robot: Robot) -> None:
    robot.run()
    labels = robot.listen(f"{NAME}/labels")
    camera = robot.camera()
    grey = cv2.cvtColor(SCENE, cv2.COLOR_BGR2GRAY)
    y, u, v = np.split(cv2.cvtColor(SCENE, cv2.COLOR_BGR2YUV_I420).reshape(-1), [SCENE.size // 3, SCENE.size * 5 // 12])
    nv12 = np.concatenate([y, np.dstack([u, v]).reshape(-1)]).reshape(-1, SIZE[1])
    messages = [
        image(SCENE), image(SCENE[:48, :64].copy()), image(SCENE[:, :, ::-1].copy(), "rgb8"), image(grey, "mono8"),
        image(grey.astype(np.uint16) << 8, "mono16"), image(SCENE.astype(np.uint16) << 8, "bgr16"),
        image(grey, "bayer_rggb8"), image(grey.astype(np.uint16) << 8, "bayer_rggb16"), image(nv12, "nv12"),
    ]  # fmt: skip
    messages[-1].height = SIZE[0]
    for message in messages:
        labels.clear()
        send_until(robot, camera, labels, message)
        assert robot.until(
            lambda wanted=message: (labels[-1].height, labels[-1].width) == (wanted.height, wanted.width)
        )


def test_each_kind_of_bad_image_is_said_once_and_does_no_harm(robot: Robot) -> None:
    process = robot.run()
    labels = robot.listen(f"{NAME}/labels")
    camera = robot.camera()
    assert robot.matched(camera)
    short = image(SCENE)
    short.height += 1
    for message in (image(SCENE, "32FC7"), short):
        for _ in range(5):
            camera.publish(message)
            robot.spin(0.1)
    send_until(robot, camera, labels, image(SCENE))
    _, said = robot.end(process)
    assert said.count("32FC7") == 1 and said.count("97x128") == 1 and "Traceback" not in said


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_compressed_images_of_image_transport(robot: Robot, suffix: str) -> None:
    robot.run("-p", "image_transport:=compressed", "-r", "~/image:=/front/image_raw")
    labels = robot.listen(f"{NAME}/labels")
    camera = robot.camera("/front/image_raw/compressed", CompressedImage)
    content = cv2.imencode(suffix, SCENE)[1].tobytes()
    send_until(robot, camera, labels, CompressedImage(format="bgr8; jpeg compressed bgr8", data=content))
    assert (labels[-1].height, labels[-1].width) == SIZE


def test_names_can_be_remapped_and_qualities_overridden(robot: Robot) -> None:
    robot.run("-r", "~/image:=/image", "-r", "~/labels:=/segmentation/mask", "-p",
        "qos_overrides./segmentation/mask.publisher.reliability:=best_effort")  # fmt: skip
    masks = robot.listen("/segmentation/mask", reliable=False)
    send_until(robot, robot.camera("/image"), masks, image(SCENE))
    (publisher,) = robot.node.get_publishers_info_by_topic("/segmentation/mask")
    assert publisher.qos_profile.reliability.name == "BEST_EFFORT"


def call(robot: Robot, kind: Any, service: str, request: Any) -> Any:
    client = robot.node.create_client(kind, f"{NAME}/{service}")
    assert robot.until(client.service_is_ready)
    answer = client.call_async(request)
    assert robot.until(answer.done)
    return answer.result()


def test_parameters_at_run_time(robot: Robot, artifact: Path) -> None:
    robot.run()
    pictures = robot.listen(f"{NAME}/overlay")
    send_until(robot, robot.camera(), pictures, image(SCENE))

    def set_one(name: str, value: Any) -> bool:
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        return bool(call(robot, SetParameters, "set_parameters", request).results[0].successful)

    assert not set_one("alpha", 7.0) and not set_one("alpha", 1)
    for name, value in (("artifact", "other.onnx"), ("backend", "openvino"), ("depth", 3), ("reliability", "reliable")):
        assert not set_one(name, value), name
    assert set_one("alpha", 0.0) and set_one("dark_level", 20.0)
    pictures.clear()
    send_until(robot, robot.camera(), pictures, image(SCENE))
    assert np.array_equal(pixels_of(pictures[-1]), SCENE)  # no share of the colours
    described = call(
        robot, DescribeParameters, "describe_parameters", DescribeParameters.Request(names=["alpha", "depth"])
    )
    alpha, depth = described.descriptors
    assert (alpha.type, alpha.read_only, alpha.floating_point_range[0].to_value) == (
        ParameterType.PARAMETER_DOUBLE, False, 1.0)  # fmt: skip
    assert depth.read_only and depth.integer_range[0].from_value == 1 and depth.description


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["-p", "alpha:=1"], "alpha is 1"),
        (["-p", "alpha:=7.0"], "alpha is 7.0"),
        (["-p", "reliability:=unknown"], "'unknown'"),
        (["-p", "depth:=-1"], "depth is -1"),
        (["-p", "backend:=caffe"], "'caffe'"),
        (["-p", "artifact:=/no/such.onnx"], "/no/such.onnx"),
        (["-p", f"{QUALITY}.reliability:=sometimes"], "/labels.publisher: .*sometimes"),
        (["-p", f"{QUALITY}.depth:=abc"], "/labels.publisher.depth.*'abc'"),
        (["-p", f"{QUALITY}.depth:=-1"], "/labels.publisher: "),
        (["--params-file", "/no/such.yaml"], "/no/such.yaml"),
        (["-p", "alpha"], "alpha"),
    ],
)
def test_bad_parameter_is_a_line(robot: Robot, arguments: list[str], value: str) -> None:
    process = robot.run(*arguments)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = [line for line in said.splitlines() if line.startswith("enet_segmentation: error: ")]
    assert re.search(value, line) and "Traceback" not in said
