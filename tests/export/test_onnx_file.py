"""ONNX files against PyTorch, on clouds of many sizes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from export.networks import clouds, planes, unet
from lidarssl import __version__
from lidarssl.backbones.base import Backbone
from lidarssl.errors import ConfigError, DataError
from lidarssl.export import onnx_file
from lidarssl.export.backbones import graph_of
from lidarssl.export.clouds import random_cloud
from lidarssl.export.onnx_file import OPSETS, Product, Written, about, open_session, write
from lidarssl.frame import PointBatch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# With their heads: a linear one, one behind a norm, or none.
NETWORKS: dict[str, tuple[Callable[[], Backbone], str, int]] = {
    "unet": (unet, "linear", OPSETS[0]),
    "planes_batch_relu": (planes, "", OPSETS[-1]),
    "planes_layer_gelu": (
        lambda: planes(norm="layer", activation="gelu"),
        "normed",
        OPSETS[0],
    ),
}
SIZES = [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597, 2584, 40, 400, 3000]


def head(kind: str, channels: int) -> nn.Module | None:
    linear = nn.Linear(channels, 6)
    heads = {"linear": linear, "normed": nn.Sequential(nn.BatchNorm1d(channels), linear).eval()}
    return heads.get(kind)


@pytest.fixture(scope="module", params=NETWORKS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Product, Written]:
    """A file of each kind of network."""
    torch.manual_seed(2)
    make, kind, opset = NETWORKS[request.param]
    backbone = make()
    product = Product(
        backbone, head(kind, backbone.out_channels), {"architecture": {"class_path": "A"}}
    )
    path = tmp_path_factory.mktemp("onnx") / f"{request.param}.onnx"
    return path, product, write(path, product, opset, clouds=2)


@torch.no_grad()
def test_twenty_clouds_of_different_sizes(made: tuple[Path, Product, Written]) -> None:
    """Within 1e-4 of the backbone itself, which finds voxels, maps and neighbours by itself."""
    path, product, _ = made
    session, graph = open_session(path), graph_of(product.backbone)
    for cloud in clouds(SIZES):
        features = product.backbone(cloud).features
        wanted = features if product.head is None else product.head(features)
        inputs = {name: array.numpy() for name, array in graph.arrays(cloud).inputs.items()}
        outputs = session.run(None, inputs)
        assert outputs[0].shape == wanted.shape
        assert np.abs(outputs[0] - wanted.numpy()).max() <= 1e-4
        if product.head is not None:
            assert outputs[1].min() > 0
            np.testing.assert_array_equal(outputs[1], outputs[0][:, 1:].argmax(1) + 1)


def test_every_input_matters(made: tuple[Path, Product, Written]) -> None:
    """Rows of one input rotated: a file that ignores it would not be noticed otherwise."""
    path, product, _ = made
    session, graph = open_session(path), graph_of(product.backbone)
    inputs = {n: v.numpy() for n, v in graph.arrays(clouds([900])[0]).inputs.items()}
    wanted = session.run(None, inputs)[0]
    for name, array in inputs.items():
        moved = inputs | {name: np.roll(array, 1, axis=1 if name == "cells" else 0)}
        assert np.abs(session.run(None, moved)[0] - wanted).max() > 1e-3, name


def test_the_file_is_sound_and_its_sizes_are_free(made: tuple[Path, Product, Written]) -> None:
    path, _, written = made
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {one.domain for one in model.opset_import} == {""}
    values = [*model.graph.input, *model.graph.output]
    for value, port in zip(values, (*written.inputs, *written.outputs), strict=True):
        dims = value.type.tensor_type.shape.dim
        assert (value.name, value.doc_string) == (port.name, port.meaning)
        assert tuple(dim.dim_param or dim.dim_value for dim in dims) == port.shape
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_metadata_comes_back(made: tuple[Path, Product, Written]) -> None:
    path, _, written = made
    said = about(path)
    assert said["version"] == __version__
    assert said["architecture"] == {"class_path": "A"}
    for name, ports in (("inputs", written.inputs), ("outputs", written.outputs)):
        assert [one["name"] for one in said[name]] == [port.name for port in ports]
        for one, port in zip(said[name], ports, strict=True):
            assert tuple(one["shape"]) == port.shape
            assert one["meaning"] == port.meaning
            assert [tuple(offset) for offset in one.get("offsets", [])] == list(port.offsets)


def test_opsets_are_what_they_are_asked_to_be(made: tuple[Path, Product, Written]) -> None:
    path, _, _ = made
    wanted = NETWORKS[path.stem][2]
    assert onnx.load(path).opset_import[0].version == wanted


@pytest.mark.parametrize("opset", [1, OPSETS[0] - 1, OPSETS[-1] + 1])
def test_other_opsets_are_refused(tmp_path: Path, opset: int) -> None:
    with pytest.raises(ConfigError, match=f"opset {opset}"):
        write(tmp_path / "x.onnx", Product(planes()), opset)
    assert not list(tmp_path.iterdir())


def test_what_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old file stays, and nothing else."""
    path = tmp_path / "x.onnx"
    path.write_bytes(b"old")
    product = Product(planes(depth=1))

    def other(self: Product, cloud: PointBatch) -> torch.Tensor:
        return self.backbone(cloud).features + 1e-2

    monkeypatch.setattr(Product, "reference", other)
    with pytest.raises(ConfigError, match=r"differ by 1\.0e-02"):
        write(path, product)
    assert [file.name for file in tmp_path.iterdir()] == ["x.onnx"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("difference", "largest", "agrees"),
    [
        (1e-4, 0.5, True),
        (1.1e-4, 0.5, False),
        (9e-4, 10.0, True),
        (1.1e-3, 10.0, False),
        (float("nan"), 1.0, False),
        (float("nan"), float("nan"), False),
        (float("inf"), float("inf"), False),
    ],
)
def test_when_outputs_agree(difference: float, largest: float, agrees: bool) -> None:
    assert Written((), (), 1, difference, largest).agrees == agrees


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    network = planes(depth=1)
    with torch.no_grad():
        network.embed.conv1.bias[0] = float("nan")
    with pytest.raises(ConfigError, match=r"'embed\.conv1\.bias' is not finite"):
        write(tmp_path / "x.onnx", Product(network))
    assert not list(tmp_path.iterdir())


def test_random_clouds_have_all_sizes() -> None:
    rng = np.random.default_rng(0)
    sizes = [len(random_cloud(rng).points) for _ in range(300)]
    assert min(sizes) == 1
    assert max(sizes) > 2000
    assert 20 < np.median(sizes) < 200
    again = np.random.default_rng(0)
    assert [len(random_cloud(again).points) for _ in range(9)] == sizes[:9]


@pytest.mark.parametrize("content", [b"", b"no protobuf \xff\xff\xff", os.urandom(300)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"ONNX|lidarssl export") as error:
        about(path)
    assert error.value.path == path
    with pytest.raises(DataError, match="no such file"):
        about(tmp_path / "absent.onnx")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match="'onnxscript'") as error:
        onnx_file.write(tmp_path / "x.onnx", Product(planes()))
    assert error.value.remedy is not None
    assert "pip install 'lidarssl[onnx]'" in error.value.remedy
