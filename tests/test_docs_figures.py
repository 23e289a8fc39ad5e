"""The figures that the pages quote are those of the kept runs: a figure that drifts from its run fails here."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from helpers import ROOT
from test_docs import MODEL_CARD

from enet_deploy.benchmarks.result import Result
from enet_deploy.benchmarks.run import Run
from enet_deploy.files import sha256

RESULTS = ROOT / "benchmarks" / "results"
NUMBER = re.compile(r"(?<![\w.,])[-+]?\d[\d,]*(?:\.\d+)?(?!\d)")
EVALUATIONS = {
    "`without-val`": "eval-without-val",
    "`enet-camvid-train`": "eval-train-only",
    "`enet-camvid`, fit": "eval",
}


@cache
def kept(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


@cache
def runner(run: str, backend: str, precision: str, layout: str | None = None) -> Result:
    """A runner of a kept run; of int8 graphs, by the layout too."""
    (found,) = (
        each
        for each in Run.read(RESULTS / f"{run}.json").results
        if (each.backend, each.precision) == (backend, precision) and layout in (None, each.qdq_layout)
    )
    return found


def speed(result: Result) -> list[float]:
    return [result.speed.ratio, result.speed.low, result.speed.high]


def agreement(result: Result) -> float:
    assert result.parity is not None
    return 100 * result.parity.agreement


def points(run: str, result: Result) -> float:
    """The change of mIoU against PyTorch."""
    assert result.accuracy is not None
    return 100 * (result.accuracy.miou - float(kept(run)["reference"]["accuracy"]["miou"]))


def rows(page: str, header: str) -> dict[str, list[str]]:
    """Label -> the other cells of each row of the one table of a page whose header has these words."""
    tables = re.findall(r"^\|.*(?:\n\|.*)+", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    (table,) = (table for table in tables if header in table.split("\n")[0])
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n")[2:]]
    return {line[0].replace("*", ""): line[1:] for line in lines}


def check(cells: str | Sequence[str], *values: float) -> None:
    """Hold each number in the cells against a value, to as many decimals as it has."""
    text = " ".join([cells] if isinstance(cells, str) else cells)
    numbers = NUMBER.findall(text)
    assert len(numbers) == len(values), (text, values)
    for number, value in zip(numbers, values, strict=True):
        decimals = len(number.partition(".")[2])
        assert abs(float(number.replace(",", "")) - value) <= 0.5001 * 10**-decimals, (text, number, value)


SPEEDS = {
    "ONNX Runtime 1.32 fp32": ("ort", "fp32"),
    "ONNX Runtime 1.32 int8, its own layout": ("ort", "int8", "ort"),
    "OpenVINO 2026.4 fp32": ("openvino", "fp32"),
    "OpenVINO 2026.4 fp16": ("openvino", "fp16"),
    "OpenVINO 2026.4 int8": ("openvino", "int8", "all"),
    "OpenVINO 2026.4 int8 over fp16": ("openvino", "fp16-int8"),
}


def test_speeds() -> None:
    table = rows("docs/research.md", "peak MB | labels equal")
    torch = runner("cpu-360x480", "torch", "fp32")
    check(table.pop("PyTorch 2.13 fp32"), torch.latency_ms.p50, 1, torch.stream_fps, torch.peak_bytes / 1e6)
    assert table.keys() == SPEEDS.keys()
    for label, key in SPEEDS.items():
        timed, parity = runner("cpu-360x480", *key), runner("parity-360x480", *key)
        figures = [timed.latency_ms.p50, *speed(timed), timed.stream_fps, timed.peak_bytes / 1e6]
        check(table[label], *figures, agreement(parity), points("parity-360x480", parity))


def test_speeds_with_bf16() -> None:
    table = rows("docs/research.md", "p50 ms | speed against PyTorch (95 % CI) | labels")
    run = "cpu-zen4-360x480"
    keys = {
        "PyTorch bf16": ("torch", "bf16"),
        "ONNX Runtime fp32": ("ort", "fp32"),
        "OpenCV 5 fp32": ("opencv", "fp32"),
        "OpenVINO fp32": ("openvino", "fp32"),
        "OpenVINO bf16": ("openvino", "bf16"),
        "ONNX Runtime int8, its own layout": ("ort", "int8", "ort"),
        "ONNX Runtime int8, OpenVINO's layout": ("ort", "int8", "openvino"),
        "OpenVINO int8, its own layout": ("openvino", "int8", "openvino"),
        "OpenVINO int8, ONNX Runtime's layout": ("openvino", "int8", "ort"),
        "OpenVINO int8 over bf16": ("openvino", "bf16-int8"),
    }
    check(table.pop("PyTorch fp32"), runner(run, "torch", "fp32").latency_ms.p50, 1)
    assert table.keys() == keys.keys()
    for label, key in keys.items():
        one = runner(run, *key)
        check(table[label], one.latency_ms.p50, *speed(one), agreement(one), points(run, one))


def test_speeds_by_machine() -> None:
    old, zen4 = "cpu-360x480", "cpu-zen4-360x480"
    table = rows("README.md", "| machine | file | backend")
    timed = {
        "x86 CPU": {zen4: ("openvino", "int8", "openvino")},
        "the same, and TensorRT, with one file": {old: ("openvino", "int8", "all")},
        "x86 CPU, every label as in PyTorch": {old: ("openvino", "fp32"), zen4: ("openvino", "fp32")},
        "x86 CPU with AVX512_BF16 or AMX": {zen4: ("openvino", "bf16")},
        "CPU with ONNX Runtime only": {old: ("ort", "int8", "ort"), zen4: ("ort", "int8", "ort")},
        "CPU, with the base install alone": {zen4: ("opencv", "fp32")},
    }
    for label, runs in timed.items():
        for cell, run in zip(table[label][-2:], (old, zen4), strict=True):
            check(cell, *(speed(runner(run, *runs[run])) if run in runs else ()))
    files = rows("docs/precision-and-engines.md", "| machine | file | why")
    check(files["x86 CPU with OpenVINO"][1], runner(old, "openvino", "int8", "all").speed.ratio)
    check(
        files["the same, if labels must equal PyTorch's"][1],
        agreement(runner("parity-360x480", "openvino", "fp32")),
        runner(old, "openvino", "fp32").speed.ratio,
    )
    check(files["CPU with ONNX Runtime only"][1].replace("int8", ""), runner(old, "ort", "int8", "ort").speed.ratio)


GRAPHS = {
    "fp32": ("fp32", None),
    "fp16": ("fp16", None),
    "bf16": ("bf16", None),
    "int8": ("int8", "all"),
    "int8-openvino": ("int8", "openvino"),
    "int8-ort": ("int8", "ort"),
    "fp16-int8": ("fp16-int8", "all"),
    "bf16-int8": ("bf16-int8", "openvino"),
}


def test_what_each_precision_costs() -> None:
    table, run = rows("docs/precision-and-engines.md", "unpool flips"), Run.read(RESULTS / "parity-360x480.json")
    assert table.keys() == GRAPHS.keys()
    for label, graph in GRAPHS.items():
        size, *cells, worst, flips = table[label]
        of_graph = {one.backend: one for one in run.results if (one.precision, one.qdq_layout) == graph}
        for backend, cell in zip(("torch", "ort", "openvino", "opencv"), cells, strict=True):
            one = of_graph.get(backend)
            check(cell, *((agreement(one), points("parity-360x480", one)) if one and one.parity else ()))
        found = [one.parity for one in of_graph.values() if one.parity]
        check(worst, 100 * min(min(parity.frames) for parity in found))
        shares = next((each.unpool_flips for each in found if each.unpool_flips), {})
        check(flips, *(100 * share for share in shares.values()))
        check(size, *({one.model_bytes / 1e6 for one in of_graph.values() if one.backend != "torch"}))


def test_unpool_flips_and_their_cost() -> None:
    page = (ROOT / "docs" / "max-unpooling.md").read_text(encoding="utf-8")
    (quoted,) = re.findall(r"At the second pooling of ENet, (.*?) points", page, re.DOTALL)
    both = [runner("parity-360x480", "ort", *key) for key in (GRAPHS["fp16"], GRAPHS["int8"])]
    shares = [100 * one.parity.unpool_flips["bottleneck2_0"] for one in both if one.parity and one.parity.unpool_flips]
    check(quoted, *shares, *(points("parity-360x480", one) for one in both))


def test_speed_goals() -> None:
    page = (ROOT / "docs" / "research.md").read_text(encoding="utf-8")
    goals = kept("speed-zen4-512x512")["rows"]
    assert sum(goal["reached"] is False for goal in goals) == 8  # of the heading
    for goal in goals:
        slower, faster = (f"{goal[name]}, {goal[f'{name}_ms']:.0f} ms" for name in ("slower", "faster"))
        ratio = f"{goal['ratio']:.2f} ({goal['lowest']:.2f} to {goal['highest']:.2f})"
        reached = {True: ", reached", False: ", **not reached**", None: ""}[goal["reached"]]
        assert f"| {slower} | {faster} | {ratio} | {goal['wanted'] or ''}{reached} |" in page


def test_architectures() -> None:
    table = rows("docs/research.md", "| network | parameters, M")
    backends = ("torch", "ort", "openvino")
    nets = kept("architectures-360x480")["nets"]
    assert list(table) == [net["name"] for net in nets]
    for net in nets:
        deployed = "deploy" in net["name"]
        figures = [net["parameters"] / 1e6, net["multiply_adds"] / 1e9, net["model_bytes"] / 1e6]
        figures += [net["ms"][name] for name in backends if name in net["ms"]]
        figures += [net["peak_bytes"][name] / 1e6 for name in backends if name in net["peak_bytes"]]
        if net["name"] != "ENet" and not deployed:
            figures += [net["enet_speed"][name][end] for name in backends for end in ("ratio", "low", "high")]
        check(table[net["name"]], *figures)


@pytest.mark.parametrize("name", ["ablation", "ablation-long"])
def test_ablations(name: str) -> None:
    page = (ROOT / "docs" / "research.md").read_text(encoding="utf-8")
    lines = [
        line for line in (RESULTS / f"{name}.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")
    ]
    assert len(lines) > 4 and [line for line in lines if line not in page] == []


def test_accuracy() -> None:
    table = rows("README.md", "CamVid, 11 classes")
    for start, name in {
        "`enet-camvid-train.safetensors` on 101 val images": "eval-train-only",
        "`enet-camvid.safetensors` on the same val images": "eval",
    }.items():
        (cells,) = (cells for label, cells in table.items() if label.startswith(start))
        accuracy = kept(name)["accuracy"]
        check([cell.replace("*", "") for cell in cells], accuracy["pixel_accuracy"], accuracy["miou"])
    test_split = next(cells for label, cells in table.items() if "233 test images" in label)
    releases = rows(MODEL_CARD.relative_to(ROOT).as_posix(), "release of `enet-camvid`")["test mIoU"]
    accuracy = re.search(r"The last had ([\d.]+) pixel accuracy there", MODEL_CARD.read_text(encoding="utf-8"))
    assert accuracy is not None
    check([cell.replace("*", "") for cell in test_split], float(accuracy[1]), float(releases[-1]))


def test_candidates() -> None:
    table = rows("docs/research.md", "class average | calibration error")
    names = ("miou", "pixel_accuracy", "dice", "class_average", "calibration_error")
    assert [*table] == [f"{each['held_out']}: {each['weights']}" for each in kept("candidates")]
    for cells, each in zip(table.values(), kept("candidates"), strict=True):
        check(cells, *(each[name] for name in names))


def test_model_card() -> None:
    card = MODEL_CARD.relative_to(ROOT).as_posix()
    for name, cells in rows(card, "| name | SHA-256").items():
        assert sha256(MODEL_CARD.parent / f"{name.strip('`')}.safetensors").startswith(cells[0]) and len(cells[0]) == 12
    by_class, overall = rows(card, "IoU on val"), rows(card, "| images | pixel accuracy")
    assert by_class.keys() == EVALUATIONS.keys()
    for label, name in EVALUATIONS.items():
        check(by_class[label], *(each["iou"] for each in kept(name)["accuracy"]["per_class"].values()))
    names = ("pixel_accuracy", "dice", "miou", "class_average")
    for start, name in {
        "the recipe without val": "eval-without-val",
        "`enet-camvid-train`": "eval-train-only",
        "`enet-camvid`: fit": "eval",
    }.items():
        (cells,) = (cells for label, cells in overall.items() if label.startswith(start))
        check(cells[1:], *(kept(name)["accuracy"][each] for each in names))


def test_ranges() -> None:
    accuracy = json.loads((MODEL_CARD.parent / "enet-camvid.json").read_text())["accuracy"]
    table = rows("docs/precision-and-engines.md", "| method | mse")
    assert accuracy["chosen_by"] == "agreement"
    shares = (100 * accuracy["tried"][method] for method in ("mse", "minmax", "percentile", "entropy"))
    check(table["labels of val equal to fp32's"], *shares)
    page = (ROOT / "docs" / "precision-and-engines.md").read_text(encoding="utf-8")
    (learnt,) = re.findall(r"on val, which it was trained on,\s+([\d.]+) % are equal", page)
    check(learnt, 100 * accuracy["agreement"])


def test_running_for_long() -> None:
    table = rows("docs/robots.md", "before and after 500 openings")
    first, *_, last = kept("soak-openvino-int8")["phases"]
    ends = [phase[end] for phase in (first, last) for end in ("start_mb", "end_mb")]
    check(table["OpenVINO int8, 360x480"][:2], *ends)
    for name in ("soak-openvino", "soak-ort"):
        phases = kept(name)["phases"]
        assert max(phases[at]["end_mb"] - phases[at]["start_mb"] for at in (0, -1)) <= 0.5  # "at most 0.5 MB"
        assert all(p[f"start_{each}"] == p[f"end_{each}"] for p in phases for each in ("threads", "handles"))


@pytest.mark.parametrize(("weights", "epochs"), [("enet-camvid", 870), ("enet-camvid-train", 107)])
def test_curves_of_the_bundled_weights(weights: str, epochs: int) -> None:
    with (RESULTS / f"training-{weights}.csv").open(encoding="utf-8") as file:
        scored = [line for line in csv.DictReader(file) if line["val_miou"]]
    page = (ROOT / "docs" / "research.md").read_text(encoding="utf-8")
    (header,) = re.findall(rf"^\| epoch of {epochs} (\|.*)$", page, re.MULTILINE)
    check(header, *(float(line["epoch"]) for line in scored))
    table = rows("docs/research.md", f"| epoch of {epochs} ")
    check(table["mIoU"], *(float(line["val_miou"]) for line in scored))
    check(table["pixel accuracy"], *(float(line["val_pixel_accuracy"]) for line in scored))


def test_training() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    quoted = re.search(r"one process trains on ([\d.]+) crops .*? alone, on ([\d.]+)", text, re.DOTALL)
    assert quoted is not None
    speeds = kept("training-cpu")["crops_per_second"]
    check(" ".join(quoted.groups()), speeds["enet-train"], speeds["usual loop"])
