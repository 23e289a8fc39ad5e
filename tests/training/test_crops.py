"""Augmentation: image and labels stay together, nothing is invented, and a batch can be had again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import write_scenes
from torch import Tensor

from enet_deploy.classes import CAMVID
from enet_deploy.data import open_data
from enet_deploy.training.crops import Crops, Placement, augment, draw
from enet_deploy.training.recipe import Recipe

CPU = torch.device("cpu")
FILL, VOID = (255.0, 255.0, 255.0), 255
PLAIN = Recipe(size=(96, 128), crop=(96, 128), scale=(1.0, 1.0), flip=False, color=0.0, tint=0.0, noise=0.0)


def ramp(axis: int) -> tuple[Tensor, Tensor]:
    """One image whose pixels hold the number of their row or column, and so does its label map."""
    labels = torch.from_numpy(np.indices((96, 128), np.uint8)[axis])[None]
    return torch.stack([labels] * 3, dim=-1), labels


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("crop", [(96, 128), (64, 160)])
def test_image_and_labels_move_together(axis: int, crop: tuple[int, int]) -> None:
    recipe = dataclasses.replace(PLAIN, crop=crop, scale=(0.5, 2.0), flip=True)
    for seed in range(20):
        placement = draw(recipe, np.random.default_rng(seed), (96, 128))
        image, labels = augment(*ramp(axis), [placement], crop, FILL, VOID)
        assert image.shape == (1, *crop, 3) and labels.shape == (1, *crop)
        assert image.dtype == torch.float32 and labels.dtype == torch.int64
        # only where the image ends does linear interpolation blend in what lies outside
        assert ((image - labels[..., None]).abs() <= 1).float().mean() > 0.9


def test_a_placement_says_where_every_pixel_comes_from() -> None:
    """Zoom 2 repeats pixels about their middles; the crop begins 3 rows down and 5 columns right in the zoomed one."""
    rows, columns = ramp(0), ramp(1)
    placement = Placement(zoom=2.0, top=3.0, left=5.0)
    for (image, labels), start in ((rows, 3), (columns, 5)):
        pixels, ids = augment(image, labels, [placement], (10, 10), FILL, VOID)
        line = slice(None) if image is rows[0] else 0
        expected = (torch.arange(10) + 0.5 + start) / 2 - 0.5
        got = pixels[0, :, 0, 0] if line == slice(None) else pixels[0, 0, :, 0]
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
        assert ((ids[0].float() - pixels[0, ..., 0]).abs() <= 0.5).all()


def test_what_is_switched_off_changes_nothing() -> None:
    image, labels = ramp(1)
    placement = draw(PLAIN, np.random.default_rng(0), (96, 128))
    assert placement == Placement()
    new, new_labels = augment(image, labels, [placement], PLAIN.crop, FILL, VOID)
    torch.testing.assert_close(new, image.float(), rtol=0, atol=2e-3)  # grid_sample's coordinates are float32
    assert torch.equal(new_labels, labels.long())


def test_half_of_the_crops_are_mirrored() -> None:
    recipe, mirrored = dataclasses.replace(PLAIN, flip=True), 0
    image, labels = ramp(1)
    for seed in range(40):
        placement = draw(recipe, np.random.default_rng(seed), (96, 128))
        new, new_labels = augment(image, labels, [placement], PLAIN.crop, FILL, VOID)
        expected = labels.flip(2) if placement.mirror else labels
        assert torch.equal(new_labels, expected.long())
        torch.testing.assert_close(new[..., 0], expected.float(), rtol=0, atol=2e-3)
        mirrored += int(placement.mirror)
    assert 10 <= mirrored <= 30


def test_no_label_is_invented() -> None:
    labels = torch.from_numpy(np.random.default_rng(0).choice(np.array([2, 5, 9], np.uint8), (9, 96, 128)))
    recipe = dataclasses.replace(PLAIN, scale=(0.5, 2.0), flip=True, color=0.5)
    placements = [draw(recipe, np.random.default_rng(seed), (96, 128)) for seed in range(9)]
    _, ids = augment(torch.stack([labels] * 3, -1), labels, placements, PLAIN.crop, FILL, VOID)
    assert set(ids.unique().tolist()) == {2, 5, 9, VOID}


def test_colours_change_and_labels_do_not() -> None:
    image, labels = ramp(1)
    placement = Placement(brightness=0.9, contrast=1.2, saturation=0.5, blue=0.8, red=1.1)
    new, new_labels = augment(image, labels, [placement], PLAIN.crop, FILL, VOID)
    assert torch.equal(new_labels, labels.long())
    tint = torch.tensor([0.8, 1.0, 1.1])
    expected = (0.9 * tint * (1.2 * (image.float() - 128) + 128)).clamp(0, 255)  # grey has no saturation to lose
    torch.testing.assert_close(new, expected, rtol=0, atol=0.01)
    noisy, _ = augment(image, labels, [Placement(noise=5.0)], PLAIN.crop, FILL, VOID)
    middle = slice(20, 100)  # away from 0 and 255, where noise is cut off
    assert (noisy - image)[0, :, middle].std().item() == pytest.approx(5, rel=0.05)
    red = torch.tensor([0, 0, 200], dtype=torch.uint8).expand(1, 8, 8, 3)
    pale, _ = augment(red, labels[:, :8, :8], [Placement(saturation=0.5)], (8, 8), FILL, VOID)
    grey = 0.299 * 200
    torch.testing.assert_close(pale[0, 4, 4], torch.tensor([grey / 2, grey / 2, grey / 2 + 100]), rtol=0, atol=0.01)


def test_statistics_are_those_of_the_training_images(scenes: Path) -> None:
    data = open_data(scenes, "train")
    found = Crops(data, PLAIN, CPU, CAMVID.void).statistics
    pixels = np.concatenate([image.reshape(-1, 3) for image, _ in data]).astype(float)
    labels = np.concatenate([labels.ravel() for _, labels in data])
    labels = labels[labels != CAMVID.ignore_id]
    assert found.mean == pytest.approx(pixels.mean(axis=0), abs=1e-3)
    assert found.std == pytest.approx(pixels.std(axis=0), abs=1e-3)
    assert found.shares == pytest.approx(np.bincount(labels, minlength=len(CAMVID)) / len(labels))


def test_images_that_do_not_fit_the_device_give_the_same_batches(tmp_path: Path) -> None:
    data = open_data(write_scenes(tmp_path, {"train": 5, "val": 1}), "train")
    recipe = dataclasses.replace(PLAIN, size=(48, 64), crop=(40, 40), scale=(0.5, 2.0), color=0.3, noise=8.0)
    held, decoded = (Crops(data, recipe, CPU, 11, resident=resident) for resident in (True, False))
    indices = [[3, 1], [4, 0], [2]]
    for batches in zip(held.batches(indices, 1), decoded.batches(indices, 1), held.batches(indices, 1), strict=True):
        for images, labels in batches[1:]:
            assert torch.equal(images, batches[0][0]) and torch.equal(labels, batches[0][1])
    other = next(iter(held.batches(indices, 2)))[0]
    assert not torch.equal(other, next(iter(held.batches(indices, 1)))[0])
