"""Features on the occupied sites of a 3-D grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lidarssl.errors import DataError
from lidarssl.sparse.kernel import Triple, triple
from lidarssl.sparse.maps import KernelMaps


@dataclass(frozen=True)
class SparseTensor:
    """One row of features per site; all tensors of a network share one cache of kernel maps.

    Attributes:
        features: (N, C).
        maps: the cache.
        level: which of its levels the rows are on.
    """

    features: Tensor
    maps: KernelMaps
    level: int = 0

    @classmethod
    def of(
        cls,
        coordinates: Tensor,
        features: Tensor,
        stride: int | Sequence[int] = 1,
        shape: Sequence[int] | None = None,
    ) -> SparseTensor:
        """A tensor with a new cache.

        Args:
            coordinates: (N, 4) int64 [batch, x, y, z], unique multiples of ``stride``;
                negative values are fine.
            features: (N, C).
            stride: of the grid.
            shape: cells of a grid with borders along x, y, z; its sites are in
                0 .. shape * stride - 1. None = no borders.

        Raises:
            DataError: the rows do not match, two sites are equal, or one is outside the grid.
        """
        if coordinates.shape[0] != features.shape[0]:
            raise DataError(
                f"{coordinates.shape[0]} sites but {features.shape[0]} rows of features",
                field="features",
            )
        bounds = None if shape is None else triple(shape, "shape")
        return cls(features, KernelMaps.of(coordinates, triple(stride, "stride"), bounds))

    @property
    def coordinates(self) -> Tensor:
        """(N, 4) int64 [batch, x, y, z], multiples of ``stride``."""
        return self.maps.levels[self.level].coordinates

    @property
    def stride(self) -> Triple:
        return self.maps.levels[self.level].stride

    @property
    def shape(self) -> Triple | None:
        """Cells of a grid with borders along x, y, z, at this level."""
        return self.maps.levels[self.level].shape

    def with_features(self, features: Tensor) -> SparseTensor:
        """Other features on the same sites."""
        return replace(self, features=features)
