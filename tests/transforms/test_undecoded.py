"""Images and superpixels left undecoded: every transform makes the same of them, and no more of
them is decoded than it needs."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from lidarssl.batching import collate
from lidarssl.datasets.image_files import ImageFile, image_file
from lidarssl.errors import DataError
from lidarssl.frame import Camera, Frame
from lidarssl.transforms import image_crops, paired
from lidarssl.transforms.base import Compose, Transform, sample_generator
from lidarssl.transforms.grid_matches import MirrorScene, SwapChannels
from lidarssl.transforms.images import (
    Crop,
    ResizeImages,
    crop_camera,
    decoded,
    flip_camera,
    image_of,
    image_size,
    resize_bilinear,
    superpixels_of,
)
from lidarssl.transforms.one_camera import KeepMatched, OneCamera
from lidarssl.transforms.square_crop import SquareCrop
from lidarssl.transforms.superpixel_files import SuperpixelFile, encode_superpixels
from transforms.scenes import HEIGHT, WIDTH, apply_purely, make_frame, same

SCALR = [
    paired.MatchPixels(rounding="floor"), OneCamera(), KeepMatched(),
    paired.ResizeWhole((28, 56), rounding="floor", antialias=True),
]  # fmt: skip
CROPPED = paired.ResizedCrop((28, 56), min_pairs=10)
PIPELINES: dict[str, list[Transform]] = {
    "slidr": [paired.MatchPixels(), CROPPED, paired.FlipImages()],
    "flip first": [paired.MatchPixels(), paired.FlipImages(1.0), CROPPED],
    "shuffled": [paired.MatchPixels(), paired.ShuffleCameras(), paired.ResizeWhole((28, 56))],
    "scalr": SCALR,
    "clcp": [paired.MatchPixels(0.1), OneCamera(), SquareCrop(60, (28, 28), min_matches=0)],
    "nclr": [MirrorScene(), SwapChannels(), ResizeImages(28, 56)],
    "segmentation": [
        image_crops.ResizedCrop((40, 60)), image_crops.FlipImages(),
        image_crops.PadImages((64, 64), (0, 0, 0)),
    ],
    "nothing": [],
}  # fmt: skip


class Counted(ImageFile):
    """Remembers what was decoded."""

    asked: list[tuple[int, int]] = []  # noqa: RUF012

    def decode(self, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
        found = super().decode(rows, columns)
        self.asked.append((found.shape[1], found.shape[2]))
        return found


def png_of(camera: Camera) -> bytes:
    assert camera.image is not None
    buffer = io.BytesIO()
    Image.fromarray(camera.image.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


def undecoded(frame: Frame, suffix: str = ".runs") -> Frame:
    """The frame with images and superpixels as files hold them."""
    cameras = []
    for camera in frame.cameras:
        image = image_file(png_of(camera), Path(f"{camera.name}.png"), 1.0)
        path = Path(f"{camera.token}{suffix}")
        assert camera.superpixels is not None
        ids = SuperpixelFile(encode_superpixels(camera.superpixels, path), path, image.size)
        counted = Counted(image.held, image.path, image.scale, image.full_size)
        waiting = replace(camera, image=None, superpixels=None)
        cameras.append(replace(waiting, undecoded=counted, undecoded_superpixels=ids))
    return replace(frame, cameras=tuple(cameras))


@pytest.fixture(autouse=True)
def asked() -> list[tuple[int, int]]:
    Counted.asked.clear()
    return Counted.asked


@pytest.mark.parametrize("suffix", [".runs", ".png"])
@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_the_same_comes_of_it(name: str, suffix: str) -> None:
    pipeline = Compose(PIPELINES[name])
    for seed in range(4):
        frame = make_frame(seed=seed)
        plain_rng, rng = (np.random.default_rng(seed) for _ in range(2))
        plain = pipeline(frame, plain_rng)
        waiting = undecoded(frame, suffix)
        found = decoded(apply_purely(pipeline, waiting, seed))
        assert same(found, plain)
        assert same(decoded(pipeline(waiting, rng)), plain)
        assert rng.random() == plain_rng.random()
        assert all(camera.superpixels.dtype == torch.int64 for camera in found.cameras)


def test_only_the_chosen_camera_is_decoded(asked: list[tuple[int, int]]) -> None:
    frame = undecoded(make_frame(cameras=6))
    Compose(SCALR)(frame, sample_generator(0, 0, 0))
    assert asked == [(HEIGHT, WIDTH)]


def test_only_the_crop_is_kept(asked: list[tuple[int, int]]) -> None:
    (camera,) = undecoded(make_frame(cameras=1)).cameras
    crop_camera(camera, Crop(10, 20, 30, 40), (28, 56))
    assert asked == [(30, 40)]


def test_the_size_is_known_without_decoding(asked: list[tuple[int, int]]) -> None:
    (camera,) = undecoded(make_frame(cameras=1)).cameras
    assert image_size(camera) == (HEIGHT, WIDTH)
    assert asked == []
    assert image_of(camera).is_contiguous()


def test_a_damaged_image_is_reported_when_it_is_decoded() -> None:
    frame = undecoded(make_frame(cameras=1))
    (camera,) = frame.cameras
    file = camera.undecoded
    assert isinstance(file, ImageFile)
    cut = replace(camera, undecoded=replace(file, held=file.data[: len(file.data) // 2]))
    matched = paired.MatchPixels()(replace(frame, cameras=(cut,)), sample_generator(0, 0, 0))
    for use in (decoded, lambda one: paired.ResizeWhole()(one, sample_generator(0, 0, 0))):
        with pytest.raises(DataError, match=r"cam0\.png"):
            use(matched)


def test_decoding_leaves_nothing_undecoded() -> None:
    frame = make_frame()
    found = decoded(undecoded(frame))
    assert same(found, frame)
    assert all(one.undecoded is None for one in found.cameras)
    bare = replace(frame.cameras[0], superpixels=None)
    assert superpixels_of(bare) is None
    assert decoded(replace(frame, cameras=(bare,))).cameras[0].superpixels is None


def test_a_camera_without_image_is_left_alone_but_not_cropped() -> None:
    frame = make_frame(cameras=1)
    camera = replace(frame.cameras[0], image=None)
    assert decoded(replace(frame, cameras=(camera,))).cameras[0].image is None
    uses: list[Callable[[Camera], object]] = [
        image_size, image_of, flip_camera, lambda one: crop_camera(one, Crop(0, 0, 9, 9), (5, 5)),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(DataError, match="no image"):
            use(camera)


def plain_resize(image: Tensor, size: tuple[int, int], antialias: bool) -> Tensor:
    values = image.double() / 255 if image.dtype == torch.uint8 else image.double()
    return F.interpolate(values[None], size, mode="bilinear", antialias=antialias)[0]


@given(
    st.tuples(st.integers(2, 90), st.integers(2, 90)),
    st.tuples(st.integers(2, 40), st.integers(2, 40)),  # torch is wrong about antialias to 1
    st.booleans(), st.booleans(), st.integers(0, 2**32),
)  # fmt: skip
def test_resizing_is_that_of_float64(
    before: tuple[int, int], after: tuple[int, int], antialias: bool, floats: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, *before), dtype=torch.uint8, generator=generator)
    if floats:
        image = image.float() / 255
    lying = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    found = resize_bilinear(image, after, antialias)
    assert found.dtype == torch.float32
    # Positions in float32 are exact to half a rounding step of the side, 90 pixels here.
    assert torch.allclose(found.double(), plain_resize(image, after, antialias), rtol=0, atol=1e-5)
    assert torch.equal(resize_bilinear(lying, after, antialias), found)


def test_the_batch_has_the_images_as_they_are() -> None:
    frame = make_frame()
    lying = [
        replace(one, image=image_of(one).permute(1, 2, 0).contiguous().permute(2, 0, 1))
        for one in frame.cameras
    ]
    batch = collate([replace(frame, cameras=tuple(lying)), frame])
    images = torch.stack([image_of(one) for one in frame.cameras]).float() / 255
    assert torch.equal(batch.images, torch.cat([images, images]))
    assert batch.images.is_contiguous()
    half = replace(frame.cameras[0], image=torch.full((3, 2, 2), 0.5))
    assert np.all(collate([replace(frame, cameras=(half,))]).images.numpy() == 0.5)
