"""Windows against a pixel-by-pixel mean, and their places."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lidarssl.errors import ConfigError
from lidarssl.tasks.sliding_window import (
    SlidingWindow,
    size_at_height,
    sliding_logits,
    window_starts,
)


class Network:
    """Scores that depend on the place inside the window; counts what it sees."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        ramp = torch.arange(images[0, 0].numel(), dtype=images.dtype).view(images.shape[2:])
        return torch.stack([images.sum(1), images[:, 0] * ramp], dim=1)


@given(
    st.integers(1, 60), st.integers(1, 60), st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.data(),
)  # fmt: skip
def test_starts_leave_no_pixel_out(
    length: int, other: int, sides: tuple[int, int], data: st.DataObject
) -> None:
    window = sides[0]
    stride = data.draw(st.integers(1, window))
    starts = window_starts(length, window, stride)
    ends = [min(start + window, length) for start in starts]
    assert starts[0] == 0
    assert ends[-1] == length
    assert all(before < after for before, after in pairwise(starts))
    assert all(start <= end for start, end in zip(starts[1:], ends, strict=False))
    assert {end - start for start, end in zip(starts, ends, strict=True)} == {min(window, length)}


def test_published_grids() -> None:
    """72 windows on Cityscapes, 66 on ACDC at the same height."""
    assert size_at_height((1080, 1920), 1024) == (1024, 1820)
    for width, count in ((2048, 12), (1820, 11)):
        assert len(window_starts(1024, 224, 168)) == 6
        starts = window_starts(width, 224, 168)
        assert len(starts) == count
        assert starts[-1] == width - 224


def by_pixels(images: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Every pixel asks every window that holds it, one forward each."""
    height, width = images.shape[-2:]

    def places(length: int, side: int, step: int) -> list[int]:
        found, start = [0], 0
        while start + side < length:
            start = min(start + step, length - side)
            found.append(start)
        return found

    total = torch.zeros(len(images), 2, height, width, dtype=images.dtype)
    for row in range(height):
        for column in range(width):
            votes = [
                Network()(images[..., top : top + window[0], left : left + window[1]])[
                    ..., row - top, column - left
                ]
                for top in places(height, window[0], stride[0])
                for left in places(width, window[1], stride[1])
                if top <= row < top + window[0] and left <= column < left + window[1]
            ]
            total[..., row, column] = torch.stack(votes).mean(0)
    return total


@pytest.mark.parametrize("size", [(11, 17), (8, 6), (5, 20), (4, 3)])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_mean_of_the_windows(size: tuple[int, int], chunk: int) -> None:
    images = torch.randn((2, 3, *size), dtype=torch.float64)
    found = sliding_logits(images, Network(), (8, 6), (5, 4), chunk)
    torch.testing.assert_close(found, by_pixels(images, (8, 6), (5, 4)))


def test_an_image_of_the_size_of_the_window_is_seen_once() -> None:
    network, images = Network(), torch.randn(1, 3, 224, 224)
    assert torch.equal(SlidingWindow().logits(images, network), Network()(images))
    assert network.seen == [(1, 3, 224, 224)]


def test_chunks_hold_no_more_windows_than_they_may() -> None:
    network = Network()
    SlidingWindow((10, 10), (5, 5), chunk=4).logits(torch.randn(1, 3, 20, 20), network)
    assert [shape[0] for shape in network.seen] == [4, 4, 1]


def test_the_whole_image_at_once() -> None:
    network, images = Network(), torch.randn(2, 3, 31, 47)
    assert torch.equal(SlidingWindow(None).logits(images, network), Network()(images))


def test_working_height() -> None:
    """The network sees the image at another height; the scores have its own size."""
    network, images = Network(), torch.rand(1, 3, 20, 30)
    found = SlidingWindow((40, 60), (40, 60), height=40).logits(images, network)
    assert network.seen == [(1, 3, 40, 60)]
    large = F.interpolate(images, (40, 60), mode="bilinear", align_corners=False)
    expected = F.interpolate(Network()(large), (20, 30), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"window": (100, 224)}, "inference.stride"),
        ({"stride": (168, 0)}, "inference"),
        ({"window": (0, 224)}, "inference"),
        ({"height": 0}, "inference"),
        ({"chunk": 0}, "inference"),
    ],
)
def test_senseless_windows_are_refused(arguments: dict, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SlidingWindow(**arguments)
    assert caught.value.field == field
    assert caught.value.remedy
