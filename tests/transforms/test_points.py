"""Whatever happens to the lidar frame, points keep their pixels, boxes their points."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Frame, FrameId
from lidarssl.geometry.boxes import points_in_boxes
from lidarssl.geometry.poses import transform_points
from lidarssl.geometry.projection import project
from lidarssl.transforms.paired import MatchPixels
from lidarssl.transforms.points import (
    CropRange,
    Decimate,
    DropUnlabeled,
    FlipAxes,
    LimitPoints,
    RotateZ,
    ScalePoints,
    change_lidar_frame,
)
from transforms.scenes import apply_purely, make_frame

MOVES = [RotateZ(), FlipAxes(), ScalePoints(0.5, 2.0)]


@pytest.mark.parametrize("move", MOVES, ids=lambda move: type(move).__name__)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_points_keep_their_pixels_world_positions_and_boxes(move: object, seed: int) -> None:
    frame = make_frame()
    moved = apply_purely(move, frame, seed)
    for before, after in zip(frame.cameras, moved.cameras, strict=True):
        expected = project(frame.points, before.camera_from_lidar, before.intrinsics)
        found = project(moved.points, after.camera_from_lidar, after.intrinsics)
        seen = expected.depth > 0.5
        torch.testing.assert_close(found.uv[seen], expected.uv[seen], atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(found.depth, expected.depth, atol=1e-4, rtol=0)
    world = transform_points(frame.points, frame.pose)
    torch.testing.assert_close(transform_points(moved.points, moved.pose), world, atol=1e-4, rtol=0)
    inside = points_in_boxes(frame.points, frame.boxes)
    assert inside.any(0).all()
    assert torch.equal(points_in_boxes(moved.points, moved.boxes), inside)
    assert moved.points.dtype == torch.float32
    assert torch.equal(moved.intensity, frame.intensity)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 60), seed=st.integers(0, 2**31))
def test_points_move_as_by_a_product_in_float64(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn((count, 3), generator=generator) * 50
    motion = torch.eye(4, dtype=torch.float64)
    motion[:3] = torch.randn((3, 4), generator=generator, dtype=torch.float64)
    frame = Frame(FrameId("made", "0", "0"), points, torch.zeros(count))
    moved = change_lidar_frame(frame, motion).points
    assert moved.dtype == torch.float32
    exact = points.double() @ motion[:3, :3].T + motion[:3, 3]
    torch.testing.assert_close(moved, exact.float(), rtol=2e-7, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 60), seed=st.integers(0, 2**31))
def test_selected_columns_are_those_under_the_mask(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(count, generator=generator) < 0.5
    columns = {
        "points": torch.randn((count, 3), generator=generator),
        "intensity": torch.rand(count, generator=generator),
        "semantic": torch.randint(9, (count,), generator=generator),
    }
    chosen = Frame(FrameId("made", "0", "0"), **columns).select(kept)
    for name, column in columns.items():
        assert torch.equal(getattr(chosen, name), column[kept])


def test_rotation_is_counter_clockwise_and_uniform() -> None:
    frame = make_frame(1, cameras=0)
    frame.points[0] = torch.tensor([1.0, 0.0, 0.5])
    quarter = RotateZ(math.pi / 2, math.pi / 2)(frame, np.random.default_rng(0))
    torch.testing.assert_close(quarter.points[0], torch.tensor([0.0, 1.0, 0.5]))
    rng = np.random.default_rng(0)
    turned = torch.cat([RotateZ()(frame, rng).points for _ in range(400)])
    angles = torch.atan2(turned[:, 1], turned[:, 0])
    assert torch.histc(angles, 4, -math.pi, math.pi).min() > 60


def test_flips_of_x_and_y_are_independent() -> None:
    frame = make_frame(1, cameras=0)
    frame.points[0] = torch.tensor([1.0, 2.0, 3.0])
    rng = np.random.default_rng(0)
    seen = [tuple(FlipAxes()(frame, rng).points[0].tolist()) for _ in range(200)]
    outcomes = {(1.0, 2.0, 3.0), (-1.0, 2.0, 3.0), (1.0, -2.0, 3.0), (-1.0, -2.0, 3.0)}
    assert set(seen) == outcomes
    assert min(seen.count(outcome) for outcome in outcomes) > 25


def test_scale_stays_in_its_range() -> None:
    frame = make_frame(10, cameras=0)
    rng = np.random.default_rng(0)
    factors = [
        float(ScalePoints(0.9, 1.1)(frame, rng).points[0, 0] / frame.points[0, 0])
        for _ in range(50)
    ]
    assert 0.9 <= min(factors) < 0.95 < 1.05 < max(factors) <= 1.1


def matched() -> Frame:
    return MatchPixels()(make_frame(), np.random.default_rng(0))


def test_crop_range_keeps_a_ring() -> None:
    frame = matched()
    cropped = apply_purely(CropRange(5.0, 20.0, -1.0, 1.0), frame)
    expected = [
        i
        for i, (x, y, z) in enumerate(frame.points.tolist())
        if 5.0 <= math.hypot(x, y) <= 20.0 and -1.0 <= z <= 1.0
    ]
    assert 0 < len(expected) < len(frame)
    assert cropped.intensity.tolist() == expected
    assert torch.equal(cropped.semantic, frame.semantic[expected])


@pytest.mark.parametrize("transform", [CropRange(5.0, 20.0), LimitPoints(700)])
def test_matches_follow_their_points(transform: object) -> None:
    frame = matched()
    fewer = apply_purely(transform, frame)
    original = fewer.intensity[fewer.matches.point].long()
    pairs = zip(original.tolist(), fewer.matches.image.tolist(), strict=True)
    expected = [
        (point, image)
        for point, image in zip(
            frame.matches.point.tolist(), frame.matches.image.tolist(), strict=True
        )
        if point in set(fewer.intensity.long().tolist())
    ]
    assert list(pairs) == expected


def test_limit_is_a_fair_draw_in_order() -> None:
    frame = make_frame(100, cameras=0)
    rng = np.random.default_rng(0)
    counts = torch.zeros(100)
    for _ in range(200):
        kept = LimitPoints(30)(frame, rng).intensity.long()
        assert len(kept) == 30
        assert (kept.diff() > 0).all()
        counts[kept] += 1
    assert counts.min() > 30
    assert counts.max() < 95
    assert LimitPoints(100)(frame, rng) is frame


def test_empty_ranges_are_refused() -> None:
    for build in (
        lambda: RotateZ(1.0, 0.0),
        lambda: ScalePoints(0.0, 1.0),
        lambda: CropRange(5.0, 1.0),
        lambda: CropRange(min_z=math.nan),
        lambda: LimitPoints(0),
    ):
        with pytest.raises(ConfigError):
            build()


def test_flips_of_x_alone() -> None:
    frame = make_frame()
    moved = apply_purely(FlipAxes(1.0, axes="x"), frame, 0)
    assert torch.equal(moved.points, frame.points * torch.tensor([-1.0, 1.0, 1.0]))
    with pytest.raises(ConfigError, match="mirror"):
        FlipAxes(axes="z")


def test_decimation_keeps_the_first_point_of_a_cell_and_the_order() -> None:
    frame = make_frame()
    thinned = apply_purely(Decimate(2.0), frame, 0)
    cells: dict[tuple[float, ...], int] = {}
    for number, point in enumerate(frame.points.tolist()):
        cells.setdefault(tuple(value // 2.0 for value in point), number)
    assert 1 < len(cells) < len(frame)
    assert torch.equal(thinned.points, frame.points[list(cells.values())])
    assert torch.equal(thinned.intensity, frame.intensity[list(cells.values())])
    with pytest.raises(ConfigError, match="voxel size"):
        Decimate(0.0)


def test_unlabelled_points_are_dropped_by_their_labels_only() -> None:
    frame = make_frame()
    labels = torch.arange(len(frame)) % 3
    kept = apply_purely(DropUnlabeled(), replace(frame, semantic=labels), 0)
    assert torch.equal(kept.points, frame.points[labels > 0])
    assert kept.semantic.min() == 1
    with pytest.raises(DataError, match="has no labels"):
        DropUnlabeled()(replace(frame, semantic=None), np.random.default_rng(0))
