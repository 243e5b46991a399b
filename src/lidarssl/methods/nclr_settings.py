"""Settings of NCLR: how a frame becomes a problem of calibration, and how it is solved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lidarssl.geometry.boxes import Corner
from lidarssl.transforms.base import Transform
from lidarssl.transforms.displacement import Displace, Displacement
from lidarssl.transforms.grid_matches import (
    MatchGrid,
    MirrorIntrinsics,
    MirrorScene,
    SwapChannels,
)
from lidarssl.transforms.images import ResizeImages
from lidarssl.transforms.thinning import CropBox


@dataclass
class CalibrationView:
    """How a frame becomes a problem of calibration.

    Args:
        image_size: (height, width) that every image is brought to, its ratio not kept.
        stride: pixels of a cell of the map on which points are matched.
        displacement: of the scan.
        mirror: ``scene`` mirrors scan and images together; ``intrinsics`` mirrors the principal
            point of an image and nothing else, as published: half of the matches are then wrong.
        mirror_probability: of either.
        min_depth: m, nearest matched point.
        pixel_centers: of the image and of its map lie at integers, and borders half a pixel
            beyond them. False as published: intrinsics are multiplied by the plain ratio, which
            shifts matches by up to half a cell.
        channels: of the images; SemanticKITTI's were published in the order ``bgr``.
    """

    image_size: tuple[int, int] = (224, 416)
    stride: int = 4
    displacement: Displacement = field(default_factory=Displacement)
    mirror: Literal["scene", "intrinsics", "none"] = "scene"
    mirror_probability: float = 0.5
    min_depth: float = 0.1
    pixel_centers: bool = True
    channels: Literal["rgb", "bgr"] = "rgb"

    def transforms(
        self, training: bool, fov: tuple[Corner, Corner] | None = None
    ) -> list[Transform]:
        """Images first; the scan is displaced in validation too, or nothing would be to find.

        Args:
            training: whether to mirror.
            fov: low and high corner of the box that the backbone sees of the displaced scan, m;
                None = everything.
        """
        steps: list[Transform] = [ResizeImages(*self.image_size, pixel_centers=self.pixel_centers)]
        if self.channels == "bgr":
            steps.append(SwapChannels())
        if training and self.mirror == "scene":
            steps.append(MirrorScene(self.mirror_probability))
        if training and self.mirror == "intrinsics":
            steps.append(MirrorIntrinsics(self.mirror_probability))
        steps.append(Displace(self.displacement))
        if fov is not None:
            steps.append(CropBox(*fov))
        return [*steps, MatchGrid(self.stride, self.min_depth, self.pixel_centers)]


@dataclass
class TokenSampling:
    """Which tokens an image is compared with.

    Args:
        number: of a frame, for each of its images.
        replacement: draw with replacement, as published.
        positions: of a token: its first point (published for MinkUNet and SPVCNN) or the ``mean``
            of its points (published for BEVNet).
        pairs: which of several matches of a token and an image tells its cell. The published code
            lets the last one win, and ``first_point`` leaves out the matches of all points but
            the first of each token (BEVNet).
    """

    number: int = 4096
    replacement: bool = False
    positions: Literal["first_point", "mean"] = "first_point"
    pairs: Literal["first", "last", "first_point"] = "first"


@dataclass
class PoseTerm:
    """How a pose is computed from the matches, and when it begins to teach.

    Args:
        start: fraction of the run after which the term counts; published 45 of 50 epochs.
        keypoints: points of a pose.
        temperature: of the softmax over the cells of the map.
        translation: weight of the translation (m) beside the rotation.
        thresholds: of the overlap of a keypoint, tried in order.
        enough: points above a threshold that make a pose count.
        signed: of the EPnP; False as published, see ``geometry.pnp.epnp``.
    """

    start: float = 0.9
    keypoints: int = 128
    temperature: float = 0.01
    translation: float = 0.01
    thresholds: tuple[float, ...] = (0.9, 0.7)
    enough: int = 11
    signed: bool = True


@dataclass
class TermWeights:
    """Weights of the terms.

    Args:
        contrast: of points and pixels as the encoders see them.
        fused: of points and pixels after they have seen each other.
        point_overlap: whether a point is in the image.
        image_overlap: whether a pixel has a point.
        pose: of the rigid pose.
    """

    contrast: float = 1.0
    fused: float = 1.0
    point_overlap: float = 1.0
    image_overlap: float = 1.0
    pose: float = 1.0
