"""nuScenes tables: splits, fractions, labels, boxes, and every way they can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataset_files import POINTS, image_bytes, panoptic_bytes, scene_points, write, write_nuscenes
from lidarssl.datasets.base import ClassTable
from lidarssl.datasets.nuscenes import NuScenes
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, FrameId

CAMERAS = ("CAM_FRONT", "CAM_BACK")
FIRST = FrameId("nuscenes", "scene-0061", "sample-0")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_nuscenes(tmp_path / "nuscenes")


def opened(root: Path, **options: Any) -> NuScenes:
    return NuScenes(root, **{"cameras": CAMERAS, **options})


def edit(root: Path, table: str, change: Callable[[list[dict[str, Any]]], None]) -> Path:
    path = root / "v1.0-mini" / f"{table}.json"
    rows = json.loads(path.read_text())
    change(rows)
    write(path, json.dumps(rows))
    return path


def test_official_splits_have_their_sizes(root: Path) -> None:
    names = opened(root).scene_names
    assert {split: len(scenes) for split, scenes in names.items()} == {
        "train": 700,
        "val": 150,
        "test": 150,
        "mini_train": 8,
        "mini_val": 2,
        "verifying": 100,
        "parametrizing": 600,
    }
    assert not set(names["train"]) & set(names["val"])
    assert set(names["verifying"]) | set(names["parametrizing"]) == set(names["train"])


def test_key_frames_follow_scenes_in_table_order_and_samples_in_time(tmp_path: Path) -> None:
    root = write_nuscenes(
        tmp_path, scenes=(("scene-0655", 2), ("scene-0103", 1), ("scene-0061", 2))
    )
    edit(root, "sample", lambda rows: rows.reverse())
    frames = opened(root).frames("train")
    assert [(frame.sequence, frame.token) for frame in frames] == [
        ("scene-0655", "sample-0"),
        ("scene-0655", "sample-1"),
        ("scene-0061", "sample-3"),
        ("scene-0061", "sample-4"),
    ]


def test_fractions_keep_every_skip_th_scene_from_the_skip_th(tmp_path: Path) -> None:
    scenes = ("scene-0006", "scene-0001", "scene-0002", "scene-0003", "scene-0004", "scene-0005")
    root = write_nuscenes(tmp_path, scenes=tuple((scene, 2) for scene in scenes))
    dataset = opened(root)
    # scene-0003 belongs to val; the count runs over the scenes of train in table order.
    assert dataset.scenes("train") == [scene for scene in scenes if scene != "scene-0003"]
    kept = dataset.label_fraction("train", 2)
    assert [frame.sequence for frame in kept] == ["scene-0001"] * 2 + ["scene-0004"] * 2
    with pytest.raises(ConfigError, match=r"1/6 of the 5 scenes"):
        dataset.label_fraction("train", 6)


def six_scenes(folder: Path) -> tuple[Path, list[str]]:
    """Six scenes of train, in an order of their own."""
    scenes = ["scene-0006", "scene-0001", "scene-0392", "scene-0002", "scene-0004", "scene-0005"]
    return write_nuscenes(folder, scenes=tuple((scene, 1) for scene in scenes)), scenes


@pytest.mark.parametrize("offset", range(4))
@pytest.mark.parametrize("skip", [1, 2, 3])
def test_an_offset_moves_the_count(tmp_path: Path, skip: int, offset: int) -> None:
    root, scenes = six_scenes(tmp_path)
    dataset = opened(root, fractions="also", fraction_offset=offset)
    counter, expected = offset, []
    for scene in scenes:
        counter += 1
        if counter % skip == 0:
            expected.append(scene)
    assert [frame.sequence for frame in dataset.label_fraction("train", skip)] == expected


def test_a_thousandth_of_also_is_one_scene_and_never_another(tmp_path: Path) -> None:
    root, _ = six_scenes(tmp_path / "with")
    also = opened(root, fractions="also")
    assert [frame.sequence for frame in also.label_fraction("train", 1000)] == ["scene-0392"]
    with pytest.raises(ConfigError, match=r"use 1\.\.6"):
        opened(root).label_fraction("train", 1000)
    without = opened(write_nuscenes(tmp_path / "without"), fractions="also")
    with pytest.raises(ConfigError, match="choose a split with scene-0392"):
        without.label_fraction("train", 1000)
    with pytest.raises(ConfigError, match="known: slidr, also"):
        opened(root, fractions="segcontrast")


def write_list(folder: Path, skip: int, tokens: list[str]) -> None:
    rows = [[f"samples/LIDAR_TOP/{one}.bin", f"lidarseg/{one}.bin", one] for one in tokens]
    np.save(folder / f"nuscenes-ratio_{skip}-v_0.npy", np.array(rows))


def lidar_tokens(root: Path) -> dict[str, str]:
    """Token of the lidar reading of every sample, from the table itself."""
    table = json.loads((root / "v1.0-mini" / "sample_data.json").read_text())
    return {row["sample_token"]: row["token"] for row in table if "LIDAR_TOP" in row["filename"]}


def test_a_list_chooses_key_frames_of_the_split(tmp_path: Path) -> None:
    root, _ = six_scenes(tmp_path / "data")
    tokens = lidar_tokens(root)
    write_list(tmp_path, 10, [tokens["sample-4"], tokens["sample-1"], "elsewhere"])
    dataset = opened(root, fractions="scalr", fraction_lists=tmp_path)
    kept = dataset.label_fraction("train", 10)
    assert [frame.token for frame in kept] == ["sample-1", "sample-4"]
    assert dataset.fraction_size("train", 10) == 3
    assert dataset.label_fraction("train", 1) == dataset.frames("train")
    assert dataset.fraction_size("train", 1) is None
    assert dataset.fraction_note("train", 10) == dataset.fraction_note("train", 1) == ""
    with pytest.raises(DataError, match=r"(?s)ratio_100-v_0\.npy.*label_skip 10 and 100"):
        dataset.label_fraction("train", 100)


def test_without_lists_the_scenes_are_those_of_slidr_and_it_says_so(tmp_path: Path) -> None:
    root, _ = six_scenes(tmp_path)
    scalr, slidr = opened(root, fractions="scalr"), opened(root)
    assert scalr.label_fraction("train", 3) == slidr.label_fraction("train", 3)
    assert "every 3-th scene, as SLidR" in scalr.fraction_note("train", 3)
    assert scalr.fraction_note("train", 1) == slidr.fraction_note("train", 3) == ""
    for wrong in ({"fractions": "slidr"}, {"fractions": "scalr", "fraction_offset": 1}):
        with pytest.raises(ConfigError, match="no other draw"):
            opened(root, fraction_lists=tmp_path, **wrong)


def test_a_pickled_list_is_refused_and_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path / "trap").mkdir, ()

    root, _ = six_scenes(tmp_path / "data")
    for content in (np.array([["a", "b", "c"]], dtype=object), np.array([[Payload()] * 3])):
        np.save(tmp_path / "nuscenes-ratio_100-v_0.npy", content, allow_pickle=True)
        dataset = opened(root, fractions="scalr", fraction_lists=tmp_path)
        with pytest.raises(DataError, match=r"(?s)pickled objects.*astype\(str\)"):
            dataset.label_fraction("train", 100)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    "content",
    [
        np.zeros((4, 3)), np.array(["a", "b", "c"]), np.array([["a", "b"]]),
        np.array([[b"a", b"b", b"c"]]), np.empty((0, 3), "<U8"),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)  # fmt: skip
def test_what_is_no_list(tmp_path: Path, content: np.ndarray) -> None:
    root, _ = six_scenes(tmp_path / "data")
    np.save(tmp_path / "nuscenes-ratio_10-v_0.npy", content)
    dataset = opened(root, fractions="scalr", fraction_lists=tmp_path)
    with pytest.raises(DataError, match="rows of three texts") as caught:
        dataset.label_fraction("train", 10)
    assert caught.value.path == tmp_path / "nuscenes-ratio_10-v_0.npy"


def test_a_splits_file_replaces_the_official_splits(root: Path) -> None:
    splits = {"teacher": ["scene-0103"], "train": ["scene-0061", "scene-0655"]}
    write(root / "v1.0-mini" / "splits.json", json.dumps(splits))
    dataset = opened(root)
    assert dataset.splits == ("teacher", "train")
    assert dataset.scenes("teacher") == ["scene-0103"]


def test_other_categories_and_classes_are_class_attributes(root: Path) -> None:
    class Own(NuScenes):
        name = "own"
        classes = ClassTable(("ignored", "thing", "ground"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))
        box_classes = ("thing",)
        class_of_category = {  # noqa: RUF012
            "noise": "ignored",
            "vehicle.car": "thing",
            "flat.driveable_surface": "ground",
        }
        default_cameras = ()

    dataset = Own(root)
    assert dataset.cameras == CAMERAS
    frame = dataset.load(dataset.frames("train")[0])
    assert frame.id.dataset == "own"
    assert frame.semantic is not None
    assert frame.semantic.tolist() == [0, 1, 2] * 16 + [0, 1]
    assert frame.boxes is not None
    assert frame.boxes.label.tolist() == [0]


def test_labels_go_through_the_index_of_the_category(root: Path) -> None:
    def renumber(rows: list[dict[str, Any]]) -> None:
        rows[1]["index"], rows[2]["index"] = 2, 1

    edit(root, "category", renumber)
    semantic = opened(root).load(FIRST, Field.SEMANTIC).semantic
    assert semantic is not None
    assert semantic.tolist() == [0, 11, 4] * 16 + [0, 11]


def test_panoptic_labels(root: Path) -> None:
    frame = opened(root).load(FIRST, Field.SEMANTIC | Field.INSTANCE)
    assert frame.instance is not None
    assert frame.instance.tolist() == [0, 1007, 0] * 16 + [0, 1007]
    expected = frame.semantic
    (root / "v1.0-mini" / "lidarseg.json").unlink()
    again = opened(root).load(FIRST, Field.SEMANTIC)
    assert again.instance is None
    assert again.semantic is not None
    assert expected is not None
    assert torch.equal(again.semantic, expected)


def test_a_version_without_labels_carries_none(root: Path) -> None:
    for name in ("lidarseg", "panoptic", "sample_annotation"):
        (root / "v1.0-mini" / f"{name}.json").unlink()
    dataset = opened(root)
    assert dataset.provides("train") == Field.IMAGES | Field.POSE
    frame = dataset.load(FIRST)
    assert (frame.semantic, frame.instance, frame.boxes) == (None, None, None)


def test_boxes_are_in_the_lidar_frame(root: Path) -> None:
    """A car 5 m ahead along the ego vehicle's x, which is the lidar's y; 4 m long."""
    boxes = opened(root).load(FIRST).boxes
    assert boxes is not None
    torch.testing.assert_close(boxes.center, torch.tensor([[0.0, 5.0, 0.0]]), atol=1e-4, rtol=0)
    assert boxes.size.tolist() == [[4.0, 2.0, 1.5]]
    assert boxes.yaw.tolist() == pytest.approx([np.pi / 2])
    assert [NuScenes.box_classes[label] for label in boxes.label.tolist()] == ["car"]


def test_ego_motion_between_lidar_and_camera_is_compensated(root: Path) -> None:
    def advance(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["token"] == "e-CAM_FRONT-0":
                row["translation"][0] += 0.5

    before = opened(root).load(FIRST).cameras[0].camera_from_lidar
    edit(root, "ego_pose", advance)
    after = opened(root).load(FIRST).cameras[0].camera_from_lidar
    # The car drove 0.5 m ahead before the exposure: everything is 0.5 m closer.
    torch.testing.assert_close(after[:3, 3] - before[:3, 3], torch.tensor([0, 0, -0.5]).double())
    ahead = before @ torch.tensor([0.0, 9.0, 0.0, 1.0]).double()
    torch.testing.assert_close(ahead[:3], torch.tensor([0.0, 0.0, 9.0]).double())


def test_nothing_but_the_sweep_is_read_when_nothing_else_is_asked_for(root: Path) -> None:
    for path in [*root.glob("samples/CAM*/*"), *root.glob("lidarseg/*/*")]:
        path.write_bytes(b"garbage")
    write(root / "v1.0-mini" / "sample_annotation.json", "garbage")
    assert len(opened(root).load(FIRST, Field.NONE)) == POINTS


def test_sweeps_and_other_sensors_are_left_out(root: Path) -> None:
    def add(rows: list[dict[str, Any]]) -> None:
        rows.append({**rows[0], "token": "sweep", "is_key_frame": False, "filename": "sweeps/x"})
        rows.append({**rows[0], "token": "radar", "calibrated_sensor_token": "c-RADAR_FRONT"})

    before = opened(root).index
    edit(root, "sample_data", add)
    assert opened(root).index.key_frames == before.key_frames


@pytest.mark.parametrize("level", ["..", "v1.0-mini", "samples"])
def test_wrong_root_suggests_the_right_one(root: Path, level: str) -> None:
    with pytest.raises(DataError, match="remedy: use root") as error:
        opened((root / level).resolve())
    assert str(error.value.remedy) == f"use root {root}"


def test_wrong_version_names_the_present_one(root: Path) -> None:
    with pytest.raises(DataError, match=r"use version v1\.0-mini"):
        opened(root, version="v1.0-trainval")


def test_a_split_that_the_version_lacks_names_those_it_has(root: Path) -> None:
    with pytest.raises(DataError, match="train, val") as error:
        opened(root).frames("test")
    assert error.value.path is not None


def test_unknown_camera_names_the_closest(root: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'CAM_FRONT'"):
        opened(root, cameras=("CAM_FRON",))


def first_row(**values: object) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[0].update(values)


BAD_TABLES = {
    "climbing": ("sample_data", first_row(filename="../../etc/passwd"), "does not stay inside"),
    "absolute": ("sample_data", first_row(filename="/etc/passwd"), "does not stay inside"),
    "label climbing": ("lidarseg", first_row(filename="a/../../b"), "does not stay inside"),
    "number as name": ("sample_data", first_row(filename=7), "not a string"),
    "no pose": ("ego_pose", lambda rows: rows.pop(0), "ego pose .* does not exist"),
    "no quaternion": ("ego_pose", first_row(rotation=[0, 0, 0, 0]), "unit quaternion"),
    "short translation": ("ego_pose", first_row(translation=[1, 2]), "not 3 numbers"),
    "circle": ("sample", first_row(next="sample-0"), "closes a circle"),
    "lost sample": ("sample", first_row(next="nowhere"), "does not exist"),
    "slash in scene": ("scene", first_row(name="a/b"), "cannot be used as a name"),
    "missing key": ("scene", lambda rows: rows[0].pop("name"), "lacks 'name'"),
    "no index": ("category", lambda rows: rows[0].pop("index"), "comes with the lidarseg"),
    "new category": ("category", first_row(name="vehicle.boat"), "has no train class"),
    "lidar missing": ("sample_data", lambda rows: rows.pop(0), "no key frame of LIDAR_TOP"),
    "camera missing": ("sample_data", lambda rows: rows.pop(1), "no key frame of CAM_FRONT"),
    "no intrinsics": (
        "calibrated_sensor",
        lambda rows: rows[1].update(camera_intrinsic=[]),
        "CAM_FRONT has no intrinsics",
    ),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_are_named(root: Path, case: str) -> None:
    table, change, message = BAD_TABLES[case]
    path = edit(root, table, change)
    with pytest.raises(DataError, match=message) as error:
        opened(root).load(FIRST)
    assert str(error.value.path) == str(path)


@pytest.mark.parametrize(
    "content", ["", "[", "{}", '[{"token": ', "[1]", '[{}, "x"]', "[] []", "[{}"]
)
def test_malformed_json_is_named(root: Path, content: str) -> None:
    path = write(root / "v1.0-mini" / "scene.json", content)
    with pytest.raises(DataError) as error:
        opened(root)
    assert str(error.value.path) == str(path)


NAN = scene_points(0, 5)
NAN[3, 1] = np.nan
RING = scene_points(0, 5)
RING[4, 4] = -1
BAD_FILES = {
    "missing sweep": ("samples/LIDAR_TOP/0.pcd.bin", None, "not found"),
    "truncated sweep": ("samples/LIDAR_TOP/0.pcd.bin", bytes(33), "20-byte points"),
    "empty sweep": ("samples/LIDAR_TOP/0.pcd.bin", b"", "has 0 points"),
    "NaN": ("samples/LIDAR_TOP/0.pcd.bin", NAN.tobytes(), "1 of 50 .* row 3"),
    "negative ring": ("samples/LIDAR_TOP/0.pcd.bin", RING.tobytes(), "beam index of row 4"),
    "missing image": ("samples/CAM_BACK/0.jpg", None, "not found"),
    "truncated image": ("samples/CAM_BACK/0.jpg", image_bytes(0, "JPEG")[:300], "not decode"),
    "few labels": (
        "lidarseg/v1.0-mini/LIDAR_TOP-0_lidarseg.bin", bytes(49), "49 labels, but .* 50 points"
    ),
    "unknown label": (
        "lidarseg/v1.0-mini/LIDAR_TOP-0_lidarseg.bin", bytes([40]) * POINTS, "50 points .*: 40"
    ),
    "few panoptic": (
        "panoptic/v1.0-mini/LIDAR_TOP-0_panoptic.npz",
        panoptic_bytes(np.zeros(40, np.uint8)),
        r"shape \(40,\)",
    ),
    "no zip": ("panoptic/v1.0-mini/LIDAR_TOP-0_panoptic.npz", b"PK", "panoptic .npz"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named(root: Path, case: str) -> None:
    name, content, message = BAD_FILES[case]
    path = root / name
    path.unlink()
    if content is not None:
        write(path, content)
    with pytest.raises(DataError, match=message) as error:
        opened(root).load(FIRST)
    assert str(error.value.path) == str(path)


def test_a_zip_bomb_of_labels_is_not_expanded(root: Path) -> None:
    path = root / "panoptic" / "v1.0-mini" / "LIDAR_TOP-0_panoptic.npz"
    write(path, panoptic_bytes(np.zeros(10_000_000, np.uint8)))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match="does not match"):
        opened(root).load(FIRST)
