"""The instance bank: complete, resumable, indifferent to workers and shards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from commands import run_command
from dataset_files import write_semantic_kitti
from lidarssl.datasets.semantic_kitti import LEARNING_MAP, SemanticKitti
from lidarssl.errors import ConfigError, DataError
from lidarssl.frame import Field, Frame, FrameId
from lidarssl.prepare.instances import instances_of, prepare_instances
from lidarssl.transforms.instance_bank import SCANS_PER_PART, Instances, read_bank
from object_scans import BICYCLE, PERSON, ObjectScans

CLASSES = ("person", "bicycle")
SCANS = SCANS_PER_PART * 2 + 2
Cut = dict[tuple[int, int, int], list[tuple[float, ...]]]


def prepare(dataset: ObjectScans, folder: Path, **options: object) -> str:
    return str(prepare_instances(dataset, "train", folder, CLASSES, progress=False, **options))  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


def reference(frame: Frame, scan: int, labels: tuple[int, ...], unnumbered: bool = False) -> Cut:
    """Points of every instance of more than five points, by a loop over the points."""
    assert frame.semantic is not None
    assert frame.instance is not None
    groups: Cut = defaultdict(list)
    for point, intensity, label, number in zip(
        frame.points.double().tolist(), frame.intensity.tolist(), frame.semantic.tolist(),
        frame.instance.tolist(), strict=True,
    ):  # fmt: skip
        if label in labels and (number or unnumbered):
            groups[scan, label, number].append((*point, intensity))
    cut: Cut = {}
    for key, rows in groups.items():
        if len(rows) > 5:
            x, y = (sum(row[axis] for row in rows) / len(rows) for axis in (0, 1))
            low = min(row[2] for row in rows)
            cut[key] = [(row[0] - x, row[1] - y, row[2] - low, row[3]) for row in rows]
    return cut


def as_cut(instances: Instances) -> Cut:
    ends = instances.size.cumsum(0).tolist()
    return {
        (int(instances.scan[k]), int(instances.label[k]), int(instances.instance[k])): [
            (*instances.points[row].tolist(), float(instances.intensity[row]))
            for row in range(end - int(instances.size[k]), end)
        ]
        for k, end in enumerate(ends)
    }


def agree(found: Cut, expected: Cut) -> None:
    assert found.keys() == expected.keys()
    for key, rows in expected.items():
        np.testing.assert_allclose(found[key], rows, rtol=0, atol=2e-6)


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=25, deadline=None)
def test_instances_are_those_of_a_plain_loop(number: int, unnumbered: bool) -> None:
    dataset = ObjectScans()
    frame = dataset.load(FrameId("objects", "train", f"{number:04d}"))
    found = instances_of(frame, 3, (PERSON, BICYCLE), unnumbered=unnumbered)
    agree(as_cut(found), reference(frame, 3, (PERSON, BICYCLE), unnumbered))
    assert unnumbered == ((3, PERSON, 0) in as_cut(found))


def test_a_bank_holds_every_scan(tmp_path: Path) -> None:
    dataset = ObjectScans(SCANS, objects=2)
    summary = prepare_instances(dataset, "train", tmp_path, CLASSES, progress=False)
    assert (summary.scans, summary.written, summary.kept, summary.missing) == (SCANS, 3, 0, 0)
    stored, instances = read_bank(tmp_path)
    assert (stored.dataset, stored.split, stored.scans) == ("objects", "train", SCANS)
    assert (stored.class_table, stored.classes) == (dataset.classes.names, CLASSES)
    expected: Cut = {}
    for scan, frame in enumerate(dataset.frames("train")):
        expected |= reference(dataset.load(frame), scan, (PERSON, BICYCLE))
    agree(as_cut(instances), expected)
    counts = [sum(key[1] == label for key in expected) for label in (PERSON, BICYCLE)]
    assert list(summary.found.items()) == list(zip(CLASSES, counts, strict=True))
    assert f"person           {counts[0]:7d} instances" in str(summary)


def test_workers_and_shards_change_nothing(tmp_path: Path) -> None:
    dataset = ObjectScans(SCANS, objects=1)
    alone, together = tmp_path / "alone", tmp_path / "together"
    prepare(dataset, alone)
    told = [prepare(dataset, together, workers=2, shard=(i, 2)) for i in range(2)]
    assert "1 of 3 parts are left to other shards" in told[0]
    assert "left to other" not in told[1]
    assert contents(alone) == contents(together)


def test_whole_parts_are_kept_and_damaged_ones_replaced(tmp_path: Path) -> None:
    dataset = ObjectScans(SCANS, objects=1)
    prepare(dataset, tmp_path)
    whole, before = contents(tmp_path), times(tmp_path)
    (tmp_path / "part-00000.safetensors").unlink()
    (tmp_path / "part-00001.safetensors").write_bytes(whole["part-00001.safetensors"][:200])
    assert "2 parts made, 1 kept" in prepare(dataset, tmp_path)
    assert contents(tmp_path) == whole
    kept = "part-00002.safetensors"
    assert times(tmp_path)[kept] == before[kept]
    assert "3 parts made, 0 kept" in prepare(dataset, tmp_path, overwrite=True)
    assert contents(tmp_path) == whole


def test_a_killed_pass_is_finished_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    program = textwrap.dedent(
        f"""
        import time
        from lidarssl.prepare import instances as room
        from object_scans import ObjectScans
        cut = room.instances_of
        def slowly(frame, scan, *rest):
            if scan > {SCANS_PER_PART + 3}:
                time.sleep(60)
            return cut(frame, scan, *rest)
        room.instances_of = slowly
        room.prepare_instances(ObjectScans({SCANS}, 1), "train", {str(folder)!r}, {CLASSES},
                               progress=False)
        """
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    deadline = time.monotonic() + 120
    while not list(folder.glob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(DataError, match="2 of the 3 parts of the bank are missing") as caught:
        read_bank(folder)
    assert "prepare instances" in str(caught.value.remedy)
    assert "2 parts made, 1 kept" in prepare(ObjectScans(SCANS, 1), folder)
    prepare(ObjectScans(SCANS, 1), tmp_path / "reference")
    assert contents(folder) == contents(tmp_path / "reference")


def test_a_folder_holds_one_bank(tmp_path: Path) -> None:
    prepare(ObjectScans(3), tmp_path)
    before = contents(tmp_path)
    for other, options in (
        (ObjectScans(4), {}),
        (ObjectScans(3), {"min_points": 2}),
        (ObjectScans(3), {"unnumbered": True}),
    ):
        with pytest.raises(ConfigError, match="made with other settings"):
            prepare(other, tmp_path, **options)
    with pytest.raises(ConfigError, match="classes person bicycle, not wall"):
        prepare_instances(ObjectScans(3), "train", tmp_path, ("wall",), progress=False)
    assert contents(tmp_path) == before
    old = tmp_path / "part-00000.safetensors"
    assert "1 part made" in prepare(ObjectScans(3), tmp_path, min_points=2, overwrite=True)
    old.write_bytes(before[old.name])
    with pytest.raises(DataError, match="belongs to another bank"):
        read_bank(tmp_path)
    assert "1 part made" in prepare(ObjectScans(3), tmp_path, min_points=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"carried": Field.SEMANTIC}, "has no instance labels"),
        ({"carried": Field.NONE}, "has no semantic and no instance labels"),
    ],
)
def test_labels_are_needed(tmp_path: Path, options: dict[str, Field], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        prepare(ObjectScans(2, **options), tmp_path)
    assert not list(tmp_path.iterdir())


def test_senseless_options(tmp_path: Path) -> None:
    for options, said in (
        ({"classes": ("persn",)}, "did you mean 'person'"),
        ({"classes": ()}, "of 0 classes"),
        ({"classes": CLASSES, "min_points": 0}, "can have 0 points"),
        ({"classes": CLASSES, "shard": (2, 2)}, "shard 2/2 does not exist"),
    ):
        with pytest.raises(ConfigError, match=said):
            prepare_instances(ObjectScans(2), "train", tmp_path, progress=False, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_scan_that_cannot_be_read_stops_the_pass(tmp_path: Path, workers: int) -> None:
    write_semantic_kitti(tmp_path)
    labels = tmp_path / "dataset" / "sequences" / "01" / "labels" / "000001.label"
    labels.write_bytes(labels.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"000001\.label"):
        prepare_instances(
            SemanticKitti(tmp_path), "train", tmp_path / "bank", ("car",), workers=workers,
            progress=False,
        )  # fmt: skip
    assert [path.name for path in (tmp_path / "bank").iterdir()] == ["instances.json"]


def test_banks_that_are_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="file not found") as caught:
        read_bank(tmp_path / "nowhere")
    assert "lidarssl prepare instances" in str(caught.value.remedy)
    prepare(ObjectScans(2, objects=0), tmp_path)
    with pytest.raises(DataError, match="no instance of person, bicycle"):
        read_bank(tmp_path)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bank")
    prepare(ObjectScans(2), folder)
    return folder


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset", 3), ("split", ""), ("class_table", "person"), ("classes", ["dog"]),
        ("classes", []), ("min_points", 0), ("min_points", True), ("scans", 2**40),
        ("scans", 1.5), ("unnumbered", 1), ("fingerprint", None),
    ],
)  # fmt: skip
def test_a_damaged_index_names_its_key(
    bank: Path, tmp_path: Path, name: str, value: object
) -> None:
    stored = json.loads((bank / "instances.json").read_text()) | {name: value}
    (tmp_path / "instances.json").write_text(json.dumps(stored))
    with pytest.raises(DataError) as caught:
        read_bank(tmp_path)
    assert caught.value.field == name
    assert caught.value.path == tmp_path / "instances.json"


@given(st.sampled_from(["instances.json", "part-00000.safetensors"]), st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_damage_is_refused_or_harmless(bank: Path, name: str, data: st.DataObject) -> None:
    """Whatever a byte becomes, or wherever a file ends: an error that names it, or instances."""
    folder, whole = bank / "damaged", contents_of(bank)
    folder.mkdir(exist_ok=True)
    for file, content in whole.items():
        (folder / file).write_bytes(content)
    changed = bytearray(whole[name])
    place = data.draw(st.integers(0, min(len(changed), 900) - 1))
    if data.draw(st.booleans()):
        changed[place] = data.draw(st.integers(0, 255))
    else:
        del changed[place:]
    (folder / name).write_bytes(bytes(changed))
    try:
        _, instances = read_bank(folder)
    except DataError as error:
        named = error.path
    else:
        named = folder / name
        rows, owner = instances.rows(torch.arange(len(instances)))
        assert len(rows) == len(owner) == len(instances.points)
        assert bool(torch.isfinite(instances.points).all())
    assert named is not None
    assert Path(named).parent == folder


def contents_of(bank: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bank.iterdir() if path.is_file()}


def test_instances_on_the_command_line(tmp_path: Path) -> None:
    """In every scan 20 points of one car and 10 of another."""
    write_semantic_kitti(tmp_path)
    words = [
        "prepare", "instances", "semantic_kitti", "--root", tmp_path, "--split", "train",
        "--output", tmp_path / "bank", "--workers", 0, "--classes", "car", "truck", "--quiet",
    ]  # fmt: skip
    done = run_command(*words)
    assert done.code == 0, done.err
    assert "1 part made, 0 kept, 5 scans" in done.out
    assert "car                   10 instances\n" in done.out
    assert "truck                  0 instances\n" in done.out
    assert "0 parts made, 1 kept" in run_command(*words).out
    assert "car                    5 instances" in run_command(
        *words, "--min-points", 11, "--overwrite"
    ).out  # fmt: skip
    refused = run_command(*words)
    assert refused.code == 2
    assert "min_points 11, not 6" in refused.err
    for wrong, said in (
        (["--classes", "cr"], "did you mean 'car'?"), (["--shard", "1/1"], "is not i/n"),
        (["--min-points", 0], "of 1 or more"), (["--clases", "car"], "did you mean '--classes'?"),
        (["--split", "tran"], "did you mean 'train'?"),
    ):  # fmt: skip
        refused = run_command(*words, *wrong)
        assert refused.code == 2
        assert said in refused.err, wrong


def test_the_whole_split_compares_with_the_published_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_semantic_kitti(tmp_path)
    words = [
        "prepare", "instances", "semantic_kitti", "--root", tmp_path, "--output", tmp_path / "bank",
        "--workers", 0, "--quiet",
    ]  # fmt: skip
    assert "published" not in run_command(*words).out
    monkeypatch.setattr(SemanticKitti, "absent", lambda *_: "")
    told = run_command(*words).out
    for name, count in (("bicycle", 5083), ("motorcycle", 3092), ("other-vehicle", 7419)):
        assert f"{name:16s}       0 instances   published: {count}\n" in told
    assert "person                 0 instances   published: 8084\n" in told
    assert "bicyclist              0 instances   published: 1551\n" in told
    others = run_command(*words, "--split", "trainval", "--overwrite").out
    assert "published: 8213" in others
    assert "published: 2943" in others


@pytest.mark.real
def test_the_bank_of_the_real_sample(data_root: Path, tmp_path: Path) -> None:
    """Against the raw files, read by hand: an instance is a 32-bit label of a class."""
    root = data_root / "semantic_kitti"
    done = run_command(
        "prepare", "instances", "semantic_kitti", "--root", root, "--output", tmp_path,
        "--workers", 0, "--quiet",
    )  # fmt: skip
    assert done.code == 0, done.err
    labels = {2: "bicycle", 3: "motorcycle", 5: "other-vehicle", 6: "person", 7: "bicyclist"}
    sizes: dict[str, list[int]] = {name: [] for name in labels.values()}
    for path in sorted(root.glob("dataset/sequences/*/labels/*.label")):
        if path.parts[-3] == "08":
            continue
        raw, counts = np.unique(np.fromfile(path, "<u4"), return_counts=True)
        for value, count in zip(raw.tolist(), counts.tolist(), strict=True):
            label = LEARNING_MAP[value & 0xFFFF]
            if label in labels and value >> 16 and count > 5:
                sizes[labels[label]].append(count)
    _, instances = read_bank(tmp_path)
    for label, name in labels.items():
        assert f"{name:16s} {len(sizes[name]):7d} instances\n" in done.out
        found = instances.size[instances.label == label]
        assert sorted(found.tolist()) == sorted(sizes[name])
    assert sum(map(len, sizes.values())) > 40
    assert "published" not in done.out, "only the full split compares with the published counts"
    assert float(instances.points[:, 2].min()) == 0.0
    assert float(instances.points[:, 2].max()) < 6.0
