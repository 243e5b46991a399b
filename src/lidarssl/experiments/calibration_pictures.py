"""What the report shows of a calibration: a scan over an image, and the predicted overlap."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lidarssl.experiments.calibration_solving import (
    Pose,
    Sighting,
    SolverSettings,
    sightings,
    solve,
)
from lidarssl.experiments.pictures import PictureBook
from lidarssl.frame import Camera, Frame
from lidarssl.geometry.poses import invert_pose, transform_points
from lidarssl.geometry.projection import project, select_pixels
from lidarssl.methods.nclr import Nclr
from lidarssl.metrics.registration import registration_errors
from lidarssl.report.calibration import CalibrationOverlay, OverlapPrediction
from lidarssl.report.schema import Section
from lidarssl.transforms.base import sample_generator
from lidarssl.transforms.images import image_of, image_size

MIN_DEPTH = 1.0
"""m; points of the vehicle itself would cover the image."""


def add_calibration_pictures(
    frame: Frame, sighting: Sighting, pose: Pose, book: PictureBook
) -> None:
    """Overlays by the initial, the recovered and the true pose, and the overlap.

    Args:
        frame: as loaded, before the displacement.
        sighting, pose: of one of its images.
        book: receives the pictures.
    """
    camera = frame.cameras[sighting.camera]
    truth = sighting.calibration
    poses = {"initial pose": truth @ sighting.displacement}
    if pose.valid:
        poses["recovered"] = pose.matrix @ sighting.displacement
    poses = {f"{name}, {_off(one, truth)}": one for name, one in poses.items()}
    poses["calibration of the dataset"] = truth
    failed = "" if pose.valid else " No pose was found: too few matches agree with one."
    book.add(
        f"calibration_{camera.name}",
        overlay(frame.points, camera, poses),
        f"Calibration of {camera.name}",
        f"Scan {frame.id} over the image. By the recovered pose points should follow the edges of "
        f"things, as they do by the calibration of the dataset.{failed}",
        Section.PREDICTIONS,
    )
    book.add(
        f"overlap_{camera.name}",
        overlap(frame, sighting, book.turn(frame)),
        f"What lidar and {camera.name} both see",
        f"Scan {frame.id}. The network says for every point whether the camera sees it, without "
        "being told where the camera looks: true is a sector of the scan. For every cell of the "
        "image it says whether a point falls into it: above the reach of the lidar none does.",
        Section.PREDICTIONS,
    )


def _off(pose: Tensor, truth: Tensor) -> str:
    error = registration_errors(pose[None], truth[None])
    return f"{float(error.rotation):.1f}° and {float(error.translation):.2f} m off"


def calibrated(method: Nclr, frame: Frame, book: PictureBook) -> None:
    """Add what a method makes of the first camera of a frame displaced at random.

    Args:
        method: trained, on the CPU.
        frame: that it did not see, with images.
        book: receives the pictures.
    """
    motion = method.view.displacement.draw(sample_generator(0, 0, 0))
    one = sightings(method, frame, motion, torch.device("cpu"))[0]
    solver = SolverSettings().reaching(method.view.displacement)
    pose = solve(one, solver, method.pose, torch.Generator().manual_seed(0))
    add_calibration_pictures(frame, one, pose, book)


def overlay(points: Tensor, camera: Camera, poses: Mapping[str, Tensor]) -> CalibrationOverlay:
    """Points over an image by several poses.

    Args:
        points: (N, 3) m.
        camera: with its image.
        poses: (4, 4) camera_from_lidar by name.
    """
    height, width = image_size(camera)
    number, row, col, depth = [], [], [], []
    for index, pose in enumerate(poses.values()):
        there = project(points, pose, camera.intrinsics)
        shown = select_pixels(there, height, width, MIN_DEPTH)
        number.append(torch.full_like(shown.row, index, dtype=torch.uint8))
        row.append(shown.row)
        col.append(shown.col)
        depth.append(there.depth[shown.point].float())
    return CalibrationOverlay(
        image_of(camera).numpy(), tuple(poses), torch.cat(number).numpy(), torch.cat(row).numpy(),
        torch.cat(col).numpy(), torch.cat(depth).numpy(),
    )  # fmt: skip


def overlap(frame: Frame, sighting: Sighting, turn: Tensor) -> OverlapPrediction:
    """Predicted and true overlap of an image and the scan.

    Args:
        frame: as loaded.
        sighting: of one of its images.
        turn: (3, 3) from the lidar frame to one whose x is the direction of travel.
    """
    matches = sighting.matches
    points = transform_points(matches.positions, invert_pose(sighting.displacement))
    return OverlapPrediction(
        (points @ turn.double().T).float().numpy(),
        matches.overlap.float().numpy(),
        sighting.seen.numpy(),
        image_of(frame.cameras[sighting.camera]).numpy(),
        matches.image_overlap.float().numpy(),
    )
