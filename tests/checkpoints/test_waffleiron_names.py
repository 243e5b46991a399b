"""Published files of WaffleIron, ScaLR and ScaLR+ are read, described, used and written."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lidarssl import checkpoints
from lidarssl.backbones.waffleiron import WaffleIron
from lidarssl.checkpoints.architectures import (
    check_whole,
    describe,
    missing_arguments,
    told_arguments,
)
from lidarssl.checkpoints.convert import Format, foreign_content, state_for, write_foreign
from lidarssl.checkpoints.matching import misfits
from lidarssl.checkpoints.networks import find_network, read_network
from lidarssl.checkpoints.waffleiron_names import from_published, to_published
from lidarssl.errors import ConfigError, DataError
from lidarssl.experiments.record import FREE_ARGUMENTS, STUDENT_FILE, load_backbone
from plain_waffleiron import GRIDS, published, same
from weight_files import Bomb

HEADS = ("linear", "mlp", "norm", "none")
CLASS = "lidarssl.backbones.waffleiron.WaffleIron"


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def beside() -> dict[str, Any]:
    """What a trainer leaves beside the weights, a score of numpy included."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    weight.sum().backward()
    optimizer.step()
    scheduler.step()
    return {
        "epoch": 44,
        "optim": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3},
        "best_miou": 100 * np.nanmean(np.array([0.5, np.nan])),
        "last_miou": np.float32(0.5),
    }


@given(
    channels=st.integers(1, 9),
    depth=st.integers(1, 4),
    norm=st.sampled_from(["batch", "layer"]),
    head=st.sampled_from(HEADS),
    inputs=st.integers(1, 6),
)
@settings(max_examples=25, deadline=None)
def test_there_and_back_every_bit_is_there(
    channels: int, depth: int, norm: str, head: str, inputs: int
) -> None:
    state = published(channels, depth, norm, head, inputs)
    network = find_network(state, Path("ckpt_last.pth"))
    check_whole(network)
    assert told_arguments(network) == {"channels": channels, "depth": depth, "norm": norm}
    written = foreign_content(network, Format.WAFFLEIRON)
    entry = "model_point" if norm == "layer" and head != "norm" else "net"
    assert written.keys() == {entry}
    assert same(written[entry], state)
    backbone, found = from_published(state)
    assert same(to_published(backbone | found), state)
    assert same(backbone, network.state)
    assert all(key.startswith("classif.") for key in found)


@pytest.mark.parametrize("entry", ["net", "model_point", "model_points"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("head", HEADS)
def test_every_container_and_prefix(tmp_path: Path, entry: str, prefix: str, head: str) -> None:
    path = tmp_path / "ckpt_last.pth"
    state = published(head=head)
    torch.save(beside() | {entry: prefixed(state, prefix)}, path)
    network = read_network(path)
    check_whole(network)
    assert (network.kind, network.entry, network.prefix) == ("WaffleIron", entry, prefix)
    assert network.source.startswith("ScaLR+" if head == "mlp" else "ScaLR, or ScaLR+")
    assert set(network.left_out) == {*beside()}
    assert same(to_published({**network.state, **network.head}), state)


def test_a_number_of_the_old_numpy(tmp_path: Path) -> None:
    """Files written under numpy 1 name the module that it had then."""
    new, old = tmp_path / "new.pth", tmp_path / "old.pth"
    torch.save({"net": published(), "best_miou": np.float64(63.1)}, new)
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            target.writestr(entry.filename.replace("new/", "old/"), content)
    assert read_network(old).kind == "WaffleIron"


class Opened:
    """A pickle of this asks numpy to read a file."""

    def __reduce__(self) -> tuple[object, ...]:
        return np.fromfile, ("weights",)


@pytest.mark.parametrize("hostile", ["bomb", "numpy"])
def test_nothing_else_of_numpy_is_admitted(tmp_path: Path, hostile: str) -> None:
    path, folder = tmp_path / "ckpt_last.pth", tmp_path / "made"
    culprit = Bomb(folder) if hostile == "bomb" else Opened()
    torch.save({"net": published(), "best_miou": culprit}, path)
    with pytest.raises(DataError, match="could run code"):
        read_network(path)
    assert not folder.exists()


def test_hostile_arguments_of_a_number_reach_nothing(tmp_path: Path) -> None:
    class Number:
        def __reduce__(self) -> tuple[object, ...]:
            reduced: Any = np.float64(1).__reduce__()
            scalar, arguments = reduced[:2]
            return scalar, (np.dtype("O"), arguments[1] * 100)

    path = tmp_path / "ckpt_last.pth"
    torch.save({"net": published(), "best_miou": Number()}, path, pickle_module=pickle)
    assert read_network(path).left_out == {"best_miou": "a value"}


# Published configurations: what stands in the shapes, and the parameters that they had there.
ROWS = {
    "WaffleIron-48-256 KITTI": ("batch", 256, "linear", 19, 6_840_615),
    "WaffleIron-48-384 nuScenes (config WaffleIron-48-384__nuscenes.yaml)": (
        "batch", 384, "linear", 16, 15_125_796,
    ),
    "ScaLR pretrain WI_768 (nb_class = 1024 teacher channels)": (
        "layer", 768, "linear", 1024, 60_222_996,
    ),
    "ScaLR+": ("layer", 768, "mlp", 1024, 63_108_628),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_parameters_of_the_published_networks(row: str) -> None:
    norm, channels, head, values, expected = ROWS[row]
    with torch.device("meta"):
        backbone = WaffleIron(channels, 48, norm=norm)  # type: ignore[arg-type]
        classif: nn.Module = nn.Linear(channels, values)
        if head == "mlp":
            classif = nn.Sequential(nn.Linear(channels, 2048), nn.ReLU(), nn.Linear(2048, values))
    counts = [sum(p.numel() for p in one.parameters()) for one in (backbone, classif)]
    assert sum(counts) == expected
    tensors = {**backbone.state_dict(), **prefixed(classif.state_dict(), "classif.")}
    if head == "linear":
        assert len(tensors) == (983 if norm == "batch" else 695)
    network = find_network(to_published(tensors), Path("w"))
    assert describe(network) == (
        f"WaffleIron, inputs 5, channels {channels}, depth 48, norm {norm}"
    )


def test_shapes_of_the_published_networks(goldens_root: Path) -> None:
    path = goldens_root / "waffleiron_small" / "real_config_shapes.json"
    if not path.is_file():
        pytest.skip(f"no {path.name}")
    for name, stored in json.loads(path.read_text()).items():
        norm, channels, _, values, parameters = ROWS[name]
        assert (stored["channels"], stored["n_params"]) == (channels, parameters)
        with torch.device("meta"):
            backbone = WaffleIron(channels, stored["depth"], norm=norm)  # type: ignore[arg-type]
            head = nn.Linear(channels, values)
        ours = to_published({**backbone.state_dict(), **prefixed(head.state_dict(), "classif.")})
        shapes = {key: [*value.shape] for key, value in ours.items()}
        first = dict(stored["state_dict_first_layers"])
        assert {key: shapes[key] for key in first} == first
        later = {key for key in shapes if "_mix." in key and "_mix.0." not in key}
        assert shapes.keys() == first.keys() | later
        for key in later:
            mix, _, rest = key.partition("_mix.")
            assert shapes[key] == first[f"{mix}_mix.0.{rest.split('.', 1)[1]}"], key


def test_published_weights_get_into_a_backbone(tmp_path: Path) -> None:
    path = tmp_path / "ckpt_last.pth"
    state = published(head="mlp")
    torch.save({"epoch": 1, "model_point": prefixed(state, "module.")}, path)
    backbone = WaffleIron(6, 2, "layer", grids=GRIDS)
    arguments = {"channels": 6, "depth": 2, "norm": "layer", "voxel_size": 0.1}
    assert load_backbone(backbone, path, checkpoints.Architecture(CLASS, arguments)) == "ckpt_last"
    assert same(backbone.state_dict(), from_published(state)[0])
    for other in (WaffleIron(8, 2, "layer"), WaffleIron(6, 3, "layer"), WaffleIron(6, 2)):
        with pytest.raises(ConfigError, match="the weights do not fit the module"):
            load_backbone(other, path, checkpoints.Architecture(CLASS, arguments))


def test_another_backbone_than_a_waffleiron() -> None:
    network = find_network(published(), Path("w.pth"))
    with pytest.raises(ConfigError, match="holds a WaffleIron, where a Linear is wanted"):
        state_for(network, nn.Linear(2, 2))
    for target in (Format.TORCHSPARSE, Format.MINKOWSKI, Format.OPENPCDET):
        with pytest.raises(ConfigError, match="have no WaffleIron") as caught:
            foreign_content(network, target)
        assert "waffleiron" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("waffleiron.channel_mix.1.scale.weight", None, "missing|unexpected"),
        ("embed.final.weight", None, "missing: 'embed.final.weight'"),
        ("waffleiron.spatial_mix.0.ffn.0.weight", torch.ones(6, 2, 3, 3), "of another shape"),
        ("waffleiron.spatial_mix.0.ffn.4.weight", torch.ones(6), "unexpected"),
        ("embed.conv1.weight", torch.ones(6), "of another shape"),
        ("embed.conv1.weight", torch.tensor(1.0), "a weight is missing or has a wrong shape"),
        ("embed.conv1.weight", torch.ones(6, 5, 3), "of another shape"),
    ],
)
def test_networks_that_are_not_whole(name: str, value: Tensor | None, problem: str) -> None:
    state = published()
    if value is None:
        del state[name]
    else:
        state[name] = value
    with pytest.raises(DataError, match=f"WaffleIron in it is not whole: .*({problem})"):
        check_whole(find_network(state, Path("w.pth")))


def test_an_unknown_head_is_left_out() -> None:
    state = published() | {"classif.0.weight": torch.ones(3, 6, 1), "classif.9.x": torch.ones(2)}
    network = find_network(state, Path("w.pth"))
    assert network.left_out == {"classif": "2 tensors"}
    assert not network.head


def test_a_file_does_not_tell_where_its_points_fell() -> None:
    network = find_network(published(), Path("w.pth"))
    assert missing_arguments(network) == ("activation", "fov", "grids", "voxel_size", "inputs")
    assert {"fov", "grids", "drop_path", "padded", "checkpointing"} <= {*FREE_ARGUMENTS}
    assert not {"activation", "planes", "voxel_size", "inputs", "neighbours"} & {*FREE_ARGUMENTS}


def test_another_field_of_view_is_the_same_network(tmp_path: Path) -> None:
    network = WaffleIron(6, 2, "layer", grids=GRIDS)
    arguments = {"channels": 6, "depth": 2, "norm": "layer", "activation": "relu"}
    card = checkpoints.Card(checkpoints.Architecture(CLASS, arguments | {"grids": [[4, 4]] * 3}))
    checkpoints.save(tmp_path / STUDENT_FILE, network, card)
    wider = {"grids": [[8, 8]] * 3, "drop_path": 0.2, "fov": [[-1, -1, -1], [1, 1, 1]]}
    load_backbone(network, tmp_path, checkpoints.Architecture(CLASS, arguments | wider))
    smooth = arguments | wider | {"activation": "gelu"}
    with pytest.raises(ConfigError, match='activation is "relu" in the checkpoint, "gelu" here'):
        load_backbone(network, tmp_path, checkpoints.Architecture(CLASS, smooth))


@given(data=st.data())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damaged_states_end_in_a_data_error(tmp_path: Path, data: st.DataObject) -> None:
    state = published(4, 1, "batch", "linear")
    for name in data.draw(st.lists(st.sampled_from(sorted(state)), max_size=4, unique=True)):
        shape = data.draw(st.lists(st.integers(1, 5), max_size=5))
        state[name] = torch.zeros(shape)
    path = tmp_path / "ckpt_last.pth"
    write_foreign(path, {"net": state})
    try:
        network = read_network(path)
        check_whole(network)
    except (DataError, ConfigError):
        return
    backbone = WaffleIron(4, 1, grids=GRIDS)
    assert misfits(backbone, state_for(network, backbone)) == []


def test_batch_norms_are_those_of_waffleiron() -> None:
    assert find_network(published(norm="batch"), Path("w.pth")).source == "WaffleIron"
