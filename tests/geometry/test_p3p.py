"""Poses of three points each."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from lidarssl.geometry.p3p import p3p


def triples(seed: int, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = 2 * torch.rand(batch, 3, 2, generator=generator, dtype=torch.float64) - 1
    depth = 2 + 20 * torch.rand(batch, 3, 1, generator=generator, dtype=torch.float64)
    quaternion = torch.randn(batch, 4, generator=generator, dtype=torch.float64)
    rotation = torch.from_numpy(Rotation.from_quat(quaternion.numpy()).as_matrix())
    translation = torch.randn(batch, 3, generator=generator, dtype=torch.float64)
    camera = torch.cat([image, torch.ones_like(depth)], 2) * depth
    return (camera - translation[:, None]) @ rotation, image, rotation, translation


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_the_true_pose_is_among_them(seed: int) -> None:
    points, image, rotation, translation = triples(seed, 50)
    found = p3p(points, image)
    turned = (found.rotation.unflatten(0, (50, 4)) - rotation[:, None]).abs().amax((2, 3))
    moved = (found.translation.unflatten(0, (50, 4)) - translation[:, None]).abs().amax(2)
    off = torch.maximum(turned, moved).amin(1)
    # Double roots, where two poses meet, keep half of the digits.
    assert float(off.median()) < 1e-9
    assert int((off > 1e-4).sum()) <= 1


@pytest.mark.parametrize("shape", ["point", "line", "one ray", "huge"])
def test_degenerate_triples_give_finite_rigid_motions(shape: str) -> None:
    points, image, _, _ = triples(0, 4)
    if shape == "point":
        points = points[:, :1].expand(4, 3, 3)
    elif shape == "line":
        points = points[:, :1] * torch.arange(3)[:, None]
    elif shape == "one ray":
        image = image[:, :1].expand(4, 3, 2)
    else:
        points = points * 1e6
    found = p3p(points, image)
    identity = torch.eye(3, dtype=torch.float64).expand(16, 3, 3)
    torch.testing.assert_close(found.rotation @ found.rotation.mT, identity, atol=1e-9, rtol=0)
    assert found.translation.isfinite().all()


def test_no_triples() -> None:
    found = p3p(torch.zeros(0, 3, 3).double(), torch.zeros(0, 3, 2).double())
    assert found.rotation.shape == (0, 3, 3)
