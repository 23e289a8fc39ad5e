"""Steps that run out of memory name the batch that fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import assert_refused, enet_train

from enet_deploy.commands import train as train_cli
from enet_deploy.training import memory
from enet_deploy.training.objective import Objective


@pytest.fixture
def memory_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bool], None]:
    """Called with a number, lets training steps run out of memory whose batch is larger; on a GPU, or on the CPU."""
    forward = Objective.forward

    def limit(largest: int, gpu: bool) -> None:
        def limited(self: Any, x: torch.Tensor, *others: Any) -> Any:
            found = forward(self, x, *others)
            if len(x) > largest and gpu:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            if len(x) > largest:
                torch.empty(1 << 60, dtype=torch.uint8)
            return found

        monkeypatch.setattr(Objective, "forward", limited)

    return limit


@pytest.mark.parametrize(
    ("gpu", "largest", "advice"),
    [
        pytest.param(True, 3, "--batch 2 does\n", id="GPU"),
        pytest.param(False, 4, "--batch 4 does\n", id="CPU", marks=pytest.mark.slow),
        pytest.param(False, 0, "smaller --batch", id="nothing fits"),
    ],
)
def test_out_of_memory_names_the_batch_that_fits(
    scenes: Path,
    tmp_path: Path,
    memory_for: Callable[[int, bool], None],
    capsys: pytest.CaptureFixture[str],
    gpu: bool,
    largest: int,
    advice: str,
) -> None:
    memory_for(largest, gpu)
    code = enet_train(scenes, tmp_path, batch=8)
    assert_refused(code, capsys, "batch 8 of 32x32", "cpu", advice)
    if largest:
        assert enet_train(scenes, tmp_path, batch=largest - largest % 2, epochs=1) == 0  # the advice is good


def test_out_of_memory_in_a_later_epoch(
    finished: Path, scenes: Path, tmp_path: Path, memory_for: Callable[[int, bool], None], capsys: Any
) -> None:
    state = torch.load(finished / "checkpoint.pt", weights_only=True)
    state["epoch"], state["recipe"]["epochs"] = 2, 3  # as if it had been begun on a larger GPU
    torch.save(state, tmp_path / "checkpoint.pt")
    memory_for(2, True)
    code = train_cli.main([str(scenes), "--out", str(tmp_path), "--device", "cpu", "--resume"])
    assert_refused(code, capsys, "--batch 2 does in another --out", "--init", "best.safetensors")


GIB = 1 << 30


@pytest.mark.parametrize(
    ("told", "path", "files", "left"),
    [
        ("0::/", "", {"memory.max": GIB, "memory.current": 0}, GIB),
        ("0::/", "", {"memory.max": GIB, "memory.current": 2 * GIB}, 0),
        ("0::/a/b", "a", {"memory.max": GIB, "memory.current": GIB // 2, "memory.stat": "anon 1\ninactive_file 100"},
         GIB // 2 + 100),
        ("0::/host/of/docker", "", {"memory.max": GIB, "memory.current": 5}, GIB - 5),
        ("0::/", "", {"memory.max": "max", "memory.current": 5}, None),
        ("4:cpu:/x\n3:memory:/d/1", "memory/d/1", {"memory.limit_in_bytes": GIB, "memory.usage_in_bytes": 7}, GIB - 7),
        ("3:hugetlb,memory:/d/1", "memory", {"memory.limit_in_bytes": GIB, "memory.usage_in_bytes": 7}, GIB - 7),
        ("3:memory:/", "memory", {"memory.limit_in_bytes": 2**63 - 4096, "memory.usage_in_bytes": 7}, None),
        ("", "", {}, None),
        ("no colons", "", {"memory.max": "", "memory.current": ""}, None),
    ],
)  # fmt: skip
def test_limit_of_a_container_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, path: str, files: dict[str, object], left: int | None
) -> None:
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    (tmp_path / path).mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (tmp_path / path / name).write_text(f"{value}\n")
    read = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda file, **options: (
            {"/proc/self/cgroup": told, "/proc/meminfo": "MemAvailable: 99999999 kB\n"}.get(str(file))
            or read(file, **options)
        ),
    )
    assert memory.free_memory(torch.device("cpu")) == (99999999 << 10 if left is None else left)
