"""ScribbleKITTI: strokes to train on, dense labels to judge by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dataset_files import POINTS, write, write_semantic_kitti
from lidarssl.datasets.inspect import check
from lidarssl.datasets.scribble_kitti import ScribbleKitti
from lidarssl.datasets.semantic_kitti import SemanticKitti
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, Frame, FrameId
from scribble_rellis_files import write_scribble_kitti

FIRST = FrameId("scribble_kitti", "00", "000000")
VAL = FrameId("scribble_kitti", "08", "000001")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_scribble_kitti(tmp_path / "kitti")


def sequence(root: Path, name: str = "00") -> Path:
    return root / "dataset" / "sequences" / name


def semantic(frame: Frame) -> list[int]:
    assert frame.semantic is not None
    return frame.semantic.tolist()


def test_training_scans_have_their_strokes_and_no_more(root: Path) -> None:
    """The dense labels that lie beside them name every point."""
    assert (sequence(root) / "labels/000000.label").is_file()
    frame = ScribbleKitti(root).load(FIRST)
    assert semantic(frame) == [1] * 5 + [0] * 35 + [9] * 10
    assert frame.instance is None


def test_dense_labels_are_not_even_opened_for_training(root: Path) -> None:
    for path in (sequence(root) / "labels").iterdir():
        path.write_bytes(b"garbage")
    dataset = ScribbleKitti(root)
    assert semantic(dataset.load(FIRST)).count(0) == 35
    assert dataset.provides("train") == Field.IMAGES | Field.SEMANTIC | Field.POSE


def test_validation_scans_have_their_dense_labels(root: Path) -> None:
    """Whatever a folder `scribbles` of 08 holds, where published code wants copies of them."""
    truth = semantic(SemanticKitti(root).load(FrameId("semantic_kitti", "08", "000001")))
    for scan in ("000000", "000001"):
        content = np.full(POINTS, 81, "<u4").tobytes()
        write(sequence(root, "08") / "scribbles" / f"{scan}.label", content)
    dataset = ScribbleKitti(root)
    frame = dataset.load(VAL)
    assert semantic(frame) == truth
    assert 19 not in truth
    assert frame.instance is not None
    assert Field.INSTANCE in dataset.provides("val")


def test_copies_of_08_do_not_replace_its_labels(root: Path) -> None:
    labels = sequence(root, "08") / "labels"
    labels.rename(labels.with_name("scribbles"))
    dataset = ScribbleKitti(root)
    assert not (Field.SEMANTIC | Field.INSTANCE) & dataset.provides("val")
    assert dataset.load(VAL).semantic is None


def test_without_strokes_there_are_no_labels_to_train_on(tmp_path: Path) -> None:
    dataset = ScribbleKitti(write_semantic_kitti(tmp_path))
    assert Field.SEMANTIC not in dataset.provides("train")
    assert Field.SEMANTIC in dataset.provides("val")


def test_all_else_is_semantic_kitti(root: Path) -> None:
    cameras = ("image_2", "image_3")
    kitti = SemanticKitti(root, cameras, 0.5).load(FrameId("semantic_kitti", "00", "000000"))
    frame = ScribbleKitti(root, cameras, 0.5).load(FIRST)
    for column in ("points", "intensity", "pose"):
        assert torch.equal(getattr(frame, column), getattr(kitti, column)), column
    for ours, theirs in zip(frame.cameras, kitti.cameras, strict=True):
        assert ours.token == theirs.token
        assert ours.image is not None
        assert theirs.image is not None
        assert torch.equal(ours.image, theirs.image)
        assert torch.equal(ours.camera_from_lidar, theirs.camera_from_lidar)
    assert ScribbleKitti.classes == SemanticKitti.classes
    assert frame.intensity_statistics == kitti.intensity_statistics


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ScribbleKitti:
    """Every scan of train and val, empty; (sequence, scans) as SemanticKITTI states them."""
    root = tmp_path_factory.mktemp("whole")
    counts = (4541, 1101, 4661, 801, 271, 2761, 1101, 1101, 4071, 1591, 1201)
    for number, count in enumerate(counts):
        folder = root / "sequences" / f"{number:02d}" / "velodyne"
        folder.mkdir(parents=True)
        for scan in range(count):
            (folder / f"{scan:06d}.bin").touch()
    return ScribbleKitti(root)


def test_published_sizes(whole: ScribbleKitti) -> None:
    """1 % are the 192 scans of SLidR; OLIVINE validates on a tenth of 08."""
    train = whole.frames("train")
    assert len(train) == 19130
    assert len(whole.frames("val")) == 4071
    assert {frame.dataset for frame in train} == {"scribble_kitti"}
    for skip, count in ((100, 192), (10, 1913), (1, 19130)):
        assert whole.label_fraction("train", skip) == train[::skip]
        assert len(whole.label_fraction("train", skip)) == count
    tenth = [int(frame.token) for frame in whole.frames("val_10th")]
    assert tenth == list(range(0, 4071, 10))
    assert all(frame.sequence == "08" for frame in whole.frames("val_10th"))


def test_nothing_is_absent_from_a_whole_dataset(whole: ScribbleKitti, root: Path) -> None:
    for split in ("train", "val", "val_10th"):
        assert not whole.absent(split)
    assert ScribbleKitti(root).absent("val") == "4069 of the 4071 scans of the split"
    assert ScribbleKitti(root).absent("val_10th") == "407 of the 408 scans of the split"


def test_a_tenth_is_of_the_sequence_and_not_of_the_disk(root: Path) -> None:
    scans = sequence(root, "08") / "velodyne"
    for name in ("000009.bin", "000010.bin", "000020.bin", "000021.bin"):
        write(scans / name, b"")
    (scans / "000000.bin").unlink()
    dataset = ScribbleKitti(root)
    assert [frame.token for frame in dataset.frames("val_10th")] == ["000010", "000020"]
    for name in ("000010.bin", "000020.bin"):
        (scans / name).unlink()
    with pytest.raises(DataError, match="none of the 408 scans") as error:
        dataset.frames("val_10th")
    assert str(error.value.path) == str(scans.parent)
    assert error.value.remedy
    assert len(dataset.frames("val")) == 3


UNKNOWN = np.full(POINTS, 10, "<u4")
UNKNOWN[3] = 77
BAD = {
    "missing": (None, "not found"),
    "too few": (bytes(4 * 49), "49 labels, but .* 50 points"),
    "unknown class": (UNKNOWN.tobytes(), "1 point .*: 77"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_strokes_are_named_with_a_remedy(root: Path, case: str) -> None:
    content, message = BAD[case]
    path = sequence(root) / "scribbles/000000.label"
    path.unlink()
    if content is not None:
        write(path, content)
    with pytest.raises(DataError, match=message) as error:
        ScribbleKitti(root).load(FIRST)
    assert str(error.value.path) == str(path)
    assert error.value.remedy
    report = check(ScribbleKitti(root), "train", progress=False)
    assert [problem.frame for problem in report.problems] == ["scribble_kitti/00/000000"]


def test_unknown_classes_can_be_ignored(root: Path) -> None:
    write(sequence(root) / "scribbles/000000.label", UNKNOWN.tobytes())
    found = semantic(ScribbleKitti(root, ignore_unknown_labels=True).load(FIRST))
    assert [found[3], found[4]] == [0, 1]


def test_unknown_cameras_name_the_closest(root: Path) -> None:
    with pytest.raises(ConfigError, match="image_2"):
        ScribbleKitti(root, cameras=("image2",))
