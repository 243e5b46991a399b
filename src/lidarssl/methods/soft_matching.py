"""What NCLR is made of: points and pixels look at each other, overlap, match, and give a pose.

Source: Zhang et al., "Self-supervised Learning of LiDAR 3D Point Clouds via 2D-3D Neural
Calibration", arXiv 2401.12452, and its code. Cells of a map are in row-major order; a cell is
(x, y) = (column, row), integer at its centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl.frame import Matches, PointFeatures
from lidarssl.sparse.norms import RowNorm

Winner = Literal["first", "last"]

_CHUNK = 1024
"""Points that are compared with all cells of a map at once."""


class Draws(Protocol):
    """Where the random numbers of a step come from; ``image`` counts the images of a process."""

    def tokens(self, image: int, count: int, number: int) -> Tensor:
        """Rows of 0 .. count - 1 that an image is compared with, int64, at most ``number``."""

    def pairs(self, count: int, number: int) -> Tensor:
        """Rows of 0 .. count - 1, pairs of all processes, that a contrast takes, int64."""

    def keypoints(self, image: int, count: int, number: int) -> Tensor:
        """``number`` <= count different rows of 0 .. count - 1, int64."""

    def repeats(self, image: int, count: int, number: int) -> Tensor:
        """``number`` rows of 0 .. count - 1, int64, some of them more than once; count > 0."""


class StepDraws:
    """Draws of a step: those of an image depend on its place in the global batch alone.

    Args:
        generator: CPU generator, the same on every process.
        first_image: images of the processes before this one.
        replacement: draw tokens with replacement.
    """

    def __init__(
        self, generator: torch.Generator, first_image: int = 0, replacement: bool = False
    ) -> None:
        self.generator, self.first_image, self.replacement = generator, first_image, replacement
        self.base = int(torch.randint(2**62, (1,), generator=generator))

    def tokens(self, image: int, count: int, number: int) -> Tensor:
        own = self._own(image, 0)
        if self.replacement:
            return torch.randint(max(count, 1), (number if count else 0,), generator=own)
        return torch.randperm(count, generator=own)[:number]

    def pairs(self, count: int, number: int) -> Tensor:
        return torch.randperm(count, generator=self.generator)[:number]

    def keypoints(self, image: int, count: int, number: int) -> Tensor:
        return torch.randperm(count, generator=self._own(image, 1))[:number]

    def repeats(self, image: int, count: int, number: int) -> Tensor:
        return torch.randint(count, (number,), generator=self._own(image, 2))

    def _own(self, image: int, use: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.base + 3 * (self.first_image + image) + use)


@dataclass
class Encoded:
    """What the two encoders make of a batch.

    Attributes:
        features: (T, C) of the tokens.
        positions: (T, 3) m, lidar frame.
        tokens: for every frame the tokens that own a point, int64.
        maps: (I, C, h, w) of the images.
        frame_of_image: for every image its frame.
        pairs: matches of tokens (in ``point``) and cells.
        intrinsics: (I, 3, 3) of the maps.
        camera_from_lidar: (I, 4, 4).
    """

    features: Tensor
    positions: Tensor
    tokens: list[Tensor]
    maps: Tensor
    frame_of_image: list[int]
    pairs: Matches
    intrinsics: Tensor
    camera_from_lidar: Tensor

    def image_overlap(self) -> Tensor:
        """(I, h, w) bool, cells that a point falls into."""
        images, _, height, width = self.maps.shape
        mask = torch.zeros(images, height, width, dtype=torch.bool, device=self.maps.device)
        mask[self.pairs.image, self.pairs.row, self.pairs.col] = True
        return mask


@dataclass
class Fused:
    """Tokens and cells of some images after they have seen each other.

    Attributes:
        images: (J,) int64, those images, ascending.
        token, image: (S,) int64 drawn tokens, image after image.
        points: (S, C).
        cells: (J, h * w, C).
    """

    images: Tensor
    token: Tensor
    image: Tensor
    points: Tensor
    cells: Tensor

    def rows(self) -> list[Tensor]:
        """For each of the images its rows of ``points``, int64."""
        return [(self.image == image).nonzero()[:, 0] for image in self.images]


@dataclass
class Keypoints:
    """Points of each image from which its pose is computed, and where they are seen.

    Attributes:
        row: (J, K) int64 of ``Fused.points``.
        position: (J, K, 3) m, lidar frame.
        cell: (J, K, 2) expected (x, y).
        enough: (J,) bool, whether the overlap of enough points is high.
    """

    row: Tensor
    position: Tensor
    cell: Tensor
    enough: Tensor


@dataclass
class ImageMatches:
    """What a trained NCLR says of one image and the scan of its frame.

    Attributes:
        frame: of the batch.
        positions: (N, 3) m, lidar frame of the batch.
        overlap: (N,) probability that the camera sees the point.
        pixel: (N, 2) expected (x, y) on the map, 0 at the centre of its first cell.
        certainty: (N,) weight of the likeliest cell.
        fit: (R, h, w) how well the first points fit into every cell, see ``planar_search.fits``.
        image_overlap: (h, w) probability that a point falls into a cell.
        intrinsics: (3, 3) of the map.
    """

    frame: int
    positions: Tensor
    overlap: Tensor
    pixel: Tensor
    certainty: Tensor
    fit: Tensor
    image_overlap: Tensor
    intrinsics: Tensor


class CrossAttention(nn.Module):
    """Attention with one head: rows of one kind look at rows of the other.

    Args:
        channels: of both.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)

    def forward(self, rows: Tensor, others: Tensor) -> Tensor:
        """What (N, C) rows take from (M, C) others, (N, C); M > 0."""
        query, key, value = self.query(rows), self.key(others), self.value(others)
        looked = F.scaled_dot_product_attention(
            query[None, None], key[None, None], value[None, None]
        )
        return looked[0, 0]


class Fusion(nn.Module):
    """Points look at the cells of an image, and cells at the points.

    Args:
        channels: of both.
        shared: one module looks in both directions.
    """

    def __init__(self, channels: int, shared: bool = False) -> None:
        super().__init__()
        self.point_projection = nn.Linear(channels, channels, bias=False)
        self.cell_projection = nn.Linear(channels, channels, bias=False)
        # At cells, then at points.
        self.looks = nn.ModuleList(CrossAttention(channels) for _ in range(1 if shared else 2))

    def forward(self, points: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C) points and (M, C) cells, M > 0, after both have looked."""
        points, cells = self.point_projection(points), self.cell_projection(cells)
        seen = points + self.looks[0](points, cells)
        return seen, cells + self.looks[-1](cells, points) if len(points) else cells


class OverlapHead(nn.Sequential):
    """How likely a point or a cell is seen by the other sensor: (N, C) rows -> (N,) logits."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Linear(channels, channels, bias=False), RowNorm(channels), nn.ReLU(),
            nn.Linear(channels, channels, bias=False), RowNorm(channels), nn.ReLU(),
            nn.Linear(channels, 1, bias=False),
        )  # fmt: skip

    def forward(self, rows: Tensor) -> Tensor:
        logits: Tensor = super().forward(rows)
        return logits[:, 0]


def pair_of(token: Tensor, image: Tensor, pairs: Matches, winner: Winner = "first") -> Tensor:
    """Which pair says where a token is in an image.

    Args:
        token, image: (S,) int64.
        pairs: of tokens (in ``point``) and cells.
        winner: which of several pairs of a token and an image, in their order.

    Returns:
        (S,) int64 row of ``pairs``, -1 where there is none.
    """
    if not len(pairs) or not len(token):
        return torch.full_like(token, -1)
    width = 1 + torch.maximum(pairs.point.max(), token.max())
    known, order = torch.sort(pairs.image * width + pairs.point, stable=True)
    asked = image * width + token
    place = torch.searchsorted(known, asked, right=winner == "last")
    place = (place - int(winner == "last")).clamp(0, len(known) - 1)
    return torch.where(known[place] == asked, order[place], -1)


def soft_cells(
    points: Tensor, cells: Tensor, width: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Expected cell of each point under a softmax of its similarity to all cells.

    Args:
        points: (N, C) unit features.
        cells: (h * width, C) unit features.
        width: of the map.
        temperature: > 0.

    Returns:
        (N, 2) expected (x, y), and (N,) weight of the likeliest cell.
    """
    index = torch.arange(len(cells), device=cells.device)
    place = torch.stack([index % width, index // width], 1).to(points.dtype)
    found, certainty = [points.new_zeros(0, 2)], [points.new_zeros(0)]
    for some in points.split(_CHUNK):
        weight = torch.softmax(some @ cells.T / temperature, dim=1)
        found.append(weight @ place)
        certainty.append(weight.amax(1))
    return torch.cat(found), torch.cat(certainty)


def choose_keypoints(
    scores: Tensor, number: int, thresholds: Sequence[float], enough: int, image: int, draws: Draws
) -> tuple[Tensor, bool]:
    """Points of high overlap, ``number`` of them, some more than once where they are too few.

    Args:
        scores: (N,) overlap of each point, N > 0.
        number: to choose.
        thresholds: of the score, tried in order until ``enough`` points lie above one.
        enough: at least 2.
        image, draws: see ``Draws``.

    Returns:
        (number,) int64 rows, and whether enough points lay above a threshold; else the rows are
        those of the highest scores.
    """
    for threshold in thresholds:
        above = (scores > threshold).nonzero()[:, 0]
        if len(above) > number:
            return above[draws.keypoints(image, len(above), number).to(above.device)], True
        if len(above) >= enough:
            return _filled(above, number, image, draws), True
    best = scores.topk(min(enough - 1, number, len(scores))).indices
    return _filled(best, number, image, draws), False


def _filled(rows: Tensor, number: int, image: int, draws: Draws) -> Tensor:
    again = draws.repeats(image, len(rows), number - len(rows)).to(rows.device)
    return torch.cat([rows, rows[again]])


def first_points(tokens: PointFeatures) -> Tensor:
    """(T,) int64 first point of each token; the number of points for one that owns none."""
    count = len(tokens.token_of_point)
    points = torch.arange(count, device=tokens.token_of_point.device)
    first = points.new_full((len(tokens.features),), count)
    return first.scatter_reduce(0, tokens.token_of_point, points, "amin")


def rays(cells: Tensor, intrinsics: Tensor) -> Tensor:
    """(J, K, 2) coordinates at depth 1 of (J, K, 2) cells of maps with (J, 3, 3) intrinsics."""
    homogeneous = F.pad(cells, (0, 1), value=1.0)
    inverse = torch.linalg.inv(intrinsics.to(cells.dtype))
    return (homogeneous @ inverse.mT)[..., :2]


def matching_distance(scene: Encoded, keypoints: Keypoints, pair: Tensor) -> dict[str, Tensor]:
    """Median distance in cells of the keypoints that are in their image from where they are."""
    truth = pair[keypoints.row]
    known = truth >= 0
    if not bool(known.any()):
        return {}
    pairs = scene.pairs[truth[known]]
    place = torch.stack([pairs.col, pairs.row], 1).to(keypoints.cell.dtype)
    return {"matching": (keypoints.cell[known].detach() - place).norm(dim=1).median()}
