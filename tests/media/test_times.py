"""Times of frames rise strictly and are the source's; if a source states none, a rule gives them and is reported."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from videos import FRAMES, Fake, av, frames_of, read, write_video

from enet_deploy import DataError
from enet_deploy.media.frames import Clock, Frame, LabelledFrame, Stop
from enet_deploy.media.image_files import ImageFiles
from enet_deploy.media.open import open_source
from enet_deploy.media.sinks import LONGEST, video_file
from enet_deploy.media.video import VideoFile


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([5, 6, 8], [5, 6, 8]),
        ([-3, -2, 0], [0, 1, 3]),  # from 0 on
        ([0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5]),  # begun again
        ([7, 8, 9, 0, 1, 5], [7, 8, 9, 10, 11, 15]),
        ([0, None, None, 3], [0, 1, 2, 3]),
        ([None, None], [0, 1]),
        ([0, 1, 1, 2], [0, 1, 1.000001, 2]),  # the same time twice
        ([0, 2, 1.5, 3], [0, 2, 2.000001, 3]),  # out of order
        ([0, 10**12], [0, 10**12]),
    ],
)
def test_clock_rises_and_is_the_sources(
    stated: list[float | None], expected: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock("it", Fraction(1))
    times = [clock.time(None if time is None else Fraction(time)) for time in stated]
    assert [float(time) for time in times] == expected
    given = [time for time in stated if time is not None]
    assert bool(caplog.records) == any(b <= a for a, b in itertools.pairwise(given))


def test_joined_recordings_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    part = write_video(tmp_path / "a.ts", pictures=FRAMES * 5).read_bytes()
    (tmp_path / "ab.ts").write_bytes(part * 2)
    times = [frame.time for frame in read(tmp_path / "ab.ts")]
    assert times == [Fraction(index, 25) for index in range(40)]
    assert "begins again" in caplog.text


def test_overflow_of_a_transport_streams_clock_is_no_new_clock(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its 33 bits last for 26.5 hours. The times after it are the source's, also at a rate that varies."""
    options, ticks = {"mpegts_copyts": "1"}, [0, 3600, 7200, 18000, 21600, 36000]
    with av.open(str(tmp_path / "a.ts"), "w", format="mpegts", options=options) as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
        pictures = [av.VideoFrame.from_ndarray(FRAMES[index % 4], format="bgr24") for index in range(len(ticks))]
        packets = [packet for picture in (*pictures, None) for packet in stream.encode(picture)]
        for packet, tick in zip(packets, ticks, strict=True):
            packet.time_base, packet.pts, packet.dts = Fraction(1, 90000), 2**33 - 9000 + tick, 2**33 - 9000 + tick
            container.mux(packet)
    assert [frame.time for frame in read(tmp_path / "a.ts")] == [Fraction(tick, 90000) for tick in ticks]
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "rate"),
    [("a.h264", "libx264", "yuv420p", 10), ("a.m4v", "mpeg4", "yuv420p", 10), ("a.mjpeg", "mjpeg", "yuvj420p", None)],
)
def test_bare_streams_have_the_rate_of_their_headers(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, rate: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    with av.open(str(tmp_path / name), "w", format=name[2:]) as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 96, 128, pix_fmt
        for picture in FRAMES * 2:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
    assert [frame.time for frame in read(tmp_path / name)] == [Fraction(index, rate or 25) for index in range(8)]
    assert ("states no frame rate" in caplog.text) == (rate is None)


def test_frames_that_were_stored_in_another_order_have_the_times_of_their_own(tmp_path: Path) -> None:
    """AVI stores B-frames with the times of decoding."""
    pictures = [np.full((96, 128, 3), 12 * index, np.uint8) for index in range(20)]
    frames = read(write_video(tmp_path / "a.avi", pictures=pictures))
    levels = [float(frame.image.mean()) for frame in frames]
    assert levels == sorted(levels)
    times = [frame.time - frames[0].time for frame in frames if frame.time is not None and frames[0].time is not None]
    assert times == [Fraction(index, 25) for index in range(20)]


@pytest.mark.parametrize(("codec", "pix_fmt"), [("mjpeg", "yuvj420p"), ("mpeg4", "yuv420p")])
def test_damaged_frame_of_an_avi_shifts_no_times(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    path = write_video(tmp_path / "a.avi", codec, pix_fmt, FRAMES * 3)
    with av.open(str(path)) as container:
        damaged = [bytes(packet) for packet in container.demux(video=0) if packet.size][3]
    path.write_bytes(path.read_bytes().replace(damaged, bytes(len(damaged)), 1))
    found = list(VideoFile(path).frames())
    assert [type(frame) for frame in found].count(DataError) == 1
    times = [frame.time for frame in found if isinstance(frame, Frame)]
    assert times == [Fraction(index, 25) for index in range(12) if index != 3]


def test_gap_of_years_in_a_video_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Fake(3, live=False)
    years = Fraction(50 * 365 * 86400)
    with video_file(tmp_path / "a.mp4", lambda item: item.frame.image, source) as write:
        for index, time in enumerate((Fraction(0), years, years + 1)):
            write(LabelledFrame(Frame(FRAMES[index], "", time), FRAMES[index][:, :, 0], 0.0))
    gap = LONGEST * source.time_base
    assert [frame.time for frame in read(tmp_path / "a.mp4")] == [0, gap, gap + 1]
    assert "too long for a video" in caplog.text


def test_images_get_times_by_a_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    for index in (2, 10, 1):
        cv2.imwrite(str(tmp_path / f"f{index:04}.png"), FRAMES[index % 4])
    monkeypatch.chdir(tmp_path)
    for text in ("f%04d.png", str(tmp_path)):
        source = open_source(text, Stop(), rate=8)
        assert isinstance(source, ImageFiles)
        assert [(f.name, f.time) for f in frames_of(source)] == [
            ("f0001", 0), ("f0002", Fraction(1, 8)), ("f0010", Fraction(1, 4)),
        ]  # fmt: skip
    assert [frame.time for frame in frames_of(open_source("f%04d.png", Stop()))] == [None] * 3


@pytest.mark.parametrize("name", ["2024-05-01T10:30:00.mp4", "a ! b.mp4", "7", "100%.mp4", "a[1].mp4"])
def test_existing_file_comes_before_other_meanings_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_video(tmp_path / "a.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(frames_of(open_source(name, Stop()))) == 4


def test_a_folder_of_digits_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    (tmp_path / "00" / "more").mkdir(parents=True)
    for name in ("a.png", "more/b.png"):
        cv2.imwrite(str(tmp_path / "00" / name), FRAMES[0])
    monkeypatch.chdir(tmp_path)
    assert [frame.name for frame in frames_of(open_source("00", Stop()))] == ["a"]
