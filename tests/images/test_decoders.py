from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.errors import ConfigError
from lidarssl.images.decoders import UpsampledHead, sample_upsampled


def enlarge(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(features, size=size, mode="bilinear", align_corners=True)


def all_pixels(images: int, size: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    ranges = [torch.arange(n) for n in (images, *size)]
    return tuple(grid.flatten() for grid in torch.meshgrid(*ranges, indexing="ij"))


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 3),
    cells=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 1000),
)
def test_sampling_equals_enlarging_and_indexing(
    images: int, cells: tuple[int, int], size: tuple[int, int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn((images, 5, *cells), generator=generator)
    image, row, col = all_pixels(images, size)
    sampled = sample_upsampled(features, image, row, col, size)
    expected = enlarge(features, size)[image, :, row, col]
    torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-5)


def test_sampling_on_a_large_map_keeps_its_precision() -> None:
    size = (900, 1600)
    features = torch.randn((1, 3, 29, 50), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    row, col = (torch.randint(n, (4000,), generator=generator) for n in size)
    sampled = sample_upsampled(features, torch.zeros_like(row), row, col, size)
    exact = enlarge(features.double(), size)[0][:, row, col].T
    torch.testing.assert_close(sampled.double(), exact, rtol=0, atol=2e-6)


def test_gradient_of_sampling_equals_that_of_enlarging() -> None:
    features = torch.randn((2, 4, 3, 5), dtype=torch.float64, requires_grad=True)
    image, row, col = (t[::7] for t in all_pixels(2, (12, 20)))
    weight = torch.randn((len(row), 4), dtype=torch.float64)
    (sample_upsampled(features, image, row, col, (12, 20)) * weight).sum().backward()
    assert features.grad is not None
    (expected,) = torch.autograd.grad(
        (enlarge(features, (12, 20))[image, :, row, col] * weight).sum(), features
    )
    torch.testing.assert_close(features.grad, expected, rtol=0, atol=1e-6)


def test_no_pixel_gives_no_row() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert sample_upsampled(torch.zeros(1, 4, 2, 2), none, none, none, (8, 8)).shape == (0, 4)


@pytest.mark.parametrize("scale", [1, 4, 32])
def test_head_gives_unit_features_of_every_pixel(scale: int) -> None:
    head = UpsampledHead(6, 3, scale)
    features = torch.randn(2, 6, 2, 3)
    pixels = head(features)
    assert pixels.shape == (2, 3, 2 * scale, 3 * scale)
    torch.testing.assert_close(pixels.norm(dim=1), torch.ones(2, 2 * scale, 3 * scale))
    # The corners of the enlarged map are the corners of the coarse one.
    (convolution,) = head.projections
    corner = convolution.weight.flatten(1) @ features[0, :, -1, -1] + convolution.bias
    torch.testing.assert_close(pixels[0, :, -1, -1], corner / corner.norm())


def test_head_samples_what_it_would_enlarge() -> None:
    head = UpsampledHead(6, 3, 8, heads=2)
    features = torch.randn(2, 6, 2, 3)
    image, row, col = all_pixels(2, (16, 24))
    for index in range(2):
        expected = head(features, index)[image, :, row, col]
        sampled = head.sample(features, image, row, col, index)
        torch.testing.assert_close(sampled, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(head(features, 0), head(features, 1))


def test_head_without_normalisation_is_linear_in_the_features() -> None:
    head = UpsampledHead(6, 3, 2, normalize=False)
    a, b = torch.randn(1, 6, 2, 2), torch.randn(1, 6, 2, 2)
    torch.testing.assert_close(head(a) + head(b), head(a + b) + head(torch.zeros_like(a)))


@pytest.mark.parametrize("arguments", [{"scale": 0}, {"scale": 4, "heads": 0}])
def test_impossible_heads_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        UpsampledHead(6, 3, **arguments)
