"""The contract of a downstream task: backbone + head + protocol. A plain module, no trainer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from lidarssl.backbones.base import Backbone
from lidarssl.frame import Batch, Field, StepOutput
from lidarssl.transforms.base import Transform


class Task(nn.Module):
    """What a pretrained backbone is judged by.

    Attributes:
        needs: what every labelled frame must carry.
        backbone: the pretrained part.
    """

    needs: Field
    backbone: Backbone

    @abstractmethod
    def transforms(self, training: bool) -> Sequence[Transform]:
        """What a frame goes through before it is collated."""

    @abstractmethod
    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        """Loss of a batch; the arguments are those of a method."""
