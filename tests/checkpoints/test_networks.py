"""Lidar networks are found in files of any origin, and what else these hold is listed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from lidarssl import checkpoints
from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.backbones.second import Second
from lidarssl.backbones.spvcnn import Spvcnn
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.backbones.voxelnet import VoxelNet
from lidarssl.checkpoints.architectures import check_whole, missing_arguments, told_arguments
from lidarssl.checkpoints.minkunet_names import Naming, from_ours
from lidarssl.checkpoints.networks import find_network, kind_of, read_network
from lidarssl.checkpoints.openpcdet import plane_shapes, trunk_shapes
from lidarssl.checkpoints.spconv_layouts import SpconvLayout, convert_layout
from lidarssl.errors import ConfigError, DataError
from weight_files import Bomb

SMALL: dict[str, Any] = {
    "inputs": PointInputs(("x", "y", "z", "intensity")),
    "stem_channels": 4,
    "encoder_channels": (6, 8),
    "decoder_channels": (8, 6),
    "blocks": (1, 2, 1, 1),
}
PATH = Path("file.pt")


def minkunet(**changes: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return MinkUNet(**SMALL | changes).state_dict()


def spvcnn() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return Spvcnn(**SMALL).state_dict()


def detector() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = trunk_shapes() | plane_shapes()
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def same(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


ONE, TWO = minkunet(), minkunet(stem_convolutions=2)
POINTS = spvcnn()
SECOND = detector()
TRUNK = {n.removeprefix("backbone_3d."): v for n, v in SECOND.items() if "_3d." in n}
HEAD = {"classifier.0.weight": torch.ones(3, 6), "classifier.0.bias": torch.ones(3)}
DETECTOR = {"dense_head.conv_cls.weight": torch.ones(18, 512, 1, 1), "global_step": torch.ones(1)}


def calibrated(encoder: dict[str, Tensor]) -> dict[str, Any]:
    """A checkpoint as NCLR's trainer leaves it: its image encoder and heads beside a network."""
    linear = {"weight": torch.ones(64, 64), "bias": torch.ones(64)}
    norm = {
        **dict.fromkeys(("weight", "bias", "running_mean", "running_var"), torch.ones(64)),
        "num_batches_tracked": torch.tensor(3),
    }
    beside = {
        "img_encoder.encoder.conv1.weight": torch.ones(64, 3, 7, 7),
        "img_encoder.encoder.layer1.0.conv1.weight": torch.ones(64, 64, 1, 1),
        "img_encoder.encoder.fc.weight": torch.ones(10, 2048),
        "img_encoder.decoder.0.weight": torch.ones(64, 2048, 1, 1),
        "img_encoder.decoder.0.bias": torch.ones(64),
        "pc_conv_before_attn.weight": torch.ones(64, 64, 1),
        "img_conv_before_attn.weight": torch.ones(64, 64, 1, 1),
    }
    for fuse in ("i2p_fuse_layer", "p2i_fuse_layer"):
        for one in ("query", "key", "value"):
            beside |= prefixed(linear, f"{fuse}.{one}.")
    for head, ones in (("pc_score_layer", (1,)), ("img_score_layer", (1, 1))):
        for number, width in ((0, 64), (3, 64), (6, 1)):
            beside[f"{head}.{number}.weight"] = torch.ones(width, 64, *ones)
        beside |= prefixed(norm, f"{head}.1.") | prefixed(norm, f"{head}.4.")
    return {
        "state_dict": beside | prefixed(encoder, "encoder."),
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 49, "iters": 7, "config": {"DATASET": "nuscenes"},
    }  # fmt: skip


CALIBRATED = {
    "img_encoder", "pc_conv_before_attn", "img_conv_before_attn", "i2p_fuse_layer",
    "p2i_fuse_layer", "pc_score_layer", "img_score_layer", "optimizer", "epoch", "iters", "config",
}  # fmt: skip


def other(state: dict[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    return from_ours(state, naming)


# Content of the file; the network that must come out; naming, entry, prefix; what is left out.
FILES: dict[str, tuple[Any, dict[str, Tensor], str, str, str, set[str]]] = {
    "ALSO, flat": (other(ONE, Naming.TORCHSPARSE), ONE, "torchsparse", "", "", set()),
    "ALSO, Lightning": (
        {
            "state_dict": prefixed(other(TWO, Naming.TORCHSPARSE) | HEAD, "backbone.")
            | {"decoder.fc_out.weight": torch.ones(2, 2)},
            "epoch": 199,
            "optimizer_states": [{}],
        },
        TWO, "torchsparse", "state_dict", "backbone.",
        {"classifier", "decoder", "epoch", "optimizer_states"},
    ),
    "ALSO, downstream": (
        {"state_dict": prefixed(other(POINTS, Naming.TORCHSPARSE) | HEAD, "net.")},
        POINTS, "torchsparse", "state_dict", "net.", {"classifier"},
    ),
    "ALSO, SECOND": (
        prefixed(SECOND, "model.") | {"model.global_step": torch.ones(1)},
        SECOND, "openpcdet", "", "model.", {"global_step"},
    ),
    "NCLR, SegContrast": (
        {
            "state_dict": prefixed(other(TWO, Naming.SEGCONTRAST), "encoder.")
            | {"encoder.final.0.weight": torch.ones(3, 6), "encoder.final.0.bias": torch.ones(3)}
            | {"img_encoder.encoder.conv1.weight": torch.ones(2)},
            "iters": 7,
        },
        TWO, "segcontrast", "state_dict", "encoder.", {"final", "img_encoder", "iters"},
    ),
    "NCLR, whole trainer, MinkUNet": (
        calibrated(other(ONE, Naming.TORCHSPARSE) | HEAD),
        ONE, "torchsparse", "state_dict", "encoder.", {*CALIBRATED, "classifier"},
    ),
    "NCLR, whole trainer, SPVCNN": (
        calibrated(other(POINTS, Naming.TORCHSPARSE) | HEAD),
        POINTS, "torchsparse", "state_dict", "encoder.", {*CALIBRATED, "classifier"},
    ),
    "NCLR, whole trainer, BEVNet": (
        calibrated(SECOND | {"final.weight": torch.ones(64, 512, 1, 1),
                             "final.bias": torch.ones(64)}),
        SECOND, "openpcdet", "state_dict", "encoder.", {*CALIBRATED, "final"},
    ),
    "SLidR": (
        {"model_points": ONE | {"final.kernel": torch.ones(6, 3), "final.bias": torch.ones(1, 3)},
         "model_images": {"encoder.conv1.weight": torch.ones(2)}, "config": {"voxel_size": 0.1}},
        ONE, "minkowski", "model_points", "", {"final", "model_images", "config"},
    ),
    "OLIVINE": (
        {"state_dict": prefixed(ONE | {"final_class_level.kernel": torch.ones(6, 3)},
                                "model_points.")
         | {"model_images.decoder.weight": torch.ones(2), "vmf_distributions.0.mu": torch.ones(2)}},
        ONE, "minkowski", "state_dict", "model_points.",
        {"final_class_level", "model_images", "vmf_distributions"},
    ),
    "OLIVINE, VoxelNet": (
        {"model_points": TRUNK | {"final.weight": torch.ones(64, 1, 1, 1, 128),
                                  "final_class_level.weight": torch.ones(64, 1, 1, 1, 128)}},
        TRUNK, "voxelnet", "model_points", "", {"final", "final_class_level"},
    ),
    "DDP in a trainer": (
        {"model": prefixed(ONE, "module.trunk.2.") | {"module.head.weight": torch.ones(2)},
         "optimizer": {}, "epoch": 1, "train_criterion": {}},
        ONE, "minkowski", "model", "module.trunk.2.",
        {"module", "optimizer", "epoch", "train_criterion"},
    ),
    "mmdetection3d, torchsparse": (
        {"meta": {"epoch": 36}, "optimizer": {}, "state_dict":
         other(TWO, Naming.MMDET3D_TORCHSPARSE) | {"decode_head.cls_seg.weight": torch.ones(19, 6),
                                                   "decode_head.cls_seg.bias": torch.ones(19)}},
        TWO, "mmdet3d_torchsparse", "state_dict", "", {"meta", "optimizer", "decode_head"},
    ),
    "mmdetection3d, MinkowskiEngine": (
        {"state_dict": other(TWO, Naming.MMDET3D_MINKOWSKI)},
        TWO, "mmdet3d_minkowski", "state_dict", "", set(),
    ),
    "mmdetection3d, spconv": (
        {"state_dict": other(TWO, Naming.MMDET3D_SPCONV)},
        TWO, "mmdet3d_spconv", "state_dict", "", set(),
    ),
    "OpenPCDet, spconv 2": (
        {"model_state": SECOND | DETECTOR, "optimizer_state": {}, "epoch": 80, "it": 1,
         "version": "pcdet+0.6.0"},
        SECOND, "openpcdet", "model_state", "",
        {"dense_head", "global_step", "optimizer_state", "epoch", "it", "version"},
    ),
    "OpenPCDet, spconv 1": (
        {"model_state": convert_layout(SECOND, SpconvLayout.KRSC, SpconvLayout.RSCK) | DETECTOR},
        SECOND, "openpcdet", "model_state", "", {"dense_head", "global_step"},
    ),
    "BEVContrast, VoxelNet": (
        {"state_dict": prefixed(convert_layout(SECOND, SpconvLayout.KRSC, SpconvLayout.RSKC)
                                | {"final.weight": torch.ones(64, 512, 1, 1)}, "encoder.")},
        SECOND, "openpcdet", "state_dict", "encoder.", {"final"},
    ),
    "OpenPCDet, 3-D backbone alone": (
        {"model_state": prefixed(TRUNK, "backbone_3d.")},
        TRUNK, "openpcdet", "model_state", "", set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_origin(tmp_path: Path, name: str) -> None:
    content, expected, naming, entry, prefix, left_out = FILES[name]
    torch.save(content, tmp_path / "weights.pth")
    found = read_network(tmp_path / "weights.pth")
    assert same(found.state, expected)
    assert (found.naming, found.entry, found.prefix) == (naming, entry, prefix)
    assert set(found.left_out) == left_out
    assert found.source
    assert found.kind == kind_of(expected)


def test_a_file_of_lidarssl_brings_its_card(tmp_path: Path) -> None:
    card = checkpoints.Card(checkpoints.Architecture("lidarssl.backbones.minkunet.MinkUNet"))
    checkpoints.save(tmp_path, ONE, card)
    found = read_network(tmp_path)
    assert found.card == card
    assert found.source == "lidarssl"
    assert same(found.state, ONE)


def test_safetensors_of_others(tmp_path: Path) -> None:
    save_file(other(ONE, Naming.TORCHSPARSE), tmp_path / "also.safetensors")
    found = read_network(tmp_path / "also.safetensors")
    assert found.card is None
    assert same(found.state, ONE)


@pytest.mark.parametrize(
    ("state", "kind"),
    [(ONE, "MinkUNet"), (POINTS, "Spvcnn"), (TRUNK, "VoxelNet"), (SECOND, "Second"), (HEAD, "")],
)
def test_kinds(state: dict[str, Tensor], kind: str) -> None:
    assert kind_of(state) == kind


def test_two_networks_need_a_choice() -> None:
    student, teacher = ONE, {name: value + 1 for name, value in ONE.items()}
    state = prefixed(student, "student.") | prefixed(teacher, "teacher.")
    with pytest.raises(ConfigError, match=r"2 networks, under the prefixes 'student.', 'teacher.'"):
        find_network(state, PATH)
    found = find_network(state, PATH, prefix="teacher.")
    assert same(found.state, teacher)
    assert found.left_out == {"student": f"{len(student)} tensors"}
    with pytest.raises(DataError, match=r"under the prefix 'teachers.'"):
        find_network(state, PATH, prefix="teachers.")


def test_a_layout_that_the_file_does_not_tell() -> None:
    state = {
        "conv_input.0.weight": torch.randn(3, 3, 3, 16, 16),
        "conv_input.1.weight": torch.ones(16),
    }
    with pytest.raises(ConfigError, match="RSKC or RSCK"):
        find_network(state, PATH)
    found = find_network(state, PATH, layout=SpconvLayout.RSCK)
    expected = state["conv_input.0.weight"].permute(4, 0, 1, 2, 3)
    assert torch.equal(found.state["conv_input.0.weight"], expected)


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"backbone.layer1.0.conv1.weight": torch.ones(2)}, r"backbone \(1 tensor\)"),
        (
            {f"blocks.{i}.w": torch.ones(1) for i in range(9)} | {"cls": torch.ones(1)},
            r"blocks \(9 tensors\), cls \(1 tensor\)",
        ),
    ],
)
def test_another_network_is_refused(state: dict[str, Tensor], problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        find_network(state, PATH)
    assert caught.value.path == PATH
    assert "SECOND" in (caught.value.remedy or "")


def test_a_key_too_many_names_the_closest_and_the_file() -> None:
    state = other(ONE, Naming.TORCHSPARSE) | {"stage1.1.net.6.kernel": torch.ones(27, 6, 6)}
    with pytest.raises(DataError, match=r"stage1.1.net.6.kernel") as caught:
        find_network(state, PATH)
    assert caught.value.path == PATH
    assert "did you mean" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("state", "arguments"),
    [(ONE, {}), (TWO, {"stem_convolutions": 2}), (minkunet(kernel_size=5), {"kernel_size": 5})],
)
def test_weights_tell_widths_and_depths(
    state: dict[str, Tensor], arguments: dict[str, Any]
) -> None:
    told = told_arguments(find_network(state, PATH))
    for name, value in ({"stem_convolutions": 1, "kernel_size": 3} | SMALL | arguments).items():
        if name != "inputs":
            assert told[name] == (list(value) if isinstance(value, tuple) else value), name
    assert not {"rule", "voxel_size", "inputs"} & told.keys()


GRID: dict[str, Any] = {"point_range": (0, 0, 0, 3.2, 3.2, 3), "voxel_size": (0.1, 0.1, 0.1)}
TRUNKS: list[dict[str, Any]] = [
    {"channels": (4, 6, 8, 8), "trunk_channels": 10},
    {"channels": (4, 6, 8, 10), "residual": True},
]
PLANE: dict[str, Any] = {
    "layers": (1, 2, 0),
    "strides": (1, 2, 2),
    "plane_channels": (4, 6, 8),
    "up_channels": (5, 4, 3),
}


@pytest.mark.parametrize("arguments", TRUNKS)
@pytest.mark.parametrize("added_height", [0, 5])
def test_weights_of_detectors_tell_widths_and_depths(
    arguments: dict[str, Any], added_height: int
) -> None:
    trunk = VoxelNet(**GRID, **arguments, added_height=added_height).state_dict()
    both = Second(**GRID, **arguments, **PLANE, added_height=added_height).state_dict()
    for state, built_with in ((trunk, arguments), (both, arguments | PLANE)):
        network = find_network(state, PATH)
        check_whole(network)
        told = told_arguments(network)
        for name, value in built_with.items():
            assert told[name] == (list(value) if isinstance(value, tuple) else value), name
        assert {"point_range", "voxel_size", "inputs"} <= set(missing_arguments(network))


def test_our_detectors_have_the_keys_of_openpcdet() -> None:
    def shapes(module: torch.nn.Module, prefix: str = "") -> dict[str, tuple[int, ...]]:
        return {prefix + name: tuple(v.shape) for name, v in module.state_dict().items()}

    wide = {"residual": True, "channels": (16, 32, 64, 128)}
    with torch.device("meta"):
        assert shapes(Second()) == trunk_shapes() | plane_shapes()
        assert shapes(Second(**wide)) == trunk_shapes(residual=True) | plane_shapes()
        assert shapes(VoxelNet(), "backbone_3d.") == trunk_shapes()


def test_settings_of_slidr_tell_the_voxels(tmp_path: Path) -> None:
    config = {"voxel_size": 0.1, "cylindrical_coordinates": False, "lr": 0.5}
    state = MinkUNet(**SMALL | {"inputs": PointInputs()}).state_dict()
    torch.save({"model_points": state, "config": config}, tmp_path / "slidr.pt")
    network = read_network(tmp_path / "slidr.pt")
    told = told_arguments(network)
    assert (told["rule"], told["voxel_size"]) == ("slidr_cartesian", 0.1)
    assert told["inputs"] == {"columns": ["intensity"], "reduce": "first"}
    assert not missing_arguments(network)
    config = {"voxel_size": [0.1, 0.1, 0.2], "cylindrical_coordinates": False}
    torch.save({"model_points": TRUNK, "config": config}, tmp_path / "slidr.pt")
    told = told_arguments(read_network(tmp_path / "slidr.pt"))
    assert told["voxel_size"] == [0.1, 0.1, 0.2]
    assert told["inputs"] == {"columns": ["x", "y", "z", "intensity"], "reduce": "mean"}
    assert "rule" not in told


@pytest.mark.parametrize("state", [ONE, TWO, POINTS, TRUNK, SECOND])
def test_a_whole_network_passes_and_a_lost_key_does_not(state: dict[str, Tensor]) -> None:
    check_whole(find_network(state, PATH))
    lost = [name for name in state if name.endswith(("running_var", ".kernel", "weight"))][-1]
    less = {name: value for name, value in state.items() if name != lost}
    with pytest.raises(DataError, match=r"not whole|is missing") as caught:
        check_whole(find_network(less, PATH))
    assert caught.value.path == PATH


def test_a_network_that_would_not_fit_into_memory_is_not_built() -> None:
    """Widths come from the file; a few bytes must not ask for terabytes."""
    state = {name: value for name, value in ONE.items() if "block1.0" not in name}
    huge = torch.ones(1, 1).expand(27, 4, 10**7)
    with pytest.raises(DataError):
        check_whole(find_network(state | {"block1.0.conv1.kernel": huge}, PATH))


def write_bomb(path: Path) -> None:
    torch.save({"state_dict": ONE, "config": Bomb(path.with_name("exploded"))}, path)


def write_truncated(path: Path) -> None:
    torch.save(ONE, path)
    path.write_bytes(path.read_bytes()[:-2000])


HOSTILE = {
    "bomb.pt": write_bomb,
    "pickle.pt": lambda path: path.write_bytes(pickle.dumps(Bomb(path.with_name("exploded")))),
    "truncated.pt": write_truncated,
    "list.pt": lambda path: torch.save([ONE], path),
    "tensor.pt": lambda path: torch.save(torch.ones(3), path),
    "module.pt": lambda path: torch.save(MinkUNet(**SMALL), path),
    "text.pt": lambda path: path.write_text("weights"),
    "empty.pt": lambda path: path.write_bytes(b""),
    "header.safetensors": lambda path: path.write_bytes(b"\xff" * 7 + b"\x7f{}"),
    "truncated.safetensors": lambda path: (
        save_file(ONE, path), path.write_bytes(path.read_bytes()[:-5])
    ),
    "missing.pt": lambda path: None,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_and_nothing_is_run(tmp_path: Path, name: str) -> None:
    HOSTILE[name](tmp_path / name)
    with pytest.raises(DataError) as caught:
        read_network(tmp_path / name)
    assert caught.value.path == tmp_path / name
    assert caught.value.remedy
    assert not (tmp_path / "exploded").exists()


EDITS = st.lists(
    st.tuples(st.integers(0, 10**6), st.none() | st.lists(st.integers(0, 9), max_size=5)),
    min_size=1, max_size=4,
)  # fmt: skip
WHOLE = [ONE, TWO, other(ONE, Naming.TORCHSPARSE), other(TWO, Naming.MMDET3D_SPCONV), TRUNK]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150)
@given(st.integers(0, len(WHOLE) - 1), EDITS)
def test_wrong_shapes_and_lost_keys_are_errors(
    which: int, edits: list[tuple[int, list[int] | None]]
) -> None:
    state = WHOLE[which]
    changed = dict(state)
    for position, shape in edits:
        name = sorted(state)[position % len(state)]
        if shape is None:
            changed.pop(name, None)
        else:
            changed[name] = torch.zeros(shape)
    differ = {n for n in state if n not in changed or changed[n].shape != state[n].shape}
    if all(name.endswith("num_batches_tracked") and name not in changed for name in differ):
        check_whole(find_network(changed, PATH))
        return
    with pytest.raises(DataError) as caught:
        check_whole(find_network(changed, PATH))
    assert caught.value.path == PATH


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=9), st.lists(st.integers(0, 4), max_size=5), max_size=5))
def test_any_tensors_are_no_network(shapes: dict[str, list[int]]) -> None:
    with pytest.raises(DataError, match="no lidar network"):
        find_network({name: torch.zeros(s) for name, s in shapes.items()}, PATH)
