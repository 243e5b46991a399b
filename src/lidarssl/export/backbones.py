"""Which backbones can be exported, and their inputs for a cloud."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from lidarssl.backbones.base import Backbone
from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.backbones.waffleiron import WaffleIron
from lidarssl.errors import ConfigError, DataError
from lidarssl.export.graph import Graph, one_frame
from lidarssl.export.minkunet import MinkUNetGraph
from lidarssl.export.waffleiron import WaffleIronGraph

GRAPHS: dict[type[Backbone], type[Graph]] = {
    MinkUNet: MinkUNetGraph,
    WaffleIron: WaffleIronGraph,
}


class OnnxInputs(NamedTuple):
    """One cloud for an exported network.

    Attributes:
        inputs: name -> array, as ``onnxruntime.InferenceSession.run`` takes them.
        token_of_point: (N,) int64 output row of each point.
    """

    inputs: dict[str, np.ndarray]
    token_of_point: np.ndarray


def graph_of(backbone: Backbone) -> Graph:
    """The backbone as a function of plain arrays, in eval mode; it shares the weights.

    Raises:
        ConfigError: there is no such form of it.
    """
    if type(backbone) not in GRAPHS:
        raise ConfigError(
            f"{type(backbone).__name__} cannot be exported",
            field="architecture.class_path",
            remedy="these can: " + ", ".join(kind.__name__ for kind in GRAPHS),
        )
    return GRAPHS[type(backbone)](backbone)


@torch.no_grad()
def onnx_inputs(
    backbone: Backbone | Graph,
    points: np.ndarray,
    intensity: np.ndarray,
    intensity_statistics: tuple[float, float] | None = None,
) -> OnnxInputs:
    """What an exported backbone reads of a cloud.

    Args:
        backbone: the network, which may be without weights (device ``meta``), or its graph,
            which is worth keeping for many clouds.
        points: (N, 3) m, lidar frame.
        intensity: (N,) in the units of the data that the network was trained on.
        intensity_statistics: mean and standard deviation of the intensities of that data, for
            networks that read ``standard_intensity``.

    Returns:
        The inputs, and the output row of each point: ``outputs[token_of_point]`` has one row
        per point.

    Raises:
        ConfigError: a backbone that cannot be exported.
        DataError: arrays that do not fit, or no point.
    """
    if points.ndim != 2 or points.shape[1] != 3 or intensity.shape != points.shape[:1]:
        raise DataError(
            f"points are {points.shape} and intensities {intensity.shape}, not (N, 3) and (N,)",
            field="points, intensity",
        )
    if len(points) == 0:
        raise DataError("a cloud without points", field="points", remedy="skip it")
    statistics = None if intensity_statistics is None else torch.tensor([intensity_statistics])
    cloud = one_frame(
        torch.from_numpy(np.array(points, np.float32)),
        torch.from_numpy(np.array(intensity, np.float32)),
        intensity_statistics=statistics,
    )
    graph = backbone if isinstance(backbone, Graph) else graph_of(backbone)
    arrays = graph.arrays(cloud)
    return OnnxInputs(
        {name: array.numpy() for name, array in arrays.inputs.items()},
        arrays.token_of_point.numpy(),
    )
