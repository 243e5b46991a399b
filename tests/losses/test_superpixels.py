from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.errors import DataError
from lidarssl.frame import Matches
from lidarssl.losses.superpixels import global_segments, pool_superpixels, segment_mean


def make_scene(
    images: int, height: int, width: int, ids: int, pairs: int, seed: int
) -> tuple[Tensor, Matches, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    def features(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    matches = Matches(draw(5, pairs), draw(images, pairs), draw(height, pairs), draw(width, pairs))
    superpixels = draw(ids, images, height, width)
    return features(pairs, 3), matches, features(images, 3, height, width), superpixels


@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(1, 3),
    height=st.integers(1, 4),
    width=st.integers(1, 5),
    ids=st.integers(1, 6),
    pairs=st.integers(0, 20),
    seed=st.integers(0, 2**16),
)
def test_pooling_equals_loops(
    images: int, height: int, width: int, ids: int, pairs: int, seed: int
) -> None:
    match_features, matches, pixels, superpixels = make_scene(
        images, height, width, ids, pairs, seed
    )
    pooled = pool_superpixels(match_features, matches, pixels, superpixels, per_image=ids)
    row = 0
    for image in range(images):
        for segment in range(ids):
            inside = [
                match_features[m]
                for m in range(pairs)
                if matches.image[m] == image
                and superpixels[image, matches.row[m], matches.col[m]] == segment
            ]
            if not inside:
                continue
            area = [
                pixels[image, :, r, c]
                for r in range(height)
                for c in range(width)
                if superpixels[image, r, c] == segment
            ]
            assert int(pooled.kept[row]) == image * ids + segment
            torch.testing.assert_close(pooled.points[row], sum(inside) / (len(inside) + 1e-6))
            torch.testing.assert_close(pooled.pixels[row], sum(area) / (len(area) + 1e-6))
            row += 1
    assert row == len(pooled.kept) == len(pooled.points) == len(pooled.pixels)


def test_a_point_whose_first_channel_is_zero_is_kept() -> None:
    """The reference takes a zero there for an empty superpixel."""
    matches = Matches(*(torch.zeros(1, dtype=torch.int64) for _ in range(4)))
    features = torch.tensor([[0.0, 1.0]])
    superpixels = torch.zeros(1, 2, 2, dtype=torch.int64)
    pooled = pool_superpixels(features, matches, torch.ones(1, 2, 2, 2), superpixels)
    assert pooled.kept.tolist() == [0]


def test_ids_reserve_the_largest_of_all_images() -> None:
    superpixels = torch.tensor([[[0, 1]], [[2, 0]]])
    assert global_segments(superpixels).tolist() == [[[0, 1]], [[5, 3]]]
    assert global_segments(superpixels, 150).tolist() == [[[0, 1]], [[152, 150]]]


@pytest.mark.parametrize(("ids", "per_image"), [([-1, 0], None), ([0, 150], 150)])
def test_refuses_ids_that_would_alias(ids: list[int], per_image: int | None) -> None:
    with pytest.raises(DataError, match="superpixel ids span"):
        global_segments(torch.tensor([[ids]]), per_image)


def test_gradients_reach_both_modalities() -> None:
    match_features, matches, pixels, superpixels = make_scene(2, 2, 3, 3, 6, 1)
    match_features.requires_grad_()
    pixels.requires_grad_()

    def both(points: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        pooled = pool_superpixels(points, matches, image, superpixels)
        return pooled.points, pooled.pixels

    assert torch.autograd.gradcheck(both, (match_features, pixels))


def test_segment_mean_sums_in_float32() -> None:
    rows = torch.full((5000, 1), 1.0, dtype=torch.bfloat16)
    mean = segment_mean(rows, torch.zeros(5000, dtype=torch.int64), 2)
    assert mean.dtype is torch.float32
    torch.testing.assert_close(mean, torch.tensor([[1.0], [0.0]]))
