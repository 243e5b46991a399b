"""The planar motion of a scan under which its points fall into the cells that fit them best.

No match is chosen: every pose is judged by how well all points fit where it puts them, on a grid
of headings and shifts that is then refined. The three unknowns are what a displacement in the
plane changes; height and tilt are those of the initial pose.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lidarssl.errors import ConfigError
from lidarssl.geometry.poses import planar_motion

MIN_POINTS = 6
_FLOOR = -4.0
_COARSE_POINTS = 256
_CANDIDATES = 16
_HALVINGS = 4
_LAST_HALVINGS = 6
_NEIGHBOURS = tuple(itertools.product((-1.0, 0.0, 1.0), repeat=3))
_MIN_DEPTH = 0.1
_CHUNK = 2**19
_LUCK = 0.01


@dataclass(frozen=True)
class Evidence:
    """How well the points of a scan fit into the cells of an image.

    Attributes:
        points: (N, 3) m.
        fit: (N, h, w), see :func:`fits`.
        intrinsics: (3, 3) of the map of cells.
        camera_from_points: (4, 4) initial pose.
    """

    points: Tensor
    fit: Tensor
    intrinsics: Tensor
    camera_from_points: Tensor


@dataclass(frozen=True)
class Reach:
    """How far the motion may be from none.

    Attributes:
        angle: degrees; 180 is every heading.
        shift: m, along x and along y.

    Raises:
        ConfigError: a number below 0 or not finite.
    """

    angle: float = 180.0
    shift: float = 15.0

    def __post_init__(self) -> None:
        if self.angle > 180:
            raise ConfigError(
                f"a search up to {self.angle} degrees",
                field="angle",
                remedy="180 is every heading",
            )
        for name in ("angle", "shift"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"a search up to {getattr(self, name)}", field=name, remedy="0 or more"
                )


@dataclass(frozen=True)
class PlanarFit:
    """The best motion.

    Attributes:
        motion: (4, 4) float64; poses of the cameras are ``camera_from_points @ motion``.
        score: sum of the fits of all points that fall into an image, over the number of points.
        chance: score that the best of all motions hardly ever reaches where fits say nothing.
        seen: for every image (N,) bool, points that fall into it.
    """

    motion: Tensor
    score: float
    chance: float
    seen: tuple[Tensor, ...]


def fits(similarity: Tensor) -> Tensor:
    """How much better a point and a cell fit than chance, in nats.

    The mean of two log-odds: of this cell among all cells for the point, and of this point among
    all points for the cell. What fits everywhere, like road, so says little. A misfit counts no
    more than -4.

    Args:
        similarity: (N, M) of points and cells, divided by its temperature.

    Returns:
        (N, M).
    """
    points, cells = similarity.shape
    of_cell = torch.log_softmax(similarity, 1) + math.log(max(cells, 1))
    of_point = torch.log_softmax(similarity, 0) + math.log(max(points, 1))
    return ((of_cell + of_point) / 2).clamp(min=_FLOOR)


def search_planar(evidence: Sequence[Evidence], reach: Reach) -> PlanarFit:
    """One motion for the points of all images: p -> Rz(angle) p + (x, y, 0).

    The grid has steps of two cells at the centre of the first image, between 1 and 3 degrees, and
    of 1 m. The best motion of each of the best headings is refined by halving the steps, and the
    winner's surroundings once more and further, within the reach. Where there is no point, there
    is no motion.

    Args:
        evidence: one or more images.
        reach: of the search.
    """
    count = sum(len(one.points) for one in evidence)
    if not count:
        nowhere = torch.zeros(0, dtype=torch.bool)
        return PlanarFit(torch.eye(4, dtype=torch.float64), 0.0, 0.0, (nowhere,) * len(evidence))
    grid = _Grid.of(float(evidence[0].intrinsics[0, 0]), reach)
    candidates = _best_headings([_first(one, _COARSE_POINTS) for one in evidence], grid)
    climbed, scores = _climb(evidence, candidates, grid)
    # Around the winner once more, with all candidates for it alone.
    beam = _spread_out(evidence, candidates[scores.argmax()], grid)
    last = torch.cat([climbed[scores.argmax()][None], beam])
    best = last[_scores(evidence, last).argmax()][None]
    angle, x, y = best[0].double().tolist()
    motion = planar_motion((0.0, 0.0), math.radians(angle))
    motion[:2, 3] = motion.new_tensor([x, y])
    seen = tuple(_fall(one, best)[1][0] for one in evidence)
    # exp of a sum of fits that are random is 1 on average, or less, whatever the motion: by Markov
    # it exceeds ``motions`` / luck for one of them with a probability of at most luck. Any motion
    # of the finest steps could have been tried.
    motions = grid.size * 8**_LAST_HALVINGS
    chance = math.log(motions / _LUCK) / count
    return PlanarFit(motion, float(_scores(evidence, best)) / count, chance, seen)


@dataclass(frozen=True)
class _Grid:
    """Headings in degrees, shifts in m along each axis, and how far motions may reach, (3,)."""

    angles: Tensor
    shifts: Tensor
    most: Tensor

    @classmethod
    def of(cls, focal: float, reach: Reach) -> _Grid:
        """For a map with a focal length in cells."""
        angles = _axis(min(reach.angle, 180.0), min(max(math.degrees(2 / focal), 1.0), 3.0))
        whole = reach.angle >= 180
        most = torch.tensor([math.inf if whole else reach.angle, *2 * [reach.shift]])
        return cls(angles[:-1] if whole else angles, _axis(reach.shift, 1.0), most)

    @property
    def size(self) -> int:
        return len(self.angles) * len(self.shifts) ** 2

    def around(self, motions: Tensor, halving: int) -> Tensor:
        """(K, 27, 3) neighbours of (K, 3) motions at steps that are halved so often."""
        steps = torch.stack([_spacing(axis) for axis in (self.angles, *2 * [self.shifts])])
        near = motions[:, None] + torch.tensor(_NEIGHBOURS) * steps / 2**halving
        return near.clamp(-self.most, self.most)


def _best_headings(evidence: Sequence[Evidence], grid: _Grid) -> Tensor:
    """(K, 3) best motions of the best headings, so that no single ridge takes all places."""
    motions = torch.cartesian_prod(grid.angles, grid.shifts, grid.shifts).view(-1, 3)
    scores, place = _scores(evidence, motions).view(len(grid.angles), -1).max(1)
    chosen = scores.topk(min(_CANDIDATES, len(scores))).indices
    return motions.view(len(grid.angles), -1, 3)[chosen, place[chosen]]


def _climb(evidence: Sequence[Evidence], motions: Tensor, grid: _Grid) -> tuple[Tensor, Tensor]:
    """(K, 3) where each of (K, 3) motions leads to by itself, and (K,) scores."""
    for halving in range(1, _HALVINGS + 1):
        near = grid.around(motions, halving)
        scores, place = _scores(evidence, near.flatten(0, 1)).view(len(near), -1).max(1)
        motions = near[torch.arange(len(near)), place]
    return motions, scores


def _spread_out(evidence: Sequence[Evidence], motion: Tensor, grid: _Grid) -> Tensor:
    """(K, 3) best motions around one (3,), of which all stay in the race."""
    motions = motion[None]
    for halving in range(_LAST_HALVINGS + 1):
        near = grid.around(motions, halving).flatten(0, 1).unique(dim=0)
        motions = near[_scores(evidence, near).topk(min(_CANDIDATES, len(near))).indices]
    return motions


def _axis(reach: float, step: float) -> Tensor:
    """From -reach to reach in equal steps of about ``step``, 0 among them."""
    number = math.ceil(reach / step)
    return torch.linspace(-reach, reach, 2 * number + 1)


def _spacing(axis: Tensor) -> Tensor:
    return axis[1] - axis[0] if len(axis) > 1 else torch.zeros(())


def _first(evidence: Evidence, number: int) -> Evidence:
    return Evidence(
        evidence.points[:number], evidence.fit[:number], evidence.intrinsics,
        evidence.camera_from_points,
    )  # fmt: skip


def _scores(evidence: Sequence[Evidence], motions: Tensor) -> Tensor:
    """(P,) summed fit of each (angle in degrees, x, y) of (P, 3)."""
    total = torch.zeros(len(motions))
    for one in evidence:
        size = max(1, _CHUNK // max(1, len(one.points)))
        table = one.fit.flatten(1).float()
        rows = torch.arange(len(one.points))
        parts = []
        for some in motions.split(size):
            cell, seen = _fall(one, some)
            parts.append((table[rows, cell] * seen).sum(1))
        total += torch.cat(parts)
    return total


def _fall(evidence: Evidence, motions: Tensor) -> tuple[Tensor, Tensor]:
    """(P, N) int64 cell that each point falls into, and whether it falls into one."""
    height, width = evidence.fit.shape[1:]
    radians = motions[:, :1].deg2rad()
    turned, crossed, fixed, along = _projected(evidence)
    there = [
        (radians.cos() * turned[axis] + radians.sin() * crossed[axis])
        .add_(fixed[axis])
        .add_((motions[:, 1:] @ along[axis])[:, None])
        for axis in range(3)
    ]
    depth = there[2]
    seen = depth > _MIN_DEPTH
    inverse = depth.clamp(min=_MIN_DEPTH).reciprocal_()
    col, row = (there[0] * inverse).round_(), (there[1] * inverse).round_()
    seen &= (col >= 0) & (col < width) & (row >= 0) & (row < height)
    cell = row.clamp_(0, height - 1).mul_(width).add_(col.clamp_(0, width - 1))
    return cell.long(), seen


def _projected(evidence: Evidence) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Homogeneous cells of turned and shifted points, which are linear in cos, sin, x and y.

    Returns:
        (3, N) factors of cos and of sin, (3, N) the rest, and (3, 2) factors of x and y.
    """
    pose, lens = evidence.camera_from_points.float(), evidence.intrinsics.float()
    x, y, z = evidence.points.float().unbind(1)
    nothing = torch.zeros_like(x)
    to_cells = lens @ pose[:3, :3]
    turned = to_cells @ torch.stack([x, y, nothing])
    crossed = to_cells @ torch.stack([-y, x, nothing])
    fixed = to_cells @ torch.stack([nothing, nothing, z]) + (lens @ pose[:3, 3])[:, None]
    return turned, crossed, fixed, to_cells[:, :2]
