"""One camera of a frame and the points that it sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from lidarssl.errors import DataError
from lidarssl.frame import Frame
from lidarssl.transforms.paired import matches_of
from lidarssl.transforms.points import change_lidar_frame


class OneCamera:
    """Keep one camera, drawn among those that see at least one point, and its matches.

    Raises:
        DataError: no camera sees a point.
    """

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        matches = matches_of(frame)
        seeing = torch.bincount(matches.image).nonzero()[:, 0]
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


class FaceCamera:
    """Turn the scan about its z axis so that its only camera looks along +x, or up or down.

    What a network reads of x and y is then ahead and to the left of the camera, whichever of a
    rig it is.
    """

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        (camera,) = frame.cameras
        ahead = camera.camera_from_lidar[2, :3].double()
        yaw = torch.atan2(ahead[1], ahead[0])
        motion = torch.eye(4, dtype=torch.float64)
        motion[0, 0] = motion[1, 1] = yaw.cos()
        motion[0, 1], motion[1, 0] = yaw.sin(), -yaw.sin()
        return change_lidar_frame(frame, motion)


class KeepMatched:
    """Keep the points that have a pixel.

    Args:
        forget: drop the matches after that, for who needs the points alone.
    """

    def __init__(self, forget: bool = False) -> None:
        self.forget = forget

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        seen = torch.zeros(len(frame), dtype=torch.bool)
        seen.index_fill_(0, matches_of(frame).point, True)
        kept = frame.select(seen)
        return replace(kept, matches=None) if self.forget else kept
