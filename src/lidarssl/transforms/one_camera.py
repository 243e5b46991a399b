"""One camera of a frame and the points that it sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from lidarssl.errors import DataError
from lidarssl.frame import Frame
from lidarssl.transforms.paired import matches_of


class OneCamera:
    """Keep one camera, drawn among those that see at least one point, and its matches.

    Raises:
        DataError: no camera sees a point.
    """

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        matches = matches_of(frame)
        seeing = torch.unique(matches.image)
        if not len(seeing):
            raise DataError(
                f"frame {frame.id}: no camera sees any of its {len(frame)} points",
                field="matches",
                remedy="check intrinsics and camera_from_lidar with `lidarssl data check`",
            )
        chosen = int(seeing[int(rng.integers(len(seeing)))])
        mine = matches[matches.image == chosen]
        return replace(
            frame,
            cameras=(frame.cameras[chosen],),
            matches=replace(mine, image=torch.zeros_like(mine.image)),
        )


class KeepMatched:
    """Keep the points that have a pixel.

    Args:
        forget: drop the matches after that, for who needs the points alone.
    """

    def __init__(self, forget: bool = False) -> None:
        self.forget = forget

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        seen = torch.zeros(len(frame), dtype=torch.bool)
        seen[matches_of(frame).point] = True
        kept = frame.select(seen)
        return replace(kept, matches=None) if self.forget else kept
