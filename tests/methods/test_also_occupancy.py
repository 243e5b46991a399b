"""Occupancy anywhere around scans, against a loop over places and supports in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lidarssl.backbones.base import Backbone
from lidarssl.frame import PointBatch, PointFeatures
from lidarssl.methods import also
from lidarssl.methods.also import Also
from lidarssl.transforms.occupancy import SupportSearch
from methods.small import backbone

BOX = torch.tensor([4.0, 4.0, 1.0])


class Map(Backbone):
    """Four by four columns of 2 m for each frame, whatever the points."""

    columns = True

    def __init__(self) -> None:
        super().__init__()
        self.out_channels = 6
        self.table = nn.Parameter(torch.randn(32, 6))

    def forward(self, points: PointBatch) -> PointFeatures:
        axis = torch.arange(4) * 2.0 - 3.0
        x, y = torch.meshgrid(axis, axis, indexing="ij")
        cells = torch.stack([x, y, torch.zeros_like(x)], 2).view(-1, 3)
        batch = torch.arange(points.batch_size).repeat_interleave(16)
        positions = cells.repeat(points.batch_size, 1)
        return PointFeatures(positions, self.table[: len(batch)], batch, torch.zeros_like(batch))


def scans(count: int = 150) -> PointBatch:
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(2 * count, 3, generator=generator) * torch.tensor([8, 8, 2.0]) - BOX
    batch = torch.arange(2).repeat_interleave(count)
    return PointBatch(points, torch.rand(2 * count, generator=generator), batch, 2)


def places(count: int = 60) -> tuple[Tensor, Tensor]:
    """Near both scans, the last one far from everything."""
    generator = torch.Generator().manual_seed(2)
    positions = torch.rand(count, 3, generator=generator) * torch.tensor([8, 8, 2.0]) - BOX
    positions[-1] = 500.0
    return positions, torch.randint(0, 2, (count,), generator=generator)


def method(columns: bool, search: SupportSearch) -> Also:
    torch.manual_seed(0)
    return Also(Map() if columns else backbone(), latent=12, search=search)


def one_by_one(made: Also, points: PointBatch, positions: Tensor, frame: Tensor) -> list[float]:
    """Mean of the probabilities of the nearest supports, decoded one pair at a time."""
    made = made.eval()
    tokens = made.backbone(points)
    if made.backbone.columns:
        supports, batch, features = tokens.positions, tokens.batch, tokens.features
    else:
        supports, batch, features = points.points, points.batch, tokens.at_points()
    latents = made.latent_head(features).double()
    decoder = made.decoder.double()
    width = 2 if made.search.shape == "column" else 3
    means = []
    for place, of in zip(positions.double(), frame.tolist(), strict=True):
        away = (supports.double() - place)[:, :width].norm(dim=1)
        away[batch != of] = math.inf
        order = away.argsort()[: made.search.limit]
        if made.search.shape != "nearest":
            order = order[away[order] < made.search.radius]
        found = []
        for row in order.tolist():
            hidden = torch.cat([latents[row], place - supports[row].double()])
            hidden = decoder.fc_in(hidden)
            for layer in decoder.mlp_layers:
                hidden = layer(hidden.relu())
            found.append(torch.sigmoid(decoder.fc_out(hidden)[0]).item())
        means.append(sum(found) / len(found) if found else math.nan)
    made.float()
    return means


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize(
    "search",
    [
        SupportSearch("ball", 1.5, 4),
        SupportSearch("ball", 1.5, None),
        SupportSearch("ball", 1.5, 4, choice="first"),
        SupportSearch("column", 1.3, 3),
        SupportSearch("nearest", limit=2),
    ],
    ids=lambda search: f"{search.shape} {search.limit} {search.choice}",
)
def test_the_mean_is_that_of_a_loop(columns: bool, search: SupportSearch) -> None:
    made, points, (positions, frame) = method(columns, search), scans(), places()
    expected = torch.tensor(one_by_one(made, points, positions, frame))
    found = made.occupancy_at(points, positions, frame)
    assert torch.allclose(found, expected, atol=1e-5, equal_nan=True)
    answered = ~found.isnan()
    assert bool(answered[-1]) == (search.shape == "nearest")
    assert answered.float().mean() > 0.5
    assert found[answered].std() > 1e-3


def test_working_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made, points = method(False, SupportSearch("ball", 1.5, 4)), scans()
    whole = made.occupancy_at(points, *places())
    monkeypatch.setattr(also, "_PLACES", 7)
    monkeypatch.setattr(also, "_PAIRS", 5)
    assert torch.allclose(made.occupancy_at(points, *places()), whole, atol=1e-6, equal_nan=True)


def test_asking_changes_neither_the_method_nor_its_mode() -> None:
    made = method(False, SupportSearch("ball", 1.5, 4)).train()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    found = made.occupancy_at(scans(), *places())
    assert made.training
    assert made.backbone.training
    assert not found.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    made.eval()
    assert torch.equal(made.occupancy_at(scans(), *places()).nan_to_num(), found.nan_to_num())
    assert not made.training


def test_no_places_give_no_answers() -> None:
    made = method(False, SupportSearch("ball", 1.5, 4))
    nowhere = torch.zeros(0, dtype=torch.int64)
    assert made.occupancy_at(scans(), torch.zeros(0, 3), nowhere).shape == (0,)
