"""Weight layouts of sparse kernels in other libraries.

The common form is ``W[x, y, z, c_in, c_out]``, a cross-correlation as in dense layers: cell
(x, y, z) of an odd kernel reads the site at that offset from the kernel's centre, cell (x, y, z)
of a 2x2x2 kernel of stride 2 the site 2q + (x, y, z).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lidarssl.sparse.kernel import Convention, row_major, triple, volume


def cells_from_kernel(
    kernel: Tensor, kernel_size: int | Sequence[int], convention: Convention | str
) -> Tensor:
    """A library's kernel in the common form.

    Args:
        kernel: (K, C_in, C_out), or (C_in, C_out) when the kernel has one cell.
        kernel_size: one or three sizes along x, y, z.
        convention: the library.

    Returns:
        (k_x, k_y, k_z, C_in, C_out).
    """
    size = triple(kernel_size, "kernel_size")
    weights = kernel.reshape(volume(size), *kernel.shape[-2:])
    cells = torch.empty_like(weights)
    cells[row_major(size, Convention(convention))] = weights
    return cells.view(*size, *weights.shape[1:])


def kernel_from_cells(cells: Tensor, convention: Convention | str, flat: bool = False) -> Tensor:
    """The common form as a library's kernel, inverse of ``cells_from_kernel``.

    Args:
        cells: (k_x, k_y, k_z, C_in, C_out).
        convention: the library.
        flat: drop the axis of a one-cell kernel, as the libraries do at stride 1.

    Returns:
        (K, C_in, C_out), or (C_in, C_out) when ``flat`` and K = 1.
    """
    size = triple(tuple(cells.shape[:3]), "kernel_size")
    weights = cells.flatten(0, 2)[row_major(size, Convention(convention))]
    return weights[0] if flat and volume(size) == 1 else weights


def convert_kernel(
    kernel: Tensor,
    kernel_size: int | Sequence[int],
    source: Convention | str,
    target: Convention | str,
) -> Tensor:
    """A kernel of one library in the layout of another; the shape stays."""
    cells = cells_from_kernel(kernel, kernel_size, source)
    return kernel_from_cells(cells, target, flat=kernel.dim() == 2)


def dense_from_cells(cells: Tensor) -> Tensor:
    """The common form as a ``conv3d`` weight (C_out, C_in, k_x, k_y, k_z) for (b, c, x, y, z)."""
    return cells.permute(4, 3, 0, 1, 2)


def cells_from_dense(weight: Tensor) -> Tensor:
    """A ``conv3d`` weight (C_out, C_in, k_x, k_y, k_z) in the common form."""
    return weight.permute(2, 3, 4, 1, 0)
