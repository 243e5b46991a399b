"""CLCP: what a step sees, its temperature, its frozen parts, and what its vectors depend on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.backbones.voxelize import PointInputs
from lidarssl.batching import collate
from lidarssl.checkpoints.minkunet_names import from_ours
from lidarssl.checkpoints.minkunet_schemes import Naming
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Batch, Field, Frame
from lidarssl.images.vit import ViT
from lidarssl.methods.clcp import Clcp, LidarBranch, PairView
from lidarssl.methods.pooling import AttentionPool, mean_of_frames, softmax_of_frames
from lidarssl.transforms.base import Compose, sample_generator
from lidarssl.transforms.one_camera import KeepMatched
from lidarssl.transforms.paired import MatchPixels
from lidarssl.transforms.square_crop import SquareCrop
from methods.small import backbone, batch_of, clcp, frames, vit, waffleiron
from toys import MemoryDataset

EMPTY = torch.zeros(19)


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def batch(method: Clcp, count: int = 4) -> Batch:
    return batch_of(method, frames(method, count))


def loss_by_loops(image: torch.Tensor, lidar: torch.Tensor, temperature: float) -> float:
    """In float64, pair by pair."""
    image, lidar = image.double(), lidar.double()
    rows = [[float(a @ b) / temperature for b in lidar] for a in image]
    total = 0.0
    for i in range(len(rows)):
        total += math.log(sum(math.exp(value) for value in rows[i])) - rows[i][i]
        column = [row[i] for row in rows]
        total += math.log(sum(math.exp(value) for value in column)) - rows[i][i]
    return total / 2 / len(rows)


@pytest.mark.parametrize("form", ["clip", "published"])
def test_loss_is_the_cross_entropy_of_both_directions(form: str) -> None:
    method = clcp(temperature_form=form, temperature=0.07)
    output = method.training_step(batch(method), draws())
    assert output.pairs is not None
    temperature = 0.07 if form == "clip" else math.exp(0.07)
    expected = loss_by_loops(output.pairs.image, output.pairs.lidar, temperature)
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)
    assert output.terms["temperature"].item() == pytest.approx(temperature, rel=1e-6)


def test_the_factor_of_the_cosines_never_passes_100() -> None:
    method = clcp()
    with torch.no_grad():
        method.log_temperature.fill_(-9.0)
    method.training_step(batch(method), draws())
    assert method.scale().item() == pytest.approx(100, rel=1e-5)


def test_terms_count_pairs_that_find_each_other() -> None:
    method = clcp()
    one = batch(method)
    output = method.training_step(one, draws())
    assert output.pairs is not None
    cosines = output.pairs.image.numpy() @ output.pairs.lidar.numpy().T
    found = np.mean(cosines.argmax(1) == np.arange(4))
    assert output.terms["image_finds_scan"].item() == pytest.approx(found)
    found = np.mean(cosines.argmax(0) == np.arange(4))
    assert output.terms["scan_finds_image"].item() == pytest.approx(found)


def test_a_vector_depends_on_its_own_frame_alone() -> None:
    method = clcp().eval()
    some = frames(method)
    whole = method.training_step(batch_of(method, some), draws()).pairs
    other = method.training_step(batch_of(method, [some[2], some[0]]), draws()).pairs
    assert whole is not None
    assert other is not None
    for name in ("image", "lidar"):
        rows = getattr(whole, name)
        torch.testing.assert_close(getattr(other, name), rows[[2, 0]], atol=1e-6, rtol=0)


def test_the_image_vector_is_that_of_the_class_token() -> None:
    method = clcp().eval()
    one = batch(method)
    assert one.images is not None
    encoder = method.image_encoder
    assert isinstance(encoder, ViT)
    token = encoder.tokens((one.images - encoder.mean) / encoder.std)[:, 0]
    expected = F.normalize(method.image_head(token), dim=1)
    torch.testing.assert_close(method.embed_images(one), expected)


def test_linear_projection_commutes_with_the_mean() -> None:
    method = clcp().eval()
    one = batch(method)
    tokens = method.backbone(one.points)
    means = mean_of_frames(tokens.features, tokens.batch, 4)
    expected = F.normalize(method.lidar_head(means), dim=1)
    torch.testing.assert_close(method.embed_scans(one), expected, atol=1e-5, rtol=1e-5)


def test_frozen_lidar_encoder_stays_as_it_is() -> None:
    method = clcp(lidar=LidarBranch(frozen=True)).train()
    before = {name: value.clone() for name, value in method.backbone.state_dict().items()}
    method.training_step(batch(method), draws()).loss.backward()
    trained = [p for p in method.parameters() if p.requires_grad]
    torch.optim.SGD(trained, lr=1.0).step()
    assert not any(module.training for module in method.backbone.modules())
    for name, value in method.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is not None for parameter in method.lidar_head.parameters())


def test_eval_mode_trains_weights_but_not_statistics() -> None:
    statistics, weights = {}, {}
    for mode in ("train", "eval"):
        method = clcp(lidar=LidarBranch(mode=mode)).train()
        state = {name: value.clone() for name, value in method.backbone.state_dict().items()}
        method.training_step(batch(method), draws()).loss.backward()
        trained = [p for p in method.parameters() if p.requires_grad]
        torch.optim.SGD(trained, lr=1.0).step()
        changed = {
            name
            for name, value in method.backbone.state_dict().items()
            if not torch.equal(value, state[name])
        }
        statistics[mode] = {name for name in changed if "running_" in name}
        weights[mode] = changed - statistics[mode]
    assert statistics["train"]
    assert not statistics["eval"]
    assert weights["eval"]


def test_a_frozen_student_is_refused() -> None:
    encoder = vit()
    encoder.freeze()
    with pytest.raises(ConfigError, match="student") as caught:
        Clcp(backbone(), encoder, view=PairView(image_size=(32, 48)))
    assert caught.value.field == "method.image_encoder.frozen"


def test_lidar_encoder_starts_from_a_checkpoint(tmp_path: Path) -> None:
    source = backbone()
    with torch.no_grad():
        for value in source.parameters():
            value.add_(0.1)
    path = tmp_path / "weights.pt"
    torch.save({"model_points": source.state_dict()}, path)
    method = clcp(lidar=LidarBranch(weights=path))
    for name, value in source.state_dict().items():
        assert torch.equal(method.backbone.state_dict()[name], value), name


def test_frames_of_one_drive_can_be_left_out_as_negatives() -> None:
    plain, spared = clcp(same_sequence="negative"), clcp(same_sequence="ignored")
    spared.load_state_dict(plain.state_dict())
    one = batch(plain)  # all four frames are of one drive
    assert plain.eval().training_step(one, draws()).loss > 0
    nothing = spared.eval().training_step(one, draws())
    assert nothing.loss == 0
    assert nothing.terms["negatives"] == 0
    assert plain.training_step(one, draws()).terms["negatives"] == 3
    ids = tuple(
        type(first)(first.dataset, f"drive{number // 2}", first.token)
        for number, first in enumerate(one.ids)
    )
    two_drives = Batch(ids, one.points, one.images, one.frame_of_image)
    output = spared.training_step(two_drives, draws())
    assert output.terms["negatives"] == 2
    assert output.pairs is not None
    cosines = output.pairs.image.double() @ output.pairs.lidar.double().T / 0.07
    expected = 0.0
    for i in range(4):
        kept = [j for j in range(4) if j == i or j // 2 != i // 2]
        expected -= float(cosines[i, i] - torch.logsumexp(cosines[i, kept], 0)) / 8
        expected -= float(cosines[i, i] - torch.logsumexp(cosines[kept, i], 0)) / 8
    assert output.loss.item() == pytest.approx(expected, rel=1e-5)


def test_mlp_and_attention_train() -> None:
    method = clcp(lidar=LidarBranch(projection="mlp", pooling="attention"))
    torch.manual_seed(0)
    method.training_step(batch(method), draws()).loss.backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize("sizes", [(3, 0, 2), (0, 0), (1, 4, 4, 1)])
def test_pooling_is_that_of_each_frame_by_itself(sizes: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(sum(sizes), 5, generator=generator, dtype=torch.float64)
    batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    pool = AttentionPool(5).double()
    means, weighted = mean_of_frames(features, batch, len(sizes)), pool(features, batch, len(sizes))
    for number, part in enumerate(features.split(sizes)):
        if not len(part):
            assert not means[number].any()
            assert not weighted[number].any()
            continue
        torch.testing.assert_close(means[number], part.mean(0))
        weights = pool.query(part)[:, 0].softmax(0)
        torch.testing.assert_close(weighted[number], (weights[:, None] * part).sum(0))


def test_softmax_stands_large_scores() -> None:
    scores = torch.tensor([1000.0, 999.0, -1000.0])
    found = softmax_of_frames(scores, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(found, torch.tensor([0.7310586, 0.2689414, 1.0]))


def view(**changes: object) -> list[Frame]:
    dataset = MemoryDataset(6, 300, cameras=2)
    arguments = {"side": 32, "image_size": (16, 16), **changes}
    transform = Compose(PairView(**arguments).transforms(True))  # type: ignore[arg-type]
    return [
        transform(dataset.load(frame, Field.IMAGES), sample_generator(0, 0, number))
        for number, frame in enumerate(dataset.frames("train"))
    ]


def test_a_view_is_one_camera_and_the_points_in_its_square() -> None:
    dataset = MemoryDataset(6, 300, cameras=2)
    names = set()
    for frame in view(facing="lidar"):
        (camera,) = frame.cameras
        names.add(camera.name)
        assert camera.image is not None
        assert camera.image.shape == (3, 16, 16)
        place = (camera.camera_from_lidar[:3, :3] @ frame.points.double().T).T
        pixels = place @ camera.intrinsics.T
        col, row = pixels[:, 0] / pixels[:, 2], pixels[:, 1] / pixels[:, 2]
        half = 0.5 + 1e-6
        assert ((col > -half) & (col < 15 + half) & (row > -half) & (row < 15 + half)).all()
        assert 0 < len(frame) < 300
        whole = dataset.load(frame.id, Field.IMAGES)
        assert all((whole.points == point).all(1).any() for point in frame.points)
        assert frame.matches is None
    assert names == {"front", "left"}


def test_squares_stay_inside_and_reach_every_corner() -> None:
    frame = MemoryDataset(1, 300).load(MemoryDataset(1).frames("train")[0], Field.IMAGES)
    frame = MatchPixels(0.1)(frame, np.random.default_rng(0))
    crop = SquareCrop(46, (46, 46), antialias=False)
    before, corners = frame.cameras[0], set()
    assert before.image is not None
    for seed in range(200):
        (camera,) = crop(frame, np.random.default_rng(seed)).cameras
        moved = before.intrinsics - camera.intrinsics
        left, top = int(moved[0, 2].round()), int(moved[1, 2].round())
        corners.add((top, left))
        assert camera.image is not None
        cut = before.image[:, top : top + 46, left : left + 46].float() / 255
        assert torch.allclose(camera.image, cut, atol=1e-6)
    assert {top for top, _ in corners} == set(range(3))
    assert {left for _, left in corners} == set(range(19))


def test_held_out_frames_are_cut_in_the_middle() -> None:
    dataset = MemoryDataset(2, 300)
    transform = Compose(PairView(side=32, image_size=(32, 32)).transforms(False))
    for seed in range(3):
        frame = transform(dataset.load(dataset.frames("val")[0]), np.random.default_rng(seed))
        intrinsics = frame.cameras[0].intrinsics
        assert intrinsics[0, 2] == 31.5 - 16
        assert intrinsics[1, 2] == 23.5 - 8


def test_a_square_without_points_is_a_bad_sample() -> None:
    dataset = MemoryDataset(1, 300)
    frame = dataset.load(dataset.frames("train")[0], Field.IMAGES)
    frame = frame.select(torch.zeros(300, dtype=torch.bool))
    none = MatchPixels(0.1, allow_none=True)(frame, np.random.default_rng(0))
    with pytest.raises(DataError, match="holds 1 point\n"):
        SquareCrop(32, (16, 16))(none, np.random.default_rng(0))
    with pytest.raises(DataError, match="no camera sees"):
        Compose(PairView().transforms(True)[1:])(none, np.random.default_rng(0))


def test_forgetting_matches_keeps_the_same_points() -> None:
    dataset = MemoryDataset(1, 300)
    frame = MatchPixels(0.1)(dataset.load(dataset.frames("train")[0]), np.random.default_rng(0))
    kept, forgotten = (
        KeepMatched(forget)(frame, np.random.default_rng(0)) for forget in (False, True)
    )
    assert kept.matches is not None
    assert forgotten.matches is None
    assert torch.equal(kept.points, forgotten.points)
    assert collate([forgotten]).matches is None


def test_a_scan_that_faces_its_camera_has_it_along_x() -> None:
    for frame, plain in zip(view(), view(facing="lidar"), strict=True):
        camera, other = frame.cameras[0], plain.cameras[0]
        ahead = camera.camera_from_lidar[2, :3]
        torch.testing.assert_close(ahead, torch.tensor([1.0, 0, 0], dtype=torch.float64))
        assert torch.equal(frame.points[:, 2], plain.points[:, 2])
        seen, as_before = (
            one.points.double() @ view.camera_from_lidar[:3, :3].T
            for one, view in ((frame, camera), (plain, other))
        )
        torch.testing.assert_close(seen, as_before, atol=1e-5, rtol=0)


def test_lidar_encoder_starts_from_a_file_of_mmdetection3d(tmp_path: Path) -> None:
    """Two convolutions in the stem, a classifier beside the network, kernels in another order."""
    options: dict[str, Any] = {
        "stem_channels": 8, "encoder_channels": (8, 16), "decoder_channels": (16, 8),
        "blocks": (1,) * 4, "stem_convolutions": 2, "rule": "also",
        "inputs": PointInputs(("x", "y", "z", "intensity")),
    }  # fmt: skip
    torch.manual_seed(3)
    source = MinkUNet(**options)
    state = from_ours(source.state_dict(), Naming.MMDET3D_TORCHSPARSE)
    assert "backbone.conv_input.1.net.0.kernel" in state
    head = {"decode_head.conv_seg.weight": torch.zeros(19, 8), "decode_head.conv_seg.bias": EMPTY}
    path = tmp_path / "mmdet3d.pth"
    torch.save({"meta": {"epoch": 36}, "state_dict": {**state, **head}}, path)
    method = clcp(backbone=MinkUNet(**options), lidar=LidarBranch(weights=path))
    for name, value in source.state_dict().items():
        assert torch.equal(method.backbone.state_dict()[name], value), name


def test_weights_of_another_lidar_encoder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"model_points": waffleiron().state_dict()}, path)
    with pytest.raises(DataError) as caught:
        clcp(lidar=LidarBranch(weights=path))
    assert caught.value.path == path
