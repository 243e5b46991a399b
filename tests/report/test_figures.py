from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lidarssl.errors import DataError
from lidarssl.report import figures
from lidarssl.report.figures import BevPrediction, BevScalar, FeaturePca, FigureData, Similarity


def figure_files(run: Path) -> list[Path]:
    return sorted((run / "figures").glob("*.npz"))


def test_every_kind_is_in_the_sample_run_and_draws(complete_run: Path) -> None:
    seen = set()
    for path in figure_files(complete_run):
        seen.add(type(figures.load(path)))
        for panel in figures.draw(path).panels:
            image = np.asarray(Image.open(io.BytesIO(panel.png)).convert("RGB"), float)
            assert image.std() > 5, f"{path.name} {panel.title} is blank"
    assert seen == set(figures.KINDS)


def test_a_figure_reads_back_equal(tmp_path: Path) -> None:
    points = torch.rand(6, 3)
    figure = BevPrediction(
        points, torch.arange(6) % 3, np.arange(6) % 2, np.zeros((3, 3), int), ("-", "ä", "b")
    )
    figure.save(tmp_path / "deep" / "a.npz")
    found = figures.load(tmp_path / "deep" / "a.npz")
    assert isinstance(found, BevPrediction)
    assert found.names == ("-", "ä", "b")
    assert np.array_equal(found.points, points)
    assert np.array_equal(found.prediction, [0, 1, 2, 0, 1, 2])
    Similarity(points, points, 2).save(tmp_path / "b.npz")
    similarity = figures.load(tmp_path / "b.npz")
    assert isinstance(similarity, Similarity)
    assert (similarity.query, similarity.image) == (2, None)


def test_prediction_key_lists_the_classes_that_occur_without_the_ignored_one() -> None:
    colors = np.arange(200, 212).reshape(4, 3)
    figure = BevPrediction(
        np.zeros((2, 3)), np.array([1, 3]), np.array([0, 1]), colors, ("ignored", "a", "b", "c")
    )
    assert figure.key().classes == (("a", (203, 204, 205)), ("c", (209, 210, 211)))
    assert "0\N{NO-BREAK SPACE}%" in figure.panels()[2].title


def test_the_key_shows_a_dark_class_as_brightly_as_its_points() -> None:
    points = np.array([[x, y, 0.0] for x in range(-9, 10) for y in range(-9, 10)])
    ones = np.ones(len(points), int)
    figure = BevPrediction(points, ones, ones, np.array([(0, 0, 0), (75, 0, 75)]), ("-", "walk"))
    ((_, color),) = figure.key().classes
    assert min(color[0], color[2]) > 140
    image = np.asarray(Image.open(io.BytesIO(figure.panels()[0].png)).convert("RGB")).astype(int)
    assert (np.abs(image - color).max(-1) <= 2).sum() > 100


def test_a_scalar_runs_over_the_bulk_of_its_values_and_the_key_names_the_ends() -> None:
    """One stray value far below and one far above leave the colours of the others."""
    rng = np.random.default_rng(0)
    points = np.append(rng.uniform(-9, 9, (2000, 2)), np.zeros((2000, 1)), 1)
    heights = np.linspace(-3.7, 1.4, 2000)
    heights[:2] = -27.6, 90.0
    ramp = BevScalar(points, heights, "height, m").key().ramp
    assert ramp is not None
    assert ramp[0] == "height, m: \N{MINUS SIGN}3.65 or less"
    assert ramp[1] == "1.35 or more"
    (panel,) = BevScalar(points, heights, "height, m").panels()
    image = np.asarray(Image.open(io.BytesIO(panel.png)).convert("RGB")).astype(int)
    red, blue = image[..., 0] - image[..., 2], image[..., 2] - image[..., 0]
    assert (red > 100).sum() > 1000
    assert (blue > 100).sum() > 1000


def test_a_scalar_without_a_finite_value_still_draws() -> None:
    figure = BevScalar(np.zeros((3, 3)), np.full(3, np.nan), "height, m")
    assert figure.panels()
    assert figure.key().ramp is not None


def bad_file(path: Path, kind: str) -> None:
    good = {"kind": "feature_pca", "points": np.zeros((4, 3)), "features": np.zeros((4, 2))}
    if kind == "not a zip":
        path.write_bytes(b"\x93NUMPY" + bytes(100))
    elif kind == "truncated":
        np.savez_compressed(path, **good)
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "pickle":
        np.savez(path, **{**good, "points": np.array([{}, None], dtype=object)})
    elif kind == "unknown kind":
        np.savez(path, **{**good, "kind": "hologram"})
    elif kind == "no kind":
        np.savez(path, points=np.zeros(3))
    elif kind == "missing array":
        np.savez(path, kind="feature_pca", points=np.zeros((4, 3)))
    elif kind == "unknown array":
        np.savez(path, **good, extra=np.zeros(3))
    elif kind == "lengths differ":
        np.savez(path, **{**good, "features": np.zeros((9, 2))})
    elif kind == "wrong shape":
        np.savez(path, **{**good, "points": np.zeros((4, 2, 2))})
    elif kind == "text":
        np.savez(path, **{**good, "features": np.array("hello")})
    elif kind == "garbage inside":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("points.npy", b"garbage")
    elif kind == "huge header":
        header = np.lib.format.magic(1, 0) + (118).to_bytes(2, "little")
        text = "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999,), }"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("points.npy", header + text.ljust(117).encode() + b"\n")


@pytest.mark.parametrize(
    "kind",
    [
        "not a zip",
        "truncated",
        "pickle",
        "unknown kind",
        "no kind",
        "missing array",
        "unknown array",
        "lengths differ",
        "wrong shape",
        "text",
        "garbage inside",
        "huge header",
        "absent",
    ],
)
def test_a_hostile_file_is_a_data_error_that_names_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.npz"
    bad_file(path, kind)
    with pytest.raises(DataError, match=r"a\.npz"):
        figures.draw(path)


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MAX_BYTES", 1000)
    FeaturePca(np.zeros((1000, 3)), np.zeros((1000, 2))).save(tmp_path / "a.npz")
    assert (tmp_path / "a.npz").stat().st_size < 2000
    with pytest.raises(DataError, match="unpacks to more"):
        figures.load(tmp_path / "a.npz")


def test_kinds_are_distinct() -> None:
    assert len({kind.kind for kind in figures.KINDS}) == len(figures.KINDS)
    assert all(issubclass(kind, FigureData) for kind in figures.KINDS)
