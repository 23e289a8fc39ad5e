"""The training loop.

Runs from a bare checkout with torch, numpy, opencv and safetensors. One process, or several under `torchrun`.
A run's folder holds `checkpoint.pt` (everything to resume from), `best.safetensors` (highest val mIoU),
`last.safetensors` and `log.csv`.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from . import cli
from .artifacts import Metadata, check_size, commit, replacing, sha256
from .data import DataSet, UInt8Array, open_data, resize_image, resize_labels
from .errors import ArtifactError, DataError, EnetError, InputError
from .metrics import Scores, evaluate
from .model import ENet, Segmenter, load_weights, save_weights
from .recipe import Recipe, augment

log = logging.getLogger(__name__)


class _Crops(Dataset[tuple[Tensor, Tensor]]):
    """Augmented crops; what crop an index gives depends on seed, epoch and index alone, so a resumed run repeats it."""

    def __init__(self, data: DataSet, recipe: Recipe, fill: tuple[float, ...], void: int) -> None:
        self.data, self.recipe, self.fill, self.void = data, recipe, fill, void
        self.epoch = 0
        self.decoded: dict[int, tuple[UInt8Array, UInt8Array]] = {}
        pixel_bytes = recipe.size[0] * recipe.size[1] * 4 * len(data)
        self.keep = pixel_bytes < 2 << 30  # CamVid takes 250 MB; decoding would cost a tenth of a CPU step

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pair = self.decoded.get(index)
        if pair is None:
            image, labels = self.data[index]
            pair = resize_image(image, self.recipe.size), resize_labels(labels, self.recipe.size)
            if self.keep:
                self.decoded[index] = pair
        rng = np.random.default_rng((self.recipe.seed, self.epoch, index))
        image, labels = augment(*pair, self.recipe, rng, self.fill, self.void)
        return torch.from_numpy(image), torch.from_numpy(labels)


@dataclass(frozen=True)
class Statistics:
    """Of the training images: BGR mean and standard deviation on [0, 255]; pixel share per class, void left out."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    shares: tuple[float, ...]


def statistics(data: DataSet) -> Statistics:
    """One pass over a data set."""
    total = np.zeros(3)
    squares = np.zeros(3)
    pixels = 0
    counts = np.zeros(256)
    for image, labels in data:
        values = image.reshape(-1, 3).astype(np.float64)
        total += values.sum(axis=0)
        squares += (values**2).sum(axis=0)
        pixels += len(values)
        counts += np.bincount(labels.ravel(), minlength=256)
    counts = counts[: len(data.classes)]
    if not counts.any():
        raise DataError("every training pixel is void, expected at least one class in the label maps")
    mean = total / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 1.0))
    b, g, r = mean.round(3).tolist()
    sb, sg, sr = std.round(3).tolist()
    return Statistics((b, g, r), (sb, sg, sr), tuple((counts / counts.sum()).tolist()))


def scores(net: nn.Module, data: DataSet, metadata: Metadata) -> Scores:
    """Scores of a network on a split, at the label maps' own size, void left out."""
    device = next(net.parameters()).device
    segmenter = Segmenter(net, metadata.mean, metadata.std).to(device).eval()

    def segment(image: UInt8Array) -> UInt8Array:
        frame = resize_image(image, metadata.size)
        labels = segmenter(torch.from_numpy(frame)[None].to(device))[0].cpu().numpy()
        return resize_labels(labels, (image.shape[0], image.shape[1]))

    with torch.inference_mode():
        return evaluate(segment, data, data.classes).scores()


class Trainer:
    """One run in one folder.

    Args:
        data: the folder of a data set with the splits train and val.
        out: the run's folder.
        init: weights to start from instead of random ones.
    """

    def __init__(
        self, data: str | Path, out: str | Path, recipe: Recipe, device: torch.device, init: str | Path | None = None
    ) -> None:
        self.recipe, self.device, self.out = recipe, device, Path(out)
        self.train, self.val = open_data(data, "train"), open_data(data, "val")
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self._check()
        torch.manual_seed(recipe.seed)
        found = statistics(self.train)
        for index in range(len(self.val)):
            self.val[index]  # a bad file is found now, not at the end of the first night
        net = ENet(len(self.train.classes))
        origin = {}
        if init is not None:
            net, start = load_weights(init)
            if start.classes.names != self.train.classes.names:
                raise ArtifactError(
                    f"{init} knows the classes {', '.join(start.classes.names)}; the data set has "
                    f"{', '.join(self.train.classes.names)}: leave out --init to train from scratch"
                )
            # the first layers are used to their own normalisation
            found = dataclasses.replace(found, mean=start.mean, std=start.std)
            origin = {"init": {**start.details, "sha256": sha256(init)}}
        self.net = net.to(device)
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.world > 1 and device.type == "cuda":
            self.net = nn.SyncBatchNorm.convert_sync_batchnorm(self.net)  # type: ignore[no-untyped-call]
        average = _ramped_average(recipe.ema)
        self.ema = AveragedModel(self.net, multi_avg_fn=average, use_buffers=True) if recipe.ema else None
        self.void = 255 if self.train.classes.ignore_id is None else self.train.classes.ignore_id
        self.weight = (1 / torch.log(recipe.class_weight_c + torch.tensor(found.shares))).to(device)
        self.loader = self._loader(_Crops(self.train, recipe, found.mean, self.void))
        self._adopt(Metadata(self.train.classes, found.mean, found.std, recipe.size, details=origin))
        self.steps = recipe.epochs * len(self.loader)
        self.optimizer = self._optimizer()
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.commit = commit()
        self.epoch = 0
        self.best = -1.0
        self.history: list[dict[str, float]] = []

    def _adopt(self, metadata: Metadata) -> None:
        """Take the normalisation, and what follows from it, of `metadata`."""
        self.metadata = metadata
        self.segmenter = Segmenter(self.net, metadata.mean, metadata.std).to(self.device)
        self.crops.fill = metadata.mean

    def _check(self) -> None:
        recipe = self.recipe
        check_size(recipe.size)
        check_size(recipe.crop)
        if recipe.optimizer not in ("adam", "adamw"):
            raise InputError(f"optimizer '{recipe.optimizer}', expected adam or adamw")
        for name in ("seed", "lr", "weight_decay", "warmup", "power"):
            if not 0 <= getattr(recipe, name) < math.inf:  # nan is not
                raise InputError(f"{name} {getattr(recipe, name)}, expected 0 or more")
        for name in ("ema", "color"):
            if not 0 <= getattr(recipe, name) < 1:
                raise InputError(f"{name} {getattr(recipe, name)}, expected at least 0 (none) and below 1")
        if not 1 < recipe.class_weight_c < math.inf:
            raise InputError(
                f"class_weight_c {recipe.class_weight_c}, expected above 1: ln(c + share) has to be positive"
            )
        if not 0 < recipe.scale[0] <= recipe.scale[1] < math.inf:
            raise InputError(f"scale {recipe.scale}, expected two positive numbers, smallest first")
        if recipe.batch % self.world:
            raise InputError(f"batch {recipe.batch} over {self.world} processes, expected a multiple of {self.world}")
        if len(self.train) < recipe.batch:
            raise InputError(
                f"batch {recipe.batch} for {len(self.train)} training images, expected no more than there are; "
                f"pass --batch {len(self.train)} or less"
            )

    def _loader(self, crops: _Crops) -> DataLoader[tuple[Tensor, Tensor]]:
        self.crops = crops
        self.sampler: DistributedSampler[tuple[Tensor, Tensor]] = DistributedSampler(
            crops, self.world, self.rank, seed=self.recipe.seed, drop_last=True
        )
        return DataLoader(
            crops,
            batch_size=self.recipe.batch // self.world,
            sampler=self.sampler,
            drop_last=True,
            # on a CPU the network takes every core anyway; a GPU is fed by processes
            num_workers=0 if self.device.type == "cpu" else min(8, os.cpu_count() or 1),
            pin_memory=self.device.type == "cuda",
        )

    def _optimizer(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        if recipe.optimizer == "adam":
            return torch.optim.Adam(self.net.parameters(), recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        kernels = [p for p in self.net.parameters() if p.ndim > 1]
        others = [p for p in self.net.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, recipe.lr, weight_decay=recipe.weight_decay, fused=True)

    def _rate(self, step: int) -> float:
        warmup = min(self.recipe.warmup, self.steps // 10)  # a short run has to learn too
        if step < warmup:
            return (step + 1) / warmup
        return float((1 - min(1.0, (step - warmup) / max(1, self.steps - warmup))) ** self.recipe.power)

    def run(self) -> None:
        """Train to the last epoch.

        After an interruption or a crash, `resume` and `run` give the weights of an undisturbed run: to the bit on a CPU
        with the same number of threads, and as far as its kernels repeat themselves on a GPU.
        """
        if self.rank == 0:
            classes = ", ".join(self.metadata.classes.names)
            log.info(
                f"{len(self.train)} training and {len(self.val)} val images on {self.device}, {len(self.loader)} steps "
                f"an epoch; {len(self.metadata.classes)} classes: {classes}"
            )
        model: nn.Module = self.net
        if self.world > 1:
            model = DistributedDataParallel(self.net, broadcast_buffers=False)
        if self.epoch == 0:
            self._save_checkpoint()  # so that the first epoch can be interrupted too
        while self.epoch < self.recipe.epochs:
            started, rate = time.perf_counter(), float(self.schedule.get_last_lr()[0])
            loss = self._train_epoch(model)
            self.epoch += 1
            seconds = round(time.perf_counter() - started, 2)
            row: dict[str, float] = {"epoch": self.epoch, "loss": loss, "lr": rate, "seconds": seconds}
            if self.epoch % self.recipe.eval_every == 0 or self.epoch == self.recipe.epochs:
                row |= self._evaluate()
            self.history.append(row)
            self._write_log()
            self._save_checkpoint()
            if self.rank == 0:
                figures = "  ".join(f"{name} {value:.5g}" for name, value in row.items() if name != "epoch")
                log.info(f"epoch {self.epoch}/{self.recipe.epochs}  {figures}")
        if self.rank == 0:
            self._save_weights("last.safetensors", self.history[-1])
            log.info(f"done; the best val mIoU was {self.best:.4f}: {self.out / 'best.safetensors'}")

    def _train_epoch(self, model: nn.Module) -> float:
        # dropout's stream depends on the epoch, not on what ran before: resuming needs no generator state
        stream = np.random.SeedSequence((self.recipe.seed, self.epoch, self.rank))
        torch.manual_seed(int(stream.generate_state(1)[0]))
        self.sampler.set_epoch(self.epoch)
        self.crops.epoch = self.epoch
        model.train()
        losses = []
        for images, labels in self._progress():
            losses.append(self._step(model, images.to(self.device), labels.to(self.device, torch.int64)))
        loss = torch.stack(losses).mean()
        if self.world > 1:
            dist.all_reduce(loss)
        return float(loss) / self.world

    def _progress(self) -> Iterable[tuple[Tensor, Tensor]]:
        title = f"epoch {self.epoch + 1}/{self.recipe.epochs}"
        return self.loader if self.rank else cli.progress(self.loader, title)

    def _step(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        x = self.segmenter.normalise(images)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.amp):
            logits = model(x)
        loss = F.cross_entropy(logits.float(), labels, self.weight, ignore_index=self.void)
        if (labels == self.void).all():  # the mean over no pixel is nan: such a batch teaches nothing
            loss = logits.float().sum() * 0
        if not torch.isfinite(loss):
            raise EnetError(f"the loss is {loss.item()} in epoch {self.epoch + 1}; lower --lr, or turn --amp off")
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        if self.ema is not None:
            self.ema.update_parameters(self.net)
        return loss.detach()

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
        found = scores(self._averaged(), self.val, self.metadata)
        return {
            "val_miou": found.miou,
            "val_pixel_accuracy": found.pixel_accuracy,
            "val_dice": found.dice,
            "val_class_average": found.class_average,
        }

    def _averaged(self) -> ENet:
        net = self.net if self.ema is None else self.ema.module
        assert isinstance(net, ENet)
        return net

    def _save_weights(self, name: str, figures: dict[str, float]) -> None:
        details = {
            **self.metadata.details,
            "recipe": dataclasses.asdict(self.recipe),
            "figures": {key: round(value, 5) for key, value in figures.items()},
            "images": {"train": len(self.train), "val": len(self.val)},
            "commit": self.commit,
            "torch": torch.__version__,
        }
        save_weights(self.out / name, self._averaged(), dataclasses.replace(self.metadata, details=details))

    def _save_checkpoint(self) -> None:
        if self.rank == 0:
            state = {
                "recipe": dataclasses.asdict(self.recipe),
                "metadata": self.metadata.to_text(),
                "epoch": self.epoch,
                "best": self.best,
                "history": self.history,
                "weight": self.weight.cpu(),
                "images": len(self.train),
                "processes": self.world,
                "net": self.net.state_dict(),
                "ema": None if self.ema is None else self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
            }
            content = io.BytesIO()  # written as bytes, a full disk is an OSError like everywhere else
            torch.save(state, content)
            with replacing(self.out / "checkpoint.pt") as temporary:
                temporary.write_bytes(content.getvalue())

    def resume(self, state: dict[str, Any]) -> None:
        """Continue from what `read_checkpoint` gave, on this trainer's device.

        Raises ArtifactError where the run was begun with other classes, images or number of processes.
        """
        path = self.out / "checkpoint.pt"
        try:
            metadata = Metadata.from_text(state["metadata"], path)
            for what, had, has in (
                ("classes", ", ".join(metadata.classes.names), ", ".join(self.metadata.classes.names)),
                ("training images", state["images"], len(self.train)),
                ("processes", state["processes"], self.world),
            ):
                if had != has:
                    raise ArtifactError(
                        f"{path} was made with the {what} {had}, these are {has}; use the same, or another --out"
                    )
            self._adopt(metadata)
            self.weight = state["weight"].to(self.device)
            self.epoch, self.best, self.history = state["epoch"], state["best"], state["history"]
            self.net.load_state_dict(state["net"])
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{path} is not a whole checkpoint ({error!r}); start again with another --out"
            ) from None

    def _write_log(self) -> None:
        if self.rank == 0:
            columns = list(dict.fromkeys(name for row in self.history for name in row))
            text = io.StringIO()
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.history)
            with replacing(self.out / "log.csv") as temporary:
                temporary.write_text(text.getvalue())


def _ramped_average(decay: float) -> Callable[..., None]:
    """An exponential average whose decay grows with the number of steps: the first weights are soon forgotten."""

    def update(averaged: Any, current: Any, count: Tensor | int) -> None:
        ramped = min(decay, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(ramped)(averaged, current, count)  # type: ignore[no-untyped-call]

    return update


def read_checkpoint(out: str | Path) -> tuple[dict[str, Any], Recipe]:
    """The state that a run in folder `out` left, and its recipe. Loading runs no code from the file."""
    path = Path(out) / "checkpoint.pt"
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; there is no run to resume in {out}: leave out --resume")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return state, Recipe(**state["recipe"])
    except Exception as error:  # noqa: BLE001  torch.load raises whatever the bytes lead it to
        raise ArtifactError(
            f"{path} is not a whole checkpoint of this version ({type(error).__name__}); start again with another --out"
        ) from None
