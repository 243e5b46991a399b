"""PPKT: contrast between a point and the pixel it projects to.

Source: Liu et al., "Learning from 2D: Contrastive Pixel-to-Point Knowledge Transfer for 3D
Pretraining", 2021, in the form given by the SLidR paper (CVPR 2022), section 4.1.
"""

from __future__ import annotations

import torch

from lidarssl.backbones.base import Backbone
from lidarssl.frame import Batch, StepOutput
from lidarssl.images.base import ImageEncoder
from lidarssl.methods.image_to_lidar import ImageToLidar, Negatives, PairAugmentation


class Ppkt(ImageToLidar):
    """Point-to-pixel InfoNCE.

    Args:
        num_matches: pairs of a step, drawn over the whole global batch.
        backbone, image_encoder, embedding, temperature, augmentation, negatives: as the base.
    """

    title = "PPKT"

    def __init__(
        self,
        backbone: Backbone,
        image_encoder: ImageEncoder,
        embedding: int = 64,
        temperature: float = 0.07,
        num_matches: int = 4096,
        augmentation: PairAugmentation | None = None,
        negatives: Negatives = "global",
    ) -> None:
        super().__init__(backbone, image_encoder, embedding, temperature, augmentation, negatives)
        self.num_matches = num_matches

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        assert batch.matches is not None
        tokens, images = self.embed_points(batch), self.encode_images(batch)
        token = tokens.token_of_point[batch.matches.point]
        loss, rows = self.contrast_matches(
            tokens.features, token, images, batch.matches, self.num_matches, generator
        )
        return StepOutput(loss, {"matches": torch.tensor(float(rows))})
