"""Every way a SemanticKITTI folder can be wrong, and what the loader says about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dataset_files import CALIB, POINTS, image_bytes, scene_points, write, write_semantic_kitti
from lidarssl.datasets.semantic_kitti import SEQUENCES, SemanticKitti
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, FrameId

FIRST = FrameId("semantic_kitti", "00", "000000")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_semantic_kitti(tmp_path / "kitti")


def sequence(root: Path) -> Path:
    return root / "dataset" / "sequences" / "00"


def test_splits_are_the_official_ones() -> None:
    assert SEQUENCES["train"] == tuple(f"{n:02d}" for n in range(11) if n != 8)
    assert SEQUENCES["val"] == ("08",)
    assert SEQUENCES["test"] == tuple(str(n) for n in range(11, 22))
    assert SEQUENCES["parametrizing"] == SEQUENCES["train"]


def test_root_may_be_given_at_two_levels(root: Path) -> None:
    ids = SemanticKitti(root).frames("train")
    assert ids == SemanticKitti(root / "dataset").frames("train")
    assert [str(frame) for frame in ids[:4]] == [
        "semantic_kitti/00/000000",
        "semantic_kitti/00/000001",
        "semantic_kitti/00/000002",
        "semantic_kitti/01/000000",
    ]


@pytest.mark.parametrize("level", ["..", "dataset/sequences", "dataset/sequences/00/velodyne"])
def test_wrong_root_suggests_the_right_one(root: Path, level: str) -> None:
    with pytest.raises(DataError, match="remedy: use root") as error:
        SemanticKitti((root / level).resolve())
    suggested = str(error.value.remedy).removeprefix("use root ")
    assert SemanticKitti(suggested).frames("val")


def test_hopeless_root_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dataset/sequences/00"):
        SemanticKitti(tmp_path)


def test_one_percent_is_every_hundredth_of_the_sorted_list(tmp_path: Path) -> None:
    root = write_semantic_kitti(tmp_path, scans=(("00", 1), ("09", 1)))
    for name, count in (("00", 150), ("09", 120)):
        for scan in range(count):
            folder = root / "dataset" / "sequences" / name / "velodyne"
            (folder / f"{scan:06d}.bin").touch()
    kept = SemanticKitti(root).label_fraction("train", 100)
    assert [f"{frame.sequence}/{frame.token}" for frame in kept] == [
        "00/000000",
        "00/000100",
        "09/000050",
    ]


SCANS = {
    "00": 4541, "01": 1101, "02": 4661, "03": 801, "04": 271, "05": 2761, "06": 1101, "07": 1101,
    "09": 1591, "10": 1201,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SemanticKitti:
    """Every training scan of the dataset, empty."""
    root = tmp_path_factory.mktemp("whole")
    for sequence, count in SCANS.items():
        folder = root / "sequences" / sequence / "velodyne"
        folder.mkdir(parents=True)
        for scan in range(count):
            (folder / f"{scan:06d}.bin").touch()
    return SemanticKitti(root, fractions="segcontrast")


@pytest.mark.parametrize(
    ("skip", "count"),
    [(1, 19130), (2, 9560), (4, 4779), (10, 1912), (100, 188), (1000, 17), (10000, 1)],
)
def test_lists_of_segcontrast_have_their_sizes(whole: SemanticKitti, skip: int, count: int) -> None:
    kept = whole.label_fraction("train", skip)
    assert len(set(kept)) == len(kept) == count
    assert kept == sorted(kept, key=str)
    assert whole.fraction_size("train", skip) == (None if skip == 1 else count)
    # Drawn from each sequence in proportion to its length.
    for sequence, scans in SCANS.items():
        found = sum(frame.sequence == sequence for frame in kept)
        assert abs(found - scans / skip) <= 1


def test_lists_of_segcontrast_are_the_published_ones(whole: SemanticKitti) -> None:
    published = {
        "00": (1643, 2989, 13, 1564), "01": (523,), "02": (270, 1439, 4016, 734), "03": (49,),
        "04": (58,), "05": (730, 1333), "06": (867,), "07": (215,), "09": (760,), "10": (189,),
    }  # fmt: skip
    expected = {f"{sequence}/{scan:06d}" for sequence, scans in published.items() for scan in scans}
    kept = whole.label_fraction("train", 1000)
    assert {f"{frame.sequence}/{frame.token}" for frame in kept} == expected
    assert [frame.token for frame in whole.label_fraction("train", 10000)] == ["003340"]
    hundredth = whole.label_fraction("train", 100)
    assert [f.token for f in hundredth if f.sequence == "04"] == ["000001", "000074"]


def test_listed_scans_that_are_not_there_are_left_out(root: Path) -> None:
    """Of the scans 00/0, 00/1, 00/2, 01/0 and 01/1, the list of 1/2 has some."""
    some = SemanticKitti(root, fractions="segcontrast")
    kept = some.label_fraction("train", 2)
    assert set(kept) < set(some.frames("train"))
    assert some.fraction_size("train", 2) == 9560
    assert some.label_fraction("train", 10000) == []
    assert some.label_fraction("val", 2) == []
    assert some.fraction_size("val", 2) == 0


def test_shares_without_a_list_name_those_that_have_one(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"1, 2, 4, 10, 100, 1000, 10000") as caught:
        SemanticKitti(root, fractions="segcontrast").label_fraction("train", 20)
    assert caught.value.field == "skip"
    with pytest.raises(ConfigError, match="known: slidr, segcontrast"):
        SemanticKitti(root, fractions="also")  # type: ignore[arg-type]


def test_projection_is_p_times_tr(root: Path) -> None:
    """Against the plain matrix product of calib.txt, for both colour cameras."""
    frame = SemanticKitti(root, cameras=("image_2", "image_3")).load(FIRST)
    matrices = {
        line.split(":")[0]: np.array(line.split(":")[1].split(), float).reshape(3, 4)
        for line in CALIB.splitlines()
    }
    homogeneous = np.c_[frame.points.numpy(), np.ones(POINTS)]
    for camera, key in zip(frame.cameras, ("P2", "P3"), strict=True):
        expected = homogeneous @ (matrices[key] @ np.vstack([matrices["Tr"], [0, 0, 0, 1]])).T
        in_camera = homogeneous @ camera.camera_from_lidar.numpy().T
        actual = in_camera[:, :3] @ camera.intrinsics.numpy().T
        np.testing.assert_allclose(actual, expected, atol=1e-9)


def test_the_translation_of_tr_can_be_dropped_from_the_cameras_alone(root: Path) -> None:
    """NCLR's published extrinsics: the rotation of Tr, and the translation that P2 tells."""
    dropped = SemanticKitti(root, lidar_translation=False).load(FIRST)
    kept = SemanticKitti(root).load(FIRST)
    matrices = {
        line.split(":")[0]: np.array(line.split(":")[1].split(), float).reshape(3, 4)
        for line in CALIB.splitlines()
    }
    p, tr = matrices["P2"], matrices["Tr"]
    z = p[2, 3]
    offset = [(p[0, 3] - p[0, 2] * z) / p[0, 0], (p[1, 3] - p[1, 2] * z) / p[1, 1], z]
    found, whole = (one.cameras[0].camera_from_lidar.numpy() for one in (dropped, kept))
    np.testing.assert_allclose(found[:3, :3], tr[:, :3], atol=1e-9)
    np.testing.assert_allclose(found[:3, 3], offset, atol=1e-9)
    np.testing.assert_allclose((whole - found)[:3, 3], tr[:, 3], atol=1e-9)
    assert abs(tr[:, 3]).max() > 0.01
    assert kept.pose is not None
    assert torch.equal(dropped.pose, kept.pose)


def test_labels_split_into_class_and_object(root: Path) -> None:
    frame = SemanticKitti(root).load(FIRST)
    assert frame.semantic is not None
    assert frame.instance is not None
    assert frame.semantic.tolist() == [1] * 30 + [9] * 20
    assert frame.instance.tolist() == [10 + 65536] * 20 + [10 + 2 * 65536] * 10 + [0] * 20


def test_pose_is_that_of_the_lidar(root: Path) -> None:
    write(
        sequence(root) / "poses.txt", "1 0 0 0 0 1 0 0 0 0 1 0\n" + "1 0 0 0 0 1 0 0 0 0 1 5\n" * 2
    )
    pose = SemanticKitti(root).load(FrameId("semantic_kitti", "00", "000001")).pose
    assert pose is not None
    # 5 m along the camera's z is 5 m along the lidar's x.
    torch.testing.assert_close(pose[:3, 3], torch.tensor([5.0, 0, 0]).double())


def test_calibration_may_stand_in_its_own_tree(root: Path) -> None:
    moved = root / "calib" / "dataset" / "sequences" / "00" / "calib.txt"
    write(moved, CALIB)
    (sequence(root) / "calib.txt").unlink()
    assert len(SemanticKitti(root).load(FIRST).cameras) == 1


def test_nothing_but_the_scan_is_read_when_nothing_else_is_asked_for(root: Path) -> None:
    for name in ("labels/000000.label", "image_2/000000.png", "calib.txt", "poses.txt"):
        write(sequence(root) / name, b"\x00garbage")
    frame = SemanticKitti(root).load(FIRST, Field.NONE)
    assert len(frame) == POINTS
    assert frame.cameras == ()


NAN = scene_points(0, 4)
NAN[7, 2], NAN[9, 0] = np.nan, np.inf
UNKNOWN = np.full(POINTS, 10, "<u4")
UNKNOWN[3] = 77
BAD = {
    "missing scan": ("velodyne/000000.bin", None, "not found"),
    "truncated scan": ("velodyne/000000.bin", bytes(30), "30 bytes .* 16-byte points"),
    "empty scan": ("velodyne/000000.bin", b"", "has 0 points"),
    "NaN": ("velodyne/000000.bin", NAN.tobytes(), "2 of 50 .* first in row 7"),
    "map coordinates": ("velodyne/000000.bin", np.full((2, 4), 5e5, "<f4").tobytes(), "500000 m"),
    "missing labels": ("labels/000000.label", None, "not found"),
    "too few labels": ("labels/000000.label", bytes(4 * 49), "49 labels, but .* 50 points"),
    "unknown class": ("labels/000000.label", UNKNOWN.tobytes(), "1 point .*: 77"),
    "missing image": ("image_2/000000.png", None, "not found"),
    "truncated image": ("image_2/000000.png", image_bytes(0)[:200], "does not decode"),
    "no image": ("image_2/000000.png", b"no image", "does not decode"),
    "no calibration": ("calib.txt", None, "data_odometry_calib"),
    "no Tr": ("calib.txt", CALIB.split("Tr")[0], "no line 'Tr:'.*(.|\n)*unpack"),
    "no P2": ("calib.txt", CALIB.replace("P2", "P9"), "no line 'P2:'"),
    "short Tr": ("calib.txt", CALIB[:-5], "'Tr' has 11 numbers"),
    "words in calib": ("calib.txt", CALIB.replace("0.1", "O.1"), "O.1"),
    "scaled Tr": ("calib.txt", CALIB.replace("Tr: 0 -1", "Tr: 0 -2"), "not a rotation"),
    "few poses": ("poses.txt", "", "has 0 poses"),
    "short pose": ("poses.txt", "1 0 0\n" * 3, "line 1 has 3 numbers"),
    "NaN pose": ("poses.txt", "nan 0 0 0 0 1 0 0 0 0 1 0\n" * 3, "NaN"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_a_remedy(root: Path, case: str) -> None:
    name, content, message = BAD[case]
    path = sequence(root) / name
    path.unlink()
    if content is not None:
        write(path, content)
    dataset = SemanticKitti(root)
    with pytest.raises(DataError, match=message) as error:
        dataset.load(FIRST)
    assert str(error.value.path) == str(path)


def test_unknown_labels_can_be_ignored_on_request(root: Path) -> None:
    write(sequence(root) / "labels" / "000000.label", UNKNOWN.tobytes())
    frame = SemanticKitti(root, ignore_unknown_labels=True).load(FIRST)
    assert frame.semantic is not None
    assert frame.semantic.tolist() == [1, 1, 1, 0] + [1] * 46


def test_unlabelled_sequences_load_without_labels(tmp_path: Path) -> None:
    root = write_semantic_kitti(tmp_path, scans=(("11", 1),))
    folder = root / "dataset" / "sequences" / "11"
    for name in ("labels/000000.label",):
        (folder / name).unlink()
    (folder / "labels").rmdir()
    dataset = SemanticKitti(root)
    assert dataset.provides("test") == Field.IMAGES | Field.POSE
    assert dataset.load(dataset.frames("test")[0]).semantic is None
    with pytest.raises(DataError, match="no scan of split 'val'"):
        dataset.frames("val")


@pytest.mark.parametrize(
    "options", [{"cameras": ("image_7",)}, {"image_scale": 0.0}, {"image_scale": 1.5}]
)
def test_options_are_checked(root: Path, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        SemanticKitti(root, **options)  # type: ignore[arg-type]


def test_says_how_many_official_scans_are_not_here(tmp_path: Path) -> None:
    dataset = SemanticKitti(write_semantic_kitti(tmp_path))
    assert dataset.absent("train") == "sequences 02, 03, 04, 05, 06, 07, 09, 10"
    assert dataset.absent("val") == "4069 of the 4071 scans of the split"
