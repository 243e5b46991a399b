import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("embreex")

from lidarssl.datasets.world.config import (
    VERSION,
    CameraConfig,
    LidarConfig,
    SceneId,
    SplitConfig,
    WorldConfig,
)
from lidarssl.datasets.world.kitti_writer import write_semantic_kitti
from lidarssl.datasets.world.nuscenes_writer import write_nuscenes
from lidarssl.datasets.world.writing import Rows, write_file, write_json, write_scenes
from lidarssl.errors import ConfigError
from world_files import digest

SMALL = WorldConfig(
    splits=(SplitConfig("train", 2, 2), SplitConfig("val", 1, 1)),
    lidar=LidarConfig(beams=8, azimuth_steps=60),
    cameras=(CameraConfig(height=16, width=32),),
)
SCENES = [SceneId("train", number, 1, number) for number in range(4)]


def write_number(config: WorldConfig, scene: SceneId, root: Path) -> Rows:
    write_file(root / f"{scene.number}.txt", b"written")
    return {"numbers": [{"number": scene.number}]}


def fail_at_two(config: WorldConfig, scene: SceneId, root: Path) -> Rows:
    if scene.number == 2:
        raise KeyboardInterrupt
    return write_number(config, scene, root)


def test_resumes_after_an_interruption(tmp_path: Path) -> None:
    records = tmp_path / "records"
    with pytest.raises(KeyboardInterrupt):
        write_scenes(SMALL, SCENES, tmp_path, records, fail_at_two, 1, progress=False)
    (tmp_path / "0.txt").write_bytes(b"kept")
    rows = write_scenes(SMALL, SCENES, tmp_path, records, write_number, 1, progress=False)
    assert rows == [{"numbers": [{"number": number}]} for number in range(4)]
    assert (tmp_path / "0.txt").read_bytes() == b"kept"
    assert (tmp_path / "3.txt").read_bytes() == b"written"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"frames": 2, "rows": {}}', b"\xff"])
def test_unfinished_records_are_written_again(tmp_path: Path, content: bytes) -> None:
    records = tmp_path / "records"
    write_scenes(SMALL, SCENES[:1], tmp_path, records, write_number, 1, progress=False)
    (records / f"{SCENES[0].name}.json").write_bytes(content)
    rows = write_scenes(SMALL, SCENES[:1], tmp_path, records, write_number, 1, progress=False)
    assert rows == [{"numbers": [{"number": 0}]}]


def test_another_world_is_refused_but_splits_may_grow(tmp_path: Path) -> None:
    write_scenes(SMALL, SCENES[:1], tmp_path, tmp_path, write_number, 1, progress=False)
    grown = replace(SMALL, splits=(SplitConfig("train", 9, 1),))
    write_scenes(grown, SCENES, tmp_path, tmp_path, write_number, 1, progress=False)
    other = replace(SMALL, seed=1)
    with pytest.raises(ConfigError, match=r"another synthetic world[\s\S]*seed[\s\S]*remedy"):
        write_scenes(other, SCENES, tmp_path, tmp_path, write_number, 1, progress=False)
    (tmp_path / "world.json").write_text("not json")
    with pytest.raises(ConfigError, match="another synthetic world"):
        write_scenes(SMALL, SCENES, tmp_path, tmp_path, write_number, 1, progress=False)


def test_files_appear_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "rows.json", [{"x": 1}, {"y": [2.5]}])
    assert json.loads((tmp_path / "a" / "rows.json").read_text()) == [{"x": 1}, {"y": [2.5]}]
    write_json(tmp_path / "empty.json", [])
    assert json.loads((tmp_path / "empty.json").read_text()) == []
    assert not list(tmp_path.rglob(".*"))


def test_bytes_do_not_depend_on_workers_or_history(tmp_path: Path) -> None:
    one = write_nuscenes(SMALL, tmp_path / "one", workers=1, progress=False)
    two = write_nuscenes(SMALL, tmp_path / "two", workers=2, progress=False)
    expected = digest(one)
    assert len(expected) > 30
    assert digest(two) == expected
    grown = tmp_path / "grown"
    write_nuscenes(replace(SMALL, splits=SMALL.splits[:1]), grown, workers=1, progress=False)
    write_nuscenes(SMALL, grown, workers=1, progress=False)
    assert digest(grown) == expected
    other = write_nuscenes(replace(SMALL, seed=1), tmp_path / "other", workers=1, progress=False)
    sweeps = {name: value for name, value in digest(other).items() if "LIDAR_TOP" in name}
    assert sweeps
    assert all(expected[name] != value for name, value in sweeps.items())


def test_tables_refer_to_one_another(tmp_path: Path) -> None:
    root = write_nuscenes(SMALL, tmp_path, workers=1, progress=False)

    def table(name: str) -> dict[str, dict[str, object]]:
        rows = json.loads((root / VERSION / f"{name}.json").read_text())
        assert len({row["token"] for row in rows}) == len(rows)
        return {row["token"]: row for row in rows}

    references = {
        "sample": {"scene_token": "scene", "prev": "sample", "next": "sample"},
        "sample_data": {
            "sample_token": "sample",
            "ego_pose_token": "ego_pose",
            "calibrated_sensor_token": "calibrated_sensor",
            "prev": "sample_data",
            "next": "sample_data",
        },
        "calibrated_sensor": {"sensor_token": "sensor"},
        "scene": {
            "log_token": "log",
            "first_sample_token": "sample",
            "last_sample_token": "sample",
        },
        "instance": {
            "category_token": "category",
            "first_annotation_token": "sample_annotation",
            "last_annotation_token": "sample_annotation",
        },
        "sample_annotation": {
            "sample_token": "sample",
            "instance_token": "instance",
            "visibility_token": "visibility",
            "prev": "sample_annotation",
            "next": "sample_annotation",
        },
        "lidarseg": {"sample_data_token": "sample_data"},
        "panoptic": {"sample_data_token": "sample_data"},
    }
    for name, columns in references.items():
        for row in table(name).values():
            for column, target in columns.items():
                assert row[column] in table(target) or (
                    column in ("prev", "next") and not row[column]
                )
    for name in ("sample_data", "lidarseg", "panoptic", "map"):
        for row in table(name).values():
            assert (root / str(row["filename"])).is_file()
    samples = table("sample")
    assert sum(not row["next"] for row in samples.values()) == 3
    for annotation in table("sample_annotation").values():
        if after := table("sample_annotation").get(str(annotation["next"])):
            assert after["prev"] == annotation["token"]
            assert after["instance_token"] == annotation["instance_token"]
    assert json.loads((root / VERSION / "splits.json").read_text()) == {
        "train": ["scene-train-0000", "scene-train-0001"],
        "val": ["scene-val-0000"],
    }


def test_semantic_kitti_has_eleven_sequences(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"10 sequences in 'train', not 60"):
        write_semantic_kitti(WorldConfig(), tmp_path, progress=False)
    with pytest.raises(ConfigError, match="no camera"):
        write_semantic_kitti(replace(SMALL, cameras=()), tmp_path, progress=False)
    write_semantic_kitti(SMALL, tmp_path, workers=1, progress=False)
    sequences = sorted(path.name for path in (tmp_path / "dataset" / "sequences").iterdir())
    assert sequences == ["00", "01", "08"]
