"""Reports of a benchmark's result: whole outputs for stored runs, the verdict, and the page in a browser."""

from __future__ import annotations

import copy
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT, result, stored
from rich.console import Console

from enet_deploy import BUNDLED_WEIGHTS, CAMVID
from enet_deploy.benchmarks import cli
from enet_deploy.benchmarks.compare import RunComparison, as_lines, compare_runs
from enet_deploy.benchmarks.compare import judged_figures as changed_figures
from enet_deploy.benchmarks.gate import judge, judged_figures, parse_requirements, require_all
from enet_deploy.benchmarks.measure.machine import Load
from enet_deploy.benchmarks.measure.profiling import Peaks, Profile
from enet_deploy.benchmarks.report import charts
from enet_deploy.benchmarks.report.page import Picture, as_html
from enet_deploy.benchmarks.report.tables import as_markdown, show
from enet_deploy.benchmarks.run import Run
from enet_deploy.benchmarks.statistics import Speed, Summary, outliers, speed, spread
from enet_deploy.benchmarks.studies import architectures
from enet_deploy.benchmarks.verdict import FIGURES, figures, front, stability
from enet_deploy.data.scenes import street_scene
from enet_deploy.errors import InputError, RequirementError
from enet_deploy.runners import Operation


@pytest.fixture(scope="module")
def run() -> Run:
    return Run.from_json(stored())


def saved(run: dict[str, Any], folder: Path, name: str = "run.json") -> str:
    (folder / name).write_text(json.dumps(run))
    return str(folder / name)


SHOWN = """\
images: val of camvid, 101 images
infer, frames of 360x480: ms per call, frames per second, speed against the first (95 % CI)

  runner           p50    p90    p99   outliers   mean FPS   stream              speed   file MB   peak MB
 ──────────────────────────────────────────────────────────────────────────────────────────────────────────
  torch fp32      61.2   62.4   62.5       0/20       16.4     16.4   1.00 (1.00-1.00)      1.73       182
  openvino fp32   20.4   20.8   20.9       0/20       49.1     47.6   3.00 (3.00-3.00)      1.73       182
  openvino int8   15.3   15.6   15.7       0/20       65.4     62.5   3.99 (3.99-3.99)      1.73       182

From a camera image of 360x480 to labels of its size: median ms per call

  runner           pre   infer   post   total   mean FPS
 ────────────────────────────────────────────────────────
  torch fp32      1.00   61.20   0.50   61.50       16.3
  openvino fp32   1.00   20.40   0.50   21.50       46.5
  openvino int8   1.00   15.30   0.50   16.50       60.6

The same network? Labels that differ from PyTorch fp32's (within 3 pixels of an edge, elsewhere), logits (TRAINED ON 101 of these images)

  runner          equal labels   near edges   elsewhere   max logit diff    p99      unpool flips
 ─────────────────────────────────────────────────────────────────────────────────────────────────
  torch fp32        100.00000%      0.0000%     0.0000%              0.5   0.01
  openvino fp32      99.99999%      0.0000%     0.0000%              0.5   0.01   0.000%, 12.500%
  openvino int8      99.40000%      0.5400%     0.0600%              0.5   0.01   0.000%, 12.500%

Accuracy, void left out (TRAINED ON 101 of these images)

  runner          pixel accuracy     Dice     mIoU   their change, points
 ─────────────────────────────────────────────────────────────────────────
  torch fp32              0.9000   0.8420   0.7420      0.000 0.000 0.000
  openvino fp32           0.9000   0.8420   0.7420      0.000 0.000 0.000
  openvino int8           0.9000   0.8415   0.7415    0.000 -0.050 -0.050

IoU by class: PyTorch's, and the change in points (TRAINED ON 101 of these images)

  class      PyTorch   openvino int8
 ────────────────────────────────────
  sky         0.7420           -0.05
  a|<b>$x$

TRAINED ON: 101 of the 101 images, so this shows fit, not accuracy on new images
On cpu: take openvino int8: 65 FPS, 1.33x (95 % CI 1.33 to 1.33) the speed of openvino fp32, for -0.05 points of mIoU.
  open_runner("a/enet-int8.onnx", backend="openvino")
partial: the run was interrupted; what it did not get to is missing
unstable: other programs took 0.50 cores meanwhile; close them
wrote /a.md
wrote /a.csv
"""  # noqa: E501

MARKDOWN = """\
| 360x480 | p50 ms | p90 ms | FPS | stream FPS | speed (95 % CI) | MB | peak MB | equal labels | mIoU, points |
|---|---|---|---|---|---|---|---|---|---|
| torch fp32 | 61.2 | 62.4 | 16.4 | 16.4 | 1.00x (1.00 to 1.00) | 1.73 | 182 | 100.00000% | 0.7420 (0.00) |
| openvino fp32 | 20.4 | 20.8 | 49.1 | 47.6 | 3.00x (3.00 to 3.00) | 1.73 | 182 | 99.99999% | 0.7420 (0.00) |
| openvino int8 | 15.3 | 15.6 | 65.4 | 62.5 | 3.99x (3.99 to 3.99) | 1.73 | 182 | 99.40000% | 0.7415 (-0.05) |

On cpu: take openvino int8: 65 FPS, 1.33x (95 % CI 1.33 to 1.33) the speed of openvino fp32, for -0.05 points of mIoU.

```python
open_runner("a/enet-int8.onnx", backend="openvino")
```
TRAINED ON: 101 of the 101 images, so this shows fit, not accuracy on new images
Partial: the run was interrupted
Unstable: other programs took 0.50 cores meanwhile; close them

A Processor, 2 cores, Linux; commit 0123456789ab, 2026-11-23T07:00:00+0000
"""

CSV = """\
name,backend,device,precision,layout,artifact,size,batch,p50_ms,p90_ms,p99_ms,fps,stream_fps,speedup,speedup_low,speedup_high,model_mb,peak_mb,agreement,boundary_flips,interior_flips,max_abs_logit,p99_abs_logit,unpool_flips,pixel_accuracy,pixel_accuracy_drop,dice,dice_drop,miou,miou_drop
torch fp32,torch,cpu,fp32,,a/enet-fp32.onnx,360x480,1,61.2,62.41,62.5,16.3907556,16.3934426,1,1,1,1.73,182,1,0,0,0.5,0.01,,0.9,0,0.842,0,0.742,0
openvino fp32,openvino,cpu,fp32,,a/enet-fp32.onnx,360x480,1,20.4,20.81,20.9,49.0918017,47.6190476,2.99511002,2.99501247,2.99520384,1.73,182,0.9999999,9e-08,9.99999999e-09,0.5,0.01,0.125,0.9,0,0.842,0,0.742,0
openvino int8,openvino,cpu,int8,all,a/enet-int8.onnx,360x480,1,15.3,15.61,15.7,65.4022237,62.5,3.99022801,3.99003322,3.99041534,1.73,182,0.994,0.0054,0.0006,0.5,0.01,0.125,0.9,0,0.8415,0.05,0.7415,0.05
"""  # noqa: E501


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.split("\n")]


def trained_on(count: int) -> dict[str, Any]:
    run = stored()
    run["results"] = [each | {"trained_on": count} for each in run["results"]]
    return run


def test_stored_run_is_shown_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    run = trained_on(101) | {"partial": True, "load": {"others": 0.5, "stolen": 0.0}}
    outputs = ["--markdown", str(tmp_path / "a.md"), "--csv", str(tmp_path / "a.csv")]
    assert cli.main(["show", saved(run, tmp_path), *outputs]) == 0
    printed = capsys.readouterr().out.replace(str(tmp_path), "")
    assert lines(printed) == lines(SHOWN)
    assert (tmp_path / "a.md").read_text() == MARKDOWN
    assert (tmp_path / "a.csv").read_text() == CSV


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_narrow_terminals_break_no_figure(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    run = stored()
    run["results"] += [result("ort", f"fp{16 + index}", 30, 0.99, 0.7) for index in range(4)]
    assert cli.main(["show", saved(run, tmp_path)]) == 0
    printed = capsys.readouterr().out
    tables = [line for line in printed.splitlines() if line.startswith("  ")]
    assert max(map(len, tables)) <= columns and "\u2026" not in printed
    for figure in ("20.4", "3.99 (3.99-3.99)", "99.99999%", "0.5400%", "0.7415", "-4.20"):
        assert any(figure in line for line in tables), figure
    assert printed.count("left out at") == sum("--csv" in line for line in printed.splitlines()) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("counts", "told", "mark"),
    [
        ((None, None, None), ["not known"], False),
        ((0, 0, 0), ["not trained on"], False),
        ((101, 101, 101), ["TRAINED ON: 101 of the 101"], True),
        ((0, 0, 7), ["openvino fp32: not trained on", "openvino int8: TRAINED ON: 7 of the 101"], True),
    ],
)
def test_every_form_says_what_was_trained_on(counts: tuple[int | None, ...], told: list[str], mark: bool) -> None:
    made = stored()
    made["results"] = [each | {"trained_on": count} for each, count in zip(made["results"], counts, strict=True)]
    run = Run.from_json(made)
    console = Console(file=io.StringIO(), width=200)
    show(run, console)
    page = as_html(run)
    for text in (console.file.getvalue(), as_markdown(run), page):  # type: ignore[attr-defined]
        assert all(words in text for words in told)
    assert console.file.getvalue().count("(TRAINED ON") == 3 * mark  # type: ignore[attr-defined]
    assert page.count("(TRAINED ON") == 9 * mark  # three headings; titles and texts of three charts
    assert [each.trained_on for each in Run.from_json(run.to_json()).results] == list(counts)
    interrupted = Run.from_json(run.to_json() | {"compared": 40})
    assert "none of the 40 images" in as_markdown(interrupted) or 0 not in counts


RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
RUNS = [path for path in RESULTS if "results" in json.loads(path.read_text())]


def rounded(text: str) -> str:
    """The text, with numbers to 12 digits: versions of NumPy add up in other orders."""
    return re.sub(r"\d+\.\d{12,}(e-?\d+)?", lambda found: f"{float(found[0]):.12g}", text)


@pytest.mark.slow
@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_kept_runs_are_written_back_to_the_same_bytes(path: Path, tmp_path: Path) -> None:
    run = Run.read(path)
    run.write(tmp_path / "again.json")
    again, kept = (rounded(file.read_text()) for file in (tmp_path / "again.json", path))
    assert again == kept
    assert run.verdict and as_markdown(run)


@pytest.mark.parametrize("path", [path for path in RESULTS if path.stem != "candidates"], ids=lambda path: path.stem)
def test_kept_results_say_where_they_come_from(path: Path) -> None:
    kept = json.loads(path.read_text())
    assert (
        kept["schema"] and kept["environment"]["processor"] and len(kept["environment"]["commit"].split("-")[0]) == 40
    )


def test_damaged_results_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong: list[Any] = [{}, [], {"schema": 3}, {"schema": 1}, {"schema": 2, "results": [], "sweep": []}, "x"]
    for name in ("stages_ms", "latency_ms", "parity", "accuracy", "samples_ms", "size", "model_bytes"):
        for value in ({}, [], "x", 0):
            run = stored()
            run["results"][1][name] = value
            wrong.append(run)
    without = stored()
    del without["environment"]["commit"]
    wrong.append(stored() | {"environment": stored()["environment"] | {"gpus": ["H100"]}})
    outputs = [
        part for kind in ("markdown", "csv", "html", "json") for part in (f"--{kind}", str(tmp_path / f"a.{kind}"))
    ]
    for run in [*wrong, without]:
        path = saved(run, tmp_path)
        assert cli.main(["show", path, *outputs]) == 2, run
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and path in error, error
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_damage_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = stored()
    run["results"][1]["accuracy"]["per_class"]["sky"]["iou"] = "much"
    assert cli.main(["show", saved(run, tmp_path)]) == 2
    assert "results[1].accuracy.per_class.sky.iou" in (error := capsys.readouterr().err) and "'much'" in error


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": [2] * 9},
        {"blocks": []},
        {"samples_ms": [0.0, *[1.0] * 19]},
        {"batch": 0},
        {"timed": "decode"},
        {"stages_ms": {}},
        {"size": [360]},
        {"model_bytes": 1e308},
        {"peak_bytes": True},
    ],
    ids=str,
)
def test_values_that_contradict_each_other(change: dict[str, Any]) -> None:
    run = stored()
    run["results"][2] |= change
    with pytest.raises(ValueError, match=r"results\[2\]"):
        Run.from_json(run)


def hashed(**milliseconds: float) -> dict[str, Any]:
    """A run of these runners: file_backend -> ms. The name of the file stands for its hash."""
    run = stored() | {"results": []}
    for index, (name, ms) in enumerate(milliseconds.items()):
        file, backend = name.split("_")
        made = result(backend, "fp32", ms, 1.0, 0.742)
        generator = np.random.default_rng(index + int(ms))
        made["samples_ms"] = [ms * (1 + generator.normal(0, 0.01)) for ms in made["samples_ms"]]
        run["results"].append(made | {"artifact_sha256": file})
    return run


def compared(old: dict[str, Any], new: dict[str, Any]) -> RunComparison:
    return compare_runs(Run.from_json(old), Run.from_json(new))


def test_load_is_no_speed_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One file, benched twice, while something else took two fifths of the machine in the first run."""
    old, new = hashed(a_torch=97, a_ort=65, a_openvino=32.4), hashed(a_torch=60, a_ort=40, a_openvino=20)
    found = compared(old, new)
    assert all(change.is_same for change in found.changes)
    assert cli.main(["compare", saved(old, tmp_path, "a.json"), saved(new, tmp_path, "b.json")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3 and all("unchanged" in line and "the machine: 1.6" in line for line in printed)
    options = ["--require", "speedup>=1"]  # of which nothing is left to judge
    assert cli.main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), *options]) == 2


@pytest.mark.parametrize("gain", [1.0, 1.25])
def test_the_machines_change_is_taken_out_of_a_files(gain: float, tmp_path: Path) -> None:
    old, new = hashed(a_torch=96, b_openvino=32), hashed(a_torch=60, c_openvino=20 / gain)
    same, changed = compared(old, new).changes
    assert same.is_same and not changed.is_same
    assert changed.speed is not None and changed.speed.low <= gain <= changed.speed.high
    assert changed.speed.is_difference == (gain > 1)
    assert changed.speed.width < 0.1
    paths = saved(old, tmp_path, "a.json"), saved(new, tmp_path, "b.json")
    assert cli.main(["compare", *paths, "--require", "speedup_low>=1.1"]) == (0 if gain > 1 else 1)


def test_a_machine_that_does_not_change_alike_widens_the_interval() -> None:
    old, new = hashed(a_torch=90, a_ort=60, b_openvino=32), hashed(a_torch=60, a_ort=30, c_openvino=20)
    *_, changed = compared(old, new).changes  # 1.5 times faster, 2 times faster: the file's gain is anywhere between
    assert changed.speed is not None and changed.speed.low < 1 < changed.speed.high and changed.speed.width > 0.5


@pytest.mark.parametrize(
    "change",
    [
        {"artifact_sha256": ""},  # of an older version, which kept no hash
        {"artifact_sha256": "c"},
        {"options": {"threads": 1}},
        {"runtime": "another"},
    ],
    ids=str,
)
def test_without_a_ruler_nothing_is_claimed(
    change: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = hashed(a_ort=65, b_openvino=32), hashed(a_ort=40, d_openvino=20)
    new["results"][0] |= change
    paths = saved(old, tmp_path, "a.json"), saved(new, tmp_path, "b.json")
    assert cli.main(["compare", *paths]) == 0
    printed = capsys.readouterr().out
    assert "faster (" not in printed and printed.count("cannot tell") == 3
    assert cli.main(["compare", *paths, "--require", "speedup>=1"]) == 2
    assert "no runner is the same" in capsys.readouterr().err


def test_another_machine_is_no_ruler() -> None:
    old, new = hashed(a_torch=96, b_openvino=32), hashed(a_torch=60, c_openvino=20)
    new["environment"] = new["environment"] | {"cores": 4, "packages": {"openvino": "2026.5", "onnxruntime": "1.32"}}
    found = compared(old, new)
    assert [change.speed for change in found.changes] == [None, None]
    assert found.notes == ("cores was 2, is 4", "onnxruntime was absent, is 1.32", "openvino was 2026.4, is 2026.5")
    new["environment"]["cores"] = 2
    new["environment"]["gpus"] = [gpu | {"sm_clock_mhz": 1980.0} for gpu in old["environment"]["gpus"]]
    same, changed = compared(old, new).changes
    assert same.is_same and not changed.is_same and changed.speed is not None  # what OpenVINO's new version gains


@pytest.mark.parametrize("change", [{"data": None}, {"split": "test"}, {"size": [720, 1280]}, {"video": "a.mp4"}])
def test_runs_of_other_images_are_not_compared(
    change: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = stored(), stored()
    new["images"] = new["images"] | change
    assert cli.main(["compare", saved(old, tmp_path, "a.json"), saved(new, tmp_path, "b.json")]) == 2
    assert "val of camvid, 360x480" in capsys.readouterr().err


def test_comparison_repeats_what_casts_doubt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = hashed(a_torch=96, b_openvino=32, b_ort=50), hashed(a_torch=60, c_openvino=15, c_trt=9)
    new |= {"load": {"others": 0.5, "stolen": 0.0}, "partial": True}
    found = compared(old, new)
    assert (found.only_first, found.only_second) == (("ort fp32",), ("trt fp32",))
    assert found.doubts == (
        "second run: it was interrupted",
        "second run: other programs took 0.50 cores meanwhile; close them",
        *compared(old, new | {"load": old["load"], "partial": False}).doubts,  # of the single ruler
    )
    assert cli.main(["compare", saved(old, tmp_path, "a.json"), saved(new, tmp_path, "b.json")]) == 0
    printed = capsys.readouterr().out
    assert "(in doubt)" in printed and all(doubt in printed for doubt in found.doubts)


@pytest.mark.parametrize(
    "changes",
    [
        {"commit": "f" * 40},
        {"commit": "0123456789abcdef-dirty"},
        {"packages": {"openvino": "2026.4", "enet-deploy": "9"}},
    ],
    ids=str,
)
def test_other_code_is_no_machine(changes: dict[str, Any]) -> None:
    """The network of the torch runner is this project's code, so its file says little."""
    old, new = (hashed(a_torch=60, a_ort=40, b_openvino=20) for _ in range(2))
    new["results"][2]["artifact_sha256"] = "c"
    assert compared(old, new).doubts == ()
    new["environment"] = new["environment"] | changes
    found = compared(old, new)
    assert len(found.doubts) == 1 and [line.count("(in doubt)") for line in as_lines(found)[:3]] == [1, 1, 1]


def test_a_single_ruler_is_in_doubt() -> None:
    """It cannot show whether the machine changed alike for a runner that changed; without one nothing rests on it."""
    old, new = hashed(a_torch=60, b_openvino=20), hashed(a_torch=60, c_openvino=20)
    assert len(compared(old, new).doubts) == 1
    assert compared(old, old).doubts == ()


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.99, 1.01, "no difference,"),
        (0.97, 1.01, "no difference shown,"),
        (0.6, 1.4, "too uncertain to tell,"),
        (1.01, 1.03, "1.02x faster"),
    ],
)
def test_no_difference_is_claimed_only_where_there_is_none(low: float, high: float, words: str) -> None:
    found = compared(hashed(a_torch=60, b_openvino=20), hashed(a_torch=60, c_openvino=20))
    changed = replace(found.changes[1], speed=Speed((low + high) / 2, low, high))
    (line, *_) = as_lines(replace(found, changes=(changed,)))
    assert line.startswith(f"openvino fp32: {words}")


def test_what_is_lost_in_quality_can_be_required() -> None:
    old, new = hashed(a_torch=60, b_openvino=20), hashed(a_torch=60, c_openvino=20)
    new["results"][1] |= {key: result("openvino", "fp32", 20, 0.99, 0.732)[key] for key in ("accuracy", "parity")}
    (found,) = changed_figures(compared(old, new)).values()
    assert found["miou_drop"] == pytest.approx(1) and found["agreement_drop"] == pytest.approx(1)
    new["results"][1]["parity"]["frames"] *= 3  # the first run was interrupted after one image
    (found,) = changed_figures(compared(old, new)).values()
    assert found["agreement_drop"] is None


@pytest.mark.parametrize(("side_by_side", "most"), [(True, 0.05), (False, 0.06)])
@pytest.mark.parametrize("rounds", [6, 7, 9, 12])
def test_a_runner_against_itself_is_no_difference(rounds: int, side_by_side: bool, most: float) -> None:
    generator = np.random.default_rng(1)
    wrong, runs = 0, 2000 if side_by_side else 100  # a bootstrap takes long
    for _ in range(runs):
        drift = generator.normal(20, 3, rounds) if side_by_side else 20  # of the machine, by round
        a, b = ((drift + generator.normal(0, 1, rounds))[:, None].tolist() for _ in range(2))
        wrong += speed(a, b, side_by_side=side_by_side).is_difference
    assert wrong / runs <= most + 3 * (most / runs) ** 0.5  # one in twenty is what 95 % means


@pytest.mark.parametrize(("rounds", "rank"), [(1, 1), (5, 1), (6, 1), (8, 1), (9, 2), (10, 2), (20, 6), (100, 40)])
def test_interval_lies_between_two_ratios(rounds: int, rank: int) -> None:
    """The ranks of tables of the sign test at 5 %."""
    found = speed([[float(1 + round)] for round in range(rounds)], [[1.0]] * rounds, side_by_side=True)
    assert (found.low, found.high) == (rank, rounds + 1 - rank) and found.low <= found.ratio <= found.high


def test_speed_is_the_median_of_the_rounds_ratios() -> None:
    a, b = [[10.0, 12.0, 99.0], [30.0], [20.0]], [[6.0], [10.0], [10.0]]
    assert speed(a, b, side_by_side=True) == Speed(2, 2, 3)
    apart = speed(a, b, side_by_side=False)
    assert apart.ratio == 2 and apart.low < 2 < apart.high
    assert speed(a, b, side_by_side=False) == apart


def test_outliers_and_spread() -> None:
    assert outliers([10, 11, 12, 13, 100]) == 1 and outliers([5, 5, 5]) == 0
    assert spread([[1, 2, 3, 4], [10, 10]]) == pytest.approx((10 - 2.5) / 3.5)
    assert Summary.of([1, 2, 3, 4, 10, 10]) == Summary(p50=3.5, p90=10, p99=10, mean=5)


def test_every_figure_can_be_required(run: Run) -> None:
    found = figures(run.results[2], run.accuracy_of_reference)
    assert tuple(found) == FIGURES and None not in found.values()


def test_front(run: Run) -> None:
    assert [each.name for each in front(run.results)] == ["openvino int8"]  # half a tenth of a point is nothing
    torch, plain, int8 = run.results
    assert int8.accuracy is not None
    int8 = replace(int8, accuracy=replace(int8.accuracy, miou=0.739))
    assert [each.name for each in front([torch, plain, int8])] == ["openvino int8", "openvino fp32"]


def advice(*results: dict[str, Any], reference: bool = True) -> str:
    run = stored() | {"results": copy.deepcopy(list(results))}
    if not reference:
        run["reference"] = None
    return Run.from_json(run).verdict[0].advice


def test_verdict() -> None:
    torch, plain = result("torch", "fp32", 60, 1.0, 0.742), result("openvino", "fp32", 20, 1.0, 0.742)
    assert advice(torch, plain, result("openvino", "int8", 10, 0.99, 0.741)) == (
        "take openvino int8: 98 FPS, 2.00x (95 % CI 2.00 to 2.00) the speed of openvino fp32, for -0.10 points of mIoU."
    )
    assert advice(torch, plain, result("openvino", "int8", 10, 0.99, 0.738)) == (
        "take openvino fp32: 49 FPS, 3.00x (95 % CI 3.00 to 3.00) the speed of torch fp32, for +0.00 points of mIoU. "
        "INT8 is not worth it here, because openvino int8 costs 0.40 points of mIoU, more than 0.3."
    )
    assert advice(torch, plain, result("openvino", "int8", 25, 0.99, 0.741)).endswith(
        "because openvino int8 is at 0.80x (95 % CI 0.80 to 0.80) of openvino fp32's speed."
    )


def test_verdict_without_a_clear_difference() -> None:
    plain, int8 = result("openvino", "fp32", 20, 1.0, 0.742), result("openvino", "int8", 19.9, 0.99, 0.741)
    for index in range(10):  # in half of the rounds the one is faster, in half the other
        int8["samples_ms"][2 * index] += 3 * (-1) ** index
        int8["samples_ms"][2 * index + 1] += 3 * (-1) ** index
    assert advice(plain, int8).startswith("take openvino fp32: 49 FPS. openvino int8 is as fast")


def tie(first: dict[str, Any], second: dict[str, Any]) -> list[Any]:
    """What the advice takes, and what ties with it, with either runner a little ahead."""
    found = []
    for ahead, other in ((first, second), (second, first)):
        other = copy.deepcopy(other)
        other["samples_ms"] = [1.01 * ms for ms in other["samples_ms"]]
        verdict = Run.from_json(stored() | {"results": [copy.deepcopy(ahead), other]}).verdict[0]
        found.append((verdict.take, verdict.tied))
    return found


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (("openvino", "fp32", 1.0, None), ("openvino", "int8", 0.994, "all")),
        (("openvino", "int8", 0.993, "all"), ("openvino", "int8", 0.994, "ort")),  # a file made for another backend
        (("openvino", "int8", 0.994, "all"), ("ort", "int8", 0.993, "ort")),
        (("ort", "fp32", 1.0, None), ("openvino", "fp32", 1.0, None)),  # fewer packages
    ],
)
def test_of_a_tie_every_run_takes_the_same(better: tuple[Any, ...], worse: tuple[Any, ...]) -> None:
    runners = [
        result(backend, kind, 20, agreement, 0.742, layout) for backend, kind, agreement, layout in (better, worse)
    ]
    names = [f"{backend} {kind}{'-ort' * (layout == 'ort')}" for backend, kind, _, layout in (better, worse)]
    assert tie(*runners) == [(names[0], (names[1],))] * 2


def test_what_is_clearly_slower_is_no_tie() -> None:
    plain, int8 = result("openvino", "fp32", 20, 1.0, 0.742), result("openvino", "int8", 18, 0.994, 0.742, "all")
    assert tie(plain, int8)[0] == ("openvino int8", ())


def test_verdict_without_truth_or_reference() -> None:
    torch, plain = result("torch", "fp32", 60, 1.0, 0.742), result("openvino", "fp32", 20, 1.0, 0.742)
    no_truth = [each | {"accuracy": None} for each in (torch, plain, result("openvino", "int8", 10, 0.992, 0.7))]
    assert advice(*no_truth, reference=False).endswith("openvino fp32, for 99.20% of PyTorch's labels.")
    wrong = [each | {"accuracy": None} for each in (result("ort", "fp16", 10, 0.5, 0.1),)]
    assert advice(*wrong, reference=False) == "no runner keeps the network's labels; deploy none of them."
    no_reference = [each | {"parity": None} for each in (plain, result("openvino", "int8", 10, 0.99, 0.1))]
    assert advice(*no_reference, reference=False).startswith("take openvino fp32")  # mIoU is known, and is 0.1
    unknown = [each | {"parity": None, "accuracy": None} for each in (plain, result("openvino", "int8", 10, 0.9, 0.1))]
    assert advice(*unknown, reference=False).endswith("openvino fp32, with labels that nothing was held against.")


def test_baseline_is_not_judged_by_its_speed_over_itself(run: Run) -> None:
    run = replace(run, results=run.results[1:])  # all that is derived is derived again
    found = judged_figures(run.results, None)
    judged = judge(found, parse_requirements("speedup>=1.2,p50_ms<=21"))
    assert [(each.runner, each.requirement.figure) for each in judged] == [
        ("openvino fp32", "p50_ms"),
        ("openvino int8", "speedup"),
        ("openvino int8", "p50_ms"),
    ]
    require_all(judged)
    with pytest.raises(RequirementError, match=r"^openvino int8 has speedup 1\.33"):
        require_all(judge(found, parse_requirements("speedup>=1.4")))


def test_a_condition_that_no_runner_is_held_against_is_refused(run: Run) -> None:
    torch, plain, _ = run.results
    for results in ((plain,), (plain, torch)):  # the baseline alone, and beside what is exempt
        found = judged_figures(replace(run, results=results).results, None)
        with pytest.raises(InputError, match=re.escape("speedup>=5")):
            judge(found, parse_requirements("p50_ms<=21,speedup>=5"))
    half = replace(torch, precision="bf16")
    assert list(judged_figures(replace(run, results=(torch, half)).results, None)) == ["torch bf16"]


def test_doubts(run: Run) -> None:
    assert run.stability == ()
    torch, plain, int8 = run.results
    assert plain.warm_up is not None
    samples = (*plain.samples_ms[:-2], *(ms + 0.25 * 20.4 - 0.4 for ms in plain.samples_ms[-2:]))
    plain = replace(plain, samples_ms=samples, warm_up=replace(plain.warm_up, settled=False))
    int8 = replace(int8, speed=Speed(4.0, 3.6, 4.4))
    assert stability([torch, plain, int8], Load(0.3, 0.2), "powersave", partial=False) == [
        "other programs took 0.30 cores meanwhile; close them",
        "the hypervisor took 0.20 cores; measure on hardware that is not shared",
        "the clock's governor is 'powersave'; fix it: cpupower frequency-set -g performance",
        "rounds of openvino fp32 differ by up to 25%; read ratios, not times",
        "openvino fp32 did not settle while warming up; see what else runs, and the temperature",
        "the interval of openvino int8's speed is 20% of it wide; take --frames 410",
    ]
    short = [replace(each, batch=4, samples_ms=each.samples_ms[:10], blocks=(2,) * 5) for each in (torch, int8)]
    rounds, width = stability(short, Load(0.0, 0.0), None, partial=False)
    assert "5 rounds" in rounds and "--frames 400 " in rounds  # ten rounds of ten calls
    assert width.endswith("--frames 840")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["a.onnx", {"backend": "openvino"}]),
        ({"options": {"threads": 2, "precision": "bf16"}}, ["a.onnx", {"threads": 2, "precision": "bf16"}]),
        ({"options": {"size": [96, 128]}, "backend": "torch"}, ["a.onnx", {"backend": "torch", "size": (96, 128)}]),
        ({"device": "cuda:1", "backend": "ort"}, ["a.onnx", {"backend": "ort", "device": "cuda:1"}]),
        ({"artifact": BUNDLED_WEIGHTS.name}, [BUNDLED_WEIGHTS.name, {"backend": "openvino"}]),  # the user's own
        # from a foreign file
        ({"artifact": '") or 1/0 #\\'}, ['") or 1/0 #\\', {"backend": "openvino"}]),
        ({"options": {"x=1/0, y": 1}, "backend": "'1/0"}, ["a.onnx", {"backend": "'1/0"}]),
    ],
)
def test_call_can_be_pasted(changes: dict[str, Any], expected: list[Any]) -> None:
    run = stored()
    run["results"] = [run["results"][1] | {"artifact": "a.onnx"} | changes]
    (verdict,) = Run.from_json(run).verdict
    assert verdict.call is not None and "\n" not in verdict.call
    known = {"open_runner": lambda path, **options: (path, options)}
    path, options = eval(verdict.call, known)
    assert path == expected[0] and options == {"backend": "openvino"} | expected[1]
    for shown in (as_markdown(Run.from_json(run)), json.dumps(Run.from_json(run).to_json())):
        assert "open_runner(" in shown


def test_export_of_the_winner_can_be_pasted() -> None:
    run = stored()
    run["results"] = [run["results"][1] | {"export": ["--name", "; rm x"]}]
    run = Run.from_json(run)
    assert run.verdict[0].export == "enet-export --name '; rm x'"
    assert "\nenet-export --name '; rm x'\n" in as_markdown(run)


def test_bf16_has_a_budget_of_its_own() -> None:
    run = stored()
    run["reference"] = None
    run["results"] = [result("openvino", "fp32", 20, 1.0, 0.7), result("openvino", "bf16", 12, 0.992, 0.7)]
    for each in run["results"]:
        each["accuracy"] = None
    assert Run.from_json(run).verdict[0].take == "openvino fp32"
    run["results"][1]["parity"]["agreement"] = 0.994
    assert Run.from_json(run).verdict[0].take == "openvino bf16"


def test_names_tell_runners_apart() -> None:
    run = stored()
    plain = run["results"][1]
    run["results"] = [
        *(copy.deepcopy(plain) for _ in range(2)),
        plain | {"precision": "int8", "layout": "ort"},
        plain | {"precision": "int8", "layout": "all", "artifact": "b/[red]y.onnx"},
        plain | {"precision": "int8", "layout": "all"},
        plain | {"device": "cuda:1"},
    ]
    assert [each.name for each in Run.from_json(run).results] == [
        "openvino fp32 (1)",
        "openvino fp32 (2)",
        "openvino int8-ort",
        "openvino int8 [red]y.onnx",
        "openvino int8 enet-fp32.onnx",
        "openvino fp32 cuda:1",
    ]
    assert r"openvino int8 \[red\]y.onnx" in as_markdown(Run.from_json(run))


def pictures() -> list[Picture]:
    image, labels = street_scene(0, (96, 128))
    other = labels.copy()
    other[:20] = 3
    return [Picture(7, "openvino <b>", image, other, labels, labels, CAMVID)]


@pytest.fixture(scope="module")
def full_page(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with all that a page can show. Its texts come from foreign files."""
    torch, plain, int8 = run.results
    torch = replace(torch, backend="<script>document.title = 'run'</script>")
    operations = [Operation(("stage1.0/Conv",), "Conv", 2.0), Operation(("fullconv/Conv",), "Conv", 1.0)]
    int8 = replace(int8, profile=Profile.of(operations, {}))
    sweep = (replace(int8, batch=4, parity=None, accuracy=None, profile=None),)
    run = replace(run, results=(torch, plain, int8), sweep=sweep, peaks=Peaks(200.0, 9.0))
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(as_html(run, pictures()), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 360)])
def test_page_in_a_browser(browser: Any, full_page: Path, scheme: str, width: int) -> None:
    page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(full_page.as_uri())
    assert said == [] and [url for url in asked if not url.startswith("data:")] == [full_page.as_uri()]
    assert page.title() == "enet-bench: openvino int8"
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # tables scroll, the page does not
    charts = page.locator(".chart img")
    assert charts.count() == 9
    pixels = page.evaluate(DISTINCT)
    assert len(pixels) == 9 + 1 and min(pixels[:9]) > 100 and min(pixels[9:]) > 8, pixels
    sources = page.evaluate("[...document.querySelectorAll('.chart img')].map(i => i.currentSrc === i.src)")
    assert all(sources) if scheme == "light" else not any(sources)


# How many colours each picture of the page shows: an empty one has a single one
DISTINCT = """() => Promise.all([...document.images].map(async image => {
    await image.decode();
    const canvas = document.createElement('canvas');
    canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
    const context = canvas.getContext('2d');
    context.drawImage(image, 0, 0);
    const data = new Uint32Array(context.getImageData(0, 0, canvas.width, canvas.height).data.buffer);
    return new Set(data).size;
}))"""


def test_charts_keep_files_and_stages_apart(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    monkeypatch.setattr(charts, "themed", lambda draw, *_: draw(figure))
    torch, plain, int8 = run.results
    torch = replace(torch, options={"size": [360, 480]})
    one = (torch, plain, replace(plain, artifact="b.onnx"), replace(plain, options={"threads": 1}))
    four = tuple(replace(each, batch=4) for each in one)
    charts.sweep(replace(run, results=one, sweep=(*four, replace(torch, size=(96, 128), options={"size": [96, 128]}))))
    above, below = ([len(line.get_xdata()) for line in axes.lines] for axes in figure.axes)
    assert (above, below) == ([2, 1, 1, 1], [2, 2, 2, 2])
    figure.clear()
    names = ["Cast", "initial", *(f"bottleneck{n}_0" for n in (1, 2, 4, 5)), *(f"stage{n}.0" for n in range(1, 6))]
    stages = [Operation((f"{name}/Conv",), "Conv", 1.0) for name in (*names, "fullconv")]
    profiled = replace(int8, profile=Profile.of(stages, {}))
    charts.network_stages(replace(run, results=(profiled,), peaks=Peaks(200.0, 9.0)))
    looks = {(patch.get_facecolor(), patch.get_hatch()) for patch in figure.axes[0].patches}
    assert len(looks) == len(figure.axes[0].patches) == 12


NETS: list[dict[str, Any]] = [
    {
        "name": name, "parameters": parameters, "multiply_adds": macs, "model_bytes": 4 * parameters,
        "peak_bytes": dict.fromkeys(times, 500_000_000),
        "samples_ms": {backend: [[ms, ms]] * 5 for backend, ms in times.items()},
    }
    for name, parameters, macs, times in (
        ("ENet", 360_000, 1.4e9, {"torch": 60.0, "ort": 45.0, "openvino": 30.0}),
        ("SegNet", 29_440_000, 105e9, {"torch": 2400.0, "ort": 2000.0, "openvino": 1500.0}),
        ("U-Net", 31_030_000, 145e9, {"torch": 2000.0, "ort": 2100.0, "openvino": 27.0}),
        ("ENet, deploy form", 360_000, 1.4e9, {"ort": 40.0, "openvino": 20.0}),
    )
]  # fmt: skip


def test_claims_of_the_report_are_judged() -> None:
    nets = architectures.with_speeds(copy.deepcopy(NETS))
    assert architectures.claims(nets) == [
        '"fewer parameters than U-Net and SegNet": holds, 86 and 82 times fewer',
        '"better inference time than U-Net": does not hold, 33.3x in torch, 46.7x in ort, 0.9x in openvino',
        '"better inference time than SegNet": holds, 40.0x in torch, 44.4x in ort, 50.0x in openvino',
        '"up to 18 times faster than SegNet": more than that here, up to 50.0x as trained, 75.0x in deploy form',
    ]
