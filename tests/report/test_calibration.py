"""Overlays by several poses, predicted overlap, and the page and text of a calibration."""

from __future__ import annotations

import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lidarssl.errors import DataError
from lidarssl.metrics.registration import MaskQuality, RegistrationSummary, Spread
from lidarssl.report import figures
from lidarssl.report.calibration import CalibrationOverlay, OverlapPrediction
from lidarssl.report.calibration_page import MOST_LINES, as_text, write_report
from lidarssl.report.calibration_record import (
    CalibrationRecord,
    Curves,
    Extrinsics,
    ImageRecord,
    JointRecord,
    PoseError,
)
from lidarssl.report.schema import PictureRecord, Section

GREY = np.full((40, 200, 3), 0.5)
UNIT = Extrinsics(
    tuple(tuple(float(row == col) for col in range(4)) for row in range(4)),
    (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0),
)  # fmt: skip


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def overlay() -> CalibrationOverlay:
    """One near and one far point by each of two poses, at different places."""
    return CalibrationOverlay(
        GREY, ("before", "after"), np.array([0, 0, 1, 1]), np.full(4, 20),
        np.array([20, 60, 100, 140]), np.array([1.0, 40.0, 1.0, 40.0]),
    )  # fmt: skip


def test_each_pose_has_its_own_points_in_one_scale_of_depth() -> None:
    before, after = overlay().panels()
    assert (before.title, after.title) == ("before", "after")
    first, second = pixels_of(before.png), pixels_of(after.png)
    scale = first.shape[1] // 200
    at = scale * np.array([20, 60, 100, 140])
    for image, places in ((first, at[:2]), (second, at[2:])):
        near, far = image[20 * scale, places]
        assert near[2] > near[0] + 80, "blue is near"
        assert far[0] > far[2] + 80, "red is far"
    assert np.ptp(first[20 * scale, at[2:]], axis=1).max() <= 3
    assert np.array_equal(first[20 * scale, at[0]], second[20 * scale, at[2]])


def test_the_scale_ends_at_the_depth_of_nine_points_in_ten() -> None:
    many = CalibrationOverlay(
        GREY, ("one",), np.zeros(100, int), np.full(100, 5), np.arange(100),
        np.append(np.linspace(1, 30, 99), 900.0),
    )  # fmt: skip
    ramp = many.key().ramp
    assert ramp is not None
    assert ramp[1] == "27 m deep or more"


def test_no_point_at_all_still_draws() -> None:
    none = np.zeros(0, int)
    assert len(CalibrationOverlay(GREY, ("a", "b"), none, none, none, none).panels()) == 2
    empty = OverlapPrediction(np.zeros((0, 3)), none, none, GREY, np.zeros((4, 4)))
    assert len(empty.panels()) == 3


def test_a_pose_without_a_name_and_cells_without_a_shape_are_refused() -> None:
    with pytest.raises(DataError, match="poses up to 1 for 1"):
        replace(overlay(), names=("before",)).panels()
    with pytest.raises(DataError, match=r"shape \(3,\)"):
        overlap(np.zeros(3)).panels()


def overlap(cells: np.ndarray, image: np.ndarray = GREY) -> OverlapPrediction:
    points = np.array([[5.0, 5.0, 0.0], [5.0, -5.0, 0.0]])
    return OverlapPrediction(points, np.array([1.0, 0.0]), np.array([False, True]), image, cells)


def test_cells_cover_their_part_of_the_image() -> None:
    cells = np.array([[0.0, 1.0], [1.0, 0.0]])
    for image in (GREY, GREY.transpose(2, 0, 1)):
        drawn = pixels_of(overlap(cells, image).panels()[2].png)
        height, width = drawn.shape[:2]
        for row in range(2):
            for col in range(2):
                quarter = drawn[
                    row * height // 2 : (row + 1) * height // 2,
                    col * width // 2 : (col + 1) * width // 2,
                ]
                assert np.ptp(quarter.reshape(-1, 3), axis=0).max() == 0
                red, _, blue = quarter[0, 0]
                assert (red > blue) == (cells[row, col] > 0.5)


def test_points_are_coloured_by_the_probability_itself() -> None:
    """0 and 1 are the ends of the key, whatever range occurs."""
    predicted, true, _ = overlap(np.zeros((2, 2))).panels()
    left, right = (slice(0, 340), slice(380, 720))
    for panel, high, low in ((predicted, left, right), (true, right, left)):
        image = pixels_of(panel.png)
        red = image[..., 0] - image[..., 2] > 80
        blue = image[..., 2] - image[..., 0] > 80
        assert red[:, high].any()
        assert not red[:, low].any()
        assert blue[:, low].any()
        assert not blue[:, high].any()
    half = replace(overlap(np.zeros((2, 2))), overlap=np.array([0.5, 0.5])).panels()[0]
    image = pixels_of(half.png)
    assert (image[..., 1] - image[..., [0, 2]].max(-1) > 30).any(), "one half is green"


@pytest.mark.parametrize("figure", [overlay(), overlap(np.random.default_rng(0).random((3, 5)))])
def test_it_reads_back_equal(figure: figures.FigureData, tmp_path: Path) -> None:
    figure.save(tmp_path / "a.npz")
    found = figures.draw(tmp_path / "a.npz")
    assert [panel.png for panel in found.panels] == [panel.png for panel in figure.panels()]
    assert found.stacked == isinstance(figure, CalibrationOverlay)


def image(number: int, failed: bool = False) -> ImageRecord:
    error = PoseError(1.25, 1.75, 0.11)
    return ImageRecord(
        f"memory/val/{number:04d}", "front", UNIT.matrix, None if failed else UNIT,
        PoseError(30.0, 30.0, 5.0), None if failed else error, None if failed else error,
        300, 200, (0.25, 0.5, None), MaskQuality(0.5, 0.25, 0.2), MaskQuality(None, 0.0, 0.0),
    )  # fmt: skip


def record(count: int = 2, joint: bool = False) -> CalibrationRecord:
    spread, nothing = Spread(1.25, 1.5, 0.5), Spread(None, None, None)
    before = RegistrationSummary(count, 0, spread, spread, spread, 0.0, 0.0)
    after = RegistrationSummary(count, 1, spread, spread, spread, 0.5, 0.25)
    none = RegistrationSummary(count, count, nothing, nothing, nothing, 0.0, 0.0)
    curves = Curves((0.0, 0.5, 1.0), (0.0, 1.0, 2.0), (0.0, 0.5, 1.0), (0.0, 0.5, 1.0), (0.0,) * 3)
    return CalibrationRecord(
        "lidarssl calibrate runs/<nclr>", "runs/nclr", "memory", "val", count, "robust",
        "turned & moved", 0, ("A note.",), before, after, after, curves, curves,
        (JointRecord("front", count, UNIT, after, 600, 400),
         JointRecord("left", count, None, none, 600, 0)) if joint else (),
        tuple(image(number, failed=number == 1) for number in range(count)),
    )  # fmt: skip


def test_the_record_reads_back_equal(tmp_path: Path) -> None:
    made = record(joint=True)
    made.save(tmp_path)
    assert CalibrationRecord.load(tmp_path) == made


def test_the_text_has_every_number_and_the_poses() -> None:
    text = as_text(record())
    assert "memory/val: 2 images of 2 frames; initial pose turned & moved; solver robust" in text
    rows = [line.split() for line in text.splitlines()]
    assert [
        "memory/val/0000",
        "front",
        "30.00",
        "5.00",
        "1.25",
        "0.11",
        "200/300",
        "50",
        "%",
    ] in rows
    assert [
        "memory/val/0001",
        "front",
        "30.00",
        "5.00",
        "–",
        "failed",
        "200/300",
        "50",
        "%",
    ] in rows
    assert ["success", "0", "%", "50", "%"] in rows
    assert ["success", "0", "%", "25", "%"] in rows
    assert "quaternion (w, x, y, z)  1.000000 0.000000" in text
    assert text.count("camera_from_lidar") == 1
    assert text.endswith("A note.")


def test_of_many_images_the_terminal_shows_some_and_no_single_pose() -> None:
    text = as_text(record(MOST_LINES + 3))
    assert "... and 3 more images" in text
    assert text.count("memory/val/") == MOST_LINES
    assert "camera_from_lidar" not in text


def test_one_pose_of_a_camera_is_told() -> None:
    text = as_text(record(joint=True))
    assert "front, one pose from 2 frames, 1.25° and 1.25 m off (median): camera_from_lidar" in text
    assert "left, one pose from 2 frames: none found" in text


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_stands_alone(tmp_path: Path) -> None:
    overlay().save(tmp_path / "figures" / "one.npz")
    shown = PictureRecord("figures/one.npz", "Overlay", "What to see.", Section.PREDICTIONS)
    page = write_report(record(joint=True), [shown], tmp_path).read_text()
    links = Links()
    links.feed(page)
    assert len([one for one in links.sources if one.startswith("data:image")]) == 2
    assert all(one.startswith("data:") for one in links.sources)
    assert (tmp_path / "figures" / "one_1.png").is_file()
    assert "50\N{NO-BREAK SPACE}% of 2 images calibrated" in page
    assert "turned &amp; moved" in page
    assert "runs/&lt;nclr&gt;" in page
    assert page.count("<svg") == 2
    assert "panels one" in page


def test_a_page_without_pictures_or_poses(tmp_path: Path) -> None:
    page = write_report(record(1), [], tmp_path).read_text()
    assert "What it looks like" not in page
    assert "One pose of each camera" not in page
