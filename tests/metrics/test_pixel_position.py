"""The baseline by place in the image, against counting pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lidarssl.errors import DataError
from lidarssl.metrics.pixel_position import count_positions, position_classes, predict_positions


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99)
)
def test_counts_and_classes_by_hand(
    height: int, width: int, rows: int, columns: int, seed: int
) -> None:
    """A cell covers the pixels whose share of the height and width falls into it."""
    labels = np.random.default_rng(seed).integers(0, 4, (2, height, width))
    expected = np.zeros((rows, columns, 4), dtype=int)
    for (_, row, col), label in np.ndenumerate(labels):
        expected[int(row / height * rows + 1e-9), int(col / width * columns + 1e-9), label] += 1
    counts = count_positions(torch.from_numpy(labels), 4, (rows, columns))
    assert np.array_equal(counts.numpy(), expected)
    if not expected[..., 1:].any():
        return
    classes = position_classes(counts)
    most = expected[..., 1:].sum((0, 1)).argmax() + 1
    for place in np.ndindex(rows, columns):
        cell = expected[place][1:]
        assert int(classes[place]) == (1 + cell.argmax() if cell.any() else most)
    predicted = predict_positions(classes, 4 * rows, 3 * columns)
    assert torch.equal(predicted, classes.repeat_interleave(4, 0).repeat_interleave(3, 1))


def test_images_of_another_size_keep_the_places() -> None:
    classes = torch.tensor([[2, 1], [3, 3]])
    assert predict_positions(classes, 3, 3).tolist() == [[2, 2, 1], [2, 2, 1], [3, 3, 3]]


def test_without_labels_there_is_nothing_to_say() -> None:
    with pytest.raises(DataError, match="no pixel has a label"):
        position_classes(count_positions(torch.zeros(1, 4, 4, dtype=torch.int64), 3, (2, 2)))
