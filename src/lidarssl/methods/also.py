"""ALSO: a backbone learns what its own rays tell: where space is free, where a surface hides.

Source: Boulch et al., "ALSO: Automotive Lidar Self-supervision by Occupancy estimation",
CVPR 2023. No image and no label is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl.backbones.base import Backbone
from lidarssl.distributed import all_reduce_sum
from lidarssl.errors import ConfigError
from lidarssl.frame import Batch, Field, PointBatch, PointFeatures, Queries, StepOutput
from lidarssl.geometry.decimation import Rounding
from lidarssl.losses.occupancy import (
    intensity_sum,
    occupancy_confusion,
    occupancy_iou,
    occupancy_sum,
)
from lidarssl.methods.base import Method
from lidarssl.transforms.base import Transform
from lidarssl.transforms.occupancy import FindSupports, MakeQueries, SupportSearch
from lidarssl.transforms.points import (
    CropRange,
    Decimate,
    DropUnlabeled,
    FlipAxes,
    LimitPoints,
    RotateZ,
)

# Places and pairs of ``occupancy_at`` at a time.
_PLACES, _PAIRS = 2**13, 2**17


@dataclass
class ScanSampling:
    """From a scan to the points a backbone sees and the queries it must answer.

    Args:
        voxel_size: m, one point is kept of each cell of this size; None = all points.
        rounding: of the cells; ``trunc`` as the published code.
        num_queries: of a scan.
        depth: m, how far behind and in front of a surface queries lie.
        max_points: points of the thinned scan that the backbone sees; None = all.
        max_range: m, horizontal; farther points are removed first; None = all points.
        min_range: m, horizontal; nearer points are removed first.
        max_height: m, points with |z| above are removed first; None = all points.
        drop_unlabeled: remove unlabelled points first, as the published code for SemanticKITTI
            does. It reads labels: never use it but to reproduce that.
        rotate: turn about z by a uniform angle.
        flip: mirror x, or x and y independently, each with probability 1/2.
    """

    voxel_size: float | None = 0.1
    rounding: Rounding = "floor"
    num_queries: int = 2048
    depth: float = 0.1
    max_points: int | None = 16384
    max_range: float | None = None
    min_range: float = 0.0
    max_height: float | None = None
    drop_unlabeled: bool = False
    rotate: bool = True
    flip: Literal["none", "x", "xy"] = "x"

    def __post_init__(self) -> None:
        if self.max_range is not None and self.min_range >= self.max_range:
            raise ConfigError(
                f"no point is {self.min_range} m or more and {self.max_range} m or less away",
                field="method.sampling.min_range, method.sampling.max_range",
                remedy="give a range that is not empty",
            )

    def transforms(self, training: bool) -> list[Transform]:
        """Thin, make queries, thin again, turn and mirror both."""
        steps: list[Transform] = [DropUnlabeled()] if self.drop_unlabeled else []
        if (self.max_range, self.min_range, self.max_height) != (None, 0.0, None):
            far = float("inf") if self.max_range is None else self.max_range
            high = float("inf") if self.max_height is None else self.max_height
            steps.append(CropRange(self.min_range, far, -high, high))
        if self.voxel_size is not None:
            steps.append(Decimate(self.voxel_size, self.rounding))
        steps.append(MakeQueries(self.num_queries, self.depth))
        if self.max_points is not None:
            steps.append(LimitPoints(self.max_points))
        if training and self.rotate:
            steps.append(RotateZ())
        if training and self.flip != "none":
            steps.append(FlipAxes(axes=self.flip))
        return steps


class OccupancyDecoder(nn.Module):
    """What one support says of one query near it: an occupancy logit, and an intensity.

    fc_in -> relu -> mlp_0 -> relu -> mlp_1 -> fc_out on [latent of the support, query - support].
    Nothing is between the last two, so they are multiplied into one layer first; and the latent
    part of the first is computed once per support, not once per pair.

    Args:
        latent: width of the latents and of the hidden layers.
        outputs: 2, or 1 without intensity.
    """

    def __init__(self, latent: int = 128, outputs: int = 2) -> None:
        super().__init__()
        self.fc_in = nn.Linear(latent + 3, latent)
        self.mlp_layers = nn.ModuleList([nn.Linear(latent, latent) for _ in range(2)])
        self.fc_out = nn.Linear(latent, outputs)

    def forward(self, latents: Tensor, support: Tensor, offset: Tensor) -> Tensor:
        """Predictions of P pairs.

        Args:
            latents: (T, latent).
            support: (P,) int64 row of ``latents`` of each pair.
            offset: (P, 3) m, query minus support.

        Returns:
            (P, outputs).
        """
        width = latents.shape[1]
        first, second = self.mlp_layers
        assert isinstance(second, nn.Linear)
        hidden = F.linear(latents, self.fc_in.weight[:, :width], self.fc_in.bias)
        moved = F.linear(offset.to(hidden.dtype), self.fc_in.weight[:, width:])
        hidden = F.relu(first(F.relu(hidden[support] + moved)))
        weight = self.fc_out.weight @ second.weight
        return F.linear(hidden, weight, self.fc_out(second.bias))


class Also(Method):
    """Occupancy and intensity of queries, predicted by the supports near them.

    Supports are the points of the scan, with the features of their tokens; for a backbone whose
    tokens are cells of a bird's-eye view they are those cells.

    Args:
        backbone: the student.
        latent: width of the latents.
        sampling: see there.
        search: which supports answer for a query; default: the ball of the paper, or a column
            around a query for a backbone of a bird's-eye view.
        occupancy_weight, intensity_weight: of the two losses; 0 leaves one out.
        intensity_scale: brings intensities to [0, 1], e.g. 1/255 for nuScenes.
    """

    needs = Field.NONE
    title = "ALSO"

    def __init__(
        self,
        backbone: Backbone,
        latent: int = 128,
        sampling: ScanSampling | None = None,
        search: SupportSearch | None = None,
        occupancy_weight: float = 1.0,
        intensity_weight: float = 1.0,
        intensity_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if min(occupancy_weight, intensity_weight) < 0 or occupancy_weight + intensity_weight == 0:
            raise ConfigError(
                f"loss weights {occupancy_weight} and {intensity_weight}",
                field="method.occupancy_weight, method.intensity_weight",
                remedy="give positive weights, or 0 for one of them",
            )
        self.backbone = backbone
        self.latent_head = nn.Linear(backbone.out_channels, latent)
        self.decoder = OccupancyDecoder(latent, 2 if intensity_weight else 1)
        self.sampling = sampling or ScanSampling()
        shape: Literal["ball", "column"] = "column" if backbone.columns else "ball"
        self.search = search or SupportSearch(shape)
        self.weights = (occupancy_weight, intensity_weight)
        self.intensity_scale = intensity_scale
        if self.sampling.drop_unlabeled:
            self.needs = Field.SEMANTIC

    @property
    def student(self) -> Backbone:
        return self.backbone

    def transforms(self, training: bool) -> Sequence[Transform]:
        steps = self.sampling.transforms(training)
        return steps if self.backbone.columns else [*steps, FindSupports(self.search)]

    def latents(self, batch: Batch) -> PointFeatures:
        """Latents of every token, (T, latent)."""
        tokens = self.backbone(batch.points)
        return replace(tokens, features=self.latent_head(tokens.features))

    def predict(
        self, tokens: PointFeatures, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predictions of every pair of a query and a support.

        Args:
            tokens: of ``latents``.
            batch: with queries.
            generator: of the choice of supports when it is random and not made yet.

        Returns:
            (P, 1 or 2) occupancy logit and intensity; (P,) int64 query of each pair.
        """
        queries = batch.queries
        assert queries is not None
        if self.backbone.columns:
            query, token = self._search_tokens(tokens, queries, generator)
            places = tokens.positions[token]
        else:
            assert queries.query is not None
            assert queries.point is not None
            query, token = queries.query, tokens.token_of_point[queries.point]
            places = batch.points.points[queries.point]
        output: Tensor = self.decoder(tokens.features, token, queries.positions[query] - places)
        return output, query

    def _search_tokens(
        self, tokens: PointFeatures, queries: Queries, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        order = None
        if self.search.limit is not None and self.search.choice == "random":
            order = torch.randperm(len(tokens.positions), generator=generator)
            order = order.to(tokens.positions.device)
        return self.search.pairs(queries, tokens.positions, tokens.batch, order)

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        assert batch.queries is not None
        output, query = self.predict(self.latents(batch), batch, generator)
        occupancy = batch.queries.occupancy[query]
        sums = [*occupancy_sum(output[:, 0], occupancy)]
        if self.weights[1]:
            intensity = batch.queries.intensity[query]
            scaled = torch.where(intensity < 0, intensity, intensity * self.intensity_scale)
            sums += intensity_sum(output[:, 1], scaled)
        totals = all_reduce_sum(torch.stack(sums))
        means = [loss / count.detach().clamp(min=1) for loss, count in totals.view(-1, 2)]
        terms = dict(zip(("occupancy", "intensity"), means, strict=False))
        loss = sum(weight * mean for weight, mean in zip(self.weights, means, strict=False))
        confusion = occupancy_confusion(output[:, 0].detach(), occupancy)
        accuracy = confusion.diagonal().sum() / confusion.sum().clamp(min=1)
        return StepOutput(
            loss,
            {name: value.detach() for name, value in terms.items()}
            | {"accuracy": accuracy.float(), "iou": occupancy_iou(confusion).mean().float()},
        )

    @torch.no_grad()
    def occupancy_at(self, points: PointBatch, positions: Tensor, frame: Tensor) -> Tensor:
        """How likely each of many places is behind a surface, as the supports near it say.

        In eval mode, whatever the mode of the method. Of more supports than ``search.limit`` the
        nearest answer, so that no draw decides.

        Args:
            points: scans, thinned as ``transforms`` does.
            positions: (Q, 3) m.
            frame: (Q,) int64 frame of each.

        Returns:
            (Q,) float32 mean probability; NaN where no support is near.
        """
        training = self.training
        self.eval()
        tokens = self.backbone(points)
        latents = self.latent_head(tokens.features)
        if self.backbone.columns:
            supports, batch = tokens.positions, tokens.batch
            token = torch.arange(len(latents), device=latents.device)
        else:
            supports, batch, token = points.points, points.batch, tokens.token_of_point
        search, found = replace(self.search, choice="nearest"), []
        for place, of in zip(positions.split(_PLACES), frame.split(_PLACES), strict=True):
            queries = Queries(place, torch.zeros_like(of), torch.zeros_like(place[:, 0]), of)
            query, support = search.pairs(queries, supports, batch)
            total = torch.zeros(len(place), device=place.device)
            for near, to in zip(support.split(_PAIRS), query.split(_PAIRS), strict=True):
                logits = self.decoder(latents, token[near], place[to] - supports[near])[:, 0]
                total.index_add_(0, to, logits.float().sigmoid())
            found.append(total / torch.bincount(query, minlength=len(place)))
        self.train(training)
        return torch.cat(found)
