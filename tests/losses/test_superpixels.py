from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.errors import DataError
from lidarssl.frame import Matches
from lidarssl.images.decoders import UpsampledHead
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


def by_one_hot_matrices(
    match_features: Tensor, matches: Matches, pixels: Tensor, superpixels: Tensor
) -> tuple[Tensor, Tensor]:
    """Points and pixels of every superpixel that is hit, as products of dense matrices."""
    number = int(superpixels.max()) + 1
    ids = superpixels + number * torch.arange(len(superpixels))[:, None, None]
    rows = pixels.permute(0, 2, 3, 1).flatten(0, 2)
    means = []
    of_match = ids[matches.image, matches.row, matches.col]
    for features, segment in ((match_features, of_match), (rows, ids.flatten())):
        one_hot = torch.nn.functional.one_hot(segment, len(superpixels) * number).double()
        means.append(one_hot.T @ features / (one_hot.sum(0)[:, None] + 1e-6))
    hit = torch.bincount(of_match, minlength=len(superpixels) * number) > 0
    return means[0][hit], means[1][hit]


@settings(max_examples=15, deadline=None)
@given(
    images=st.integers(1, 3),
    cells=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    scale=st.integers(1, 4),
    ids=st.integers(1, 6),
    pairs=st.integers(1, 20),
    seed=st.integers(0, 2**16),
)
def test_pooling_of_enlarged_maps_equals_one_hot_matrices(
    images: int, cells: tuple[int, int], scale: int, ids: int, pairs: int, seed: int
) -> None:
    height, width = cells[0] * scale, cells[1] * scale
    points, matches, _, superpixels = make_scene(images, height, width, ids, pairs, seed)
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn((images, 3, *cells), generator=generator, dtype=torch.float64)
    head = UpsampledHead(3, 3, scale)
    inputs = points.requires_grad_(), maps.requires_grad_()
    pooled = pool_superpixels(points, matches, maps, superpixels, enlarged=head.enlarged)
    expected = by_one_hot_matrices(points, matches, head.enlarged(maps), superpixels)
    weights = [torch.randn(e.shape, generator=generator, dtype=torch.float64) for e in expected]
    for actual, wanted in zip(pooled[:2], expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(pooled[:2], inputs, weights)
    for actual, wanted in zip(
        gradients, torch.autograd.grad(expected, inputs, weights), strict=True
    ):
        torch.testing.assert_close(actual, wanted, rtol=1e-11, atol=1e-11)


def test_pixels_are_never_in_memory_for_all_images() -> None:
    points, matches, _, superpixels = make_scene(5, 16, 24, 6, 40, 0)
    maps = torch.randn((5, 3, 4, 6), dtype=torch.float64, requires_grad=True)
    head, made, kept = UpsampledHead(3, 3, 4), [], []

    def enlarged(image: Tensor) -> Tensor:
        pixels = head.enlarged(image)
        made.append(tuple(pixels.shape))
        return pixels

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        pooled = pool_superpixels(points, matches, maps, superpixels, enlarged=enlarged)
    assert made == [(1, 3, 16, 24)] * 5
    assert max(kept) < 3 * 16 * 24
    pooled.pixels.sum().backward()
    assert made == [(1, 3, 16, 24)] * 10


def test_no_image_gives_no_superpixel() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    pooled = pool_superpixels(
        torch.zeros(0, 3), Matches(none, none, none, none), torch.zeros(0, 3, 2, 2),
        torch.zeros(0, 8, 8, dtype=torch.int64), enlarged=UpsampledHead(3, 3, 4).enlarged,
    )  # fmt: skip
    assert [tuple(part.shape) for part in pooled] == [(0, 3), (0, 3), (0,)]
