"""The report on a GPU: its harness with steps that go wrong, its steps on the stand-ins and in a rehearsal."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import tensorrt_standin
import torch
from helpers import ROOT, SIZE
from onnx import TensorProto, helper

from enet_deploy import CAMVID, BackendError, InputError, Runner, Spec
from enet_deploy.artifacts import Metadata
from enet_deploy.benchmarks.gpu import cli as gpu
from enet_deploy.benchmarks.gpu import contract, inference, machine, steps
from enet_deploy.benchmarks.gpu import page as gpu_page
from enet_deploy.benchmarks.gpu.findings import REHEARSAL, Findings, Settings
from enet_deploy.benchmarks.gpu.session import Session
from enet_deploy.benchmarks.gpu.training import WAYS
from enet_deploy.benchmarks.measure import training
from enet_deploy.benchmarks.measure.profiling import Kernel, expected_seconds, kernels
from enet_deploy.errors import RequirementError
from enet_deploy.export import to_onnx
from enet_deploy.images import UInt8Array
from enet_deploy.runners.tensorrt import builder as to_engine
from enet_deploy.runners.tensorrt.card import EngineCard
from enet_deploy.training.recipe import Recipe

SHORT = dataclasses.replace(REHEARSAL, sizes=(SIZE,))
ON_STAND_IN = dataclasses.replace(SHORT, rehearsal=False, flavour="trt")


@pytest.fixture
def work(exported: Path, tmp_path: Path) -> Path:
    """A run's folder with its graphs, which take long to export."""
    folder = tmp_path / "work"
    folder.mkdir()
    for precision in ("fp32", "fp16", "int8"):
        shutil.copy(exported, folder / f"enet-{precision}-{SIZE[0]}x{SIZE[1]}-dynamic.onnx")
    return folder


def step(name: str, settings: Settings, work: Path) -> tuple[int, dict[str, Any]]:
    """Exit code and findings of a step in this process."""
    settings.write(work)
    code = steps.main([name, str(work), str(work / f"{name}.json")])
    return code, json.loads((work / f"{name}.json").read_text())


def rows(found: dict[str, Any], **wanted: object) -> list[dict[str, Any]]:
    return [row for row in found["findings"] if wanted.items() <= row.items()]


# The harness

MACHINE = {"processor": "a", "cores": 1, "time": "now", "commit": "b"}
REPORT = {"rehearsal": False, "card": "a card", "settings": {}, "environment": MACHINE}
FOUND = {"findings": [{"table": "rates", "what": "x", "rate": 2.5}]}
WRITE = f"import pathlib, sys; pathlib.Path(sys.argv[1]).write_text({json.dumps(FOUND)!r});"
ENDS = {
    "raises": ("raise ValueError('boom\\nadvice')", 60, gpu.FAILED, "ValueError: boom"),
    "crashes": ("import os; os.kill(os.getpid(), 11)", 60, gpu.FAILED, "SIGSEGV"),
    "overruns": (
        "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)",
        3,
        gpu.FAILED,
        "longer than 3 s",
    ),
    "ends well": ("pass", 60, gpu.DONE, ""),
}


@pytest.mark.slow
def test_a_step_that_goes_wrong_is_reported_and_the_next_one_runs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for folder in ("steps", "logs"):
        (out / folder).mkdir(parents=True)
    chosen = {
        name: gpu.Command(name, limit, [sys.executable, "-c", WRITE + code, str(out / "steps" / f"{name}.json")])
        for name, (code, limit, _, _) in ENDS.items()
    }
    report: dict[str, Any] = dict(REPORT)
    lines = list(gpu.run_all(chosen, report, tmp_path, out, 120))
    assert len(lines) == len(ENDS)
    for found, (name, (_, _, state, reason)) in zip(report["steps"], ENDS.items(), strict=True):
        assert (found["step"], found["state"]) == (name, state)
        assert reason in found["reason"]
        assert found["findings"] == FOUND["findings"]  # what was known before is kept
    child = int((out / "logs" / "overruns.txt").read_text())
    assert not is_running(child)
    assert json.loads((out / "gpu.json").read_text()) == report
    page = (out / "gpu-report.html").read_text()
    assert "SIGSEGV" in page and "boom" in page and "REHEARSAL" not in page
    with zipfile.ZipFile(out / "gpu-report.zip") as file:
        assert "ValueError: boom" in file.read("gpu-report/logs/raises.txt").decode()


def test_report_to_send_does_not_identify_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, work, out = (tmp_path / name for name in ("alic\u00e9", "work", "out"))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("socket.gethostname", lambda: "alic\u00e9-desk")
    (out / "steps").mkdir(parents=True)
    (out / "logs").mkdir()
    work.mkdir()
    told = f"{home}/x {work}/y {out}/z /media/{home.name}/CamVid /cache/{home.name}_1 hostname={home.name}-desk "
    told += f"{ROOT}/enet_deploy/runners/base.py {ROOT}/export/html.py: enough"
    expected = "~/x WORK/y OUT/z /media/USER/CamVid /cache/USER_1 hostname=HOST "
    expected += "CODE/runners/base.py CODE/export/html.py"
    found = json.dumps({"findings": [{"table": "machine", "failed": told, "figures": [told, 1.5]}]})  # escaped
    code = f"import pathlib; pathlib.Path({str(out / 'steps' / 'a.json')!r}).write_text({found!r}); exit({told!r})"
    chosen = {"a": gpu.Command("a", 60, [sys.executable, "-X", "utf8", "-c", code])}
    report: dict[str, Any] = dict(REPORT)
    list(gpu.run_all(chosen, report, work, out, 120))
    (ended,) = report["steps"]
    texts = {"reason": ended["reason"], **ended["findings"][0]}
    assert {texts["reason"], texts["failed"], texts["figures"][0]} == {f"{expected}: enough"}
    assert texts["figures"][1] == 1.5
    with zipfile.ZipFile(out / "gpu-report.zip") as file:
        for name in file.namelist():
            content = file.read(name).decode()
            assert "alic" not in content and str(tmp_path) not in content and str(ROOT) not in content
            assert "/media/USER/CamVid" in content


def test_step_stopped_by_the_time_limit_has_not_failed(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    late = gpu.Command("late", 60, [sys.executable, "-c", "import time; time.sleep(60)"])
    assert gpu.run_step("late", late, tmp_path, tmp_path, 0.2)["state"] == gpu.CUT_SHORT


def test_a_process_that_cannot_be_killed_does_not_hold_up_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It behaves like a process that waits in a driver for a device that does not answer."""
    killed = []

    def wait(seconds: float) -> int:
        raise subprocess.TimeoutExpired("stuck", seconds)

    monkeypatch.setattr(gpu.subprocess, "Popen", lambda *_, **__: SimpleNamespace(pid=7, wait=wait))
    monkeypatch.setattr(gpu.os, "killpg", lambda *call: killed.append(call))
    assert gpu._process(["stuck"], tmp_path, tmp_path / "log", 1.0) is None
    assert killed == [(7, signal.SIGKILL)]


def test_more_minutes_are_each_steps_too(tmp_path: Path) -> None:
    usual, more, fewer = (
        gpu.commands(["facts"], tmp_path, tmp_path, minutes)["facts"].limit
        for minutes in (gpu.MINUTES, 3 * gpu.MINUTES, gpu.MINUTES / 2)
    )
    assert fewer == usual == steps.STEPS["facts"].limit and more == 3 * usual


def is_running(process: int) -> bool:
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return False
        if state == "Z":  # ended, and nobody has asked
            return False
        time.sleep(0.02)
    return True


def test_no_step_begins_after_the_end(tmp_path: Path) -> None:
    chosen = {"late": gpu.Command("late", 60, [sys.executable, "-c", "raise SystemExit(1)"])}
    report: dict[str, Any] = {}
    assert len(list(gpu.run_all(chosen, report, tmp_path, tmp_path, gpu.LEAST / 2))) == 1
    assert report["steps"][0]["state"] == gpu.NOT_RUN
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_rehearsal_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["--rehearse", "--out", str(out), "--steps", "facts,contract-trt,train-minute", "--minutes", "60"]
    assert gpu.main(words) == 0  # in so many minutes, as a busy machine takes longer than a step may otherwise
    shown = capsys.readouterr().out
    assert str(out / "gpu-rehearsal.zip") in shown and "to send" not in shown
    report = json.loads((out / "gpu.json").read_text())
    assert report["rehearsal"] is True and report["card"] is None
    states = {found["step"]: found["state"] for found in report["steps"]}
    assert states == {"facts": "done", "contract-trt": "not here", "train-minute": "done"}
    assert "matrix product, float32" in {
        row["what"] for row in rows(report["steps"][0], table="rates") if "rate" in row
    }
    (trained,) = rows(report["steps"][-1], table="training")
    assert trained["epochs"] == 1 and 0 <= trained["miou"] <= 1
    for name in states:
        assert json.loads((out / "steps" / f"{name}.json").read_text())["rehearsal"] is True
    assert "REHEARSAL" in (out / "gpu-rehearsal.html").read_text()
    with zipfile.ZipFile(out / "gpu-rehearsal.zip") as file:
        files = {"gpu.json", "gpu-rehearsal.html", *(f"logs/{name}.txt" for name in states)}
        assert set(file.namelist()) == {f"gpu-rehearsal/{name}" for name in files}


@pytest.mark.parametrize(
    "arguments",
    [["--steps", "facts,lunch"], ["--minutes", "0"], ["--split", "test"], ["--data", "nowhere"]],
    ids=lambda words: " ".join(words),
)
def test_wrong_arguments_give_one_line_and_write_nothing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--rehearse", "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and arguments[1].rpartition(",")[2] in error
    assert not (tmp_path / "out").exists()


def test_without_a_card_or_the_wanted_tensorrt_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: str) -> None:
        raise BackendError("not in this machine")

    wanted = ["--out", str(tmp_path / "out"), "--engine", "trt"]
    monkeypatch.setattr(gpu, "import_tensorrt", missing)
    monkeypatch.setattr(gpu, "find_gpu", lambda: "a card")
    assert gpu.main(wanted) == 2
    assert "not in this machine" in capsys.readouterr().err
    monkeypatch.setattr(gpu, "find_gpu", missing)
    assert gpu.main(wanted) == 2
    assert "not in this machine; --rehearse" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_failure_is_in_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    broken = {"facts": gpu.Command("The machine", 60, [sys.executable, "-c", "raise SystemExit('dead')"])}
    monkeypatch.setattr(gpu, "commands", lambda *_: broken)
    assert gpu.main(["--rehearse", "--out", str(tmp_path)]) == 1
    assert "facts failed" in capsys.readouterr().err
    (found,) = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert (found["state"], found["reason"]) == (gpu.FAILED, "dead")


# The steps


@pytest.mark.slow
def test_steps_of_a_rehearsal(work: Path) -> None:
    code, found = step("contract-ort", SHORT, work)
    assert code == 0 and {row["check"] for row in found["findings"]} == {"opens", *contract.CHECKS}
    assert {row["check"] for row in found["findings"] if "skipped" in row} == {
        "arrays of the device",
        "memory comes back",
    }
    assert step("contract-trt", SHORT, work)[1]["skipped"] == "needs a card"
    code, found = step("speed-ort", SHORT, work)
    (row,) = rows(found, table="speed", precision="fp32")
    assert code == 0 and 0 < row["p50_ms"] <= row["p99_ms"] and row["stream_fps"] > 0
    assert [row["batch"] for row in rows(found, table="batches")] == [1, 2]
    code, found = step("estimate", SHORT, work)
    merged, plain = rows(found, precision="fp32")
    assert code == 0 and merged["gflop"] == plain["gflop"] > 0 and merged["mb"] < plain["mb"]
    code, found = step("pytorch", SHORT, work)
    timed = [row for row in found["findings"] if "p50_ms" in row]
    assert code == 0 and {row["how"] for row in timed} == {"eager"}
    assert min(row["agreement"] for row in timed) > 0.99
    code, found = step("pytorch-compiled", SHORT, work)
    assert code == 0 and all("skipped" in row for row in found["findings"])
    code, found = step("train-speed", SHORT, work)
    assert code == 0 and {row["how"] for row in found["findings"] if "skipped" in row} == {"CUDA graph"}
    assert [row["images_s"] > 0 for row in found["findings"] if "skipped" not in row] == [True] * 3


@pytest.mark.slow
def test_training_steps_are_timed_each_way(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def this_trainer(data: Any, recipe: Recipe, device: str, out: Path, compiled: bool, captured: bool) -> None:
        asked.append((recipe.amp, compiled, captured))

    monkeypatch.setattr(training, "this_trainer", this_trainer)
    monkeypatch.setattr(training, "usual_loop", lambda *_: None)
    monkeypatch.setattr(training, "measure", lambda *_: {"it": 4.0})
    for name in ("require", "require_compile"):
        monkeypatch.setattr(Session, name, lambda *_: None)
    settings = dataclasses.replace(ON_STAND_IN, data=str(scenes))
    found = [row for name in ("speed", "compiled") for row in step(f"train-{name}", settings, tmp_path)[1]["findings"]]
    assert [row["step_ms"] for row in found] == [250.0] * len(WAYS)
    rest = [(True, False, True), (False, False, True), (True, False, False), (False, False, False)]
    assert asked == [*rest, (True, True, False)]


def test_rows_of_torch_compile_say_why_it_does_not_work(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no C compiler\nadvice")

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(Session, "require", lambda *_: None)
    settings = dataclasses.replace(ON_STAND_IN, data=str(scenes))
    for name in ("train-compiled", "pytorch-compiled"):
        code, found = step(name, settings, tmp_path)
        assert code == 0 and found["findings"]
        assert all(row["skipped"].endswith("no C compiler") for row in found["findings"])


@pytest.mark.slow
def test_rehearsal_compiles_an_engine_ahead_of_time(work: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    code, found = step("engine-fp32", SHORT, work)
    (row,) = found["findings"]
    assert code == 0 and "needs a card" in found["skipped"] and row["mb"] > 0 and "p50_ms" not in row


def test_queued_work_takes_as_long_as_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now, queued = 0.0, 0  # of a device that takes a second for each call, and a host that takes none

    def queue() -> None:
        nonlocal queued
        queued += 1

    def wait() -> None:
        nonlocal now, queued
        now, queued = now + queued, 0

    monkeypatch.setattr(machine.time, "perf_counter", lambda: now)
    assert machine.seconds_per_call(queue, wait, 5.0) == 1.0
    assert now == 7


def test_every_card_is_listed(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (f"{name}, 580.1, 8 GiB, 1 MHz, 2 MHz, 3 MHz, 4 W, 5 W, 40\n" for name in ("RTX 1", "RTX 2"))
    done = SimpleNamespace(returncode=0, stdout="".join(rows))
    monkeypatch.setattr(machine.subprocess, "run", lambda *_, **__: done)
    found = Findings(work / "a.json", "a", rehearsal=True)
    machine.note_smi(Session(SHORT, work, found), "now")
    (row,) = json.loads(found.path.read_text())["findings"]
    assert "name RTX 1, driver_version 580.1" in row["value"] and "; name RTX 2" in row["value"]


def stand_in_build(session: Session, flavour: str, precision: str, size: Any, *_: Any, dynamic: bool = False) -> Any:
    """Replaces TensorRT's builder, for which there is no stand-in."""
    graph = session.graph(precision, size, dynamic)
    path = tensorrt_standin.write_engine(graph, session.work / EngineCard.engine_name(graph, flavour), flavour)
    return SimpleNamespace(path=path, card=EngineCard.read(path), bytes=path.stat().st_size, seconds=1.0)


@pytest.mark.slow
def test_engines_run_and_are_compared_with_pytorch(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "build", stand_in_build)
    monkeypatch.setattr(inference, "IMAGES", 2)
    card = tensorrt_standin.Gpu()
    with tensorrt_standin.installed(card):
        code, found = step("engine-fp32", ON_STAND_IN, work)
        assert code == 0
        (row,) = rows(found, table="engines", precision="fp32")
        assert row["images"] == 2 and row["agreement"] > 0.9999 and row["interior_flips"] < 1e-4
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        code, found = step("contract-trt", ON_STAND_IN, work)
        assert code == 0 and {row["check"] for row in found["findings"]} == {"opens", *contract.CHECKS}
        code, found = step("speed-trt", ON_STAND_IN, work)
        assert code == 0
        assert [row["graphs"] for row in rows(found, table="speed", memory="host")] == ["yes", "no"]
        assert [row["batch"] for row in rows(found, table="batches", memory="host")] == [1, 2]
        code, found = step("throughput-int8", ON_STAND_IN, work)
        assert code == 0 and all(row["fps"] > 0 for row in found["findings"])
        assert [(row["precision"], row["batch"]) for row in found["findings"]] == [("int8", 1), ("int8", 2)]
    assert (card.alive(), card.complaints) == ({}, [])


def test_an_engine_with_other_labels_fails(work: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(Session, "build", stand_in_build)
    monkeypatch.setattr(inference, "IMAGES", 1)
    monkeypatch.setitem(to_onnx.MAX_DISAGREEMENT, "fp32", -1e-9)  # as if more had to be equal than are
    with tensorrt_standin.installed(tensorrt_standin.Gpu()):
        code, found = step("engine-fp32", ON_STAND_IN, work)
    (row,) = found["findings"]
    assert code == 1 and f"{row['agreement']:.4%}" in row["failed"]
    assert "fp32" in capsys.readouterr().err


def test_a_card_that_tensorrt_refuses_is_no_failure(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise BackendError("TensorRT-RTX has no code for compute capability 9.0")

    monkeypatch.setattr(to_engine, "require_buildable", refuse)
    with tensorrt_standin.installed(tensorrt_standin.Gpu()):
        code, found = step("engine-fp16", ON_STAND_IN, work)
    assert (code, found["findings"]) == (0, [])
    assert "9.0" in found["skipped"]


@pytest.mark.slow
def test_error_of_an_attempt_is_in_its_row_and_in_the_exit_code(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(_: contract.ContractCase) -> str:
        raise RequirementError("12 % are equal")

    monkeypatch.setitem(contract.CHECKS, "several frames in a call", wrong)
    code, found = step("contract-ort", SHORT, work)
    (row,) = [row for row in found["findings"] if "failed" in row]
    assert (code, row["check"], row["failed"]) == (1, "several frames in a call", "12 % are equal")
    assert "several frames in a call" in capsys.readouterr().err
    assert found["findings"][-1]["check"] == list(contract.CHECKS)[-1]  # those after it were made


def test_findings_have_no_nan_and_survive_what_comes(tmp_path: Path) -> None:
    found = Findings(tmp_path / "a.json", "a", rehearsal=False)
    with found.attempt("engines", precision="fp16") as note:
        note(miou=float("nan"), p50_ms=1.5)
        assert json.loads((tmp_path / "a.json").read_text())["findings"][0]["p50_ms"] == 1.5
        raise KeyError("lost\nline")
    (row,) = json.loads((tmp_path / "a.json").read_text())["findings"]
    assert row["miou"] is None and "KeyError" in row["failed"] and "\n" not in row["failed"]


# The contract in the package: it finds what is wrong


class Plain(Runner):
    """Labels are the red channel modulo the classes."""

    backend = "plain"

    def __init__(self) -> None:
        super().__init__(__file__)

    def _open(self) -> Spec:
        return self._make_spec(Metadata(CAMVID, (0, 0, 0), (1, 1, 1), SIZE), None, has_logits=False)

    def _run(self, frames: UInt8Array, out: UInt8Array) -> None:
        out[:] = frames[..., 2] % len(CAMVID)

    def _run_logits(self, frames: UInt8Array) -> npt.NDArray[np.float32]:
        raise AssertionError

    def _close(self) -> None: ...


class Wrong(Plain):
    def _run(self, frames: UInt8Array, out: UInt8Array) -> None:
        out[:] = 0


class Forgetful(Plain):
    """Another answer each time."""

    calls = 0

    def _run(self, frames: UInt8Array, out: UInt8Array) -> None:
        super()._run(frames, out)
        Forgetful.calls += 1
        out[0, 0, 0] = Forgetful.calls % 2


class OneBuffer(Plain):
    buffer = np.zeros((8, *SIZE), np.uint8)

    def infer(self, frames: UInt8Array, out: UInt8Array | None = None) -> UInt8Array:
        return super().infer(frames, self.buffer[: len(frames)] if out is None else out)


class OwnArray(Plain):
    def infer(self, frames: UInt8Array, out: UInt8Array | None = None) -> UInt8Array:
        return super().infer(frames)


class Undemanding(Plain):
    def _checked(self, frames: Any) -> UInt8Array:
        try:
            return super()._checked(frames)
        except InputError:
            return np.zeros((1, *SIZE, 3), np.uint8)


class OutOfOrder(Plain):
    def stream(self, frames: Any, depth: int = 2) -> Any:
        return iter(list(super().stream(frames, depth))[::-1])


class NeverClosed(Plain):
    def close(self) -> None: ...


BROKEN: dict[Callable[[], Runner], str] = {
    Wrong: "labels are PyTorch's",
    Forgetful: "the same frame again",
    OneBuffer: "labels are the caller's",
    OwnArray: "out= is filled",
    Undemanding: "wrong frames are refused",
    OutOfOrder: "stream() in order",
    NeverClosed: "close, and open again",
}


@pytest.mark.parametrize("runner_class", [Plain, *BROKEN])
def test_contract_finds_what_is_wrong(runner_class: Callable[[], Runner]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (8, *SIZE, 3), np.uint8)
    failed = []
    with runner_class().open() as runner:
        case = contract.ContractCase(lambda: runner_class().open(), runner, frames, frames[..., 2] % len(CAMVID))
        for name, check in contract.CHECKS.items():
            try:
                check(case)
            except RequirementError:
                failed.append(name)
            except contract.NotHere:
                assert name in ("arrays of the device", "memory comes back")
    assert BROKEN[runner_class] in failed if runner_class in BROKEN else failed == []


def test_that_trt_refuses_arrays_of_the_device_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "on_device", lambda _: (object(), object()))
    frames = np.zeros((2, *SIZE, 3), np.uint8)
    with Plain().open() as runner:
        case = contract.ContractCase(Plain, runner, frames, frames[..., 0])
        with pytest.raises(contract.NotHere):
            contract.CHECKS["arrays of the device"](case)
        monkeypatch.setattr(runner, "backend", "trt")
        with pytest.raises(InputError):
            contract.CHECKS["arrays of the device"](case)


# What is to be expected


def test_kernels_of_a_graph(tmp_path: Path) -> None:
    x, y, weight = ([1, 2, 4, 4], [1, 3, 4, 4], np.zeros((3, 2, 3, 3), np.float16))
    half = TensorProto.FLOAT16
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Unsqueeze", ["r", "axes"], ["y"], "view"),
    ]
    weights = [onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(np.array([0]), "axes")]
    values = [helper.make_tensor_value_info(n, half, s) for n, s in (("x", x), ("y", [1, *y]))]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], weights)), tmp_path / "g.onnx")
    conv = Kernel("conv", "Conv", 2 * (32 + 54 + 48), 48 * 18)
    assert kernels(tmp_path / "g.onnx") == [conv, Kernel("relu", "Relu", 2 * (48 + 48), 0)]
    assert kernels(tmp_path / "g.onnx", fused=True) == [conv]
    # memory, arithmetic and launch each decide one of the three
    work = [Kernel("a", "Relu", 1000, 0), Kernel("b", "Conv", 10, 500), Kernel("c", "Relu", 1, 0)]
    assert expected_seconds(work, bandwidth=100.0, flops=50.0, launch=3.0) == pytest.approx(10 + 20 + 3)


# The page


def test_page_shows_what_was_found_and_names_the_fastest_engine() -> None:
    engine = {"table": "engines", "size": "360x480", "agreement": 0.9997, "p99_ms": 3.0, "engine": "trt 10 for 8.6"}
    findings = [
        engine | {"precision": "fp32", "p50_ms": 2.0},
        engine | {"precision": "fp16", "p50_ms": 1.25},
        engine | {"precision": "int8", "p50_ms": 0.5, "failed": "no layer <b>computes</b> in int8"},
    ]
    steps = [{"step": "engine", "title": "t", "state": "failed", "reason": "r", "seconds": 1.0, "findings": findings}]
    report = REPORT | {"card": "RTX <3060>", "steps": steps, "settings": {"sizes": [(360, 480), (512, 512)]}}
    assert gpu_page.headline(report).startswith("fp16 at 360x480: 1.250 ms")
    page = gpu_page.as_html(report)
    for text in ("RTX &lt;3060&gt;", "failed: no layer &lt;b&gt;computes", "99.9700%", "360x480, 512x512"):
        assert text in page
    steps[0]["findings"] = findings[2:]
    assert gpu_page.headline(report) == "No engine has run: no layer <b>computes</b> in int8"
