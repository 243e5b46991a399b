"""Files for other libraries: they hold the same bits, load without a pickle, or are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.backbones.second import Second
from lidarssl.backbones.spvcnn import Spvcnn
from lidarssl.backbones.voxelnet import VoxelNet
from lidarssl.checkpoints import Architecture, Card, load_into
from lidarssl.checkpoints.convert import Format, foreign_content, state_for, write_foreign
from lidarssl.checkpoints.networks import Network, find_network, read_network
from lidarssl.checkpoints.openpcdet import plane_shapes, trunk_shapes
from lidarssl.checkpoints.spconv_layouts import SpconvLayout
from lidarssl.errors import ConfigError
from lidarssl.frame import PointBatch

SMALL: dict[str, Any] = {
    "stem_channels": 4,
    "encoder_channels": (6, 8),
    "decoder_channels": (8, 6),
    "blocks": (1, 2, 1, 1),
}
PATH = Path("source.pt")
OWN = "lidarssl.backbones.minkunet.MinkUNet"


def network(kind: str, stem: int = 1) -> Network:
    torch.manual_seed(0)
    if kind in ("MinkUNet", "Spvcnn"):
        cls = MinkUNet if kind == "MinkUNet" else Spvcnn
        return find_network(cls(**SMALL, stem_convolutions=stem).state_dict(), PATH)
    # The trunk first, so that it is the same in both.
    shapes = trunk_shapes() | (plane_shapes() if kind == "Second" else {})
    return find_network({name: torch.randn(shape) for name, shape in shapes.items()}, PATH)


def same(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    ("kind", "stem", "target"),
    [
        ("MinkUNet", 1, Format.TORCHSPARSE),
        ("MinkUNet", 2, Format.TORCHSPARSE),
        ("MinkUNet", 1, Format.MINKOWSKI),
        ("MinkUNet", 2, Format.SEGCONTRAST),
        ("Spvcnn", 2, Format.TORCHSPARSE),
        ("VoxelNet", 1, Format.OPENPCDET),
        ("Second", 1, Format.OPENPCDET),
    ],
)
def test_written_and_read_again_every_bit_is_there(
    tmp_path: Path, kind: str, stem: int, target: Format
) -> None:
    source = network(kind, stem)
    path = tmp_path / "converted.pth"
    write_foreign(path, foreign_content(source, target))
    torch.load(path, weights_only=True)
    again = read_network(path)
    assert same(again.state, source.state)
    assert again.kind == kind
    assert not again.left_out
    bits = sum(value.numel() * value.element_size() for value in source.state.values())
    assert path.stat().st_size < bits + 1000 * len(source.state), "tensors share large memory"


@pytest.mark.parametrize(
    ("kind", "stem", "way"),
    [
        ("MinkUNet", 1, (Format.TORCHSPARSE, Format.MINKOWSKI)),
        ("MinkUNet", 2, (Format.TORCHSPARSE, Format.SEGCONTRAST)),
        ("Spvcnn", 2, (Format.TORCHSPARSE, Format.TORCHSPARSE)),
    ],
)
def test_through_files_of_other_libraries_the_function_stays(
    tmp_path: Path, kind: str, stem: int, way: tuple[Format, ...]
) -> None:
    cls = MinkUNet if kind == "MinkUNet" else Spvcnn
    first, last = cls(**SMALL, stem_convolutions=stem), cls(**SMALL, stem_convolutions=stem)
    load_into(first, network(kind, stem).state)
    current = network(kind, stem)
    for number, target in enumerate(way):
        path = tmp_path / f"{number}.pt"
        write_foreign(path, foreign_content(current, target))
        current = read_network(path)
    assert same(current.state, network(kind, stem).state)
    load_into(last, state_for(current, last))
    points = 4 * torch.rand(300, 3, generator=torch.Generator().manual_seed(0))
    batch = PointBatch(points, points[:, 0], torch.zeros(300, dtype=torch.int64), 1)
    before, after = first.eval()(batch).features, last.eval()(batch).features
    assert before.abs().sum() > 0
    assert torch.equal(before, after)


def test_torchsparse_files_are_flat_and_have_its_order_of_cells() -> None:
    source = network("MinkUNet")
    content = foreign_content(source, Format.TORCHSPARSE)
    assert all(isinstance(value, Tensor) for value in content.values())
    ours, theirs = source.state["conv1p1s2.kernel"], content["stage1.0.net.0.kernel"]
    for x in range(2):
        for y in range(2):
            for z in range(2):
                assert torch.equal(theirs[4 * x + 2 * y + z], ours[x + 2 * y + 4 * z])


def test_slidr_files_state_their_voxels_where_these_are_known() -> None:
    source = network("MinkUNet")
    assert foreign_content(source, Format.MINKOWSKI).keys() == {"model_points"}
    for rule, cylindrical in (("slidr_cylindrical", True), ("slidr_cartesian", False)):
        card = Card(Architecture(OWN, {"rule": rule, "voxel_size": 0.1}))
        content = foreign_content(replace(source, card=card), Format.MINKOWSKI)
        assert content["config"] == {"voxel_size": 0.1, "cylindrical_coordinates": cylindrical}
    settings = {"voxel_size": 0.2, "cylindrical_coordinates": True, "lr": 1.0}
    content = foreign_content(replace(source, config=settings), Format.MINKOWSKI)
    assert content["config"] == {"voxel_size": 0.2, "cylindrical_coordinates": True}
    other = Card(Architecture(OWN, {"rule": "also", "voxel_size": 0.1}))
    assert "config" not in foreign_content(replace(source, card=other), Format.MINKOWSKI)


def test_openpcdet_on_spconv_1(tmp_path: Path) -> None:
    source = network("Second")
    content = foreign_content(source, Format.OPENPCDET, SpconvLayout.RSCK)
    assert content["model_state"]["backbone_3d.conv_input.0.weight"].shape == (3, 3, 3, 4, 16)
    write_foreign(tmp_path / "old.pth", content)
    again = read_network(tmp_path / "old.pth")
    assert again.layout is SpconvLayout.RSCK
    assert same(again.state, source.state)


@pytest.mark.parametrize(
    ("kind", "stem", "target", "better"),
    [
        ("MinkUNet", 3, Format.OPENPCDET, "--to lidarssl"),
        ("MinkUNet", 2, Format.MINKOWSKI, "torchsparse or segcontrast"),
        ("MinkUNet", 1, Format.SEGCONTRAST, "torchsparse or minkowski"),
        ("MinkUNet", 3, Format.TORCHSPARSE, "--to lidarssl"),
        ("MinkUNet", 1, Format.OPENPCDET, "torchsparse or minkowski"),
        ("Spvcnn", 2, Format.MINKOWSKI, "torchsparse"),
        ("Spvcnn", 2, Format.SEGCONTRAST, "torchsparse"),
        ("Spvcnn", 2, Format.OPENPCDET, "torchsparse"),
        ("VoxelNet", 1, Format.TORCHSPARSE, "openpcdet"),
        ("Second", 1, Format.MINKOWSKI, "openpcdet"),
    ],
)
def test_networks_that_the_other_library_has_not(
    kind: str, stem: int, target: Format, better: str
) -> None:
    with pytest.raises(ConfigError, match=f"'{target}' files are for have no {kind}") as caught:
        foreign_content(network(kind, stem), target)
    assert better in (caught.value.remedy or "")
    tells_stem = kind == "MinkUNet" and target is not Format.OPENPCDET
    assert ("in its stem" in caught.value.problem) == tells_stem
    assert (caught.value.path, caught.value.field) == (PATH, "--to")


def test_a_second_of_other_widths_is_not_written_for_openpcdet() -> None:
    source = network("Second")
    state = dict(source.state)
    state["backbone_3d.conv1.0.0.weight"] = torch.zeros(24, 3, 3, 3, 16)
    with pytest.raises(ConfigError, match=r"conv1.0.0.weight' is \(24, 3, 3, 3, 16\), not"):
        foreign_content(replace(source, state=state), Format.OPENPCDET)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"old")

    def full_disk(content: object, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_foreign(path, foreign_content(network("MinkUNet"), Format.TORCHSPARSE))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_another_kind_of_network_does_not_fit_a_backbone() -> None:
    backbone = MinkUNet(**SMALL)
    assert state_for(network("MinkUNet"), backbone).keys() == backbone.state_dict().keys()
    for kind in ("Spvcnn", "VoxelNet", "Second"):
        with pytest.raises(ConfigError, match=f"holds a {kind}, where a MinkUNet is wanted"):
            state_for(network(kind, 2), backbone)
    with torch.device("meta"):
        trunk, whole = VoxelNet(), Second()
    assert same(state_for(network("Second"), trunk), network("VoxelNet").state)
    with pytest.raises(ConfigError, match="holds a VoxelNet, where a Second is wanted"):
        state_for(network("VoxelNet"), whole)
    with pytest.raises(ConfigError, match="where a Linear is wanted"):
        state_for(network("MinkUNet"), torch.nn.Linear(2, 2))
