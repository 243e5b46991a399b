"""Crops of resized images: the rectangle is that of the whole image, drawn as published."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Camera, Frame, Matches
from lidarssl.transforms.image_crops import (
    FlipImages,
    PadImages,
    ResizedCrop,
    crop_resized,
    draw_crop,
    mixed,
    nearest_rows,
    scaled,
)
from lidarssl.transforms.images import Crop, flip_camera, resize_bilinear, resize_nearest
from transforms.scenes import HEIGHT, WIDTH, apply_purely, make_frame


def some_camera(height: int, width: int, seed: int = 0) -> Camera:
    generator = torch.Generator().manual_seed(seed)
    camera = make_frame(1, cameras=1).cameras[0]
    labels = torch.randint(0, 5, (height, width), generator=generator)
    image = torch.rand((3, height, width), generator=generator)
    return replace(camera, image=image, labels=labels, superpixels=labels + 7)


def one_camera(camera: Camera) -> Frame:
    return replace(make_frame(1, cameras=1), cameras=(camera,))


def image_of(camera: Camera) -> Tensor:
    assert camera.image is not None
    return camera.image


@settings(deadline=None)
@given(
    st.integers(1, 25), st.integers(1, 25), st.integers(1, 50), st.integers(1, 50), st.data(),
)  # fmt: skip
def test_the_rectangle_is_that_of_the_whole_image(
    height: int, width: int, rows: int, columns: int, data: st.DataObject
) -> None:
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    crop = Crop(
        top,
        left,
        data.draw(st.integers(1, rows - top)),
        data.draw(st.integers(1, columns - left)),
    )
    camera = some_camera(height, width)
    found = crop_resized(camera, (rows, columns), crop)
    part = (slice(top, top + crop.height), slice(left, left + crop.width))
    whole = resize_bilinear(image_of(camera), (rows, columns))
    torch.testing.assert_close(image_of(found), whole[:, *part], rtol=0, atol=1e-5)
    for ids, expected in ((found.labels, camera.labels), (found.superpixels, camera.superpixels)):
        assert ids is not None
        assert expected is not None
        assert torch.equal(ids, resize_nearest(expected, (rows, columns))[part])


def test_bytes_become_floats() -> None:
    camera = make_frame(1, cameras=1).cameras[0]
    crop = Crop(3, 5, 20, 30)
    found = image_of(crop_resized(camera, (HEIGHT, WIDTH), crop))
    assert torch.equal(found, image_of(camera)[:, 3:23, 5:35].float() / 255)


@given(st.integers(10, 300), st.integers(10, 400), st.floats(0, 1), st.floats(0, 1))
def test_intrinsics_see_the_same_point(rows: int, columns: int, y: float, x: float) -> None:
    """A place of the original, in units of its sides, is where its ray says in the rectangle."""
    camera = make_frame(1, cameras=1).cameras[0]
    crop = Crop(rows // 3, columns // 4, rows // 2, columns // 2)
    found = crop_resized(replace(camera), (rows, columns), crop)
    pixel = torch.tensor([x * WIDTH - 0.5, y * HEIGHT - 0.5, 1], dtype=torch.float64)
    ray = torch.linalg.solve(camera.intrinsics, pixel)
    column, row, _ = (found.intrinsics @ ray).tolist()
    assert column == pytest.approx(x * columns - 0.5 - crop.left, abs=1e-6)
    assert row == pytest.approx(y * rows - 0.5 - crop.top, abs=1e-6)


def test_intrinsics_that_nobody_knows_stay_unknown() -> None:
    nan = torch.full((3, 3), torch.nan, dtype=torch.float64)
    camera = replace(some_camera(20, 30), intrinsics=nan)
    found = ResizedCrop((8, 8))(one_camera(camera), np.random.default_rng(0)).cameras[0]
    assert found.intrinsics.isnan().any()


def test_sizes_round_halves_up() -> None:
    assert scaled((1024, 2048), 0.7313) == (749, 1498)
    assert scaled((3, 5), 0.5) == (2, 3)
    assert scaled((3, 5), 0.01) == (1, 1)


@pytest.mark.parametrize(("base", "low", "high"), [(None, 45, 180), (60, 30, 120)])
def test_size_of_the_resized_image(base: int | None, low: int, high: int) -> None:
    """Read from the focal lengths: uniform in the range, aspect kept but for rounding."""
    transform, heights = ResizedCrop((16, 16), (0.5, 2.0), base), []
    frame, rng = make_frame(1, cameras=1), np.random.default_rng(0)
    for _ in range(400):
        camera = transform(frame, rng).cameras[0]
        heights.append(float(camera.intrinsics[1, 1]) / 80 * HEIGHT)
        width = float(camera.intrinsics[0, 0]) / 80 * WIDTH
        assert width == pytest.approx(heights[-1] * WIDTH / HEIGHT, abs=2)
        assert image_of(camera).shape == (3, 16, 16)
    assert low <= min(heights) < low * 1.1
    assert high / 1.1 < max(heights) <= high
    assert np.mean(heights) == pytest.approx((low + high) / 2, rel=0.06)


def test_places_are_uniform() -> None:
    rng = np.random.default_rng(0)
    crops = [draw_crop((10, 7), (8, 7), rng) for _ in range(900)]
    assert {crop.left for crop in crops} == {0}
    assert np.bincount([crop.top for crop in crops]).tolist() == pytest.approx([300] * 3, abs=60)
    assert draw_crop((10, 7), (20, 3), rng).height == 10


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 0, 0, 0], False),
        ([1, 1, 1, 1], False),
        ([0, 0, 0, 1], False),
        ([1, 1, 1, 2], False),  # exactly 3 / 4
        ([1, 1, 2, 2], True),
        ([0, 0, 1, 2], True),
        ([1, 1, 1, 1, 2, 3, 0, 0], True),
    ],
)
def test_mixed(labels: list[int], expected: bool) -> None:
    assert mixed(torch.tensor([labels]), 0.75) is expected


def counted(labels: Tensor, ratio: float = 0.75) -> tuple[int, Tensor]:
    """How many rectangles were drawn, and the labels of the one that was taken."""

    class Counting:
        def __init__(self) -> None:
            self.rng, self.drawn = np.random.default_rng(0), 0

        def uniform(self, *bounds: float) -> float:
            return 1.0

        def integers(self, high: int) -> int:
            self.drawn += 1
            return int(self.rng.integers(high))

    rng = Counting()
    camera = replace(some_camera(*labels.shape), labels=labels, superpixels=None)
    found = ResizedCrop((8, 8), cat_max_ratio=ratio)(one_camera(camera), rng)  # type: ignore[arg-type]
    taken = found.cameras[0].labels
    assert taken is not None
    return rng.drawn // 2, taken


def test_dull_rectangles_are_drawn_again_ten_times() -> None:
    dull = torch.ones(40, 40, dtype=torch.int64)
    assert counted(dull)[0] == 11
    assert counted(dull, ratio=1.0)[0] == 1
    chequered = dull + (torch.arange(40) % 2)
    assert counted(chequered)[0] == 1
    half = dull.clone()
    half[:, 20:] = 2 - torch.arange(20) % 2
    drawn, taken = counted(half)
    assert mixed(taken, 0.75) or drawn == 11


def test_flips() -> None:
    frame = make_frame(5, cameras=2)
    found = [FlipImages(0.3)(frame, np.random.default_rng(seed)) for seed in range(300)]
    flips = [
        torch.equal(image_of(new), image_of(old).flip(-1))
        for one in found
        for new, old in zip(one.cameras, frame.cameras, strict=True)
    ]
    assert np.mean(flips) == pytest.approx(0.3, abs=0.06)
    assert apply_purely(FlipImages(0), frame).cameras[0] is frame.cameras[0]
    always = FlipImages(1)(frame, np.random.default_rng(0)).cameras[0]
    assert torch.equal(always.intrinsics, flip_camera(frame.cameras[0]).intrinsics)


def test_small_images_are_extended_to_the_right_and_below() -> None:
    camera = some_camera(6, 30)
    found = apply_purely(PadImages((10, 20), (0.2, 0.4, 0.6)), one_camera(camera)).cameras[0]
    image = image_of(found)
    assert image.shape == (3, 10, 30)
    assert torch.equal(image[:, :6], image_of(camera))
    for channel, value in enumerate((0.2, 0.4, 0.6)):
        assert (image[channel, 6:] == torch.tensor(value)).all()
    assert found.labels is not None
    assert found.superpixels is not None
    assert camera.labels is not None
    assert torch.equal(found.labels[:6], camera.labels)
    assert (found.labels[6:] == 0).all()
    assert (found.superpixels[6:] == 12).all()
    assert torch.equal(found.intrinsics, camera.intrinsics)
    large = one_camera(some_camera(10, 20))
    padded = PadImages((10, 20), (0, 0, 0))(large, np.random.default_rng(0))
    assert padded.cameras[0] is large.cameras[0]


def test_every_camera_has_its_own_draws() -> None:
    frame = make_frame(5, cameras=3)
    same = replace(frame, cameras=(frame.cameras[0],) * 3)
    found = apply_purely(ResizedCrop((32, 48)), same).cameras
    assert {tuple(image_of(camera).shape) for camera in found} == {(3, 32, 48)}
    assert len({float(camera.intrinsics[0, 0]) for camera in found}) == 3


def test_what_does_not_fit_together_is_refused() -> None:
    camera = some_camera(20, 30)
    assert camera.labels is not None
    rng = np.random.default_rng(0)
    for name in ("labels", "superpixels"):
        wrong = replace(camera, **{name: camera.labels[:19]})
        with pytest.raises(DataError, match=camera.token) as caught:
            ResizedCrop((8, 8))(one_camera(wrong), rng)
        assert caught.value.field == name
    empty = torch.empty(0, dtype=torch.int64)
    matched = replace(one_camera(camera), matches=Matches(empty, empty, empty, empty))
    for transform in (ResizedCrop((8, 8)), FlipImages(), PadImages((8, 8), (0, 0, 0))):
        with pytest.raises(ConfigError, match="matches"):
            transform(matched, rng)


def test_nearest_rows() -> None:
    assert nearest_rows(4, 8).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert nearest_rows(7, 3).tolist() == [0, 2, 4]
