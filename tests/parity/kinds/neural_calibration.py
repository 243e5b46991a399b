"""NCLR from the features of both encoders to its terms and their gradients."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.frame import Matches
from lidarssl.images.unet import SmallUNet
from lidarssl.methods.nclr import Nclr
from lidarssl.methods.nclr_settings import PoseTerm
from lidarssl.methods.soft_matching import Encoded
from parity.case import Case

INPUTS = {"voxel_feature", "image_feature", "pairing_points", "pairing_images", "R_data", "K_data"}
# Ours -> reference; the second attention of the reference gets no gradient.
MODULES = {
    "fusion.point_projection": "pc_conv_before_attn",
    "fusion.cell_projection": "img_conv_before_attn",
    "fusion.looks.0": "i2p_fuse_layer",
    "point_overlap": "pc_score_layer",
    "cell_overlap": "img_score_layer",
}
TERMS = {
    "contrast": "loss_contras",
    "fused": "loss_contras_fuse",
    "point_overlap": "loss_overlap_pc",
    "image_overlap": "loss_overlap_img",
}


def as_wide(channels: int) -> MinkUNet:
    """A backbone of that width, which is not asked: the features are given."""
    return MinkUNet(
        stem_channels=8, encoder_channels=(8, 8), decoder_channels=(8, channels), blocks=(1,) * 4
    )


class Recorded:
    """The draws of the reference, in the order in which it made those of a kind."""

    def __init__(self, case: Case) -> None:
        draws = {name: case.arrays[name] for name in sorted(case.arrays) if name.startswith("draw")}
        kinds: dict[str, list[Tensor]] = {"randint": [], "choice": [], "randperm": []}
        for name, values in draws.items():
            kinds[name.split("_", 1)[1]].append(torch.from_numpy(values.astype(np.int64)))
        images = len(case.arrays["image_feature"])
        self.of_tokens, self.of_repeats = kinds["randint"][:images], kinds["randint"][images:]
        fused, plain = kinds["choice"]
        self.of_pairs = [plain, fused]
        self.of_keypoints = kinds["randperm"]

    def tokens(self, image: int, count: int, number: int) -> Tensor:
        return self.of_tokens[image]

    def pairs(self, count: int, number: int) -> Tensor:
        chosen = self.of_pairs.pop(0)
        assert len(chosen) == number
        return chosen

    def keypoints(self, image: int, count: int, number: int) -> Tensor:
        return self.of_keypoints.pop(0)[:number]

    def repeats(self, image: int, count: int, number: int) -> Tensor:
        chosen = self.of_repeats.pop(0)
        assert len(chosen) == number
        return chosen


def recognises(case: Case) -> bool:
    return "BEVTrainer" in case.reference and case.array_names >= INPUTS


def check(case: Case) -> None:
    args, losses = case.args, case.manifest["losses"]
    epochs = int(args["cur_epoch"]), int(args["pose_epoch"])
    method = _method(case)
    # Epochs of the run do not matter, only which side of the start this one is on.
    method.progress = 0.5
    method.pose.start = 0.5 if epochs[0] >= epochs[1] else 0.75
    scene = _scene(case)
    number = int(args["kpt_pc_num"]) * int(args["batch"])
    output = method.step(scene, Recorded(case), number)
    for name, reference in TERMS.items():
        np.testing.assert_allclose(output.terms[name].item(), losses[reference], rtol=1e-4)
    taught = "pose" in output.terms
    assert taught == (epochs[0] >= epochs[1])
    if taught:
        np.testing.assert_allclose(output.terms["pose"].item(), losses["loss_pose"], rtol=1e-2)
    np.testing.assert_allclose(output.loss.item(), losses["total"], rtol=1e-2 if taught else 1e-4)
    output.loss.backward()
    _check_gradients(case, method, scene, 5e-2 if taught else 1e-3)
    _check_pose(case, method)


def _method(case: Case) -> Nclr:
    channels = case.arrays["voxel_feature"].shape[1]
    method = Nclr(
        as_wide(channels), SmallUNet(8), channels, float(case.args["temperature"]),
        pose=PoseTerm(keypoints=int(case.args["num_keypoints"]), signed=False), attention="shared",
        head="backbone",
    )  # fmt: skip
    weights = _weights(case)
    state = {}
    for key, value in method.state_dict().items():
        ours = next((name for name in MODULES if key.startswith(f"{name}.")), None)
        if ours is None:
            state[key] = value
            continue
        given = weights[MODULES[ours] + key.removeprefix(ours)]
        state[key] = torch.from_numpy(given.copy()).reshape(value.shape)
    method.load_state_dict(state)
    return method.train()


def _weights(case: Case) -> dict[str, np.ndarray]:
    overrides = dict(case.manifest.get("overrides", {}))
    identities = [key for key, rule in overrides.items() if rule == "identity"]
    rest = {key: rule for key, rule in overrides.items() if rule != "identity"}
    weights = Case(case.folder, {**case.manifest, "overrides": rest}).weights()
    for key in identities:
        shape = weights[key].shape
        weights[key] = np.eye(shape[0], shape[1], dtype=np.float32).reshape(shape)
    return weights


def _scene(case: Case) -> Encoded:
    arrays = case.arrays
    clouds = [arrays[f"points_{frame}"] for frame in range(int(case.args["batch"]))]
    starts = np.cumsum([0, *(len(cloud) for cloud in clouds)])
    pairs = torch.from_numpy(arrays["pairing_images"].astype(np.int64))
    cameras = int(case.args["cameras"])
    pose = torch.eye(4).repeat(len(clouds) * cameras, 1, 1)
    pose[:, :3, :3] = torch.from_numpy(arrays["R_data"]).flatten(0, 1)
    pose[:, :3, 3] = torch.from_numpy(arrays["T_data"]).flatten(0, 1)
    return Encoded(
        features=torch.from_numpy(arrays["voxel_feature"]).requires_grad_(),
        positions=torch.from_numpy(np.concatenate(clouds)[:, :3]),
        tokens=[torch.arange(*pair) for pair in itertools.pairwise(starts)],
        maps=torch.from_numpy(arrays["image_feature"]).requires_grad_(),
        frame_of_image=[image // cameras for image in range(len(pose))],
        pairs=Matches(
            torch.from_numpy(arrays["pairing_points"].astype(np.int64)), *pairs.unbind(1)
        ),
        intrinsics=torch.from_numpy(arrays["K_data"]).flatten(0, 1),
        camera_from_lidar=pose,
    )


def _check_gradients(case: Case, method: Nclr, scene: Encoded, rtol: float) -> None:
    parameters = dict(method.named_parameters())
    norms = case.manifest["grad_norms_params"]
    largest = max(norm for norm in norms.values() if norm is not None)
    for ours, reference in MODULES.items():
        for key, parameter in parameters.items():
            if key.startswith(f"{ours}."):
                assert parameter.grad is not None, key
                norm = norms[reference + key.removeprefix(ours)]
                # A bias that every key shares leaves a softmax alone: its gradient is rounding.
                np.testing.assert_allclose(
                    parameter.grad.norm().item(), norm, rtol=rtol, atol=1e-7 * largest, err_msg=key
                )
    unused = {key for key, norm in norms.items() if norm is None}
    assert all(key.startswith("p2i_fuse_layer.") for key in unused)
    for name, tensor in (("voxel", scene.features), ("image", scene.maps)):
        assert tensor.grad is not None
        np.testing.assert_allclose(
            tensor.grad.norm().item(), case.arrays[f"grad_{name}_norm"], rtol=rtol
        )
    rows = case.arrays["grad_voxel_rows_first200"]
    _close(scene.features.grad[: len(rows)], rows, rtol)  # type: ignore[index]
    part = case.arrays["grad_image_item0_first8ch"]
    _close(scene.maps.grad[0, : len(part)], part, rtol)  # type: ignore[index]


def _close(actual: Tensor, expected: np.ndarray, rtol: float) -> None:
    difference = np.linalg.norm(actual.numpy() - expected)
    assert difference <= rtol * np.linalg.norm(expected)


def _check_pose(case: Case, method: Nclr) -> None:
    """Keypoints, their soft matches and the pose that the reference makes of them."""
    seen: dict[str, Any] = {}
    kept = method.keypoints

    def keypoints(*arguments: Any) -> Any:
        seen["keypoints"] = kept(*arguments)
        return seen["keypoints"]

    method.keypoints = keypoints  # type: ignore[method-assign]
    scene = _scene(case)
    with torch.no_grad():
        method.step(scene, Recorded(case), int(case.args["kpt_pc_num"]) * int(case.args["batch"]))
    found = seen["keypoints"]
    np.testing.assert_array_equal(found.position.numpy(), case.arrays["pnp_x"])
    homogeneous = F.pad(found.cell, (0, 1), value=1.0)
    at_depth_one = (torch.linalg.inv(scene.intrinsics) @ homogeneous.mT).mT[..., :2]
    np.testing.assert_allclose(at_depth_one.numpy(), case.arrays["pnp_y"], atol=1e-3)
    assert isinstance(method, nn.Module)
