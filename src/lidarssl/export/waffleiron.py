"""WaffleIron behind plain arrays: values, neighbours and cells of the tokens of one frame."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl.backbones.plane_cells import WholePlane
from lidarssl.backbones.plane_tokens import PlaneGrids, PlaneTokens
from lidarssl.backbones.waffleiron import Embedding, WaffleIron
from lidarssl.export.graph import Arrays, Graph, Port
from lidarssl.frame import PointBatch

_AXES = {0: "y and z", 1: "x and z", 2: "x and y"}


class WaffleIronGraph(Graph):
    """Tokens of one frame -> their features; norms and scales are folded into other layers.

    Args:
        network: any WaffleIron.
    """

    def __init__(self, network: WaffleIron) -> None:
        super().__init__()
        self.rule = network.rule
        self.network = network.merged()
        self.network.add_module("embed", WholeEmbedding(self.network.embed))
        self.rows, self.channels = "tokens", network.out_channels
        columns, grids = self.rule.inputs.columns, self.rule.grids
        self.inputs = (
            Port(
                "values",
                (self.rows, len(columns)),
                "float32",
                f"input values of every token: {', '.join(columns)}",
            ),
            Port(
                "neighbours",
                (self.rows, self.rule.neighbours),
                "int64",
                "rows of the nearest other tokens of every token; its own row where there are "
                "fewer of them",
            ),
            Port(
                "cells",
                (len(grids.planes), self.rows),
                "int64",
                f"flat cell of every token in every grid; {_grids_in_words(grids)}",
            ),
        )

    def arrays(self, points: PointBatch) -> Arrays:
        tokens = self.rule(points)
        return Arrays(
            {"values": tokens.features, "neighbours": tokens.neighbours, "cells": tokens.cells},
            tokens.token_of_point,
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        values, cells = inputs["values"], inputs["cells"]
        one_frame = torch.zeros_like(cells[0])
        tokens = PlaneTokens(
            features=values,
            neighbours=inputs["neighbours"],
            cells=cells,
            weights=self._weights(values, cells),
            positions=values,
            batch=one_frame,
            token_of_point=one_frame,
            batch_size=1,
            real=0,
        )
        return self.network.forward_tokens(tokens, WholePlane)

    def _weights(self, values: Tensor, cells: Tensor) -> Tensor:
        """(P, T) weight of every token in the mean of its cell."""
        ones = torch.ones_like(values[:, 0])
        weights = []
        for cell, (rows, columns) in zip(cells, self.rule.grids.grids, strict=True):
            counts = values.new_zeros(rows * columns).index_add(0, cell, ones)
            weights.append(1 / (counts[cell] + 1e-6))
        return torch.stack(weights)


class WholeEmbedding(nn.Module):
    """The embedding of a merged network on all tokens at once: a graph has no chunks."""

    def __init__(self, embed: Embedding) -> None:
        super().__init__()
        self.conv1, self.conv2, self.final = embed.conv1, embed.conv2, embed.final

    def forward(self, values: Tensor, neighbours: Tensor) -> Tensor:
        difference = F.embedding(neighbours, values) - values[:, None]
        around = self.conv2(difference).amax(1)
        return self.final(torch.cat([self.conv1(values), around], 1))


def _grids_in_words(grids: PlaneGrids) -> str:
    return "; ".join(
        f"row {row} is i * {columns} + j of {rows} x {columns} cells along {_AXES[axis]}"
        for row, (axis, (rows, columns)) in enumerate(zip(grids.planes, grids.grids, strict=True))
    )
