"""What `lidarssl calibrate` found: the content of its ``calibration.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lidarssl.metrics.registration import MaskQuality, RegistrationSummary
from lidarssl.report import strict_json

CALIBRATION_FILE = "calibration.json"
Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class PoseError:
    """Of one pose; see ``lidarssl.metrics.registration.RegistrationErrors``.

    Attributes:
        rotation, euler: degrees.
        translation: m.
    """

    rotation: float
    euler: float
    translation: float


@dataclass(frozen=True)
class Extrinsics:
    """A pose of a camera as a matrix and in parts.

    Attributes:
        matrix: (4, 4) camera_from_lidar.
        translation: (3,) m.
        quaternion: (w, x, y, z) of the rotation, w >= 0.
    """

    matrix: Matrix
    translation: tuple[float, ...]
    quaternion: tuple[float, ...]


@dataclass(frozen=True)
class ImageRecord:
    """The calibration of one image.

    Attributes:
        frame: dataset/sequence/token.
        camera: name.
        displacement: (4, 4) by which the scan was moved, displaced_from_lidar.
        found: recovered extrinsics, None for a failed registration.
        before: error of the initial pose.
        after: error of ``found``.
        displaced: error of the pose of the displaced scan, which the literature reports: the same
            angle, but the translation of an origin that the displacement has moved.
        points: that the pose was sought with.
        inliers: of those, within the threshold of where the pose projects them.
        inlier_ratios: share of ``points`` whose match is within 1, 2, 3 cells of the truth.
        point_overlap, image_overlap: of the predicted masks, at one half.
    """

    frame: str
    camera: str
    displacement: Matrix
    found: Extrinsics | None
    before: PoseError
    after: PoseError | None
    displaced: PoseError | None
    points: int
    inliers: int
    inlier_ratios: tuple[float | None, ...]
    point_overlap: MaskQuality
    image_overlap: MaskQuality


@dataclass(frozen=True)
class JointRecord:
    """One pose of a camera from all frames together.

    Attributes:
        camera: name.
        frames: that have it.
        found: None for a failed registration.
        after: summary of its errors against the calibration of each frame.
        points, inliers: as in ``ImageRecord``.
    """

    camera: str
    frames: int
    found: Extrinsics | None
    after: RegistrationSummary
    points: int
    inliers: int


@dataclass(frozen=True)
class Curves:
    """Share of all registrations with an error below each step.

    Attributes:
        translation_steps: m.
        rotation_steps: degrees.
        translation, rotation, euler: shares.
    """

    translation_steps: tuple[float, ...]
    rotation_steps: tuple[float, ...]
    translation: tuple[float, ...]
    rotation: tuple[float, ...]
    euler: tuple[float, ...]


@dataclass(frozen=True)
class CalibrationRecord:
    """What was asked, and what came out.

    Attributes:
        command: that repeats it.
        run: folder of the trained network.
        dataset, split: of the frames.
        frames: number of them.
        solver: ``search``, ``robust``, ``planar`` or ``epnp``.
        initial: in words, how wrong the initial pose was.
        seed: of the draws.
        notes: sentences for the reader.
        before, after: over all images, of the extrinsics.
        displaced: of the poses of the displaced scans, see ``ImageRecord``.
        curves_before, curves_after: as ``before`` and ``after``.
        joint: one for every camera, where it was asked for.
        images: in the order of the frames.
    """

    command: str
    run: str
    dataset: str
    split: str
    frames: int
    solver: str
    initial: str
    seed: int
    notes: tuple[str, ...]
    before: RegistrationSummary
    after: RegistrationSummary
    displaced: RegistrationSummary
    curves_before: Curves
    curves_after: Curves
    joint: tuple[JointRecord, ...]
    images: tuple[ImageRecord, ...]

    def save(self, folder: Path) -> Path:
        """Write ``calibration.json`` into a folder."""
        strict_json.write(folder / CALIBRATION_FILE, self)
        return folder / CALIBRATION_FILE

    @classmethod
    def load(cls, folder: Path) -> CalibrationRecord:
        """Read ``calibration.json`` of a folder.

        Raises:
            DataError: missing or not exactly this schema; names path and field.
        """
        return strict_json.read(folder / CALIBRATION_FILE, cls)
