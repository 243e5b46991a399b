"""Matches stay right: every pair is compared with a projection made afresh."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Frame, Matches
from lidarssl.geometry.projection import project
from lidarssl.transforms.base import Compose
from lidarssl.transforms.images import Crop
from lidarssl.transforms.paired import (
    DropCuboids,
    FlipImages,
    MatchPixels,
    ResizedCrop,
    ResizeWhole,
    ShuffleCameras,
    by_image,
    crop_accepted,
    crop_pixels,
    draw_crop,
    drop_cuboid,
    enough_pairs_left,
    first_accepted,
    outside_cuboid,
    resize_pixels,
)
from lidarssl.transforms.points import FlipAxes, RotateZ
from transforms.scenes import HEIGHT, WIDTH, apply_purely, make_frame, same

SMALL_CROP = {"size": (48, 80), "min_pairs": 50}


def matched(seed: int = 0) -> Frame:
    return MatchPixels()(make_frame(seed=seed), np.random.default_rng(0))


def offsets_from_projection(frame: Frame) -> torch.Tensor:
    """(M, 2) pixels between each match and where its point projects to now."""
    offsets = []
    for number, camera in enumerate(frame.cameras):
        mine = frame.matches[frame.matches.image == number]
        uv = project(frame.points[mine.point], camera.camera_from_lidar, camera.intrinsics).uv
        offsets.append(torch.stack([mine.col, mine.row], 1) - uv)
    return torch.cat(offsets).abs()


def test_match_pixels_pairs_each_point_with_its_pixel() -> None:
    frame = apply_purely(MatchPixels(), make_frame())
    assert offsets_from_projection(frame).max() <= 0.5 + 1e-9
    pairs = set(zip(frame.matches.point.tolist(), frame.matches.image.tolist(), strict=True))
    for number, camera in enumerate(frame.cameras):
        uv, depth = project(frame.points, camera.camera_from_lidar, camera.intrinsics)
        for point, ((u, v), z) in enumerate(zip(uv.tolist(), depth.tolist(), strict=True)):
            seen = z > 1 and 0 < u < WIDTH - 1 and 0 < v < HEIGHT - 1
            assert ((point, number) in pairs) == seen
    assert torch.equal(frame.matches.image, frame.matches.image.sort()[0])


def test_min_depth_and_rounding_are_passed_on() -> None:
    rng = np.random.default_rng(0)
    far = MatchPixels(min_depth=10.0)(make_frame(), rng)
    assert 0 < len(far.matches) < len(matched().matches)
    floored = MatchPixels(rounding="floor")(make_frame(), rng).matches
    difference = matched().matches.row - floored.row
    assert set(difference.tolist()) == {0, 1}


def test_a_frame_that_no_camera_sees_is_bad_unless_allowed() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="none of its") as caught:
        MatchPixels(min_depth=1000.0)(make_frame(), rng)
    assert "camera_from_lidar" in str(caught.value.remedy)
    allowed = MatchPixels(min_depth=1000.0, allow_none=True)(make_frame(), rng)
    assert len(allowed.matches) == 0


def test_frames_that_cannot_be_matched() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="no cameras"):
        MatchPixels()(make_frame(cameras=0), rng)
    for transform in (DropCuboids(), ResizedCrop(), ResizeWhole(), FlipImages()):
        with pytest.raises(ConfigError, match="MatchPixels"):
            transform(make_frame(), rng)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "transform",
    [ResizedCrop(**SMALL_CROP), ResizeWhole((48, 80)), FlipImages(), ShuffleCameras()],
    ids=lambda transform: type(transform).__name__,
)
def test_matches_still_hit_their_points(transform: object, seed: int) -> None:
    before = matched()
    frame = apply_purely(transform, before, seed)
    # Two roundings to a pixel, and the ratio without half-pixel centres of the published rule.
    assert offsets_from_projection(frame).max() <= 1.6
    height, width = frame.cameras[0].image.shape[-2:]
    assert (frame.matches.row >= 0).all()
    assert (frame.matches.row < height).all()
    assert (frame.matches.col >= 0).all()
    assert (frame.matches.col < width).all()
    assert len(frame.matches) > len(before.matches) / 4


@pytest.mark.parametrize("seed", range(3))
def test_the_whole_chain(seed: int) -> None:
    chain = Compose(
        [
            MatchPixels(),
            RotateZ(),
            FlipAxes(),
            DropCuboids(min_pairs=50),
            ResizedCrop(**SMALL_CROP),
            FlipImages(),
            ShuffleCameras(),
        ]
    )
    frame = apply_purely(chain, make_frame(), seed)
    assert offsets_from_projection(frame).max() <= 1.6


def test_cuboid_by_loops() -> None:
    points = make_frame().points
    kept = outside_cuboid(points, 0.3, 17)
    low, high = points.min(0).values, points.max(0).values
    half = ((high - low) * 0.15).tolist()
    center = points[17].tolist()
    expected = [
        not all(abs(p - c) < h for p, c, h in zip(point, center, half, strict=True))
        for point in points.tolist()
    ]
    assert kept.tolist() == expected
    assert 0 < (~kept).sum() < len(points)


def test_cuboid_that_takes_too_many_pairs_is_cancelled() -> None:
    frame = matched()
    counts = torch.bincount(frame.matches.image)
    removed = drop_cuboid(frame, 0.5, 17, min_pairs=1)
    assert len(removed) < len(frame)
    left = torch.bincount(removed.matches.image, minlength=3)
    assert (left < counts).any()
    assert len(drop_cuboid(frame, 0.5, 17, min_pairs=int(left.min()))) == len(removed)
    assert drop_cuboid(frame, 0.5, 17, min_pairs=int(left.min()) + 1) is frame


def test_camera_without_pairs_has_no_say() -> None:
    image = torch.tensor([0, 0, 2])
    before = Matches(image, image, image, image)
    assert enough_pairs_left(before, before, cameras=3, min_pairs=1)
    assert not enough_pairs_left(before, before[torch.tensor([0, 1])], cameras=3, min_pairs=1)


def test_crop_pixels_by_hand() -> None:
    row, col, inside = crop_pixels(
        torch.tensor([10, 11, 59, 9, 60]), torch.tensor([20, 21, 119, 50, 50]),
        Crop(10, 20, 50, 100), (25, 50),
    )  # fmt: skip
    # 0.5 -> 0 and 24.5 -> 24: halves go to the even pixel; 49.5 -> 50 is outside.
    assert row.tolist() == [0, 0, 24, 0, 25]
    assert col.tolist()[:3] == [0, 0, 50]
    assert inside.tolist() == [True, True, False, True, False]


def test_whole_resize_keeps_the_last_pixels() -> None:
    row, col = resize_pixels(
        torch.tensor([0, 899]), torch.tensor([0, 1599]), (900, 1600), (224, 416)
    )
    assert row.tolist() == [0, 223]
    assert col.tolist() == [0, 415]


def test_crop_is_accepted_by_number_or_fraction() -> None:
    mask = torch.zeros(100, dtype=torch.bool)
    mask[:75] = True
    assert not crop_accepted(mask, min_pairs=75, min_fraction=0.75)
    assert crop_accepted(mask, min_pairs=74, min_fraction=0.75)
    assert crop_accepted(mask, min_pairs=75, min_fraction=0.74)
    assert crop_accepted(mask[:0])


def test_rejected_crops_are_drawn_again_and_no_more_than_needed() -> None:
    pixels = torch.arange(60)
    crops = iter([Crop(70, 0, 10, 10), Crop(0, 0, 60, 60), Crop(0, 0, 90, 90)])
    assert first_accepted(crops, pixels, pixels, (30, 30)) == Crop(0, 0, 60, 60)
    assert next(crops) == Crop(0, 0, 90, 90)
    assert first_accepted(iter([Crop(70, 0, 10, 10)]), pixels, pixels, (30, 30)) is None


def test_draws_end_with_the_whole_image() -> None:
    frame = matched()
    tiny = ResizedCrop((45, 80), (0.01, 0.02), min_pairs=10**6, min_fraction=0.99, max_draws=3)
    cropped = apply_purely(tiny, frame)
    assert len(cropped.matches) > 0.95 * len(frame.matches)
    lonely = replace(frame, matches=frame.matches[frame.matches.image != 1])
    cropped = ResizedCrop(**SMALL_CROP)(lonely, np.random.default_rng(0))
    assert cropped.cameras[1].image.shape[-2:] == (48, 80)


def test_drawn_crops_fit_and_have_the_asked_shape() -> None:
    rng = np.random.default_rng(0)
    crops = [draw_crop((900, 1600), (0.3, 1.0), (14 / 9, 17 / 9), rng) for _ in range(300)]
    assert all(0 <= c.top <= 900 - c.height and 0 <= c.left <= 1600 - c.width for c in crops)
    ratios = np.array([c.width / c.height for c in crops])
    areas = np.array([c.width * c.height / (900 * 1600) for c in crops])
    assert 14 / 9 - 0.01 < ratios.min() < 1.6
    assert 1.85 < ratios.max() < 17 / 9 + 0.01
    assert 0.29 < areas.min() < 0.35
    assert len({c.top for c in crops}) > 100


@pytest.mark.parametrize(("image", "size"), [((100, 1000), (100, 189)), ((1000, 100), (64, 100))])
def test_crop_that_never_fits_is_centred(image: tuple[int, int], size: tuple[int, int]) -> None:
    crop = draw_crop(image, (0.99, 1.0), (14 / 9, 17 / 9), np.random.default_rng(0))
    assert (crop.height, crop.width) == size
    assert crop.top == (image[0] - size[0]) // 2
    assert crop.left == (image[1] - size[1]) // 2


def test_superpixels_and_labels_are_cropped_with_the_image() -> None:
    frame = matched()
    frame = replace(
        frame,
        cameras=tuple(
            replace(camera, image=camera.superpixels.expand(3, -1, -1).float() / 400)
            for camera in frame.cameras
        ),
    )
    cropped = ResizedCrop(**SMALL_CROP)(frame, np.random.default_rng(3))
    for camera in cropped.cameras:
        difference = camera.image[0] * 400 - camera.superpixels
        # One row of the image is four ids.
        assert difference.abs().median() < 4
    cut = ResizedCrop((90, 160), (1.0, 1.0), (16 / 9, 16 / 9))(frame, np.random.default_rng(0))
    assert torch.equal(cut.cameras[0].labels, frame.cameras[0].labels)


def test_flip_mirrors_about_half_of_the_images() -> None:
    frame, rng = matched(), np.random.default_rng(0)
    mirrored = 0
    for _ in range(60):
        flipped = FlipImages()(frame, rng)
        for before, after in zip(frame.cameras, flipped.cameras, strict=True):
            if not torch.equal(before.image, after.image):
                assert torch.equal(before.image.flip(-1), after.image)
                mirrored += 1
    assert 60 < mirrored < 120
    assert same(FlipImages(0.0)(frame, rng), frame)


def test_shuffle_reorders_matches_by_camera() -> None:
    frame = matched()
    shuffled = apply_purely(ShuffleCameras(), frame, seed=2)
    names = [camera.name for camera in shuffled.cameras]
    assert sorted(names) == ["cam0", "cam1", "cam2"]
    assert names != sorted(names)
    assert torch.equal(shuffled.matches.image, shuffled.matches.image.sort()[0])
    assert len(shuffled.matches) == len(frame.matches)
    unmatched = ShuffleCameras()(make_frame(), np.random.default_rng(2))
    assert [camera.name for camera in unmatched.cameras] == names


def test_empty_cloud_passes() -> None:
    frame = MatchPixels()(make_frame(5), np.random.default_rng(0))
    empty = frame.select(torch.zeros(5, dtype=torch.bool))
    chain = Compose([DropCuboids(), ResizedCrop(**SMALL_CROP), FlipImages(), ShuffleCameras()])
    result = chain(copy.deepcopy(empty), np.random.default_rng(0))
    assert len(result) == len(result.matches) == 0


def test_bad_ranges_are_refused() -> None:
    with pytest.raises(ConfigError, match="range"):
        ResizedCrop(scale=(0.0, 1.0))
    with pytest.raises(ConfigError, match="range"):
        ResizedCrop(ratio=(2.0, 1.0))
    assert math.isclose(ResizedCrop().ratio[1], 17 / 9)


@given(st.lists(st.integers(0, 4), max_size=30), st.booleans())
def test_matches_are_told_apart_by_their_image(images: list[int], ordered: bool) -> None:
    image = torch.tensor(sorted(images) if ordered else images, dtype=torch.int64)
    row = torch.arange(len(image))
    parts = by_image(Matches(row, image, row, row), 5)
    assert [part.row.tolist() for part in parts] == [
        row[image == number].tolist() for number in range(5)
    ]
