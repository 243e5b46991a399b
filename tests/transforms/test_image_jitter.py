"""Other colours, blur and noise: what each does, how often, and that it follows its generator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from lidarssl.frame import Field, Frame
from lidarssl.transforms.image_jitter import ImageJitter, _blurred, _noisy, _shuffled
from lidarssl.transforms.images import image_of
from toys import MemoryDataset


def frame() -> Frame:
    dataset = MemoryDataset(1, cameras=2)
    return dataset.load(dataset.frames("train")[0], Field.IMAGES)


def changed(seed: int, **options: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The first image before, in [0, 1], and after."""
    before = frame()
    after = ImageJitter(**options)(before, np.random.default_rng(seed))
    image = image_of(after.cameras[0])
    return image_of(before.cameras[0]) / 255, image / 255 if image.dtype == torch.uint8 else image


def test_the_same_draws_give_the_same_image() -> None:
    for seed in range(20):
        first, second = (changed(seed)[1] for _ in range(2))
        assert torch.equal(first, second)
        assert first.min() >= 0
        assert first.max() <= 1


def test_nothing_but_images_changes() -> None:
    before, after = frame(), ImageJitter()(frame(), np.random.default_rng(0))
    assert torch.equal(after.points, before.points)
    for one, other in zip(before.cameras, after.cameras, strict=True):
        assert replace(other, image=one.image).token == one.token
        assert torch.equal(other.intrinsics, one.intrinsics)
        assert image_of(other).shape == image_of(one).shape


def test_one_in_ten_images_stays() -> None:
    same = [torch.equal(*changed(seed)) for seed in range(400)]
    assert 0.05 < np.mean(same) < 0.15
    assert all(torch.equal(*changed(seed, probability=0)) for seed in range(20))


def test_kinds_of_recolouring_come_as_often_as_said() -> None:
    grays = darker = 0
    for seed in range(400):
        before, after = changed(seed, probability=1, degrade=0, hue=0.1)
        grays += bool((after.std(0) < 1e-6).all())
        # Darkening is one map of values for every channel, which falls below black somewhere.
        darker += bool(after.mean() < before.mean() - 0.15)
    assert 0.06 < grays / 400 < 0.15
    assert 0.14 < darker / 400 < 0.28


def test_no_strength_leaves_colours() -> None:
    for seed in range(30):
        before, after = changed(seed, probability=1, strength=0, hue=0, degrade=0)
        plain = bool((after.std(0) < 1e-6).all()) or bool(after.mean() < before.mean() - 0.15)
        assert plain or torch.allclose(before, after, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_blur_is_a_gaussian(seed: int) -> None:
    image = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(seed))
    size = 3 + 2 * int(np.random.default_rng(seed).integers(4))
    sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8
    expected = ndimage.gaussian_filter(
        image.double().numpy(), (0, sigma, sigma), mode="mirror", radius=(0, size // 2, size // 2)
    )
    found = _blurred(image, np.random.default_rng(seed))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_blur_of_an_image_smaller_than_its_window() -> None:
    image = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(0))
    for seed in range(8):
        assert _blurred(image, np.random.default_rng(seed)).shape == image.shape


def test_frosted_glass_takes_pixels_from_next_door() -> None:
    place = torch.arange(12.0 * 17).view(1, 12, 17)
    found = _shuffled(place, np.random.default_rng(0))[0]
    rows, cols = found.long() // 17, found.long() % 17
    assert ((rows - torch.arange(12)[:, None]).abs() <= 1).all()
    assert ((cols - torch.arange(17)).abs() <= 1).all()
    assert (found != place[0]).float().mean() > 0.7


def test_noise_has_the_variance_said() -> None:
    image = torch.full((3, 64, 64), 0.5)
    for seed in range(20):
        deviation = (_noisy(image, np.random.default_rng(seed)) - image).std() * 255
        assert np.sqrt(10) * 0.9 < deviation < np.sqrt(500) * 1.1
