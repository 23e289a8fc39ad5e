"""enet-segment, with real codecs: small videos and images that these tests encode themselves."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import SIZE
from videos import FRAMES, Fake, apart, av, read, write_video

from enet_deploy import CAMVID, DataError, colorize, open_runner
from enet_deploy.artifacts import Metadata
from enet_deploy.classes import CITYSCAPES
from enet_deploy.commands.api import segment
from enet_deploy.commands.segment import main
from enet_deploy.images import UInt8Array, overlay, painted, read_image
from enet_deploy.media import sinks
from enet_deploy.media.frames import Frame, LabelledFrame
from enet_deploy.media.sinks import video_file
from enet_deploy.model import ENet
from enet_deploy.weights import save_weights


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm"])
def test_overlay_video_keeps_the_time_of_each_frame_and_no_sound(here: Path, exported: Path, suffix: str) -> None:
    ticks = [0, 40, 200, 1000]  # a camera that stuttered
    video = write_video(here / "drive.mkv", ticks=ticks, sound=True)
    out = here / f"out{suffix}"
    assert main([str(exported), str(video), "--out", str(out)]) == 0
    with av.open(str(out)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    result = read(out)
    assert [round(1000 * frame.time) for frame in result] == ticks
    with open_runner(exported) as runner:
        for frame, source in zip(result, read(video), strict=True):
            assert apart(frame.image, overlay(source.image, runner.segment(source.image), CAMVID)) < 8


def test_colours_of_a_video_are_those_of_its_matrix(here: Path, exported: Path) -> None:
    """BT.709 if the file says so, and for high pictures if it says nothing. Written files say it, in limited range."""
    paint = np.zeros((720, 64, 3), np.uint8)
    paint[:, :32], paint[:, 32:] = (20, 30, 220), (30, 200, 40)
    with av.open("untagged.mkv", "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 720, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(paint, format="bgr24").reformat(format="yuv420p", dst_colorspace=1)
        frame.colorspace = 2
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert apart(read(here / "untagged.mkv")[0].image, paint) < 3
    assert main([str(exported), "untagged.mkv", "--alpha", "0", "--out", "out.mp4"]) == 0
    with av.open("out.mp4") as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (1, 1)
        assert apart(frame.to_ndarray(format="bgr24", src_colorspace=1), paint) < 6  # another matrix: 15
    assert apart(read(here / "out.mp4")[0].image, paint) < 6
    with av.open("full.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 720, 64, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 2  # full
        frame = av.VideoFrame.from_ndarray(paint, format="bgr24")
        container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=1, dst_color_range=2)))
        container.mux(stream.encode(None))
    assert apart(read(here / "full.mkv")[0].image, paint) < 3  # taken for limited range: 12


def test_shape_of_pixels_is_kept_and_a_cover_is_no_film(here: Path, exported: Path) -> None:
    with av.open("a.mkv", "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 48, 64, "yuvj420p"
        film = container.add_stream("libx264", rate=25)
        film.height, film.width, film.pix_fmt = 96, 128, "yuv420p"
        film.codec_context.sample_aspect_ratio = Fraction(16, 11)
        picture = av.VideoFrame.from_ndarray(cv2.resize(FRAMES[0], (64, 48)), format="bgr24")
        for packets in (cover.encode(picture.reformat(format="yuvj420p")), cover.encode(None)):
            container.mux(packets)
        for picture in FRAMES:
            container.mux(film.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(film.encode(None))
    assert main([str(exported), "a.mkv", "--out", "out.mp4"]) == 0
    with av.open("out.mp4") as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)
        assert [frame.width for frame in container.decode(video=0)] == [128] * 4


def test_odd_frames_get_an_even_video(here: Path, exported: Path) -> None:
    pictures = [np.ascontiguousarray(frame[:95, :127]) for frame in FRAMES]
    video = write_video(here / "odd.mkv", "ffv1", "bgr0", pictures)
    assert main([str(exported), str(video), "--alpha", "0", "--out", "odd.mp4", "--labels", "ids"]) == 0
    image = read(here / "odd.mp4")[0].image
    assert image.shape == (96, 128, 3)
    assert apart(image[:95, :127], pictures[0]) < 4
    assert cv2.imread("ids/000000.png", cv2.IMREAD_UNCHANGED).shape == (95, 127)


def test_damaged_frames_are_counted_and_skipped(here: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = write_video(here / "a.mp4", pictures=FRAMES * 3)
    content = bytearray(video.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 60] = np.random.default_rng(0).bytes(60)
    video.write_bytes(content)
    assert main([str(exported), str(video), "--out", "out.mp4"]) == 0
    assert len(read(here / "out.mp4")) == 11
    assert "11 frames of" in (told := capsys.readouterr().err) and "1 could not be decoded" in told, told


def test_video_of_uneven_times_by_its_address_is_whole(
    here: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_video(here / "a.mkv", ticks=[0, 40, 200, 1000])
    assert main([str(exported), video.as_uri(), "--json", "lines"]) == 0
    assert "4 frames" in (told := capsys.readouterr().err) and "decoded" not in told


@pytest.mark.slow
def test_video_cut_short_gives_what_is_there(here: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = write_video(here / "a.mkv", pictures=FRAMES * 10)
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])  # as a robot that lost power leaves it
    assert main([str(exported), str(video), "--out", "out.mp4"]) == 0
    assert 10 < len(read(here / "out.mp4")) < 40
    assert re.search(r"ended at 0\.[4-9] of about 1\.6 s", capsys.readouterr().err)
    assert main([str(exported), video.as_uri(), "--json", "lines"]) == 0  # by OpenCV, as over a network
    assert main([str(exported), video.as_uri(), "--json", "lines"]) == 0  # and over the one that is there
    assert re.search(r"ended at 0\.[4-9] of about 1\.6 s", capsys.readouterr().err)


def write_pictures(folder: Path) -> dict[str, UInt8Array]:
    """Images of many kinds -> what they show."""
    folder.mkdir()
    picture = FRAMES[0]
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    cv2.imwrite(str(folder / "colour.png"), picture)
    cv2.imwrite(str(folder / "grey.png"), grey)
    cv2.imwrite(str(folder / "deep.png"), picture.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "alpha.png"), np.dstack([picture, np.full(picture.shape[:2], 7, np.uint8)]))
    cv2.imwrite(str(folder / "odd.webp"), picture[:95, :127], [cv2.IMWRITE_WEBP_QUALITY, 101])
    cv2.imwrite(str(folder / "dot.bmp"), picture[:1, :1])
    Image = pytest.importorskip("PIL.Image")  # OpenCV reads the tag of a turned image and writes none

    turned = Image.fromarray(np.rot90(picture)[:, :, ::-1])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    turned.save(folder / "turned.tiff", exif=exif)
    turned.save(folder / "turned-jpeg.jpg", exif=exif, quality=100, subsampling=0)
    return {
        "colour": picture,
        "grey": cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR),
        "deep": picture,
        "alpha": picture,
        "odd": picture[:95, :127],
        "dot": picture[:1, :1],
        "turned": picture,
        "turned-jpeg": picture,
    }


@pytest.mark.slow
def test_images_of_every_kind(here: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = write_pictures(here / "pictures")
    for path in sorted((here / "pictures").iterdir()):
        assert apart(read_image(path), shown[path.stem]) < 2, path.name
    (here / "pictures" / "damaged.jpg").write_bytes(b"\xff\xd8 not a picture")
    (here / "pictures" / "notes.txt").write_text("no image")
    assert main([str(exported), "pictures", "--labels", "ids", "--masks", "masks", "--out", "out"]) == 0
    assert f"{len(shown)} frames of pictures" in (told := capsys.readouterr().err)
    assert "1 could not be decoded" in told and "damaged.jpg" in told
    with open_runner(exported) as runner:
        for path in sorted((here / "ids").iterdir()):
            image = read_image(next((here / "pictures").glob(f"{path.stem}.*")))
            ids = runner.segment(image)
            assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), ids)
            assert np.array_equal(cv2.imread(f"masks/{path.name}"), colorize(ids, CAMVID))
            assert np.array_equal(cv2.imread(f"out/{path.name}"), overlay(image, ids, CAMVID))
    assert {path.stem for path in (here / "ids").iterdir()} == shown.keys()


def test_defaults_one_image_and_glob(here: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(here / "pictures")
    assert main([str(exported), "pictures/colour.png"]) == 0
    assert main([str(exported), "pictures/*.png"]) == 0
    assert main([str(exported), "pictures/grey.png", "--labels", "ids.png", "--json", "-"]) == 0
    assert sorted(path.name for path in here.iterdir()) == [
        "colour-segmented.png", "ids.png", "images-segmented", "pictures",
    ]  # fmt: skip
    assert len(list((here / "images-segmented").iterdir())) == 4
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == {"frame", "time_s", "latency_ms", "shares"}
    assert told["frame"] == "grey" and told["time_s"] is None and told["latency_ms"] > 0
    ids = cv2.imread("ids.png", cv2.IMREAD_UNCHANGED)
    assert told["shares"] == {name: (ids == id_).mean() for id_, name in enumerate(CAMVID.names)}


def test_compare_shows_image_truth_and_labels_and_scores_them(
    here: Path, exported: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(exported), str(scenes / "val"), "--compare", "--legend", "--out", "out", "--json", "a.jsonl"]) == 0
    assert "pixel accuracy 0." in capsys.readouterr().err
    lines = [json.loads(line) for line in Path("a.jsonl").read_text().splitlines()]
    assert all(0 < line["pixel_accuracy"] < 1 for line in lines) and len(lines) == 4
    picture = cv2.imread(str(next((here / "out").iterdir())))
    name = min(path.stem for path in (here / "out").iterdir())
    picture = cv2.imread(f"out/{name}.png")
    top = picture.shape[0] - SIZE[0]  # captions
    truth = cv2.imread(str(scenes / "valannot" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(picture[top:, : SIZE[1]], read_image(scenes / "val" / f"{name}.png"))
    assert np.array_equal(picture[top:, SIZE[1] : 2 * SIZE[1]], painted(truth, CAMVID.overlay_colors))
    assert picture.shape[1] > 3 * SIZE[1]  # the legend


@pytest.mark.parametrize("option", ["--labels", "--out", "--masks"])
def test_label_maps_of_the_source_are_not_written_over(
    here: Path, scenes: Path, exported: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if they are not read, as without --compare."""
    shutil.copytree(scenes, here / "data")
    before = {path: path.read_bytes() for path in (here / "data" / "valannot").iterdir()}
    for path in ("data/valannot", f"data/valannot/{min(before).name}"):
        assert main([str(exported), "data/val", option, path]) == 2
        assert "valannot, which is read" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (here / "data" / "valannot").iterdir()} == before


@pytest.mark.slow
def test_compare_of_links_and_of_cityscapes(
    here: Path, scenes: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "val").mkdir()
    (here / "valannot").mkdir()
    for index, image in enumerate(sorted((scenes / "val").iterdir())):
        (here / "val" / f"{index}.png").symlink_to(image)
        (here / "valannot" / f"{index}.png").symlink_to(scenes / "valannot" / image.name)
    assert main([str(exported), "val", "--compare", "--json", "lines"]) == 0
    save_weights("city.safetensors", ENet(19), Metadata(CITYSCAPES, (0.0,) * 3, (1.0,) * 3, SIZE))
    for city in ("ulm", "aachen"):
        for kind, ending, pixels in (
            ("leftImg8bit", "leftImg8bit", FRAMES[0]),
            ("gtFine", "gtFine_labelIds", np.full(SIZE, 7, np.uint8)),
        ):
            folder = here / "city" / kind / "val" / city
            folder.mkdir(parents=True)
            cv2.imwrite(str(folder / f"{city}_0_{ending}.png"), pixels)
    for source in ("city/leftImg8bit/val/ulm", "city/leftImg8bit/val/*/*.png"):
        capsys.readouterr()
        assert main(["city.safetensors", source, "--compare", "--json", "lines"]) == 0
        assert "pixel accuracy" in capsys.readouterr().err


def test_every_nth_frame_at_its_own_time(here: Path, exported: Path) -> None:
    source = Fake(4, live=False)
    source.rate = Fraction(27_000_000, 917_177)  # as phones have it; a rate of 32-bit numbers is written
    for every in (1, 2999):
        with video_file(here / "rate.mp4", lambda item: item.frame.image, source, every) as write:
            write(LabelledFrame(Frame(FRAMES[0], "", Fraction(0)), FRAMES[0][:, :, 0], 0.0))
    video = write_video(here / "a.mp4", pictures=FRAMES * 2)
    assert main([str(exported), str(video), "--every", "3", "--out", "b.mp4"]) == 0
    assert [frame.time for frame in read(here / "b.mp4")] == [0, Fraction(3, 25), Fraction(6, 25)]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "enet_deploy.commands.segment", *arguments]


@pytest.mark.slow
def test_raw_frames_from_pipe_to_pipe(exported: Path) -> None:
    raw = b"".join(frame.tobytes() for frame in FRAMES) + b"torn"
    done = subprocess.run(
        command(str(exported), "-", "--raw", "96x128", "--labels", "-"), input=raw, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    with open_runner(exported) as runner:
        assert done.stdout == b"".join(runner.segment(frame).tobytes() for frame in FRAMES)
    assert b"4 frames of standard input" in done.stderr
    assert b"standard input ended 4 bytes into a frame of 36864" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_finishes_the_files(here: Path, exported: Path, number: signal.Signals, code: int) -> None:
    """The pipe stays open, so the signal ends the command while it waits for a frame."""
    arguments = [str(exported), "-", "--raw", "96x128", "--out", "out.mp4", "--labels", "ids", "--json", "out.jsonl"]
    with subprocess.Popen(command(*arguments), stdin=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdin.write(b"".join(frame.tobytes() for frame in FRAMES))
        child.stdin.flush()
        wait_for(child, lambda: len(list(here.glob("ids/0*.png"))) == 4)
        time.sleep(0.2)
        child.send_signal(number)
        told = child.stderr.read().decode()
        assert child.wait(300) == code, told
    assert len(list(here.glob("ids/0*.png"))) == 4
    assert len(read(here / "out.mp4")) == len(Path("out.jsonl").read_text().splitlines()) == 4
    assert "4 frames of standard input" in told and "wrote out.mp4" in told
    assert not list(here.glob(".*"))


@pytest.mark.slow
def test_closed_pipe_finishes_the_files(here: Path, exported: Path) -> None:
    write_video(here / "a.mp4", pictures=FRAMES * 60)  # their JSON is longer than a pipe holds
    arguments = command(str(exported), "a.mp4", "--out", "-", "--json", "lines")  # both have what was shown last
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        child.stdout.read(1)
        child.stdout.close()
        assert child.wait(300) == 128 + signal.SIGPIPE, child.stderr.read()
    assert len(Path("lines").read_text().splitlines()) >= 1
    arguments = command(str(exported), "a.mp4", "--json", "-", "--out", "out.mp4")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert json.loads(child.stdout.readline())["frame"] == "000000"
        child.stdout.close()
        told = child.stderr.read().decode()
        assert child.wait(300) == 128 + signal.SIGPIPE and "wrote out.mp4" in told.splitlines()[-1], told
    assert 1 <= len(read(here / "out.mp4")) < 240
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command(str(exported), "a.mp4", "--json", "-")],
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 2 and b"standard output is closed" in done.stderr


@pytest.mark.slow
def test_signal_before_the_first_frame_leaves_what_was_there(here: Path, exported: Path) -> None:
    Path("out.mp4").write_text("of yesterday")
    arguments = command(str(exported), "-", "--raw", "96x128", "--out", "out.mp4", "--json", "out.jsonl")
    with subprocess.Popen(arguments, stdin=subprocess.PIPE) as child:
        wait_for(child, lambda: bool(list(here.glob(".enet-*/out.mp4"))))
        time.sleep(0.2)
        child.send_signal(signal.SIGTERM)
        assert child.wait(300) == 143
    assert [path.name for path in here.iterdir()] == ["out.mp4"] and Path("out.mp4").read_text() == "of yesterday"


def wait_for(child: subprocess.Popen[bytes], done: Callable[[], bool]) -> None:
    while not done():
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.001)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[!.]*"))}


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()  # a killed process leaves folders


@pytest.mark.slow
def test_kill_at_any_moment_leaves_whole_files_or_none(here: Path, exported: Path) -> None:
    write_video(here / "a.mkv", pictures=FRAMES * 6)
    arguments = [str(exported), "a.mkv", "--labels", "ids", "--out", "out.mp4", "--json", "out.jsonl"]
    assert main(arguments) == 0
    expected = contents(here / "ids")
    assert len(expected) == 24
    for path in (Path("out.mp4"), Path("out.jsonl")):
        path.unlink()
    empty(here / "ids")
    for seen in (0, 1, 5, 20):
        with subprocess.Popen(command(*arguments), stderr=subprocess.PIPE) as child:
            wait_for(child, lambda: len(contents(here / "ids")) >= seen)  # noqa: B023  used before the next round
            child.kill()
        there = contents(here / "ids")
        assert there.items() <= expected.items()
        assert not Path("out.mp4").exists() and not Path("out.jsonl").exists()
        empty(here / "ids")
    assert main(arguments) == 0  # what was left behind is in nobody's way
    assert contents(here / "ids") == expected and len(read(here / "out.mp4")) == 24


@pytest.mark.slow
def test_full_disk_is_reported_and_leaves_no_file(here: Path, exported: Path) -> None:
    write_video(here / "a.mkv", pictures=FRAMES * 6)
    outputs = ["--out=out.mp4", "--labels=ids", "--json=out.jsonl"]
    limited = ["import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))", "import sys"]
    limited += ["from enet_deploy.commands.segment import main"]
    limited += ["print(*[main([*sys.argv[1:3], output]) for output in sys.argv[3:]])"]
    arguments = [sys.executable, "-c", "\n".join(limited), str(exported), "a.mkv", *outputs]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.stdout.split() == ["2"] * 3, done.stderr
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    for line, name in zip(errors, ("out.mp4", "ids", "out.jsonl"), strict=True):
        assert re.search(rf"error: cannot write .*{name}.* free space", line), line
    assert [path.name for path in here.rglob("*") if path.is_file()] == ["a.mkv"]


def test_window_shows_the_overlay_and_q_ends_it(
    here: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No window is opened, as a test's machine may have no screen."""
    shown: list[UInt8Array] = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(sinks, "_screen_answers", lambda: True)
    monkeypatch.setattr(cv2, "namedWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
    monkeypatch.setattr(cv2, "imshow", lambda _, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda _: ord("q") if len(shown) == 2 else -1)
    assert main([str(exported), str(write_video(here / "a.mp4")), "--show", "--alpha", "1"]) == 0
    assert len(shown) == 2 and "2 frames of" in capsys.readouterr().err
    colours = {tuple(colour) for colour in np.unique(shown[0].reshape(-1, 3), axis=0)}
    assert colours <= {color[::-1] for color in CAMVID.overlay_colors}


def test_screen_that_does_not_answer(
    here: Path, exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Qt would end the process; nothing is left of the outputs that were begun."""
    write_video(here / "a.mp4")
    monkeypatch.setenv("DISPLAY", ":987")
    assert main([str(exported), "a.mp4", "--show", "--out", "b.mp4", "--json", "c"]) == 2
    assert "--show needs" in capsys.readouterr().err and [path.name for path in here.iterdir()] == ["a.mp4"]


def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.mp4"], "nowhere.mp4 does not exist"),
        (["*.gif"], r"\*\.gif"),
        (["text.mp4"], "text.mp4 .* video"),
        (["sound.m4a"], "sound.m4a .* video"),
        (["empty"], "empty .* images"),
        (["damaged"], "damaged/a.png cannot be decoded"),
        (["7"], "camera 7 cannot be opened"),
        (["http://127.0.0.1:9/a.mjpg"], "http://127.0.0.1:9/a.mjpg cannot be opened"),
        (["videotestsrc ! appsink"], "videotestsrc ! appsink.* GStreamer"),
        (["v4l2src " + "name=camera " * 30 + "! appsink"], "v4l2src .*name=camera ! appsink.* GStreamer"),
        (["a" * 300], "a{300} does not exist"),
        (["-"], "--raw HEIGHTxWIDTH missing for '-'"),
        (["a.mp4", "--raw", "96x128"], "--raw HEIGHTxWIDTH given for 'a.mp4'"),
        (["-", "--raw", "100000x100000"], "'100000x100000'.* 268435456 .*16384x16384"),
        (["-", "--raw", "96"], "--raw: '96'.* HEIGHTxWIDTH"),
        (["-", "--raw", "96x128"], "standard input.* --out"),
        (["a.mp4", "--topic", "/a"], "--topic .*'a.mp4'"),
        (["a.mp4", "--out", "a.mp4"], "a.mp4 .*which is read"),
        (["images", "--out", "images"], "images .*input"),
        (["a.mp4", "--out", "b.avi"], "--out b.avi, .*: .mp4, .mov, .mkv, .webm"),
        (["a.mp4", "--out", "b.png"], "--out b.png .*a.mp4"),
        (["a.mp4", "--out", "b.bag"], "--out b.bag .*a.mp4"),
        (["a.mp4", "--labels", "b.jpg"], "--labels b.jpg, .*.png"),
        (["images", "--out", "b.mp4"], "--out b.mp4 for images"),
        (["a.mp4", "--out", "b", "--labels", "./b"], r"b and \./b"),
        (["a.mp4", "--compare"], "--compare for a.mp4.* NAMEannot"),
        (["a.mp4", "--labels", "ids", "--legend"], "--legend without .* --out"),
        (["a.mp4", "--labels", "ids", "--alpha", "1"], "--alpha without .* --out"),
        (["images", "--compare", "--alpha", "1"], "--alpha: .*--compare"),
        (["images", "--out", "b.pgm"], "b.pgm: .* 96x128 .*'.pgm'"),
        (["wide.png", "--out", "b.gif"], "b.gif: .* 2x70000"),
        (["wide.png", "--out", "b.jpg"], "b.jpg: .* 2x70000"),
        (["wide.png", "--fps", "1", "--out", "b.mp4"], "b.mp4: .* 2x70000"),
        (["nested"], r"nested .*'nested/\*\*/\*\.png'"),
        (["images", "--compare"], "imagesannot is not a folder"),
        (["a.mp4", "--out", "file/b.mp4"], "file/b.mp4"),
        (["a.mp4", "--show"], "--show needs a screen"),
        (["a.mp4", "--fps", "30"], "--fps given for 'a.mp4'"),
        (["-", "--raw", "96x128", "--fps", "0.0004"], "'0.0004'.* 0.001 to 1000"),
        (["-", "--raw", "96x128", "--fps", "1e12"], "'1e12'.* 0.001 to 1000"),
        (["a.mp4", "--out", "file"], "file is a file"),
        (["a.mp4", "--out", ""], "--out: ''"),
        ([""], "SOURCE: ''"),
        (["model.onnx"], "model.onnx is an artifact"),
        (["images/a.png", "a.mp4"], "a.mp4 .* 2 sources"),
        (["images/a.png", "wide.png", "--topic", "/a"], "--topic .* 2 images"),
        (["images/a.png", "wide.png", "--labels", "-"], "2x70000.* 96x128"),
        (["a.mp4", "--every", "0"], "--every: '0'.* at least 1"),
    ],
)
def test_bad_argument_is_explained_and_leaves_no_file(
    here: Path,
    exported: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    no_display(monkeypatch)
    write_video(here / "a.mp4")
    with av.open("sound.m4a", "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    for folder in ("empty", "images", "damaged", "nested/images"):
        (here / folder).mkdir(parents=True)
    for folder in ("images", "nested/images"):
        cv2.imwrite(f"{folder}/a.png", FRAMES[0])
    cv2.imwrite("wide.png", np.zeros((2, 70_000, 3), np.uint8))
    (here / "damaged" / "a.png").write_bytes(b"\x89PNG no more")
    (here / "text.mp4").write_text("no video")
    (here / "file").write_text("no folder")
    before = sorted(here.rglob("*"))
    try:
        code = main([str(exported), *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    # FFmpeg's own lines begin with [; the command silences them, which comes too late in a process that used it before
    told = "\n".join(line for line in capfd.readouterr().err.splitlines() if not line.startswith("["))
    assert re.search(message, told) and told.count("\n") == 0, told
    assert sorted(here.rglob("*")) == before


def test_error_of_a_sink_ends_the_threads(here: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise DataError("no labels today")

    monkeypatch.setattr(sinks, "frame_record", fail)
    video = write_video(here / "a.mp4", pictures=FRAMES * 10)
    with pytest.raises(DataError, match="no labels today") as error:
        segment(exported, video, json=here / "lines")
    names = [thread.name for thread in threading.enumerate()]
    assert error and not [name for name in names if "_decode" in name or "_label_all" in name]


@pytest.mark.parametrize(
    ("artifact", "message"),
    [(".", r"^enet-segment: error: \. holds no fleet.json"), ("enet-camvid-trian", r"mean enet-camvid-train\?$")],
)
def test_artifact_of_no_kind(here: Path, capsys: pytest.CaptureFixture[str], artifact: str, message: str) -> None:
    cv2.imwrite("a.png", FRAMES[0])
    assert main([artifact, "a.png"]) == 2
    assert re.search(message, capsys.readouterr().err.strip())


def test_expanded_globs_and_folders_with_dots(here: Path, exported: Path) -> None:
    for name in ("1", "2"):
        cv2.imwrite(f"{name}.png", FRAMES[0])
    (here / "v1.2").mkdir()
    assert main([str(exported), "1.png", "2.png", "--out", "v1.2", "--labels", "v1.3/", "--masks", "masks"]) == 0
    for folder in ("v1.2", "v1.3", "masks"):
        assert sorted(path.name for path in (here / folder).iterdir()) == ["1.png", "2.png"]
    assert main([str(exported), "1.png", "2.png"]) == 0
    assert len(list((here / "images-segmented").iterdir())) == 2


def test_same_stem_twice_in_a_glob(here: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("a", "b"):
        (here / folder).mkdir()
        cv2.imwrite(f"{folder}/1.png", FRAMES[0])
    assert main([str(exported), "*/1.png"]) == 2
    assert "a/1.png and b/1.png have the same stem" in capsys.readouterr().err


@pytest.mark.slow
def test_confidences_are_written_as_grey_pictures(exported: Path, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "sure"
    assert main([str(exported), str(scenes / "val"), "--confidence", str(out)]) == 0
    source = sorted((scenes / "val").iterdir())[0]
    with open_runner(exported) as runner:
        expected = runner.segment_with_confidence(cv2.imread(str(source)))[1]
    assert np.array_equal(cv2.imread(str(out / f"{source.stem}.png"), cv2.IMREAD_UNCHANGED), expected)
    lossy = str(tmp_path / "sure.jpg")
    assert main([str(exported), str(scenes / "val"), "--confidence", lossy]) == 2
