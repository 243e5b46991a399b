"""Votes: nothing but the frame, the seed and the number of a vote decides what it draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.backbones.voxelize import PointInputs
from lidarssl.backbones.waffleiron import WaffleIron
from lidarssl.batching import collate
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Batch, Field, FrameId
from lidarssl.metrics.segmentation import confusion
from lidarssl.sparse.norms import RowNorm
from lidarssl.tasks.augmentation import PointAugmentation, WaffleIronAugmentation
from lidarssl.tasks.semantic import SemanticSegmentation, evaluate
from lidarssl.tasks.votes import (
    drop_paths,
    elect,
    evaluate_votes,
    probabilities,
    vote_generator,
)
from lidarssl.transforms.base import Compose
from methods.small import backbone
from toys import MemoryDataset

CPU = torch.device("cpu")


def seeded_task(**options: object) -> SemanticSegmentation:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return SemanticSegmentation(backbone(), 3, **options)  # type: ignore[arg-type]


def waffleiron(drop_path: float) -> SemanticSegmentation:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = WaffleIron(
            channels=8, depth=4, fov=((-12.0, -12.0, -3.0), (12.0, 12.0, 3.0)),
            grids=((8, 8), (8, 4), (8, 4)), neighbours=5, voxel_size=0.2, drop_path=drop_path,
            inputs=PointInputs(("intensity", "x", "y", "z", "radius")),
        )  # fmt: skip
        return SemanticSegmentation(network, 3)


def cast(frames: int, votes: int, size: int, still: bool = False) -> list[Batch]:
    """Batches of ``size`` votes, as an evaluation sees them."""
    dataset = MemoryDataset(frames)
    move = Compose([] if still else PointAugmentation().votes())
    moved = [
        move(dataset.load(frame, Field.SEMANTIC), vote_generator(0, frame, vote))
        for frame in dataset.frames("val")
        for vote in range(votes)
    ]
    return [collate(moved[first : first + size]) for first in range(0, len(moved), size)]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), votes=st.integers(1, 7), classes=st.integers(2, 9))
def test_identical_votes_are_no_votes(seed: int, votes: int, classes: int) -> None:
    logits = torch.randn(40, classes, generator=torch.Generator().manual_seed(seed))
    summed = torch.stack([probabilities(logits)] * votes).sum(0)
    assert torch.equal(elect(summed), logits[:, 1:].argmax(1) + 1)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), votes=st.integers(1, 7))
def test_the_class_is_that_of_the_summed_softmax(seed: int, votes: int) -> None:
    """Against float64, where the two best classes are not a tie; class 0 never wins."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (votes, 30, 5)).astype(np.float32)
    logits[:, :, 0] += 20
    powers = np.exp(logits[:, :, 1:].astype(np.float64))
    shares = (powers / powers.sum(2, keepdims=True)).sum(0)
    clear = np.diff(np.sort(shares, 1)[:, -2:], axis=1)[:, 0] > 1e-5
    summed = torch.stack([probabilities(one) for one in torch.from_numpy(logits)]).sum(0)
    found = elect(summed).numpy()
    assert np.array_equal(found[clear], shares.argmax(1)[clear] + 1)
    assert found.min() > 0


@pytest.mark.parametrize("size", [1, 2, 4])
def test_evaluation_of_still_votes_is_that_of_the_scan(size: int) -> None:
    task = seeded_task()
    plain = evaluate(task, cast(3, 1, 1, still=True), CPU, progress=False)
    voted = evaluate_votes(task, cast(3, 4, size, still=True), 4, CPU, progress=False)
    assert torch.equal(voted, plain)
    assert int(voted.sum()) == 600


@pytest.mark.parametrize("size", [1, 2, 3, 5, 15])
def test_batches_change_nothing(size: int) -> None:
    """Against every vote by itself, summed by hand."""
    task = seeded_task().eval()
    expected = torch.zeros(3, 3, dtype=torch.int64)
    singles = cast(3, 5, 1)
    with torch.no_grad():
        for frame in range(3):
            mine = singles[5 * frame : 5 * frame + 5]
            summed = sum(task(one).at_points()[:, 1:].double().softmax(1) for one in mine)
            assert isinstance(summed, torch.Tensor)
            assert mine[0].semantic is not None
            expected += confusion(summed.argmax(1) + 1, mine[0].semantic, 3)
    assert torch.equal(evaluate_votes(task, cast(3, 5, size), 5, CPU, progress=False), expected)


def test_a_vote_follows_seed_frame_and_number() -> None:
    frames = [FrameId("a", "b", "0"), FrameId("a", "b", "1"), FrameId("a", "c", "0")]
    draws = {
        (seed, str(frame), vote): vote_generator(seed, frame, vote).random()
        for seed in (0, 1)
        for frame in frames
        for vote in (0, 1)
    }
    assert len(set(draws.values())) == len(draws)
    assert draws[1, "a/b/1", 1] == vote_generator(1, frames[1], 1).random()


def spread(augmentation: PointAugmentation, votes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The linear maps of points and of their input values in some votes."""
    dataset, found = MemoryDataset(1), []
    frame = dataset.load(dataset.frames("val")[0], Field.SEMANTIC)
    for vote in range(votes):
        moved = Compose(augmentation.votes())(frame, vote_generator(0, frame.id, vote))
        assert len(moved) == len(frame)
        inputs = moved.points if moved.input_points is None else moved.input_points
        maps = [
            np.linalg.lstsq(frame.points.double().numpy(), each.double().numpy(), rcond=None)[0]
            for each in (moved.points, inputs)
        ]
        found.append((maps[0], maps[1]))
    return found


def test_votes_turn_mirror_and_scale() -> None:
    maps = [points for points, _ in spread(PointAugmentation(rotate=False, flip="none"), 60)]
    determinants = np.array([np.linalg.det(one) for one in maps])
    factors = np.cbrt(np.abs(determinants))
    assert 0.9 <= factors.min() < 0.92
    assert 1.08 < factors.max() <= 1.1
    assert 25 <= (determinants < 0).sum() <= 53
    first = np.array([one[0, :2] / np.linalg.norm(one[0, :2]) for one in maps])
    assert np.abs(first.mean(0)).max() < 0.4


def test_published_votes_turn_inputs_by_another_angle_and_never_scale_them() -> None:
    for points, inputs in spread(WaffleIronAugmentation(), 3):
        np.testing.assert_array_equal(points, inputs)
    for points, inputs in spread(WaffleIronAugmentation(independent_inputs=True), 8):
        np.testing.assert_allclose(inputs @ inputs.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(inputs) == pytest.approx(1, abs=1e-5)
        assert abs(np.cbrt(abs(np.linalg.det(points))) - 1) > 1e-4
        assert np.abs(points[:2, :2] - inputs[:2, :2]).max() > 1e-2


def test_drop_path_leaves_statistics_alone_and_draws_by_frame() -> None:
    task = waffleiron(0.5)
    votes, drawn = cast(2, 3, 1), []
    state = {key: value.clone() for key, value in task.state_dict().items()}
    for order in (votes, votes[3:] + votes[:3]):
        torch.rand(7)  # whatever else the process draws
        matrix = evaluate_votes(task, order, 3, CPU, progress=False, drop_path_seed=0)
        drawn.append(matrix)
        assert not any(part.training for part in task.modules())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], evaluate_votes(task, votes, 3, CPU, progress=False))
    assert all(torch.equal(state[key], value) for key, value in task.state_dict().items())
    drop_paths(task.backbone)
    assert task.backbone.training
    assert not any(part.training for part in task.modules() if isinstance(part, RowNorm))
    with torch.no_grad():
        features = [task(votes[0]).features for _ in range(2)]
    assert not torch.equal(features[0], features[1])


def test_a_backbone_without_drop_path_is_refused() -> None:
    for task in (waffleiron(0.0), seeded_task()):
        with pytest.raises(ConfigError, match="leaves nothing out"):
            evaluate_votes(task, cast(1, 2, 1), 2, CPU, progress=False, drop_path_seed=0)


def test_nothing_to_vote_on_is_an_error() -> None:
    with pytest.raises(DataError, match="no frame to evaluate"):
        evaluate_votes(seeded_task(), [], 2, CPU, progress=False)
