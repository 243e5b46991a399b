"""MinkUNet as gathers and matrix products, with tables of neighbours for inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.export.graph import Arrays, Graph, Port
from lidarssl.frame import PointBatch
from lidarssl.sparse.kernel import volume
from lidarssl.sparse.tables import TableKey, TableMaps, tables_read
from lidarssl.sparse.tensor import SparseTensor


class MinkUNetGraph(Graph):
    """Values and tables of the voxels of one frame -> features of the voxels.

    Args:
        network: any MinkUNet.
    """

    def __init__(self, network: MinkUNet) -> None:
        super().__init__()
        self.network = network.eval()
        self.tables = self._tables()
        columns = network.grid.inputs.columns
        self.rows, self.channels = size_of(0), network.out_channels
        values = Port(
            "values",
            (self.rows, len(columns)),
            "float32",
            f"input values of every voxel: {', '.join(columns)}",
        )
        self.inputs = (values, *(table_port(key) for key in self.tables))

    def arrays(self, points: PointBatch) -> Arrays:
        voxels = self.network.prepare(points).prepared
        tables = {key.name: key.rows(voxels.maps) for key in self.tables}
        return Arrays({"values": voxels.features, **tables}, voxels.token_of_point)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        maps = TableMaps(lookup=lambda key: inputs[key.name])
        return self.network.forward_sparse(SparseTensor(inputs["values"], maps)).features

    @torch.no_grad()
    def _tables(self) -> list[TableKey]:
        device = next(self.network.parameters()).device
        row = torch.zeros(1, len(self.network.grid.inputs.columns), device=device)
        return tables_read(
            lambda maps: self.network.forward_sparse(SparseTensor(row, maps)), device
        )


def size_of(level: int) -> str:
    """The name of the number of voxels of a level."""
    return f"voxels{level}"


def table_port(key: TableKey) -> Port:
    return Port(
        key.name,
        (size_of(key.written), volume(key.kernel_size)),
        "int64",
        f"for every voxel of level {key.written} and every offset, the row of the voxel of level "
        f"{key.read} at its site + offset; -1 where that is empty",
        tuple(key.offsets),
    )
