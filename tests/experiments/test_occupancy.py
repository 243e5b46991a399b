"""Pictures of occupied space ask the method about the frame that they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lidarssl.batching import collate
from lidarssl.experiments.method_pictures import add_method_pictures
from lidarssl.experiments.occupancy import also_occupancy, occupancy_scene, occupancy_slices
from lidarssl.experiments.pictures import PictureBook, picture_frame
from lidarssl.frame import Frame, FrameId
from lidarssl.geometry.rays import Cell, Grid, seen_cells
from lidarssl.methods.also import Also, ScanSampling
from lidarssl.methods.base import Method
from lidarssl.methods.ppkt import Ppkt
from lidarssl.methods.slidr import Slidr
from lidarssl.report.occupancy import FREE, FREE_COLOR, FULL, FULL_COLOR, UNKNOWN
from lidarssl.transforms.occupancy import SupportSearch
from methods.small import backbone, build
from toys import MemoryDataset


def frame() -> Frame:
    dataset = MemoryDataset()
    return picture_frame(dataset, dataset.frames("val")[0], "val")


def also(sampling: ScanSampling) -> Also:
    torch.manual_seed(0)
    return Also(backbone(), 8, sampling, SupportSearch("ball", 1.0, 8))


PLACES = torch.rand(40, 3, generator=torch.Generator().manual_seed(3)) * 8 - torch.tensor([0, 4, 1])


def test_the_whole_scan_answers_where_nothing_thins_it() -> None:
    method, shown = also(ScanSampling(None, max_points=None)), frame()
    points = collate([Frame(shown.id, shown.points, shown.intensity)]).points
    expected = method.occupancy_at(points, PLACES, torch.zeros(40, dtype=torch.int64))
    found = also_occupancy(method, shown)(PLACES)
    assert torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1))
    assert (~found.isnan()).sum() > 10


def test_the_scan_is_thinned_as_the_method_thins_it() -> None:
    shown = frame()
    found = also_occupancy(also(ScanSampling(None, max_points=5)), shown)(shown.points)
    again = also_occupancy(also(ScanSampling(None, max_points=5)), shown)(shown.points)
    assert torch.equal(found.nan_to_num(-1), again.nan_to_num(-1))
    near = torch.cdist(shown.points, shown.points) < 1
    assert 0 < (~found.isnan()).sum() <= near.sum(1).topk(5)[0].sum()
    assert bool(found.isnan().any())


def test_no_label_is_needed_even_if_training_used_them() -> None:
    shown = frame()
    unlabelled = Frame(shown.id, shown.points, shown.intensity)
    method = also(ScanSampling(None, max_points=None, drop_unlabeled=True))
    assert (~also_occupancy(method, unlabelled)(PLACES).isnan()).any()


@pytest.mark.parametrize(
    ("cls", "own"), [(Also, ["occupancy"]), (Slidr, ["superpixels"]), (Ppkt, [])]
)
def test_each_method_adds_what_is_its_own(
    cls: type[Method], own: list[str], tmp_path: Path
) -> None:
    book = PictureBook(tmp_path, MemoryDataset())
    add_method_pictures(build(cls), frame(), book)
    assert [Path(record.file).stem for record in book.records] == own


def test_states_have_the_same_numbers_in_the_library_and_in_the_report() -> None:
    assert (Cell.UNKNOWN, Cell.FREE, Cell.SURFACE) == (UNKNOWN, FREE, FULL)


def room(side: float = 6.0) -> torch.Tensor:
    """Returns from the floor, 1.7 m below, and from a wall ahead."""
    generator = torch.Generator().manual_seed(0)
    floor = torch.rand(3000, 3, generator=generator) * 2 * side - side
    floor[:, 2] = -1.7
    wall = torch.rand(1000, 3, generator=generator) * 4 - 2
    wall[:, 0], wall[:, 2] = side, wall[:, 2].clamp(min=-1.7)
    return torch.cat([floor, wall])


def test_slices_lie_above_the_ground_and_keep_their_points() -> None:
    asked = []

    def occupancy(places: torch.Tensor) -> torch.Tensor:
        asked.append(places)
        return (places[:, 0] > 6).float()

    slices = occupancy_slices(room(), occupancy, heights=(0.5, 2.0), extent=8.0, cell=0.5)
    assert slices.truth.shape == slices.prediction.shape == (2, 32, 32)
    for height, places in zip((0.5, 2.0), asked, strict=True):
        assert torch.allclose(places[:, 2], torch.tensor(height - 1.7))
    middle = slices.prediction[0].mean(1)
    assert middle[:28].max() == 0
    assert middle[28:].min() == 1
    grid = Grid((-8, -8, -1.45), (0.5, 0.5, 0.5), (32, 32, 1))
    assert np.array_equal(slices.truth[0], seen_cells(room(), grid)[..., 0])
    assert slices.points[:, 2].min() == pytest.approx(0, abs=1e-5)
    assert len(slices.points) == 4000


def test_a_scene_shows_full_cells_and_those_with_returns() -> None:
    cloud = room()
    shown = Frame(FrameId("d", "s", "t"), cloud, torch.ones(len(cloud)))
    scene = occupancy_scene(shown, lambda places: (places[:, 0] > 5.9).float(), extent=7, cell=0.5)
    predicted, returns = scene.cells["occupancy/predicted"], scene.cells["occupancy/returns"]
    assert predicted.centers[:, 0].min() > 5.9
    assert len(predicted.centers) == 2 * 28 * 7
    assert predicted.colors.unique(dim=0).tolist() == [list(FULL_COLOR)]
    away = torch.cdist(returns.centers, cloud, p=torch.inf).amin(1)
    assert away.max() <= 0.25 + 1e-5
    assert len(returns.centers) > 100
    assert scene.colors["points"][0].tolist() == list(FREE_COLOR)
    assert scene.colors["points"][-1].tolist() == list(FULL_COLOR)
