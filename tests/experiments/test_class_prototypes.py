"""Points by the nearest class ask the method about the frame that they show."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lidarssl.batching import collate
from lidarssl.experiments.class_prototypes import nearest_classes, olivine_classes, weak_labels_of
from lidarssl.experiments.method_pictures import add_method_pictures
from lidarssl.experiments.pictures import PictureBook, picture_frame
from lidarssl.frame import Frame
from lidarssl.losses.von_mises_fisher import ClassPrototypes as ClassDistributions
from lidarssl.methods.olivine import Olivine
from lidarssl.report.build import build_report
from lidarssl.report.class_prototypes import ClassPrototypes
from lidarssl.report.figures import CameraLabels, load
from lidarssl.report.schema import Results
from lidarssl.transforms.weak_labels import WeakLabels, save_weak_labels
from methods.small import build, weak_labels
from toys import MemoryDataset


def frame(cameras: int = 1) -> Frame:
    dataset = MemoryDataset(8, cameras=cameras)
    return picture_frame(dataset, dataset.frames("val")[0], "val", labels=False)


def olivine(folder: Path | None = None, classes: int = 2) -> Olivine:
    """Of its classes the first ``classes`` have a distribution."""
    method = build(Olivine)
    assert isinstance(method, Olivine)
    if folder is not None:
        method.weak_labels = WeakLabels(folder)
    generator = torch.Generator().manual_seed(4)
    features = F.normalize(torch.randn(60, 8, generator=generator), dim=1)
    if classes:
        method.prototypes.update(features, torch.arange(60) % classes)
    return method


def without_files(tmp_path: Path) -> Path:
    """The folder of the toy images with their classes alone."""
    shutil.copy(weak_labels() / "weak_labels.json", tmp_path)
    return tmp_path


def test_nearest_is_the_largest_cosine_among_the_classes_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 6, generator=generator) * 10 ** torch.randn(
        300, 1, generator=generator
    )
    directions = F.normalize(torch.randn(7, 6, generator=generator), dim=1)
    seen = torch.tensor([True, True, False, True, False, True, True])
    found = nearest_classes(features, directions * seen[:, None], seen)
    for feature, k in zip(features.double(), found.tolist(), strict=True):
        cosines = {
            j + 1: float(feature @ direction / (feature.norm() * direction.norm()))
            for j, direction in enumerate(directions.double())
            if seen[j]
        }
        assert k == max(cosines, key=lambda j: cosines[j])


def test_a_class_never_seen_is_not_nearest_even_to_features_opposite_to_all_others() -> None:
    directions = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    seen = torch.tensor([True, False])
    assert nearest_classes(torch.tensor([[-1.0, 0.0]]), directions, seen).tolist() == [1]


def test_features_without_a_direction_have_no_class() -> None:
    directions, seen = torch.eye(2), torch.tensor([True, True])
    features = torch.tensor([[0.0, 2.0], [torch.nan, 1.0], [0.0, 0.0], [torch.inf, 0.0]])
    assert nearest_classes(features, directions, seen).tolist() == [2, 0, 0, 0]
    assert nearest_classes(features, directions, ~seen).tolist() == [0, 0, 0, 0]


def test_points_have_the_semantic_feature_that_training_gives_them() -> None:
    method, shown = olivine(), frame()
    figure = olivine_classes(method, shown)
    assert isinstance(figure, ClassPrototypes)
    method.eval()
    assert shown.matches is not None
    with torch.no_grad():
        tokens = method.backbone(collate([replace(shown, cameras=(), matches=None)]).points)
        semantic = method.embed(tokens.features)[1][tokens.token_of_point[shown.matches.point]]
    expected = (semantic @ method.prototypes.mean.T / method.prototypes.mean.norm(dim=1)).argmax(1)
    assert np.array_equal(figure.nearest, 1 + expected)
    assert np.array_equal(figure.row, shown.matches.row)
    assert np.array_equal(figure.col, shown.matches.col)
    assert np.array_equal(figure.kappa, method.prototypes.kappas())
    assert figure.names == ("unknown", "dark", "bright")


def test_labels_of_the_image_are_those_of_its_file() -> None:
    shown = frame()
    figure = olivine_classes(olivine(), shown)
    assert isinstance(figure, ClassPrototypes)
    image = shown.cameras[0].image
    assert image is not None
    expected = 1 + (image.float().mean(0) > 105).long()
    expected[:, :16] = 0
    assert figure.pixels is not None
    assert np.array_equal(figure.pixels, expected)


def test_labels_may_have_classes_without_a_distribution() -> None:
    method = olivine()
    method.prototypes = ClassDistributions(1, 8)
    method.prototypes.update(F.normalize(torch.ones(3, 8), dim=1), torch.zeros(3).long())
    figure = olivine_classes(method, frame())
    assert isinstance(figure, ClassPrototypes)
    assert set(figure.nearest) == {1}
    assert figure.pixels is not None
    assert figure.pixels.max() == 2
    assert "100\N{NO-BREAK SPACE}% agree" in figure.panels()[2].title


def test_the_camera_with_most_matches_is_shown() -> None:
    shown = frame(cameras=2)
    front, left = shown.cameras
    assert shown.matches is not None
    counts = torch.bincount(shown.matches.image, minlength=2)
    assert counts[0] > counts[1] > 0
    for cameras in ((front, left), (left, front)):
        figure = olivine_classes(olivine(), replace(shown, cameras=cameras))
        assert isinstance(figure, ClassPrototypes)
        assert front.image is not None
        assert np.array_equal(figure.image, front.image)
        assert len(figure.row) == counts[0]


def test_points_outside_the_cylinder_are_left_out() -> None:
    method, shown = olivine(), frame()
    method.augmentation = replace(method.augmentation, cylinder=(6.0, -5.0, 5.0))
    figure = olivine_classes(method, shown)
    assert isinstance(figure, ClassPrototypes)
    assert shown.matches is not None
    near = shown.points[shown.matches.point, :2].norm(dim=1) <= 6
    assert len(figure.row) == int(near.sum())
    assert 0 < int(near.sum()) < len(near)


def test_a_frame_that_no_image_sees_has_no_points() -> None:
    shown = frame()
    figure = olivine_classes(
        olivine(), replace(shown, points=shown.points * torch.tensor([-1, 1, 1.0]))
    )
    assert isinstance(figure, ClassPrototypes)
    assert len(figure.nearest) == 0
    assert len(figure.panels()) == 3


@pytest.mark.parametrize("damage", ["absent", "other size", "no image"])
def test_labels_without_a_good_file_are_left_out(damage: str, tmp_path: Path) -> None:
    folder, shown = without_files(tmp_path), frame()
    path = folder / f"{shown.cameras[0].token}.png"
    if damage == "other size":
        save_weak_labels(path, torch.ones(5, 5, dtype=torch.int64))
    elif damage == "no image":
        path.write_bytes(b"nothing")
    assert weak_labels_of(shown.cameras[0], WeakLabels(folder)) is None
    figure = olivine_classes(olivine(folder), shown)
    assert isinstance(figure, ClassPrototypes)
    assert figure.pixels is None
    assert len(figure.panels()) == 2


def test_a_run_without_distributions_shows_the_labels_or_nothing(tmp_path: Path) -> None:
    figure = olivine_classes(olivine(classes=0), frame())
    assert isinstance(figure, CameraLabels)
    assert figure.names == ("unknown", "dark", "bright")
    assert olivine_classes(olivine(without_files(tmp_path), classes=0), frame()) is None


@pytest.mark.parametrize(
    ("files", "classes", "own"),
    [
        (True, 2, ["class_prototypes"]),
        (False, 1, ["class_prototypes"]),
        (True, 0, ["weak_labels"]),
        (False, 0, []),
    ],
)
def test_what_there_is_stands_in_the_report(
    files: bool, classes: int, own: list[str], tmp_path: Path
) -> None:
    (tmp_path / "labels").mkdir()
    folder = weak_labels() if files else without_files(tmp_path / "labels")
    run = tmp_path / "run"
    book = PictureBook(run, MemoryDataset())
    add_method_pictures(olivine(folder, classes), frame(), book)
    assert [Path(record.file).stem for record in book.records] == own
    run.mkdir(exist_ok=True)
    Results("nothing yet", pictures=tuple(book.records)).save(run)
    page = build_report(run).read_text()
    for record in book.records:
        assert load(run / record.file).panels()
        assert f"<h4>{record.title}</h4>" in page
        assert ("has no file of this image" in record.caption) == (not files)
    assert page.count("<img") == sum(
        len(load(run / record.file).panels()) for record in book.records
    )


def test_a_frame_without_cameras_has_no_such_picture(tmp_path: Path) -> None:
    book = PictureBook(tmp_path, MemoryDataset())
    add_method_pictures(olivine(), replace(frame(), cameras=(), matches=None), book)
    assert book.records == []
