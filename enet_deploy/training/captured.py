"""Gradients as one CUDA graph: launching it takes microseconds, launching its thousand kernels takes milliseconds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Variant = tuple[bool, bool]  # in bfloat16, with the Lovasz-softmax loss
Replay = Callable[[], None]
Result = TypeVar("Result")
WARM_UPS = 3  # runs before the capture, as PyTorch's notes on CUDA graphs advise


class CapturedGradients:
    """A function that captures `compute` at the first call of each variant and image size, and then replays it.

    Args:
        compute: (images, labels, variant) -> loss, a detached scalar; leaves the gradients in the parameters' `grad`.
            Each call of a variant must do the same work on the GPU: the same shapes and kernels, and no value read on
            the host.
        module: has the parameters that get gradients, and the buffers that `compute` may change.
        record: takes a function, runs it once, and returns a function that repeats this run, and the result, which
            each repetition overwrites. None for CUDA graphs.
    """

    def __init__(
        self,
        compute: Callable[[Tensor, Tensor, Variant], Tensor],
        module: nn.Module,
        record: Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]] | None = None,
    ) -> None:
        self.compute, self.module, self.record = compute, module, record or CudaRecorder()
        self.parameters = list(module.parameters())
        self.inputs: dict[torch.Size, tuple[Tensor, Tensor]] = {}
        self.recorded: dict[tuple[torch.Size, Variant], tuple[Replay, Tensor, Sequence[Tensor | None]]] = {}

    def __call__(self, images: Tensor, labels: Tensor, variant: Variant) -> Tensor:
        """Return the loss of a batch. Its gradients are in the parameters' `grad` until the next call.

        While a variant is captured, in its first call, no other thread may use the GPU.
        """
        with torch.cuda.device(images.device) if images.is_cuda else contextlib.nullcontext():
            return self._replayed(images, labels, variant)

    def _replayed(self, images: Tensor, labels: Tensor, variant: Variant) -> Tensor:
        if images.shape not in self.inputs:
            self.inputs[images.shape] = torch.empty_like(images), torch.empty_like(labels)
        held = self.inputs[images.shape]
        held[0].copy_(images)
        held[1].copy_(labels)
        key = images.shape, variant
        if key not in self.recorded:
            self.recorded[key] = self._capture(variant, *held)
        replay, loss, gradients = self.recorded[key]
        replay()
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss.clone()

    def _capture(
        self, variant: Variant, images: Tensor, labels: Tensor
    ) -> tuple[Replay, Tensor, Sequence[Tensor | None]]:
        # the runs before the first replay must not change BatchNorm's statistics and the random numbers
        buffers = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        random = torch.cuda.get_rng_state(images.device) if images.is_cuda else torch.get_rng_state()
        replay, loss = self.record(lambda: self.compute(images, labels, variant))
        gradients = [parameter.grad for parameter in self.parameters]
        for buffer, before in buffers:
            buffer.copy_(before)
        if images.is_cuda:
            torch.cuda.set_rng_state(random, images.device)
        else:
            torch.set_rng_state(random)
        return replay, loss, gradients


class CudaRecorder:
    """Runs a function and captures it as a CUDA graph. The graphs share a memory pool, as only one runs at a time."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, work: Callable[[], Result]) -> tuple[Replay, Result]:
        """Return a function that runs `work` again on the same memory, and the result, which it then overwrites."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.empty_cache()  # the graph has memory of its own
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            result = work()
        self.pool = graph.pool()
        return graph.replay, result
