"""ScaLR: every visible point learns the feature that a frozen image encoder has at its pixel.

Source: Puy et al., "Three Pillars improving Vision Foundation Model Distillation for Lidar",
CVPR 2024, and the code of its two versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lidarssl.backbones.base import Backbone
from lidarssl.distributed import all_reduce_sum
from lidarssl.errors import ConfigError
from lidarssl.frame import Batch, Field, Matches, StepOutput
from lidarssl.images.base import ImageEncoder
from lidarssl.images.decoders import sample_upsampled
from lidarssl.images.stored import StoredTeacher
from lidarssl.losses.distillation import unit_distance
from lidarssl.methods.base import Method, check_image_size
from lidarssl.transforms.base import Transform
from lidarssl.transforms.image_features import StoredFeatures
from lidarssl.transforms.one_camera import KeepMatched, OneCamera
from lidarssl.transforms.paired import MatchPixels, ResizeWhole
from lidarssl.transforms.points import FlipOne, RotateZ, ScalePoints
from lidarssl.transforms.thinning import CropBox, KeepNearest, Thin


@dataclass
class ViewAugmentation:
    """From a scan to the part of it that one camera sees.

    Args:
        image_size: (height, width) that images are brought to, whatever their aspect.
        antialias: smooth images before they are reduced.
        cameras: ``one`` drawn at random, or ``all``.
        only_visible: the student sees no other points than those with a pixel.
        max_points: points kept, those nearest to a random one.
        rotate: turn the points about z by a uniform angle.
        flip: probability of mirroring x or y.
        scale: range of a uniform scaling of the points; None = no scaling.
        min_depth: m, nearest matched point.
    """

    image_size: tuple[int, int] = (224, 448)
    antialias: bool = True
    cameras: Literal["one", "all"] = "one"
    only_visible: bool = True
    max_points: int = 20_000
    rotate: bool = True
    flip: float = 2 / 3
    scale: tuple[float, float] | None = (0.9, 1.1)
    min_depth: float = 1.0

    def transforms(self, training: bool, backbone: Backbone) -> list[Transform]:
        """In the order of the published code; ``backbone`` tells what it can see."""
        steps: list[Transform] = []
        if backbone.voxel_of_token is not None:
            steps.append(Thin(backbone.voxel_of_token))
        steps.append(MatchPixels(self.min_depth, rounding="floor"))
        if self.cameras == "one":
            steps.append(OneCamera())
        if self.only_visible:
            steps.append(KeepMatched())
        steps.append(KeepNearest(self.max_points))
        if training:
            steps += self._motions()
        steps.append(ResizeWhole(self.image_size, rounding="floor", antialias=self.antialias))
        if backbone.fov is not None:
            steps.append(CropBox(*backbone.fov))
        return steps

    def _motions(self) -> list[Transform]:
        steps: list[Transform] = [RotateZ()] if self.rotate else []
        if self.flip:
            steps.append(FlipOne(self.flip))
        if self.scale is not None:
            steps.append(ScalePoints(*self.scale))
        return steps


class Scalr(Method):
    """Mean distance of unit features of points and of their pixels.

    Args:
        backbone: the student.
        image_encoder: the frozen teacher, or a ``StoredTeacher`` of features on disk.
        hidden: width of a hidden layer of the head (ScaLR+); None = a linear head (ScaLR).
        augmentation: see there.
        mean_over: ``global`` averages over the pairs of all processes, so that their number
            changes nothing; ``local`` over those of each, as the published multi-GPU runs.
    """

    needs = Field.IMAGES
    title = "ScaLR"

    def __init__(
        self,
        backbone: Backbone,
        image_encoder: ImageEncoder,
        hidden: int | None = None,
        augmentation: ViewAugmentation | None = None,
        mean_over: Literal["global", "local"] = "global",
    ) -> None:
        super().__init__()
        self.backbone, self.image_encoder = backbone, image_encoder
        self.augmentation = augmentation or ViewAugmentation()
        self.mean_over = mean_over
        if not image_encoder.frozen:
            raise ConfigError(
                "the teacher is not frozen", field="method.image_encoder.frozen", remedy="set true"
            )
        check_image_size(self.augmentation.image_size, image_encoder)
        width, target = backbone.out_channels, image_encoder.out_channels
        self.head = nn.Sequential(
            *([nn.Linear(width, target)] if hidden is None else _perceptron(width, hidden, target))
        )

    @property
    def student(self) -> Backbone:
        return self.backbone

    def transforms(self, training: bool) -> Sequence[Transform]:
        view = self.augmentation
        steps = view.transforms(training, self.backbone)
        if isinstance(self.image_encoder, StoredTeacher):
            folder = self.image_encoder.folder
            steps.append(StoredFeatures(folder, view.image_size, view.antialias))
        return steps

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        assert batch.matches is not None
        points, pixels = self.features_of_pairs(batch, batch.matches)
        distance = unit_distance(points, pixels)
        pairs = distance.new_tensor(float(len(distance)))
        total = torch.stack([distance.sum(), pairs])
        if self.mean_over == "global":
            total = all_reduce_sum(total)
        loss = total[0] / total[1].detach().clamp(min=1)
        terms = {"matches": pairs}
        return StepOutput(loss, terms | self._of_each_dataset(batch, distance.detach()))

    def features_of_pairs(self, batch: Batch, pairs: Matches) -> tuple[Tensor, Tensor]:
        """(M, C) of the points by the student and its head, and (M, C) of the pixels."""
        tokens = self.backbone(batch.points)
        points = self.head(tokens.features[tokens.token_of_point[pairs.point]])
        assert batch.images is not None
        maps, (height, width) = batch.image_features, batch.images.shape[-2:]
        if maps is None:
            maps = self.image_encoder(batch.images)
        # The teacher's map at these pixels alone: enlarged whole, it outweighs the networks.
        pixels = sample_upsampled(maps, pairs.image, pairs.row, pairs.col, (height, width))
        return points, pixels

    def _of_each_dataset(self, batch: Batch, distance: Tensor) -> dict[str, Tensor]:
        """Mean distance over the frames of every dataset of a mixed batch."""
        assert batch.matches is not None
        names = [frame.dataset for frame in batch.ids]
        known = sorted(set(names))
        if len(known) < 2:
            return {}
        owner = torch.tensor([known.index(name) for name in names], device=distance.device)
        dataset = owner[batch.points.batch[batch.matches.point]]
        return {
            f"distance_{name}": torch.nan_to_num(distance[dataset == number].mean())
            for number, name in enumerate(known)
        }


def _perceptron(width: int, hidden: int, target: int) -> list[nn.Module]:
    return [nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, target)]
