"""What every backend promises, as short checks. They are installed, unlike the project's tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from enet_deploy.errors import BackendError, EnetError, InputError, RequirementError
from enet_deploy.images import UInt8Array
from enet_deploy.runners import Runner

EQUAL = 0.9999  # least share of fp32 labels equal to PyTorch's: another order of sums changes a few
KEPT = 64e6  # bytes that closed runners may leave on the device, in the libraries' own pools


class NotHere(EnetError):
    """Something is not available on this machine. This is not a failure."""


@dataclass(frozen=True)
class ContractCase:
    """A backend to check.

    Attributes:
        open: opens another runner of it.
        runner: an open runner.
        frames: (N, H, W, 3) uint8 BGR, at least two.
        expected: (N, H, W) uint8, PyTorch's labels.
    """

    open: Callable[[], Runner]
    runner: Runner
    frames: UInt8Array
    expected: UInt8Array


def must(holds: bool, what: str) -> None:
    """Raise RequirementError(what) unless it holds."""
    if not holds:
        raise RequirementError(what)


def _agrees(labels: UInt8Array, expected: UInt8Array) -> str:
    must(labels.shape == expected.shape and labels.dtype == np.uint8, f"labels {labels.dtype} {labels.shape}")
    share = float((labels == expected).mean())
    must(share >= EQUAL, f"{share:.4%} of the labels are as expected, not at least {EQUAL:.2%}")
    return f"{share:.5%} equal"


def _check_labels(case: ContractCase) -> str:
    return _agrees(case.runner.infer(case.frames[:1]), case.expected[:1])


def _check_repeats(case: ContractCase) -> str:
    first = case.runner.infer(case.frames[:1])
    for _ in range(8):  # the third call and later ones may run as a CUDA graph
        must(np.array_equal(case.runner.infer(case.frames[:1]), first), "another answer to the same frame")
        case.runner.infer(case.frames[1:2])
    return "9 times the same"


def _check_batch(case: ContractCase) -> str:
    return _agrees(case.runner.infer(case.frames), case.expected)


def _check_out(case: ContractCase) -> str:
    out = np.full(case.expected[:2].shape, 255, np.uint8)
    must(case.runner.infer(case.frames[:2], out=out) is out, "infer did not return out")
    return _agrees(out, case.expected[:2])


def _check_ownership(case: ContractCase) -> str:
    first = case.runner.infer(case.frames[:1])
    before = first.copy()
    case.runner.infer(case.frames[1:2])
    must(np.array_equal(first, before), "a later call changed the labels of an earlier one")
    return "kept"


def _check_refusals(case: ContractCase) -> str:
    height, width = case.runner.spec.size
    larger = np.zeros((1, height + 8, width, 3), np.uint8)
    wrong: tuple[Any, ...] = (case.frames.astype(np.float32), case.frames[0], larger)
    for frames in wrong:
        try:
            case.runner.infer(frames)
        except InputError:
            continue
        raise RequirementError(f"{frames.dtype} of shape {frames.shape} was not refused")
    return f"{len(wrong)} refused"


def _check_stream(case: ContractCase) -> str:
    found = list(case.runner.stream(frame[None] for frame in case.frames))
    return _agrees(np.concatenate(found), case.expected)


def _check_life(case: ContractCase) -> str:
    runner = case.open()
    for _ in range(2):
        with runner:
            _agrees(runner.infer(case.frames[:1]), case.expected[:1])
        runner.close()
    try:
        runner.infer(case.frames[:1])
    except BackendError:
        return "closed twice, opened again, closed"
    raise RequirementError("a closed runner answered")


def _check_zero_copy(case: ContractCase) -> str:
    if case.runner.backend != "trt":
        raise NotHere(f"{case.runner.backend} takes no arrays of the device")
    frames, out = on_device(case.frames[:2])
    must(case.runner.infer(frames, out=out) is out, "infer did not return out")
    return _agrees(out.cpu().numpy(), case.expected[:2])


def _check_memory(case: ContractCase) -> str:
    import torch

    def use() -> int:
        with case.open() as runner:
            runner.infer(case.frames[:1])
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info()[0])

    _require_cuda()
    use()
    before = use()
    left = before - [use() for _ in range(5)][-1]
    must(left < KEPT, f"5 closed runners keep {left / 1e6:.0f} MB of the device")
    return f"{max(left, 0) / 1e6:.0f} MB left behind"


CHECKS: dict[str, Callable[[ContractCase], str]] = {
    "labels are PyTorch's": _check_labels,
    "the same frame again": _check_repeats,
    "several frames in a call": _check_batch,
    "out= is filled": _check_out,
    "labels are the caller's": _check_ownership,
    "wrong frames are refused": _check_refusals,
    "stream() in order": _check_stream,
    "close, and open again": _check_life,
    "arrays of the device": _check_zero_copy,
    "memory comes back": _check_memory,
}


def on_device(frames: UInt8Array) -> tuple[Any, Any]:
    """Copy frames to the device and allocate their labels there, as PyTorch tensors; NotHere without a device."""
    import torch

    _require_cuda()
    return torch.from_numpy(frames).cuda(), torch.empty(frames.shape[:3], dtype=torch.uint8, device="cuda")


def _require_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise NotHere("PyTorch sees no CUDA device")
