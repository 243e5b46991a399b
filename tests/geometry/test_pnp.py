"""Camera poses of points: recovery, symmetries, gradients, and what has no pose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from torch import Tensor

from lidarssl.errors import DataError
from lidarssl.geometry.pnp import PnpSolution, epnp, nearest_rotation

seeds = st.integers(0, 2**31)


def problem(seed: int, batch: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points (B, N, 3), where they are seen, and the true rotations and translations."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    image = 2 * uniform(batch, count, 2) - 1
    depth = 2 + 30 * uniform(batch, count, 1)
    quaternion = torch.randn(batch, 4, generator=generator, dtype=torch.float64)
    rotation = torch.from_numpy(Rotation.from_quat(quaternion.numpy()).as_matrix())
    translation = 10 * uniform(batch, 3) - 5
    camera = torch.cat([image, torch.ones_like(depth)], 2) * depth
    return (camera - translation[:, None]) @ rotation, image, rotation, translation


def noisy(seed: int, batch: int, count: int, noise: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    points, image, rotation, translation = problem(seed, batch, count)
    generator = torch.Generator().manual_seed(seed + 1)
    offset = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    return points, image + noise * offset, rotation, translation


def some_weights(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.1 + torch.rand(shape, generator=generator, dtype=torch.float64)


def close(actual: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(6, 40), st.sampled_from([0, 3]), st.booleans())
def test_exact_data_give_the_true_pose(seed: int, count: int, refine: int, signed: bool) -> None:
    points, image, rotation, translation = problem(seed, 3, count)
    found = epnp(points, image, refine=refine, signed=signed)
    assert found.valid.all()
    close(found.rotation, rotation, 1e-9)
    close(found.translation, translation, 1e-9)
    close(found.camera_points, points @ rotation.mT + translation[:, None], 1e-9)
    assert float(found.error_2d.max()) < 1e-9


@settings(max_examples=20, deadline=None)
@given(seeds, st.booleans(), st.booleans())
def test_moving_the_points_moves_the_pose(seed: int, quadratic: bool, weighted: bool) -> None:
    points, image, _, _ = noisy(seed, 2, 20, 0.01)
    weights = some_weights(2, 20) if weighted else None
    _, _, turn, step = problem(seed + 1, 2, 6)
    here = epnp(points, image, weights, quadratic, refine=30)
    there = epnp(points @ turn.mT + step[:, None], image, weights, quadratic, refine=30)
    if weights is None:
        close(there.error_2d, here.error_2d, 1e-4)
    close(there.rotation @ turn, here.rotation, 1e-5)
    moved = (there.rotation @ step[..., None])[..., 0] + there.translation
    close(moved, here.translation, 1e-4)


def test_reprojection_error_is_that_of_the_pose() -> None:
    points, image, _, _ = noisy(0, 4, 30, 0.01)
    weights = some_weights(4, 30)
    found = epnp(points, image, weights)
    numbers = [part.numpy() for part in (points, image, weights, *found[:5])]
    for x, seen, weight, rotation, translation, camera, error_2d, error_3d in zip(
        *numbers, strict=True
    ):
        moved = [rotation @ point + translation for point in x]
        far = [
            np.hypot(*(place[:2] / place[2] - uv)) for place, uv in zip(moved, seen, strict=True)
        ]
        gap = [np.sum((a - b) ** 2) for a, b in zip(moved, camera, strict=True)]
        assert error_2d == pytest.approx(np.average(far, weights=weight), rel=1e-9)
        assert error_3d == pytest.approx(np.average(gap, weights=weight), rel=1e-9)


def test_refined_pose_is_the_least_squares_pose() -> None:
    points, image, _, _ = noisy(3, 1, 25, 0.02)
    found = epnp(points, image, refine=10)

    def offsets(vector: object) -> object:
        turn = Rotation.from_rotvec(vector[:3]).as_matrix()  # type: ignore[index]
        camera = points[0].numpy() @ (turn @ found.rotation[0].numpy()).T + vector[3:]  # type: ignore[index]
        return (camera[:, :2] / camera[:, 2:] - image[0].numpy()).ravel()

    start = [0.0, 0.0, 0.0, *found.translation[0].tolist()]
    best = least_squares(offsets, start, xtol=1e-15, ftol=1e-15, gtol=1e-15)  # type: ignore[arg-type]
    assert best.x[:3] == pytest.approx([0, 0, 0], abs=1e-7)
    assert best.x[3:] == pytest.approx(found.translation[0].tolist(), abs=1e-6)
    plain = epnp(points, image)
    assert _squares(points, image, found) < _squares(points, image, plain)


def _squares(points: Tensor, image: Tensor, found: PnpSolution) -> float:
    camera = points @ found.rotation.mT + found.translation[:, None]
    return float((camera[..., :2] / camera[..., 2:] - image).square().sum())


def test_points_of_weight_zero_do_not_matter() -> None:
    points, image, _, _ = noisy(4, 2, 30, 0.02)
    weights = torch.ones(2, 30, dtype=torch.float64)
    weights[:, 20:] = 0
    expected = epnp(points[:, :20], image[:, :20])
    points[:, 20:], image[:, 25:] = float("nan"), float("inf")
    found = epnp(points, image, weights)
    assert found.valid.all()
    close(found.rotation, expected.rotation, 1e-9)
    close(found.translation, expected.translation, 1e-8)


def test_the_scale_of_weights_does_not_matter() -> None:
    points, image, _, _ = noisy(5, 2, 30, 0.02)
    weights = some_weights(2, 30)
    expected, found = epnp(points, image, weights), epnp(points, image, weights * 1e-200)
    assert found.valid.all()
    close(found.rotation, expected.rotation, 1e-9)


def test_signs_of_singular_vectors_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    points, image, _, _ = noisy(6, 64, 12, 0.05)
    poses = {signed: epnp(points, image, signed=signed).rotation for signed in (False, True)}
    plain = torch.linalg.eigh

    def turned(matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = plain(matrix)
        return values, vectors * torch.tensor([1.0, -1, 1, -1] * 3, dtype=torch.float64)

    monkeypatch.setattr(torch.linalg, "eigh", turned)
    close(epnp(points, image, signed=True).rotation, poses[True], 1e-8)
    published = (epnp(points, image, signed=False).rotation - poses[False]).abs().amax(
        (1, 2)
    ) > 1e-6
    assert 0 < int(published.sum()) < 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float64(dtype: torch.dtype) -> None:
    points, image, _, _ = noisy(7, 2, 30, 0.01)
    points, image = points.to(dtype), image.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = epnp(points, image)
    expected = epnp(points.double(), image.double())
    assert found.rotation.dtype == dtype
    assert torch.equal(found.rotation, expected.rotation.to(dtype))
    assert torch.equal(found.translation, expected.translation.to(dtype))


@pytest.mark.parametrize(
    "options",
    [{}, {"quadratic": False}, {"signed": False}, {"refine": 3}],
    ids=["plain", "one vector", "published signs", "refined"],
)
def test_gradients(options: dict[str, Any]) -> None:
    points, image, _, _ = noisy(8, 2, 10, 0.03)

    def solve(y: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return epnp(points, y, w, **options)[:5]

    inputs = (image.requires_grad_(), some_weights(2, 10).requires_grad_())
    assert torch.autograd.gradcheck(solve, inputs, atol=1e-5, rtol=1e-4)


def test_gradients_to_points_hold_the_control_points() -> None:
    """Refined poses do not depend on the control points, whose gradient is left out."""
    points, image, _, _ = noisy(8, 1, 10, 0.03)

    def solve(x: Tensor) -> tuple[Tensor, ...]:
        return epnp(x, image, refine=12)[:2]

    assert torch.autograd.gradcheck(solve, (points.requires_grad_(),), atol=1e-4, rtol=1e-3)


def test_nearest_rotation_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(6, 3, 3, generator=generator, dtype=torch.float64)
    matrices[0] = torch.diag(torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64))
    matrices[1] = torch.eye(3)
    found = nearest_rotation(matrices)
    close(torch.linalg.det(found), torch.ones(6, dtype=torch.float64), 1e-12)
    others = torch.from_numpy(Rotation.random(2000, random_state=0).as_matrix())
    scores = torch.einsum("bij,rij->br", matrices, others)
    assert ((found * matrices).sum((1, 2)) >= scores.amax(1) - 1e-12).all()
    assert torch.autograd.gradcheck(nearest_rotation, (matrices.requires_grad_(),))


def _degenerate() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Name -> points (16, 3), image (16, 2) and weights (16,) that have no pose."""
    points, image = (part[0] for part in problem(9, 1, 16)[:2])
    one, row = torch.ones(16, dtype=torch.float64), torch.arange(16)
    line = row[:, None] * torch.tensor([1.0, 2, 3], dtype=torch.float64)
    flat = points * torch.tensor([1.0, 1, 0], dtype=torch.float64)
    hole = torch.where(row[:, None] == 3, float("nan"), points)
    turn = problem(10, 1, 6)[2][0]
    return {
        "plane": (flat, image, one),
        "tilted plane": (flat @ turn.T + 3, image, one),
        "line": (line, image, one),
        "equal points": (points[:1].expand(16, 3), image, one),
        "all zero": (points * 0, image * 0, one),
        "five points repeated": (points[row % 5], image[row % 5], one),
        "one place in the image": (points, image[:1].expand(16, 2), one),
        "zero weights": (points, image, 0 * one),
        "five weights": (points, image, (row < 5).double()),
        "negative weights": (points, image, -one),
        "NaN weights": (points, image, one * float("nan")),
        "a NaN point": (hole, image, one),
        "infinite image": (points, image * float("inf"), one),
        "huge points": (points * 1e200, image, one),
    }


@pytest.mark.parametrize("refine", [0, 3])
@pytest.mark.parametrize("name", _degenerate())
def test_what_has_no_pose_is_flagged_and_harms_nothing(name: str, refine: int) -> None:
    good = tuple(part[0] for part in noisy(11, 1, 16, 0.01)[:2])
    good = (*good, 0.5 + torch.arange(16).double() / 16)
    both = [torch.stack([a, b]) for a, b in zip(good, _degenerate()[name], strict=True)]
    together = _solved_with_gradients(both, refine)
    alone = _solved_with_gradients([part[None] for part in good], refine)
    found, gradients = together
    assert found.valid.tolist() == [True, False]
    assert torch.equal(found.rotation[1], torch.eye(3, dtype=torch.float64))
    for value in (*found[1:5], *gradients):
        assert not value[1].any()
    for value, expected in zip((*found[:5], *gradients), (*alone[0][:5], *alone[1]), strict=True):
        torch.testing.assert_close(value[0], expected[0], rtol=1e-6, atol=1e-9)


def _solved_with_gradients(inputs: list[Tensor], refine: int) -> tuple[PnpSolution, list[Tensor]]:
    leaves = [part.clone().requires_grad_() for part in inputs]
    found = epnp(*leaves, refine=refine)  # type: ignore[arg-type]
    sum((value * (1 + value.detach())).sum() for value in found[:5]).backward()  # type: ignore[union-attr]
    gradients = [leaf.grad for leaf in leaves]
    assert all(gradient is not None for gradient in gradients)
    return found, gradients  # type: ignore[return-value]


@settings(max_examples=60, deadline=None)
@given(
    seeds,
    st.integers(6, 12),
    st.sampled_from([0.0, 1e-30, 1e-9, 1.0, 1e3, 1e6]),
    st.sampled_from([0.0, 1e-9, 1.0, 1e3]),
    st.sampled_from([torch.float16, torch.float32, torch.float64]),
    st.sampled_from([0, 2]),
)
def test_anything_gives_finite_numbers(
    seed: int, count: int, size: float, image_size: float, dtype: torch.dtype, refine: int
) -> None:
    """Also points on a lattice, whose moments and singular values are equal."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(-1, 2, (3, count, 3), generator=generator).double()
    points[0] = torch.randn(count, 3, generator=generator)
    image = torch.randint(-1, 2, (3, count, 2), generator=generator).double()
    weights = torch.randint(0, 3, (3, count), generator=generator).double()
    inputs = [(points * size).to(dtype), (image * image_size).to(dtype), weights.to(dtype)]
    found, gradients = _solved_with_gradients(inputs, refine)
    for value in (*found[:5], *gradients):
        assert value.isfinite().all()


def test_points_behind_the_camera_have_a_finite_answer() -> None:
    points, image, rotation, translation = noisy(12, 1, 20, 0.01)
    mirrored = points - 2 * (points @ rotation.mT + translation[:, None])[..., 2:] * rotation[:, 2:]
    found, gradients = _solved_with_gradients([mirrored, image, torch.ones_like(image[..., 0])], 0)
    for value in (*found[:5], *gradients):
        assert value.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 16), (3, 0), (3, 5), (0, 0), (2, 1)])
def test_few_points_and_small_batches(shape: tuple[int, int]) -> None:
    inputs = [torch.full((*shape, 3), torch.nan), torch.zeros(*shape, 2), torch.ones(*shape)]
    found, gradients = _solved_with_gradients(inputs, 0)
    assert found.rotation.shape == (shape[0], 3, 3)
    assert found.translation.shape == (shape[0], 3)
    assert found.camera_points.shape == (*shape, 3)
    assert found.error_2d.shape == found.error_3d.shape == (shape[0],)
    assert not found.valid.any()
    assert found.valid.shape == shape[:1]
    assert all(not gradient.any() for gradient in gradients)


def test_shapes_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(DataError, match="shapes"):
        epnp(torch.zeros(2, 6, 3), torch.zeros(2, 7, 2))
    with pytest.raises(DataError, match="weights"):
        epnp(torch.zeros(2, 6, 3), torch.zeros(2, 6, 2), torch.zeros(2, 7))
