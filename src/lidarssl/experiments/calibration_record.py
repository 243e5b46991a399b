"""What is kept of a calibration: poses, their errors, and summaries over all images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lidarssl.experiments.calibration_solving import Pose, Sighting
from lidarssl.geometry.poses import quaternion_from_rotation
from lidarssl.metrics.registration import (
    ROTATION_STEPS,
    TRANSLATION_STEPS,
    RegistrationErrors,
    fractions_below,
    inlier_ratios,
    mask_quality,
    registration_errors,
    summarise,
)
from lidarssl.report.calibration_record import Curves, Extrinsics, ImageRecord, Matrix, PoseError


def image_record(frame: str, camera: str, sighting: Sighting, pose: Pose) -> ImageRecord:
    """What is kept of one image.

    Args:
        frame, camera: names.
        sighting, pose: of it.
    """
    found = pose.matrix @ sighting.displacement
    matches, truth = sighting.matches, sighting.truth
    return ImageRecord(
        frame=frame,
        camera=camera,
        displacement=_rows(sighting.displacement),
        found=extrinsics(found) if pose.valid else None,
        before=pose_error(sighting.calibration, truth),
        after=pose_error(found, sighting.calibration) if pose.valid else None,
        displaced=pose_error(pose.matrix, truth) if pose.valid else None,
        points=int(pose.used.sum()),
        inliers=pose.inliers,
        inlier_ratios=tuple(inlier_ratios(sighting.distance[pose.used])),
        point_overlap=mask_quality(matches.overlap >= 0.5, sighting.seen),
        image_overlap=mask_quality(matches.image_overlap >= 0.5, sighting.cells),
    )


def extrinsics(matrix: Tensor) -> Extrinsics:
    """A pose (4, 4) in the parts that other programs ask for."""
    return Extrinsics(
        _rows(matrix),
        tuple(matrix[:3, 3].tolist()),
        tuple(quaternion_from_rotation(matrix[:3, :3]).tolist()),
    )


def pose_error(predicted: Tensor, truth: Tensor) -> PoseError:
    """Of one pose (4, 4)."""
    found = registration_errors(predicted[None], truth[None])
    return PoseError(float(found.rotation), float(found.euler), float(found.translation))


def _rows(matrix: Tensor) -> Matrix:
    return tuple(tuple(row) for row in matrix.tolist())


def summaries(images: Sequence[ImageRecord]) -> dict[str, Any]:
    """Fields of the record that are computed over all images."""
    fields: dict[str, Any] = {}
    for name in ("before", "after", "displaced"):
        errors, valid = _table([getattr(image, name) for image in images])
        fields[name] = summarise(errors, valid)
        if name != "displaced":
            fields[f"curves_{name}"] = _curves(errors, valid)
    return fields


def _table(errors: Sequence[PoseError | None]) -> tuple[RegistrationErrors, Tensor]:
    """Columns of errors, NaN where there is no pose, and where there is one."""
    nothing = PoseError(math.nan, math.nan, math.nan)
    rows = [one or nothing for one in errors]
    columns = [
        torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64)
        for name in ("rotation", "euler", "translation")
    ]
    return RegistrationErrors(*columns), torch.tensor([one is not None for one in errors])


def _curves(errors: RegistrationErrors, valid: Tensor) -> Curves:
    return Curves(
        TRANSLATION_STEPS,
        ROTATION_STEPS,
        tuple(fractions_below(errors.translation, valid, TRANSLATION_STEPS)),
        tuple(fractions_below(errors.rotation, valid, ROTATION_STEPS)),
        tuple(fractions_below(errors.euler, valid, ROTATION_STEPS)),
    )
