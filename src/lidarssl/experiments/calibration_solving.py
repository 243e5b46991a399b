"""From a displaced scan and an image to a pose of the camera, by what a trained NCLR says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.batching import collate
from lidarssl.errors import DataError
from lidarssl.frame import Frame
from lidarssl.geometry.planar_search import MIN_POINTS, Evidence, PlanarFit, Reach, search_planar
from lidarssl.geometry.pnp import epnp
from lidarssl.geometry.poses import invert_pose, pose_from_rotation, transform_points
from lidarssl.geometry.projection import inside_image, project
from lidarssl.geometry.registration import register
from lidarssl.methods.nclr import Nclr
from lidarssl.methods.nclr_settings import PoseTerm
from lidarssl.methods.soft_matching import ImageMatches, StepDraws, choose_keypoints, rays
from lidarssl.transforms.base import Compose
from lidarssl.transforms.displacement import Displacement, displace

Solver = Literal["search", "robust", "planar", "epnp"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)


@dataclass(frozen=True)
class SolverSettings:
    """How matches become a pose.

    Attributes:
        solver: ``search``: heading, x and y under which all points fall into the cells that fit
            them best; no match is chosen. ``robust``: all six unknowns, from all points that the
            camera is said to see: consensus, then least squares on its inliers. ``planar``: the
            same for heading, x and y. ``epnp``: one EPnP of the points of highest overlap, of
            which no outlier is left out, as published.
        threshold: cells of the map of matches, within which a match is an inlier.
        overlap: least probability that the camera sees a point; not for ``epnp``, which has
            thresholds of its own.
        hypotheses: that the consensus compares.
        most: points of a pose, those of highest weight.
        reach_angle, reach_shift: degrees and m, of ``search`` around the initial pose; None = as
            far as a scan is displaced in training.
    """

    solver: Solver = "search"
    threshold: float = 2.0
    overlap: float = 0.5
    hypotheses: int = 512
    most: int = 8192
    reach_angle: float | None = None
    reach_shift: float | None = None

    def reaching(self, displacement: Displacement) -> SolverSettings:
        """The same with a reach."""
        angle, shift = self.reach_angle, self.reach_shift
        return replace(
            self,
            reach_angle=displacement.max_angle if angle is None else angle,
            reach_shift=displacement.limit if shift is None else shift,
        )

    @property
    def reach(self) -> Reach:
        """Of ``search``."""
        given = {"angle": self.reach_angle, "shift": self.reach_shift}
        return Reach(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class Sighting:
    """An image, the displaced scan of its frame, and how the network matches them.

    Attributes:
        camera: number in the frame.
        displacement: (4, 4) displaced_from_lidar.
        calibration: (4, 4) camera_from_lidar of the dataset, float64: before the displacement the
            true pose, after it the initial one.
        matches: of the network.
        cells: (h, w) bool, cells that a point of the scan falls into.
        seen: (N,) bool, points of ``matches`` that the image has.
        distance: (N,) cells between the match of a point and where it is, infinite for one
            behind the camera.
    """

    camera: int
    displacement: Tensor
    calibration: Tensor
    matches: ImageMatches
    cells: Tensor
    seen: Tensor
    distance: Tensor

    @property
    def truth(self) -> Tensor:
        """(4, 4) pose of the displaced scan, camera_from_displaced."""
        return self.calibration @ invert_pose(self.displacement)


@dataclass(frozen=True)
class Pose:
    """A registration.

    Attributes:
        matrix: (4, 4) float64 camera_from_points.
        valid: whether it is one.
        used: (N,) bool, points that it was sought with; for ``search`` those of them that it
            puts into the image.
        inliers: number of those within the threshold; for ``search`` of those that fit where
            they fall better than chance.
    """

    matrix: Tensor
    valid: bool
    used: Tensor
    inliers: int


def sightings(method: Nclr, frame: Frame, motion: Tensor, device: torch.device) -> list[Sighting]:
    """What the network says of each image of a frame whose scan is moved.

    Args:
        method: trained; is moved to the device.
        frame: with images, of any size.
        motion: (4, 4) displaced_from_lidar.
        device: where the network runs.

    Raises:
        DataError: the frame has no images.
    """
    if not frame.cameras:
        raise DataError(
            f"frame {frame.id} has no camera to calibrate",
            field="cameras",
            remedy="choose frames with images; `lidarssl data check` lists the cameras",
        )
    at_rest = replace(method.view, displacement=Displacement(spread=0.0, max_angle=0.0))
    bare = replace(frame, semantic=None, instance=None, boxes=None, matches=None)
    seen = Compose(at_rest.transforms(False, method.backbone.fov))(
        displace(bare, motion), np.random.default_rng(0)
    )
    batch = collate([seen])
    found = method.to(device).match(batch.to(device))
    assert seen.matches is not None
    sighted = []
    for number, (camera, matches) in enumerate(zip(frame.cameras, found, strict=True)):
        matches = on_cpu(matches)
        cells = torch.zeros_like(matches.image_overlap, dtype=torch.bool)
        own = seen.matches[seen.matches.image == number]
        cells[own.row, own.col] = True
        calibration = camera.camera_from_lidar.double()
        sighted.append(
            Sighting(
                number, motion, calibration, matches, cells,
                *_compared(matches, calibration @ invert_pose(motion), method),
            )
        )  # fmt: skip
    return sighted


def on_cpu(matches: ImageMatches) -> ImageMatches:
    """The same in float64 on the CPU, where poses are sought."""
    moved: dict[str, Any] = {
        name: value.double().cpu()
        for name, value in vars(matches).items()
        if isinstance(value, Tensor)
    }
    return replace(matches, **moved)


def _compared(matches: ImageMatches, truth: Tensor, method: Nclr) -> tuple[Tensor, Tensor]:
    """``seen`` and ``distance`` of a ``Sighting``."""
    there = project(matches.positions, truth, matches.intrinsics)
    height, width = matches.image_overlap.shape
    bounds: Literal["nearest", "inclusive"] = (
        "nearest" if method.view.pixel_centers else "inclusive"
    )
    seen = inside_image(there, height, width, method.view.min_depth, bounds)
    distance = (there.uv - matches.pixel).norm(dim=1)
    return seen, torch.where(there.depth > method.view.min_depth, distance, torch.inf)


def solve(
    sighting: Sighting, settings: SolverSettings, term: PoseTerm, generator: torch.Generator
) -> Pose:
    """The pose of an image, camera_from_displaced.

    Args:
        sighting: its ``calibration`` is the initial pose.
        settings: see there.
        term: of the method, for ``epnp``.
        generator: of the draws.
    """
    return solve_matches(sighting.matches, sighting.calibration, settings, term, generator)


def solve_jointly(
    of_camera: Sequence[Sighting],
    settings: SolverSettings,
    term: PoseTerm,
    generator: torch.Generator,
) -> Pose:
    """One pose for all images of a camera, camera_from_lidar, the displacements undone.

    Args:
        of_camera: one or more; the ``calibration`` of the first is the initial pose.
        settings, term, generator: as in ``solve``.
    """
    if settings.solver == "search":
        return _search_jointly(of_camera, settings.reach)
    first = of_camera[0]
    parts = [one.matches for one in of_camera]
    together = replace(
        first.matches,
        positions=torch.cat(
            [
                transform_points(one.matches.positions, invert_pose(one.displacement))
                for one in of_camera
            ]
        ),
        # The intrinsics may differ between the frames.
        pixel=torch.cat([_pixels_like(part, first.matches) for part in parts]),
        overlap=torch.cat([part.overlap for part in parts]),
        certainty=torch.cat([part.certainty for part in parts]),
    )
    return solve_matches(together, first.calibration, settings, term, generator)


def solve_rig(of_frame: Sequence[Sighting], reach: Reach) -> list[Pose]:
    """Poses of all images of a frame, whose cameras keep their places to each other.

    Args:
        of_frame: one or more; their ``calibration`` are the initial poses.
        reach: of the search.
    """
    evidence = [_evidence(one.matches, one.calibration) for one in of_frame]
    found = search_planar(evidence, reach)
    return [
        _of_all(_pose_of(found, place, part), one.matches)
        for place, (part, one) in enumerate(zip(evidence, of_frame, strict=True))
    ]


def _evidence(matches: ImageMatches, initial: Tensor) -> Evidence:
    fitted = matches.positions[: len(matches.fit)]
    return Evidence(fitted, matches.fit, matches.intrinsics, initial)


def _pose_of(found: PlanarFit, place: int, evidence: Evidence) -> Pose:
    """The pose of the image at a place of those searched together."""
    pose = evidence.camera_from_points @ found.motion
    there = project(evidence.points, pose, evidence.intrinsics)
    seen = found.seen[place]
    col, row = there.uv[seen].round().long().unbind(1)
    height, width = evidence.fit.shape[1:]
    fit = evidence.fit[seen, row.clamp(0, height - 1), col.clamp(0, width - 1)]
    valid = found.score > found.chance and int(sum(one.sum() for one in found.seen)) >= MIN_POINTS
    return Pose(pose, valid, seen, int((fit > 0).sum()))


def _of_all(pose: Pose, matches: ImageMatches) -> Pose:
    """The pose, whose ``used`` are the first points, for all of them."""
    return replace(pose, used=F.pad(pose.used, (0, len(matches.positions) - len(pose.used))))


def _search_jointly(of_camera: Sequence[Sighting], reach: Reach) -> Pose:
    """In the displaced frame of the first, where the answer is no more special than any other."""
    first = of_camera[0]
    evidence = []
    for one in of_camera:
        moved = first.displacement @ invert_pose(one.displacement)
        positions = transform_points(one.matches.positions, moved)
        evidence.append(_evidence(replace(one.matches, positions=positions), one.calibration))
    found = search_planar(evidence, reach)
    poses = [_pose_of(found, place, one) for place, one in enumerate(evidence)]
    return Pose(
        poses[0].matrix @ first.displacement, poses[0].valid,
        torch.cat([pose.used for pose in poses]), sum(pose.inliers for pose in poses),
    )  # fmt: skip


def _pixels_like(matches: ImageMatches, other: ImageMatches) -> Tensor:
    """Where a camera with the intrinsics of ``other`` would see the matches."""
    at_depth_one = rays(matches.pixel[None], matches.intrinsics[None])[0]
    return at_depth_one @ other.intrinsics[:2, :2].T + other.intrinsics[:2, 2]


def solve_matches(
    matches: ImageMatches,
    initial: Tensor,
    settings: SolverSettings,
    term: PoseTerm,
    generator: torch.Generator,
) -> Pose:
    """A pose from matches; see ``solve``.

    Args:
        matches: float64, CPU.
        initial: (4, 4) pose whose height and tilt ``planar`` takes over.
        settings, term, generator: as in ``solve``.
    """
    if settings.solver == "search":
        evidence = _evidence(matches, initial)
        pose = _pose_of(search_planar([evidence], settings.reach), 0, evidence)
        return _of_all(pose, matches)
    if settings.solver == "epnp":
        return _solve_epnp(matches, settings, term, generator)
    weight = matches.overlap * matches.certainty
    sure = matches.overlap >= settings.overlap
    kept = torch.where(sure, weight, -1.0).argsort(descending=True)[: settings.most]
    kept = kept[sure[kept]]
    found = register(
        matches.positions[kept], matches.pixel[kept], matches.intrinsics, weight[kept],
        threshold=settings.threshold, hypotheses=settings.hypotheses, generator=generator,
        planar=initial if settings.solver == "planar" else None,
    )  # fmt: skip
    return Pose(
        found.camera_from_points, found.valid, _mask(kept, matches), int(found.inliers.sum())
    )


def _solve_epnp(
    matches: ImageMatches, settings: SolverSettings, term: PoseTerm, generator: torch.Generator
) -> Pose:
    if not len(matches.overlap):
        return Pose(torch.eye(4, dtype=torch.float64), False, matches.overlap > 1, 0)
    rows, enough = choose_keypoints(
        matches.overlap, term.keypoints, term.thresholds, term.enough, 0, StepDraws(generator)
    )
    at_depth_one = rays(matches.pixel[None, rows], matches.intrinsics[None])
    found = epnp(matches.positions[None, rows], at_depth_one, signed=term.signed)
    matrix = pose_from_rotation(found.rotation[0], found.translation[0])
    there = project(matches.positions, matrix, matches.intrinsics)
    near = (there.uv - matches.pixel).norm(dim=1) <= settings.threshold
    used = _mask(rows, matches)
    inliers = int((used & near & (there.depth > 0)).sum())
    return Pose(matrix, enough and bool(found.valid[0]), used, inliers)


def _mask(rows: Tensor, matches: ImageMatches) -> Tensor:
    mask = torch.zeros(len(matches.overlap), dtype=torch.bool)
    mask[rows] = True
    return mask
