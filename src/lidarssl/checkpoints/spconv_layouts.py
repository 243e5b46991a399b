"""Weight layouts of spconv: which one a file has, and one layout made from another.

| layout | shape | written by |
|---|---|---|
| ``KRSC`` | (C_out, k_z, k_y, k_x, C_in) | spconv 2.x, always from 2.2 on |
| ``RSKC`` | (k_z, k_y, k_x, C_out, C_in) | spconv 2.0 and 2.1 with their native algorithm |
| ``RSCK`` | (k_z, k_y, k_x, C_in, C_out) | spconv 1.x |

A kernel of one cell is the exception. Whatever shape it is stored in, every version multiplies
by its memory seen as (C_in, C_out) at stride 1: between layouts its shape changes and its memory
stays as it is. (Of the networks here, only heads have such a kernel.)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from torch import Tensor

from lidarssl.errors import ConfigError, DataError

LARGEST_KERNEL = 7
_AXES = 5


class SpconvLayout(StrEnum):
    """Order of the axes of a weight; R, S: kernel, K: output channels, C: input channels."""

    KRSC = "KRSC"
    RSKC = "RSKC"
    RSCK = "RSCK"

    @property
    def axes(self) -> tuple[int, ...]:
        """Where its axes are those of ``KRSC``: ``weight.permute(axes)`` is in ``KRSC``."""
        return {"KRSC": (0, 1, 2, 3, 4), "RSKC": (3, 0, 1, 2, 4), "RSCK": (4, 0, 1, 2, 3)}[self]


def to_krsc(weight: Tensor, layout: SpconvLayout) -> Tensor:
    """A weight in the layout of spconv 2.x.

    Args:
        weight: five axes in ``layout``.

    Returns:
        (C_out, k_z, k_y, k_x, C_in), contiguous.
    """
    moved = weight.permute(layout.axes)
    return weight.reshape(moved.shape) if _one_cell(moved.shape) else moved.contiguous()


def from_krsc(weight: Tensor, layout: SpconvLayout) -> Tensor:
    """Inverse of ``to_krsc``.

    Args:
        weight: (C_out, k_z, k_y, k_x, C_in).
    """
    back = sorted(range(_AXES), key=layout.axes.__getitem__)
    moved = weight.permute(back)
    return weight.reshape(moved.shape) if _one_cell(weight.shape) else moved.contiguous()


def convert_layout(
    state: Mapping[str, Tensor], source: SpconvLayout, target: SpconvLayout
) -> dict[str, Tensor]:
    """A whole state dict in another layout; only weights with five axes change."""
    return {
        name: from_krsc(to_krsc(value, source), target) if is_kernel(name, value.shape) else value
        for name, value in state.items()
    }


def recognise_layout(shapes: Mapping[str, Sequence[int]], path: Path | None = None) -> SpconvLayout:
    """The one layout that all sparse weights of a file can have.

    The axes of the kernel are the three small ones; the output channels must be those of the
    bias or the batch norm that follows. ``RSKC`` and ``RSCK`` differ only in layers that change
    the number of channels: one such layer decides for the whole file.

    Args:
        shapes: name -> shape of everything in the file.
        path: the file, for messages.

    Raises:
        ConfigError: several layouts are possible.
        DataError: none is, or there is no sparse weight.
    """
    kernels = {name: shape for name, shape in shapes.items() if is_kernel(name, shape)}
    if not kernels:
        raise DataError("holds no spconv weights", path=path, remedy="they have five axes")
    possible = list(SpconvLayout)
    for name, shape in kernels.items():
        width = _width(name, shapes)
        left = [layout for layout in possible if _fits(shape, width, layout)]
        if not left:
            raise DataError(
                f"the shape {tuple(shape)} of '{name[:80]}' is that of no spconv layout"
                if len(possible) == len(SpconvLayout)
                else f"'{name[:80]}' {tuple(shape)} is not in the layout of the other weights, "
                f"{' or '.join(possible)}",
                path=path,
                field=name[:80],
                remedy="the file is damaged, or mixes weights of several spconv versions",
            )
        possible = left
    if len(possible) > 1:
        raise ConfigError(
            f"its weights may be in the layout {' or '.join(possible)}",
            path=path,
            field="--spconv-layout",
            remedy="say which: KRSC (spconv 2.x), RSKC (2.0, 2.1 native) or RSCK (1.x)",
        )
    return possible[0]


def is_kernel(name: str, shape: Sequence[int]) -> bool:
    """Whether this is a sparse weight."""
    return name.rpartition(".")[2] == "weight" and len(shape) == _AXES


def _one_cell(krsc: Sequence[int]) -> bool:
    return krsc[1] == krsc[2] == krsc[3] == 1


def _fits(shape: Sequence[int], width: int | None, layout: SpconvLayout) -> bool:
    out, *kernel, _ = (shape[axis] for axis in layout.axes)
    return max(kernel) <= LARGEST_KERNEL and width in (None, out)


def _width(name: str, shapes: Mapping[str, Sequence[int]]) -> int | None:
    """Output channels of a layer by its neighbours; None when they do not tell."""
    for other in _neighbours(name):
        if len(shapes.get(other, ())) == 1:
            return shapes[other][0]
    return None


def _neighbours(name: str) -> Iterator[str]:
    """Names of the vectors that have one value per output channel of the layer."""
    layer = name.removesuffix(".weight")
    yield f"{layer}.bias"
    parent, _, last = layer.rpartition(".")
    if last.isdecimal() and len(last) < 4:
        yield f"{parent}.{int(last) + 1}.weight".removeprefix(".")
    numbered = re.fullmatch(r"conv(\d{0,4})", last)
    if numbered:
        yield f"{parent}.bn{numbered[1]}.weight".removeprefix(".")
