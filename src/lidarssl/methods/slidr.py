"""SLidR: contrast between the points and the pixels of a superpixel.

Source: Sautier et al., "Image-to-Lidar Self-Supervised Distillation for Autonomous Driving Data",
CVPR 2022, section 3.2, equation 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lidarssl.backbones.base import Backbone
from lidarssl.distributed import gather_counts
from lidarssl.frame import Batch, StepOutput
from lidarssl.images.base import ImageEncoder
from lidarssl.losses.contrastive import info_nce
from lidarssl.losses.superpixels import pool_superpixels
from lidarssl.methods.image_to_lidar import (
    ImageToLidar,
    Negatives,
    PairAugmentation,
    nothing_to_match,
)
from lidarssl.transforms.base import Transform
from lidarssl.transforms.superpixels import Superpixels


class Slidr(ImageToLidar):
    """InfoNCE between superpixel means of point features and of pixel features.

    Args:
        superpixels: computed on the fly, or read from the folder that
            ``lidarssl prepare superpixels`` wrote.
        backbone, image_encoder, embedding, temperature, augmentation, negatives: as the base.
    """

    def __init__(
        self,
        backbone: Backbone,
        image_encoder: ImageEncoder,
        embedding: int = 64,
        temperature: float = 0.07,
        superpixels: Superpixels | None = None,
        augmentation: PairAugmentation | None = None,
        negatives: Negatives = "global",
    ) -> None:
        super().__init__(backbone, image_encoder, embedding, temperature, augmentation, negatives)
        self.superpixels = superpixels or Superpixels()

    def transforms(self, training: bool) -> Sequence[Transform]:
        return self.augmentation.transforms(training, on_images=[self.superpixels])

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        assert batch.matches is not None
        assert batch.superpixels is not None
        tokens = self.embed_points(batch)
        pixels = self.image_head(self.encode_images(batch))
        pairs = batch.matches
        if sum(gather_counts(len(pairs), pixels.device)) == 0:
            return StepOutput(nothing_to_match(tokens, pixels))
        pooled = pool_superpixels(
            tokens.features[tokens.token_of_point[pairs.point]], pairs, pixels, batch.superpixels
        )
        points = self.gather(pooled.points)
        loss = info_nce(points, self.gather(pooled.pixels), self.temperature)
        return StepOutput(loss, {"superpixels": torch.tensor(float(points.shape[0]))})
