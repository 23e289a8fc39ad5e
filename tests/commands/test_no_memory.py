"""What every command shares: how it ends when there is too little memory."""

from __future__ import annotations

import argparse

import cv2
import numpy as np
import pytest
from helpers import one_line

from enet_deploy.commands import cli
from enet_deploy.errors import BackendError, is_out_of_memory

NO_MEMORY = [
    MemoryError(),
    MemoryError("std::bad_alloc"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("can't start new thread"),
    cv2.error("OpenCV(4.13) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 99 bytes"),
    ImportError("libx.so: failed to map segment from shared object"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=repr)
def test_too_little_memory_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def command(_: argparse.Namespace) -> None:
        raise error

    assert cli.run(cli.Parser(prog="enet-test"), command, []) == 2
    assert "too little memory" in one_line(capsys)


def test_real_array_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(cli.Parser(prog="enet-test"), lambda _: np.empty(1 << 60, np.uint8).fill(1), []) == 2
    assert "too little memory" in one_line(capsys)


def test_other_errors_stay_what_they_are() -> None:
    for error in (ValueError("x"), RuntimeError("kernel failed"), BackendError("out of memory")):
        assert not is_out_of_memory(error)

    def bug(_: argparse.Namespace) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(cli.Parser(prog="enet-test"), bug, [])
