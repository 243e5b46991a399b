"""PPKT: contrast between a point and the pixel it projects to.

Source: Liu et al., "Learning from 2D: Contrastive Pixel-to-Point Knowledge Transfer for 3D
Pretraining", 2021, in the form given by the SLidR paper (CVPR 2022), section 4.1.
"""

from __future__ import annotations

import torch

from lidarssl.backbones.base import Backbone
from lidarssl.distributed import gather_counts, rank
from lidarssl.frame import Batch, StepOutput
from lidarssl.images.base import ImageEncoder
from lidarssl.losses.contrastive import info_nce
from lidarssl.methods.image_to_lidar import (
    ImageToLidar,
    Negatives,
    PairAugmentation,
    chosen_pairs,
    nothing_to_match,
)


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
        counts = gather_counts(len(batch.matches), images.device)
        chosen = chosen_pairs(counts, rank(), self.num_matches, generator).to(images.device)
        pairs = batch.matches[chosen]
        points = tokens.features[tokens.token_of_point[pairs.point]]
        pixels = self.image_head.sample(images, pairs.image, pairs.row, pairs.col)
        if sum(counts) == 0:
            return StepOutput(nothing_to_match(tokens, self.image_head(images)))
        points = self.gather(points)
        loss = info_nce(points, self.gather(pixels), self.temperature)
        return StepOutput(loss, {"matches": torch.tensor(float(points.shape[0]))})
