"""The training loop: `Trainer.run` goes through the epochs, `step.TrainingStep` does one step.

One process, or several under `torchrun` (with OMP_NUM_THREADS=1 also the faster way on a CPU). A run's folder holds
`checkpoint.pt` (everything to resume from), `best.safetensors` (highest val mIoU), `last.safetensors` and `log.csv`.
Nothing but torch, numpy, opencv and safetensors is needed.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import console, trained_on
from ..data import DataSet, read_ahead
from ..environment import commit
from ..errors import DataError, EnetError, is_out_of_memory
from ..model import ENet
from ..weights import save_weights
from . import distributed, evaluation, prior
from .checkpoint import CHECKPOINT, Checkpoint, RunIdentity, fitting_state, reading
from .crops import DROPOUT, ESTIMATE, ORDER, Crops, stream
from .logs import log_correction_sweep, log_epoch, write_csv
from .memory import halved_batch_that_fits
from .recipe import Recipe
from .schedule import Schedule, best_epoch, epochs_in_time, evaluation_is_due, out_of_patience
from .start import require_fitting, require_patience_fits, starting_point
from .step import TrainingStep

T = TypeVar("T")

ESTIMATE_BATCHES = 64  # BatchNorm's statistics of the averaged weights are estimated from so many batches
CHECKPOINT_SECONDS = 30.0  # at least, between checkpoints at the end of epochs that are not evaluated

log = logging.getLogger(__name__)


class Trainer:
    """One run in one folder.

    Args:
        train, val: images to learn from, and images to score on at evaluations.
        split: name of what `train` holds, for the metadata of the weights.
        out: the run's folder.
        init: weights to start from, instead of random ones.
        teacher: weights of a network, usually a wider one, whose output is learnt beside the labels.
        compiled: use `torch.compile`.
        checkpoint: state of a run to resume. It is checked before the images are read.
        captured: on one GPU, and if not compiled, use CUDA graphs; else launch kernel by kernel.

    Attributes:
        val_trained_on: how many val images the network was trained on, as `trained_on.count`: by this run, or as a part
            of its init or teacher. Scores on them show fit, not accuracy.
        val_in_train: whether this run trains on all of val.

    Raises InputError if recipe, data and weights do not fit each other, DataError for bad images, and ArtifactError
    for weights or a checkpoint that cannot be used.
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
        checkpoint: Checkpoint | None = None,
        captured: bool = True,
    ) -> None:
        self.train, self.val, self.split, self.out = train, val, split, Path(out)
        self.recipe, self.device = recipe, device
        self.rank, self.world = distributed.rank(), distributed.world_size()
        require_fitting(recipe, len(train), self.world)
        require_patience_fits(recipe, {*val.pairs} <= {*train.pairs})  # what can be told without reading; copies later

        torch.manual_seed(recipe.seed)
        start = starting_point(init, teacher, train.classes, recipe, device)
        self.identity = RunIdentity.of(train, val, self.world, start.details.get("teacher", {}).get("sha256"))
        if checkpoint is not None:
            self.identity.require_same(checkpoint.identity, self.out)
        val_hashes = self._read_images()
        self.val_in_train = trained_on.count(self.crops.trained_on, val_hashes) == len(val)
        require_patience_fits(recipe, self.val_in_train)
        self.metadata = start.new_metadata(train.classes, self.crops.statistics, recipe, self.crops.trained_on)
        if checkpoint is not None:
            self.metadata, self.class_weights = checkpoint.metadata, checkpoint.class_weights.to(device)
        self.val_trained_on = trained_on.count(self.metadata.trained_on, val_hashes)
        self.crops.fill = self.metadata.mean
        schedule = Schedule(recipe, len(train) // recipe.batch)
        self.step = TrainingStep(
            start.net, start.teacher, schedule, self.metadata, self.class_weights, device, compiled, captured
        )
        self.epoch, self.best, self.crop, self._was_over = 0, -1.0, recipe.crop, False
        self.history: list[dict[str, float]] = []
        self.saved, self.saved_epoch, self.commit = time.monotonic(), 0, commit()
        if checkpoint is not None:
            with reading(self.out):
                self._load(checkpoint)

    def _read_images(self) -> list[str]:
        """Set `crops` and `class_weights`; read val once, so that a bad file is found now and not hours later.

        Returns `trained_on.pixel_hash` of each val image.
        """
        train, void = self.train, self.train.classes.void
        read = partial(self._progress, title="reading", total=len(train))
        self.crops = Crops(train, self.recipe, self.device, void, read)
        shares = torch.tensor(self.crops.statistics.shares)
        self.class_weights = (1 / torch.log(self.recipe.class_weight_c + shares)).to(self.device)
        hashes: list[str] = []
        val = trained_on.hashing(read_ahead(self.val.__getitem__, range(len(self.val))), hashes)
        if not sum(int((labels != void).sum()) for _, labels in val):
            raise DataError("every val pixel is void, expected at least one class in the label maps")
        return hashes

    def run(self, report: Callable[[], None] = lambda: None) -> None:
        """Train to the last epoch, or until the recipe's patience runs out.

        A run that was interrupted or crashed and is resumed gives the weights of an undisturbed run: the same bits on a
        CPU with the same number of threads; on a GPU as far as its kernels are deterministic.

        Args:
            report: called by the first process at the start, and before each checkpoint. A run that is killed between
                the two repeats its last epochs, and reports them again.

        Raises EnetError if the loss or a weight is no longer finite, or if a step does not fit into the memory; the
        message then names the largest halved batch that does.
        """
        if self.rank == 0:
            self._log_start()
        self._was_over = self.over
        if self.epoch == 0:
            self._save_checkpoint()  # so that a run can be resumed that is interrupted in its first epoch
        if self.rank == 0:
            report()
        while not self.over:
            row = self._train_epoch()
            if self.recipe.minutes:
                self._plan_epochs()
            if evaluation_is_due(self.recipe, self.epoch):
                row |= self._evaluate()
            if self.rank == 0:
                log_epoch(row, self.recipe.epochs)
            if "val_miou" in row or time.monotonic() - self.saved >= CHECKPOINT_SECONDS:
                if self.rank == 0:
                    report()
                self._save_checkpoint()
        if self.rank == 0:
            self._finish()

    def _train_epoch(self) -> dict[str, float]:
        """Train for one epoch; returns its row of the history."""
        started, rate = time.perf_counter(), self.step.schedule.learning_rate(self.step.done)
        loss = self._mean_loss_of_epoch()
        self.epoch += 1
        seconds = round(time.perf_counter() - started, 2)
        self.history.append({"epoch": self.epoch, "loss": loss, "lr": rate, "seconds": seconds})
        return self.history[-1]

    def _mean_loss_of_epoch(self) -> float:
        losses = None
        try:
            losses = torch.stack(list(self.steps()))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            log.info(" ".join(str(error).split())[:200])
        if losses is None:  # after the handler, because its traceback keeps alive what fills the memory
            raise EnetError(self._batch_advice())
        if self.world > 1:
            dist.all_reduce(losses)
        values = (losses / self.world).tolist()  # once an epoch, because it waits for the GPU
        for step, value in enumerate(values, 1):
            if not math.isfinite(value):
                raise EnetError(
                    f"the loss is {value} in step {step} of epoch {self.epoch + 1}; lower --lr. The last good state, "
                    f"after epoch {self.saved_epoch}, is in {self.out / CHECKPOINT}"
                )
        return statistics.fmean(values)

    def steps(self) -> Iterator[Tensor]:
        """Train through epoch `self.epoch`; yields each step's loss, a scalar on the device."""
        # dropout's random numbers depend on the epoch, not on what ran before: no generator state has to be saved
        torch.manual_seed(self._draw_seed(DROPOUT, self.rank))
        self.step.model.train()
        self.crop = self.step.schedule.crop(self.step.done)
        batches = self._batches()
        crops = self.crops.batches(batches, self.epoch, self.crop)
        for images, labels in self._progress(crops, f"epoch {self.epoch + 1}/{self.recipe.epochs}", len(batches)):
            yield self.step(images, labels)

    def _batches(self) -> list[list[int]]:
        """This epoch's image numbers for this process: each image once; the few that fill no batch are left out."""
        order = stream(self.recipe.seed, self.epoch, ORDER).permutation(len(self.train)).tolist()
        size = self.recipe.batch
        whole = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
        return [batch[self.rank :: self.world] for batch in whole]

    def _draw_seed(self, purpose: int, number: int = 0) -> int:
        return int(stream(self.recipe.seed, self.epoch, purpose, number).integers(1 << 62))

    def _progress(self, items: Iterable[T], title: str, total: int | None = None) -> Iterable[T]:
        return items if self.rank else console.progress(items, title, total)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to train."""
        return self.epoch >= self.recipe.epochs or out_of_patience(self.recipe, self.history)

    def _plan_epochs(self) -> None:
        """Set the number of epochs to what the recipe's minutes allow; the first process decides for all."""
        epochs = distributed.of_first(epochs_in_time(self.recipe, self.history))
        self.recipe = dataclasses.replace(self.recipe, epochs=epochs)
        self._keep_to_first_plan()

    def _keep_to_first_plan(self) -> None:
        first = distributed.of_first(epochs_in_time(self.recipe, self.history[:2])) if len(self.history) > 1 else 0
        self.step.schedule = dataclasses.replace(self.step.schedule, recipe=self.recipe, first_plan=first)

    def _evaluate(self) -> dict[str, float]:
        """Score on val and save the weights if they are the best so far.

        The first process does it for all: on a CPU each process has its own BatchNorm statistics.
        """
        started = time.perf_counter()
        scores = distributed.of_first(self._val_scores() if self.rank == 0 else {})
        if scores["val_miou"] > self.best:
            self.best = scores["val_miou"]
            if self.rank == 0:
                self._save_weights("best.safetensors", {"epoch": self.epoch, **scores})
        return scores | {"val_seconds": round(time.perf_counter() - started, 2)}

    def _val_scores(self) -> dict[str, float]:
        if self.step.average is not None:
            torch.manual_seed(self._draw_seed(ESTIMATE))
            batches = self.crops.batches(self._batches()[:ESTIMATE_BATCHES], self.epoch, self.crop)
            images = (self.step.segmenter.normalise(images) for images, _ in batches)
            self.step.average.estimate_statistics(images)
        return evaluation.val_scores(self._corrected(), self.val, self.metadata)

    def examples(self) -> list[evaluation.Example]:
        """A few val images with the predictions of the evaluated weights."""
        return evaluation.examples(self._corrected(), self.val, self.metadata)

    def _corrected(self) -> ENet:
        """Return a copy of the network with the prior correction: this copy is evaluated and saved."""
        return prior.corrected(self.step.averaged(), self.class_weights, self.recipe.prior_correction)

    def _save_weights(self, name: str, figures: dict[str, float]) -> None:
        net = self._corrected()
        self._require_finite(net)
        details = {
            **self.metadata.details,
            "recipe": dataclasses.asdict(self.recipe),
            "figures": {key: _rounded(value) for key, value in figures.items()},
            "split": self.split,
            "images": {"train": len(self.train), "val": len(self.val)},
            "commit": self.commit,
            "torch": torch.__version__,
        }
        if self.recipe.prior_correction:
            details[prior.KEY] = prior.record(self.class_weights, self.recipe.prior_correction)
        save_weights(self.out / name, net, dataclasses.replace(self.metadata, details=details))

    def _save_checkpoint(self) -> None:
        self._require_finite(self.step.objective)
        if self.rank == 0:
            if self.history:
                write_csv(self.out / "log.csv", self.history)  # first: nothing writes it after the last checkpoint
            self._state().write(self.out)
        self.saved, self.saved_epoch = time.monotonic(), self.epoch

    def _state(self) -> Checkpoint:
        return Checkpoint(
            recipe=self.recipe,
            metadata=self.metadata,
            identity=self.identity,
            epoch=self.epoch,
            step=self.step.done,
            best=self.best,
            history=self.history,
            class_weights=self.class_weights.cpu(),
            net=self.step.objective.state_dict(),
            ema=None if self.step.average is None else self.step.average.net.state_dict(),
            optimizer=self.step.optimizer.state_dict(),
        )

    def _load(self, state: Checkpoint) -> None:
        steps = state.epoch * self.step.schedule.steps_per_epoch
        if state.step != steps:
            raise ValueError(f"step {state.step} after epoch {state.epoch}, expected {steps}")
        self.epoch, self.best, self.history = state.epoch, state.best, state.history
        self.saved_epoch = state.epoch
        self.step.done = state.step
        self.step.objective.load_state_dict(state.net)
        if self.step.average is not None:
            self.step.average.net.load_state_dict(state.ema or {})
        self.step.optimizer.load_state_dict(fitting_state(self.step.optimizer, state.optimizer, state.step))
        if self.recipe.minutes:
            self._keep_to_first_plan()

    def _require_finite(self, module: nn.Module) -> None:
        if not all(tensor.isfinite().all() for tensor in module.state_dict().values()):
            raise EnetError(
                f"the weights are no longer finite in epoch {self.epoch}; lower --lr. The last good state, after epoch "
                f"{self.saved_epoch}, is in {self.out / CHECKPOINT}"
            )

    def _log_start(self) -> None:
        steps, names = self.step.schedule.steps_per_epoch, self.metadata.classes.names
        log.info(
            f"{len(self.train)} training images ({self.split}), {len(self.val)} to score on, {self.device}, "
            f"{console.counted(steps, 'step')} an epoch; {len(names)} classes: {', '.join(names)}"
        )
        chosen = "; best.safetensors and --patience go by fit then" if self.val_trained_on else ""
        log.info(f"val: {self._val_in_words()}{chosen}")

    def _val_in_words(self) -> str:
        return trained_on.in_words(self.val_trained_on, len(self.val))

    def _finish(self) -> None:
        """Save the last weights, and log what was found."""
        recipe = self.recipe
        if self.epoch < recipe.epochs:
            log.info(
                f"stopped after epoch {self.epoch} of {recipe.epochs}: {recipe.patience} evaluations without a better "
                f"val mIoU than {self.best:.4f} of epoch {best_epoch(self.history)}"
            )
        self._save_weights("last.safetensors", self.history[-1])
        best = "" if self.val_in_train else f"; best.safetensors had the highest mIoU, {self.best:.4f}"
        log.info(f"done: {self.out / 'last.safetensors'}{best}")

    def log_corrections(self) -> None:
        """Log val mIoU by strength of the prior correction, unless this run trained on val, or had nothing to train.

        Only the first process does it. It talks to no other, so these may be gone.
        """
        if self.rank == 0 and not self._was_over and not self.val_in_train:
            args = self.step.averaged(), self.class_weights, self.recipe.prior_correction, self.val, self.metadata
            doubt = "" if self.val_trained_on == 0 else self._val_in_words()
            log_correction_sweep(evaluation.correction_sweep(*args), doubt)

    def _batch_advice(self) -> str:
        """A message about a step that ran out of memory. Finding it spoils the network."""
        batch, (height, width) = self.recipe.batch, self.crop
        problem = f"batch {batch} of {height}x{width} crops does not fit into the memory of {self.device}"
        if self.world > 1:  # the other processes wait for another step than the one that would be tried
            return f"{problem}; pass a smaller --batch"
        log.info(f"{problem}; trying smaller ones")
        fits = halved_batch_that_fits(batch, self._largest_step)
        if not fits:
            return f"{problem}, nor does one of its halves; pass a smaller --batch or --crop, or another --device"
        # a resumed run keeps its batch, so another batch needs another run
        start = f" in another --out, where --init {self.out / 'best.safetensors'} goes on from here"
        return f"{problem}; --batch {fits} does{start if best_epoch(self.history) else ''}"

    def _largest_step(self, batch: int) -> None:
        crop = max(self.recipe.crop, self.recipe.final_crop if self.recipe.final_from < 1 else (0, 0), key=math.prod)
        self.step.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.step.largest(*next(self.crops.batches([self._batches()[0][:batch]], self.epoch, crop)))


def _rounded(value: float) -> float:
    """Keep whole numbers, and five digits of others: a learning rate may be 1e-6."""
    return value if isinstance(value, int) else float(f"{value:.5g}")
