"""One training step: forward pass, losses, backward pass, optimizer, average of the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..artifacts import Metadata
from ..model import ENet, Segmenter
from .averaging import WeightAverage
from .captured import CapturedGradients, Variant
from .distributed import distributed, world_size
from .objective import Objective
from .schedule import Schedule


class TrainingStep:
    """A network, its losses, its optimizer and its average; called with a batch, it does one step.

    Args:
        net: the network to train.
        teacher: the network whose output is learnt too, on `device`; None for none.
        schedule: says what each step does. It may be replaced between steps.
        metadata: its mean and std normalise the images.
        class_weights: (C,) float32, on `device`.
        compiled: use `torch.compile`.
        captured: on one GPU, and if not compiled, use CUDA graphs.

    Attributes:
        done: number of steps so far.
        model: the network with its losses, wrapped for several processes.
        compute_gradients: `forward_backward`, or on one GPU its CUDA graphs.
    """

    def __init__(
        self,
        net: ENet,
        teacher: Segmenter | None,
        schedule: Schedule,
        metadata: Metadata,
        class_weights: Tensor,
        device: torch.device,
        compiled: bool = False,
        captured: bool = True,
    ) -> None:
        self.schedule, self.class_weights, self.device, self.done = schedule, class_weights, device, 0
        recipe, world = schedule.recipe, world_size()
        self.teacher = teacher
        self.net = net.to(device)
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = WeightAverage(self.net, recipe.ema) if recipe.ema else None
        if world > 1 and device.type == "cuda":
            self.net = nn.SyncBatchNorm.convert_sync_batchnorm(self.net)  # type: ignore[no-untyped-call]
        self.segmenter = Segmenter(self.net, metadata.mean, metadata.std).to(device)
        self.objective = Objective(self.net, recipe, metadata.classes.void).to(device)
        self.optimizer = self.objective.configure_optimizer()
        self.model = self.objective if world == 1 else distributed(self.objective)
        if compiled:
            self.model.compile(dynamic=False)
        self.captured = captured and device.type == "cuda" and world == 1 and not compiled
        self.compute_gradients: Callable[[Tensor, Tensor, Variant], Tensor] = self.forward_backward
        if self.captured:
            self.compute_gradients = CapturedGradients(self.forward_backward, self.objective)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Do one step; returns the loss, a scalar on the device.

        Args:
            images: (N, H, W, 3) float32 BGR in [0, 255].
            labels: (N, H, W) int64.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(self.done)
        variant = self.schedule.in_bfloat16(self.done), self.schedule.with_lovasz(self.done)
        loss = self.compute_gradients(images, labels, variant)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.done)
        self.done += 1
        return loss

    def forward_backward(self, images: Tensor, labels: Tensor, variant: Variant) -> Tensor:
        """Compute the loss, returned detached, and the gradients, left in the parameters' `grad`.

        Args:
            variant: whether to compute in bfloat16, and whether to add the Lovasz-softmax loss.
        """
        bfloat16, lovasz = variant
        self.optimizer.zero_grad()
        # no cache of cast weights: a captured graph has to do the casts itself
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=not self.captured):
            with torch.no_grad():
                teacher = None if self.teacher is None else self.teacher.logits(images)
            x = self.segmenter.normalise(images)
            loss: Tensor = self.model(x, labels, self.class_weights, teacher, lovasz)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def largest(self, images: Tensor, labels: Tensor) -> None:
        """Do the step that takes most memory for this batch: every loss, float32. It spoils the network."""
        self.done = self.schedule.total_steps  # every loss is added from here on
        recipe = dataclasses.replace(self.schedule.recipe, amp=False)
        self.schedule = dataclasses.replace(self.schedule, recipe=recipe)
        self.compute_gradients = self.forward_backward  # a graph for each size would hold its memory
        self(images, labels)

    def averaged(self) -> ENet:
        """The network that is evaluated and saved, without a prior correction."""
        return self.net if self.average is None else self.average.net
