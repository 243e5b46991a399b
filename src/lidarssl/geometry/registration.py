"""The pose of a camera from many matches of points and pixels, most of which may be wrong.

Random smallest subsets each propose poses; all are scored by all matches, with an error that
saturates at a threshold (MSAC: Torr and Zisserman 2000); the best are refined by Gauss-Newton
under a robust cost (Geman-McClure), and the one that then explains most is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.geometry.p3p import p3p
from lidarssl.geometry.pnp import MIN_POINTS, epnp
from lidarssl.geometry.pose_refinement import Poses, Sightings, move, refine_pose, residuals

_REFINED = 16
_STEPS = (6, 10)
_SHIFTS = 8
_CHUNK = 2**20
_LARGEST = 1e6


@dataclass(frozen=True)
class Registration:
    """A camera's pose.

    Attributes:
        camera_from_points: (4, 4) float64; the identity where nothing could be proposed.
        inliers: (N,) bool, matches that it explains to the threshold.
        error: weighted mean distance of the inliers from where they should be, px; inf of none.
        valid: whether it explains clearly more matches than would happen by chance.
    """

    camera_from_points: Tensor
    inliers: Tensor
    error: float
    valid: bool


def register(
    points: Tensor,
    pixels: Tensor,
    intrinsics: Tensor,
    weights: Tensor | None,
    threshold: float,
    hypotheses: int,
    generator: torch.Generator,
    planar: Tensor | None = None,
) -> Registration:
    """The pose that most matches agree on.

    Never raises for what the matches are: where fewer than 6 are finite and count, or no pose
    explains more of them than chance does, the result says that it is not valid.

    Args:
        points: (N, 3) m.
        pixels: (N, 2) (x, y) = (column, row), of the image of ``intrinsics``.
        intrinsics: (3, 3), pixels.
        weights: (N,) >= 0, how much each match counts; None = all 1.
        threshold: px; a match further off is wrong.
        hypotheses: random subsets: of 3 matches, or of 2 with ``planar``.
        generator: where they are drawn from, on the CPU; the only source of chance.
        planar: (4, 4) camera_from_points of points that then were moved in their xy plane and
            turned about z: the answer is ``planar`` times such a motion. It has 3 unknowns
            instead of 6, so that fewer right matches are enough.

    Raises:
        DataError: shapes that do not fit each other; intrinsics without an inverse.
        ConfigError: a threshold or a number of hypotheses that is not positive.
    """
    _check(points, pixels, intrinsics, weights, planar)
    if not 0 < threshold < float("inf"):
        raise ConfigError(f"a threshold of {threshold} px", field="threshold", remedy="above 0")
    if hypotheses < 1:
        raise ConfigError(f"{hypotheses} hypotheses", field="hypotheses", remedy="1 or more")
    seen, usable = _sightings(points, pixels, intrinsics, weights)
    nothing = torch.zeros_like(usable)
    if int(usable.sum()) < MIN_POINTS:
        identity = torch.eye(4, dtype=torch.float64, device=points.device)
        return Registration(identity, nothing, float("inf"), False)
    with torch.no_grad():
        if planar is None:
            proposed, directions = _free_proposals(seen, hypotheses, generator), None
        else:
            planar = planar.to(seen.points)
            proposed = _planar_proposals(seen, planar, hypotheses, generator)
            directions = planar_directions(planar)
        pose = _best_refined(proposed, seen, threshold, directions)
        return _judged(pose, seen, usable, threshold)


def planar_directions(planar: Tensor) -> Tensor:
    """(6, 3) turns and moves of a camera's pose that are motions in the points' xy plane."""
    directions = planar.new_zeros(6, 3)
    directions[:3, 0] = planar[:3, 2]
    directions[3:, 1:] = planar[:3, :2]
    return directions


def _check(
    points: Tensor,
    pixels: Tensor,
    intrinsics: Tensor,
    weights: Tensor | None,
    planar: Tensor | None,
) -> None:
    count = len(points) if points.ndim else -1
    wanted = [
        ("points", points, (count, 3)),
        ("pixels", pixels, (count, 2)),
        ("intrinsics", intrinsics, (3, 3)),
        ("weights", weights, (count,)),
        ("planar", planar, (4, 4)),
    ]
    for name, given, shape in wanted:
        if given is not None and given.shape != shape:
            raise DataError(
                f"{name} of shape {tuple(given.shape)}, beside points of {tuple(points.shape)}",
                field=name,
                remedy=f"give {shape if count >= 0 else '(N, 3)'}",
            )
    if not float(torch.linalg.det(intrinsics.double()).abs()) > 0:
        raise DataError(
            f"no ray has the pixels of the intrinsics {intrinsics.tolist()}",
            field="intrinsics",
            remedy="give focal lengths that are not 0, and 1 in the last row",
        )


def _sightings(
    points: Tensor, pixels: Tensor, intrinsics: Tensor, weights: Tensor | None
) -> tuple[Sightings, Tensor]:
    """Matches in float64, and which are at most 1e6 and count; the others weigh 0."""
    x, pixels, intrinsics = points.detach().double(), pixels.detach().double(), intrinsics.double()
    w = torch.ones_like(x[:, 0]) if weights is None else weights.detach().double()
    # Comparisons with NaN are False.
    usable = (torch.cat([x, pixels, w[:, None]], 1).abs() <= _LARGEST).all(1) & (w > 0)
    x = torch.where(usable[:, None], x, 0.0)
    pixels = torch.where(usable[:, None], pixels, 0.0)
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)
    image = torch.linalg.solve(intrinsics, homogeneous.T).T[:, :2]
    return Sightings(x, image, torch.where(usable, w, 0.0), intrinsics[:2, :2]), usable


def _subsets(weights: Tensor, size: int, number: int, generator: torch.Generator) -> Tensor:
    """(number, size) rows, different within a subset, heavy ones more often."""
    count = len(weights)
    # The smallest of exponential clocks: a draw without replacement by weight.
    parts = []
    for start in range(0, number, max(1, _CHUNK // count)):
        rows = min(number - start, max(1, _CHUNK // count))
        clock = torch.rand(rows, count, generator=generator, dtype=torch.float64)
        clock = -torch.log1p(-clock) / weights.cpu()
        parts.append(clock.topk(size, dim=1, largest=False).indices)
    return torch.cat(parts).to(weights.device)


def _free_proposals(seen: Sightings, number: int, generator: torch.Generator) -> Poses:
    """Poses of three matches each, and EPnP's of all."""
    rows = _subsets(seen.weights, 3, number, generator)
    poses = p3p(seen.points[rows], seen.image[rows])
    everything = epnp(seen.points[None], seen.image[None], seen.weights[None])
    return Poses(
        torch.cat([everything.rotation, poses.rotation]),
        torch.cat([everything.translation, poses.translation]),
    )


def _planar_proposals(
    seen: Sightings, planar: Tensor, number: int, generator: torch.Generator
) -> Poses:
    """Poses of two matches each: four linear equations for cos, sin of the turn and the move."""
    rows = _subsets(seen.weights, 2, number, generator)
    x, y, z = seen.points[rows].unbind(-1)
    # Coefficients (H, 2, 3, 4) of the camera point in (cos, sin, move), and its constant part.
    across, along, up = planar[:3, :3].unbind(1)
    linear = torch.stack(
        [
            x[..., None] * across + y[..., None] * along,
            x[..., None] * along - y[..., None] * across,
            across.expand(*x.shape, 3),
            along.expand(*x.shape, 3),
        ],
        -1,
    )
    fixed = z[..., None] * up + planar[:3, 3]
    ray = seen.image[rows][..., None]
    matrix = (linear[..., :2, :] - ray * linear[..., 2:, :]).flatten(1, 2)
    target = (ray[..., 0] * fixed[..., 2:] - fixed[..., :2]).flatten(1, 2)
    found = torch.linalg.solve_ex(matrix, target)[0].nan_to_num(0.0, 0.0, 0.0)
    angle = torch.atan2(found[:, 1], found[:, 0])
    cos, sin = torch.cos(angle), torch.sin(angle)
    # With the turn fixed the moves are least squares: the four equations need not agree.
    turned = matrix[..., 0] * cos[:, None] + matrix[..., 1] * sin[:, None]
    right = (matrix[..., 2:].mT @ (target - turned)[..., None])[..., 0]
    normal = matrix[..., 2:].mT @ matrix[..., 2:]
    moved = torch.linalg.solve_ex(normal, right)[0].nan_to_num(0.0, 0.0, 0.0)
    return _planar_poses(planar, cos, sin, moved)


def _planar_poses(planar: Tensor, cos: Tensor, sin: Tensor, moved: Tensor) -> Poses:
    across, along, up = planar[:3, :3].unbind(1)
    cos, sin = cos[:, None], sin[:, None]
    rotation = torch.stack(
        [cos * across + sin * along, cos * along - sin * across, up.expand(len(cos), 3)], -1
    )
    return Poses(rotation, planar[:3, 3] + moved @ planar[:3, :2].T)


def _best_refined(
    proposed: Poses, seen: Sightings, threshold: float, directions: Tensor | None
) -> Poses:
    """The best pose after the most promising ones were refined."""
    loss = _loss(proposed, seen, threshold)
    best = loss.topk(min(_REFINED, len(loss)), largest=False, sorted=True).indices
    pose = Poses(proposed.rotation[best], proposed.translation[best])
    refined = refine_pose(pose, seen._replace(scale=threshold), _STEPS[0], directions)
    first = _loss(refined, seen, threshold).argmin()
    last = Poses(refined.rotation[first], refined.translation[first])
    return refine_pose(last, seen._replace(scale=threshold / 2), _STEPS[1], directions)


def _loss(pose: Poses, seen: Sightings, threshold: float) -> Tensor:
    """Weighted squared errors of (H,) poses, each at most the threshold's."""
    parts, size = [], max(1, _CHUNK // len(seen.points))
    for rotation, translation in zip(
        pose.rotation.split(size), pose.translation.split(size), strict=True
    ):
        square = residuals(Poses(rotation, translation), seen).square().sum(-1)
        parts.append(square.nan_to_num(float("inf")).clamp(max=threshold**2) @ seen.weights)
    return torch.cat(parts)


def _judged(pose: Poses, seen: Sightings, usable: Tensor, threshold: float) -> Registration:
    far = torch.linalg.vector_norm(residuals(pose, seen), dim=-1)
    inliers = usable & (far <= threshold) & (move(seen.points, pose)[:, 2] > 0)
    weight = seen.weights * inliers
    error = float((weight * far).sum() / weight.sum()) if bool(inliers.any()) else float("inf")
    matrix = torch.eye(4, dtype=torch.float64, device=far.device)
    matrix[:3, :3], matrix[:3, 3] = pose.rotation, pose.translation
    chance = _by_chance(pose, seen, usable, threshold)
    needed = MIN_POINTS + 2 * chance + 4 * chance**0.5
    return Registration(matrix, inliers, error, int(inliers.sum()) >= needed)


def _by_chance(pose: Poses, seen: Sightings, usable: Tensor, threshold: float) -> float:
    """How many matches the pose would explain if they were dealt out anew.

    Says what a pose is worth that sends all points to where all pixels are.
    """
    rows = usable.nonzero()[:, 0]
    some = Sightings(seen.points[rows], seen.image[rows], seen.weights[rows], seen.lens)
    hits, shifts = 0, min(_SHIFTS, len(rows) - 1)
    for number in range(1, shifts + 1):
        dealt = some._replace(image=some.image.roll(number * len(rows) // (shifts + 1), 0))
        far = torch.linalg.vector_norm(residuals(pose, dealt), dim=-1)
        hits += int((far <= threshold).sum())
    return hits / shifts
