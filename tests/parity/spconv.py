"""What the cases of spconv networks have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lidarssl.sparse.tensor import SparseTensor


def read_sites(coordinates: np.ndarray) -> Tensor:
    """(N, 4) [batch, z, y, x] of spconv as [batch, x, y, z]."""
    return torch.from_numpy(coordinates.astype(np.int64))[:, [0, 3, 2, 1]]


def rows_by_site(x: SparseTensor, coordinates: np.ndarray) -> list[int]:
    """Row of ``x`` at each (batch, z, y, x) cell of its grid; a missing one fails."""
    cells = x.coordinates // x.coordinates.new_tensor((1, *x.stride))
    place = {tuple(cell): row for row, cell in enumerate(cells[:, [0, 3, 2, 1]].tolist())}
    return [place[tuple(cell)] for cell in coordinates.tolist()]


def compare_sums(arrays: dict[str, np.ndarray], prefix: str, rows: Tensor) -> None:
    """Sum and sum of squares of every channel, to the rounding of float32."""
    wide = rows.detach().double().numpy()
    for name, values in (("sum", wide), ("sqsum", wide**2)):
        if f"{prefix}_chan_{name}" in arrays:
            error = np.abs(values.sum(0) - arrays[f"{prefix}_chan_{name}"])
            assert error.max() <= 1e-5 * np.abs(values).sum(0).max(), f"{prefix}_chan_{name}"


class StageOutputs:
    """Inside, remembers what the stages ``conv1``, ... of a trunk return, as ``x_conv1``, ..."""

    def __init__(self, model: nn.Module, taps: tuple[str, ...]) -> None:
        self.model, self.taps = model, taps
        self.outputs: dict[str, SparseTensor] = {}
        self.hooks: list[Any] = []

    def __enter__(self) -> StageOutputs:
        for tap in self.taps:
            stage = self.model.get_submodule(tap.removeprefix("x_"))
            self.hooks.append(stage.register_forward_hook(self._keeper(tap)))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _keeper(self, tap: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: SparseTensor) -> None:
            self.outputs[tap] = output

        return keep
