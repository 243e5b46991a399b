"""Rows of tensors, chosen faster than by the index of a mask."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def true_rows(mask: Tensor) -> Tensor:
    """Rows of an (N,) bool mask that are true, (M,) int64, in order.

    To choose rows of several columns by them is many times as fast as by the mask, and on a CPU
    they are found several times as fast as by ``nonzero``.
    """
    if mask.device.type != "cpu":
        return mask.nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(mask.numpy()))
