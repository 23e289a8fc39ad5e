"""`enet-data camvid` against a small web server on this machine that plays the public one."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from enet_deploy.commands.data import main as enet_data
from enet_deploy.data import camvid, open_data
from enet_deploy.errors import DataError, InputError

COUNTS = {"train": 3, "val": 1, "test": 1}
ALL_FILES = sum(2 * count for count in COUNTS.values())


class Site:
    """A tiny CamVid on the web, and ways to break it."""

    url: str

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.busy: Counter[str] = Counter()  # how often a file is answered with 503 first
        self.cut: set[str] = set()  # files whose body ends early
        for split, count in COUNTS.items():
            lines = []
            for index in range(count):
                name = f"0001TP_{index:06d}.png"
                self.files[f"/{split}/{name}"] = png(np.full((360, 480, 3), 10 * index, np.uint8))
                self.files[f"/{split}annot/{name}"] = png(np.full((360, 480), 11 - index, np.uint8))
                lines.append(f"/SegNet/CamVid/{split}/{name} /SegNet/CamVid/{split}annot/{name}\n")
            self.files[f"/{split}.txt"] = "".join(lines).encode()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path
        self.requests[path] += 1
        if self.busy[path] > 0:
            self.busy[path] -= 1
            handler.send_error(503)
        elif path.startswith("/moved"):
            handler.send_response(302)
            handler.send_header("Location", path.removeprefix("/moved"))
            handler.end_headers()
        elif path not in self.files:
            handler.send_error(404)
        else:
            content = self.files[path]
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content[:-9] if path in self.cut else content)


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def files_in(root: Path) -> list[str]:
    """Every file below `root`, temporary ones too."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.answer(self)

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 32  # the default, 5, makes eight clients at once wait a second for their next try

    server = Server(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setattr(camvid, "COUNTS", COUNTS)
    monkeypatch.setattr(camvid, "RETRY_WAITS", (0.0, 0.0))
    monkeypatch.setenv("no_proxy", "*")
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


def test_redirect_is_followed(site: Site, tmp_path: Path) -> None:
    camvid.fetch_camvid(tmp_path, ["val"], f"{site.url}/moved")
    assert len(open_data(tmp_path, "val")) == 1 and site.requests["/moved/val.txt"] == site.requests["/val.txt"] == 1


def test_fetches_the_whole_data_set_and_says_whether_the_pixels_are_the_known_ones(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    camvid.fetch_camvid(tmp_path / "known", ["train"], site.url)
    known = camvid.pixel_digest(open_data(tmp_path / "known", "train"))
    monkeypatch.setattr(camvid, "DIGESTS", {"train": known, "val": "0" * 64})

    assert enet_data(["camvid", str(tmp_path / "camvid"), "--from", site.url + "/"]) == 0

    assert [f"/{name}" for name in files_in(tmp_path / "camvid")] == sorted(n for n in site.files if n[-4:] == ".png")
    train, val, test = capsys.readouterr().out.splitlines()[-3:]
    assert re.match(r"train: 3 images .*\b0 files kept, 6 fetched.* pixels equal", train)
    assert "pixels DIFFER" in val
    assert "no digest is known" in test


def test_fetches_only_what_is_missing_or_damaged(site: Site, tmp_path: Path) -> None:
    camvid.fetch_camvid(tmp_path, source=site.url)
    gone, damaged = tmp_path / "train/0001TP_000001.png", tmp_path / "valannot/0001TP_000000.png"
    gone.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-9])
    site.requests.clear()

    assert camvid.fetch_camvid(tmp_path, source=site.url) == {"train": 1, "val": 1, "test": 0}

    pictures = {path: count for path, count in site.requests.items() if path.endswith(".png")}
    assert pictures == {"/train/0001TP_000001.png": 1, "/valannot/0001TP_000000.png": 1}
    assert len(files_in(tmp_path)) == ALL_FILES


def test_an_interrupt_leaves_whole_files_and_the_next_run_continues(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(files: Iterable[bytes | None], _title: str, _total: int) -> Iterator[bytes | None]:
        yield next(iter(files))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(camvid.console, "progress", interrupted)
        assert enet_data(["camvid", str(tmp_path), "--from", site.url]) == 130
    assert files_in(tmp_path) == ["train/0001TP_000000.png"]
    assert sum(camvid.fetch_camvid(tmp_path, source=site.url).values()) == ALL_FILES - 1


IMAGE, LABELS = "val/0001TP_000000.png", "valannot/0001TP_000000.png"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGE, png(np.zeros((360, 480, 3), np.uint8))[:-9], "is damaged"),
        (IMAGE, b"<html>Please log in</html>", "is no PNG file"),
        (IMAGE, png(np.zeros((720, 960, 3), np.uint8)), "is 720x960, expected .* 360x480"),
        (LABELS, png(np.full((360, 480), 12, np.uint8)), "holds id 12, expected .* 0 to 11"),
        (LABELS, png(np.zeros((360, 480, 3), np.uint8)), r"has shape \(360, 480, 3\).* single-channel"),
    ],
)
def test_a_picture_that_is_not_camvids_is_named_and_not_kept(
    site: Site, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    site.files[f"/{name}"] = content
    with pytest.raises(DataError, match=f"{site.url}/{name} {message}"):
        camvid.fetch_camvid(tmp_path, ["val"], site.url)
    assert name not in files_in(tmp_path)


def test_a_body_that_ends_early_is_tried_again_then_reported(site: Site, tmp_path: Path) -> None:
    site.cut.add(f"/{IMAGE}")
    with pytest.raises(DataError, match=rf"{IMAGE}: IncompleteRead.* run the same command again to continue"):
        camvid.fetch_camvid(tmp_path, ["val"], site.url)
    assert site.requests[f"/{IMAGE}"] == 3
    assert files_in(tmp_path) == []


def test_a_busy_server_is_tried_again(site: Site, tmp_path: Path) -> None:
    site.busy[f"/{IMAGE}"] = 2
    assert camvid.fetch_camvid(tmp_path, ["val"], site.url) == {"val": 2}
    assert site.requests[f"/{IMAGE}"] == 3


def test_a_missing_file_is_one_line_and_exit_code_2_at_once(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del site.files["/val.txt"]
    assert enet_data(["camvid", str(tmp_path), "--from", site.url, "--splits", "val"]) == 2
    line, *more = capsys.readouterr().err.splitlines()
    assert line.startswith(f"enet-data: error: {site.url}/val.txt: HTTP Error 404")
    assert "check --from" in line
    assert more == []
    assert site.requests["/val.txt"] == 1


@pytest.mark.parametrize("path", ["../evil.png", "val/../evil.png", "val/..\\evil.png", "val/.evil.png", "val/evil.sh"])
def test_a_list_with_other_names_than_expected_is_refused(site: Site, tmp_path: Path, path: str) -> None:
    site.files["/val.txt"] = f"/SegNet/CamVid/{path} /SegNet/CamVid/{path.replace('val/', 'valannot/')}\n".encode()
    with pytest.raises(DataError, match=r"val\.txt has the line .*evil"):
        camvid.fetch_camvid(tmp_path / "camvid", ["val"], site.url)
    assert files_in(tmp_path) == []


def test_a_list_of_another_length_is_refused(site: Site, tmp_path: Path) -> None:
    site.files["/val.txt"] = site.files["/train.txt"].replace(b"train", b"val")
    with pytest.raises(DataError, match=r"val\.txt lists 3 images, expected CamVid's 1"):
        camvid.fetch_camvid(tmp_path, ["val"], site.url)


@pytest.mark.parametrize(
    "url", ["ftp://host/CamVid", "file:///CamVid", "CamVid", "http://", "http://host:port", "http://a b"]
)
def test_only_http_urls_are_taken(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match="URL"):
        camvid.fetch_camvid(tmp_path, source=url)


@pytest.mark.parametrize("what", ["train.txt", "0001TP_000000.png"])
@pytest.mark.parametrize("how", ["endless", "slow"])
def test_server_without_end(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, how: str) -> None:
    monkeypatch.setattr(camvid, "LONGEST", 0.05)
    sent = []

    def answer(handler: BaseHTTPRequestHandler, ordinary: Callable[..., None] = site.answer) -> None:
        if what not in handler.path:
            return ordinary(handler)
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(3000):
                handler.wfile.write(bytes(1 << 16) if how == "endless" else b"a")
                sent.append(1)
                time.sleep(0 if how == "endless" else 0.01)
        return None

    monkeypatch.setattr(site, "answer", answer)
    monkeypatch.setattr(camvid, "LONGEST", 60 if how == "endless" else 0.05)
    with pytest.raises(DataError, match=f"{what} .*(more than 4194304 bytes|0.05 s)"):
        camvid.fetch_camvid(tmp_path, ["train"], site.url)
    assert len(sent) < 2900


def test_picture_that_claims_to_be_huge_is_not_decoded(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camvid, "decode", lambda *_: pytest.fail("decoded"))
    huge = png(np.zeros((8000, 8000), np.uint8))
    site.files = {name: huge if name.endswith(".png") else content for name, content in site.files.items()}
    with pytest.raises(DataError, match="is 8000x8000, expected"):
        camvid.fetch_camvid(tmp_path, ["val"], site.url)
