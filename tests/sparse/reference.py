"""Independent reference: dense convolution on the bounding box of the sites, in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.sparse.kernel import Convention, Triple, axis_offsets
from lidarssl.sparse.layers import SparseConv3d
from lidarssl.sparse.layouts import cells_from_kernel, dense_from_cells
from lidarssl.sparse.tensor import SparseTensor

CONVENTIONS = ("minkowski", "torchsparse")


def random_sites(generator: torch.Generator, count: int, extent: int, batch: int = 2) -> Tensor:
    """Unique (N, 4) sites in random order, coordinates in [-extent, extent]."""
    xyz = torch.randint(-extent, extent + 1, (count, 3), generator=generator)
    frame = torch.randint(0, batch, (count, 1), generator=generator)
    sites = torch.unique(torch.cat([frame, xyz], 1), dim=0)
    return sites[torch.randperm(sites.shape[0], generator=generator)]


def random_input(seed: int, channels: int, count: int = 60, extent: int = 4) -> SparseTensor:
    """Float64 features that want a gradient, on random sites."""
    generator = torch.Generator().manual_seed(seed)
    sites = random_sites(generator, count, extent)
    features = torch.randn(sites.shape[0], channels, generator=generator, dtype=torch.float64)
    return SparseTensor.of(sites, features.requires_grad_())


def densify(sites: Tensor, features: Tensor, low: Tensor, size: list[int]) -> Tensor:
    """(B, C, X, Y, Z) volume, zero where no site is."""
    batch = int(sites[:, 0].max()) + 1
    volume = features.new_zeros(batch, *size, features.shape[1])
    where = sites[:, 1:] - low
    volume = volume.index_put((sites[:, 0], *where.unbind(1)), features)
    return volume.permute(0, 4, 1, 2, 3)


def dense_convolution(
    layer: SparseConv3d, sites: Tensor, features: Tensor, output_sites: Tensor
) -> Tensor:
    """What ``layer`` (not transposed, input stride 1) must give at ``output_sites``."""
    offsets = offset_ranges(layer.kernel_size, layer.convention)
    reach = [
        max(abs(offset) for offset in axis) * step
        for axis, step in zip(offsets, layer.dilation, strict=True)
    ]
    margin = torch.tensor(reach) + torch.tensor(layer.stride)
    both = torch.cat([sites, output_sites])[:, 1:]
    low, high = both.min(0).values - margin, both.max(0).values + margin
    volume = densify(sites, features, low, (high - low + 1).tolist())
    cells = cells_from_kernel(layer.kernel, layer.kernel_size, layer.convention)
    # Output index 0 of an unpadded dense convolution has its first cell at input index 0.
    dense = F.conv3d(volume, dense_from_cells(cells), dilation=layer.dilation)
    first = torch.tensor(
        [axis[0] * step for axis, step in zip(offsets, layer.dilation, strict=True)]
    )
    where = output_sites[:, 1:] - low + first
    return dense.permute(0, 2, 3, 4, 1)[(output_sites[:, 0], *where.unbind(1))]


def offset_ranges(size: Triple, convention: Convention) -> list[range]:
    return [axis_offsets(length, convention) for length in size]
