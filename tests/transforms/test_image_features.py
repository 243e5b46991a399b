"""Feature maps on disk that are missing, damaged or of something else must never be used."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import save

from lidarssl.batching import collate
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Frame
from lidarssl.transforms.image_features import (
    DIGEST,
    FORMAT,
    SETTINGS_FILE,
    FeatureSettings,
    StoredFeatures,
    feature_path,
    read_features,
    read_settings,
)
from lidarssl.transforms.images import Crop, crop_camera, flip_camera
from transforms.scenes import HEIGHT, WIDTH, apply_purely, make_frame

MADE = FeatureSettings(
    encoder={"class": "ViT", "architecture": "dinov2_vits14"},
    weights="0" * 64,
    height=HEIGHT,
    width=WIDTH,
    antialias=True,
    dtype="float16",
    channels=4,
    rows=3,
    columns=5,
    stride=32,
)
RNG = np.random.default_rng(0)


def write_settings(folder: Path, made: FeatureSettings = MADE, **changes: Any) -> None:
    content = {"format": FORMAT} | asdict(made) | changes
    content = {name: value for name, value in content.items() if value is not None}
    (folder / SETTINGS_FILE).write_text(json.dumps(content))


def write_maps(folder: Path, frame: Frame, made: FeatureSettings = MADE) -> list[torch.Tensor]:
    write_settings(folder, made)
    maps = [torch.randn(made.shape).half() for _ in frame.cameras]
    for camera, features in zip(frame.cameras, maps, strict=True):
        write(feature_path(folder, camera), features, made)
    return maps


def write(path: Path, features: torch.Tensor, made: FeatureSettings = MADE) -> None:
    path.write_bytes(save({"features": features}, {DIGEST: made.digest}))


def test_every_camera_gets_its_own_map(tmp_path: Path) -> None:
    frame = make_frame(5)
    maps = write_maps(tmp_path, frame)
    found = apply_purely(StoredFeatures(tmp_path, (HEIGHT, WIDTH), antialias=True), frame)
    for camera, expected in zip(found.cameras, maps, strict=True):
        assert torch.equal(camera.features, expected)
    assert torch.equal(collate([found, found]).image_features, torch.stack(maps + maps))
    assert collate([frame]).image_features is None


def test_frames_without_images_or_cameras(tmp_path: Path) -> None:
    frame = make_frame(5)
    maps = write_maps(tmp_path, frame)
    blind = replace(frame, cameras=tuple(replace(one, image=None) for one in frame.cameras))
    found = StoredFeatures(tmp_path)(blind, RNG)
    assert torch.equal(found.cameras[2].features, maps[2])
    assert StoredFeatures(tmp_path)(make_frame(5, cameras=0), RNG).cameras == ()


def test_images_resized_otherwise_are_refused(tmp_path: Path) -> None:
    frame = make_frame(5)
    write_maps(tmp_path, frame)
    for arguments in ({"size": (HEIGHT, WIDTH + 1)}, {"antialias": False}):
        with pytest.raises(ConfigError, match=r"with (size|antialias)") as caught:
            StoredFeatures(tmp_path, **arguments)
        assert SETTINGS_FILE in str(caught.value.path)
    small = replace(frame.cameras[0], image=frame.cameras[0].image[:, :50])
    with pytest.raises(ConfigError, match=f"{HEIGHT} x {WIDTH}, not 50 x {WIDTH}"):
        StoredFeatures(tmp_path)(replace(frame, cameras=(small,)), RNG)


def test_a_crop_and_a_flip_drop_the_map_of_the_whole_image(tmp_path: Path) -> None:
    frame = make_frame(5)
    write_maps(tmp_path, frame)
    camera = StoredFeatures(tmp_path)(frame, RNG).cameras[0]
    assert camera.features is not None
    assert flip_camera(camera).features is None
    assert crop_camera(camera, Crop(0, 0, 40, 40), (20, 20)).features is None


def test_missing_maps_and_settings_say_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prepare image-features") as caught:
        StoredFeatures(tmp_path)
    assert str(caught.value.path).endswith(SETTINGS_FILE)
    frame = make_frame(5)
    write_maps(tmp_path, frame)
    path = feature_path(tmp_path, frame.cameras[1])
    path.unlink()
    with pytest.raises(DataError, match="prepare image-features") as caught:
        StoredFeatures(tmp_path)(frame, RNG)
    assert caught.value.path == path


def test_tokens_cannot_leave_the_folder(tmp_path: Path) -> None:
    camera = make_frame(1).cameras[0]
    for token in ("../secret", "a/b", "", ".hidden", "a\\b", "a\0b", "x" * 300):
        with pytest.raises(DataError, match="name"):
            feature_path(tmp_path, replace(camera, token=token))
    dotted = replace(camera, token="n015-2018__CAM.jpg")
    assert feature_path(tmp_path, dotted).name == "n015-2018__CAM.jpg.safetensors"


def hostile_maps() -> dict[str, bytes]:
    good = torch.zeros(MADE.shape, dtype=torch.float16)
    nan, infinite = good.clone(), good.clone()
    nan[0, 0, 0], infinite[3, 2, 4] = float("nan"), float("inf")
    whole = save({"features": good}, {DIGEST: MADE.digest})
    huge = {"features": {"dtype": "F16", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 41]}}
    header = json.dumps(huge).encode()
    return {
        "empty": b"",
        "not safetensors": b"PK\x03\x04" + bytes(100),
        "truncated": whole[:-1],
        "longer": whole + bytes(10_000),
        "of other settings": save({"features": good}, {DIGEST: "0" * 16}),
        "without settings": save({"features": good}),
        "under another name": save({"tokens": good}, {DIGEST: MADE.digest}),
        "of another shape": save({"features": good.mT.contiguous()}, {DIGEST: MADE.digest}),
        "of another dtype": save({"features": good.bfloat16()}, {DIGEST: MADE.digest}),
        "not a number": save({"features": nan}, {DIGEST: MADE.digest}),
        "infinite": save({"features": infinite}, {DIGEST: MADE.digest}),
        "a header that claims the world": struct.pack("<Q", len(header)) + header,
        "a header without end": struct.pack("<Q", 1 << 62) + b"{",
    }


@pytest.mark.parametrize("name", hostile_maps())
def test_damaged_and_hostile_maps(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(hostile_maps()[name])
    with pytest.raises(DataError) as caught:
        read_features(path, MADE)
    assert caught.value.path == path
    assert "prepare image-features" in str(caught.value.remedy)


def test_a_folder_or_a_pipe_instead_of_a_map(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name in ("folder", "pipe"):
        with pytest.raises(DataError, match=name):
            read_features(tmp_path / f"{name}.safetensors", MADE)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_is_a_data_error_or_harmless(data: st.DataObject) -> None:
    import tempfile

    content = bytearray(save({"features": torch.zeros(MADE.shape).half()}, {DIGEST: MADE.digest}))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        try:
            features = read_features(path, MADE)
        except DataError:
            return
    assert features.shape == MADE.shape
    assert torch.isfinite(features).all()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"format": 2}, "format"),
        ({"format": None}, "format"),
        ({"channels": None}, "channels"),
        ({"channels": "4"}, "channels"),
        ({"channels": 4.0}, "channels"),
        ({"rows": True}, "rows"),
        ({"rows": 0}, "rows"),
        ({"columns": 10**300}, "columns"),
        ({"channels": 1 << 20, "rows": 1 << 20}, "height, width"),
        ({"dtype": "float64"}, "dtype"),
        ({"encoder": "ViT"}, "encoder"),
        ({"extra": 1}, "extra"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], field: str, tmp_path: Path) -> None:
    write_settings(tmp_path, **changes)
    with pytest.raises(DataError) as caught:
        read_settings(tmp_path)
    assert caught.value.field == field
    assert caught.value.path == tmp_path / SETTINGS_FILE
    assert caught.value.remedy


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", "[" * 10_000, '{"format": NaN}', "9" * 5000, "x" * 70_000]
)
def test_settings_that_are_no_settings(text: str, tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text(text)
    with pytest.raises(DataError, match=SETTINGS_FILE):
        read_settings(tmp_path)


def test_settings_survive_the_disk(tmp_path: Path) -> None:
    write_settings(tmp_path)
    assert read_settings(tmp_path) == MADE
    assert read_settings(tmp_path).digest == MADE.digest
    assert replace(MADE, antialias=False).digest != MADE.digest
