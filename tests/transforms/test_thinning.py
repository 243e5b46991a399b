"""Points that are left out: which, with what chance, and what stays with those that are left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.errors import ConfigError
from lidarssl.frame import Frame
from lidarssl.geometry.voxels import voxelize
from lidarssl.transforms.paired import MatchPixels
from lidarssl.transforms.thinning import (
    CropBox,
    KeepNearest,
    Thin,
    nearest_to,
    random_of_each_voxel,
)
from transforms.scenes import apply_purely, make_frame

SIZE = 0.7


def small(points: Tensor) -> Frame:
    frame = make_frame(len(points), cameras=0)
    return replace(frame, points=points)


def voxels(points: Tensor, size: float = SIZE) -> list[tuple[int, ...]]:
    low = points.min(0).values
    return [tuple(cell) for cell in ((points - low) / size).trunc().int().tolist()]


def kept_rows(frame: Frame) -> list[int]:
    """Rows of ``make_frame``, whose intensities count them."""
    return frame.intensity.int().tolist()


def test_one_point_of_every_voxel_is_left() -> None:
    frame = make_frame()
    thinned = apply_purely(Thin(SIZE), frame)
    before = voxels(frame.points)
    rows = kept_rows(thinned)
    assert rows == sorted(rows), "points keep their order"
    assert sorted(before[row] for row in rows) == sorted({*before})
    assert len(rows) < len(frame)
    assert thinned.thinned_to == SIZE
    assert frame.thinned_to is None


def test_every_point_of_a_voxel_is_as_likely() -> None:
    points = torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0.2, 0, 0], [5.0, 0, 0], [9.0, 0, 0]])
    rng = np.random.default_rng(0)
    counts = torch.zeros(5)
    for _ in range(1200):
        counts[kept_rows(Thin(1.0)(small(points), rng))] += 1
    assert counts[3:].tolist() == [1200, 1200]
    assert counts[:3].sum() == 1200
    assert (counts[:3] - 400).abs().max() < 5 * (1200 * 2 / 9) ** 0.5


def test_the_first_in_the_order_is_kept() -> None:
    points = torch.tensor([[5.0, 0, 0], [0.0, 0, 0], [0.1, 0, 0], [5.1, 0, 0]])
    for order, expected in (([3, 2, 1, 0], [2, 3]), ([0, 1, 2, 3], [1, 0]), ([1, 3, 0, 2], [1, 3])):
        assert random_of_each_voxel(points, 1.0, torch.tensor(order)).tolist() == expected


@given(count=st.integers(1, 200), seed=st.integers(0, 999), spread=st.sampled_from([1.0, 30.0]))
@settings(max_examples=40, deadline=None)
def test_same_as_voxels_of_the_shuffled_points(count: int, seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn((count, 3), generator=generator) * spread
    order = torch.randperm(count, generator=generator)
    expected = order[voxelize(points[order], "waffleiron", SIZE).index]
    assert torch.equal(random_of_each_voxel(points, SIZE, order), expected)


def test_columns_and_matches_follow_their_points() -> None:
    frame = MatchPixels()(make_frame(), np.random.default_rng(0))
    frame = replace(frame, input_points=frame.points * 2)
    assert frame.matches is not None
    pixel = {
        (int(frame.intensity[p]), i): (r, c)
        for p, i, r, c in zip(*(getattr(frame.matches, n).tolist() for n in
                                ("point", "image", "row", "col")), strict=True)
    }  # fmt: skip
    for transform in (
        Thin(SIZE), KeepNearest(500), CropBox((-9.0, -9.0, -1.0), (9.0, 9.0, 1.0)),
    ):  # fmt: skip
        left = apply_purely(transform, frame)
        assert left.matches is not None
        assert 0 < len(left) < len(frame)
        assert 0 < len(left.matches) < len(frame.matches)
        assert left.input_points is not None
        assert torch.equal(left.input_points, left.points * 2)
        assert left.semantic is not None
        assert left.semantic.tolist() == [row % 7 for row in kept_rows(left)]
        rows = kept_rows(left)
        found = {
            (rows[p], i): (r, c)
            for p, i, r, c in zip(*(getattr(left.matches, n).tolist() for n in
                                    ("point", "image", "row", "col")), strict=True)
        }  # fmt: skip
        assert found == {key: value for key, value in pixel.items() if key[0] in {*rows}}


@given(seed=st.integers(0, 999), count=st.integers(1, 60), keep=st.integers(1, 70))
@settings(max_examples=40, deadline=None)
def test_the_nearest_to_one_point_are_left(seed: int, count: int, keep: int) -> None:
    frame = make_frame(count, seed, cameras=0)
    left = kept_rows(KeepNearest(keep)(frame, np.random.default_rng(seed)))
    assert len(left) == min(keep, count)
    assert left == sorted(left)
    distance = (frame.points.double()[:, None] - frame.points.double()).norm(dim=2)
    balls = [{*row.argsort(stable=True)[: len(left)].tolist()} for row in distance]
    assert {*left} in balls


def test_any_point_may_be_the_centre() -> None:
    points = torch.arange(6.0)[:, None] ** 2 * torch.tensor([1.0, 0, 0])
    rng = np.random.default_rng(0)
    seen = [kept_rows(KeepNearest(1)(small(points), rng))[0] for _ in range(600)]
    assert min(seen.count(row) for row in range(6)) > 60


def test_nearest_first() -> None:
    points = torch.tensor([[0.0, 0, 0], [3, 0, 0], [1, 0, 0], [2.2, 0, 0]])
    assert nearest_to(points, 1, 3).tolist() == [1, 3, 2]
    assert nearest_to(points, 0, 99).tolist() == [0, 2, 3, 1]


def test_few_points_are_all_kept() -> None:
    frame = make_frame(10, cameras=0)
    assert KeepNearest(10)(frame, np.random.default_rng(0)) is frame
    empty = frame.select(torch.zeros(10, dtype=torch.bool))
    for transform in (Thin(), KeepNearest(5), CropBox((-1.0,) * 3, (1.0,) * 3)):
        assert len(transform(empty, np.random.default_rng(0))) == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_border_of_a_box_is_outside(axis: int) -> None:
    low, high = (-1.0, -2.0, -3.0), (4.0, 5.0, 6.0)
    points = torch.zeros(6, 3)
    points[:, axis] = torch.tensor(
        [low[axis], low[axis] + 5e-5, low[axis] + 5e-4, high[axis] - 5e-4, high[axis] - 5e-5, 9.0]
    )
    assert kept_rows(apply_purely(CropBox(low, high), small(points))) == [2, 3]
    assert kept_rows(apply_purely(CropBox(low, high, margin=0.0), small(points))) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: Thin(0.0), "voxel_size"),
        (lambda: Thin(float("nan")), "voxel_size"),
        (lambda: Thin(float("inf")), "voxel_size"),
        (lambda: KeepNearest(0), "count"),
        (lambda: CropBox((0.0, 0.0, 0.0), (1.0, 0.0, 1.0)), "low, high"),
    ],
)
def test_arguments_that_make_no_sense(build: object, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build()  # type: ignore[operator]
    assert caught.value.field == field
