"""The processes that train together, started by `torchrun`; a process that is alone is number 0 of 1."""

from __future__ import annotations

import os
import warnings
from typing import TypeVar

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def processes_here() -> int:
    """The number of processes on this computer; of all if torchrun does not say it."""
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    return min(int(told), world_size()) if told.isdecimal() else world_size()


def of_first(value: T) -> T:
    """Return the value of the first process, in all processes."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def distributed(module: nn.Module) -> nn.Module:
    """Wrap a module so that the processes share its gradients.

    On a CPU each process keeps its own BatchNorm statistics. Losses are means over each process's share of a batch.
    """
    with warnings.catch_warnings():
        # torch 2.13 announces another name, which 2.9 does not know
        warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
        return DistributedDataParallel(module, broadcast_buffers=False)
