"""Classes, their distributions, and the points nearest to each."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lidarssl.errors import DataError
from lidarssl.report import class_prototypes, figures
from lidarssl.report.bar_table import MARGIN, ROW
from lidarssl.report.class_prototypes import ClassPrototypes, agreement

NAMES = ("unknown", "car", "road", "tree")
COLORS = np.array([(51, 51, 51), (255, 40, 40), (40, 220, 220), (60, 240, 40)])


def figure(nearest: list[int], labels: list[int] | None = None) -> ClassPrototypes:
    """Points in one row of an image, 20 pixels apart."""
    col = 10 + 20 * np.arange(len(nearest))
    pixels = None
    if labels is not None:
        pixels = np.zeros((40, 200), np.uint8)
        pixels[20, col] = labels
    return ClassPrototypes(
        np.full((40, 200, 3), 0.5), np.full(len(nearest), 20), col, np.array(nearest, int),
        np.array([80.0, 40.0, 0.0]), np.array([0.6, 0.3, 0.0]), COLORS, NAMES, pixels,
    )  # fmt: skip


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


ids = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=40)


@given(ids, st.lists(st.sampled_from([0.0, 0.5]), min_size=4, max_size=4))
def test_agreement_is_a_count_over_the_points(
    pairs: list[tuple[int, int]], weight: list[float]
) -> None:
    """Labels 1 .. 4 have a distribution, or could; 5 has none."""
    counted = [(n, k) for n, k in pairs if n > 0 and 1 <= k <= 4 and weight[k - 1] > 0]
    nearest, labels = np.array(pairs, int).reshape(-1, 2).T
    total, shares = agreement(nearest, labels, np.array(weight))
    if counted:
        assert total == pytest.approx(sum(n == k for n, k in counted) / len(counted))
    else:
        assert total is None
    for k in range(1, 5):
        own = [n == k for n, label in counted if label == k]
        assert shares[k - 1] == pytest.approx(sum(own) / len(own) if own else np.nan, nan_ok=True)


def test_points_have_the_colour_of_the_nearest_class_and_none_without() -> None:
    _, points = figure([1, 2, 0]).panels()
    image = pixels_of(points.png)
    scale = image.shape[1] // 200
    at = image[20 * scale, scale * np.array([10, 30, 50])]
    assert np.abs(at[:2] - COLORS[[1, 2]]).max() <= 3
    assert np.ptp(at[2]) <= 3, "a grey pixel of the image"


def test_without_labels_there_is_nothing_to_agree_with() -> None:
    table, points = figure([1, 2, 0]).panels()
    assert "agree" not in table.title + points.title


def test_with_labels_the_title_counts() -> None:
    table, labels, points = figure([1, 1, 2, 2], [1, 2, 2, 0]).panels()
    assert "67\N{NO-BREAK SPACE}% agree" in points.title
    image = pixels_of(labels.png)
    scale = image.shape[1] // 200
    red, green, _ = image[20 * scale, 10 * scale]
    assert red > green + 50
    assert table.png != figure([1, 1, 2, 2]).panels()[0].png


def test_labels_of_classes_never_seen_alone_give_no_share() -> None:
    assert "agree" not in figure([1, 2], [3, 0]).panels()[2].title


def test_no_point_at_all_still_draws() -> None:
    assert len(figure([]).panels()) == 2
    assert figure([]).key().classes == ()
    assert len(figure([], []).panels()) == 3


def test_the_key_names_what_occurs() -> None:
    assert [name for name, _ in figure([1, 0]).key().classes] == ["car"]
    assert [name for name, _ in figure([1, 0], [3, 0]).key().classes] == ["car", "tree"]


def test_the_table_has_a_bar_for_every_class_that_was_seen() -> None:
    image = pixels_of(figure([1]).panels()[0].png)
    counts = []
    for k in (1, 2, 3):
        row = image[MARGIN + ROW * k + ROW // 2]
        counts.append(int((np.abs(row - COLORS[k]).max(1) <= 3).sum()))
    assert counts[2] == 0
    assert counts[0] > 50
    assert counts[0] == pytest.approx(2 * counts[1], abs=3)


def test_of_many_classes_those_with_most_weight_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_prototypes, "MOST_ROWS", 2)
    heavy = replace(figure([1]), weight=np.array([0.1, 0.6, 0.3]))
    table = heavy.panels()[0]
    assert "2 of 3 classes" in table.title
    image = pixels_of(table.png)
    assert image.shape[0] == 3 * ROW + 2 * MARGIN
    present = [bool((np.abs(image - COLORS[k]).max(2) <= 3).sum() > 50) for k in (1, 2)]
    assert present == [False, True]


def test_it_reads_back_equal(tmp_path: Path) -> None:
    for number, made in enumerate((figure([1, 2], [1, 0]), figure([1, 2]))):
        made.save(tmp_path / f"{number}.npz")
        found = figures.load(tmp_path / f"{number}.npz")
        assert isinstance(found, ClassPrototypes)
        assert [panel.png for panel in found.panels()] == [panel.png for panel in made.panels()]


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(DataError, match="2 values for 3 concentrations"):
        replace(figure([1]), weight=np.array([0.5, 0.5])).panels()
    with pytest.raises(DataError, match="3 names"):
        replace(figure([1]), names=NAMES[:3]).panels()
