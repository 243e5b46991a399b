"""What is particular to NCLR: its terms, when the pose teaches, its options, what it matches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.backbones.second import Second
from lidarssl.backbones.voxelize import VoxelGrid
from lidarssl.errors import ConfigError
from lidarssl.frame import Batch
from lidarssl.geometry.planar_search import fits
from lidarssl.images.resnet import ResNet
from lidarssl.methods.nclr import Nclr
from lidarssl.methods.nclr_settings import CalibrationView, PoseTerm, TermWeights, TokenSampling
from lidarssl.methods.soft_matching import StepDraws
from lidarssl.training.fit import fit
from lidarssl.training.settings import Training
from methods.small import backbone, batch_of, encoder, frames, nclr
from toys import MemoryDataset

SIZE = (32, 48)
EASY = PoseTerm(start=0.0, keypoints=16, thresholds=(0.0,), enough=6)
"""Every image has a pose, from the first step."""


def small(**changes: Any) -> Nclr:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nclr(SIZE, **changes).train()


def step(method: Nclr, batch: Batch, seed: int = 0) -> dict[str, float]:
    output = method.training_step(batch, torch.Generator().manual_seed(seed))
    return {"loss": output.loss.item()} | {k: v.item() for k, v in output.terms.items()}


def gradients(method: Nclr, batch: Batch) -> dict[str, Tensor]:
    method.zero_grad()
    method.training_step(batch, torch.Generator().manual_seed(0)).loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in method.named_parameters()
        if parameter.grad is not None
    }


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    method = small(pose=EASY, weights=TermWeights(0.25, 2.0, 0.5, 3.0, 1.5))
    found = step(method, batch_of(method, frames(method)))
    expected = (
        0.25 * found["contrast"] + 2 * found["fused"] + 0.5 * found["point_overlap"]
        + 3 * found["image_overlap"] + 1.5 * found["pose"]
    )  # fmt: skip
    assert found["pose"] > 0
    assert found["poses"] > 0
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_pose_teaches_after_its_start() -> None:
    method = small(pose=replace(EASY, start=0.5))
    batch = batch_of(method, frames(method))
    method.progress = 0.49
    before, untaught = step(method, batch), gradients(method, batch)
    method.progress = 0.5
    after, taught = step(method, batch), gradients(method, batch)
    assert "pose" not in before
    assert after["loss"] == pytest.approx(before["loss"] + after["pose"], rel=1e-5)
    # It is watched all the time.
    assert before["rotation_error"] == pytest.approx(after["rotation_error"], rel=1e-4)
    name = "fusion.looks.0.value.weight"
    assert not torch.allclose(untaught[name], taught[name], rtol=1e-3)
    assert all(torch.isfinite(gradient).all() for gradient in taught.values())


def test_the_trainer_says_how_much_of_the_run_is_done(tmp_path: Path) -> None:
    method, dataset = small(pose=replace(EASY, start=0.5)), MemoryDataset(8)
    training = Training(batch_size=2, steps=6, log_every=1, workers=0, accelerator="cpu")
    fit(
        method, dataset, dataset.frames("train"), method.needs, method.transforms(True), training,
        tmp_path / "run", "pretrain", progress=False,
    )  # fmt: skip
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert ["pose" in json.loads(line) for line in lines] == [False] * 3 + [True] * 3


def test_a_pose_without_weight_is_never_taught() -> None:
    method = small(pose=EASY, weights=TermWeights(pose=0.0))
    assert "pose" not in step(method, batch_of(method, frames(method)))


def test_learned_alignment_starts_as_the_cosine_and_learns() -> None:
    cosine, learned = small(), small(alignment="learned")
    batch = batch_of(cosine, frames(cosine))
    assert step(cosine, batch)["loss"] == pytest.approx(step(learned, batch)["loss"], rel=1e-6)
    assert gradients(learned, batch)["alignment"].abs().max() > 0
    # The score is symmetric, so the antisymmetric part of the parameter is without effect.
    assert learned.alignment is not None
    twist = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    learned.alignment.data += twist - twist.T
    assert step(cosine, batch)["loss"] == pytest.approx(step(learned, batch)["loss"], rel=1e-5)


def test_both_directions_of_attention_train_unless_shared() -> None:
    separate, shared = small(), small(attention="shared")
    assert (len(separate.fusion.looks), len(shared.fusion.looks)) == (2, 1)
    batch = batch_of(separate, frames(separate))
    for name, gradient in gradients(separate, batch).items():
        if name.startswith("fusion.looks.") and not name.endswith("key.bias"):
            assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_statistics_of_the_image_encoder(norm: str) -> None:
    method = small(image_encoder=ResNet(18), view=CalibrationView((64, 96)), image_norm=norm)
    batch = batch_of(method, frames(method))
    before = {k: v.clone() for k, v in method.image_encoder.state_dict().items()}
    step(method, batch)
    same = all(torch.equal(before[k], v) for k, v in method.image_encoder.state_dict().items())
    assert same is (norm == "frozen")
    method.eval()
    kept = {k: v.clone() for k, v in method.image_encoder.state_dict().items()}
    step(method, batch)
    assert all(torch.equal(kept[k], v) for k, v in method.image_encoder.state_dict().items())


@pytest.mark.parametrize(
    "sampling",
    [
        TokenSampling(64, replacement=True),
        TokenSampling(10_000),
        TokenSampling(64, positions="mean"),
        TokenSampling(64, pairs="last"),
        TokenSampling(64, pairs="first_point"),
    ],
)
def test_every_way_of_sampling_trains(sampling: TokenSampling) -> None:
    method = small(sampling=sampling, pose=EASY)
    found = gradients(method, batch_of(method, frames(method)))
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


def test_positions_are_those_of_first_points_or_means() -> None:
    first, mean = small(), small(sampling=TokenSampling(positions="mean"))
    batch = batch_of(first, frames(first))
    tokens = first.backbone(batch.points)
    expected = torch.stack(
        [
            batch.points.points[int((tokens.token_of_point == token).nonzero()[0])]
            for token in range(len(tokens.features))
        ]
    )
    torch.testing.assert_close(first.encode(batch).positions, expected)
    torch.testing.assert_close(mean.encode(batch).positions, tokens.positions)


def test_pairs_can_be_those_of_first_points_alone() -> None:
    every, first = small(), small(sampling=TokenSampling(pairs="first_point"))
    batch = batch_of(every, frames(every))
    assert 0 < len(first.encode(batch).pairs) < len(every.encode(batch).pairs)


def test_a_point_of_a_cell_projects_into_it() -> None:
    """Position, cell, intrinsics and pose of a scene belong together."""
    method = small()
    scene = method.encode(batch_of(method, frames(method)))
    pairs = scene.pairs
    own = (scene.camera_from_lidar[pairs.image, :3, :3] @ scene.positions[pairs.point][..., None])[
        ..., 0
    ] + scene.camera_from_lidar[pairs.image, :3, 3]
    image = (scene.intrinsics[pairs.image] @ own[..., None])[..., 0]
    found = image[:, :2] / image[:, 2:]
    cell = torch.stack([pairs.col, pairs.row], 1)
    distance = (found - cell).abs().amax(1)
    # Points share their token with others whose cells differ a little.
    assert (distance <= 0.501).float().mean() > 0.7
    assert scene.image_overlap().sum() == len(
        torch.unique(torch.stack([pairs.image, pairs.row, pairs.col]), dim=1).T
    )


def test_matches_of_a_trained_method() -> None:
    method = small()
    batch = batch_of(method, frames(method))
    found = method.match(batch)
    assert method.training
    assert batch.images is not None
    assert len(found) == len(batch.images)
    for number, image in enumerate(found):
        assert batch.frame_of_image is not None
        assert image.frame == batch.frame_of_image[number]
        assert len(image.positions) == len(image.pixel) == len(image.overlap) == 64
        assert ((image.overlap >= 0) & (image.overlap <= 1)).all()
        assert image.image_overlap.shape == (8, 12)
        assert (image.pixel >= 0).all()
        assert (image.pixel <= torch.tensor([11, 7])).all()
        assert ((image.certainty > 1 / 96 - 1e-6) & (image.certainty <= 1)).all()
    again = method.eval().match(batch)
    assert all(torch.equal(a.pixel, b.pixel) for a, b in zip(found, again, strict=True))


def test_fits_are_those_of_both_similarities() -> None:
    """Before and after points and cells have looked at each other; of the first points only."""
    method = small(
        sampling=TokenSampling(1100), temperature=0.2, alignment="learned",
        view=CalibrationView(SIZE, min_depth=0.1),
    )  # fmt: skip
    assert isinstance(method.backbone, MinkUNet)
    method.backbone.grid = VoxelGrid("slidr_cartesian", 0.2, method.backbone.grid.inputs)
    assert method.alignment is not None
    method.alignment.data += 0.3 * torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    batch = batch_of(method, frames(method, points=2000))
    found = method.match(batch)
    assert max(len(image.positions) for image in found) > 1024
    method.eval()
    with torch.no_grad():
        scene = method.encode(batch)
        draws = StepDraws(torch.Generator().manual_seed(0))
        fused = method.fuse(scene, torch.arange(len(scene.maps)), draws)
    form = (method.alignment.detach() + method.alignment.detach().T).double() / 2
    for number, image in enumerate(found):
        rows = (fused.image == number).nonzero()[:1024, 0]
        similarity = torch.zeros(len(rows), 8 * 12, dtype=torch.float64)
        for points, cells in (
            (scene.features[fused.token[rows]], scene.maps[number].flatten(1).T),
            (fused.points[rows], fused.cells[number]),
        ):
            points = points.double() / points.double().norm(dim=1, keepdim=True)
            cells = cells.double() / cells.double().norm(dim=1, keepdim=True)
            similarity += torch.einsum("nc,cd,md->nm", points, form, cells)
        assert image.fit.shape == (min(len(image.positions), 1024), 8, 12)
        assert torch.isfinite(image.fit).all()
        expected = fits(similarity / 0.2).view(-1, 8, 12).float()
        torch.testing.assert_close(image.fit, expected, rtol=1e-4, atol=1e-4)


def test_matches_do_not_read_the_truth() -> None:
    method = small()
    batch = batch_of(method, frames(method))
    assert batch.matches is not None
    assert batch.camera_from_lidar is not None
    blind = replace(
        batch, matches=batch.matches[torch.empty(0, dtype=torch.int64)],
        camera_from_lidar=torch.zeros_like(batch.camera_from_lidar),
    )  # fmt: skip
    pairs = zip(method.match(batch), method.match(blind), strict=True)
    assert all(
        torch.equal(a.pixel, b.pixel) and torch.equal(a.overlap, b.overlap) for a, b in pairs
    )


def test_matches_of_a_frame_without_points() -> None:
    method = small()
    some = frames(method)
    some[0] = some[0].select(torch.zeros(len(some[0]), dtype=torch.bool))
    found = method.match(batch_of(method, some))
    assert len(found[0].positions) == 0
    assert found[0].fit.shape == (0, 8, 12)
    assert all(torch.isfinite(image.image_overlap).all() for image in found)


def test_half_precision_keeps_the_pose_finite() -> None:
    method = small(pose=EASY)
    batch = batch_of(method, frames(method))
    with torch.autocast("cpu", torch.bfloat16):
        output = method.training_step(batch, torch.Generator().manual_seed(0))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(
        torch.isfinite(parameter.grad).all()
        for parameter in method.parameters()
        if parameter.grad is not None
    )


def test_a_backbone_as_wide_as_the_embedding_needs_no_head() -> None:
    method = small(head="backbone")
    assert not list(method.point_head.parameters())
    with pytest.raises(ConfigError, match="channels") as caught:
        small(head="backbone", embedding=16)
    assert caught.value.field == "method.head"


def test_a_scan_is_displaced_in_validation_too() -> None:
    method = Nclr(backbone(), encoder(), 8, view=CalibrationView(SIZE))
    dataset = MemoryDataset(2)
    plain = dataset.load(dataset.frames("train")[0])
    moved = frames(method, training=False)[0]
    assert (moved.points - plain.points).norm(dim=1).min() > 0.1


def test_a_backbone_with_borders_is_given_what_lies_inside() -> None:
    low, high = (-6.0, -6.0, -3.0), (6.0, 6.0, 3.0)
    method = small(backbone=Second((*low, *high), (0.1, 0.1, 0.2), tokens="voxels"))
    for frame in frames(method):
        assert 0 < len(frame) < 200
        assert (frame.points >= torch.tensor(low)).all()
        assert (frame.points < torch.tensor(high)).all()
        assert frame.matches is not None
        assert (frame.matches.point < len(frame)).all()
