"""Augmentation: image and labels move together, no label is invented, and batches can be repeated."""

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
from enet_deploy.training.crops import CropParams, Crops, augment, draw_params
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
        params = draw_params(recipe, recipe.crop, np.random.default_rng(seed))
        image, labels = augment(*ramp(axis), [params], crop, FILL, VOID)
        assert image.shape == (1, *crop, 3) and labels.shape == (1, *crop)
        assert image.dtype == torch.float32 and labels.dtype == torch.int64
        # linear interpolation blends in what lies outside at the image's edges only
        assert ((image - labels[..., None]).abs() <= 1).float().mean() > 0.9


def test_crop_params_say_from_where_every_pixel_comes() -> None:
    """Zoom 2 repeats pixels about their middles; the crop begins 3 rows down and 5 columns right in the zoomed one."""
    rows, columns = ramp(0), ramp(1)
    params = CropParams(zoom=2.0, top=3.0, left=5.0)
    for (image, labels), start in ((rows, 3), (columns, 5)):
        pixels, ids = augment(image, labels, [params], (10, 10), FILL, VOID)
        line = slice(None) if image is rows[0] else 0
        expected = (torch.arange(10) + 0.5 + start) / 2 - 0.5
        got = pixels[0, :, 0, 0] if line == slice(None) else pixels[0, 0, :, 0]
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)
        assert ((ids[0].float() - pixels[0, ..., 0]).abs() <= 0.5).all()


def test_what_is_switched_off_changes_nothing() -> None:
    image, labels = ramp(1)
    params = draw_params(PLAIN, PLAIN.crop, np.random.default_rng(0))
    assert params == CropParams()
    new, new_labels = augment(image, labels, [params], PLAIN.crop, FILL, VOID)
    torch.testing.assert_close(new, image.float(), rtol=0, atol=2e-3)  # grid_sample's coordinates are float32
    assert torch.equal(new_labels, labels.long())


def test_half_of_the_crops_are_mirrored() -> None:
    recipe, mirrored = dataclasses.replace(PLAIN, flip=True), 0
    image, labels = ramp(1)
    for seed in range(40):
        params = draw_params(recipe, recipe.crop, np.random.default_rng(seed))
        new, new_labels = augment(image, labels, [params], PLAIN.crop, FILL, VOID)
        expected = labels.flip(2) if params.mirror else labels
        assert torch.equal(new_labels, expected.long())
        torch.testing.assert_close(new[..., 0], expected.float(), rtol=0, atol=2e-3)
        mirrored += int(params.mirror)
    assert 10 <= mirrored <= 30


def test_no_label_is_invented() -> None:
    labels = torch.from_numpy(np.random.default_rng(0).choice(np.array([2, 5, 9], np.uint8), (9, 96, 128)))
    recipe = dataclasses.replace(PLAIN, scale=(0.5, 2.0), flip=True, color=0.5)
    all_params = [draw_params(recipe, recipe.crop, np.random.default_rng(seed)) for seed in range(9)]
    _, ids = augment(torch.stack([labels] * 3, -1), labels, all_params, PLAIN.crop, FILL, VOID)
    assert set(ids.unique().tolist()) == {2, 5, 9, VOID}


def test_colours_change_and_labels_do_not() -> None:
    image, labels = ramp(1)
    params = CropParams(brightness=0.9, contrast=1.2, saturation=0.5, blue=0.8, red=1.1)
    new, new_labels = augment(image, labels, [params], PLAIN.crop, FILL, VOID)
    assert torch.equal(new_labels, labels.long())
    tint = torch.tensor([0.8, 1.0, 1.1])
    expected = (0.9 * tint * (1.2 * (image.float() - 128) + 128)).clamp(0, 255)  # grey has no saturation to lose
    torch.testing.assert_close(new, expected, rtol=0, atol=0.01)
    noisy, _ = augment(image, labels, [CropParams(noise=5.0)], PLAIN.crop, FILL, VOID)
    middle = slice(20, 100)  # away from 0 and 255, where noise is cut off
    assert (noisy - image)[0, :, middle].std().item() == pytest.approx(5, rel=0.05)
    red = torch.tensor([0, 0, 200], dtype=torch.uint8).expand(1, 8, 8, 3)
    pale, _ = augment(red, labels[:, :8, :8], [CropParams(saturation=0.5)], (8, 8), FILL, VOID)
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


@pytest.mark.parametrize(("here", "world", "kept"), [("", 1, True), ("2", 4, True), ("", 4, False)])
def test_processes_of_one_cpu_share_its_memory(
    scenes: Path, monkeypatch: pytest.MonkeyPatch, here: str, world: int, kept: bool
) -> None:
    data = open_data(scenes, "train")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    monkeypatch.setattr("enet_deploy.training.distributed.world_size", lambda: world)
    monkeypatch.setattr("enet_deploy.training.crops.free_memory", lambda _: 5 * len(data) * 96 * 128 * 4)
    assert Crops(data, PLAIN, CPU, CAMVID.void).resident is kept


def test_images_that_do_not_fit_the_device_give_the_same_batches(tmp_path: Path) -> None:
    data = open_data(write_scenes(tmp_path, {"train": 5, "val": 1}), "train")
    recipe = dataclasses.replace(PLAIN, size=(48, 64), scale=(0.5, 2.0), color=0.3, noise=8.0)
    held, decoded = (Crops(data, recipe, CPU, 11, resident=resident) for resident in (True, False))

    def batches(crops: Crops, epoch: int) -> list[tuple[Tensor, Tensor]]:
        return list(crops.batches([[3, 1], [4, 0], [2]], epoch, (40, 40)))

    first = batches(held, 1)
    for other in (batches(decoded, 1), batches(held, 1)):
        for (images, labels), (same_images, same_labels) in zip(first, other, strict=True):
            assert torch.equal(images, same_images) and torch.equal(labels, same_labels)
    assert not torch.equal(batches(held, 2)[0][0], first[0][0])
