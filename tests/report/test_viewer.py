from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lidarssl.errors import ConfigError
from lidarssl.frame import Camera, Frame, FrameId
from lidarssl.report.viewer import Cells, Scene, class_colors, feature_colors, view


def scene() -> Scene:
    camera_from_lidar = torch.eye(4, dtype=torch.float64)
    camera_from_lidar[:3, 3] = torch.tensor([1.0, 2.0, 3.0])
    image = torch.zeros(3, 8, 16, dtype=torch.uint8)
    intrinsics = torch.eye(3, dtype=torch.float64)
    cameras = (
        Camera("front", "t", image, intrinsics, camera_from_lidar),
        Camera("blind", "t", None, intrinsics, camera_from_lidar),
    )
    frame = Frame(FrameId("d", "s", "t"), torch.rand(5, 3), torch.rand(5), cameras=cameras)
    labels = torch.tensor([0, 1, 1, 0, 1])
    cells = Cells(torch.ones(2, 3), (0.2, 0.2, 0.4), torch.tensor([[1, 2, 3], [4, 5, 6]]))
    colors = {"truth": class_colors(labels, [(0, 0, 0), (9, 8, 7)])}
    return Scene(frame, colors, {"occupancy/predicted": cells})


def test_without_rerun_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ConfigError, match=r"lidarssl\[viewer\]"):
        view([scene()])


def test_points_cells_and_cameras_are_logged_in_the_lidar_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged: list[tuple[str, Any]] = []

    def archetype(name: str) -> Any:
        return lambda *args, **values: SimpleNamespace(name=name, args=args, **values)

    fake = SimpleNamespace(
        init=lambda name, spawn: None,
        set_time=lambda timeline, sequence: None,
        log=lambda entity, value, static=False: logged.append((entity, value)),
        ViewCoordinates=SimpleNamespace(RIGHT_HAND_Z_UP=SimpleNamespace(name="up")),
        **{
            name: archetype(name)
            for name in ("Points3D", "Boxes3D", "Transform3D", "Pinhole", "Image")
        },
    )
    monkeypatch.setitem(sys.modules, "rerun", fake)
    shown = scene()
    view([shown], spawn=False)
    assert [(entity, value.name) for entity, value in logged] == [
        ("lidar", "up"),
        ("lidar/truth", "Points3D"),
        ("lidar/occupancy/predicted", "Boxes3D"),
        ("lidar/front", "Transform3D"),
        ("lidar/front", "Pinhole"),
        ("lidar/front", "Image"),
    ]
    assert np.array_equal(logged[1][1].colors[1], [9, 8, 7])
    assert np.allclose(logged[2][1].centers, np.ones((2, 3)))
    assert np.allclose(logged[2][1].half_sizes, [[0.1, 0.1, 0.2]] * 2)
    assert np.array_equal(logged[2][1].colors[1], [4, 5, 6])
    assert np.allclose(logged[3][1].translation, [-1, -2, -3])
    assert (logged[4][1].width, logged[4][1].height) == (16, 8)
    assert logged[5][1].args[0].shape == (8, 16, 3)


def test_feature_colors_are_bytes_per_point() -> None:
    colors = feature_colors(torch.rand(7, 12))
    assert colors.shape == (7, 3)
    assert colors.dtype == torch.uint8
