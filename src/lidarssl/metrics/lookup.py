"""The baseline without a network: the class of a point by height, range and intensity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lidarssl.errors import DataError

# More points than this say nothing more about where the edges of bins should be.
_POINTS_FOR_EDGES = 1_000_000


@dataclass(frozen=True)
class LookupBins:
    """Edges between the bins of each quantity; no edge means that it is not looked at.

    Attributes:
        height: m, z of the points as given (subtract the ground first where it is known).
        range: m, horizontal distance.
        intensity: in the units of the points.
    """

    height: tuple[float, ...]
    range: tuple[float, ...] = ()
    intensity: tuple[float, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.height) + 1, len(self.range) + 1, len(self.intensity) + 1

    @classmethod
    def from_points(
        cls,
        points: Tensor,
        intensity: Tensor,
        height_step: float = 0.1,
        range_step: float = 5.0,
        intensity_bins: int = 16,
    ) -> LookupBins:
        """Even bins of height and range over what the points span, even shares of intensity.

        Args:
            points: (N, 3) m, sensor above the origin.
            intensity: (N,) in any unit.
            height_step: m.
            range_step: m; 0 = do not look at the range.
            intensity_bins: equally filled; 1 = do not look at the intensity.

        Raises:
            DataError: there is no point.
        """
        if len(points) == 0:
            raise DataError("no points to look up", remedy="give labelled frames")
        every = len(points) // _POINTS_FOR_EDGES + 1
        points, intensity = points[::every].double(), intensity[::every].double()
        distance = points[:, :2].norm(dim=1)
        shares = torch.arange(1, intensity_bins, dtype=torch.float64, device=points.device)
        quantiles = intensity.quantile(shares / intensity_bins) if intensity_bins > 1 else shares
        return cls(
            _even_edges(points[:, 2], height_step),
            _even_edges(distance, range_step) if range_step else (),
            tuple(quantiles.unique().tolist()),
        )


@dataclass(frozen=True)
class LookupTable:
    """Class of every cell.

    Attributes:
        bins: of the cells.
        classes: (H, R, I) int64.
    """

    bins: LookupBins
    classes: Tensor


def fit_lookup(
    points: Tensor,
    intensity: Tensor,
    labels: Tensor,
    num_classes: int,
    bins: LookupBins | None = None,
    balance: float = 0.5,
) -> LookupTable:
    """Most likely class of every cell; an empty cell asks without intensity, then without range.

    Args:
        points: (N, 3) m, sensor above the origin.
        intensity: (N,).
        labels: (N,) int64 in [0, num_classes), 0 = ignored.
        bins: made from the points when None.
        balance: see :func:`table_from_counts`.

    Raises:
        DataError: no point has a label.
    """
    bins = bins or LookupBins.from_points(points, intensity)
    counts = count_cells(points, intensity, labels, num_classes, bins)
    return table_from_counts(counts, bins, balance)


def count_cells(
    points: Tensor, intensity: Tensor, labels: Tensor, num_classes: int, bins: LookupBins
) -> Tensor:
    """Points of each class in each cell, (H, R, I, num_classes) int64; sums over frames."""
    cell = _cells(points, intensity, bins)
    number = torch.Size(bins.shape).numel()
    counts = torch.bincount(cell * num_classes + labels, minlength=number * num_classes)
    return counts.view(*bins.shape, num_classes)


def table_from_counts(counts: Tensor, bins: LookupBins, balance: float = 0.5) -> LookupTable:
    """The class that wins in each cell.

    Args:
        counts: (H, R, I, C), see :func:`count_cells`; class 0 is ignored.
        balance: each class is weighted by its frequency to the power -balance: 0 = the most
            frequent class of the cell (best accuracy), 1 = the class most typical of it. 0.5
            gives the best mIoU (SemanticKITTI: 15.2, against 14.6 at 0 and 10.3 at 1).

    Raises:
        DataError: no point has a label.
    """
    counts = counts.double()
    counts[..., 0] = 0
    total = counts.sum((0, 1, 2))
    if not bool(total.any()):
        raise DataError("no labelled point to fit a look-up on", field="semantic")
    counts = counts * total.clamp_min(1).pow(-balance)
    classes = counts.sum((0, 1, 2)).argmax().expand(bins.shape)
    for unseen in ((1, 2), (2,), ()):
        votes = counts.sum(unseen, keepdim=True) if unseen else counts
        classes = torch.where(votes.sum(-1) > 0, votes.argmax(-1), classes)
    return LookupTable(bins, classes)


def predict(table: LookupTable, points: Tensor, intensity: Tensor) -> Tensor:
    """Class of each point, (N,) int64, never 0.

    Args:
        points: (N, 3) m; intensity: (N,); as the table was fitted.
    """
    return table.classes.flatten()[_cells(points, intensity, table.bins)]


def _cells(points: Tensor, intensity: Tensor, bins: LookupBins) -> Tensor:
    """Row of each point in the flattened table, (N,) int64."""
    columns = (
        (points[:, 2], bins.height),
        (points[:, :2].double().norm(dim=1), bins.range),
        (intensity, bins.intensity),
    )
    cell = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    for (values, edges), number in zip(columns, bins.shape, strict=True):
        boundaries = torch.tensor(edges, dtype=torch.float64, device=points.device)
        cell = cell * number + torch.bucketize(values.double(), boundaries, right=True)
    return cell


def _even_edges(values: Tensor, step: float) -> tuple[float, ...]:
    """Multiples of ``step`` over all but the outermost 0.1 % of the values."""
    tails = torch.tensor([0.001, 0.999], dtype=torch.float64, device=values.device)
    low, high = (values.quantile(tails) / step).round().tolist()
    return tuple(index * step for index in range(int(low), int(high) + 1))
