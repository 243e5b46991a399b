"""SLidR: contrast between the points and the pixels of a superpixel.

Source: Sautier et al., "Image-to-Lidar Self-Supervised Distillation for Autonomous Driving Data",
CVPR 2022, section 3.2, equation 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lidarssl.backbones.base import Backbone
from lidarssl.datasets.base import Dataset
from lidarssl.distributed import gather_counts
from lidarssl.frame import Batch, Field, Matches, StepOutput
from lidarssl.images.base import ImageEncoder
from lidarssl.images.decoders import UpsampledHead
from lidarssl.losses.contrastive import info_nce
from lidarssl.losses.superpixels import pool_superpixels
from lidarssl.methods.base import PreparedFiles
from lidarssl.methods.image_to_lidar import (
    ImageToLidar,
    Negatives,
    PairAugmentation,
    nothing_to_match,
)
from lidarssl.transforms.base import Transform
from lidarssl.transforms.superpixel_files import SUFFIXES
from lidarssl.transforms.superpixels import Superpixels


class Slidr(ImageToLidar):
    """InfoNCE between superpixel means of point features and of pixel features.

    Args:
        superpixels: computed on the fly, or read from the folder that
            ``lidarssl prepare superpixels`` wrote.
        pool: mean image features over every ``pixels`` of the enlarged map, as the paper, or over
            the ``cells`` of the encoder's map: the same superpixels seen coarsely, for stride^2
            times less memory and work.
        backbone, image_encoder, embedding, temperature, augmentation, negatives: as the base.
    """

    title = "SLidR"

    def __init__(
        self,
        backbone: Backbone,
        image_encoder: ImageEncoder,
        embedding: int = 64,
        temperature: float = 0.07,
        superpixels: Superpixels | None = None,
        augmentation: PairAugmentation | None = None,
        negatives: Negatives = "global",
        pool: Literal["pixels", "cells"] = "pixels",
    ) -> None:
        super().__init__(backbone, image_encoder, embedding, temperature, augmentation, negatives)
        self.superpixels = superpixels or Superpixels()
        if self.superpixels.stored:
            self.needs = Field.IMAGES | Field.SUPERPIXELS
        self.stride = image_encoder.stride if pool == "cells" else 1
        if self.stride > 1:
            self.image_head = UpsampledHead(image_encoder.out_channels, embedding, scale=1)

    def transforms(self, training: bool) -> Sequence[Transform]:
        return self.augmentation.transforms(training, on_images=[self.superpixels])

    @property
    def prepared(self) -> Sequence[PreparedFiles]:
        folder = self.superpixels.folder
        if folder is None:
            return []
        pass_ = self.superpixels.settings.command(folder)
        return [PreparedFiles(folder, tuple(SUFFIXES.values()), pass_)]

    def check_dataset(self, dataset: Dataset, split: str) -> None:
        self.superpixels.check_dataset(dataset, split)

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        assert batch.matches is not None
        assert batch.superpixels is not None
        tokens = self.embed_points(batch)
        maps = self.image_head.projected(self.encode_images(batch))
        pairs, superpixels = coarser(batch.matches, batch.superpixels, self.stride)
        if sum(gather_counts(len(pairs), maps.device)) == 0:
            return StepOutput(nothing_to_match(tokens, maps))
        pooled = pool_superpixels(
            tokens.features[tokens.token_of_point[pairs.point]], pairs, maps, superpixels,
            enlarged=self.image_head.enlarged,
        )  # fmt: skip
        points = self.gather(pooled.points)
        loss = info_nce(points, self.gather(pooled.pixels), self.temperature)
        return StepOutput(loss, {"superpixels": torch.tensor(float(points.shape[0]))})


def coarser(matches: Matches, superpixels: Tensor, stride: int) -> tuple[Matches, Tensor]:
    """Matches and superpixels on cells of ``stride`` x ``stride`` pixels.

    Args:
        matches: on pixels.
        superpixels: (I, H, W); H and W are multiples of ``stride``.

    Returns:
        Matches on cells; (I, H / stride, W / stride) id at the centre of every cell.
    """
    if stride == 1:
        return matches, superpixels
    centre = stride // 2
    cells = replace(matches, row=matches.row // stride, col=matches.col // stride)
    return cells, superpixels[:, centre::stride, centre::stride]
