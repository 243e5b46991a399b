"""Places whose occupancy the rays of a scan tell, and the points near them.

Source: Boulch et al., "ALSO: Automotive Lidar Self-supervision by Occupancy estimation",
CVPR 2023, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Frame, Queries
from lidarssl.geometry.balls import ball_pairs
from lidarssl.geometry.neighbours import nearest
from lidarssl.wording import counted

NO_INTENSITY = -1.0
Choice = Literal["random", "nearest", "first"]


@dataclass(frozen=True)
class QueryDraws:
    """What is random about the queries of a scan.

    Attributes:
        behind, front, far: (B,), (F,), (L,) int64 points whose rays make the queries.
        share_behind, share_front, share_far: the same lengths, in [0, 1), place along the ray.
    """

    behind: Tensor
    front: Tensor
    far: Tensor
    share_behind: Tensor
    share_front: Tensor
    share_far: Tensor


def draw_queries(points: int, count: int, rng: np.random.Generator) -> QueryDraws:
    """A third of the queries in each group; a scan with fewer points makes fewer.

    Args:
        points: of the scan.
        count: queries wanted; what does not divide by three goes behind the surfaces.
        rng: each group draws its own points, without replacement.
    """
    third = count // 3
    wanted = (count - 2 * third, third, third)
    chosen = [
        torch.from_numpy(rng.choice(points, min(number, points), replace=False))
        for number in wanted
    ]
    shares = [torch.from_numpy(rng.random(len(rows), dtype=np.float32)) for rows in chosen]
    return QueryDraws(*chosen, *shares)


def occupancy_queries(
    points: Tensor, intensity: Tensor, draws: QueryDraws, depth: float
) -> Queries:
    """Queries on the rays of a scan: behind surfaces, in front of them, along the whole ray.

    Args:
        points: (N, 3) m, the sensor at the origin.
        intensity: (N,).
        draws: which rays and where on them.
        depth: m, how far behind and in front of a surface queries lie.

    Returns:
        Behind (occupied), in front (free), along the ray (free, without intensity), in this
        order.
    """
    hit_behind, hit_front = points[draws.behind], points[draws.front]
    behind = hit_behind + draws.share_behind[:, None] * _along_rays(hit_behind, depth)
    front = hit_front - draws.share_front[:, None] * _along_rays(hit_front, depth)
    far = points[draws.far] * draws.share_far[:, None]
    occupancy = torch.zeros(len(behind) + len(front) + len(far), dtype=torch.int64)
    occupancy[: len(behind)] = 1
    return Queries(
        positions=torch.cat([behind, front, far]),
        occupancy=occupancy,
        intensity=torch.cat(
            [
                intensity[draws.behind],
                intensity[draws.front],
                torch.full_like(draws.share_far, NO_INTENSITY),
            ]
        ),
        batch=torch.zeros_like(occupancy),
    )


def _along_rays(points: Tensor, depth: float) -> Tensor:
    """Steps of ``depth`` m away from the sensor."""
    return F.normalize(points, dim=1, eps=1e-12) * depth


class MakeQueries:
    """Add queries to a frame.

    Args:
        count: of a frame.
        depth: m, see ``occupancy_queries``.

    Raises:
        DataError: the frame has no points.
    """

    def __init__(self, count: int = 2048, depth: float = 0.1) -> None:
        if count < 3:
            told = counted(count, "query", "queries")
            raise ConfigError(told, field="count", remedy="give 3 or more")
        if not 0 < depth < float("inf"):
            raise ConfigError(f"queries {depth} m behind surfaces", field="depth")
        self.count, self.depth = count, depth

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        if not len(frame):
            raise DataError(
                f"no point of frame {frame.id} is left to make queries from",
                field="sampling",
                remedy="widen sampling.min_range, max_range and max_height",
            )
        draws = draw_queries(len(frame), self.count, rng)
        queries = occupancy_queries(frame.points, frame.intensity, draws, self.depth)
        return replace(frame, queries=queries)


@dataclass(frozen=True)
class SupportSearch:
    """Which supports (points, or cells of a bird's-eye view) answer for a query.

    Args:
        shape: ``ball``: all within ``radius``; ``column``: the same seen from above;
            ``nearest``: the ``limit`` nearest, however far.
        radius: m, of ball and column; a support exactly that far away is outside.
        limit: supports of a query; None = all of a ball or column.
        choice: which of more than ``limit``: ``random`` (one random order of the supports for
            all queries of a frame), the ``nearest``, or the ``first`` in row order. The published
            code takes the first of supports that it has shuffled: ``random`` here.

    Raises:
        ConfigError: values that do not fit.
    """

    shape: Literal["ball", "column", "nearest"] = "ball"
    radius: float = 1.0
    limit: int | None = 32
    choice: Choice = "random"

    def __post_init__(self) -> None:
        if self.shape not in ("ball", "column", "nearest"):
            raise ConfigError(f"unknown shape '{self.shape}'", field="search.shape")
        if self.choice not in ("random", "nearest", "first"):
            raise ConfigError(f"unknown choice '{self.choice}'", field="search.choice")
        if self.shape == "nearest" and self.limit is None:
            raise ConfigError("how many nearest supports?", field="search.limit")
        if not 0 < self.radius < float("inf") or (self.limit is not None and self.limit < 1):
            raise ConfigError(
                f"radius {self.radius} m, limit {self.limit}",
                field="search",
                remedy="give positive values",
            )

    def pairs(
        self,
        queries: Queries,
        supports: Tensor,
        batch: Tensor | None,
        order: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Pairs of a query and a support.

        Args:
            queries: see there.
            supports: (S, 3) m.
            batch: (S,) int64 frame of each support; None = all of one frame.
            order: (S,) int64 permutation of the supports, for the choice ``random``.

        Returns:
            query and support, (P,) int64 each, sorted by (query, support).
        """
        width = 2 if self.shape == "column" else 3
        places, supports = queries.positions[:, :width], supports[:, :width]
        frame = None if batch is None else queries.batch
        limited = self.limit is not None and self.shape != "nearest"
        if self.shape == "nearest" or (limited and self.choice == "nearest"):
            assert self.limit is not None
            query, support, distance = nearest(places, supports, self.limit, frame, batch)
            if limited:
                near = distance < self.radius
                query, support = query[near], support[near]
            return _sorted_pairs(query, support)
        if limited and self.choice == "random" and order is not None:
            shuffled = None if batch is None else batch[order]
            query, row = ball_pairs(
                places, supports.index_select(0, order), self.radius, self.limit, frame, shuffled
            )
            return _sorted_pairs(query, order.index_select(0, row))
        return ball_pairs(places, supports, self.radius, self.limit, frame, batch)


class FindSupports:
    """Pair the queries of a frame with its points, the last of the transforms.

    Args:
        search: see there.
    """

    def __init__(self, search: SupportSearch) -> None:
        self.search = search

    def __call__(self, frame: Frame, rng: np.random.Generator) -> Frame:
        assert frame.queries is not None
        order = torch.from_numpy(rng.permutation(len(frame)))
        query, point = self.search.pairs(frame.queries, frame.points, None, order)
        return replace(frame, queries=replace(frame.queries, query=query, point=point))


def _sorted_pairs(query: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    if len(support):
        rows = int(support.max()) + 1
        keys = (query * rows + support).sort().values
        query, support = keys // rows, keys % rows
    return query, support
