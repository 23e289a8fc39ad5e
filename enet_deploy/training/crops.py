"""Training images: kept as uint8 on the training device, and cropped and augmented there batch by batch."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import DataSet, read_ahead
from ..errors import DataError
from ..fit import fit_image, fit_labels
from ..images import UInt8Array
from ..trained_on import TrainedOn, hashing
from .distributed import processes_here
from .memory import free_memory
from .recipe import Recipe

Pair = tuple[UInt8Array, UInt8Array]  # image (H, W, 3) BGR, labels (H, W)

# purposes of random numbers: each has a stream of its own, all from one seed
ORDER, DROPOUT, CROP, NOISE, ESTIMATE = range(1, 6)


@dataclass(frozen=True)
class Statistics:
    """Statistics of the training images.

    Attributes:
        mean, std: per channel, BGR, on the scale of [0, 255].
        shares: share of the labelled pixels per class; void is left out.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class CropParams:
    """Position of a crop, and changes to its colours. The defaults change nothing.

    Attributes:
        zoom: scale factor of the image.
        top, left: of the crop in the zoomed image, in pixels; may lie outside.
        mirror: 1 to mirror the crop, else 0.
        brightness, contrast, saturation: factors.
        blue, green, red: factors of the channels.
        noise: standard deviation, in grey levels, of the noise that is added to every value.
    """

    zoom: float = 1.0
    top: float = 0.0
    left: float = 0.0
    mirror: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    blue: float = 1.0
    green: float = 1.0
    red: float = 1.0
    noise: float = 0.0


def augment(
    images: Tensor,
    labels: Tensor,
    params: Sequence[CropParams],
    crop: tuple[int, int],
    fill: tuple[float, ...],
    void: int,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Zoom, crop and mirror in one resampling, then change the colours.

    Args:
        images: (N, H, W, 3) uint8 BGR.
        labels: (N, H, W) uint8.
        params: one per image.
        crop: (height, width) of the result.
        fill, void: BGR colour and label of what lies outside the image.
        generator: of the noise, on the images' device.

    Returns:
        (N, h, w, 3) float32 BGR in [0, 255] and (N, h, w) int64, where (h, w) is `crop`.
    """
    # one copy to the device per batch; from pinned memory, because other copies wait for the GPU
    pinned = images.device.type == "cuda"
    rows = [[*dataclasses.astuple(one), *fill] for one in params]
    table = torch.tensor(rows, dtype=torch.float32, pin_memory=pinned).to(images.device, non_blocking=True)
    pixels, ids = _resampled(images, labels, table, crop, void)
    pixels = _recolored(pixels, table)
    if any(one.noise for one in params):
        noise = table[:, -4, None, None, None]
        pixels = pixels + noise * torch.randn(pixels.shape, generator=generator, device=images.device)
    # contiguous, so that the network gets channels_last: a CPU takes half as long again with anything else
    return pixels.clamp(0, 255).contiguous(), ids.round().long()


def _resampled(
    images: Tensor, labels: Tensor, table: Tensor, crop: tuple[int, int], void: int
) -> tuple[Tensor, Tensor]:
    """Zoom, crop and mirror as each row of `table` says: the fields of `CropParams`, and the colour of the outside."""
    zoom, top, left, mirror = table.T[:4, :, None, None]
    shift = table[:, None, None, -3:]
    y = torch.arange(crop[0], device=table.device)[:, None]
    x = torch.arange(crop[1], device=table.device)[None, :]
    x = torch.where(mirror > 0, crop[1] - 1 - x, x)
    height, width = images.shape[1:3]
    # grid_sample's coordinates: -1 and 1 are the image's outer edges
    across = (x + 0.5 + left) / zoom * (2 / width) - 1
    down = (y + 0.5 + top) / zoom * (2 / height) - 1
    grid = torch.stack([across.expand(-1, *crop), down.expand(-1, *crop)], dim=-1)
    # outside the image grid_sample gives 0: shift the values so that 0 is the fill
    pixels = F.grid_sample((images - shift).permute(0, 3, 1, 2), grid, align_corners=False).permute(0, 2, 3, 1) + shift
    ids = F.grid_sample(labels[:, None] - float(void), grid, mode="nearest", align_corners=False)[:, 0] + void
    return pixels, ids


def _recolored(pixels: Tensor, table: Tensor) -> Tensor:
    """Change saturation, contrast, brightness and tint as each row of `table` says."""
    brightness, contrast, saturation = table.T[4:7, :, None, None, None]
    tint = table[:, None, None, 7:10]
    grey = 0.114 * pixels[..., 0:1] + 0.587 * pixels[..., 1:2] + 0.299 * pixels[..., 2:3]  # ITU-R BT.601
    pixels = grey + saturation * (pixels - grey)
    recolored: Tensor = brightness * tint * (contrast * (pixels - 128) + 128)
    return recolored


def stream(seed: int, epoch: int, purpose: int, number: int = 0) -> np.random.Generator:
    """Random numbers that depend only on the arguments, each below 2**32. So a resumed run draws the same ones."""
    return np.random.default_rng((seed, epoch, purpose, number))


def draw_params(recipe: Recipe, crop: tuple[int, int], rng: np.random.Generator) -> CropParams:
    """Draw the parameters of a random crop of this (height, width) from an image of the recipe's size."""
    zoom = math.exp(rng.uniform(math.log(recipe.scale[0]), math.log(recipe.scale[1])))
    # negative if the zoomed image is smaller than the crop
    room = recipe.size[0] * zoom - crop[0], recipe.size[1] * zoom - crop[1]
    top, left = rng.uniform(0, 1, 2) * room
    mirror = float(recipe.flip and rng.uniform() < 0.5)
    brightness, contrast, saturation = rng.uniform(1 - recipe.color, 1 + recipe.color, 3).tolist()
    blue, green, red = rng.uniform(1 - recipe.tint, 1 + recipe.tint, 3).tolist()
    noise = rng.uniform(0, recipe.noise)
    colors = (brightness, contrast, saturation, blue, green, red)
    return CropParams(zoom, float(top), float(left), mirror, *colors, noise=noise)


class Crops:
    """Augmented batches of a data set.

    A batch depends on the seed, the epoch and its image numbers only, so a resumed run repeats it.

    Args:
        void: label of what lies outside the images.
        progress: wraps the first pass over the images, which decodes all of them.
        resident: keep the images on the device. Otherwise threads decode them again in every epoch, ahead of their use.
            By default they are kept if they need less than half of the free memory; the processes on a CPU share it.

    Raises DataError if no training pixel has a class, or all have the same.
    """

    def __init__(
        self,
        data: DataSet,
        recipe: Recipe,
        device: torch.device,
        void: int,
        progress: Callable[[Iterator[Pair]], Iterable[Pair]] = iter,
        resident: bool | None = None,
    ) -> None:
        self.data, self.recipe, self.device, self.void = data, recipe, device, void
        self.noise = torch.Generator(device)
        size = recipe.size
        if resident is None:
            sharing = processes_here() if device.type == "cpu" else 1  # each of them keeps all images
            resident = len(data) * size[0] * size[1] * 4 < free_memory(device) / 2 / sharing
        self.resident = resident
        if self.resident:
            self.images = torch.empty((len(data), *size, 3), dtype=torch.uint8, device=device)
            self.labels = torch.empty((len(data), *size), dtype=torch.uint8, device=device)
        sums, hashes = _Sums(len(data.classes)), list[str]()
        pairs = progress(read_ahead(data.__getitem__, range(len(data))))
        for index, (image, labels) in enumerate(hashing(pairs, hashes)):
            sums.add(image, labels)
            if self.resident:
                image, labels = self._resize(image, labels)
                self.images[index], self.labels[index] = torch.from_numpy(image), torch.from_numpy(labels)
        self.statistics, self.trained_on = sums.statistics(), TrainedOn(frozenset(hashes))
        self.fill: tuple[float, ...] = self.statistics.mean

    def _resize(self, image: UInt8Array, labels: UInt8Array) -> Pair:
        size, fit = self.recipe.size, self.recipe.fit
        return fit_image(image, size, fit), fit_labels(labels, size, fit, self.void)

    def batches(
        self, indices: Sequence[Sequence[int]], epoch: int, crop: tuple[int, int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the augmented images and labels (see `augment`) of each list of image numbers, in the given order."""
        seed = self.recipe.seed
        for batch, (images, labels) in zip(indices, self._read(indices), strict=True):
            params = [draw_params(self.recipe, crop, stream(seed, epoch, CROP, i)) for i in batch]
            self.noise.manual_seed(int(stream(seed, epoch, NOISE, batch[0]).integers(1 << 62)))
            yield augment(images, labels, params, crop, self.fill, self.void, self.noise)

    def _read(self, indices: Sequence[Sequence[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        if self.resident:
            # the order of the whole epoch in one copy, without waiting for the GPU
            pinned = self.device.type == "cuda"
            order = torch.tensor([i for batch in indices for i in batch], pin_memory=pinned)
            order = order.to(self.device, non_blocking=True)
            for chosen in torch.split(order, [len(batch) for batch in indices]):
                yield self.images[chosen], self.labels[chosen]
            return
        decoded = read_ahead(lambda i: self._resize(*self.data[i]), (i for batch in indices for i in batch))
        for batch in indices:
            pairs = list(itertools.islice(decoded, len(batch)))
            images, labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs, strict=True))
            yield images.to(self.device), labels.to(self.device)


class _Sums:
    """Running sums for `Statistics`."""

    def __init__(self, classes: int) -> None:
        self.total, self.squares, self.pixels = np.zeros(3), np.zeros(3), 0
        self.counts = np.zeros(classes)

    def add(self, image: UInt8Array, labels: UInt8Array) -> None:
        values = image.reshape(-1, 3).astype(np.float64)
        self.total += values.sum(axis=0)
        self.squares += (values**2).sum(axis=0)
        self.pixels += len(values)
        self.counts += np.bincount(labels.ravel(), minlength=256)[: len(self.counts)]

    def statistics(self) -> Statistics:
        if not self.counts.any():
            raise DataError("every training pixel is void, expected at least one class in the label maps")
        if np.count_nonzero(self.counts) == 1:
            raise DataError(
                f"every training pixel that has a class has class id {int(self.counts.argmax())}, expected several "
                "classes; `enet-data check` says what the label maps hold"
            )
        mean = self.total / self.pixels
        std = np.sqrt(np.maximum(self.squares / self.pixels - mean**2, 1.0))
        b, g, r = mean.round(3).tolist()
        sb, sg, sr = std.round(3).tolist()
        return Statistics((b, g, r), (sb, sg, sr), tuple((self.counts / self.counts.sum()).tolist()))
