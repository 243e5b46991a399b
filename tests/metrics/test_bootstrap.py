from __future__ import annotations

import math

import pytest
import torch

from lidarssl.metrics.bootstrap import (
    bootstrap_interval,
    frame_draws,
    percentiles,
    resampled_miou,
    summarise_seeds,
)
from lidarssl.metrics.segmentation import iou_report


def test_known_t_interval() -> None:
    """Three seeds: t(2, 0.975) = 4.302653."""
    summary = summarise_seeds([1.0, 2.0, 3.0])
    assert summary.mean == 2
    assert summary.std == 1
    assert summary.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert 2 - summary.low == pytest.approx(summary.high - 2)


def test_one_seed_has_no_interval() -> None:
    summary = summarise_seeds([0.4])
    assert summary.mean == pytest.approx(0.4)
    assert all(math.isnan(value) for value in (summary.std, summary.low, summary.high))


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    draws = torch.randn(1500, 4, generator=torch.Generator().manual_seed(0)).tolist()
    inside = [s.low <= 0 <= s.high for s in (summarise_seeds(d, 0.9) for d in draws)]
    assert sum(inside) / len(inside) == pytest.approx(0.9, abs=0.025)


def test_bootstrap_agrees_with_t_on_many_scores() -> None:
    scores = torch.randn(400, generator=torch.Generator().manual_seed(1)).tolist()
    low, high = bootstrap_interval(scores, torch.Generator().manual_seed(2))
    summary = summarise_seeds(scores)
    assert (low, high) == pytest.approx((summary.low, summary.high), abs=0.01)
    again = bootstrap_interval(scores, torch.Generator().manual_seed(2))
    assert again == (low, high)


@pytest.mark.parametrize(("scores", "confidence"), [([], 0.95), ([1.0], 0.0), ([1.0], 1.0)])
def test_refuses(scores: list[float], confidence: float) -> None:
    with pytest.raises(ValueError, match=r"scores|confidence"):
        summarise_seeds(scores, confidence)


def random_matrices(frames: int, seed: int) -> torch.Tensor:
    """(F, 4, 4) counts; class 3 occurs in a few frames only."""
    generator = torch.Generator().manual_seed(seed)
    matrices = torch.randint(0, 50, (frames, 4, 4), generator=generator)
    matrices[2:, 3] = 0
    matrices[2:, :, 3] = 0
    return matrices


def test_resampled_scores_are_those_of_the_frames_that_were_drawn() -> None:
    """Against the report of a confusion matrix that is summed frame by frame."""
    matrices = random_matrices(7, 0)
    draws = frame_draws(7, 40, torch.Generator().manual_seed(1))
    assert torch.equal(draws.sum(1), torch.full((40,), 7.0, dtype=torch.float64))
    scores = resampled_miou(matrices, draws)
    for row, score in zip(draws.long().tolist(), scores.tolist(), strict=True):
        drawn = [matrices[frame] for frame, times in enumerate(row) for _ in range(times)]
        assert score == pytest.approx(iou_report(torch.stack(drawn).sum(0)).miou)


def test_draws_are_uniform_and_come_from_the_generator() -> None:
    draws = frame_draws(5, 4000, torch.Generator().manual_seed(2))
    assert torch.equal(draws, frame_draws(5, 4000, torch.Generator().manual_seed(2)))
    assert draws.mean(0).tolist() == pytest.approx([1.0] * 5, abs=0.06)
    assert draws.var(0).tolist() == pytest.approx([0.8] * 5, abs=0.08)  # binomial, n p (1 - p)


def test_a_set_without_labels_has_no_score_and_is_left_out() -> None:
    matrices = random_matrices(2, 3)
    matrices[1] = 0
    scores = resampled_miou(matrices, torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 2.0]]))
    assert scores[0] == scores[1]
    assert math.isnan(float(scores[2]))
    assert percentiles(scores) == pytest.approx((float(scores[0]),) * 2)
    assert all(math.isnan(end) for end in percentiles(scores[2:]))
