"""Sources, pipeline and video sink, with real codecs: small videos that these tests encode themselves."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from videos import FRAMES, Fake, apart, av, frames_of, read, write_video

from enet_deploy import DataError, InputError
from enet_deploy.images import UInt8Array
from enet_deploy.media import capture
from enet_deploy.media.bag_files import is_bag
from enet_deploy.media.capture import Capture
from enet_deploy.media.frames import Frame, LabelledFrame, Stop
from enet_deploy.media.open import open_source
from enet_deploy.media.pipeline import Pipeline
from enet_deploy.media.raw import RawFrames
from enet_deploy.media.sinks import video_file
from enet_deploy.media.video import VideoFile


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "near"),
    [
        ("a.mp4", "libx264", "yuv420p", 4),
        ("a.mov", "mjpeg", "yuvj422p", 4),
        ("a.mkv", "libvpx-vp9", "yuv420p", 6),
        ("a.avi", "mpeg4", "yuv420p", 6),
        ("a.mkv", "libx264", "yuv420p10le", 4),
        ("a.mkv", "ffv1", "bgr0", 0),
        ("a.mkv", "ffv1", "bgra", 0),
        ("a.mkv", "ffv1", "gray16le", None),
    ],
)
def test_video_is_read_whatever_its_codec(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, near: int | None
) -> None:
    frames = read(write_video(tmp_path / name, codec, pix_fmt))
    assert [frame.time for frame in frames] == [Fraction(i, 25) for i in range(4)]
    for frame, picture in zip(frames, FRAMES, strict=True):
        if near is None:
            picture = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        assert frame.image.shape == picture.shape
        assert apart(frame.image, picture) <= (3 if near is None else near)


def test_pyav_that_changes_colours_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mkv")
    monkeypatch.setattr(av, "__version__", "16.1.0")
    with pytest.raises(InputError, match=r"PyAV 16\.1\.0 .*'av>=17'"):
        VideoFile(path)


def test_title_and_brand_need_not_be_utf8(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes().replace(b"ftypisom", b"ftyp\xe9som", 1))
    assert b"\xe9som" in path.read_bytes() and len(read(path)) == 4


@pytest.mark.slow
def test_whole_videos_are_not_called_cut_short(tmp_path: Path) -> None:
    videos = [write_video(tmp_path / f"short{suffix}") for suffix in (".mp4", ".mkv", ".mov")]
    videos += [write_video(tmp_path / "short.avi", "mpeg4"), write_video(tmp_path / "long.avi", pictures=FRAMES * 10)]
    videos += [write_video(tmp_path / "sound.mkv", sound=True), write_video(tmp_path / "sound.mp4", sound=True)]
    videos += [write_video(tmp_path / "late.mkv", ticks=[5000, 5040, 5080, 5200])]
    for video in videos:
        for source in (str(video), video.as_uri()):
            assert len(frames_of(open_source(source, Stop()))) >= 4  # and no DataError among them


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotated_video_is_turned_as_opencv_turns_it(tmp_path: Path, rotation: int) -> None:
    path = write_video(tmp_path / "a.mp4", rotation=rotation)
    _, expected = cv2.VideoCapture(str(path)).read()
    assert apart(read(path)[0].image, expected) < 3


def test_video_that_starts_late_counts_from_its_start(tmp_path: Path) -> None:
    times = [frame.time for frame in read(write_video(tmp_path / "a.mkv", ticks=[5000, 5040, 5080, 5200]))]
    assert times == [0, Fraction(1, 25), Fraction(2, 25), Fraction(1, 5)]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_camera_that_was_away_for_a_day_leaves_a_gap_of_a_day(tmp_path: Path, suffix: str) -> None:
    times = [0, 1, 90_000, 90_001]
    source = Fake(4, live=True)
    source.rate = Fraction(30)
    with video_file(tmp_path / f"a{suffix}", lambda item: item.frame.image, source) as write:
        for index, second in enumerate(times):
            write(LabelledFrame(Frame(FRAMES[index], "", Fraction(second)), FRAMES[index][:, :, 0], 0.0))
    assert [frame.time for frame in read(tmp_path / f"a{suffix}")] == times
    with av.open(str(tmp_path / f"a{suffix}")) as container:
        if suffix in (".mkv", ".webm"):  # the others tell the mean
            assert container.streams.video[0].average_rate == 30


class Camera(BaseHTTPRequestHandler):
    """Motion JPEG over HTTP, as network cameras send it; every connection ends after some frames."""

    frames = 40
    connections = 0

    def do_GET(self) -> None:
        Camera.connections += 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        try:
            for index in range(self.frames):
                jpeg = cv2.imencode(".jpg", FRAMES[index % 4])[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode() + jpeg + b"\r\n")
                time.sleep(0.01)
        except OSError:
            pass

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def camera() -> Iterator[str]:
    Camera.connections = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Camera) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/video.mjpg"
        server.shutdown()


def test_lost_camera_is_opened_again_and_says_so(
    camera: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(capture, "RETRY_WAITS", (0.01,))
    stopped = Stop()
    source = open_source(camera, stopped)
    assert isinstance(source, Capture) and source.live
    frames = []
    for frame in source.frames():
        assert isinstance(frame, Frame)
        assert min(apart(frame.image, picture) for picture in FRAMES) < 4
        frames.append(frame)
        if len(frames) == Camera.frames + 5:
            stopped.set()
    assert Camera.connections == 2
    assert all(a.time < b.time for a, b in itertools.pairwise(frames))
    assert [record.getMessage() for record in caplog.records] == [
        f"{camera} gives no frames; opened again in 0.01 s", f"{camera} is back",
    ]  # fmt: skip


def test_source_without_frames_is_retried_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(capture, "RETRY_WAITS", (0.01, 0.02, 0.03))
    stopped = Stop()
    given = iter([True, False, False, False, False, False, True, False])
    released = []

    class Flaky:
        def isOpened(self) -> bool:
            return True

        def get(self, _: int) -> float:
            return 0.0

        def read(self) -> tuple[bool, UInt8Array | None]:
            there = next(given, None)
            if there is None:
                stopped.set()
            return bool(there), FRAMES[0] if there else None

        def release(self) -> None:
            released.append(self)

    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: Flaky())
    assert len(frames_of(Capture("it", 0, cv2.CAP_ANY, stopped))) == 2
    waits = [m.split()[-2] for record in caplog.records if "again" in (m := record.getMessage())]
    assert waits == ["0.01", "0.02", "0.03", "0.03", "0.03", "0.01", "0.02"]
    assert [record.getMessage() for record in caplog.records].count("it is back") == 1 and len(released) == 8


def test_frames_of_other_formats_become_bgr_or_say_how(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = FRAMES[0]
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    given: list[Any] = []

    class Pipe:
        def isOpened(self) -> bool:
            return True

        def get(self, kind: int) -> float:
            return {cv2.CAP_PROP_FRAME_COUNT: 1.0, cv2.CAP_PROP_FRAME_HEIGHT: 96.0}.get(kind, 0.0)

        def read(self) -> tuple[bool, Any]:
            return (True, given.pop()) if given else (False, None)

        def release(self) -> None:
            pass

    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: Pipe())
    for pixels, expected in (
        (picture, picture),
        (np.dstack([picture, grey]), picture),
        (grey, np.dstack([grey] * 3)),
        (grey.astype(np.uint16) * 257, np.dstack([grey] * 3)),  # GRAY16_LE
    ):
        given.append(pixels)
        (frame,) = frames_of(Capture("it", 0, cv2.CAP_ANY, Stop()))
        assert frame.image.dtype == np.uint8 and np.array_equal(frame.image, expected)
    for pixels in (np.zeros((144, 128), np.uint8), np.zeros((96, 128, 2), np.uint8)):  # NV12, YUY2
        given.append(pixels)
        with pytest.raises(DataError, match=re.escape(f"{pixels.shape}")):
            frames_of(Capture("it", 0, cv2.CAP_ANY, Stop()))


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{camera}\n#EXT-X-ENDLIST\n"),
        (".mp4", "ffconcat version 1.0\nfile {camera}\n"),
        (".mp4", "ffconcat version 1.0\nfile {video}\n"),
    ],
)
def test_list_in_place_of_a_video_opens_nothing(tmp_path: Path, camera: str, suffix: str, text: str) -> None:
    video = write_video(tmp_path / "a.mp4")
    playlist = tmp_path / f"list{suffix}"
    playlist.write_text(text.format(camera=camera, video=video))
    with pytest.raises(DataError, match=rf"list{suffix} .*video"):
        VideoFile(playlist)
    assert Camera.connections == 0


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:5,\n{url}\n#EXT-X-ENDLIST\n"
DASH = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT5S">'
    '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{url}</BaseURL>'
    "<SegmentBase/></Representation></AdaptationSet></Period></MPD>"
)
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"


@pytest.mark.parametrize(
    "text", [HLS, DASH, "ffconcat version 1.0\nfile {url}\n", SDP], ids=["HLS", "DASH", "concat", "SDP"]
)
@pytest.mark.parametrize("name", ["list.m3u8", "movie.mp4", "cam", "a.mpd"])
def test_list_at_a_url_opens_no_other_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str
) -> None:
    monkeypatch.delenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", raising=False)
    video, asked = write_video(tmp_path / "a.mp4").read_bytes(), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = video
            if self.path == f"/{name}":
                content = text.format(url=f"http://127.0.0.1:{server.server_port}/internal.mp4").encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        for opened in (lambda: open_source(f"{base}/{name}", Stop()), lambda: VideoFile(f"{base}/{name}")):
            with pytest.raises(DataError, match=name):
                opened()
        assert {*asked} == {f"/{name}"}
        source = open_source(f"{base}/video.mp4", Stop())
        assert len([*source.frames()]) == 4
        server.shutdown()


def test_of_a_live_source_only_the_newest_frame_counts() -> None:
    def label(image: UInt8Array) -> UInt8Array:
        time.sleep(0.02)
        return image[:, :, 0]

    class Slow(Fake):
        def frames(self) -> Iterator[Frame | DataError]:
            for frame in super().frames():
                time.sleep(0.002)
                yield frame

    pipeline = Pipeline(Slow(100, live=True), label, Stop())
    names = [int(item.frame.name) for item in pipeline.run()]
    assert names == sorted(names) and names[-1] == 99
    assert len(names) + pipeline.dropped == 100 and pipeline.dropped > 50
    pipeline = Pipeline(Slow(20, live=False), label, Stop())
    assert [int(item.frame.name) for item in pipeline.run()] == list(range(20)) and pipeline.dropped == 0


@pytest.mark.slow
def test_pipeline_keeps_few_frames_and_raises_what_its_threads_raise() -> None:
    alive = 0

    class Counted(Fake):
        def frames(self) -> Iterator[Frame | DataError]:
            nonlocal alive
            for frame in super().frames():
                alive += 1
                yield frame

    most, done = 0, 0
    for _ in Pipeline(Counted(5000, live=False), lambda image: image[:, :, 0], Stop()).run():
        done += 1
        most = max(most, alive - done)
    assert done == 5000 and most < 15

    def fail(image: UInt8Array) -> UInt8Array:
        raise DataError("no labels today")

    with pytest.raises(DataError, match="no labels today"):
        list(Pipeline(Fake(3, live=False), fail, Stop()).run())
    assert not {"_decode", "_label_all"} & {t.name.partition("(")[2].rstrip(")") for t in threading.enumerate()}


def test_error_of_a_source_is_not_taken_for_one_of_an_open_output(tmp_path: Path) -> None:
    class Lost(Fake):
        def frames(self) -> Iterator[Frame | DataError]:
            yield from super().frames()
            raise OSError("the cable is gone")

    pipeline = Pipeline(Lost(2, live=False), lambda image: image[:, :, 0], Stop())
    with (
        pytest.raises(DataError, match=r"fake .*the cable"),
        video_file(tmp_path / "a.mp4", lambda item: item.frame.image, Lost(2, live=False)) as write,
    ):
        for item in pipeline.run():
            write(item)


def test_slow_end_of_a_live_source_gets_the_newest_frame() -> None:
    taken, over = threading.Event(), threading.Event()

    class Quick(Fake):
        def frames(self) -> Iterator[Frame | DataError]:
            for frame in super().frames():
                yield frame
                taken.wait()
            over.set()

    pipeline = Pipeline(Quick(100, live=True), lambda image: image[:, :, 0], Stop())
    items = pipeline.run()
    assert next(items).frame.name == "0"
    taken.set()
    over.wait()  # while the caller is at work all others come
    rest = [int(item.frame.name) for item in items]
    assert rest[-1] == 99 and len(rest) <= 3, rest  # waiting to be labelled, in hand, and waiting to be taken
    assert pipeline.dropped == 99 - len(rest)


def test_source_is_freed_if_nobody_takes_its_frames() -> None:
    freed = threading.Event()

    class Held(Fake):
        def frames(self) -> Iterator[Frame | DataError]:
            try:
                yield from super().frames()
            finally:
                freed.set()

    for _ in Pipeline(Held(10_000, live=False), lambda image: image[:, :, 0], Stop()).run():
        break
    assert freed.wait(5)


@pytest.mark.parametrize(
    ("names", "described", "expected"),
    [
        (["a.png"], b"my own notes", False),
        (["a.png", "drive.mcap"], None, False),
        (["a.png", "drive.mcap"], b"rosbag2_bagfile_information:", True),
        (["drive.mcap.zstd"], None, True),
        (["drive.db3"], b"", True),
        (["notes.txt"], None, False),
    ],
)
def test_folder_is_a_bag_or_one_of_images(
    tmp_path: Path, names: list[str], described: bytes | None, expected: bool
) -> None:
    for name in names:
        (tmp_path / name).touch()
    if described is not None:
        (tmp_path / "metadata.yaml").write_bytes(described)
    assert is_bag(tmp_path) is expected


def test_raw_reader_puts_torn_reads_together() -> None:
    readable, writable = os.pipe()
    source = RawFrames((96, 128), 30.0, Stop(), readable)

    def feed() -> None:
        with os.fdopen(writable, "wb") as pipe:
            raw = b"".join(frame.tobytes() for frame in FRAMES)
            for start in range(0, len(raw), 10_007):
                pipe.write(raw[start : start + 10_007])
                pipe.flush()

    threading.Thread(target=feed).start()
    frames = frames_of(source)
    assert all(np.array_equal(frame.image, picture) for frame, picture in zip(frames, FRAMES, strict=True))
    assert frames[3].time == Fraction(3, 30)
    os.close(readable)
