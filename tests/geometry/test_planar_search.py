"""Fit of points and cells, and the search of the motion that puts points into fitting cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.errors import ConfigError
from lidarssl.geometry.planar_search import Evidence, PlanarFit, Reach, fits, search_planar
from lidarssl.geometry.poses import geodesic_angle, invert_pose, planar_motion, transform_points
from lidarssl.geometry.projection import inside_image, project

HEIGHT, WIDTH = 24, 64
LENS = torch.tensor([[40.0, 0, 31.5], [0, 40, 11.5], [0, 0, 1]], dtype=torch.float64)
NEAR = Reach(180.0, 3.0)
SHIFTS = st.floats(-3, 3)


def camera(yaw: float = 0.0) -> Tensor:
    """(4, 4) camera_from_lidar: beside the lidar, along ``yaw``."""
    ahead = torch.eye(4, dtype=torch.float64)
    axes = [[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]]
    ahead[:3, :3] = torch.tensor(axes, dtype=torch.float64)
    ahead[:3, 3] = torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64)
    return ahead @ planar_motion((0.0, 0.0), -yaw)


def scan(number: int = 600, seed: int = 0) -> Tensor:
    """(N, 3) points all around, 3 to 15 m away, float64."""
    generator = torch.Generator().manual_seed(seed)
    turn, far, high = torch.rand(3, number, generator=generator, dtype=torch.float64)
    turn, far = 2 * math.pi * turn, 3 + 12 * far
    return torch.stack([far * turn.cos(), far * turn.sin(), 3 * high - 1.5], 1)


def oracle(truth: Tensor, points: Tensor, initial: Tensor | None = None) -> Evidence:
    """+2 for the cell that a point is in by the true motion, +1 next to it, -1 elsewhere."""
    initial = camera() if initial is None else initial
    there = project(points, initial @ truth, LENS)
    seen = inside_image(there, HEIGHT, WIDTH, 0.1, "nearest")
    col, row = there.uv.round()[:, :, None, None].unbind(1)
    off = (torch.arange(WIDTH) - col).abs().maximum((torch.arange(HEIGHT)[:, None] - row).abs())
    fit = (2.0 - off).where((off <= 1) & seen[:, None, None], -1.0)
    return Evidence(points, fit, LENS, initial)


def motion_of(angle: float, x: float, y: float) -> Tensor:
    """p -> Rz p + (x, y, 0)."""
    motion = planar_motion((0.0, 0.0), math.radians(angle))
    motion[0, 3], motion[1, 3] = x, y
    return motion


def errors(found: PlanarFit, truth: Tensor) -> tuple[float, float]:
    """Degrees and m."""
    turned = geodesic_angle(found.motion[:3, :3], truth[:3, :3]).rad2deg()
    return float(turned), float((found.motion - truth)[:3, 3].norm())


def angle_of(motion: Tensor) -> float:
    return math.degrees(math.atan2(float(motion[1, 0]), float(motion[0, 0])))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_fits_are_the_mean_of_two_log_odds(points: int, cells: int, seed: int) -> None:
    similarity = 4 * torch.randn(points, cells, generator=torch.Generator().manual_seed(seed))
    found = fits(similarity)
    assert found.shape == (points, cells)
    table = similarity.double().exp().tolist()
    for point in range(points):
        for cell in range(cells):
            of_cell = table[point][cell] / sum(table[point]) / (1 / cells)
            of_point = table[point][cell] / sum(row[cell] for row in table) / (1 / points)
            expected = max((math.log(of_cell) + math.log(of_point)) / 2, -4.0)
            assert float(found[point, cell]) == pytest.approx(expected, abs=1e-4)


def test_a_misfit_has_a_floor_and_what_is_alike_says_nothing() -> None:
    sharp = fits(torch.tensor([[50.0, 0.0], [0.0, 50.0]]))
    assert sharp.diagonal().tolist() == pytest.approx([math.log(2)] * 2)
    assert float(sharp.min()) == -4.0
    alike = fits(torch.full((30, 50), 7.0))
    assert float(alike.abs().max()) < 1e-5
    assert fits(torch.zeros(0, 5)).shape == (0, 5)


def test_what_fits_everywhere_says_little() -> None:
    """A cell that all points like, and a point that likes all cells."""
    similarity = torch.zeros(40, 50)
    similarity[:, 7], similarity[9] = 5.0, 5.0
    assert float(fits(similarity)[3, 7]) < math.log(50) / 2
    similarity = torch.zeros(40, 50)
    similarity[3, 7] = 5.0
    assert float(fits(similarity)[3, 7]) > 0.7 * (math.log(50) + math.log(40)) / 2


@settings(max_examples=8, deadline=None)
@given(angle=st.floats(-180, 180), x=SHIFTS, y=SHIFTS, seed=st.integers(0, 99))
def test_a_planar_motion_is_recovered(angle: float, x: float, y: float, seed: int) -> None:
    truth = motion_of(angle, x, y)
    found = search_planar([oracle(truth, scan(1200, seed))], NEAR)
    degrees, metres = errors(found, truth)
    assert degrees < 0.5
    assert metres < 0.15
    assert found.score > found.chance


def test_height_and_tilt_stay() -> None:
    motion = search_planar([oracle(motion_of(40.0, 1.0, -2.0), scan())], NEAR).motion
    assert motion.dtype == torch.float64
    assert motion[2].tolist() == [0.0, 0.0, 1.0, 0.0]
    assert motion[:2, 2].tolist() == [0.0, 0.0]


def pole(yaw: float) -> Tensor:
    """Points of a pole 6 m away, which leaves the motion free to turn about it."""
    high = torch.linspace(-1.4, 1.4, 30, dtype=torch.float64)
    foot = torch.tensor([6 * math.cos(yaw), 6 * math.sin(yaw)], dtype=torch.float64)
    return torch.cat([foot.expand(30, 2), high[:, None]], 1)


def test_images_together_recover_what_one_cannot() -> None:
    alone, together = [], []
    for number in range(5):
        truth = motion_of(30.0 * number + 7, 0.5 * number - 1, 1.3 - number / 3)
        rig = [
            oracle(truth, transform_points(pole(yaw), invert_pose(truth)), camera(yaw))
            for yaw in (0.0, math.pi / 2, math.pi, -math.pi / 2)
        ]
        alone.append(errors(search_planar(rig[:1], NEAR), truth)[0])
        together.append(errors(search_planar(rig, NEAR), truth))
    assert sum(degrees > 5 for degrees in alone) >= 3
    assert max(degrees for degrees, _ in together) < 1
    assert max(metres for _, metres in together) < 0.15


def test_a_camera_that_is_wrong_is_outvoted() -> None:
    truth, other = motion_of(70.0, 1.0, 0.5), motion_of(-60.0, -1.0, 1.0)
    right = [oracle(truth, scan(seed=seed), camera(yaw)) for seed, yaw in ((0, 0.0), (1, 2.0))]
    wrong = oracle(other, scan(seed=2), camera(4.0))
    assert errors(search_planar([wrong], NEAR), other)[0] < 0.5
    degrees, metres = errors(search_planar([*right, wrong], NEAR), truth)
    assert degrees < 0.5
    assert metres < 0.15


@settings(max_examples=12, deadline=None)
@given(
    angle=st.sampled_from([0.0, 0.3, 7.0, 45.0]), shift=st.sampled_from([0.0, 0.2, 1.0, 1.7]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_nothing_beyond_the_reach_is_returned(angle: float, shift: float, seed: int) -> None:
    """Also where what fits best lies beyond it."""
    truth = motion_of(angle + 5, shift + 0.5, -shift - 0.5)
    motion = search_planar([oracle(truth, scan(300, seed))], Reach(angle, shift)).motion
    assert abs(angle_of(motion)) <= angle + 1e-4
    assert float(motion[:2, 3].abs().max()) <= shift + 1e-6


def test_the_edge_of_the_reach_belongs_to_it() -> None:
    for truth in (motion_of(20.0, 2.0, -2.0), motion_of(-20.0, -2.0, 2.0)):
        degrees, metres = errors(search_planar([oracle(truth, scan())], Reach(20, 2)), truth)
        assert degrees < 0.5
        assert metres < 0.15


def test_no_reach_is_no_motion() -> None:
    found = search_planar([oracle(motion_of(3.0, 0.2, 0.0), scan())], Reach(0.0, 0.0))
    assert torch.equal(found.motion, torch.eye(4, dtype=torch.float64))


def test_one_of_the_two_may_have_no_reach() -> None:
    turned, moved = motion_of(33.0, 0.0, 0.0), motion_of(0.0, 1.3, -0.7)
    assert errors(search_planar([oracle(turned, scan())], Reach(60.0, 0.0)), turned)[0] < 0.5
    assert errors(search_planar([oracle(moved, scan())], Reach(0.0, 2.0)), moved)[1] < 0.15


def brute(evidence: Sequence[Evidence], motion: Tensor) -> tuple[float, list[Tensor], Tensor]:
    """Score, points seen, and how many points lie too close to a border for float32."""
    total, seen, unsure = 0.0, [], torch.tensor(0)
    for one in evidence:
        there = project(one.points, one.camera_from_points @ motion, one.intrinsics)
        inside = inside_image(there, HEIGHT, WIDTH, 0.1, "nearest")
        for point in inside.nonzero()[:, 0].tolist():
            col, row = (int(value) for value in there.uv[point].round())
            total += float(one.fit[point, row, col])
        border = ((there.uv - there.uv.floor() - 0.5).abs() < 1e-3).any(1)
        unsure = unsure + (border & (there.depth > 0)).sum()
        seen.append(inside)
    return total / sum(len(one.points) for one in evidence), seen, unsure


@pytest.mark.parametrize("number", range(4))
def test_score_and_seen_are_those_of_the_projection(number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    evidence = []
    for yaw in (0.0, 2.0)[: 1 + number % 2]:
        points = scan(200 + 100 * number, seed=number)
        noise = torch.randn(len(points), HEIGHT, WIDTH, generator=generator)
        made = oracle(motion_of(25.0, 1.0, 1.0), points, camera(yaw))
        evidence.append(replace(made, fit=made.fit + noise))
    found = search_planar(evidence, NEAR)
    score, seen, unsure = brute(evidence, found.motion)
    count = sum(len(one.points) for one in evidence)
    assert int(unsure) < 10
    assert found.score == pytest.approx(score, abs=1e-4 + 6 * int(unsure) / count)
    differ = sum(int((a != b).sum()) for a, b in zip(found.seen, seen, strict=True))
    assert differ <= int(unsure)
    assert all(one.any() for one in found.seen)


def test_no_motion_of_the_grid_is_better() -> None:
    """Of those that a plain search in steps of 3 degrees and 1 m finds."""
    noise = torch.randn(120, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    evidence = [replace(oracle(motion_of(0.0, 0.0, 0.0), scan(120)), fit=noise)]
    found = search_planar(evidence, Reach(30.0, 1.0))
    best = max(
        brute(evidence, motion_of(float(angle), float(x), float(y)))[0]
        for angle in range(-30, 31, 3)
        for x in (-1, 0, 1)
        for y in (-1, 0, 1)
    )
    assert found.score >= best - 0.05


@settings(max_examples=10, deadline=None)
@given(spread=st.sampled_from([0.3, 1.0, 3.0]), number=st.integers(6, 300), seed=st.integers(0, 99))
def test_fits_that_say_nothing_stay_below_chance(spread: float, number: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    similarity = spread * torch.randn(number, HEIGHT * WIDTH, generator=generator)
    fit = fits(similarity).view(number, HEIGHT, WIDTH)
    found = search_planar([Evidence(scan(number, seed), fit, LENS, camera())], NEAR)
    assert found.score <= found.chance


def test_points_behind_the_camera_never_count() -> None:
    """They would fall into the image if their depth were not looked at."""
    points = scan()
    points = points[points[:, 0] < -1]
    there = project(points, camera(), LENS)
    assert (there.uv[:, 0] >= 0).logical_and(there.uv[:, 0] < WIDTH - 1).sum() > 20
    everywhere = Evidence(points, torch.ones(len(points), HEIGHT, WIDTH), LENS, camera())
    found = search_planar([everywhere], Reach(0.0, 0.0))
    assert found.score == 0.0
    assert not found.seen[0].any()


def test_no_points_give_no_motion() -> None:
    none = Evidence(torch.zeros(0, 3), torch.zeros(0, HEIGHT, WIDTH), LENS, camera())
    found = search_planar([none, none], Reach())
    assert torch.equal(found.motion, torch.eye(4, dtype=torch.float64))
    assert found.score <= found.chance
    assert [len(one) for one in found.seen] == [0, 0]
    truth = motion_of(50.0, 1.0, 2.0)
    assert errors(search_planar([none, oracle(truth, scan())], NEAR), truth)[0] < 0.5


def test_it_is_repeatable() -> None:
    evidence = [oracle(motion_of(50.0, 1.0, 2.0), scan())]
    first, again = (search_planar(evidence, NEAR) for _ in range(2))
    assert torch.equal(first.motion, again.motion)
    assert first.score == again.score


@pytest.mark.parametrize("name", ["angle", "shift"])
@pytest.mark.parametrize("value", [-1.0, math.inf, -math.inf, math.nan])
def test_a_reach_is_a_number_from_0(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match="a search up to") as caught:
        Reach(**{name: value})
    assert caught.value.field == name
    assert caught.value.remedy in ("0 or more", "180 is every heading")
