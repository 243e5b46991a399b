from __future__ import annotations

import pytest
import torch

from lidarssl.sparse.layouts import (
    cells_from_dense,
    cells_from_kernel,
    convert_kernel,
    dense_from_cells,
    kernel_from_cells,
)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 2, 2), (3, 3, 3), (2, 2, 3), (3, 1, 5)])
@pytest.mark.parametrize("library", ["minkowski", "torchsparse"])
def test_formulas_of_the_libraries(size, library):
    kx, ky, kz = size
    volume = kx * ky * kz
    kernel = torch.arange(volume * 6.0).view(volume, 2, 3)
    cells = cells_from_kernel(kernel, size, library)
    if library == "torchsparse" and volume % 2 == 0:
        expected = kernel.view(kx, ky, kz, 2, 3)
    else:
        expected = kernel.view(kz, ky, kx, 2, 3).permute(2, 1, 0, 3, 4)
    assert torch.equal(cells, expected)
    assert torch.equal(kernel_from_cells(cells, library), kernel)


def test_known_permutation_of_2x2x2_kernels():
    kernel = torch.randn(8, 2, 3)
    other = convert_kernel(kernel, 2, "minkowski", "torchsparse")
    assert torch.equal(other, kernel[[0, 4, 2, 6, 1, 5, 3, 7]])
    assert torch.equal(convert_kernel(other, 2, "torchsparse", "minkowski"), kernel)


def test_flat_kernels_stay_flat():
    kernel = torch.randn(2, 3)
    assert torch.equal(convert_kernel(kernel, 1, "minkowski", "torchsparse"), kernel)


def test_dense_layout():
    cells = torch.randn(2, 3, 4, 5, 6)
    dense = dense_from_cells(cells)
    assert dense.shape == (6, 5, 2, 3, 4)
    assert dense[5, 4, 1, 2, 3] == cells[1, 2, 3, 4, 5]
    assert torch.equal(cells_from_dense(dense), cells)
