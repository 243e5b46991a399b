"""Crops, sizes and mirrors: pixels by explicit loops, intrinsics by geometry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Camera
from lidarssl.transforms.images import (
    Crop,
    ResizeImages,
    crop_camera,
    flip_camera,
    resize_bilinear,
    resize_nearest,
)
from transforms.scenes import HEIGHT, WIDTH, apply_purely, make_frame


def bilinear_by_loops(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Half-pixel centres, edges repeated."""
    channels, height, width = image.shape
    out = torch.zeros((channels, *size), dtype=torch.float64)
    for row in range(size[0]):
        for col in range(size[1]):
            y = min(max((row + 0.5) * height / size[0] - 0.5, 0), height - 1)
            x = min(max((col + 0.5) * width / size[1] - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            fy, fx = y - top, x - left
            out[:, row, col] = (1 - fy) * (
                (1 - fx) * image[:, top, left] + fx * image[:, top, right]
            ) + fy * ((1 - fx) * image[:, bottom, left] + fx * image[:, bottom, right])
    return out


@pytest.mark.parametrize("size", [(7, 9), (30, 41)])
def test_bilinear_without_smoothing(size: tuple[int, int]) -> None:
    image = torch.randint(0, 256, (3, 17, 23), dtype=torch.uint8)
    found = resize_bilinear(image, size)
    expected = bilinear_by_loops(image.double() / 255, size)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(resize_bilinear(image.float() / 255, size), found)


@settings(max_examples=60, deadline=None)
@given(
    # Torch repeats the first row of images of a single column.
    before=st.tuples(st.integers(1, 70), st.integers(2, 70)),
    after=st.tuples(st.integers(1, 40), st.integers(2, 40)),
    kind=st.sampled_from(["uint8", "pixels side by side", "float32", "part"]),
)
def test_smoothing_is_that_of_torch(
    before: tuple[int, int], after: tuple[int, int], kind: str
) -> None:
    image = torch.randint(0, 256, (3, *before), dtype=torch.uint8)
    if kind == "pixels side by side":
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    if kind == "part":
        image = F.pad(image, (2, 1, 3, 4))[:, 3:-4, 2:-1]
    plain = F.interpolate(image[None].double(), after, mode="bilinear", antialias=True)[0] / 255
    values = image.float() / 255 if kind == "float32" else image
    found = resize_bilinear(values, after, antialias=True)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(7, 9), (30, 41)])
def test_nearest_takes_the_floor(size: tuple[int, int]) -> None:
    ids = torch.arange(17 * 23).reshape(17, 23)
    found = resize_nearest(ids, size)
    for row in range(size[0]):
        for col in range(size[1]):
            assert found[row, col] == ids[row * 17 // size[0], col * 23 // size[1]]


def landmark(column: int, row: int) -> Camera:
    """A camera whose image, superpixels and labels are marked at one pixel."""
    camera = make_frame(1, cameras=1).cameras[0]
    image = torch.zeros((3, HEIGHT, WIDTH))
    image[:, row, column] = 1
    ids = image[0].long()
    return replace(camera, image=image, superpixels=ids, labels=ids)


def ray(camera: Camera, pixel: tuple[float, float]) -> torch.Tensor:
    """Direction seen at (row, col)."""
    column = torch.tensor([pixel[1], pixel[0], 1.0], dtype=torch.float64)
    return torch.linalg.solve(camera.intrinsics, column)


def test_crop_cuts_and_intrinsics_follow() -> None:
    camera, crop = landmark(70, 50), Crop(30, 40, 40, 60)
    cut = crop_camera(camera, crop, (40, 60))
    for plane in (cut.image[0], cut.superpixels, cut.labels):
        assert plane.nonzero().tolist() == [[20, 30]]
    torch.testing.assert_close(ray(cut, (20, 30)), ray(camera, (50, 70)))
    # Enlarged by three, the centre of the pixel is the centre of three by three.
    large = crop_camera(camera, crop, (120, 180))
    assert large.superpixels.nonzero().double().mean(0).tolist() == [61, 91]
    torch.testing.assert_close(ray(large, (61, 91)), ray(camera, (50, 70)))


def test_mirror() -> None:
    camera = landmark(70, 50)
    mirrored = flip_camera(camera)
    for plane in (mirrored.image[0], mirrored.superpixels, mirrored.labels):
        assert plane.nonzero().tolist() == [[50, WIDTH - 1 - 70]]
    torch.testing.assert_close(ray(mirrored, (50, WIDTH - 1 - 70)), ray(camera, (50, 70)))


def test_resize_images() -> None:
    frame = make_frame(10)
    small = apply_purely(ResizeImages(45, 40), frame)
    assert [tuple(camera.image.shape) for camera in small.cameras] == [(3, 45, 40)] * 3
    assert small.cameras[0].superpixels.shape == small.cameras[0].labels.shape == (45, 40)
    expected = bilinear_by_loops(frame.cameras[1].image.double() / 255, (45, 40))
    torch.testing.assert_close(small.cameras[1].image.double(), expected, atol=1e-5, rtol=0)
    smooth = ResizeImages(45, 40, antialias=True)(frame, np.random.default_rng(0))
    assert smooth.cameras[0].image.std() < small.cameras[0].image.std()


def test_refusals() -> None:
    frame = make_frame(10)
    blind = replace(frame, cameras=(replace(frame.cameras[0], image=None),))
    with pytest.raises(DataError, match="has no image"):
        ResizeImages(4, 4)(blind, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="image size"):
        ResizeImages(0, 4)
