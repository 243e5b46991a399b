"""Boxes: corners by hand, membership by half-spaces, and invariance under motions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.frame import Boxes
from lidarssl.geometry.boxes import corners, points_in_boxes, transform_boxes
from lidarssl.geometry.poses import pose_from_rotation, rotation_about_z, transform_points


def make_boxes(count: int = 4, seed: int = 0) -> Boxes:
    generator = torch.Generator().manual_seed(seed)
    return Boxes(
        center=torch.randn((count, 3), generator=generator) * 10,
        size=torch.rand((count, 3), generator=generator) * 4 + 0.5,
        yaw=(torch.rand(count, generator=generator) - 0.5) * 2 * math.pi,
        label=torch.arange(count),
    )


def test_corners_of_a_turned_box() -> None:
    box = Boxes(
        torch.tensor([[1.0, 2.0, 3.0]]),
        torch.tensor([[4.0, 2.0, 1.0]]),
        torch.tensor([math.pi / 2]),
        torch.tensor([0]),
    )
    found = corners(box)[0]
    # Front left of a car that looks along +y is at smaller x and larger y.
    torch.testing.assert_close(found[0], torch.tensor([0.0, 4.0, 2.5]))
    torch.testing.assert_close(found.amin(0), torch.tensor([0.0, 0.0, 2.5]))
    torch.testing.assert_close(found.amax(0), torch.tensor([2.0, 4.0, 3.5]))


def by_half_spaces(points: Tensor, boxes: Boxes) -> Tensor:
    """Inside = between the two planes of each of the three pairs of faces."""
    corner = corners(boxes).double()
    origin = corner[:, 2]
    inside = torch.ones((len(points), len(corner)), dtype=torch.bool)
    for neighbour in (1, 3, 6):
        edge = corner[:, neighbour] - origin
        along = ((points.double()[:, None] - origin) * edge).sum(-1) / (edge * edge).sum(-1)
        inside &= (along >= 0) & (along <= 1)
    return inside


@pytest.mark.parametrize("chunk", [1, 2**22])
def test_membership_equals_half_spaces(chunk: int) -> None:
    boxes = make_boxes()
    spread = torch.randn((400, 3), generator=torch.Generator().manual_seed(1))
    points = spread + boxes.center[torch.arange(400) % 4]
    found = points_in_boxes(points, boxes, chunk=chunk)
    assert 20 < int(found.sum()) < 380
    assert torch.equal(found, by_half_spaces(points, boxes))


def test_no_boxes_and_no_points() -> None:
    assert points_in_boxes(torch.zeros((3, 3)), make_boxes(0)).shape == (3, 0)
    assert points_in_boxes(torch.zeros((0, 3)), make_boxes(2)).shape == (0, 2)


@given(st.floats(-4, 4), st.booleans(), st.booleans(), st.floats(0.5, 2), st.floats(-9, 9))
def test_points_stay_in_moved_boxes(
    angle: float, flip_x: bool, flip_y: bool, scale: float, shift: float
) -> None:
    signs = torch.tensor([-1.0 if flip_x else 1, -1.0 if flip_y else 1, 1.0], dtype=torch.float64)
    matrix = pose_from_rotation(rotation_about_z(angle) @ torch.diag(signs) * scale, (shift, 1, 2))
    boxes = make_boxes()
    for factor, expected in ((0.98, True), (1.02, False)):
        near = boxes.center[:, None] + (corners(boxes) - boxes.center[:, None]) * factor
        moved = transform_points(near.flatten(0, 1), matrix).float()
        inside = points_in_boxes(moved, transform_boxes(boxes, matrix)).reshape(4, 8, 4)
        assert all((inside[i, :, i] == expected).all() for i in range(4))
