"""What all commands share: standard streams that are missing, signals, names that no terminal or locale should get."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from helpers import ROOT, one_line, stored, write_graph, write_scenes

from enet_deploy.artifacts import save_graph
from enet_deploy.commands import cli
from enet_deploy.errors import DataError
from enet_deploy.files import _remove_unfinished

DATA, SEGMENT, EVAL, TRAIN = (f"enet_deploy.commands.{name}" for name in ("data", "segment", "evaluate", "train"))
BENCH = "enet_deploy.benchmarks.cli"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def shell(redirections: str, module: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *command], capture_output=True, env=ENVIRONMENT
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "closed", [*(pytest.param(one, marks=pytest.mark.slow) for one in ("2>&-", "<&-", ">&-")), "<&- >&- 2>&-"]
)
def test_standard_streams_may_be_closed(scenes: Path, exported: Path, tmp_path: Path, closed: str) -> None:
    out = tmp_path / "a.json"
    assert shell(closed, DATA, "check", scenes, "--json", out).returncode == 0
    assert json.loads(out.read_text())["schema"] == 1
    done = shell(closed, SEGMENT, exported, scenes / "val", "--json", out)
    assert (done.returncode, done.stdout) == (0, b"")
    assert [json.loads(line)["frame"] for line in out.read_text().splitlines()] == [
        path.stem for path in sorted((scenes / "val").iterdir())
    ]
    done = shell(closed, SEGMENT, exported, tmp_path / "none", "--json", "-")
    assert (done.returncode, done.stdout) == (2, b"")  # no message in the data


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
@pytest.mark.parametrize("again", [False, True])
def test_signals_end_orderly(exported: Path, tmp_path: Path, number: signal.Signals, again: bool) -> None:
    """The video is finished; a closing terminal sends SIGHUP twice."""
    from videos import FRAMES

    command = [sys.executable, "-m", SEGMENT, str(exported), "-", "--raw", "96x128", "--out", "o.mp4"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=ENVIRONMENT
    ) as child:
        assert child.stdin is not None
        for _ in range(8):
            child.stdin.write(FRAMES[0].tobytes())
        child.stdin.flush()
        while not any(path.stat().st_size for path in tmp_path.glob(".enet-*/o.mp4")):
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(number)
        if again and number == signal.SIGHUP:
            child.send_signal(number)
        assert child.wait(300) == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == ["o.mp4"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("end", ["", "raise ValueError"])
def test_held_signal_comes_after_the_block(number: signal.Signals, end: str) -> None:
    code = f"""
import contextlib, signal
from enet_deploy.commands.signals import interrupts_held

came = []
signal.signal({number:d}, lambda *_: came.append("after"))
with contextlib.suppress(ValueError), interrupts_held():
    signal.raise_signal({number:d})
    came.append("block")
    {end}
print(*came)
"""
    assert (
        subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, env=ENVIRONMENT).stdout == b"block after\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_in_a_destructor_is_not_lost(number: signal.Signals) -> None:
    code = f"""
import os, sys, time
from enet_deploy.commands import cli

class Closing:
    def __del__(self):
        os.kill(os.getpid(), {number:d})
        time.sleep(0.1)

def command(args):
    Closing()
    time.sleep(60)

sys.exit(cli.run(cli.Parser("a"), command, []))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=50)
    assert (ended.returncode, ended.stderr) == (128 + number, "a: interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [False, True], ids=["", "nohup"])
def test_hang_up_of_a_command_without_frames(scenes: Path, tmp_path: Path, ignored: bool) -> None:
    from training_runs import arguments

    code = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_{'IGN' if ignored else 'DFL'})\n"
    code += "import sys; from enet_deploy.commands.train import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *arguments(scenes, tmp_path / "run", epochs=3 if ignored else 1000)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=ENVIRONMENT) as child:
        while not (tmp_path / "run" / "log.csv").exists():
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGHUP)
        told = child.communicate()[1]
    assert child.returncode == (0 if ignored else 129), told
    assert (b"the same command with --resume continues" in told) == (not ignored)
    _remove_unfinished(tmp_path / "run")  # as the next start does: a signal may come between two lines
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.slow
def test_escapes_in_names_reach_no_terminal(scenes: Path, exported: Path, tmp_path: Path) -> None:
    evil = "a\x1b]0;owned\x07\x1b[2J\u202e"
    root = tmp_path / evil
    shutil.copytree(scenes, root)
    (tmp_path / f"{evil}.json").write_text(json.dumps(stored()))
    seen = []
    for module, arguments in (
        (DATA, ["check", root]),
        (DATA, ["check", root / "none"]),
        (DATA, ["scenes", root / "new", "--count", "1"]),
        (SEGMENT, [exported, root / "val", "--labels", root / "ids"]),
        (SEGMENT, [exported, root / "val", "--labels", evil, "--unknown", evil]),
        (EVAL, [exported, "--data", root]),
        (TRAIN, [root, "--out", root / "run", "--hold-out", evil]),
        (BENCH, ["show", tmp_path / f"{evil}.json", "--csv", root / "a.csv"]),
    ):
        told = in_terminal(module, *map(str, arguments)).replace("\r", "").replace("\n", "")
        bars = ("\x1b[A", "\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[3m", "\x1b[33m", "\x1b[1;3", "\x1b[32m", "\x1b[36m")
        for bar in bars:  # what tqdm and rich write themselves
            told = told.replace(bar, "")
        assert "\x07" not in told and "\x1b]" not in told and "\x1b[2J" not in told and "\u202e" not in told, told
        seen.append("owned" in told)
    assert sum(seen) >= 6


def in_terminal(module: str, *arguments: str) -> str:
    """What a command prints to a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=ENVIRONMENT) as child:
        os.close(theirs)
        told = b""
        try:
            while block := os.read(ours, 1 << 16):
                told += block
        except OSError:  # the other side is closed
            pass
        child.wait()
    os.close(ours)
    return told.decode(errors="replace")


@pytest.mark.slow
def test_names_that_the_locale_does_not_have(exported: Path, tmp_path: Path) -> None:
    from training_runs import arguments

    root = write_scenes(tmp_path / "data", {"train": 4, "val": 1})
    names = ["Fußweg", "道路", *"cdefghijk"]
    (root / "classes.json").write_text(json.dumps({"names": names, "ignore_id": 11}), encoding="utf-8")
    strange = os.fsdecode(b"\xe9.png")
    ascii_alone, no_utf8 = {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for folder in ("train", "trainannot"):
        next((root / folder).iterdir()).rename(root / folder / strange)
    check = [DATA, "check", str(root), "--json", str(tmp_path / "a.json")]
    segment = [SEGMENT, str(exported), str(root / "train"), "--labels", str(tmp_path / "ids")]
    train = [TRAIN, *arguments(root, tmp_path / "run", epochs=1)]
    evaluate = [EVAL, f"{tmp_path / 'run' / 'last.safetensors'}", "--data", str(root), "--json", f"{tmp_path}/b.json"]
    for command, variables in (
        (check, ascii_alone), (segment, ascii_alone),
        (check, no_utf8), (train, no_utf8), (evaluate, no_utf8), (segment, no_utf8),
    ):  # fmt: skip
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, env=ENVIRONMENT | variables)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "ids" / strange).exists()
    assert "val_iou_Fußweg" in (tmp_path / "run" / "log.csv").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.slow
def test_paths_that_are_not_utf8(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A library that takes no such path is named; all others read and write there."""
    from training_runs import arguments

    from enet_deploy.benchmarks import cli as bench
    from enet_deploy.commands import evaluate, inspect, train

    pytest.importorskip("openvino")
    place = tmp_path / os.fsdecode(b"l\xe4")
    data = write_scenes(place / "data", {"train": 2, "val": 1})
    names = (b"m\xff.onnx", b"e\xff.onnx", b"w\xfe.safetensors")
    graph, edited, other = (place / os.fsdecode(name) for name in names)
    (place / "run.json").write_text(json.dumps(stored()))
    save_graph(onnx.load(write_graph(tmp_path / "a.onnx")), graph)
    shutil.copy(tmp_path / "a.onnx", edited)  # without a digest
    shutil.copy(weights, other)
    new = place / os.fsdecode(b"new\xe9")
    on_openvino = ["--backend", "openvino"]
    one_step = arguments(data, place / "run", batch=2, epochs=1)
    for expected, main, words in (
        ("", inspect.main, [graph, other]),
        (
            "",
            evaluate.main,
            [graph, *on_openvino, "--data", data, "--json", f"{new}.json", "--confusion", f"{new}.png"],
        ),
        ("", evaluate.main, [graph, "--backend", "ort", "--data", data]),
        ("onnxruntime takes no other paths", evaluate.main, [edited, "--backend", "ort", "--data", data]),
        ("", bench.main, ["show", place / "run.json", "--html", f"{new}.html", "--markdown", f"{new}.md"]),
        ("tensorboard takes no other paths", train.main, [*one_step, "--tensorboard", new]),
        ("", train.main, one_step),
    ):
        code, told = main([*map(str, words)]), capsys.readouterr().err
        assert code == (2 if expected else 0) and expected in told, told
    assert {path.suffix for path in place.glob("new*")} == {".json", ".png", ".html", ".md"}
    assert (place / "run" / "last.safetensors").exists()


@pytest.mark.slow
def test_every_text_file_says_its_encoding(scenes: Path, tmp_path: Path) -> None:
    from training_runs import arguments

    command = [sys.executable, "-X", "warn_default_encoding", "-m"]
    for more in (
        [DATA, "check", str(scenes), "--json", str(tmp_path / "a")],
        [TRAIN, *arguments(scenes, tmp_path / "run", epochs=1)],
    ):
        done = subprocess.run([*command, *more], capture_output=True, env=ENVIRONMENT)
        ours = [
            line
            for line in done.stderr.decode().splitlines()
            if line.startswith(f"{ROOT}/") and "site-packages" not in line
        ]
        assert (done.returncode, ours) == (0, [])


@pytest.mark.parametrize("kind", [RuntimeError, DataError, ModuleNotFoundError])
def test_interrupt_that_a_library_turns_into_an_error(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    """As PyTorch's exporter does if the interrupt comes while it imports modules."""

    def command(_: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise kind("broken") from ValueError("in a library")

    def broken(_: object) -> None:
        raise DataError("broken")

    assert cli.run(cli.Parser("it"), command, []) == 130
    assert one_line(capsys) == "it: interrupted\n"
    assert cli.run(cli.Parser("it"), broken, []) == 2
    assert one_line(capsys) == "it: error: broken\n"


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{"LOCAL_RANK": "0"}, {"LOCAL_RANK": "1", "RANK": "1"}])
def test_local_rank_alone_is_no_torchrun(
    scenes: Path,
    tmp_path: Path,
    variables: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    from training_runs import assert_refused, enet_train

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level("INFO"):
        assert enet_train(scenes, tmp_path / "run", epochs=1) == 0
    assert "LOCAL_RANK is set without " in caplog.text
    capsys.readouterr()
    full = variables | {"RANK": "x", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in full.items():
        monkeypatch.setenv(name, value)
    assert_refused(enet_train(scenes, tmp_path / "other", epochs=1), capsys, "RANK=x")
