"""Outputs are whole, never over inputs, and kept as they were; what killed processes left is removed; locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from enet_deploy import files
from enet_deploy.data import files_of
from enet_deploy.errors import ArtifactError, InputError
from enet_deploy.files import NAME_BYTES, atomic_write, only_process, require_outputs


def link(kind: str, target: Path, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "symbolic":
        path.symlink_to(target)
    elif kind == "hard":
        path.hardlink_to(target)
    else:
        path = target.parent / ".." / target.parent.name / target.name
    return path


@pytest.mark.parametrize("kind", ["symbolic", "hard", "spelling"])
@pytest.mark.parametrize("what", ["label map", "classes", "weights", "image that is a link"])
def test_no_output_over_what_is_read(scenes: Path, tmp_path: Path, kind: str, what: str) -> None:
    data = tmp_path / "data"
    for name in ("train", "trainannot"):
        (data / name).mkdir(parents=True)
    (data / "classes.json").write_text('{"names": ["a", "b"]}')
    (data / "trainannot" / "a.png").write_text("label")
    (tmp_path / "elsewhere.png").write_text("image")
    (data / "train" / "a.png").symlink_to(tmp_path / "elsewhere.png")
    (tmp_path / "w.safetensors").write_text("weights")
    reads = [tmp_path / "w.safetensors", *files_of(data)]
    target = {
        "label map": data / "trainannot" / "a.png",
        "classes": data / "classes.json",
        "weights": tmp_path / "w.safetensors",
        "image that is a link": tmp_path / "elsewhere.png",
    }[what]
    require_outputs([tmp_path / "scores.json", data / "scores.json"], reads, [tmp_path / "out"])
    path = link(kind, target, tmp_path / "out" / "x.png")
    with pytest.raises(InputError, match=r"which is read"):
        require_outputs([path], reads)
    if kind != "spelling":
        with pytest.raises(InputError, match=r"x\.png leads to .*which is read"):
            require_outputs([], reads, [tmp_path / "out"])


@pytest.mark.parametrize("name", ["train", "trainannot", "train/new", "linked"])
def test_no_folder_of_pictures_in_a_data_set(tmp_path: Path, name: str) -> None:
    for part in ("train", "trainannot"):
        (tmp_path / part).mkdir()
    (tmp_path / "linked").symlink_to("train")
    with pytest.raises(InputError, match=f"{name} would write over .*/train"):
        require_outputs([], files_of(tmp_path), [tmp_path / name])
    with pytest.raises(InputError, match=r"a\.png would write over .*/train"):
        require_outputs([tmp_path / name / "a.png"], files_of(tmp_path))


@pytest.mark.parametrize("second", ["a.json", "./a.json", "sub/../a.json", "A.json", "link.json"])
def test_no_two_outputs_are_one(tmp_path: Path, second: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.json").symlink_to("a.json")
    with pytest.raises(InputError, match=r"are the same, expected a different path"):
        require_outputs([tmp_path / "a.json", f"{tmp_path}/{second}"], [])
    with pytest.raises(InputError, match=r"gets images of such names"):
        require_outputs([tmp_path / "sub" / "a.png"], [], [tmp_path / "sub"])


def test_links_in_a_circle_are_explained(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ArtifactError, match="circle"):
        require_outputs([tmp_path / "a"], [])


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_replaced_file_keeps_its_mode_and_owner(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    if os.geteuid() == 0:
        os.chown(path, 12345, 54321)
    path.chmod(mode)
    before = path.stat()
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    after = path.stat()
    assert path.read_text() == "new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_longest_name_can_be_written_and_longer_ones_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / ("車" * (NAME_BYTES // 3 - 2) + "x" * 2 + ".png")
    longest = path.with_name("x" * (NAME_BYTES - 4) + ".png")
    for each in (path, longest):
        with atomic_write(each) as temporary:
            assert temporary.suffix == ".png"
            temporary.write_text("whole")
        assert each.read_text() == "whole"
    for too_long in (longest.with_name("x" + longest.name), tmp_path / ("x" * 256) / "a.png"):
        with pytest.raises(ArtifactError, match="256 bytes"):
            require_outputs([too_long], [])


def in_child(code: str, folder: Path) -> subprocess.Popen[str]:
    """Start a process that runs code with `folder`, and prints a line when it has reached the point under test."""
    head = (
        "import os, sys, time\nfrom pathlib import Path\nfrom enet_deploy.files import *\nfolder = Path(sys.argv[1])\n"
    )
    child = subprocess.Popen([sys.executable, "-c", head + code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def end(child: subprocess.Popen[str]) -> None:
    with child:
        child.send_signal(signal.SIGKILL)


WRITING = """
with atomic_write(folder / "a.json") as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_only_files_of_a_killed_process_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed, running = in_child(WRITING, tmp_path), in_child(WRITING, tmp_path)
    end(killed)
    strangers = {".enet-0123456", ".enet-01234567.txt", ".b-01234567", ".enet-fedcba98"}
    for name in strangers - {".enet-fedcba98"}:
        (tmp_path / name).mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / ".enet-fedcba98").symlink_to("precious")
    (tmp_path / "precious" / "x").write_text("x")
    monkeypatch.setattr(files, "_looked_through", set())
    with atomic_write(tmp_path / "b.json") as temporary:
        temporary.write_text("whole")
    left = {path.name for path in tmp_path.iterdir()} - {"b.json", "precious"} - strangers
    assert len(left) == 1 and (tmp_path / left.pop() / "a.json").read_text() == "half"
    assert (tmp_path / "precious" / "x").exists()
    end(running)


def test_one_process_per_folder(tmp_path: Path) -> None:
    code = 'with only_process(folder):\n    print("ready", flush=True)\n    time.sleep(60)\n'
    child = in_child(code, tmp_path / "run")
    with pytest.raises(ArtifactError, match="another process"), only_process(tmp_path / "run"):
        pass
    with only_process(tmp_path / "other"):
        pass
    assert not (tmp_path / "other").exists()
    end(child)
    with only_process(tmp_path / "run"):
        (tmp_path / "run" / "a").write_text("a")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["a"]


@pytest.mark.parametrize("fail", [lambda: 1 / 0, lambda: sys.exit(3)])
def test_unfinished_file_vanishes(tmp_path: Path, fail: Callable[[], object]) -> None:
    with pytest.raises((ZeroDivisionError, SystemExit)), atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("half")
        fail()
    assert list(tmp_path.iterdir()) == []
