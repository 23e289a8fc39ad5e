"""`enet-bench`: what a result holds, that its parity is true, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types
from functools import partial, partialmethod
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from helpers import SIZE, InProcess

from enet_deploy import CAMVID, Runner, Spec, open_runner
from enet_deploy.artifacts import graph_metadata, save_graph, set_graph_metadata
from enet_deploy.benchmarks import bench, cli
from enet_deploy.benchmarks.measure import timing
from enet_deploy.benchmarks.measure.feeds import STAGES, VIDEO_STAGES, StillsFeed, VideoFeed
from enet_deploy.benchmarks.measure.machine import watched
from enet_deploy.benchmarks.measure.parity import Flips, compare, near_edge
from enet_deploy.benchmarks.measure.plan import BenchOptions, choose_backends, open_inputs
from enet_deploy.benchmarks.measure.processes import Processes
from enet_deploy.benchmarks.measure.profiling import Profile, arithmetic
from enet_deploy.benchmarks.measure.timing import DROPPED, block, measure
from enet_deploy.benchmarks.measure.unpool_flips import flips
from enet_deploy.benchmarks.measure.worker import RemoteRunner, Worker, open_worker, spec_of, try_out
from enet_deploy.data import open_data
from enet_deploy.data.scenes import street_scene
from enet_deploy.environment import processor
from enet_deploy.errors import ParityError
from enet_deploy.export import cli as export_cli
from enet_deploy.files import sha256
from enet_deploy.images import UInt8Array
from enet_deploy.metrics import evaluate
from enet_deploy.runners import Operation
from enet_deploy.weights import load_weights, save_weights

HEIGHT, WIDTH = SIZE
ON_GRAPHS = [  # what runs them here unasked
    "ort",
    *(["openvino"] if find_spec("openvino") else []),
    *(["opencv"] if hasattr(cv2.dnn, "ENGINE_NEW") else []),
]


class Painter(Runner):
    """Labels everything `label`, but the first `wrong` pixels of each frame one higher."""

    backend = "painter"

    def __init__(self, label: int, wrong: int = 0, batch: int | None = None) -> None:
        super().__init__(Path(__file__))
        self.label, self.wrong, self.batch, self.calls = label, wrong, batch, 0

    def _open(self) -> Spec:
        return Spec(self.artifact, self.backend, "cpu", "fp32", SIZE, self.batch, CAMVID, True, "")

    def _run(self, frames: UInt8Array, out: UInt8Array) -> None:
        self.calls += 1
        out[:] = self.label
        out.reshape(len(out), -1)[:, : self.wrong] += 1

    def _run_logits(self, frames: UInt8Array) -> npt.NDArray[np.float32]:
        return np.full((len(frames), len(CAMVID), *SIZE), self.wrong / 4, np.float32)

    def _close(self) -> None:
        pass


def options_of(words: list[str]) -> BenchOptions:
    args = cli.make_parser().parse_args(words)
    return BenchOptions(**{each.name: getattr(args, each.name) for each in dataclasses.fields(BenchOptions)})


def image(size: tuple[int, int] = SIZE) -> UInt8Array:
    return np.zeros((*size, 3), np.uint8)


@pytest.fixture(scope="module")
def run(scenes: Path, weights: Path, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of one run over PyTorch, ONNX Runtime and, where it is installed, OpenVINO on the drawn data set."""
    path = tmp_path_factory.mktemp("bench") / "out.json"
    artifacts = [str(weights), str(exported)]
    options = ["--frames", "7", "--threads", "1", "--profile", "--data", str(scenes), "--json", str(path)]
    options += ["--require", "agreement>=0.99, miou_drop <= 0.3,fps>1e-3", "--html", f"{path}.html"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "PATIENCE", 0.05)
        # A runner in the command's process would slow the workers down
        patch.setattr(Runner, "open", lambda _: pytest.fail("opened beside the workers"))
        assert cli.main([*artifacts, *options]) == 0
    return json.loads(path.read_text())


@pytest.mark.slow
def test_result_holds_what_the_readme_says(run: dict[str, Any], weights: Path, exported: Path, scenes: Path) -> None:
    assert run["schema"] == 2 and not run["partial"] and run["load"].keys() == {"others", "stolen"}
    assert run["compared"] == 4
    assert run["images"] == {"count": 4, "size": list(SIZE), "data": scenes.name, "split": "val", "video": None}
    assert run["verdict"][0]["device"] == "cpu" and run["verdict"][0]["take"] in {r["name"] for r in run["results"]}
    assert {"processor", "cores", "packages", "commit", "load"} <= run["environment"].keys()
    assert [result["backend"] for result in run["results"]] == ["torch", *ON_GRAPHS]
    options = [{"size": list(SIZE)}, *({"threads": 1} for _ in ON_GRAPHS)]
    assert [result["options"] for result in run["results"]] == options
    for result, artifact in zip(run["results"], (weights, *(exported for _ in ON_GRAPHS)), strict=True):
        assert (result["artifact"], result["precision"], result["batch"]) == (str(artifact), "fp32", 1)
        assert result["size"] == list(SIZE) and result["model_bytes"] == artifact.stat().st_size
        assert result["artifact_sha256"] == sha256(artifact) and result["trained_on"] == 0
        assert result["blocks"] == [2] * 5 and len(result["samples_ms"]) == 10 and min(result["samples_ms"]) > 0
        assert len(result["stream_ms"]) == 5 and result["stream_fps"] > 0 and result["warm_up"]["calls"] >= 10
        assert result["speed"]["low"] <= result["speed"]["ratio"] <= result["speed"]["high"]
        latency = result["latency_ms"]
        assert latency["p50"] <= latency["p90"] <= latency["p99"] <= max(result["samples_ms"]) + 1e-3
        assert latency == result["stages_ms"]["infer"] and set(result["stages_ms"]) == set(STAGES)
        assert result["fps"] == pytest.approx(1e3 / np.mean(result["samples_ms"]), rel=1e-3)
        assert result["peak_bytes"] > 20e6  # an interpreter with numpy alone is larger


@pytest.mark.slow
def test_profile_accounts_for_all_operations(run: dict[str, Any], exported: Path) -> None:
    torch, *graphs = (result["profile"] for result in run["results"])
    assert torch is None and set(run["peaks"]) == {"gflops", "copy_gb"} and min(run["peaks"].values()) > 0
    for profile in graphs:
        assert sum(row["count"] for row in profile["kinds"]) == len(profile["operations"])
        for rows in ("kinds", "stages", "operations"):
            assert sum(row["ms"] for row in profile[rows]) == pytest.approx(profile["ms"])
        assert 0 < profile["convolution_ms"] < profile["ms"]
        assert all(row["ms"] > 0 and row["multiply_adds"] for row in profile["stages"][1:])
        assert profile["stages"][0]["stage"] == "frames" and profile["stages"][0]["ms"] < profile["ms"] / 4
    # 3x3 kernels over 3 channels give 13, one for every 2x2 pixels (ENet paper, figure 2a)
    assert arithmetic(exported)["initial"] == 16 * 3 * (9 + 1) * HEIGHT * WIDTH // 4


def test_operations_without_a_place_count_to_the_one_before() -> None:
    operations = [
        Operation(("Cast",), "Cast", 1.0),
        Operation(("x", "stage1.0.branch.0/Conv"), "Convolution", 2.0),
        Operation((), "Reorder", 3.0),
        Operation(("stage2.0/Add_1", "stage2.0.act/Max"), "Add + Max", 4.0),
        Operation(("node",), "Convert", 5.0),
    ]
    profile = Profile.of(operations, {})
    assert {row.stage: row.ms for row in profile.stages} == {"frames": 1, "stage1": 5, "stage2": 9}
    assert [row.kind for row in profile.kinds] == ["Convert", "Add + Max", "Reorder", "Convolution", "Cast"]
    assert profile.convolution_ms == 2.0


@pytest.mark.slow
def test_accuracy_is_that_of_enet_eval(run: dict[str, Any], scenes: Path, exported: Path) -> None:
    data = open_data(scenes, "val")
    with open_runner(exported) as runner:
        scores = evaluate(runner.segment, data, CAMVID).scores()
    accuracy = run["results"][1]["accuracy"]
    counts = np.array(accuracy.pop("confusion"))
    honesty = accuracy.pop("confidence")
    assert 0 < honesty["error"] < 1 and sum(each["pixels"] for each in honesty["bins"]) <= 4 * HEIGHT * WIDTH
    expected = json.loads(json.dumps(scores.to_json()))
    for name in ("precision", "recall"):  # which are left out if there is none
        for figures in expected["per_class"].values():
            if figures[name] is None:
                del figures[name]
    assert accuracy == expected
    assert counts.sum() == 4 * HEIGHT * WIDTH and counts.shape == (12, 12)


@pytest.mark.slow
def test_parity_of_a_run(run: dict[str, Any]) -> None:
    torch, *graphs = (result["parity"] for result in run["results"])
    assert torch["agreement"] == 1 and torch["max_abs_logit"] == 0 and torch["unpool_flips"] is None
    for parity in graphs:
        assert parity["agreement"] >= 0.999 and parity["max_abs_logit"] >= parity["p99_abs_logit"] > 0
        flips = parity["flips"]
        assert flips["boundary"] + flips["interior"] == pytest.approx(1 - parity["agreement"])
        assert 0 < flips["band"] < 1 and len(parity["frames"]) == 4
        assert parity["unpool_flips"].keys() == {"bottleneck1_0", "bottleneck2_0"}
        assert max(parity["unpool_flips"].values()) < 1e-3
    accuracy = {key: value for key, value in run["results"][0]["accuracy"].items() if key != "confidence"}
    assert run["reference"]["accuracy"] == accuracy


def test_parity_counts_every_differing_pixel() -> None:
    truth = np.full(SIZE, 4, np.uint8)
    with Painter(3).open() as reference, Painter(3, wrong=HEIGHT * WIDTH // 4, batch=2).open() as runner:
        of_reference, (parity,), whole = compare(reference, [runner], [(image(), truth), (image(), None)])
    assert whole
    found = parity.figures()
    assert found is not None and found.agreement == 0.75 and found.frames == (0.75, 0.75)
    assert found.flips == Flips(boundary=0, interior=0.25, band=0)  # the reference has no edge
    assert found.p99_abs_logit == found.max_abs_logit == HEIGHT * WIDTH / 16
    # one image has a truth: a quarter of it was labelled 4, and the reference hit nothing
    assert parity.against_truth.scores().pixel_accuracy == 0.25
    assert of_reference.against_truth.scores().pixel_accuracy == 0
    assert of_reference.figures() is None


@pytest.mark.slow
def test_unpool_flips_are_counted_by_stage(exported: Path, weights: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported)
    winners = "bottleneck1_0.pool/winners"
    (at,) = (index for index, node in enumerate(model.graph.node) if winners in node.output)
    model.graph.node[at].output[0] = "first"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(5), "five"))
    model.graph.node.insert(at + 1, onnx.helper.make_node("Sub", ["five", "first"], [winners]))
    opposite, nameless = tmp_path / "opposite.onnx", tmp_path / "nameless.onnx"
    save_graph(model, opposite)  # every winner of the first stage is the place across
    for node in model.graph.node:
        node.input[:] = [name.replace("winners", "w") for name in node.input]
        node.output[:] = [name.replace("winners", "w") for name in node.output]
    save_graph(model, nameless)
    frames = [street_scene(seed, SIZE)[0][None] for seed in range(2)]
    found = flips(weights, [exported, opposite, nameless], frames)
    assert found[exported]["bottleneck1_0"] < 1e-3 and found[exported]["bottleneck2_0"] < 1e-3
    assert found[opposite] == {"bottleneck1_0": 1, "bottleneck2_0": found[exported]["bottleneck2_0"]}
    assert found[nameless] is None


def worker(batch: int = 1) -> Worker:
    return Worker(Painter(0).open(), batch, StillsFeed([image(), image((50, 70))]))


def painter() -> Painter:
    return Painter(0).open()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no runner warm up for seconds: small frames take microseconds, and such times never settle."""
    monkeypatch.setattr(timing, "PATIENCE", 0.05)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no processes."""
    monkeypatch.setattr(bench, "Processes", InProcess)


def test_runners_take_turns_and_warm_up_is_not_counted() -> None:
    with InProcess({"a": worker(), "b": worker(batch=4)}) as here:
        timings, whole = measure(here, {"a": 1, "b": 4}, frames=60)  # type: ignore[arg-type]
    assert whole and here.asked == [("a", "warm_up"), ("b", "warm_up"), *[("a", "block"), ("b", "block")] * 6]
    a, b = timings["a"], timings["b"]
    assert [len(block) for block in a.blocks["infer"]] == [10] * 6 and len(a.stream) == 6
    assert [len(block) for block in b.blocks["infer"]] == [3] * 6 and list(b.blocks) == list(STAGES)
    assert a.warm_up.calls >= 10 and a.warm_up.ms > 0
    painted = here.objects["a"].runner
    assert isinstance(painted, Painter)
    # in each of six rounds ten calls and as many in stream(), after three of each, and one or two that were in flight
    extra = painted.calls - a.warm_up.calls - 6 * 2 * (10 + DROPPED)
    assert 0 <= extra <= 6 * 2


def test_seconds_are_filled() -> None:
    with InProcess({"a": worker()}) as here:
        timings, _ = measure(here, {"a": 1}, frames=5, seconds=0.02)  # type: ignore[arg-type]
    assert sum(map(sum, timings["a"].blocks["infer"])) >= 20


def test_interrupted_run_keeps_whole_rounds() -> None:
    with InProcess({"a": worker(), "b": worker()}, interrupted_at=2 + 5) as here:
        timings, whole = measure(here, {"a": 1, "b": 1}, frames=50)  # type: ignore[arg-type]
    assert not whole and [len(timing.blocks["infer"]) for timing in timings.values()] == [2, 2]
    for early in (1, 3):  # in the warm-up, in the first round
        with InProcess({"a": worker(), "b": worker()}, early) as here, pytest.raises(KeyboardInterrupt):
            measure(here, {"a": 1, "b": 1}, frames=50)  # type: ignore[arg-type]


def test_ctrl_c_while_counting_leaves_nothing_half_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(before: Any, *arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return before(*arguments)

    monkeypatch.setattr(timing.Timing, "add", partialmethod(partial(interrupted, timing.Timing.add)))
    with InProcess({"a": worker(), "b": worker()}) as here:
        timings, whole = measure(here, {"a": 1, "b": 1}, frames=50)  # type: ignore[arg-type]
    assert not whole and [len(each.stream) for each in timings.values()] == [1, 1]
    truth = np.full(SIZE, 3, np.uint8)
    with Painter(3).open() as reference, Painter(3).open() as first, Painter(3).open() as second:
        monkeypatch.setattr(first, "postprocess", partial(interrupted, first.postprocess))
        of_reference, parities, whole = compare(reference, [first, second], [(image(), truth)] * 3)
    assert not whole
    for each in (of_reference, *parities):
        assert each.against_truth.counts.sum() == HEIGHT * WIDTH
    assert [(each.images, len(each.frames)) for each in parities] == [(1, 1), (1, 1)]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five drawn scenes as Motion JPEG."""
    path = tmp_path_factory.mktemp("video") / "drive.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (128, 96))
    for seed in range(5):
        writer.write(street_scene(seed, SIZE)[0])
    writer.release()
    return path


def test_video_is_read_over_and_over(video: Path) -> None:
    feed = VideoFeed(video)
    frames = [feed.read() for _ in range(11)]
    assert all(frame.shape == (*SIZE, 3) and seconds > 0 for frame, seconds in frames)
    assert (frames[0][0] == frames[5][0]).all() and (frames[0][0] == frames[10][0]).all()
    assert (frames[0][0] != frames[1][0]).any()
    inputs = open_inputs(options_of(["--from-video", str(video)]))
    assert len(inputs.images) == inputs.described.count == 1  # labels are not compared on the same frame again
    times, per_call = block(Worker(painter(), 1, feed), 3)
    assert list(times) == list(VIDEO_STAGES) and per_call > 0
    for calls in zip(*times.values(), strict=True):
        assert min(calls) > 0 and calls[-1] == pytest.approx(sum(calls[:-1]))


@pytest.mark.slow
def test_memory_is_that_of_the_runners_process(exported: Path) -> None:
    ballast = np.ones(600_000_000, np.uint8)
    with Processes() as processes:
        processes.start("a", partial(open_worker, partial(open_runner, exported, "ort", threads=1)))
        assert processes.ask("a", spec_of).backend == "ort"
        alone, four = (processes.ask("a", try_out, batch) for batch in (1, 16))
    assert 30e6 < alone < four < ballast.nbytes


@pytest.mark.slow
def test_load_beside_a_run_is_seen() -> None:
    with watched() as load:
        begun, used = time.perf_counter(), time.process_time()
        while time.perf_counter() < begun + 0.3:
            pass
        beside = load()
        own = (time.process_time() - used) / (time.perf_counter() - begun)
    assert (
        beside.others + own < (os.cpu_count() or 1) + 0.25
    )  # this process is not another, however busy the machine is
    code = "import time; end = time.time() + 1.5\nwhile time.time() < end: pass"
    shell = f"{sys.executable} -c '{code}' & sleep 0.8"  # a grandchild without a parent is another program
    with watched() as load:
        subprocess.run(["sh", "-c", shell], check=True)
        assert load().others > 0.3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_number_are_an_error(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with Painter(3).open() as reference, Painter(3).open() as runner:
        monkeypatch.setattr(runner, "logits", lambda frames: np.full((1, 11, *SIZE), value, np.float32))
        with pytest.raises(ParityError, match=f"{re.escape(__file__)} on painter"):
            compare(reference, [runner], [(image(), None)])


def test_edges_of_labels() -> None:
    labels = np.zeros((20, 30), np.uint8)
    labels[:, 15:] = 3
    near = near_edge(labels)
    assert near[:, 12:18].all() and not near[:, :12].any() and not near[:, 18:].any()
    labels[:] = 0
    labels[0, 0] = 1  # a corner: aslant too
    assert near_edge(labels)[:4, :4].all() and near_edge(labels).sum() == 16


def test_graphs_run_on_all_that_is_installed_and_weights_on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def backends(name: str, asked: list[str] | None = None, device: str | None = None) -> list[str]:
        return choose_backends(Path(name), asked, device)

    openvino = types.ModuleType("openvino")
    openvino.__spec__ = ModuleSpec("openvino", None)
    monkeypatch.setitem(sys.modules, "openvino", openvino)  # it need not be installed
    monkeypatch.setattr(cv2.dnn, "ENGINE_NEW", 2, raising=False)
    assert backends("a.onnx") == backends("a.onnx", device="cpu") == ["ort", "openvino", "opencv"]
    monkeypatch.delattr(cv2.dnn, "ENGINE_NEW")
    assert backends("a.onnx") == ["ort", "openvino"]
    assert choose_backends(Path("a.onnx"), None, None, "bf16") == ["openvino"]
    assert choose_backends(Path("a.onnx"), ["ort"], None, "bf16") == []
    assert choose_backends(Path("a.safetensors"), ["torch", "openvino"], None, "bf16") == ["torch"]
    assert backends("a.onnx", device="cuda") == ["ort"]
    assert backends("a.onnx", ["openvino", "torch"]) == ["openvino"] and backends("a.onnx", ["torch"]) == []
    assert backends("a.onnx", ["trt"]) == backends("a.engine") == ["trt"]
    assert backends("a.safetensors") == ["torch"]
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert backends("a.onnx") == ["ort"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert backends("a.onnx") == ["ort"]  # which says how to install it


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_without_artifact_the_weights_are_exported_at_each_size(tmp_path: Path, weights: Path) -> None:
    path = tmp_path / "out.json"
    options = ["--backend", "torch", "--backend", "ort", "--frames", "5", "--size", "64x96,96x64"]
    assert cli.main([*options, "--precision", "int8-ort", "--json", str(path)]) == 0
    run = json.loads(path.read_text())
    assert [result["artifact"] for result in run["results"]] == [weights.stem, "enet-int8-ort.onnx"]
    assert [(result["name"], result["size"]) for result in run["results"] + run["sweep"]] == [
        (f"{name} {size[0]}x{size[1]}", size)
        for size in ([64, 96], [96, 64])
        for name in ("torch fp32", "ort int8-ort")
    ]
    assert all(result["parity"]["agreement"] >= 0.9 and result["accuracy"] is None for result in run["results"])


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_rows_in_bf16(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    if not {"avx512_bf16", "amx_bf16"} & set(processor()[1].split()):
        pytest.skip("this CPU has neither AVX512_BF16 nor AMX")
    path = tmp_path / "out.json"
    options = ["--backend", "openvino", "--threads", "1", "--frames", "5", "--precision", "bf16"]
    assert cli.main([str(exported), *options, "--json", str(path)]) == 0
    run = json.loads(path.read_text())
    assert [result["name"] for result in run["results"]] == ["openvino fp32", "openvino bf16"]
    assert [result["options"].get("precision") for result in run["results"]] == [None, "bf16"]
    plain, half = (result["parity"] for result in run["results"])
    assert plain["agreement"] > 0.9999 > half["agreement"] > 0.97
    assert plain["unpool_flips"] is not None and half["unpool_flips"] is None  # no backend shows them
    assert run["verdict"][0]["call"].startswith("open_runner(")


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_sweep_of_batches_on_a_video(
    tmp_path: Path, weights: Path, exported: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.json"
    options = ["--backend", "torch", "--backend", "ort", "--frames", "5", "--batch", "2,1", "--from-video", str(video)]
    assert cli.main([str(weights), str(exported), *options, "--json", str(path), "--html", f"{path}.html"]) == 0
    run = json.loads(path.read_text())
    assert [result["name"] for result in run["results"]] == ["torch fp32 x2", "ort fp32 x2"]
    assert [(result["name"], result["batch"]) for result in run["sweep"]] == [("torch fp32", 1), ("ort fp32", 1)]
    assert all(result["parity"] is None for result in run["sweep"]) and run["images"]["video"] == "drive.avi"
    assert all(result["stages_ms"].keys() == set(VIDEO_STAGES) for result in run["results"] + run["sweep"])
    printed = capsys.readouterr().out
    assert "2 x 96x128" in printed and "1 x 96x128" in printed and "overlay" in printed


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_gate(exported: Path, weights: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    command = [str(exported), "--backend", "ort", "--frames", "5"]
    command += ["--data", str(scenes), "--json", str(out)]
    assert cli.main([*command, "--require", "miou_drop<=0.3,model_mb<1,fps>=1e9"]) == 1
    printed = capsys.readouterr()
    error, table = printed.err, printed.out[printed.out.index("Measured against required") :]
    for figure, held in (("miou_drop .* <= 0.3", "holds"), ("model_mb .* < 1", "does not hold")):
        assert re.search(rf"ort fp32 +{figure} +{held}", table), table  # also what holds
    assert re.fullmatch(
        r"enet-bench: error: ort fp32 has model_mb 1\.5\d*, required model_mb<1; "
        r"ort fp32 has fps \S+, required fps>=1e\+09",
        error.splitlines()[-1],
    ), error
    assert out.exists()  # what was measured is kept


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_ctrl_c_while_comparing_keeps_the_times(
    exported: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logits = RemoteRunner.logits

    def interrupted(self: RemoteRunner, frames: UInt8Array) -> npt.NDArray[np.float32]:
        if self.spec.backend == "ort":
            raise KeyboardInterrupt
        return logits(self, frames)

    monkeypatch.setattr(RemoteRunner, "logits", interrupted)
    out = tmp_path / "out.json"
    options = ["--backend", "ort", "--frames", "5", "--json", str(out), "--html", str(tmp_path / "a.html")]
    assert cli.main([str(exported), *options]) == 130
    printed = capsys.readouterr()
    assert printed.err == "enet-bench: interrupted; what is above and in the files is partial\n"
    assert "partial: the run was interrupted" in printed.out and (tmp_path / "a.html").exists()
    run = json.loads(out.read_text())
    assert run["partial"] and run["results"][0]["samples_ms"] and run["results"][0]["parity"] is None


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_foreign_weights_and_no_data(
    weights: Path, exported: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, metadata = load_weights(weights)
    other = tmp_path / "other.safetensors"
    save_weights(other, net, dataclasses.replace(metadata, details={"note": "other bytes"}))
    path = tmp_path / "out.json"
    options = ["--backend", "ort", "--weights", str(other), "--frames", "5", "--json", str(path)]
    assert cli.main([str(exported), *options]) == 0
    printed = capsys.readouterr().out
    assert "parity is not measured" in printed and "accuracy is not measured" in printed
    (result,) = json.loads(path.read_text())["results"]
    assert result["parity"] is None and result["accuracy"] is None
    # accuracy needs no reference
    assert cli.main([str(exported), *options, "--data", str(scenes)]) == 0
    assert "Accuracy, void left out" in capsys.readouterr().out
    (result,) = json.loads(path.read_text())["results"]
    assert result["parity"] is None and 0 < result["accuracy"]["miou"] < 1


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_the_winner_of_an_export_can_be_made_and_opened_as_printed(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(weights, "mine.safetensors")
    options = ["--precision", "fp32", "--size", "48x64", "--backend", "ort", "--frames", "1", "--html", "a.html"]
    assert cli.main(["--weights", "mine.safetensors", *options, "--json", "a.json"]) == 0
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    (verdict,) = json.loads(Path("a.json").read_text())["verdict"]
    command, call = printed[printed.index(verdict["export"]) :][:2]
    assert call == verdict["call"] and command in Path("a.html").read_text()
    assert list(tmp_path.glob("*.onnx")) == []
    assert export_cli.main(shlex.split(command)[1:]) == 0
    with eval(call, {"open_runner": open_runner}) as runner:
        assert runner.artifact.name == "mine-fp32.onnx" and runner.spec.size == (48, 64)


@pytest.mark.parametrize("form", sorted(set(bench.PRECISIONS) - set(bench.GRAPHS)))
def test_export_that_is_advised_makes_the_graph_that_was_measured(form: str, weights: Path, tmp_path: Path) -> None:
    given = ["--weights", str(tmp_path / "it's mine.safetensors"), "--calibration", "record.json", "--data", "D"]
    options = options_of([*given, "--split", "test"])
    again = export_cli.make_parser().parse_args(bench.export_options(options, form, ((48, 64), 2)))
    assert (again.weights, again.name) == (options.weights, "it's mine")
    assert (again.size, again.batch, again.data, again.split) == ((48, 64), 2, "D", "test")
    assert export_cli.suffix(again) == form and again.calibration == (Path("record.json") if "int8" in form else None)


@pytest.fixture(scope="module")
def strangers(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `other.onnx`, of other classes, `foreign.onnx`, of other weights, and `letterboxed.onnx`.

    Do not write to it.
    """
    onnx = pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("strangers")
    metadata = graph_metadata(onnx.load(exported), exported)
    names = ("floor", *metadata.classes.names[1:])
    changes: dict[str, dict[str, Any]] = {
        "other": {"classes": dataclasses.replace(metadata.classes, names=names)},
        "foreign": {"weights_sha256": "0" * 64},
        "letterboxed": {"fit": "letterbox"},
    }
    for name, change in changes.items():
        model = onnx.load(exported)
        set_graph_metadata(model, dataclasses.replace(metadata, **change))
        save_graph(model, folder / f"{name}.onnx")
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{weights}", "--backend", "ort"], "--backend ort, but none of the artifacts runs on it: .*safetensors"),
        (["{exported}", "--size", "64x64"], r"takes frames of 96x128, expected 64x64"),
        (["{tmp}/none.onnx"], "none.onnx does not exist"),
        (
            ["{exported}", "--weights", "{tmp}/none.safetensors"],
            "none.safetensors does not exist; expected for --weights",
        ),
        (["{exported}", "--data", "{tmp}"], "train is not a folder|val is not a folder"),
        (["{exported}", "--device", "tpu"], "device 'tpu' for onnxruntime, expected cpu, cuda or cuda:N"),
        (
            ["{exported}", "--device", "cuda", "--backend", "openvino"],
            "device 'cuda' for openvino, expected cpu|'openvino' is not installed",
        ),
        (["{exported}", "--threads", "-1"], "threads -1, expected a whole number up to 1024, 0 for one per core"),
        (["{exported}", "--json", "{exported}/out.json"], "cannot write"),
        (["{exported}", "--json", "{tmp}"], "cannot write .* it is a folder or a device"),
        (["{exported}", "--html", "{exported}/a.html"], "cannot write"),
        (["{exported}", "--csv", "{tmp}/a", "--json", "{tmp}/a"], "a are the same, expected a different path"),
        (
            ["{exported}", "{strangers}/other.onnx"],
            r"other.onnx knows the classes floor, .*: one run has one class list",
        ),
        (
            ["{exported}", "{strangers}/letterboxed.onnx"],
            r"letterboxed.onnx has fit letterbox, but .* stretch: .*--fit",
        ),
        (["{exported}", "--size", "96x128,64x96"], "has one frame size and --size names several"),
        (["{exported}", "--precision", "int8"], "--precision int8 is for what is exported here, expected no ARTIFACT"),
        (["--precision", "int8", "--calibration", "{tmp}/none.json"], "none.json"),
        (["{exported}", "--precision", "bf16", "--backend", "ort"], "--precision bf16 .*openvino"),
        (["{exported}", "--from-video", "{weights}"], "has no frame that OpenCV can decode"),
        (["{exported}", "--require", "speed>=1"], "--require speed, expected one of p50_ms, p90_ms"),
        (["{exported}", "--require", "agreement"], "--require 'agreement', expected FIGURE<=NUMBER"),
        (["{exported}", "--require", "fps>=1.2.3"], "--require 'fps>=1.2.3', expected FIGURE<=NUMBER"),
        (["{exported}", "--require", ""], "--require '', expected FIGURE<=NUMBER"),
        (["{exported}", "--require", "agreement>=99"], "--require agreement>=99, expected a share from 0 to 1"),
        (["{exported}", "--require", "fps>=1e999"], "--require fps>=1e999, expected a finite number"),
        (["{exported}", "--csv", "{exported}"], "which is read; name another file"),
        (["{exported}", "--weights", "{strangers}/other.onnx"], "other.onnx"),
        (
            ["--backend", "torch", "--precision", "int8"],
            "--precision is for graphs, expected a --backend of ort, openvino, opencv",
        ),
        (["{tmp}", "--backend", "ort"], "holds no fleet.json"),
        (["{exported}", "--require", "miou_drop<=0.3"], "--require miou_drop<=0.3 needs the truth; give --data"),
        (
            ["{strangers}/foreign.onnx", "--require", "agreement>=0.9"],
            "agreement>=0.9 needs the weights that all artifacts",
        ),
        (["show", "{weights}"], "is no result of enet-bench --json"),
        (["compare", "{tmp}/none.json", "{weights}"], "none.json cannot be read"),
    ],
)
def test_refusals(
    options: list[str],
    message: str,
    weights: Path,
    exported: Path,
    strangers: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = {"weights": weights, "exported": exported, "strangers": strangers, "tmp": tmp_path}
    filled = [option.format(**paths) for option in options]
    assert cli.main(filled) == 2
    error = capsys.readouterr().err
    *_, last = error.splitlines()
    assert error.count("error:") == 1 and re.match(rf"enet-bench.*: error: .*({message})", last), error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [["--frames", "0"], ["--backend", "nix"], ["--batch", "1,x"], ["--precision", "int4"], ["--seconds", "-1"]],
)
def test_refused_by_the_parser(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(options)
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1
