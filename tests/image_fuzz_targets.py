"""Files of A2D2, Cityscapes and label images, for ``fuzz_targets``: name, seeds, parser."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import torch

from image_dataset_files import (
    LABEL_IDS,
    a2d2_arrays,
    a2d2_calibration,
    label_bytes,
    npz_bytes,
)
from lidarssl.datasets.a2d2_files import is_usable, parse_camera, parse_scan
from lidarssl.datasets.cityscapes import parse_camera as parse_city_camera
from lidarssl.datasets.cityscapes_classes import OF_LABEL_ID
from lidarssl.datasets.label_images import map_pixels, parse_image_size, parse_label_image
from lidarssl.geometry.distortion import undistort_image

Row = tuple[str, tuple[bytes, ...], Callable[[bytes], None]]


def image_rows(path: Path) -> list[Row]:
    def scan(data: bytes) -> None:
        is_usable(io.BytesIO(data), path)
        found = parse_scan(data, path)
        count = len(found.cloud.points)
        assert count > 0
        assert bool(torch.isfinite(found.cloud.points).all())
        assert found.time is None or (found.time.shape == (count,) and found.time.min() >= 0)

    def calibration(data: bytes) -> None:
        for name in ("front_center", "side_left"):
            camera = parse_camera(data, path, name)
            image = torch.zeros((1, 5, 6), dtype=torch.uint8)
            lens = camera.original, camera.distortion, camera.intrinsics, camera.lens
            assert undistort_image(image, *lens).shape == image.shape
            assert min(camera.size) > 0

    def labels(data: bytes) -> None:
        raw = parse_label_image(data, path)
        assert parse_image_size(data, path) == raw.shape
        assert map_pixels(raw, OF_LABEL_ID, path).min() >= 0

    def city(data: bytes) -> None:
        assert bool(torch.isfinite(parse_city_camera(data, path)).all())

    arrays = a2d2_arrays(0)
    old = {f"pcloud_attr.{name}": values for name, values in arrays.items()}
    old["pcloud_points"] = old.pop("pcloud_attr.points")
    intrinsic = {"fx": 2262.52, "fy": 2265.3, "u0": 1096.98, "v0": 513.137}
    return [
        ("a2d2 scan.npz", (npz_bytes(arrays), npz_bytes(old)), scan),
        ("cams_lidars.json", (json.dumps(a2d2_calibration()).encode(),), calibration),
        ("label image", (label_bytes(LABEL_IDS), label_bytes(LABEL_IDS, "P")), labels),
        ("camera.json", (json.dumps({"intrinsic": intrinsic}).encode(),), city),
    ]
