"""Backbones behind plain arrays: the same numbers, and inputs that are what they are said to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from export.networks import PLANES, clouds, planes, unet
from lidarssl.backbones.base import Backbone
from lidarssl.backbones.spvcnn import Spvcnn
from lidarssl.backbones.voxelnet import VoxelNet
from lidarssl.errors import ConfigError, DataError
from lidarssl.export.backbones import GRAPHS, graph_of, onnx_inputs
from lidarssl.export.clouds import INTENSITY

NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "unet": (unet, {}),
    "unet with a head": (unet, {"head_channels": 7, "normalize": True}),
    "unet of cylinders": (unet, {"rule": "slidr_cylindrical", "stem_convolutions": 2}),
    "unet with a wide stem": (unet, {"kernel_size": 5}),
    "deep unet": (
        unet,
        {"encoder_channels": (8,) * 4, "decoder_channels": (8,) * 4, "blocks": (1,) * 8},
    ),
    "planes, batch norm, relu": (planes, {}),
    "planes, batch norm, gelu": (planes, {"activation": "gelu"}),
    "planes, layer norm, relu": (planes, {"norm": "layer"}),
    "planes, layer norm, gelu": (planes, {"norm": "layer", "activation": "gelu"}),
    "planes, padded": (planes, {"padded": True}),
    "planes of all points": (planes, {"voxel_size": None}),
    "one plane": (planes, {"planes": (1,), "grids": ((16, 5),), "depth": 2}),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(1)
    make, arguments = NETWORKS[request.param]
    made: Backbone = make(**arguments)
    return made


def test_every_exportable_backbone_is_tested() -> None:
    made = {type(make(**arguments)) for make, arguments in NETWORKS.values()}
    assert made == set(GRAPHS)


@torch.no_grad()
def test_a_graph_is_the_network(network: Backbone) -> None:
    graph = graph_of(network)
    for cloud in clouds([1, 2, 9, 700]):
        arrays = graph.arrays(cloud)
        wanted = network(cloud)
        found = graph(arrays.inputs)
        torch.testing.assert_close(found, wanted.features, atol=2e-5, rtol=2e-5)
        assert torch.equal(arrays.token_of_point, wanted.token_of_point)


def test_inputs_have_the_shapes_that_are_announced(network: Backbone) -> None:
    graph = graph_of(network)
    for cloud in clouds([3, 400]):
        inputs = graph.arrays(cloud).inputs
        assert list(inputs) == [port.name for port in graph.inputs]
        sizes: dict[str, int] = {}
        for port in graph.inputs:
            array = inputs[port.name]
            assert str(array.dtype) == f"torch.{port.dtype}"
            assert array.dim() == len(port.shape)
            for said, size in zip(port.shape, array.shape, strict=True):
                assert size == (said if isinstance(said, int) else sizes.setdefault(said, size))


def test_the_order_of_rows_means_nothing() -> None:
    """A user may number voxels as they come, if the tables say so."""
    network = unet()
    graph = graph_of(network)
    inputs = graph.arrays(clouds([300])[0]).inputs
    generator = torch.Generator().manual_seed(0)
    counts = {f"level{i}": len(inputs[f"level{i}_k3"]) for i in range(3)}
    order = {level: torch.randperm(n, generator=generator) for level, n in counts.items()}
    # The last entry stands for -1 and stays.
    rank = {level: torch.cat([rows.argsort(), torch.tensor([-1])]) for level, rows in order.items()}
    moved = {"values": inputs["values"][order["level0"]]}
    for name in list(inputs)[1:]:
        read = name[:6]
        written = f"level{name[10]}" if "_to_" in name else read
        moved[name] = rank[read][inputs[name]][order[written]]
    with torch.no_grad():
        wanted, found = graph(inputs), graph(moved)
    torch.testing.assert_close(found, wanted[order["level0"]], atol=1e-5, rtol=1e-5)


def test_voxels_and_tables_from_their_description_alone() -> None:
    """Sites, levels and tables in NumPy, from docs/export.md and the offsets in the metadata."""
    network = unet(rule="slidr_cartesian")
    graph, cloud = graph_of(network), clouds([400])[0]
    points = cloud.points.numpy()
    cells = np.floor(points / np.float32(0.4)).astype(int)
    sites, voxel = np.unique(cells, axis=0, return_inverse=True)
    columns = np.c_[cloud.intensity.numpy(), points]
    values = [columns[voxel == row].mean(0) for row in range(len(sites))]
    levels = [np.unique(sites // 2**level * 2**level, axis=0) for level in range(3)]
    row_of = [{tuple(site): row for row, site in enumerate(level)} for level in levels]
    inputs = {"values": torch.from_numpy(np.float32(values))}
    for port in graph.inputs[1:]:
        read, written = int(port.name[5]), int(str(port.shape[0])[-1])
        rows = [
            [row_of[read].get(tuple(site + offset), -1) for offset in np.array(port.offsets)]
            for site in levels[written]
        ]
        inputs[port.name] = torch.tensor(rows)
    with torch.no_grad():
        found, wanted = graph(inputs)[voxel], network(cloud).at_points()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_planes_read_what_their_description_says() -> None:
    """Every input from its definition, in NumPy."""
    network = planes()
    cloud = clouds([500])[0]
    inside = (cloud.points.abs() < torch.tensor([31.9, 31.9, 3.9])).all(1)
    points, intensity = cloud.points[inside].numpy(), cloud.intensity[inside].numpy()
    made, token = onnx_inputs(network, points, intensity, INTENSITY)
    cells = np.floor((points - points.min(0)) / np.float32(0.2)).astype(int)
    _, first = np.unique(cells, axis=0, return_index=True)
    count = len(first)
    assert {name: array.shape for name, array in made.items()} == {
        "values": (count, 5), "neighbours": (count, 5), "cells": (3, count),
    }  # fmt: skip
    order = np.array([token[row] for row in first])
    assert sorted(order) == [*range(count)]
    chosen, low = points[first], np.array(PLANES["fov"][0])
    values = np.c_[(intensity[first] - 0.5) / 0.3, chosen, np.linalg.norm(chosen, axis=1)]
    np.testing.assert_allclose(made["values"][order], values, rtol=1e-4, atol=1e-5)
    fov = np.array(PLANES["fov"][1]) - low
    for row, (axis, grid) in enumerate(zip((2, 1, 0), PLANES["grids"], strict=True)):
        axes = [other for other in range(3) if other != axis]
        i, j = ((chosen - low)[:, axes] / fov[axes] * grid).astype(int).T
        np.testing.assert_array_equal(made["cells"][row][order], i * grid[1] + j)
    by_token = chosen[np.argsort(order)].astype(np.float64)
    distance = np.linalg.norm(by_token[:, None] - by_token, axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest = np.sort(distance, axis=1)[:, :5]
    found = np.take_along_axis(distance, made["neighbours"], axis=1)
    np.testing.assert_allclose(np.sort(found, axis=1), nearest, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [unet, planes])
def test_inputs_need_no_weights(make: Any) -> None:
    """A network on the meta device makes the arrays of the real one."""
    cloud = clouds([200])[0]
    with torch.device("meta"):
        empty = make()
    arguments = (cloud.points.numpy(), cloud.intensity.numpy(), INTENSITY)
    wanted, found = onnx_inputs(make(), *arguments), onnx_inputs(empty, *arguments)
    np.testing.assert_array_equal(found.token_of_point, wanted.token_of_point)
    for name, array in wanted.inputs.items():
        np.testing.assert_array_equal(found.inputs[name], array)


def test_back_to_points() -> None:
    network = unet()
    cloud = clouds([300])[0]
    graph = graph_of(network)
    inputs, token = onnx_inputs(graph, cloud.points.numpy(), cloud.intensity.double().numpy())
    with torch.no_grad():
        rows = graph({name: torch.from_numpy(array) for name, array in inputs.items()})
        wanted = network(cloud).at_points()
    torch.testing.assert_close(rows[token], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cls", [Spvcnn, VoxelNet])
def test_others_are_refused_by_name(cls: type[Backbone]) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=f"{cls.__name__} cannot") as error:
        graph_of(cls())
    assert error.value.remedy is not None
    assert "MinkUNet" in error.value.remedy
    assert "WaffleIron" in error.value.remedy


@pytest.mark.parametrize(
    ("points", "intensity", "said"),
    [
        (np.zeros((4, 4)), np.zeros(4), r"\(N, 3\)"),
        (np.zeros((4, 3)), np.zeros(3), r"\(N,\)"),
        (np.zeros((0, 3)), np.zeros(0), "without points"),
        (np.full((2, 3), np.nan), np.zeros(2), "finite"),
    ],
)
@pytest.mark.parametrize("make", [unet, planes])
def test_bad_clouds_are_refused(
    make: Any, points: np.ndarray, intensity: np.ndarray, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        onnx_inputs(make(), points, intensity, INTENSITY)


def test_standard_intensities_need_their_statistics() -> None:
    with pytest.raises(DataError, match="mean and standard deviation"):
        onnx_inputs(planes(), np.zeros((3, 3)), np.zeros(3))


def test_a_graph_leaves_its_network_alone() -> None:
    """Folding works on a copy."""
    network = planes()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    graph_of(network)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
