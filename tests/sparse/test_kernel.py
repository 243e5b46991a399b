from __future__ import annotations

import pytest

from lidarssl.sparse.kernel import Convention, axis_offsets, row_major

M, T = Convention.MINKOWSKI, Convention.TORCHSPARSE


@pytest.mark.parametrize(
    ("size", "minkowski", "torchsparse"),
    [
        (1, [0], [0]),
        (2, [0, 1], [0, 1]),
        (3, [-1, 0, 1], [-1, 0, 1]),
        (4, [0, 1, 2, 3], [-1, 0, 1, 2]),
        (5, [-2, -1, 0, 1, 2], [-2, -1, 0, 1, 2]),
    ],
)
def test_offsets_along_an_axis(size, minkowski, torchsparse):
    assert list(axis_offsets(size, M)) == minkowski
    assert list(axis_offsets(size, T)) == torchsparse


def test_order_of_weights():
    assert row_major((2, 2, 2), M) == [0, 4, 2, 6, 1, 5, 3, 7]
    assert row_major((2, 2, 2), T) == list(range(8))
    assert row_major((3, 1, 3), M) == row_major((3, 1, 3), T) == [0, 3, 6, 1, 4, 7, 2, 5, 8]
