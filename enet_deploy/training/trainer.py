"""The training loop.

Runs from a bare checkout with torch, numpy, opencv and safetensors. One process, or several under `torchrun` (with
OMP_NUM_THREADS=1 also the faster way on a CPU). A run can be resumed on another device.
A run's folder holds `checkpoint.pt` (everything to resume from), `best.safetensors` (highest val mIoU),
`last.safetensors` and `log.csv`.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import ctypes
import dataclasses
import hashlib
import io
import itertools
import logging
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import update_bn

from .. import console
from ..artifacts import Metadata, check_size
from ..data import DataSet, read_ahead
from ..environment import commit
from ..errors import ArtifactError, DataError, EnetError, InputError
from ..files import atomic_write, sha256
from ..images import UInt8Array, resize_image, resize_labels
from ..metrics import ConfusionMatrix
from ..model import ENet, Segmenter
from ..weights import save_weights
from .captured import CapturedGradients, Variant
from .crops import DROPOUT, ESTIMATE, ORDER, Crops, stream
from .objective import Objective
from .prior import ALPHAS, KEY, corrected, load_uncorrected, record
from .recipe import Recipe, Slopes

T = TypeVar("T")

ESTIMATE_BATCHES = 64  # from which BatchNorm's statistics of averaged weights are estimated
CHECKPOINT = "checkpoint.pt"
CHECKPOINT_SECONDS = 30.0  # at least, between checkpoints at the end of epochs that are not evaluated

PACE = 5  # epochs, the last, by which a run of so many minutes judges its speed

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h

CLASS_IOU = "val_iou_"  # in front of a class's name: its column in the history

log = logging.getLogger(__name__)


def segmented(
    net: nn.Module, data: DataSet, metadata: Metadata, indices: Iterable[int]
) -> Iterator[tuple[UInt8Array, UInt8Array, UInt8Array]]:
    """Of these images the frame, (H, W, 3) BGR as the network sees it, and its labels and what the network makes of it,
    (h, w) of the label map's own size; all uint8."""
    device = next(net.parameters()).device
    segmenter = Segmenter(net, metadata.mean, metadata.std).to(device).eval()

    def read(index: int) -> tuple[UInt8Array, UInt8Array]:
        image, labels = data[index]
        return resize_image(image, metadata.size), labels

    pairs = read_ahead(read, indices)
    batch = 1 if device.type == "cpu" else 16
    while chunk := list(itertools.islice(pairs, batch)):
        with torch.inference_mode(), _untuned():
            found = segmenter(torch.from_numpy(np.stack([frame for frame, _ in chunk])).to(device)).cpu().numpy()
        for predicted, (frame, labels) in zip(found, chunk, strict=True):
            yield frame, labels, resize_labels(predicted, (labels.shape[0], labels.shape[1]))


@contextlib.contextmanager
def _untuned() -> Iterator[None]:
    """Let cuDNN take kernels without trying them: the last batch of an evaluation has another size than the others."""
    tuned, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = tuned


def confusion(net: nn.Module, data: DataSet, metadata: Metadata) -> ConfusionMatrix:
    """Of a network on a split, at the label maps' own size."""
    counts = ConfusionMatrix(data.classes)
    for _, labels, predicted in segmented(net, data, metadata, range(len(data))):
        counts.update(labels, predicted)
    return counts


class Trainer:
    """One run in one folder.

    Args:
        train, val: what to learn from, and what to score on as it goes.
        split: says in the metadata which images `train` has.
        out: the run's folder.
        init: weights to start from instead of random ones; where they know other classes, all but their last layer.
        teacher: weights of a network, usually a wider one, whose output is learnt beside the labels.
        compiled: through `torch.compile`.
        state: of a run to `resume`, so that one that cannot be is refused before the images are read.
    """

    def __init__(
        self,
        train: DataSet,
        val: DataSet,
        split: str,
        out: str | Path,
        recipe: Recipe,
        device: torch.device,
        init: str | Path | None = None,
        teacher: str | Path | None = None,
        compiled: bool = False,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.recipe, self.device, self.out = recipe, device, Path(out)
        self.train, self.val, self.split = train, val, split
        self.val_was_trained_on = not {*train.pairs}.isdisjoint(val.pairs)
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self._check()
        if teacher is not None and not recipe.distill:
            raise InputError("distill 0 with a teacher, expected more; leave out --teacher, or --distill")
        torch.manual_seed(recipe.seed)
        net, start = (ENet(len(train.classes), recipe.width, recipe.slopes), None) if init is None else self._init(init)
        if net.width != recipe.width:
            raise InputError(f"width {recipe.width}, but {init} has width {net.width}; pass --width {net.width}")
        if recipe.slopes == "channel" and net.slopes == "layer":
            raise InputError(f"slopes channel, but {init} has one slope per layer; pass --slopes layer")
        if recipe.slopes != net.slopes:
            log.info(f"{init} has a PReLU slope per channel: each layer starts from their mean")
            net.share_slopes()
        details: dict[str, Any] = {} if start is None else {"init": start.details}
        self.teacher = None if teacher is None else self._teacher(teacher, details)
        names = "\n".join(f"{image.parent.name}/{image.name}" for data in (train, val) for image, _ in data.pairs)
        self.images = f"{len(train)} ({hashlib.sha256(os.fsencode(names)).hexdigest()[:8]})"
        meaning = sorted(train.values_in_use().items())
        self.label_values = hashlib.sha256(repr(meaning).encode()).hexdigest()[:8]
        self.taught_by = details.get("teacher", {}).get("sha256")
        if state is not None:
            self._require_same_run(state)
        self._read_data()
        # the first layers of trained weights are used to their own normalisation
        known = self.crops.statistics if start is None else start
        self._build(net, compiled)
        self._adopt(Metadata(train.classes, known.mean, known.std, recipe.size, details=details))
        self.total_steps = recipe.epochs * (len(train) // recipe.batch)
        self.optimizer = self._optimizer()
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.commit = commit()
        self.epoch = 0
        self.best = -1.0
        self.history: list[dict[str, float]] = []
        self.saved, self.saved_epoch = time.monotonic(), 0
        self.ended_early = False
        if state is not None:
            self.resume(state)

    def _read_data(self) -> None:
        """The training images, what follows from them, and a look at val."""
        train, val, recipe = self.train, self.val, self.recipe
        self.void = train.classes.void
        self.crops = Crops(
            train, recipe, self.device, self.void, lambda pairs: self._progress(pairs, "reading", len(train))
        )
        shares = torch.tensor(self.crops.statistics.shares)
        self.weight = (1 / torch.log(recipe.class_weight_c + shares)).to(self.device)
        # a bad file is found now, not at the end of the first night
        if not sum(int((labels != self.void).sum()) for _, labels in read_ahead(val.__getitem__, range(len(val)))):
            raise DataError("every val pixel is void, expected at least one class in the label maps")

    def _build(self, net: ENet, compiled: bool) -> None:
        """What is trained (`model`), the network in it (`net`), and its average (`ema`)."""
        self.net = net.to(self.device)
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = copy.deepcopy(self.net).requires_grad_(False) if self.recipe.ema else None
        if self.world > 1 and self.device.type == "cuda":
            self.net = nn.SyncBatchNorm.convert_sync_batchnorm(self.net)  # type: ignore[no-untyped-call]
        self.objective = Objective(self.net, self.recipe, self.void).to(self.device)
        self.parameters: list[Tensor] = list(self.net.parameters())
        self.averages: list[Tensor] = [] if self.ema is None else list(self.ema.parameters())
        self.model: nn.Module = self.objective
        if self.world > 1:
            # statistics of BatchNorm stay each process's own on a CPU; the losses are means over each process's share
            with warnings.catch_warnings():
                # torch 2.13 announces another name, which 2.9 does not know
                warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
                self.model = DistributedDataParallel(self.objective, broadcast_buffers=False)
        if compiled:
            self.model.compile(dynamic=False)
        self.captured = self.device.type == "cuda" and self.world == 1 and not compiled
        self.gradients: Callable[[Tensor, Tensor, Variant], Tensor] = self._gradients
        if self.captured:
            self.gradients = CapturedGradients(self._gradients, self.objective)

    def _init(self, path: str | Path) -> tuple[ENet, Metadata]:
        """Weights to start from, with a new last layer where they know other classes."""
        net, metadata = load_uncorrected(path)
        if metadata.classes.names != self.train.classes.names:
            log.info(
                f"{path} knows other classes ({', '.join(metadata.classes.names)}): all is taken but the last layer, "
                "which starts anew"
            )
            net.renew_classes(len(self.train.classes))
        return net, dataclasses.replace(metadata, details={**metadata.details, "sha256": sha256(path)})

    def _teacher(self, path: str | Path, details: dict[str, Any]) -> Segmenter:
        net, metadata = load_uncorrected(path)
        names = self.train.classes.names
        if metadata.classes.names != names:
            raise ArtifactError(
                f"{path} knows the classes {', '.join(metadata.classes.names)}; the data set has {', '.join(names)}: "
                "take a teacher of these classes, or none"
            )
        details["teacher"] = {**metadata.details, "sha256": sha256(path), "width": net.width}
        teacher = Segmenter(net, metadata.mean, metadata.std).to(self.device).eval()
        return teacher.to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload,no-any-return]

    def _adopt(self, metadata: Metadata) -> None:
        """Take the normalisation, and what follows from it, of `metadata`."""
        self.metadata = metadata
        self.segmenter = Segmenter(self.net, metadata.mean, metadata.std).to(self.device)
        self.crops.fill = metadata.mean

    def _check(self) -> None:
        recipe = self.recipe
        check_size(recipe.size)
        check_size(recipe.crop)
        if recipe.final_from < 1:
            check_size(recipe.final_crop)
        if recipe.optimizer not in ("adam", "adamw"):
            raise InputError(f"optimizer '{recipe.optimizer}', expected adam or adamw")
        if recipe.slopes not in get_args(Slopes):
            raise InputError(f"slopes '{recipe.slopes}', expected channel or layer")
        if recipe.seed >= 2**32:
            raise InputError(f"seed {recipe.seed}, expected below 2**32")
        if recipe.width < 1:
            raise InputError(f"width {recipe.width}, expected 1 or more")
        not_negative = "seed minutes lr weight_decay warmup power prior_correction aux lovasz distill noise patience"
        for name in not_negative.split():
            if not 0 <= getattr(recipe, name) < math.inf:  # nan is not
                raise InputError(f"{name} {getattr(recipe, name)}, expected 0 or more")
        for name in ("lovasz_from", "final_from"):
            if not 0 <= getattr(recipe, name) <= 1:
                raise InputError(f"{name} {getattr(recipe, name)}, expected a share from 0 to 1")
        for name in ("ema", "color", "tint"):
            if not 0 <= getattr(recipe, name) < 1:
                raise InputError(f"{name} {getattr(recipe, name)}, expected at least 0 (none) and below 1")
        if not 1 < recipe.class_weight_c < math.inf:
            raise InputError(
                f"class_weight_c {recipe.class_weight_c}, expected above 1: ln(c + share) has to be positive"
            )
        if not 0 < recipe.scale[0] <= recipe.scale[1] < math.inf:
            raise InputError(f"scale {recipe.scale}, expected two positive numbers, smallest first")
        if recipe.patience and self.val_was_trained_on:
            raise InputError(
                f"patience {recipe.patience}, but val is trained on, whose mIoU then rises on and on; expected 0, or "
                "--hold-out in place of --with-val"
            )
        if recipe.batch % self.world:
            raise InputError(f"batch {recipe.batch} over {self.world} processes, expected a multiple of {self.world}")
        if len(self.train) < recipe.batch:
            raise InputError(
                f"batch {recipe.batch} for {len(self.train)} training images, expected no more than there are; "
                f"pass --batch {len(self.train)} or less"
            )

    def _optimizer(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        if recipe.optimizer == "adam":
            return torch.optim.Adam(
                self.objective.parameters(), recipe.lr, weight_decay=recipe.weight_decay, fused=True
            )
        kernels = [p for p in self.objective.parameters() if p.ndim > 1]
        others = [p for p in self.objective.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, recipe.lr, weight_decay=recipe.weight_decay, fused=True)

    @property
    def _warmup(self) -> int:
        """Steps of it; a short run has to learn too."""
        recipe = self.recipe
        return recipe.warmup if recipe.minutes else min(recipe.warmup, self.total_steps // 10)

    def _rate(self, step: int) -> float:
        warmup = self._warmup
        if step < warmup:
            return (step + 1) / warmup
        return float((1 - min(1.0, (step - warmup) / max(1, self.total_steps - warmup))) ** self.recipe.power)

    @property
    def best_epoch(self) -> int:
        """The first with the highest val mIoU; 0 before any was evaluated."""
        scored = [row for row in self.history if "val_miou" in row]
        return int(max(scored, key=lambda row: row["val_miou"])["epoch"]) if scored else 0

    @property
    def out_of_patience(self) -> bool:
        """Whether the recipe's patience is at its end. It follows from the history, so it does after `resume` too."""
        since = sum("val_miou" in row for row in self.history if row["epoch"] > self.best_epoch)
        return 0 < self.recipe.patience <= since

    @property
    def over(self) -> bool:
        """Whether there is nothing left to train."""
        return self.epoch >= self.recipe.epochs or self.out_of_patience

    def run(self, watch: Callable[[], None] = lambda: None) -> None:
        """Train to the last epoch, or as long as the recipe's patience lasts.

        After an interruption or a crash, `resume` and `run` give the weights of an undisturbed run: to the bit on a CPU
        with the same number of threads, and as far as its kernels repeat themselves on a GPU.

        Args:
            watch: called by the first process at the start, whenever the state was saved, and where it ends early.

        Raises EnetError where the loss or a weight is no longer finite, and where a step does not fit into the memory;
        that one names the largest halved batch that does.
        """
        if self.rank == 0:
            steps, classes = len(self.train) // self.recipe.batch, self.metadata.classes.names
            log.info(
                f"{len(self.train)} training images ({self.split}) and {len(self.val)} to score on, {self.device}, "
                f"{console.counted(steps, 'step')} an epoch; {len(classes)} classes: {', '.join(classes)}"
            )
        finished = self.over
        if self.epoch == 0:
            self._save_checkpoint()  # so that the first epoch can be interrupted too
        if self.rank == 0:
            watch()
        try:
            self._train_epochs(watch)
        except (KeyboardInterrupt, EnetError):
            self.ended_early = True
            if self.rank == 0:
                watch()
            raise
        if self.rank == 0:
            if self.out_of_patience and self.epoch < self.recipe.epochs:
                log.info(
                    f"stopped after epoch {self.epoch} of {self.recipe.epochs}: {self.recipe.patience} evaluations "
                    f"without a better val mIoU than {self.best:.4f} of epoch {self.best_epoch}"
                )
            self._save_weights("last.safetensors", self.history[-1])
            if not finished and not self.val_was_trained_on:
                found = "  ".join(f"{alpha:g}: {miou:.4f}" for alpha, miou in self.sweep().items())
                log.info(f"val mIoU of the last weights by --prior-correction{self._doubt()}: {found}")
            log.info(f"done: {self.out / 'last.safetensors'}; best.safetensors had the highest mIoU, {self.best:.4f}")

    def _train_epochs(self, watch: Callable[[], None]) -> None:
        while not self.over:
            started, rate = time.perf_counter(), float(self.optimizer.param_groups[0]["lr"])
            loss = self._train_epoch()
            self.epoch += 1
            seconds = round(time.perf_counter() - started, 2)
            row: dict[str, float] = {"epoch": self.epoch, "loss": loss, "lr": rate, "seconds": seconds}
            self.history.append(row)
            if self.recipe.minutes:
                self._set_epochs()
            if self._evaluation_is_due():
                started = time.perf_counter()
                row |= self._evaluate()
                row["val_seconds"] = round(time.perf_counter() - started, 2)
            due = "val_miou" in row or time.monotonic() - self.saved >= CHECKPOINT_SECONDS
            if due:
                self._save_checkpoint()
            if self.rank == 0:
                left_out = [name for name in row if name.startswith(CLASS_IOU) or name.endswith("_void_counts")]
                figures = "  ".join(f"{name} {row[name]:.5g}" for name in row if name not in ("epoch", *left_out))
                log.info(f"epoch {self.epoch}/{self.recipe.epochs}  {figures}")
                if due:
                    watch()

    def _evaluation_is_due(self) -> bool:
        timed = self.recipe.minutes > 0 and self.epoch == 1  # how long one takes has to be known
        return timed or self.epoch % self.recipe.eval_every == 0 or self.epoch == self.recipe.epochs

    def _set_epochs(self) -> None:
        """Set the recipe's epochs to what its minutes allow, by the seconds that epochs and evaluations took.

        The first epoch is no measure: libraries choose and compile their kernels in it. So the second is always begun
        while there is time, and the warm-up of a run that turns out short ends where the length is first known.
        """
        spent = sum(row["seconds"] + row.get("val_seconds", 0.0) for row in self.history)
        evaluation = min((row["val_seconds"] for row in self.history if "val_seconds" in row), default=0.0)
        left = 60 * self.recipe.minutes - spent - evaluation  # of the last epoch
        epochs = self.epoch
        if left > 0 and self.epoch == 1:
            epochs = max(2, self.recipe.epochs)
        elif left > 0:
            seconds = statistics.median(row["seconds"] for row in self.history[1:][-PACE:])
            epochs += int(left / max(1e-3, seconds + evaluation / self.recipe.eval_every))
        self._lay_out(epochs)

    def _lay_out(self, epochs: int) -> None:
        """Take the number of epochs of the first process, and what follows from it."""
        agreed = [epochs]
        if self.world > 1:
            dist.broadcast_object_list(agreed)
        steps = len(self.train) // self.recipe.batch
        self.total_steps = agreed[0] * steps
        warmup = self.recipe.warmup
        if self.epoch == 2:
            warmup = min(warmup, max(self.total_steps // 10, self.epoch * steps))
        self.recipe = dataclasses.replace(self.recipe, epochs=agreed[0], warmup=warmup)
        for group in self.optimizer.param_groups:  # the schedule has set the next step's by the old plan
            group["lr"] = group["initial_lr"] * self._rate(self.schedule.last_epoch)

    def _train_epoch(self) -> float:
        try:
            losses = torch.stack(list(self.steps()))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            log.info(" ".join(str(error).split())[:200])
            losses = None
        if losses is None:  # out of the handler, whose traceback holds on to all that fills the memory
            raise EnetError(self._batch_that_fits())
        if self.world > 1:
            dist.all_reduce(losses)
        values = (losses / self.world).tolist()  # once an epoch, as it waits for the GPU
        for step, value in enumerate(values, 1):
            if not math.isfinite(value):
                raise EnetError(
                    f"the loss is {value} in step {step} of epoch {self.epoch + 1}; lower --lr. The last good state, "
                    f"after epoch {self.saved_epoch}, is in {self.out / CHECKPOINT}"
                )
        return statistics.fmean(values)

    def _batch_that_fits(self) -> str:
        """What to say of a step that ran out of memory. Halved batches are tried, and spoil the network."""
        size, (height, width) = self.recipe.batch, self.crops.recipe.crop
        said = f"batch {size} of {height}x{width} crops does not fit into the memory of {self.device}"
        if self.world > 1:  # the others wait for another step of this process than the one that would be tried
            return f"{said}; pass a smaller --batch"
        log.info(f"{said}; trying smaller ones")
        # the run has its batch, so another one needs another run
        start = f" in another --out, where --init {self.out / 'best.safetensors'} goes on from here"
        again = start if self.best_epoch else ""
        while size := size // 2:
            if self._fits(size):
                return f"{said}; --batch {size} does{again}"
        return f"{said}, nor did one of its halves; pass a much smaller --batch, a smaller --crop or another --device"

    def _fits(self, size: int) -> bool:
        """Whether a step with so many images does."""
        self.schedule.last_epoch = self.total_steps  # from here on, every loss is in
        self.gradients = self._gradients  # a graph would be captured for each size, and hold its memory
        # what takes most: float32, and the larger crops
        crop = max(self.recipe.crop, self.recipe.final_crop if self.recipe.final_from < 1 else (0, 0))
        self.recipe = dataclasses.replace(self.recipe, amp=False)
        self.crops.recipe = dataclasses.replace(self.recipe, crop=crop)
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            self._step(*next(self.crops.batches([self._batches()[0][:size]], self.epoch)))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    def steps(self) -> Iterator[Tensor]:
        """Train through the epoch `self.epoch`; gives the loss of each step, still on the device."""
        # dropout's stream depends on the epoch, not on what ran before: resuming needs no generator state
        torch.manual_seed(int(stream(self.recipe.seed, self.epoch, DROPOUT, self.rank).integers(1 << 62)))
        self.model.train()
        self.crops.recipe = dataclasses.replace(self.recipe, crop=self._crop())
        batches = self._batches()
        title = f"epoch {self.epoch + 1}/{self.recipe.epochs}"
        for images, labels in self._progress(self.crops.batches(batches, self.epoch), title, len(batches)):
            yield self._step(images, labels)

    def _crop(self) -> tuple[int, int]:
        late = self.schedule.last_epoch >= self.recipe.final_from * self.total_steps
        return self.recipe.final_crop if late else self.recipe.crop

    def _batches(self) -> list[list[int]]:
        """This epoch's image numbers for this process: each image once, the few that fill no batch left out."""
        order = stream(self.recipe.seed, self.epoch, ORDER).permutation(len(self.train)).tolist()
        size = self.recipe.batch
        whole = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
        return [batch[self.rank :: self.world] for batch in whole]

    def _progress(self, items: Iterable[T], title: str, total: int | None = None) -> Iterable[T]:
        return items if self.rank else console.progress(items, title, total)

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        half = self.recipe.amp and self.schedule.last_epoch >= self._warmup
        loss = self.gradients(images, labels, (half, self._with_lovasz()))
        self.optimizer.step()
        self.schedule.step()
        if self.ema is not None:
            self._average()
        return loss

    def _gradients(self, images: Tensor, labels: Tensor, variant: Variant) -> Tensor:
        """The loss, detached; its gradients are in the parameters' `grad`.

        Args:
            variant: whether it is computed in bfloat16, and whether Lovasz-softmax is in.
        """
        half, lovasz = variant
        self.optimizer.zero_grad()
        # a captured graph has to hold the casts of weights, not a cache
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half, cache_enabled=not self.captured):
            with torch.no_grad():
                teacher = None if self.teacher is None else self.teacher.logits(images)
            x = self.segmenter.normalise(images)
            loss: Tensor = self.model(x, labels, self.weight, teacher, lovasz)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averaged weights towards the network's.

        Its decay grows with the steps: the first weights are soon forgotten. `AveragedModel` does the same, but waits
        for a GPU several times a step.
        """
        done = self.schedule.last_epoch - 1
        decay = min(self.recipe.ema, (1 + done) / (10 + done)) if done else 0.0
        torch._foreach_lerp_(self.averages, self.parameters, 1 - decay)

    def _with_lovasz(self) -> bool:
        """Whether the next step minimises the Lovasz-softmax loss too."""
        return self.recipe.lovasz > 0 and self.schedule.last_epoch >= self.recipe.lovasz_from * self.total_steps

    def _evaluate(self) -> dict[str, float]:
        """Scores on val, by the first process for all: BatchNorm's statistics are each process's own on a CPU."""
        figures = [self._figures() if self.rank == 0 else {}]
        if self.world > 1:
            dist.broadcast_object_list(figures)
        if figures[0]["val_miou"] > self.best:
            self.best = figures[0]["val_miou"]
            if self.rank == 0:
                self._save_weights("best.safetensors", {"epoch": self.epoch, **figures[0]})
        return figures[0]

    def _figures(self) -> dict[str, float]:
        if self.ema is not None:
            self._estimate_statistics(self.ema)
        found = confusion(self._corrected(), self.val, self.metadata)
        left_out, counted = found.scores(), found.scores(void_counts=True)
        return {
            "val_miou": left_out.miou,
            "val_pixel_accuracy": left_out.pixel_accuracy,
            "val_dice": left_out.dice,
            "val_class_average": left_out.class_average,
            "val_miou_void_counts": counted.miou,
            "val_pixel_accuracy_void_counts": counted.pixel_accuracy,
            "val_dice_void_counts": counted.dice,
            **{CLASS_IOU + name: iou for name, each in left_out.per_class.items() if (iou := each["iou"]) is not None},
        }

    def examples(self, count: int = 4) -> list[tuple[str, UInt8Array, UInt8Array, UInt8Array]]:
        """A few val images, evenly over the split: file name, and what `segmented` says with the evaluated weights."""
        indices = np.linspace(0, len(self.val) - 1, min(count, len(self.val)), dtype=int).tolist()
        found = segmented(self._corrected(), self.val, self.metadata, indices)
        return [(self.val.pairs[i][0].name, *arrays) for i, arrays in zip(indices, found, strict=True)]

    def _estimate_statistics(self, ema: ENet) -> None:
        """BatchNorm's statistics of the averaged weights, from crops of their own: no step ever used them.

        Izmailov et al.: "Averaging weights leads to wider optima and better generalization", 2018, section 3.2.
        """
        torch.manual_seed(int(stream(self.recipe.seed, self.epoch, ESTIMATE).integers(1 << 62)))
        batches = self.crops.batches(self._batches()[:ESTIMATE_BATCHES], self.epoch)
        update_bn((self.segmenter.normalise(images) for images, _ in batches), ema)

    def _averaged(self) -> ENet:
        return self.net if self.ema is None else self.ema

    def _corrected(self) -> ENet:
        """The network that is evaluated and saved: a copy."""
        return corrected(self._averaged(), self.weight, self.recipe.prior_correction)

    def _doubt(self) -> str:
        """What to say where the weights that the run began from have seen a split val, perhaps this one."""
        seen = [str(self.metadata.details.get(name, {}).get("split", "")) for name in ("init", "teacher")]
        return " (weights it began from were trained on a val)" if any("val" in split for split in seen) else ""

    def sweep(self) -> dict[float, float]:
        """Val mIoU of the averaged weights by strength of the prior correction: `ALPHAS` and the recipe's own."""
        nets = {
            alpha: corrected(self._averaged(), self.weight, alpha) for alpha in {*ALPHAS, self.recipe.prior_correction}
        }
        return {alpha: confusion(nets[alpha], self.val, self.metadata).scores().miou for alpha in sorted(nets)}

    def _save_weights(self, name: str, figures: dict[str, float]) -> None:
        net = self._corrected()
        self._require_finite(net)
        details = {
            **self.metadata.details,
            "recipe": dataclasses.asdict(self.recipe),
            "figures": {key: round(value, 5) for key, value in figures.items()},
            "split": self.split,
            "images": {"train": len(self.train), "val": len(self.val)},
            "commit": self.commit,
            "torch": torch.__version__,
        }
        if self.recipe.prior_correction:
            details[KEY] = record(self.weight, self.recipe.prior_correction)
        save_weights(self.out / name, net, dataclasses.replace(self.metadata, details=details))

    def _require_finite(self, module: nn.Module) -> None:
        if not all(tensor.isfinite().all() for tensor in module.state_dict().values()):
            raise EnetError(
                f"the weights are no longer finite in epoch {self.epoch}; lower --lr. The last good state, after epoch "
                f"{self.saved_epoch}, is in {self.out / CHECKPOINT}"
            )

    def _save_checkpoint(self) -> None:
        self._require_finite(self.objective)
        if self.rank == 0:
            state = {
                "recipe": dataclasses.asdict(self.recipe),
                "metadata": self.metadata.to_text(),
                "epoch": self.epoch,
                "best": self.best,
                "history": self.history,
                "weight": self.weight.cpu(),
                "images": self.images,
                "label_values": self.label_values,
                "processes": self.world,
                "net": self.objective.state_dict(),
                "ema": None if self.ema is None else self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
            }
            if self.history:
                self._write_log()  # first: behind a run's last checkpoint nobody would write it again
            content = io.BytesIO()  # written as bytes, a full disk is an OSError like everywhere else
            torch.save(state, content)
            with atomic_write(self.out / CHECKPOINT) as temporary:
                temporary.write_bytes(content.getvalue())
        self.saved, self.saved_epoch = time.monotonic(), self.epoch

    def resume(self, state: dict[str, Any]) -> None:
        """Continue from what `read_checkpoint` gave, on this trainer's device.

        Raises ArtifactError where the run was begun with other classes, names of images, values in label maps, teacher
        or number of processes.
        """
        metadata = self._require_same_run(state)
        with _whole_checkpoint(self.out):
            self._adopt(metadata)
            self.weight = state["weight"].to(self.device)
            self.epoch, self.best, self.history = state["epoch"], state["best"], state["history"]
            self.saved_epoch = self.epoch
            self.objective.load_state_dict(state["net"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])

    def _require_same_run(self, state: dict[str, Any]) -> Metadata:
        """The metadata of a checkpoint's weights. Raises ArtifactError where that run had other data than this one."""
        path = self.out / CHECKPOINT
        with _whole_checkpoint(self.out):
            metadata = Metadata.from_text(state["metadata"], path)
            for what, had, has in (
                ("classes", ", ".join(metadata.classes.names), ", ".join(self.train.classes.names)),
                ("training images", state["images"], self.images),
                ("values of classes in label maps, by hash", state["label_values"], self.label_values),
                ("processes", state["processes"], self.world),
                ("--teacher of sha256", metadata.details.get("teacher", {}).get("sha256"), self.taught_by),
            ):
                if had != has:
                    raise ArtifactError(
                        f"{path} was made with the {what} {had}, these are {has}; use the same, or another --out"
                    )
        return metadata

    def _write_log(self) -> None:
        columns = list(dict.fromkeys(name for row in self.history for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        with atomic_write(self.out / "log.csv") as temporary:
            temporary.write_text(text.getvalue())


@contextlib.contextmanager
def _whole_checkpoint(out: Path) -> Iterator[None]:
    """What fails in this block fails because the checkpoint is damaged."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{out / CHECKPOINT} is not a whole checkpoint ({error!r}); start again with another --out"
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory, of a GPU or of the machine; torch has an error of its own for the first."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if error.__context__ is not None and is_out_of_memory(error.__context__):
        return True  # the end of a capture fails too, with an error of its own
    # as PyTorch's allocator, oneDNN, and cuDNN and cuBLAS say it
    signs = ("can't allocate memory", "could not create a primitive", "ALLOC_FAILED")
    return any(sign in str(error) for sign in signs)


def keep_freed_memory() -> None:
    """Let this process keep what it frees, where its C library is glibc: training on a CPU is then a sixth faster.

    By default glibc gives large blocks back to the system, which has to clear them page by page when the next step asks
    for them again. This holds for the whole process, to its end.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or another system
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 64 << 20)


def read_checkpoint(out: str | Path) -> tuple[dict[str, Any], Recipe]:
    """The state that a run in folder `out` left, and its recipe. Loading runs no code from the file."""
    path = Path(out) / CHECKPOINT
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; there is no run to resume in {out}: leave out --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return state, Recipe(**state["recipe"])
    except Exception as error:  # noqa: BLE001  torch.load raises whatever the bytes lead it to
        raise ArtifactError(
            f"{path} is not a whole checkpoint of this version ({type(error).__name__}); start again with another --out"
        ) from None
