"""Features of points beside those of their pixels, as ScaLR compares them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from lidarssl.batching import collate
from lidarssl.frame import Frame
from lidarssl.methods.scalr import Scalr
from lidarssl.report.distillation import DistilledFeatures
from lidarssl.transforms.base import Compose


@torch.no_grad()
def scalr_features(method: Scalr, frame: Frame) -> DistilledFeatures:
    """What the first camera that the method looks through shows of a frame.

    Args:
        method: trained, on the CPU.
        frame: with images.
    """
    seen = Compose(method.transforms(training=False))(
        replace(frame, matches=None, semantic=None), np.random.default_rng(0)
    )
    batch = collate([seen])
    assert batch.matches is not None
    assert batch.images is not None
    method.eval()
    pairs = batch.matches[batch.matches.image == 0]
    points, pixels = method.features_of_pairs(batch, pairs)
    return DistilledFeatures(
        batch.images[0].numpy(), pairs.row.numpy(), pairs.col.numpy(),
        pixels.numpy(), points.numpy(),
    )  # fmt: skip
