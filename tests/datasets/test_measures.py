"""Numbers of frames with points, pixels, both or neither, against NumPy on everything at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.datasets.kitti_360 import Kitti360
from lidarssl.datasets.measures import Sums, sums_of
from lidarssl.frame import Camera, Frame, FrameId

CLASSES = len(Kitti360.classes)


def frame(seed: int, points: int, semantic: bool, images: int, labelled: bool) -> Frame:
    draws = torch.Generator().manual_seed(seed)
    cameras = tuple(
        Camera(
            name=f"camera_{index}",
            token=f"{seed}_{index}",
            image=torch.zeros((3, 8, 9), dtype=torch.uint8),
            intrinsics=torch.tensor([[5.0, 0, 4], [0, 5, 4], [0, 0, 1]]).double(),
            camera_from_lidar=torch.eye(4).double(),
            labels=torch.randint(0, CLASSES, (8, 9), generator=draws) if labelled else None,
        )
        for index in range(images)
    )
    return Frame(
        id=FrameId("x", "y", str(seed)),
        points=torch.randn((points, 3), generator=draws) * 4,
        intensity=torch.rand(points, generator=draws),
        cameras=cameras,
        semantic=torch.randint(0, CLASSES, (points,), generator=draws) if semantic else None,
    )


FRAMES = st.lists(
    st.tuples(st.integers(0, 30), st.booleans(), st.integers(0, 2), st.booleans()),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(FRAMES)
def test_sums_are_those_of_everything_at_once(
    shapes: list[tuple[int, bool, int, bool]],
) -> None:
    frames = [frame(seed, *shape) for seed, shape in enumerate(shapes)]
    total = Sums.nothing()
    for one in frames:
        total = total.plus(sums_of(one, CLASSES))
    report = total.report(Kitti360.__new__(Kitti360), "train", len(frames))
    intensity = np.concatenate([one.intensity.numpy().astype(np.float64) for one in frames])
    assert report.points == len(intensity)
    if len(intensity):
        assert report.intensity is not None
        assert report.intensity.mean == pytest.approx(intensity.mean())
        assert report.intensity.std == pytest.approx(intensity.std(), abs=1e-9)
        assert report.intensity.maximum == intensity.max()
        assert len(report.range_percentiles) == 5
    else:
        assert report.intensity is None
        assert report.range_percentiles == {}
        assert "images alone" in str(report)
    semantic = [one.semantic for one in frames if one.semantic is not None]
    _assert_counts(report.class_points, semantic)
    pixels = [c.labels.flatten() for one in frames for c in one.cameras if c.labels is not None]
    _assert_counts(report.class_pixels, pixels)
    assert sum(report.image_sizes.values()) == sum(len(one.cameras) for one in frames)
    assert (report.matched_fraction is None) == (not len(intensity) or not report.image_sizes)


def _assert_counts(found: dict[str, int], labels: list[torch.Tensor]) -> None:
    if not labels:
        assert found == {}
        return
    wanted = np.bincount(torch.cat(labels).numpy(), minlength=CLASSES)
    assert list(found) == list(Kitti360.classes.names)
    assert list(found.values()) == wanted.tolist()


def test_classes_of_no_point() -> None:
    one = frame(0, 0, True, 1, False)
    text = str(sums_of(one, CLASSES).report(Kitti360.__new__(Kitti360), "val", 1))
    assert "  road: 0 points (0.00%)" in text
