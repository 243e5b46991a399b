from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from lidarssl.errors import DataError
from lidarssl.report import pictures
from lidarssl.report.pictures import View

GREY = np.full((20, 40, 3), 90, np.uint8)
COLORS = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0)])
RED, BLUE = np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])


def pixels(png: bytes) -> np.ndarray:
    """(H, W, 3) float in 0..1."""
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")) / 255.0


def where(image: np.ndarray, color: np.ndarray, tolerance: float = 0.05) -> np.ndarray:
    """Mean (row, col) of the pixels of a colour."""
    found = np.argwhere(np.abs(image - color).max(-1) < tolerance)
    assert len(found), f"no pixel of {color}"
    return found.mean(0)


@pytest.mark.parametrize(("row", "col"), [(0, 0), (5, 33), (19, 39), (10, 0)])
def test_a_projected_point_lands_on_its_pixel(row: int, col: int) -> None:
    image = pixels(pictures.lidar_on_image(GREY, [row], [col], RED[None]))
    scale = image.shape[1] // 40
    assert image.shape == (20 * scale, 40 * scale, 3)
    inside = 3 <= row <= 16 and 3 <= col <= 36
    center = (where(image, RED) + 0.5) / scale - 0.5
    assert np.abs(center - (row, col)).max() < (0.1 if inside else 0.8)


def test_range_runs_from_blue_to_red() -> None:
    image = pixels(pictures.lidar_on_image(GREY, [10, 10], [10, 30], torch.tensor([1.0, 50.0])))
    scale = image.shape[1] // 40
    near, far = image[int(10.5 * scale), [int(10.5 * scale), int(30.5 * scale)]]
    assert near.argmax() == 2
    assert far.argmax() == 0


def test_channels_first_tensors_and_floats_are_the_same_image() -> None:
    tensor = torch.from_numpy(GREY).permute(2, 0, 1)
    args = ([3], [4], [1.0])
    expected = pictures.lidar_on_image(GREY, *args)
    assert pictures.lidar_on_image(tensor, *args) == expected
    assert pictures.lidar_on_image(tensor / 255, *args) == expected


def test_superpixel_borders_are_drawn_only_where_ids_change() -> None:
    halves = np.repeat([[0, 1]], 20, 0).repeat(20, 1)
    image = pixels(pictures.superpixel_overlay(GREY, halves))
    changed = np.abs(image - 90 / 255).max(-1) > 0.05
    middle = image.shape[1] // 2
    assert changed[:, middle].all()
    assert changed.any(0).sum() == 2
    assert not (
        np.abs(pixels(pictures.superpixel_overlay(GREY, halves * 0)) - 90 / 255) > 0.01
    ).any()


def test_camera_labels_tint_by_class_and_leave_ignored_pixels() -> None:
    labels = np.zeros((20, 40), int)
    labels[:, 20:] = 1
    image = pixels(pictures.camera_labels(GREY, torch.from_numpy(labels), COLORS, strength=1.0))
    assert np.allclose(image[:, : image.shape[1] // 2], 90 / 255, atol=0.01)
    assert np.allclose(image[:, image.shape[1] // 2 :], RED, atol=0.01)


@pytest.mark.parametrize(("x", "y"), [(6.0, 0.0), (0.0, 6.0), (-7.0, -3.0)])
def test_forward_is_up_and_left_is_left(x: float, y: float) -> None:
    view = View(extent=10.0, pixels=400)
    image = pixels(pictures.bev([[x, y, 0.0]], RED[None], view))
    assert image.shape == (400, 400, 3)
    expected = (200 - 20 * x, 200 - 20 * y)
    assert np.abs(where(image, RED) + 0.5 - expected).max() < 0.8


def test_high_points_cover_low_ones_whatever_their_order() -> None:
    points = np.array([[6.0, 0, 2.0], [6.0, 0, -2.0]])
    color = np.stack([RED, BLUE])
    view = View(extent=10.0, pixels=200)
    for order in ([0, 1], [1, 0]):
        image = pixels(pictures.bev(points[order], color[order], view))
        assert np.allclose(image[40, 100], RED, atol=0.05)


def test_mistakes_are_red_right_points_grey_and_unlabelled_ones_dark() -> None:
    points = [[5.0, 0, 0], [0, 5.0, 0], [-5.0, 0, 0]]
    view = View(extent=10.0, pixels=200)
    image = pixels(pictures.bev_error(points, [1, 2, 2], [1, 1, 0], view))
    right, wrong, ignored = image[50, 100], image[100, 50], image[150, 100]
    assert wrong[0] > 0.9 > 0.5 > wrong[1]
    assert right.std() < 0.08 < right.mean()
    assert ignored.mean() < right.mean()


def test_classes_have_their_colors_and_ignored_points_are_dark() -> None:
    points = [[5.0, 0, 0], [0, 5.0, 0], [0, -5.0, 0]]
    image = pixels(pictures.bev_classes(points, [1, 2, 0], COLORS, View(10.0, 200)))
    assert np.allclose(image[50, 100], RED, atol=0.05)
    assert np.allclose(image[100, 50], (0, 1, 0), atol=0.05)
    assert image[100, 150].max() < 0.3


@pytest.mark.parametrize(("x", "y"), [(7, 1), (0, 0), (3, 9)])
def test_cells_have_forward_up_and_left_to_the_left(x: int, y: int) -> None:
    """Cell (x, y) of ten by ten, from the rear right corner."""
    colors = np.full((10, 10, 3), np.nan)
    colors[x, y] = RED
    image = pixels(pictures.bev_cells(torch.from_numpy(colors), 5.0, np.zeros((0, 3)), 400))
    assert image.shape == (400, 400, 3)
    expected = (40 * (10 - x) - 20, 40 * (10 - y) - 20)
    assert np.abs(where(image, RED, 0.02) + 0.5 - expected).max() < 2
    assert image[2, 200].max() < 0.2


def test_points_over_cells_lie_where_their_cell_is() -> None:
    colors = np.zeros((10, 10, 3))
    image = pixels(pictures.bev_cells(colors, 5.0, [[2.5, -3.5, 0.0]] * 30, 400))
    white = np.argwhere(image[:180].min(-1) > 0.5)
    assert np.abs(white.mean(0) + 0.5 - (100, 340)).max() < 1.5


def test_similarity_is_red_where_alike_blue_where_not() -> None:
    points = [[5.0, 5, 0], [5.0, -5, 0], [-5.0, 5, 0]]
    features = torch.tensor([[2.0, 0], [9.0, 0.1], [0, 1.0]])
    image = pixels(pictures.similarity_bev(points, features, 0, View(10.0, 200)))
    alike, unlike = image[50, 150], image[150, 50]
    assert alike.argmax() == 0
    assert unlike.argmax() == 2


def test_cosine_is_that_of_torch_and_survives_zero_features() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 8, generator=generator)
    features[7] = 0
    expected = torch.nn.functional.cosine_similarity(features, features[3:4])
    assert np.allclose(pictures.cosine_to(features, 3), expected, atol=1e-5)
    with pytest.raises(DataError, match="does not exist"):
        pictures.cosine_to(features, 50)


def test_pca_colors_follow_the_main_directions_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    groups = np.eye(4)[np.arange(400) % 4] @ (10 * rng.normal(size=(4, 12)))
    rgb = pictures.pca_rgb(groups + 0.01 * rng.normal(size=(400, 12)))
    assert rgb.min() >= 0.15
    assert rgb.max() <= 1.0
    means = np.stack([rgb[i::4].mean(0) for i in range(4)])
    spread = max(rgb[i::4].std(0).max() for i in range(4))
    apart = min(np.abs(means[i] - means[j]).max() for i in range(4) for j in range(i))
    assert apart > 10 * spread
    assert np.allclose(pictures.pca_rgb(groups + 100.0), pictures.pca_rgb(groups))


def test_pca_accepts_few_channels_no_points_and_nan() -> None:
    assert pictures.pca_rgb(np.ones((5, 2))).shape == (5, 3)
    assert pictures.pca_rgb(np.zeros((0, 8))).shape == (0, 3)
    assert np.isfinite(pictures.pca_rgb(np.full((5, 4), np.nan))).all()


@pytest.mark.parametrize("points", [np.zeros((0, 3)), np.full((4, 3), np.nan), np.zeros((4, 3))])
def test_scans_without_a_usable_point_still_draw(points: np.ndarray) -> None:
    assert pixels(pictures.bev(points, np.zeros(len(points)))).shape == (720, 720, 3)


@pytest.mark.parametrize(
    ("draw", "field"),
    [
        (lambda: pictures.bev(np.zeros((4, 3)), np.zeros(3)), "color"),
        (lambda: pictures.lidar_on_image(GREY, [1, 2], [1], [1.0, 2.0]), "col"),
        (lambda: pictures.lidar_on_image(GREY[0], [1], [1], [1.0]), "image"),
        (lambda: pictures.superpixel_overlay(GREY, np.zeros((3, 3), int)), "superpixels"),
        (lambda: pictures.camera_labels(GREY, np.full((20, 40), 9), COLORS), "colors"),
        (lambda: pictures.bev_error(np.zeros((2, 3)), [1, 2], [1]), "truth"),
        (lambda: pictures.bev_cells(np.zeros((4, 4)), 5.0, np.zeros((0, 3))), "colors"),
    ],
)
def test_arrays_that_do_not_fit_are_named(draw: Callable[[], bytes], field: str) -> None:
    with pytest.raises(DataError) as caught:
        draw()
    assert caught.value.field == field


def labels_at(png: bytes) -> set[str]:
    """Sides of the sensor, ahead and behind, where text stands on the 10 m ring."""
    image = pixels(png)
    letters = np.abs(image - (0.663, 0.71, 0.761)).max(-1) < 0.1
    return {
        name
        for name, row in (("ahead", 50), ("behind", 250))
        if letters[row - 8 : row + 8, 130:170].any()
    }


@pytest.mark.parametrize(("x", "side"), [(-3.0, "ahead"), (3.0, "behind")])
def test_distances_are_written_away_from_the_ring(x: float, side: str) -> None:
    points, view = [[x, 0, 0], [0, 14.0, 0]], View(extent=15.0, pixels=300)
    assert labels_at(pictures.similarity_bev(points, np.eye(2), 0, view)) == {side}


def test_points_without_features_are_dark_and_change_no_other_colour() -> None:
    points = np.array([[5.0, 5, 0], [5.0, -5, 0], [-5.0, 5, 0], [-5.0, -5, 0]])
    features = np.array([[2.0, 0], [0, 1.0], [1.0, 1.0], [np.nan, np.nan]])
    rgb = pictures.pca_rgb(features)
    assert np.allclose(rgb[:3], pictures.pca_rgb(features[:3]))
    assert rgb[3].max() < 0.25
    assert np.isnan(pictures.cosine_to(features, 0)).tolist() == [False, False, False, True]
    image = pixels(pictures.similarity_bev(points, features, 0, View(10.0, 200)))
    assert image[150, 150].max() < 0.25
    assert image[50, 150].max() > 0.4
