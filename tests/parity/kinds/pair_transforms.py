"""SLidR's crop, flip and cuboid drop of point-pixel pairs, with the reference's draws."""

from __future__ import annotations

import numpy as np
import torch

from lidarssl.frame import Frame, FrameId, Matches
from lidarssl.transforms.images import Crop
from lidarssl.transforms.paired import (
    crop_matches,
    enough_pairs_left,
    first_accepted,
    flip_matches,
    outside_cuboid,
    resize_pixels,
)
from parity.case import Case

INPUTS = {"pairing_points", "pairing_images"}
DRAWS = {"crop_boxes", "flip_u", "drop_u"}
IMAGE_SIZE = (900, 1600)
MAX_CUBOID, MIN_PAIRS = 0.2, 1024


def recognises(case: Case) -> bool:
    arrays = set(case.manifest.get("arrays", {}))
    return "utils/transforms.py" in case.reference and arrays >= INPUTS and bool(arrays & DRAWS)


def check(case: Case) -> None:
    matches = _matches(case, "pairing_points", "pairing_images")
    cropped = matches
    if "crop_boxes" in case.arrays:
        cropped = _check_crop(case, matches)
    if "center_images" in case.arrays:
        _check_center(case, matches)
    if "flip_u" in case.arrays:
        flipped = torch.from_numpy(case.arrays["flip_u"]) < 0.5
        result = flip_matches(cropped, flipped, case.args["crop_size"][1])
        np.testing.assert_array_equal(_pixels(result), case.arrays["flip_images"])
    if "drop_u" in case.arrays:
        _check_drop(case, matches)


def _matches(case: Case, points: str, images: str) -> Matches:
    image, row, col = torch.from_numpy(case.arrays[images].astype(np.int64)).T
    return Matches(torch.from_numpy(case.arrays[points].astype(np.int64)), image, row, col)


def _pixels(matches: Matches) -> np.ndarray:
    return torch.stack([matches.image, matches.row, matches.col], 1).numpy()


def _cameras(case: Case, matches: Matches) -> int:
    if "flip_u" in case.arrays:
        return len(case.arrays["flip_u"])
    return int(matches.image.max()) + 1


def _check_crop(case: Case, matches: Matches) -> Matches:
    size = tuple(case.args["crop_size"])
    draws = iter([Crop(*box) for box in case.arrays["crop_boxes"].tolist()])
    crops = []
    for camera in range(_cameras(case, matches)):
        mine = matches.image == camera
        crop = first_accepted(draws, matches.row[mine], matches.col[mine], size)
        assert crop is not None, f"camera {camera}: no draw is accepted"
        crops.append(crop)
    assert next(draws, None) is None, "a draw was accepted that the reference rejected"
    cropped = crop_matches(matches, crops, size)
    np.testing.assert_array_equal(cropped.point.numpy(), case.arrays["crop_points"])
    np.testing.assert_array_equal(_pixels(cropped), case.arrays["crop_images"])
    return cropped


def _check_center(case: Case, matches: Matches) -> None:
    size = tuple(case.args["crop_size"])
    before = tuple(case.args.get("image_size", IMAGE_SIZE))
    row, col = resize_pixels(matches.row, matches.col, before, size)
    resized = Matches(matches.point, matches.image, row, col)
    # The reference groups the pixels by camera and leaves the points as they were.
    by_camera = _pixels(resized[matches.image.argsort(stable=True)])
    np.testing.assert_array_equal(by_camera, case.arrays["center_images"])
    np.testing.assert_array_equal(resized.point.numpy(), case.arrays["center_points"])


def _check_drop(case: Case, matches: Matches) -> None:
    points = torch.from_numpy(case.arrays["points"])
    fraction = float(case.arrays["drop_u"]) * MAX_CUBOID
    keep = outside_cuboid(points[:, :3], fraction, int(case.arrays["drop_center"]))
    before = Frame(FrameId("", "", ""), points, points[:, 0], matches=matches)
    after = before.select(keep)
    assert after.matches is not None
    if not enough_pairs_left(matches, after.matches, _cameras(case, matches), MIN_PAIRS):
        after = before
    assert after.matches is not None
    if "drop_keep_n" in case.arrays:
        assert int(case.arrays["drop_keep_n"].item()) == len(after)
    np.testing.assert_array_equal(after.matches.point.numpy(), case.arrays["drop_pairing_points"])
    np.testing.assert_array_equal(_pixels(after.matches), case.arrays["drop_pairing_images"])
    _check_points(case, after.points.numpy())


def _check_points(case: Case, points: np.ndarray) -> None:
    # Stored is every s-th point; s is not.
    expected = case.arrays["drop_points_out"]
    strides = [s for s in range(1, len(points) + 1) if -(-len(points) // s) == len(expected)]
    assert any(np.array_equal(points[::stride], expected) for stride in strides)
