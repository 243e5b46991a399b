"""One camera of a frame, what it sees, and the transforms that ScaLR added to the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lidarssl.errors import DataError
from lidarssl.frame import Frame
from lidarssl.geometry.projection import project
from lidarssl.transforms.images import image_of
from lidarssl.transforms.one_camera import KeepMatched, OneCamera
from lidarssl.transforms.paired import MatchPixels, ResizeWhole, resize_pixels
from lidarssl.transforms.points import FlipOne
from transforms.scenes import HEIGHT, WIDTH, apply_purely, make_frame


def matched(rounding: str = "round", seed: int = 0) -> Frame:
    found = MatchPixels(rounding=rounding)  # type: ignore[arg-type]
    return found(make_frame(seed=seed), np.random.default_rng(0))


def pairs(frame: Frame) -> list[tuple[int, ...]]:
    assert frame.matches is not None
    columns = (getattr(frame.matches, name).tolist() for name in ("point", "row", "col"))
    return [*zip(*columns, strict=True)]


def test_one_camera_and_its_pairs_are_left() -> None:
    frame = matched()
    assert frame.matches is not None
    for seed in range(5):
        one = apply_purely(OneCamera(), frame, seed)
        assert one.matches is not None
        (camera,) = one.cameras
        number = frame.cameras.index(camera)
        assert pairs(one) == pairs(
            replace(frame, matches=frame.matches[frame.matches.image == number])
        )
        assert not one.matches.image.any()
        assert len(one) == len(frame)


def test_every_camera_that_sees_a_point_is_as_likely() -> None:
    frame = matched()
    assert frame.matches is not None
    frame = replace(frame, matches=frame.matches[frame.matches.image != 1])
    rng = np.random.default_rng(0)
    seen = [OneCamera()(frame, rng).cameras[0].name for _ in range(400)]
    assert {*seen} == {"cam0", "cam2"}
    assert abs(seen.count("cam0") - 200) < 5 * 10


def test_no_camera_sees_a_point() -> None:
    frame = matched()
    assert frame.matches is not None
    blind = replace(frame, matches=frame.matches[frame.matches.point < 0])
    with pytest.raises(DataError, match="no camera sees any of its 3000 points") as caught:
        OneCamera()(blind, np.random.default_rng(0))
    assert "data check" in (caught.value.remedy or "")


def test_points_that_are_left_are_those_with_a_pixel() -> None:
    frame = matched()
    assert frame.matches is not None
    seen = apply_purely(KeepMatched(), frame)
    assert seen.matches is not None
    assert len(seen.matches) == len(frame.matches)
    expected = sorted({*frame.matches.point.tolist()})
    assert seen.intensity.int().tolist() == expected
    for number, camera in enumerate(seen.cameras):
        mine = seen.matches[seen.matches.image == number]
        uv = project(seen.points[mine.point], camera.camera_from_lidar, camera.intrinsics).uv
        assert (torch.stack([mine.col, mine.row], 1) - uv).abs().max() <= 0.5 + 1e-9
    assert {*seen.matches.point.tolist()} == {*range(len(seen))}
    nobody = replace(frame, matches=frame.matches[frame.matches.point < 0])
    assert len(KeepMatched()(nobody, np.random.default_rng(0))) == 0


@pytest.mark.parametrize("probability", [0.0, 2 / 3, 1.0])
def test_one_axis_is_mirrored_or_none(probability: float) -> None:
    frame = make_frame(1, cameras=0)
    frame.points[0] = torch.tensor([1.0, 2.0, 3.0])
    rng = np.random.default_rng(0)
    seen = [tuple(FlipOne(probability)(frame, rng).points[0].tolist()) for _ in range(900)]
    counts = [seen.count(place) for place in ((1.0, 2.0, 3.0), (-1.0, 2.0, 3.0), (1.0, -2.0, 3.0))]
    assert sum(counts) == 900
    for count, share in zip(
        counts, (1 - probability, probability / 2, probability / 2), strict=True
    ):
        assert abs(count - 900 * share) <= 5 * (900 * share * (1 - share)) ** 0.5 + 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_mirrored_points_keep_their_pixels(seed: int) -> None:
    frame = make_frame()
    moved = apply_purely(FlipOne(1.0), frame, seed)
    assert not torch.equal(moved.points, frame.points)
    for before, after in zip(frame.cameras, moved.cameras, strict=True):
        expected = project(frame.points, before.camera_from_lidar, before.intrinsics)
        found = project(moved.points, after.camera_from_lidar, after.intrinsics)
        near = expected.depth > 0.5
        torch.testing.assert_close(found.uv[near], expected.uv[near], atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("size", [(45, 80), (30, 200), (224, 448), (HEIGHT, WIDTH)])
def test_floor_takes_the_pixel_that_covers_the_place(size: tuple[int, int]) -> None:
    """Pixel p of n covers [p/n, (p + 1)/n): its left end falls into pixel floor(p m / n)."""
    frame = matched("floor")
    whole = apply_purely(ResizeWhole(size, rounding="floor"), frame)
    for (_, row, col), (_, new_row, new_col) in zip(pairs(frame), pairs(whole), strict=True):
        assert new_row * HEIGHT <= row * size[0] < (new_row + 1) * HEIGHT
        assert new_col * WIDTH <= col * size[1] < (new_col + 1) * WIDTH
    last = torch.tensor([HEIGHT - 1]), torch.tensor([WIDTH - 1])
    ends = resize_pixels(*last, (HEIGHT, WIDTH), size, "floor")
    assert all(int(end) < side for end, side in zip(ends, size, strict=True))


def test_rounding_is_the_default_as_before() -> None:
    frame = matched()
    assert frame.matches is not None
    whole = ResizeWhole((48, 80))(frame, np.random.default_rng(0))
    assert whole.matches is not None
    expected = (frame.matches.row.double() * 48 / HEIGHT).round().clamp(max=47).long()
    assert torch.equal(whole.matches.row, expected)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(30, 40), (180, 320)])
def test_antialias_is_that_of_torch(antialias: bool, size: tuple[int, int]) -> None:
    frame = matched()
    whole = ResizeWhole(size, antialias=antialias)(frame, np.random.default_rng(0))
    for before, after in zip(frame.cameras, whole.cameras, strict=True):
        expected = F.interpolate(
            image_of(before)[None].double() / 255, size, mode="bilinear", antialias=antialias
        )[0]
        torch.testing.assert_close(image_of(after).double(), expected, atol=1e-5, rtol=0)


def test_antialias_changes_smaller_images_alone() -> None:
    frame, rng = matched(), np.random.default_rng(0)
    for size, differ in (((30, 40), True), ((180, 320), False)):
        plain, smooth = (ResizeWhole(size, antialias=on)(frame, rng) for on in (False, True))
        difference = (image_of(plain.cameras[0]).double() - image_of(smooth.cameras[0])).abs().max()
        assert (float(difference) > 0.01) == differ
