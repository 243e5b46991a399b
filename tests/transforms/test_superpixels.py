"""SLIC on images whose segments are known, and superpixel files that lie."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lidarssl.errors import ConfigError, DataError
from lidarssl.transforms.superpixel_files import read_superpixels, superpixel_path
from lidarssl.transforms.superpixels import SETTINGS_FILE, SlicSettings, Superpixels, slic
from transforms.scenes import HEIGHT, WIDTH, apply_purely, make_frame

RNG = np.random.default_rng(0)


def two_halves() -> torch.Tensor:
    image = torch.zeros((3, 40, 60), dtype=torch.uint8)
    image[0, :, 30:] = 255
    return image


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_segments_do_not_cross_a_strong_edge(scale: float) -> None:
    ids = slic(two_halves(), SlicSettings(segments=12, sigma=0.0, scale=scale))
    assert ids.dtype == torch.int64
    assert ids.shape == (40, 60)
    # At half size the edge is known to a pixel or two.
    blur = 0 if scale == 1 else 3
    left, right = ids[:, : 30 - blur], ids[:, 30 + blur :]
    assert not set(left.unique().tolist()) & set(right.unique().tolist())
    assert ids.unique().tolist() == list(range(int(ids.max()) + 1))
    assert 4 <= int(ids.max()) + 1 <= 16


def test_float_images_are_segmented_as_bytes_are() -> None:
    image = make_frame(1).cameras[0].image
    settings = SlicSettings(segments=20, sigma=1.0)
    assert torch.equal(slic(image.float() / 255, settings), slic(image, settings))


def test_number_of_segments_follows_the_request() -> None:
    rows, cols = torch.meshgrid(torch.arange(90), torch.arange(160), indexing="ij")
    image = torch.stack([rows * 2, cols, rows + cols]).to(torch.uint8)
    few, many = (int(slic(image, SlicSettings(n, sigma=1.0)).max()) for n in (20, 80))
    assert few < 25 < 50 < many < 90


@pytest.mark.parametrize("value", [0, 255])
def test_uniform_and_tiny_images(value: int) -> None:
    ids = slic(torch.full((3, 30, 40), value, dtype=torch.uint8), SlicSettings(6))
    assert 1 <= int(ids.max()) < 12
    assert slic(torch.zeros((3, 1, 1), dtype=torch.uint8), SlicSettings(scale=0.25)).shape == (1, 1)


def test_computed_superpixels() -> None:
    frame = make_frame(5)
    found = apply_purely(Superpixels(segments=20, sigma=1.0, scale=0.5), frame)
    expected = slic(frame.cameras[1].image, SlicSettings(20, 6.0, 1.0, 0.5))
    assert torch.equal(found.cameras[1].superpixels, expected)


def write(path: Path, array: np.ndarray) -> None:
    Image.fromarray(array).save(path)


def test_stored_superpixels(tmp_path: Path) -> None:
    frame = make_frame(5)
    arrays = [
        RNG.integers(0, 250, (HEIGHT, WIDTH)).astype(np.uint8),
        RNG.integers(0, 60000, (HEIGHT, WIDTH)).astype(np.uint16),
        np.zeros((HEIGHT, WIDTH), np.uint8),
    ]
    for camera, array in zip(frame.cameras, arrays, strict=True):
        write(superpixel_path(tmp_path, camera, "png"), array)
    found = apply_purely(Superpixels(folder=tmp_path), frame)
    for camera, array in zip(found.cameras, arrays, strict=True):
        assert camera.superpixels.dtype == torch.int64
        assert camera.superpixels.tolist() == array.tolist()


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(DataError, match="prepare superpixels"):
        read_superpixels(path, (4, 6))
    write(path, np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(DataError, match="mode 'RGB'"):
        read_superpixels(path, (4, 6))
    write(path, np.zeros((4, 6), np.uint8))
    with pytest.raises(DataError, match="4 x 6"):
        read_superpixels(path, (6, 4))
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.png"):
            read_superpixels(path, (4, 6))


def test_tokens_cannot_leave_the_folder(tmp_path: Path) -> None:
    camera = make_frame(1).cameras[0]
    for token in ("../secret", "a/b", "", ".hidden", "a\\b"):
        with pytest.raises(DataError, match="token"):
            superpixel_path(tmp_path, replace(camera, token=token))


def test_settings_of_the_folder_are_checked(tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(asdict(SlicSettings(segments=30))))
    Superpixels(segments=30, folder=tmp_path)
    with pytest.raises(ConfigError, match="segments 30, not 150") as caught:
        Superpixels(segments=150, folder=tmp_path)
    assert "--segments 150 --compactness 6.0 --sigma 3.0 --scale 1.0`" in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "{}", '{"segments": 30}', '{"segments": "30"}', "{"])
def test_settings_of_the_folder_may_be_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / SETTINGS_FILE).write_text(text)
    with pytest.raises(DataError, match=SETTINGS_FILE):
        Superpixels(folder=tmp_path)
    with pytest.raises(DataError, match="`lidarssl prepare superpixels`"):
        read_superpixels(tmp_path / "a.png", (4, 6))


@pytest.mark.parametrize("bad", [{"segments": 0}, {"compactness": 0.0}, {"scale": 1.5}])
def test_settings_that_cannot_be_run(bad: dict) -> None:
    with pytest.raises(ConfigError):
        SlicSettings(**bad)
