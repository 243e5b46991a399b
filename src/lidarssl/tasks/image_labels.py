"""Pixel classification: how the demo trains its stand-in for a pretrained image encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl.frame import Batch, Field, StepOutput
from lidarssl.images.unet import SmallUNet
from lidarssl.transforms.base import Transform


class ImageLabels(nn.Module):
    """Cross-entropy on every second pixel, classes weighted by 1 / sqrt(frequency + 1e-4).

    Args:
        encoder: not frozen, with a classifier.
        class_counts: (num_classes,) labelled pixels of each class, 0 = ignored.
        jitter: largest relative change of brightness and of each colour.
    """

    needs = Field.IMAGES | Field.IMAGE_LABELS

    class_weights: Tensor

    def __init__(self, encoder: SmallUNet, class_counts: Tensor, jitter: float = 0.2) -> None:
        super().__init__()
        self.encoder, self.jitter = encoder, jitter
        counts = class_counts.double().clone()
        counts[0] = 0
        weights = 1 / (counts / counts.sum().clamp(min=1) + 1e-4).sqrt()
        weights[0] = 0
        self.register_buffer("class_weights", weights.float())

    def transforms(self, training: bool) -> Sequence[Transform]:
        return []

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        assert batch.images is not None
        assert batch.image_labels is not None
        images, labels = self._augment(batch.images, batch.image_labels, generator)
        logits = self.encoder.logits(images.contiguous(memory_format=torch.channels_last))
        labels = labels[:, ::2, ::2]
        loss = F.cross_entropy(logits, labels, self.class_weights, ignore_index=0)
        right = (logits[:, 1:].argmax(1) + 1 == labels)[labels > 0].float().mean()
        return StepOutput(loss, {"accuracy": torch.nan_to_num(right).detach()})

    def _augment(
        self, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Mirror each image with probability 1/2; change its brightness and colours."""
        count = images.shape[0]
        mirror = torch.rand(count, generator=generator).to(images.device) < 0.5
        images = torch.where(mirror[:, None, None, None], images.flip(-1), images)
        labels = torch.where(mirror[:, None, None], labels.flip(-1), labels)
        gain = torch.rand(count, 3, 1, 1, generator=generator) + torch.rand(
            count, 1, 1, 1, generator=generator
        )
        gain = (1 + self.jitter * (gain - 1)).to(images.device)
        return (images * gain).clamp(0, 1), labels


def predict_labels(encoder: SmallUNet, images: Tensor) -> Tensor:
    """Class of every pixel, (I, H, W) int64, never the ignored class 0."""
    return encoder.eval().labels(images)
