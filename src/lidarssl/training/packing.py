"""Batches on their way from a loader's worker to the training process."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from lidarssl.frame import map_tensors

_T = TypeVar("_T")
_ALIGNED = 64
"""Bytes at which every tensor starts, as if it had been allocated by itself."""


def packed(value: _T) -> _T:
    """The same values in shared memory, side by side in one piece for each type of number.

    A process hands over every piece of memory with a file descriptor and a message of its own;
    a batch has dozens of tensors. Written here at once, they are not copied again.

    Args:
        value: dataclasses, tuples, lists and dicts with tensors on the CPU.
    """
    found: dict[int, Tensor] = {}
    map_tensors(value, lambda tensor: found.setdefault(id(tensor), tensor))
    starts, lengths = dict[int, int](), dict[torch.dtype, int]()
    for number, tensor in found.items():
        starts[number] = lengths.get(tensor.dtype, 0)
        step = _ALIGNED // tensor.element_size()
        lengths[tensor.dtype] = starts[number] + -(-tensor.numel() // step) * step
    pieces = {dtype: _shared(length, dtype) for dtype, length in lengths.items()}

    def moved(tensor: Tensor) -> Tensor:
        start = starts[id(tensor)]
        place = pieces[tensor.dtype][start : start + tensor.numel()].view(tensor.shape)
        return place.copy_(tensor)

    places = {number: moved(tensor) for number, tensor in found.items()}
    return map_tensors(value, lambda tensor: places[id(tensor)])


def _shared(length: int, dtype: torch.dtype) -> Tensor:
    # As torch's own collation: an ordinary tensor would be copied when it is shared.
    storage = torch.UntypedStorage._new_shared(max(1, length) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage, 0, (length,), (1,))
