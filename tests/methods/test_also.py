"""ALSO beside a plain computation, pair by pair, and what it must never read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lidarssl.backbones.base import Backbone
from lidarssl.batching import collate
from lidarssl.errors import ConfigError
from lidarssl.frame import Batch, Field, Frame, PointBatch, PointFeatures
from lidarssl.methods.also import Also, OccupancyDecoder, ScanSampling
from lidarssl.transforms.base import Compose, sample_generator
from lidarssl.transforms.occupancy import SupportSearch
from methods.small import backbone, batch_of, build, frames
from toys import MemoryDataset


def plain_decoder(decoder: OccupancyDecoder, latent: Tensor, offset: Tensor) -> Tensor:
    """The published layers one after the other on [latent, query - support]."""
    hidden = torch.relu(decoder.fc_in(torch.cat([latent, offset], dim=-1)))
    hidden = torch.relu(decoder.mlp_layers[0](hidden))
    return decoder.fc_out(decoder.mlp_layers[1](hidden))


@pytest.mark.parametrize("outputs", [1, 2])
def test_decoder_equals_its_layers_one_by_one(outputs: int) -> None:
    torch.manual_seed(0)
    decoder = OccupancyDecoder(8, outputs).double()
    latents = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    support = torch.tensor([0, 4, 4, 2])
    offset = torch.randn(4, 3, dtype=torch.float64)
    found = decoder(latents, support, offset)
    expected = plain_decoder(decoder, latents[support], offset)
    assert torch.allclose(found, expected, rtol=1e-12)
    inputs = [latents, *decoder.parameters()]
    for actual, wanted in zip(
        torch.autograd.grad(found.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        assert torch.allclose(actual, wanted, rtol=1e-10, atol=1e-13)


def test_number_of_parameters_of_the_paper() -> None:
    assert sum(parameter.numel() for parameter in OccupancyDecoder(128).parameters()) == 50178


def loss_by_loops(method: Also, batch: Batch) -> tuple[float, float]:
    """Both losses, one pair at a time."""
    latents, queries = method.latents(batch), batch.queries
    assert queries is not None
    assert queries.query is not None
    assert queries.point is not None
    occupancy, intensity = [], []
    for query, point in zip(queries.query.tolist(), queries.point.tolist(), strict=True):
        assert queries.batch[query] == batch.points.batch[point]
        latent = latents.features[latents.token_of_point[point]]
        offset = queries.positions[query] - batch.points.points[point]
        logit, value = plain_decoder(method.decoder, latent, offset).tolist()
        chance = 1 / (1 + torch.exp(torch.tensor(-logit, dtype=torch.float64)))
        truth = chance if queries.occupancy[query] else 1 - chance
        occupancy.append(-float(truth.log()))
        if queries.intensity[query] >= 0:
            intensity.append(abs(value - method.intensity_scale * float(queries.intensity[query])))
    return sum(occupancy) / len(occupancy), sum(intensity) / len(intensity)


def test_losses_equal_loops_over_pairs() -> None:
    method = build(Also).double()
    batch = batch_of(method, frames(method, 2))
    batch = replace(batch, points=replace(batch.points, points=batch.points.points.double()))
    output = method.training_step(batch, torch.Generator())
    occupancy, intensity = loss_by_loops(method, batch)
    assert output.terms["occupancy"].item() == pytest.approx(occupancy, rel=1e-6)
    assert output.terms["intensity"].item() == pytest.approx(intensity, rel=1e-6)
    assert output.loss.item() == pytest.approx(occupancy + intensity, rel=1e-6)


def test_weights_of_the_losses() -> None:
    losses = {}
    for weights in ((1.0, 1.0), (2.0, 1.0), (1.0, 3.0), (1.0, 0.0), (0.0, 1.0)):
        torch.manual_seed(0)
        method = Also(backbone(), 16, ScanSampling(num_queries=90), None, *weights)
        batch = batch_of(method, frames(method, 2))
        losses[weights] = method.training_step(batch, torch.Generator())
    terms = losses[1.0, 1.0].terms
    for weights, output in losses.items():
        if weights[1] == 0:
            assert "intensity" not in output.terms
            assert output.loss == output.terms["occupancy"]
        else:
            expected = weights[0] * terms["occupancy"] + weights[1] * terms["intensity"]
            assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(ConfigError, match="loss weights"):
        Also(backbone(), occupancy_weight=0.0, intensity_weight=0.0)


class Columns(Backbone):
    """Cells of 2 m seen from above: the mean intensity of their points, made wide."""

    columns = True
    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 8)

    def forward(self, points: PointBatch) -> PointFeatures:
        cells = torch.cat([points.batch[:, None], (points.points[:, :2] // 2).long()], 1)
        cells, token = torch.unique(cells, dim=0, return_inverse=True)
        mean = torch.zeros(len(cells), 3).index_reduce(
            0, token, torch.stack([points.intensity] * 3, 1), "mean", include_self=False
        )
        centre = torch.cat([cells[:, 1:] * 2.0 + 1.0, torch.zeros(len(cells), 1)], 1)
        return PointFeatures(centre, self.layer(mean), cells[:, 0], token)


def test_cells_of_a_birds_eye_view_answer_for_their_columns() -> None:
    method = Also(Columns(), 16, ScanSampling(num_queries=90))
    assert method.search.shape == "column"
    method.search = replace(method.search, radius=1.5)
    batch = batch_of(method, frames(method, 3))
    queries = batch.queries
    assert queries is not None
    assert queries.query is None
    tokens = method.latents(batch)
    output, query = method.predict(tokens, batch, torch.Generator())
    distance = torch.cdist(queries.positions[:, :2].double(), tokens.positions[:, :2].double())
    near = (distance < 1.5) & (queries.batch[:, None] == tokens.batch)
    assert torch.equal(torch.bincount(query, minlength=len(queries)), near.sum(1))
    rows, cells = near.nonzero(as_tuple=True)
    offset = queries.positions[rows] - tokens.positions[cells]
    assert offset[:, 2].abs().max() > 0.5, "the height of a query counts, that of a cell does not"
    expected = plain_decoder(method.decoder, tokens.features[cells], offset)
    assert torch.allclose(output, expected, atol=1e-5)


def test_a_scan_without_a_near_support_has_no_loss() -> None:
    method = build(Also)
    some = [made_far(frame) for frame in frames(method, 2)]
    output = method.training_step(batch_of(method, some), torch.Generator())
    assert output.loss == 0
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def made_far(frame: Frame) -> Frame:
    assert frame.queries is not None
    nothing = torch.zeros(0, dtype=torch.int64)
    return replace(frame, queries=replace(frame.queries, query=nothing, point=nothing))


def test_sampling_in_the_order_of_the_paper() -> None:
    """Queries come from the thinned scan, before it is thinned to ``max_points``."""
    method = Also(backbone(), 8, ScanSampling(voxel_size=0.5, num_queries=300, max_points=20))
    (frame,) = frames(method, 1)
    assert len(frame) == 20
    assert frame.queries is not None
    assert len(frame.queries) > 3 * 20


def test_crops_before_anything_else() -> None:
    sampling = ScanSampling(max_range=6.0, min_range=3.0, max_height=0.5, num_queries=90)
    (frame,) = frames(Also(backbone(), 8, sampling), 1, training=False)
    distance = frame.points[:, :2].norm(dim=1)
    assert 3.0 <= distance.min() <= distance.max() <= 6.0
    assert frame.points[:, 2].abs().max() <= 0.5
    assert 0 < len(frame) < 200


def test_labels_are_needed_only_to_repeat_the_published_accident() -> None:
    assert Also(backbone()).needs == Field.NONE
    method = Also(backbone(), sampling=ScanSampling(drop_unlabeled=True))
    assert method.needs == Field.SEMANTIC
    assert frames(method, 1)[0].semantic is not None


def losses_of(dataset: MemoryDataset, method: Also) -> Tensor:
    transform = Compose(method.transforms(True))
    some = [
        transform(dataset.load(frame, method.needs), sample_generator(0, 0, number))
        for number, frame in enumerate(dataset.frames("train"))
    ]
    return method.training_step(collate(some), torch.Generator()).loss


def test_prepared_in_a_worker_or_not_is_the_same() -> None:
    method = build(Also)
    some = frames(method, 2)
    prepared = method.training_step(batch_of(method, some), torch.Generator()).loss
    assert torch.equal(prepared, method.training_step(collate(some), torch.Generator()).loss)


def test_search_is_a_setting() -> None:
    found: dict[str, Any] = {}
    for choice in ("first", "nearest", "random"):
        torch.manual_seed(0)
        search = SupportSearch(radius=2.0, limit=2, choice=choice)  # type: ignore[arg-type]
        method = Also(backbone(), 8, ScanSampling(num_queries=90), search)
        found[choice] = losses_of(MemoryDataset(2), method).item()
    assert len(set(found.values())) == 3
