"""From a labelled scan to the points that a task trains on."""

from __future__ import annotations

from typing import Literal

from lidarssl.geometry.decimation import Rounding
from lidarssl.transforms.base import Transform
from lidarssl.transforms.input_points import IndependentInputs
from lidarssl.transforms.points import (
    Decimate,
    DropUnlabeled,
    FlipAxes,
    FlipOne,
    LimitPoints,
    RotateZ,
    ScalePoints,
)
from lidarssl.transforms.thinning import Corner, CropBox, KeepNearest, Thin

Flip = Literal["none", "x", "xy", "one"]
Range = tuple[float, float]
VOTE_SCALE: Range = (0.9, 1.1)


class PointAugmentation:
    """Turned, mirrored and, on request, scaled and thinned scans.

    Args:
        rotate: turn about z by a uniform angle.
        flip: mirror x, or x and y independently, each with probability 1/2; ``one`` = x or y,
            never both, with probability 2/3.
        scale: range of a uniform scaling; None = no scaling.
        voxel_size: m, one point is kept of each cell of this size; None = all points.
        rounding: of the cells; ``trunc`` as the published code of ALSO.
        max_points: points that are left of a scan, drawn at random; None = all.
        drop_unlabeled: remove the points of the ignored class, as the published code of ALSO and
            NCLR does for SemanticKITTI and SemanticPOSS.
    """

    def __init__(
        self,
        rotate: bool = True,
        flip: Flip = "xy",
        scale: Range | None = None,
        voxel_size: float | None = None,
        rounding: Rounding = "floor",
        max_points: int | None = None,
        drop_unlabeled: bool = False,
    ) -> None:
        self.rotate, self.flip, self.scale = rotate, flip, scale
        self.voxel_size, self.rounding, self.max_points = voxel_size, rounding, max_points
        self.drop_unlabeled = drop_unlabeled

    def transforms(self, training: bool) -> list[Transform]:
        """Thin and move; nothing of it in an evaluation, which is about every point."""
        return [*self.thinning(), *self.moving()] if training else []

    def thinning(self) -> list[Transform]:
        """What removes points before they move, in training alone."""
        steps: list[Transform] = [DropUnlabeled()] if self.drop_unlabeled else []
        if self.voxel_size is not None:
            steps.append(Decimate(self.voxel_size, self.rounding))
        if self.max_points is not None:
            steps.append(LimitPoints(self.max_points))
        return steps

    def moving(self) -> list[Transform]:
        """What moves points, in training alone."""
        steps: list[Transform] = [RotateZ()] if self.rotate else []
        if self.flip == "one":
            steps.append(FlipOne())
        elif self.flip != "none":
            steps.append(FlipAxes(axes=self.flip))
        if self.scale is not None:
            steps.append(ScalePoints(*self.scale))
        return steps

    def votes(self) -> list[Transform]:
        """What moves a scan for each vote of an evaluation; every point stays."""
        return [RotateZ(), FlipOne(), ScalePoints(*VOTE_SCALE)]


class WaffleIronAugmentation(PointAugmentation):
    """The augmentation of WaffleIron and ScaLR.

    Args:
        rotate, flip, scale: as the base.
        voxel_size: m, one random point is kept of each voxel; None = all points.
        max_points: points that are left, those nearest to a random one; None = all.
        drop_unlabeled: remove the points of the ignored class.
        crop: low and high corner of the box outside of which points are left out after they have
            moved, m; None = all stay.
        independent_inputs: x, y, z and radius, as input values, are turned by an angle of their
            own and scaled, while the points are turned and mirrored: the published code. Votes
            too turn them apart, and then scale the points alone.
    """

    def __init__(
        self,
        rotate: bool = True,
        flip: Flip = "one",
        scale: Range | None = (0.9, 1.1),
        voxel_size: float | None = 0.1,
        max_points: int | None = 20_000,
        drop_unlabeled: bool = False,
        crop: tuple[Corner, Corner] | None = None,
        independent_inputs: bool = False,
    ) -> None:
        super().__init__(
            rotate, flip, scale, voxel_size, max_points=max_points, drop_unlabeled=drop_unlabeled
        )
        self.crop, self.independent_inputs = crop, independent_inputs

    def transforms(self, training: bool) -> list[Transform]:
        steps = super().transforms(training)
        if training and self.crop is not None:
            steps.append(CropBox(*self.crop))
        return steps

    def thinning(self) -> list[Transform]:
        steps: list[Transform] = [DropUnlabeled()] if self.drop_unlabeled else []
        if self.voxel_size is not None:
            steps.append(Thin(self.voxel_size))
        if self.max_points is not None:
            steps.append(KeepNearest(self.max_points))
        return steps

    def moving(self) -> list[Transform]:
        if not self.independent_inputs:
            return super().moving()
        of_points = PointAugmentation(self.rotate, self.flip).moving()
        return [IndependentInputs(self.rotate, self.scale), *of_points]

    def votes(self) -> list[Transform]:
        steps = super().votes()
        return [IndependentInputs(scale=None), *steps] if self.independent_inputs else steps
