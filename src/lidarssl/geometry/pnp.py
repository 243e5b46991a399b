"""The pose of a camera from points and where it sees them, in batches and with gradients.

Source: Lepetit et al., "EPnP: An Accurate O(n) Solution to the PnP Problem", IJCV 2009, in the
differentiable form that NCLR (arXiv 2401.12452) trains with. Singular and eigen decompositions
are found without gradients; their first-order change is then added, which is 0 in value. So a
gradient needs no difference of singular values that the pose itself does not depend on.

Image coordinates are normalised, K^-1 (x, y, 1); a camera looks along +z.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lidarssl.errors import DataError
from lidarssl.geometry.pose_refinement import Poses, Sightings, move, refine_pose, residuals

MIN_POINTS = 6
"""Distinct points below which EPnP has no single answer."""

_MIN_PIXELS = 3
_LARGEST = 1e6
_FLATNESS = 1e-4
_LIGHTEST = 1e-6
_FLOOR = 1e-9
_PAIRS = ((0, 0, 0, 1, 1, 2), (1, 2, 3, 2, 3, 3))
_PRODUCTS = ((0, 1, 2, 3, 0, 0, 0, 1, 1, 2), (0, 1, 2, 3, 1, 2, 3, 2, 3, 3))


class PnpSolution(NamedTuple):
    """Poses of B cameras.

    Attributes:
        rotation: (B, 3, 3) and
        translation: (B, 3) m of camera_from_points: a point p is at ``rotation @ p + translation``.
        camera_points: (B, N, 3) m, where the linear solution puts the points in the camera frame.
        error_2d: (B,) mean distance of projected and given image coordinates.
        error_3d: (B,) mean squared distance of moved points to ``camera_points``, m^2.
        valid: (B,) bool; where False, the pose is the identity, and has no gradient.
    """

    rotation: Tensor
    translation: Tensor
    camera_points: Tensor
    error_2d: Tensor
    error_3d: Tensor
    valid: Tensor


def epnp(
    points: Tensor,
    image: Tensor,
    weights: Tensor | None = None,
    quadratic: bool = True,
    signed: bool = True,
    refine: int = 0,
) -> PnpSolution:
    """Camera poses of least reprojection error among EPnP's closed-form candidates.

    Computed in float64 (float32 on devices without it), whatever the inputs are. Never raises
    for what the numbers are, nor yields NaN or Inf in results or gradients: what cannot be
    solved is flagged, and does not disturb the rest of the batch.

    Args:
        points: (B, N, 3) m.
        image: (B, N, 2) normalised image coordinates.
        weights: (B, N) >= 0, of the residuals of the linear system (so squared in its squares),
            and of all means; rows of weight 0 may hold anything. None = all 1.
        quadratic: also try combinations of the four kernel vectors that keep distances; without,
            only the vector of the smallest eigenvalue.
        signed: let the second weight of the third combination keep its sign. False as published:
            one of the candidates then depends on the sign of singular vectors, which is
            arbitrary: with noise, about one pose in eight does.
        refine: steps of Gauss-Newton on the squared reprojection error, of which the published
            algorithm has none. Some five of them give the least-squares pose. Exact data do not
            need them: 6 random points give rotation and translation to 1e-11, steps to 1e-13.

    Returns:
        Poses in the dtype of ``points``, with first derivatives. Valid is an element whose values
        are finite and at most 1e6; that has 6 distinct points of positive weight, and not all in
        one or two places of the image; whose points are not within 1e-4 of their extent of a
        plane, where the four control points have no single position; and whose pose has most
        of the weight in front of the camera. How good a valid pose is, ``error_2d`` says.

    Raises:
        DataError: shapes that do not fit each other.
    """
    _check_shapes(points, image, weights)
    dtype = torch.float32 if points.device.type == "mps" else torch.float64
    with torch.autocast(points.device.type, enabled=False):
        # Guarded in their own dtype, to which the cast may overflow.
        x, y = _guard(points).to(dtype), _guard(image).to(dtype)
        w = torch.ones_like(x[..., 0]) if weights is None else _guard(weights).to(dtype)
        if points.shape[1] < MIN_POINTS or not len(points):
            return _nothing(points, image, weights)
        valid = _solvable(x.detach(), y.detach(), w.detach())
        x, y, w = _made_solvable(x, y, w, valid)
        solution = _solve(x, y, w, quadratic, signed)
        if refine:
            solution = _refined(solution, x, y, w, refine)
        front = (solution.rotation[:, 2:] @ x.mT)[:, 0] + solution.translation[:, 2:] > _FLOOR
        valid = valid & ((w * front).sum(1) > w.sum(1) / 2)
    return _flagged(solution, valid, points.dtype)


def nearest_rotation(matrix: Tensor) -> Tensor:
    """Rotations (..., 3, 3) that maximise trace(R^T M) of matrices M (..., 3, 3).

    The gradient divides by sums of singular values, and is 0 where they vanish: where the
    rotation is not unique.
    """
    with torch.no_grad():
        u, s, vt = torch.linalg.svd(matrix)
        sign = torch.linalg.det(u @ vt).sign()
        e = torch.cat([torch.ones_like(s[..., :2]), sign[..., None]], -1)
        rotation, p = u * e[..., None, :] @ vt, s * e
        total = p[..., :, None] + p[..., None, :]
        tiny = torch.finfo(s.dtype).eps * s[..., :1, None]
        factor = torch.where(total.abs() > tiny, 1 / total, 0.0)
    turned = rotation.mT @ matrix
    change = vt @ (turned - turned.mT) @ vt.mT
    change = (change - change.detach()) * factor
    return rotation + rotation @ vt.mT @ change @ vt


def _check_shapes(points: Tensor, image: Tensor, weights: Tensor | None) -> None:
    fits = points.ndim == 3 and points.shape[2] == 3 and image.shape == (*points.shape[:2], 2)
    if not fits or (weights is not None and weights.shape != points.shape[:2]):
        shapes = [tuple(t.shape) for t in (points, image, weights) if t is not None]
        raise DataError(
            f"points, image coordinates and weights of shapes {shapes}",
            field="points, image, weights",
            remedy="give (B, N, 3), (B, N, 2) and (B, N)",
        )


def _solvable(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Which elements have one answer, (B,) bool."""
    largest = torch.cat([x, y], 2).abs().amax(2)
    # Comparisons with NaN are False.
    fine = (((largest <= _LARGEST) | (w == 0)) & (w >= 0) & (w < float("inf"))).all(1)
    counts = (w > _LIGHTEST * w.amax(1, keepdim=True)) & fine[:, None]
    x = torch.where(counts[..., None], x, 0.0)
    middle = x.sum(1) / counts.sum(1, keepdim=True).clamp(min=1)
    centered = torch.where(counts[..., None], x - middle[:, None], 0.0)
    spread = torch.linalg.eigvalsh(centered.mT @ centered)
    solid = spread[:, 0] > _FLATNESS**2 * spread[:, 2]
    enough = (_distinct(x, counts) >= MIN_POINTS) & (_distinct(y, counts) >= _MIN_PIXELS)
    return fine & solid & enough


def _distinct(x: Tensor, used: Tensor) -> Tensor:
    """How many different rows of (B, N, C) are used, (B,): told apart by a generic direction."""
    place = x.nan_to_num() @ x.new_tensor([1.0, 2**0.5, 3**0.5])[: x.shape[2]]
    place = torch.where(used, place, float("inf")).sort(1).values
    steps = (place[:, 1:] > place[:, :-1]) & place[:, 1:].isfinite()
    return steps.sum(1) + used.any(1)


def _made_solvable(x: Tensor, y: Tensor, w: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Well-conditioned numbers in place of elements without an answer, and of rows of weight 0.

    Weights are divided by the largest, so that their squares do not vanish.
    """
    number = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)[:, None]
    points = torch.sin(number * x.new_tensor([1.3, 2.1, 2.9]) + x.new_tensor([0.0, 1.0, 2.0]))
    image = points[:, :2] / (points[:, 2:] + 4) + 0.01 * torch.sin(3.7 * number)
    valid = valid[:, None]
    kept = (valid & (w > 0))[..., None]
    x = torch.where(kept, x, torch.where(valid[..., None], 0.0, points))
    y = torch.where(kept, y, torch.where(valid[..., None], 0.0, image))
    w = torch.where(kept[..., 0], w, torch.where(valid, 0.0, 1.0))
    return x, y, w / w.detach().amax(1, keepdim=True)


def _nothing(points: Tensor, image: Tensor, weights: Tensor | None) -> PnpSolution:
    """The answer where no element has one; zeros, still part of the graph."""
    zero = points.new_zeros(len(points))
    for given in (points, image, weights):
        if given is not None:
            zero = zero + given.flatten(1)[:, :0].sum(1)
    rotation = torch.eye(3, dtype=points.dtype, device=points.device) + zero[:, None, None]
    return PnpSolution(
        rotation, rotation[:, 0] * 0, torch.zeros_like(points) + zero[:, None, None], zero, zero,
        torch.zeros_like(zero, dtype=torch.bool),
    )  # fmt: skip


class _ZeroBadGradients(torch.autograd.Function):
    """The identity; elements whose gradient is not finite everywhere get none."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        gradient = gradients[0]
        fine = gradient.flatten(1).isfinite().all(1)
        return torch.where(fine.view(-1, *[1] * (gradient.ndim - 1)), gradient, 0.0)


def _guard(values: Tensor) -> Tensor:
    guarded: Tensor = _ZeroBadGradients.apply(values)
    return guarded


def _solve(x: Tensor, y: Tensor, w: Tensor, quadratic: bool, signed: bool) -> PnpSolution:
    """EPnP of problems that have an answer."""
    offsets = torch.cat([torch.eye(3, dtype=x.dtype, device=x.device), x.new_zeros(1, 3)])
    control = _mean(x.detach(), w)[:, None] + offsets
    local = x - control[:, 3:]
    alpha = torch.cat([local, 1 - local.sum(2, keepdim=True)], 2)
    kernel = _kernel(_constraints(alpha, y, w))
    beta = _combinations(kernel, control, signed)[:, : 4 if quadratic else 1]
    camera = alpha[:, None] @ torch.einsum("bck,bkij->bcij", beta, kernel)
    camera = camera * _sign(_mean(camera, w[:, None])[..., 2])[..., None, None]
    pose, camera = _align(x[:, None], camera, w[:, None])
    error_2d = _error_2d(pose, x[:, None], y[:, None], w[:, None])
    best = torch.where(error_2d.isfinite(), error_2d, float("inf")).detach().argmin(1)
    row = torch.arange(len(x), device=x.device)
    pose, camera = Poses(*(part[row, best] for part in pose)), camera[row, best]
    return PnpSolution(
        *pose, camera, error_2d[row, best], _error_3d(pose, x, camera, w),
        torch.ones_like(best, dtype=torch.bool),
    )  # fmt: skip


def _constraints(alpha: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """(B, 2 N, 12): what the control points in the camera frame must be orthogonal to."""
    one, zero = torch.ones_like(y[..., 0]), torch.zeros_like(y[..., 0])
    u, v = y.unbind(2)
    across = torch.stack([torch.stack([one, zero, -u], 2), torch.stack([zero, one, -v], 2)], 2)
    rows = alpha[:, :, None, :, None] * across[:, :, :, None]
    return (rows.flatten(3) * w[:, :, None, None]).flatten(1, 2)


def _kernel(rows: Tensor) -> Tensor:
    """Right singular vectors of the four smallest singular values, ascending, (B, 4, 4, 3).

    Their change is that of the eigenvectors of rows^T rows; a difference of eigenvalues that is
    lost in rounding contributes none.
    """
    with torch.no_grad():
        s, vt = torch.linalg.svd(torch.linalg.qr(rows, mode="r")[1])[1:]
        every, s = vt.flip(-2).mT, s.flip(-1).square()
        # The signs of the published code: its third combination depends on them.
        signs = (every * torch.linalg.eigh(rows.mT @ rows)[1]).sum(-2, keepdim=True)
        every = every * _sign(signs)
        last = every[..., :4]
        gap = s[..., None, :4] - s[..., :, None]
        tiny = torch.finfo(s.dtype).eps * s[..., -1:, None]
        factor = torch.where(gap.abs() > tiny, 1 / gap, 0.0)
    change = (rows @ every).mT @ (rows @ last)
    change = (change - change.detach()) * factor
    return (last + every @ change).mT.unflatten(-1, (4, 3))


def _combinations(kernel: Tensor, control: Tensor, signed: bool) -> Tensor:
    """Candidate weights of the four kernel vectors, (B, 4, 4): the first alone, then others."""
    apart = kernel[:, :, _PAIRS[0]] - kernel[:, :, _PAIRS[1]]
    products = (apart[:, _PRODUCTS[0]] * apart[:, _PRODUCTS[1]]).sum(3).mT
    products = products * kernel.new_tensor([1.0] * 4 + [2.0] * 6)
    square = (control[:, _PAIRS[0]] - control[:, _PAIRS[1]]).square().sum(2)
    first = _least_squares(products[..., [0, 4, 5, 6]], square)
    first = first * (_sign(first[:, :1]) / _root(first[:, :1]).clamp(min=_FLOOR))
    zero = torch.zeros_like(first[:, 0])
    b11, b12, b22 = _least_squares(products[..., [0, 4, 1]], square).unbind(1)
    second = torch.stack([*_two(b11, b12, b22), zero, zero], 1)
    b11, b12, b22, b13, _ = _least_squares(products[..., [0, 4, 1, 5, 7]], square).unbind(1)
    one, two = _two(b11, b12, b22)
    divisor = _sign(one) * one.abs().clamp(min=_FLOOR) if signed else one.clamp(min=_FLOOR)
    third = torch.stack([one, two, b13 / divisor, zero], 1)
    alone = kernel.new_tensor([1.0, 0, 0, 0]).expand(len(kernel), 4)
    return torch.stack([alone, first, second, third], 1)


def _two(b11: Tensor, b12: Tensor, b22: Tensor) -> tuple[Tensor, Tensor]:
    """Two weights from their products."""
    same = _sign(b11) == _sign(b22)
    return _root(b11) * _sign(b12), torch.where(same, _root(b22), 0.0)


def _least_squares(matrix: Tensor, target: Tensor) -> Tensor:
    return (torch.linalg.pinv(matrix) @ target[..., None])[..., 0]


def _align(x: Tensor, camera: Tensor, w: Tensor) -> tuple[Poses, Tensor]:
    """Rigid motion of points onto camera points freed of their scale (Umeyama 1991).

    Weights enter the covariance squared, as they do the linear system.
    """
    middle, goal = _mean(x, w), _mean(camera, w)
    centered = (x - middle[..., None, :]) * w[..., None]
    covariance = ((camera - goal[..., None, :]) * w[..., None]).mT @ centered
    rotation = nearest_rotation(covariance)
    spread = centered.square().sum((-1, -2))
    scale = ((rotation * covariance).sum((-1, -2)) / spread).clamp(min=_FLOOR)[..., None]
    moved = goal / scale - (rotation @ middle[..., None])[..., 0]
    return Poses(rotation, moved), camera / scale[..., None]


def _error_2d(pose: Poses, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    lens = torch.eye(2, dtype=x.dtype, device=x.device)
    far = torch.linalg.vector_norm(residuals(pose, Sightings(x, y, w, lens)), dim=-1)
    return (w * far).sum(-1) / w.sum(-1)


def _error_3d(pose: Poses, x: Tensor, camera: Tensor, w: Tensor) -> Tensor:
    return (w * (move(x, pose) - camera).square().sum(-1)).sum(-1) / w.sum(-1)


def _refined(solution: PnpSolution, x: Tensor, y: Tensor, w: Tensor, steps: int) -> PnpSolution:
    seen = Sightings(x, y, w, torch.eye(2, dtype=x.dtype, device=x.device))
    pose = refine_pose(Poses(solution.rotation, solution.translation), seen, steps)
    return solution._replace(
        rotation=pose.rotation,
        translation=pose.translation,
        error_2d=_error_2d(pose, x, y, w),
        error_3d=_error_3d(pose, x, solution.camera_points, w),
    )


def _flagged(solution: PnpSolution, valid: Tensor, dtype: torch.dtype) -> PnpSolution:
    """The solution where it is valid and finite; elsewhere the identity."""
    values = [value.to(dtype) for value in solution[:5]]
    for value in values:
        valid = valid & value.detach().reshape(len(valid), -1).isfinite().all(1)
    identity = torch.eye(3, dtype=dtype, device=valid.device)
    rotation, translation, camera, error_2d, error_3d = (
        torch.where(valid.view(-1, *[1] * (value.ndim - 1)), value, 0.0) for value in values
    )
    rotation = torch.where(valid[:, None, None], rotation, identity)
    return PnpSolution(rotation, translation, camera, error_2d, error_3d, valid)


def _mean(values: Tensor, w: Tensor) -> Tensor:
    """Weighted mean over the points: (..., N, C), (..., N) -> (..., C)."""
    return (w[..., None] * values).sum(-2) / w.sum(-1, keepdim=True)


def _sign(values: Tensor) -> Tensor:
    """+1 of 0, unlike torch.sign."""
    return torch.where(values < 0, -1.0, 1.0).to(values)


def _root(values: Tensor) -> Tensor:
    """Square root of the absolute value, of gradient 0 at 0."""
    size = values.abs()
    return torch.where(size > 0, torch.where(size > 0, size, 1.0).sqrt(), 0.0)
