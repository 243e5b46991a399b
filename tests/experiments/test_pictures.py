"""Pictures put the direction of travel upwards and ask about sensible points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lidarssl.backbones.second import Second
from lidarssl.experiments.pictures import (
    PictureBook,
    most_crowded,
    picture_frame,
    point_features,
    query_point,
    standard_directions,
)
from lidarssl.frame import Frame, FrameId
from lidarssl.report.figures import FeaturePca, Similarity, load
from lidarssl.report.occupancy import FREE, FULL, OccupancySlices, agreement
from lidarssl.report.schema import Section
from toys import MemoryDataset


def frame_of(points: list[list[float]], semantic: list[int] | None = None) -> Frame:
    cloud = torch.tensor(points, dtype=torch.float32)
    labels = None if semantic is None else torch.tensor(semantic)
    return Frame(FrameId("memory", "a", "0"), cloud, torch.ones(len(cloud)), semantic=labels)


@pytest.mark.parametrize(("forward", "ahead"), [((1.0, 0.0), [7, 0, 1]), ((0.0, 1.0), [0, 7, 1])])
def test_a_point_straight_ahead_lies_on_plus_x(
    forward: tuple[float, float], ahead: list[float], tmp_path: Path
) -> None:
    dataset = MemoryDataset()
    dataset.forward = forward
    turned = PictureBook(tmp_path, dataset).points_of(frame_of([ahead]))
    assert np.allclose(turned, [[7, 0, 1]])


def test_left_of_the_vehicle_stays_left(tmp_path: Path) -> None:
    dataset = MemoryDataset()
    dataset.forward = (0.0, 1.0)
    left = PictureBook(tmp_path, dataset).points_of(frame_of([[-3.0, 0.0, 0.0]]))
    assert np.allclose(left, [[0, 3, 0]])


def test_query_is_on_a_car_where_labels_say_so() -> None:
    dataset = MemoryDataset()
    names = dataset.classes.names
    points = [[float(i), 0.0, 0.0] for i in range(60)]
    labels = [0] * 30 + [1] * 30
    classes = type(dataset.classes)((names[0], "car", names[2]), dataset.classes.colors)
    point, what = query_point(frame_of(points, labels), classes)
    assert 30 <= point < 60
    assert what == "on a car"


def test_query_is_about_ten_metres_away_without_labels() -> None:
    points = [[float(i), 0.0, 0.0] for i in range(60)]
    assert query_point(frame_of(points), MemoryDataset().classes) == (10, "about 10 m away")


def test_every_picture_is_saved_and_can_be_drawn(tmp_path: Path) -> None:
    dataset = MemoryDataset()
    frame = picture_frame(dataset, dataset.frames("train")[0], "train")
    book = PictureBook(tmp_path, dataset)
    book.add_input(frame)
    book.add_superpixels(frame, torch.zeros(48, 64, dtype=torch.int64))
    book.add_image_labels(frame, torch.ones(48, 64, dtype=torch.int64))
    book.add_features(frame, torch.randn(len(frame), 8), "a", "caption")
    book.add_prediction(frame, torch.ones(len(frame), dtype=torch.int64), "a")
    assert {record.section for record in book.records} == set(Section)
    for record in book.records:
        assert load(tmp_path / record.file).panels()


@pytest.mark.parametrize("forward", [(1.0, 0.0), (0.0, 1.0)])
def test_occupancy_is_asked_in_the_lidar_frame_and_shown_driving_upwards(
    forward: tuple[float, float], tmp_path: Path
) -> None:
    """A room two metres ahead and three to the left, predicted as it is."""
    dataset = MemoryDataset()
    dataset.forward = forward
    ahead, left = torch.tensor(forward), torch.tensor([-forward[1], forward[0]])
    spread = torch.rand(4000, 2, generator=torch.Generator().manual_seed(0)) * 4 - 2
    front, side = spread.split(2000)
    x = torch.cat([torch.full((2000,), 2.01), side[:, 0]])
    y = torch.cat([front[:, 0], torch.full((2000,), 3.01)])
    flat = x[:, None] * ahead + y[:, None] * left
    frame = frame_of(torch.cat([flat, spread[:, 1:]], 1).tolist())

    def occupancy(places: torch.Tensor) -> torch.Tensor:
        return ((places[:, :2] @ ahead > 2) | (places[:, :2] @ left > 3)).float()

    book = PictureBook(tmp_path, dataset)
    book.add_occupancy(frame, occupancy)
    figure = load(tmp_path / book.records[0].file)
    assert isinstance(figure, OccupancySlices)
    for truth, prediction in zip(figure.truth, figure.prediction, strict=True):
        assert agreement(truth, prediction) == (1.0, 1.0)
        assert (truth == FREE).sum() > 50
        assert (truth == FULL).sum() > 30
        rows, columns = (truth == FULL).nonzero()
        assert rows.max() == 110
        assert columns.max() == 115


def test_a_frame_without_cameras_shows_the_scan(tmp_path: Path) -> None:
    book = PictureBook(tmp_path, MemoryDataset())
    book.add_input(frame_of([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert [record.file for record in book.records] == ["figures/scan.npz"]


def test_directions_ignore_the_scale_and_offset_of_channels() -> None:
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    scaled = features * torch.tensor([1000.0, 1.0, 0.01, 5.0]) + 7
    directions = standard_directions(features)
    assert torch.allclose(directions, standard_directions(scaled), atol=1e-3)
    assert torch.allclose(directions.norm(dim=1), torch.ones(50))


def test_a_dead_channel_stays_finite() -> None:
    assert bool(torch.isfinite(standard_directions(torch.ones(5, 3))).all())


def test_the_most_crowded_point_is_inside_the_cluster() -> None:
    generator = torch.Generator().manual_seed(0)
    cluster = torch.rand(40, 3, generator=generator) * 0.3 + 10
    stray = torch.tensor([[3.0, 0.0, 0.0], [4.0, 0.0, 0.0], [12.0, 0.0, 0.0]])
    assert most_crowded(torch.cat([stray, cluster])) >= 3
    assert most_crowded(torch.cat([stray, cluster]), most=20) >= 3


def test_points_outside_a_birds_eye_grid_have_no_features_in_the_pictures(tmp_path: Path) -> None:
    """The network would give them those of the border: no picture may show these as learned."""
    torch.manual_seed(0)
    network = Second(
        (0.0, -4.0, -3.0, 8.0, 4.0, 1.0), (0.1, 0.1, 0.1),
        channels=(4, 4, 4, 4), trunk_channels=4, plane_channels=(4, 4), up_channels=(4, 4),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(400, 3, generator=generator) * torch.tensor([12.0, 12, 2]) - 2
    points[:, 1] -= 4
    frame = frame_of(points.tolist())
    features = point_features(network, frame, torch.device("cpu"))
    x, y = points[:, 0], points[:, 1]
    inside = (x >= 0) & (x < 8) & (y >= -4) & (y < 4)
    assert 50 < int(inside.sum()) < 350
    assert torch.equal(torch.isfinite(features).all(1), inside)

    book = PictureBook(tmp_path, MemoryDataset())
    book.add_features(frame, features, "a", "caption")
    pca, similarity = (load(tmp_path / record.file) for record in book.records)
    assert isinstance(pca, FeaturePca)
    assert isinstance(similarity, Similarity)
    assert np.array_equal(np.isfinite(pca.features).all(1), inside.numpy())
    assert bool(inside[similarity.query])
    assert all("outside the network's grid" in record.caption for record in book.records)


def test_a_network_without_a_grid_is_not_said_to_have_one(tmp_path: Path) -> None:
    frame = frame_of([[float(i), 0.0, 0.0] for i in range(20)])
    book = PictureBook(tmp_path, MemoryDataset())
    book.add_features(frame, torch.randn(20, 4), "a", "caption")
    assert not any("grid" in record.caption for record in book.records)


def test_directions_of_known_rows_are_those_without_the_unknown_ones() -> None:
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    mixed = torch.cat([features, torch.full((9, 4), torch.nan)])
    assert torch.equal(standard_directions(mixed)[:50], standard_directions(features))
    assert bool(standard_directions(mixed)[50:].isnan().all())
