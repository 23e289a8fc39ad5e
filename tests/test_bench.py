"""`enet-bench`: what a result holds, that its parity is true, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import SIZE
from rich.console import Console

from enet_deploy import CAMVID, Runner, Spec, open_runner
from enet_deploy.benchmarks import cli
from enet_deploy.benchmarks.environment import peak_memory
from enet_deploy.benchmarks.parity import compare
from enet_deploy.benchmarks.profiling import arithmetic, to_json
from enet_deploy.benchmarks.report import show
from enet_deploy.benchmarks.timing import STAGES, Timing, measure
from enet_deploy.benchmarks.unpool import flips
from enet_deploy.data import UInt8Array, open_data
from enet_deploy.errors import ParityError
from enet_deploy.metrics import evaluate
from enet_deploy.model import load_weights, save_weights
from enet_deploy.runners import Operation
from enet_deploy.scenes import street_scene

HEIGHT, WIDTH = SIZE


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


def image(size: tuple[int, int] = SIZE) -> UInt8Array:
    return np.zeros((*size, 3), np.uint8)


@pytest.fixture(scope="module")
def run(scenes: Path, weights: Path, exported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of one run over PyTorch, ONNX Runtime and OpenVINO on the drawn data set."""
    path = tmp_path_factory.mktemp("bench") / "out.json"
    artifacts = [str(weights), str(exported)]
    options = ["--frames", "7", "--threads", "1", "--profile", "--data", str(scenes), "--json", str(path)]
    assert cli.main([*artifacts, *options]) == 0
    return json.loads(path.read_text())


def test_result_holds_what_the_readme_says(run: dict[str, Any], weights: Path, exported: Path) -> None:
    assert run["schema"] == 1 and {"processor", "cores", "packages", "commit", "load"} <= run["environment"].keys()
    assert [result["backend"] for result in run["results"]] == ["torch", "ort", "openvino"]
    assert [result["options"] for result in run["results"]] == [{"size": list(SIZE)}, {"threads": 1}, {"threads": 1}]
    for result, artifact in zip(run["results"], (weights, exported, exported), strict=True):
        assert (result["artifact"], result["precision"], result["batch"]) == (str(artifact), "fp32", 1)
        assert result["size"] == list(SIZE) and result["model_bytes"] == artifact.stat().st_size
        assert len(result["samples_ms"]) == 7 and min(result["samples_ms"]) > 0
        latency = result["latency_ms"]
        assert latency["p50"] <= latency["p90"] <= latency["p99"] <= max(result["samples_ms"])
        assert latency == result["stages_ms"]["infer"] and set(result["stages_ms"]) == set(STAGES)
        assert result["fps"] == pytest.approx(1e3 / np.mean(result["samples_ms"]))
        assert result["peak_bytes"] > 20e6  # an interpreter with numpy alone is larger


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
    profile = to_json(operations, {})
    assert {row["stage"]: row["ms"] for row in profile["stages"]} == {"frames": 1, "stage1": 5, "stage2": 9}
    assert [row["kind"] for row in profile["kinds"]] == ["Convert", "Add + Max", "Reorder", "Convolution", "Cast"]
    assert profile["convolution_ms"] == 2.0


def test_accuracy_is_that_of_enet_eval(run: dict[str, Any], scenes: Path, exported: Path) -> None:
    data = open_data(scenes, "val")
    with open_runner(exported) as runner:
        scores = evaluate(runner.segment, data, CAMVID).scores()
    assert run["results"][1]["accuracy"] == json.loads(json.dumps(scores.to_json()))


def test_parity_of_a_run(run: dict[str, Any]) -> None:
    torch, *graphs = (result["parity"] for result in run["results"])
    assert torch["agreement"] == 1 and torch["max_abs_logit"] == 0 and torch["unpool_flips"] is None
    for parity in graphs:
        assert parity["agreement"] >= 0.999 and parity["max_abs_logit"] > 0
        assert parity["unpool_flips"].keys() == {"bottleneck1_0", "bottleneck2_0"}
        assert max(parity["unpool_flips"].values()) < 1e-3
    assert run["reference"]["accuracy"] == run["results"][0]["accuracy"]


def test_parity_counts_every_differing_pixel() -> None:
    truth = np.full(SIZE, 4, np.uint8)
    with Painter(3).open() as reference, Painter(3, wrong=HEIGHT * WIDTH // 4, batch=2).open() as runner:
        of_reference, (parity,) = compare(reference, [runner], [(image(), truth), (image(), None)])
    assert parity.parity_json()["agreement"] == 0.75
    assert parity.parity_json()["max_abs_logit"] == HEIGHT * WIDTH / 16
    # one image has a truth: a quarter of it was labelled 4, and the reference hit nothing
    assert parity.against_truth.scores().pixel_accuracy == 0.25
    assert of_reference.against_truth.scores().pixel_accuracy == 0
    assert of_reference.parity_json() is None


def test_unpool_flips_are_counted_by_stage(exported: Path, weights: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported)
    winners = "bottleneck1_0.pool/winners"
    (at,) = (index for index, node in enumerate(model.graph.node) if winners in node.output)
    model.graph.node[at].output[0] = "first"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(5), "five"))
    model.graph.node.insert(at + 1, onnx.helper.make_node("Sub", ["five", "first"], [winners]))
    opposite, nameless = tmp_path / "opposite.onnx", tmp_path / "nameless.onnx"
    onnx.save(model, opposite)  # every winner of the first stage is the place across
    for node in model.graph.node:
        node.input[:] = [name.replace("winners", "w") for name in node.input]
        node.output[:] = [name.replace("winners", "w") for name in node.output]
    onnx.save(model, nameless)
    frames = [street_scene(seed, SIZE)[0][None] for seed in range(2)]
    found = flips(weights, [exported, opposite, nameless], frames)
    assert found[exported]["bottleneck1_0"] < 1e-3 and found[exported]["bottleneck2_0"] < 1e-3
    assert found[opposite] == {"bottleneck1_0": 1, "bottleneck2_0": found[exported]["bottleneck2_0"]}
    assert found[nameless] is None


def test_runners_take_turns_and_warm_up_is_not_counted() -> None:
    images = [image(), image((50, 70))]
    with Painter(0).open() as a, Painter(1, batch=4).open() as b:
        single, other = measure([a, a], images, frames=10, rounds=3)
        (batched,) = measure([b], images, frames=10, batch=4, rounds=3)
    assert single.blocks == other.blocks == [3, 3, 4] and len(single.samples["total"]) == 10
    assert batched.blocks == [1, 1, 1] and batched.batch == 4
    assert a.calls == 2 * (10 + 3 * 3) and b.calls == 3 + 3 * 3


def test_peak_memory_is_not_that_of_this_process(exported: Path) -> None:
    ballast = np.ones(600_000_000, np.uint8)
    with open_runner(exported) as runner:
        assert 30e6 < peak_memory(runner, {"threads": 1}) < ballast.nbytes


def test_logits_that_are_no_number_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with Painter(3).open() as reference, Painter(3).open() as runner:
        monkeypatch.setattr(runner, "logits", lambda frames: np.full((1, 11, *SIZE), np.nan, np.float32))
        with pytest.raises(ParityError, match="gives logits that are no number"):
            compare(reference, [runner], [(image(), None)])


def test_timing_arithmetic() -> None:
    seconds = [0.001 * n for n in (1, 2, 3, 4, 10, 10)]
    timing = Timing(dict.fromkeys(STAGES, seconds), blocks=[4, 2], batch=2)
    assert timing.summary("infer") == pytest.approx({"p50": 3.5, "p90": 10, "p99": 10, "mean": 5})
    assert timing.fps == pytest.approx(400)
    assert timing.spread == pytest.approx((10 - 2.5) / 3.5)


STORED: dict[str, Any] = {
    "schema": 1,
    "environment": {},
    "reference": {"backend": "torch", "accuracy": {"pixel_accuracy": 0.9, "dice": 0.61, "miou": 0.5}},
    "results": [
        {
            "backend": "torch", "precision": "fp32", "artifact": "a/x.safetensors", "size": [360, 480],
            "batch": 1, "spread": 0.01,
            "latency_ms": {"p50": 100.0},
            "stages_ms": {s: {"p50": 100.0, "p90": 110.0, "p99": 120.0, "mean": 100.0} for s in STAGES},
            "model_bytes": 1_500_000, "peak_bytes": 600_000_000,
            "parity": {"agreement": 1.0, "max_abs_logit": 0.0, "miou": 1.0, "dice": 1.0, "unpool_flips": None},
            "accuracy": {"pixel_accuracy": 0.9, "dice": 0.61, "miou": 0.5},
        },
        {
            "backend": "ort", "precision": "int8", "artifact": "a/x.onnx", "size": [360, 480],
            "batch": 4, "spread": 0.25,
            "latency_ms": {"p50": 200.0},
            "stages_ms": {s: {"p50": 200.0, "p90": 210.0, "p99": 220.0, "mean": 200.0} for s in STAGES},
            "model_bytes": 1_900_000, "peak_bytes": 100_000_000,
            "parity": {
                "agreement": 0.99998, "max_abs_logit": None, "miou": 0.9999, "dice": 0.9999,
                "unpool_flips": {"bottleneck1_0": 0.01, "bottleneck2_0": 0.000012},
            },
            "accuracy": {"pixel_accuracy": 0.9, "dice": 0.6, "miou": 0.4975},
        },
    ],
}  # fmt: skip

SHOWN = """\
Latency in ms, frames of 360x480

  runner        stage      p50      p90      p99     mean    FPS
 ────────────────────────────────────────────────────────────────
  torch fp32      pre   100.00   110.00   120.00   100.00   10.0
                infer   100.00   110.00   120.00   100.00   10.0
                 post   100.00   110.00   120.00   100.00   10.0
                total   100.00   110.00   120.00   100.00   10.0

  ort int8 x4     pre   200.00   210.00   220.00   200.00   20.0
                infer   200.00   210.00   220.00   200.00   20.0
                 post   200.00   210.00   220.00   200.00   20.0
                total   200.00   210.00   220.00   200.00   20.0

Speed of infer against the first, file, peak memory of a process

  runner        faster   file MB   peak MB
 ──────────────────────────────────────────
  torch fp32     1.00x      1.50       600
  ort int8 x4    2.00x      1.90       100

The same network? Labels and logits against PyTorch fp32

  runner        equal labels   max logit diff       IoU      Dice
 ─────────────────────────────────────────────────────────────────
  torch fp32       100.0000%                0   1.00000   1.00000
  ort int8 x4       99.9980%        no logits   0.99990   0.99990

Unpool flips: windows whose winner is not PyTorch fp32's

  runner        bottleneck1_0   bottleneck2_0
 ─────────────────────────────────────────────
  ort int8 x4          1.000%          0.001%

Accuracy, void left out

  runner        pixel accuracy     Dice     mIoU   their change, points
 ───────────────────────────────────────────────────────────────────────
  torch fp32            0.9000   0.6100   0.5000   +0.000 +0.000 +0.000
  ort int8 x4           0.9000   0.6000   0.4975   +0.000 -1.000 -0.250

unstable: the blocks of ort int8 x4 differ by 25%; close other programs, fix the
clock frequency, or take more --frames
"""


def test_tables_for_a_stored_result(capsys: pytest.CaptureFixture[str]) -> None:
    show(STORED, Console(width=80))
    assert [line.rstrip() for line in capsys.readouterr().out.split("\n")] == SHOWN.split("\n")


def test_equal_runners_are_told_apart_by_their_files(capsys: pytest.CaptureFixture[str]) -> None:
    first = STORED["results"][0]
    show(STORED | {"results": [first, first | {"artifact": "b/[red]y.onnx"}]}, Console(width=120))
    printed = capsys.readouterr().out
    assert "torch fp32 x.safetensors" in printed and "torch fp32 [red]y.onnx" in printed


def test_graphs_run_on_all_that_is_installed_and_weights_on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def backends(name: str, asked: list[str] | None = None, device: str | None = None) -> list[str]:
        return cli._backends(Path(name), Namespace(backend=asked, device=device))

    assert backends("a.onnx") == backends("a.onnx", device="cpu") == ["ort", "openvino"]
    assert backends("a.onnx", device="cuda") == ["ort"]
    assert backends("a.onnx", ["openvino", "torch"]) == ["openvino"] and backends("a.onnx", ["torch"]) == []
    assert backends("a.onnx", ["trt"]) == backends("a.engine") == ["trt"]
    assert backends("a.safetensors") == ["torch"]
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert backends("a.onnx") == ["ort"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert backends("a.onnx") == ["ort"]  # which says how to install it


def test_without_artifact_the_weights_are_exported(tmp_path: Path, weights: Path) -> None:
    path = tmp_path / "out.json"
    options = ["--backend", "torch", "--backend", "ort", "--frames", "5", "--size", "64x96", "--batch", "2"]
    assert cli.main([*options, "--json", str(path)]) == 0
    results = json.loads(path.read_text())["results"]
    assert [result["artifact"] for result in results] == [str(weights), "enet-fp32.onnx"]
    assert [(result["size"], result["batch"]) for result in results] == [([64, 96], 2)] * 2
    assert all(result["parity"]["agreement"] >= 0.999 and result["accuracy"] is None for result in results)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{weights}", "--backend", "ort"], "--backend ort, but none of the artifacts runs on it: .*safetensors"),
        (["{exported}", "--size", "64x64"], r"takes frames of 96x128, expected 64x64"),
        (["{tmp}/none.onnx"], "none.onnx does not exist"),
        (["{exported}", "--weights", "{tmp}/none.safetensors"], "--weights .* is not a file"),
        (["{exported}", "--data", "{tmp}"], "train is not a folder|val is not a folder"),
        (["{exported}", "--device", "tpu"], "device 'tpu' for onnxruntime, expected cpu, cuda or cuda:N"),
        (["{exported}", "--device", "cuda", "--backend", "openvino"], "device 'cuda' for openvino, expected cpu"),
        (["{exported}", "--threads", "-1"], "threads -1, expected a whole number, 0 for one per core"),
        (["{exported}", "--json", "{exported}/out.json"], "cannot write"),
        (["{exported}", "--json", "{tmp}"], "cannot write .* it is a folder or a device"),
    ],
)
def test_refusals(
    options: list[str], message: str, weights: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [option.format(weights=weights, exported=exported, tmp=tmp_path) for option in options]
    assert cli.main(filled) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.match(rf"enet-bench: error: .*({message})", error), error


@pytest.mark.parametrize("options", [["--frames", "0"], ["--backend", "nix"], ["--batch", "x"]])
def test_refused_by_the_parser(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(options)
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1
