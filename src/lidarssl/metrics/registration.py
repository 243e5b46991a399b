"""How far an estimated lidar-to-camera pose is from the true one, and how good its matches are.

Source: the protocol of DeepI2P (Li & Lee, CVPR 2021) and CorrI2P (Ren et al., TCSVT 2022), which
NCLR's calibration follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lidarssl.geometry.poses import geodesic_angle, invert_pose

MAX_TRANSLATION = 2.0
"""m, below which a registration counts as a success."""

MAX_ROTATION = 5.0
"""Degrees, below which a registration counts as a success."""

TRANSLATION_STEPS = tuple(0.5 * step for step in range(30))
"""m, at which the published curves are taken."""

ROTATION_STEPS = tuple(float(step) for step in range(30))
"""Degrees, at which the published curves are taken."""

INLIER_RADII = (1.0, 2.0, 3.0)
"""Cells, at which the inlier ratio of matches is taken."""

_LOCKED = 1e-7


@dataclass(frozen=True)
class RegistrationErrors:
    """Errors of B poses, (B,) float64.

    Attributes:
        rotation: degrees, angle of the rotation between the two.
        euler: degrees, sum of the absolute Euler angles of that rotation, as the literature has
            it: between 1 and about sqrt(3) times ``rotation`` where it is small.
        translation: m, length of the translation of pred^-1 true.
    """

    rotation: Tensor
    euler: Tensor
    translation: Tensor

    def __getitem__(self, index: Tensor) -> RegistrationErrors:
        return RegistrationErrors(*(getattr(self, item.name)[index] for item in fields(self)))


def registration_errors(predicted: Tensor, truth: Tensor) -> RegistrationErrors:
    """Errors of rigid poses (B, 4, 4), e.g. camera_from_lidar, against the true ones (B, 4, 4).

    Both are of the motion pred^-1 true.
    """
    between = invert_pose(predicted.double()) @ truth.double()
    return RegistrationErrors(
        geodesic_angle(predicted[..., :3, :3], truth[..., :3, :3]).rad2deg(),
        euler_angles(between[..., :3, :3]).abs().sum(-1),
        between[..., :3, 3].norm(dim=-1),
    )


def euler_angles(rotation: Tensor) -> Tensor:
    """Extrinsic Euler angles in the axis order x, z, y of rotations (..., 3, 3).

    Returns:
        (..., 3) degrees a, b, c with R = Ry(c) Rz(b) Rx(a), b in [-90, 90]: what
        ``scipy.spatial.transform.Rotation.as_euler("xzy")`` gives. Where b is at an end, a and c
        turn about one axis: c is 0.
    """
    r = rotation.double()
    cos_b = torch.hypot(r[..., 0, 0], r[..., 2, 0])
    locked = cos_b < _LOCKED
    a = torch.where(
        locked,
        torch.atan2(r[..., 2, 1], r[..., 2, 2]),
        torch.atan2(-r[..., 1, 2], r[..., 1, 1]),
    )
    c = torch.where(locked, 0.0, torch.atan2(-r[..., 2, 0], r[..., 0, 0]))
    return torch.stack([a, torch.atan2(r[..., 1, 0], cos_b), c], -1).rad2deg()


@dataclass(frozen=True)
class Spread:
    """Of the values of a sample; None without any.

    Attributes:
        median, mean: of the values.
        std: standard deviation over the values, not of a population they are drawn from.
    """

    median: float | None
    mean: float | None
    std: float | None


@dataclass(frozen=True)
class RegistrationSummary:
    """What is said of B registrations.

    Attributes:
        count: B.
        failed: those without a pose: no success, and left out of the spreads.
        rotation, euler: degrees.
        translation: m.
        success: share of all B with translation < 2 m and ``rotation`` < 5 degrees, None of none.
        euler_success: the same with ``euler`` < 5 degrees, as the literature counts.
    """

    count: int
    failed: int
    rotation: Spread
    euler: Spread
    translation: Spread
    success: float | None
    euler_success: float | None


def summarise(errors: RegistrationErrors, valid: Tensor) -> RegistrationSummary:
    """Medians, means and success rates.

    Args:
        errors: of B registrations; anything where there is no pose.
        valid: (B,) bool, whether there is a pose.
    """
    count, found = len(valid), errors[valid]
    near = valid & (errors.translation < MAX_TRANSLATION)
    return RegistrationSummary(
        count,
        count - int(valid.sum()),
        _spread(found.rotation),
        _spread(found.euler),
        _spread(found.translation),
        _share(near & (errors.rotation < MAX_ROTATION)),
        _share(near & (errors.euler < MAX_ROTATION)),
    )


def fractions_below(values: Tensor, valid: Tensor, steps: Sequence[float]) -> list[float]:
    """Share of registrations whose error is below each step, 0 of none.

    Args:
        values: (B,) errors; anything where ``valid`` is not.
        valid: (B,) bool; a registration without a pose is below nothing.
        steps: in the unit of the values.
    """
    return [_share(valid & (values < step)) or 0.0 for step in steps]


@dataclass(frozen=True)
class MaskQuality:
    """Of a predicted mask; None where nothing was predicted, or nothing is true.

    Attributes:
        precision: true ones among the predicted.
        recall: predicted ones among the true.
        iou: both, among either.
    """

    precision: float | None
    recall: float | None
    iou: float | None


def mask_quality(predicted: Tensor, truth: Tensor) -> MaskQuality:
    """Of a mask of any shape, bool, against the true one."""
    both = int((predicted & truth).sum())
    counts = int(predicted.sum()), int(truth.sum()), int((predicted | truth).sum())
    return MaskQuality(*(both / count if count else None for count in counts))


def inlier_ratios(distance: Tensor, radii: Sequence[float] = INLIER_RADII) -> list[float | None]:
    """Share of matches (M,) at most each radius from where they should be, None of none."""
    return [_share(distance <= radius) for radius in radii]


def _share(mask: Tensor) -> float | None:
    return float(mask.double().mean()) if len(mask) else None


def _spread(values: Tensor) -> Spread:
    if not len(values):
        return Spread(None, None, None)
    return Spread(
        float(values.double().quantile(0.5)),
        float(values.mean()),
        float(values.std(correction=0)),
    )
