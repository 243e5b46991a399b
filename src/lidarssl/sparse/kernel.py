"""Kernel sizes, offsets and the order of a kernel's weights in the three reference libraries."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence

Triple = tuple[int, int, int]


class Convention(enum.StrEnum):
    """Whose rules decide output sites, offsets of even kernels and the order of weights.

    ``minkowski``: MinkowskiEngine 0.5. A strided convolution keeps the sites
    floor(c / s) * s; even kernels reach 0 .. n-1; x runs fastest over the weights.

    ``torchsparse``: torchsparse 1.4. Where stride is neither 1 nor the kernel size, every
    site of the coarse grid that a kernel touches is kept if it is not below the smallest
    input coordinate of its axis; even kernels reach -n/2+1 .. n/2; z runs fastest over the
    weights of a kernel of even volume. That library ignores ``dilation``; here it counts.

    ``spconv``: spconv 2. The grid has borders and the kernel a padding, as in dense layers: a
    strided convolution keeps every site of the coarse grid that reads an occupied one; kernels
    reach 0 .. n-1 from the padded border; x runs fastest over the weights.
    """

    MINKOWSKI = "minkowski"
    TORCHSPARSE = "torchsparse"
    SPCONV = "spconv"


def triple(value: int | Sequence[int], name: str, least: int = 1) -> Triple:
    """An int or three of them as three.

    Raises:
        ValueError: not one or three integers of at least ``least``.
    """
    values = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(values) != 3 or any(not isinstance(item, int) or item < least for item in values):
        kind = "positive integer" if least == 1 else f"integer of at least {least}"
        raise ValueError(f"{name} must be a {kind} or three of them, not {value!r}")
    return values


def volume(size: Triple) -> int:
    return size[0] * size[1] * size[2]


def axis_offsets(size: int, convention: Convention) -> range:
    """Offsets of a kernel along one axis; of ``spconv`` before the padding is subtracted."""
    if convention is Convention.SPCONV:
        return range(size)
    if size % 2 == 1:
        return range(-(size // 2), size // 2 + 1)
    if convention is Convention.TORCHSPARSE:
        return range(-(size // 2) + 1, size // 2 + 1)
    return range(size)


def row_major(size: Triple, convention: Convention) -> list[int]:
    """Row-major index (z fastest) of the kernel cell that each weight belongs to."""
    cells = range(volume(size))
    if convention is Convention.TORCHSPARSE and volume(size) % 2 == 0:
        return list(cells)
    x_fastest = itertools.product(range(size[2]), range(size[1]), range(size[0]))
    return [(x * size[1] + y) * size[2] + z for z, y, x in x_fastest]


def strided_shape(
    shape: Triple | None, kernel_size: Triple, stride: Triple, dilation: Triple, padding: Triple
) -> Triple:
    """Cells along x, y, z of the grid that a strided convolution writes, as in dense layers.

    Raises:
        ValueError: no borders to start from, or a grid smaller than the kernel.
    """
    if shape is None:
        raise ValueError("a grid without borders: give SparseTensor.of a shape")
    x, y, z = (
        (cells + 2 * pad - spread * (size - 1) - 1) // step + 1
        for cells, size, step, spread, pad in zip(
            shape, kernel_size, stride, dilation, padding, strict=True
        )
    )
    if min(x, y, z) < 1:
        raise ValueError(f"a grid of {shape} cells is smaller than a kernel of {kernel_size}")
    return (x, y, z)
