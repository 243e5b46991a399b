"""What PPKT, SLidR and OLIVINE share: a frozen image encoder teaches a backbone through matches.

Source: Sautier et al., "Image-to-Lidar Self-Supervised Distillation for Autonomous Driving Data",
CVPR 2022, sections 3 and 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl.backbones.base import Backbone
from lidarssl.distributed import gather_counts, gather_rows, rank
from lidarssl.frame import Batch, Field, Matches, PointFeatures
from lidarssl.images.base import ImageEncoder
from lidarssl.images.decoders import UpsampledHead
from lidarssl.losses.contrastive import info_nce
from lidarssl.methods.base import Method, check_image_size
from lidarssl.transforms.base import Transform
from lidarssl.transforms.paired import (
    DropCuboids,
    FlipImages,
    MatchPixels,
    ResizedCrop,
    ResizeWhole,
)
from lidarssl.transforms.points import FlipAxes, RotateZ, ScalePoints
from lidarssl.transforms.thinning import CropCylinder

Negatives = Literal["global", "local"]


@dataclass
class PairAugmentation:
    """Augmentation of points and images that keeps their matches right.

    Args:
        image_size: (height, width) of the images a network sees.
        crop_scale: range of the crop's area as a fraction of the image; None = whole image.
        crop_ratio: range of the crop's width / height.
        min_pairs: a crop or cuboid that leaves fewer matches in a camera is drawn again.
        rotate: turn the points about z by a uniform angle.
        flip_axes: mirror x and y, each with probability 1/2.
        scale: range of a uniform scaling of the points; None = no scaling.
        drop_cuboids: remove the points of a random cuboid.
        flip_images: mirror each image with probability 1/2.
        min_depth: m, nearest matched point.
        cylinder: horizontal radius, lowest and highest z of the points that are kept, m; None =
            all. For a backbone whose grid has borders.
    """

    image_size: tuple[int, int] = (224, 416)
    crop_scale: tuple[float, float] | None = (0.3, 1.0)
    crop_ratio: tuple[float, float] = (14 / 9, 17 / 9)
    min_pairs: int = 1024
    rotate: bool = True
    flip_axes: bool = True
    scale: tuple[float, float] | None = None
    drop_cuboids: bool = True
    flip_images: bool = True
    min_depth: float = 1.0
    cylinder: tuple[float, float, float] | None = None

    def transforms(self, training: bool, on_images: Sequence[Transform] = ()) -> list[Transform]:
        """Matches first, ``on_images`` on the full images, then what is drawn.

        Order of the paper's code: points, cuboids, crop, image flip; a cylinder comes before all.
        """
        steps: list[Transform] = [] if self.cylinder is None else [CropCylinder(*self.cylinder)]
        steps += [MatchPixels(self.min_depth), *on_images]
        if not training:
            return [*steps, ResizeWhole(self.image_size)]
        if self.rotate:
            steps.append(RotateZ())
        if self.flip_axes:
            steps.append(FlipAxes())
        if self.scale is not None:
            steps.append(ScalePoints(*self.scale))
        if self.drop_cuboids:
            steps.append(DropCuboids(min_pairs=self.min_pairs))
        if self.crop_scale is not None:
            steps.append(
                ResizedCrop(
                    self.image_size, self.crop_scale, self.crop_ratio, min_pairs=self.min_pairs
                )
            )
        else:
            steps.append(ResizeWhole(self.image_size))
        if self.flip_images:
            steps.append(FlipImages())
        return steps


class ImageToLidar(Method):
    """Base of the methods.

    Args:
        backbone: the student.
        image_encoder: the frozen teacher.
        embedding: width of the shared space.
        temperature: of the contrastive loss.
        augmentation: see there.
        negatives: ``global`` contrasts with the rows of every process, so that the number of
            processes changes nothing; ``local`` as the published multi-GPU runs.
    """

    needs = Field.IMAGES

    def __init__(
        self,
        backbone: Backbone,
        image_encoder: ImageEncoder,
        embedding: int = 64,
        temperature: float = 0.07,
        augmentation: PairAugmentation | None = None,
        negatives: Negatives = "global",
    ) -> None:
        super().__init__()
        self.backbone, self.image_encoder = backbone, image_encoder
        self.point_head: nn.Module = nn.Linear(backbone.out_channels, embedding)
        self.image_head = UpsampledHead(image_encoder.out_channels, embedding, image_encoder.stride)
        self.temperature = temperature
        self.augmentation = augmentation or PairAugmentation()
        self.negatives = negatives
        check_image_size(self.augmentation.image_size, image_encoder)

    @property
    def student(self) -> Backbone:
        return self.backbone

    def transforms(self, training: bool) -> Sequence[Transform]:
        return self.augmentation.transforms(training)

    def embed_points(self, batch: Batch) -> PointFeatures:
        """Unit features of every token, (T, embedding)."""
        tokens = self.backbone(batch.points)
        tokens.features = F.normalize(self.point_head(tokens.features), dim=1)
        return tokens

    def encode_images(self, batch: Batch) -> Tensor:
        """Feature maps of the teacher, (I, C, h, w)."""
        assert batch.images is not None
        features: Tensor = self.image_encoder(batch.images)
        return features

    def contrast_matches(
        self, features: Tensor, token: Tensor, images: Tensor, matches: Matches, number: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, int]:  # fmt: skip
        """InfoNCE between points and their pixels, on matches drawn uniformly (PPKT).

        Args:
            features: (T, embedding) unit features of the tokens.
            token: (M,) int64 token of each match.
            images: (I, C, h, w) maps of the teacher.
            matches: M of them.
            number: rows of the draw over all processes; all when there are fewer.
            generator: the same on every process.

        Returns:
            The loss, and how many rows it contrasts.
        """
        counts = gather_counts(len(matches), images.device)
        chosen = chosen_pairs(counts, rank(), number, generator).to(images.device)
        pairs = matches[chosen]
        points = self.gather(features[token[chosen]])
        pixels = self.gather(self.image_head.sample(images, pairs.image, pairs.row, pairs.col))
        return info_nce(points, pixels, self.temperature), len(points)

    def gather(self, rows: Tensor) -> Tensor:
        return gather_rows(rows) if self.negatives == "global" else rows


def nothing_to_match(tokens: PointFeatures, pixels: Tensor) -> Tensor:
    """A zero loss that still reaches every parameter, for a batch without matches."""
    return 0.0 * (tokens.features.sum() + pixels.sum())


def chosen_pairs(
    counts: Sequence[int], rank: int, number: int, generator: torch.Generator
) -> Tensor:
    """This process's share of ``number`` pairs drawn without replacement from all processes.

    Args:
        counts: pairs of each process.
        rank: this process.
        number: pairs of the whole draw; all of them when there are fewer.
        generator: the same on every process.

    Returns:
        (K,) int64 indices into this process's pairs; K summed over processes is ``number``.
    """
    return own_rows(torch.randperm(sum(counts), generator=generator)[:number], counts, rank)


def own_rows(drawn: Tensor, counts: Sequence[int], rank: int) -> Tensor:
    """Which of the ``drawn`` rows, counted through all processes, are rows of this one.

    Args:
        drawn: (K,) int64.
        counts: rows of each process.
        rank: this process.

    Returns:
        int64, counted from this process's first row.
    """
    first = sum(counts[:rank])
    return drawn[(drawn >= first) & (drawn < first + counts[rank])] - first
