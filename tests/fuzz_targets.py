"""Valid files of every format the datasets read, and ways to damage them."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from box_dataset_files import OBJECT_CALIB, OBJECT_LABELS, once_content
from dataset_files import (
    CALIB,
    FOLDER_CALIBRATION,
    IDENTITY,
    KITTI_360_PERSPECTIVE,
    KITTI_360_TO_POSE,
    KITTI_360_TO_VELO,
    encode_image,
    image_bytes,
    npy_bytes,
    panoptic_bytes,
    pcd_bytes,
    ply_bytes,
    scene_points,
    tag_bytes,
)
from image_fuzz_targets import image_rows
from lidarssl.datasets import nuscenes_tables as tables
from lidarssl.datasets.files import iterate_json_rows, parse_json
from lidarssl.datasets.folder_files import parse_calibration as parse_folder_calibration
from lidarssl.datasets.folder_files import parse_classes, parse_splits
from lidarssl.datasets.image_files import parse_image
from lidarssl.datasets.kitti_360 import (
    parse_camera_to_lidar,
    parse_camera_to_pose,
    parse_perspective,
)
from lidarssl.datasets.kitti_files import (
    parse_calibration,
    parse_numbered_poses,
    parse_object_calibration,
    parse_poses,
)
from lidarssl.datasets.kitti_object import KittiObject, boxes_in_lidar, parse_object_labels
from lidarssl.datasets.layout import parse_numbered_names
from lidarssl.datasets.nuscenes import parse_panoptic
from lidarssl.datasets.nuscenes_fractions import parse_list
from lidarssl.datasets.once import Once
from lidarssl.datasets.once_files import parse_once
from lidarssl.datasets.pandaset_files import (
    boxes_in_lidar as pandaset_boxes,
)
from lidarssl.datasets.pandaset_files import (
    numeric_columns,
    parse_intrinsics,
    parse_latitude,
    parse_timestamps,
    raw_labels,
)
from lidarssl.datasets.pandaset_files import parse_poses as parse_pandaset_poses
from lidarssl.datasets.pcd import parse_pcd
from lidarssl.datasets.ply import parse_ply
from lidarssl.datasets.point_files import (
    KITTI_COLUMNS,
    NUSCENES_COLUMNS,
    Columns,
    make_cloud,
    map_labels,
    parse_bin,
    parse_labels,
    parse_npy,
)
from lidarssl.datasets.rellis3d import parse_list as parse_rellis_list
from lidarssl.datasets.semantic_poss import parse_tag
from lidarssl.datasets.shard_files import checksum, parse_column, parse_ids, parse_member
from lidarssl.datasets.shard_frames import parse_description
from lidarssl.datasets.shard_index import FrameTable
from lidarssl.datasets.shard_parsing import parse_frame_table, parse_index
from lidarssl.datasets.synthetic import parse_weather
from lidarssl.datasets.table_pickles import Table, parse_pickled_table, parse_table
from lidarssl.errors import DataError
from lidarssl.frame import Boxes
from lidarssl.geometry.distortion import undistort_image
from pandaset_files import car_pose, cuboids, pose_entry, table_bytes, table_file
from scribble_rellis_files import rellis_line
from shard_dataset_files import write_shards

PATH = Path("damaged")
# A kind of damage, where (a share of the length), and how (any integer).
Edit = tuple[int, float, int]


@dataclass(frozen=True)
class Target:
    """A parser with valid files to start from."""

    name: str
    seeds: tuple[bytes, ...]
    parse: Callable[[bytes], None]


def survives(target: Target, data: bytes) -> bool:
    """Whether the parser accepts ``data``; any exception but ``DataError`` passes through."""
    try:
        target.parse(data)
    except DataError as error:
        if str(PATH) not in str(error):
            raise AssertionError("the error does not name the file") from error
        return False
    return True


_TOKENS = (
    b"nan", b"inf", b"-1", b"1e999", b"99999999999999999999999", b"0", b"null", b"true", b"[]",
    b"{}", b'"x"', b'"../../etc/passwd"', b"\xff\xfe", b"2147483648", b"1e308", b"", b"\n",
    b"[" * 3000,
)  # fmt: skip
_NUMBER = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?")


def damage(data: bytes, edits: Sequence[Edit]) -> bytes:
    """``data`` after the edits, one after the other."""
    for kind, share, number in edits:
        at = int(share * len(data))
        size = 1 + number % 64
        operation = kind % 7
        if operation == 0:
            data = data[:at] + bytes([number % 256]) + data[at + 1 :]
        elif operation == 1:
            data = data[:at] + data[at + size :]
        elif operation == 2:
            data = data[:at] + data[at : at + size] * 2 + data[at + size :]
        elif operation == 3:
            data = data[:at]
        elif operation == 4:
            data = data[:at] + _TOKENS[number % len(_TOKENS)] + data[at:]
        elif operation == 5:
            data = (
                data[:at] + bytes([data[at] ^ (1 << number % 8)]) + data[at + 1 :] if data else b""
            )
        else:
            found = _NUMBER.search(data, at)
            if found is not None:
                data = data[: found.start()] + _TOKENS[number % len(_TOKENS)] + data[found.end() :]
    return data


def _cloud(columns: Columns) -> None:
    for drop in (False, True):
        cloud = make_cloud(columns, PATH, drop_invalid=drop)
        assert len(cloud.points) == len(cloud.intensity) > 0
        assert bool(torch.isfinite(cloud.points).all())
        assert bool(torch.isfinite(cloud.intensity).all())


def _labels(data: bytes) -> None:
    raw = parse_labels(data, PATH, "<u4", 50)
    lookup = np.full(100, -1)
    lookup[:60] = 3
    assert map_labels(raw & 0xFFFF, lookup, PATH).shape == (50,)


def _image(data: bytes) -> None:
    for scale in (1.0, 0.4):
        image, _ = parse_image(data, PATH, scale)
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3


def _kitti(data: bytes) -> None:
    _camera(parse_calibration(data, PATH).camera("P2", PATH))


def _kitti_object(data: bytes) -> None:
    _camera(parse_object_calibration(data, PATH).camera("P3", PATH))


def _camera(matrices: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert all(bool(torch.isfinite(matrix).all()) for matrix in matrices)


def _kitti_labels(data: bytes) -> None:
    calibration = parse_object_calibration(OBJECT_CALIB.encode(), PATH)
    labels = parse_object_labels(data, PATH)
    _boxes(boxes_in_lidar(labels, calibration.lidar_transform(PATH), KittiObject.box_classes))


def _boxes(boxes: Boxes) -> None:
    for values in (boxes.center, boxes.size, boxes.yaw):
        assert bool(torch.isfinite(values).all())
    assert bool((boxes.size > 0).all())


def _perspective(data: bytes) -> None:
    lidar_from_camera = parse_camera_to_lidar(KITTI_360_TO_VELO.encode(), PATH)
    for matrices in parse_perspective(data, PATH, lidar_from_camera).values():
        _camera(matrices)


def _once(data: bytes) -> None:
    sequence = parse_once(data, PATH, Once.box_classes)
    for camera in sequence.cameras.values():
        _camera((camera.intrinsics, camera.camera_from_lidar))
        image = torch.zeros((1, 5, 6), dtype=torch.uint8)
        assert undistort_image(image, camera.intrinsics, camera.distortion).shape == image.shape
    for pose in sequence.poses.values():
        _finite(pose)
    for frame in sequence.boxes:
        _boxes(sequence.frame_boxes(frame))


def _pandaset(table: Table) -> None:
    """Whatever of scans, labels and boxes the columns can be."""
    for column in table.values():
        assert column.ndim == 1
    if "class" in table:
        raw_labels(table, PATH, 50)
    elif "label" in table:
        labels = {"Car": 0, "Animals - Bird": None}
        _boxes(pandaset_boxes(table, PATH, torch.eye(4).double(), 0, labels))
    else:
        columns = numeric_columns(table, "xyzitd", PATH)
        _cloud(dict(zip("xyzi", columns[:4], strict=True)))


def _table(kind: type[tables.TableRow]) -> Callable[[bytes], None]:
    def parse(data: bytes) -> None:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        chunks = (text[first : first + 97] for first in range(0, len(text), 97))
        rows = [tables.parse_row(row, kind, PATH) for row in iterate_json_rows(chunks, PATH)]
        assert all(isinstance(row, kind) for row in rows)

    return parse


_ROWS: tuple[tables.TableRow, ...] = (
    tables.Scene("a", "b", 2, "c", "d", "scene-0001", "rain, night"),
    tables.Sample("a", 1532402927647951, "", "b", "c"),
    tables.SampleData("a", "b", "c", "d", 1, "jpg", True, 900, 1600, "samples/CAM/a.jpg"),
    tables.EgoPose("a", 1, (0.6, 0.0, 0.0, 0.8), (411.3, 1180.9, 0.0)),
    tables.CalibratedSensor(
        "a", "b", (0.9, 0.0, 1.8), (1.0, 0.0, 0.0, 0.0),
        ((1266.0, 0.0, 816.0), (0.0, 1266.0, 491.0), (0.0, 0.0, 1.0)),
    ),
    tables.Category("a", "vehicle.car", "", 17),
    tables.SampleAnnotation(
        "a", "b", "c", "4", ("d",), (1.0, 2.0, 3.0), (1.9, 4.5, 1.6), (1.0, 0.0, 0.0, 0.0)
    ),
)  # fmt: skip


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode()


def targets() -> list[Target]:
    table = scene_points(0, 5)
    classes = {"names": ["ignored", "car"], "colors": [[0, 0, 0], [9, 9, 9]], "map": {"10": "car"}}
    splits = {"train": ["monday"], "val": ["tuesday"]}
    pcd = tuple(pcd_bytes(table, name) for name in ("ascii", "binary", "binary_compressed"))
    ply = tuple(
        ply_bytes(table, name) for name in ("ascii", "binary_little_endian", "binary_big_endian")
    )
    images = tuple(image_bytes(1, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP"))
    rows = [
        Target(f"nuscenes {row.table}.json", (_json([asdict(row)] * 3),), _table(type(row)))  # type: ignore[call-overload]
        for row in _ROWS
    ]
    return [
        Target("bin", (table.tobytes(),), lambda d: _cloud(parse_bin(d, PATH, NUSCENES_COLUMNS))),
        Target("label", (np.full(50, 7, "<u4").tobytes(),), _labels),
        Target(
            "npy",
            (npy_bytes(table[:, :4]), npy_bytes(np.asfortranarray(table[:, :4].astype(">f8")))),
            lambda d: _cloud(parse_npy(d, PATH, KITTI_COLUMNS)),
        ),
        Target("pcd", pcd, lambda d: _cloud(parse_pcd(d, PATH))),
        Target("ply", ply, lambda d: _cloud(parse_ply(d, PATH))),
        Target("calib.txt", (CALIB.encode(),), _kitti),
        Target("poses.txt", ((IDENTITY * 4).encode(),), lambda d: _finite(parse_poses(d, PATH))),
        *rows,
        *_kitti_targets(),
        *_pandaset_targets(),
        *(Target(*row) for row in image_rows(PATH)),
        *_shard_targets(),
        Target("once.json", (_json(once_content(["1616343527200", "5"], ["5"])),), _once),
        Target(
            "calibration.json",
            (_json(FOLDER_CALIBRATION),),
            lambda d: _discard(parse_folder_calibration(parse_json(d, PATH), PATH)),
        ),
        Target(
            "classes.json",
            (_json(classes),),
            lambda d: _discard(parse_classes(parse_json(d, PATH), PATH)),
        ),
        Target(
            "splits.json",
            (_json(splits),),
            lambda d: _discard(parse_splits(parse_json(d, PATH), PATH)),
        ),
        Target(
            "weather.json",
            (_json({"val_fog": {"like": "val", "weather": "fog"}}),),
            lambda d: _discard(parse_weather(parse_json(d, PATH), PATH)),
        ),
        Target("image", images, _image),
        Target(
            "panoptic.npz",
            (panoptic_bytes((np.arange(50) % 3).astype(np.uint8)),),
            lambda d: _discard(parse_panoptic(d, PATH, 50)),
        ),
        Target(
            "fraction list.npy",
            (npy_bytes(np.array([["a.bin", "b.bin", "lidar-0"], ["c", "d", "lidar-1"]])),),
            lambda d: _discard(parse_list(d, PATH)),
        ),
    ]


def _kitti_targets() -> list[Target]:
    numbered = "".join(f"{frame} {IDENTITY}" for frame in (7, 8, 12))
    return [
        Target("tag", (tag_bytes(),), lambda d: _discard(parse_tag(d, PATH, 50))),
        Target("calib of objects", (OBJECT_CALIB.encode(),), _kitti_object),
        Target(
            "pt_train.lst",
            ((rellis_line("00000", 3) + rellis_line("00001", 12)).encode(),),
            lambda d: _discard(parse_rellis_list(d, PATH)),
        ),
        Target("label_2", (OBJECT_LABELS.encode(),), _kitti_labels),
        Target(
            "ImageSets", (b"000000\n000003\n",), lambda d: _discard(parse_numbered_names(d, PATH))
        ),
        Target(
            "numbered poses.txt",
            (numbered.encode(),),
            lambda d: _finite(parse_numbered_poses(d, PATH)[1]),
        ),
        Target(
            "calib_cam_to_velo.txt",
            (KITTI_360_TO_VELO.encode(),),
            lambda d: _finite(parse_camera_to_lidar(d, PATH)),
        ),
        Target(
            "calib_cam_to_pose.txt",
            (KITTI_360_TO_POSE.encode(),),
            lambda d: _finite(parse_camera_to_pose(d, PATH)),
        ),
        Target("perspective.txt", (KITTI_360_PERSPECTIVE.encode(),), _perspective),
    ]


def _pandaset_targets() -> list[Target]:
    scan = {key: np.linspace(-30, 9, 50) for key in "xyzit"} | {"d": np.arange(50) % 2}
    boxes = {**cuboids(0), "label": ["Car"] * 3 + ["Animals - Bird"]}
    tables = ({"class": np.arange(50) % 43}, boxes, scan)
    poses = [pose_entry(*car_pose(number)) for number in range(3)]
    intrinsics = {"fx": 1970.01, "fy": 1970.0, "cx": 970.0, "cy": 483.3}
    return [
        Target(
            "table.pkl",
            tuple(table_bytes(table, layout) for table in tables for layout in ("old", "new")),
            lambda d: _pandaset(parse_pickled_table(d, PATH)),
        ),
        Target(
            "table.pkl.gz",
            tuple(table_file(table) for table in tables),
            lambda d: _pandaset(parse_table(d, PATH)),
        ),
        Target(
            "poses.json", (_json(poses),), lambda d: _finite(parse_pandaset_poses(d, PATH).sum())
        ),
        Target(
            "intrinsics.json", (_json(intrinsics),), lambda d: _finite(parse_intrinsics(d, PATH))
        ),
        Target(
            "gps.json",
            (_json([{"lat": 37.77, "long": -122.4}]),),
            lambda d: _discard(parse_latitude(d, PATH)),
        ),
        Target(
            "timestamps.json",
            (_json([1557539956.5, 1557539956.6]),),
            lambda d: _discard(parse_timestamps(d, PATH)),
        ),
    ]


def _shard_targets() -> list[Target]:
    with TemporaryDirectory() as folder:
        shards = write_shards(Path(folder))
        tar = (shards / "train-000000.tar").read_bytes()
        index, table = (
            (shards / f"{name}.json").read_bytes() for name in ("index", "train.frames")
        )
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        first = archive.next()
        assert first is not None
    description = tar[512 : 512 + first.size]
    ids = (encode_image(np.full((4, 5), value, kind), "PNG") for value, kind in _IDS)
    return [
        Target("shards index.json", (index,), lambda d: _discard(parse_index(d, PATH))),
        Target("shards frames.json", (table,), lambda d: _places(parse_frame_table(d, PATH))),
        Target("shards frame.json", (description,), _described),
        Target(
            "member of a shard",
            (tar[: 512 + first.size],),
            lambda d: _discard(
                parse_member(memoryview(d), first.name, first.size, checksum(description), PATH)
            ),
        ),
        Target(
            "column of a shard",
            (npy_bytes(np.arange(50, dtype=np.uint8)), npy_bytes(np.arange(50))),
            lambda d: _discard(parse_column(memoryview(bytearray(d)), PATH, "ring", 50)),
        ),
        Target(
            "points of a shard",
            (npy_bytes(np.ones((50, 3), np.float32)),),
            lambda d: _finite(parse_column(memoryview(bytearray(d)), PATH, "points", 50)),
        ),
        Target("ids of a shard", tuple(ids), lambda d: _discard(parse_ids(d, PATH, (4, 5)))),
    ]


_IDS = ((7, np.uint8), (700, np.uint16))


def _places(table: FrameTable) -> None:
    for row in range(len(table.rows)):
        places, shard = table.places(row), table.shard_of(row)
        assert all(0 <= place.offset < place.end <= shard.bytes for place in places)


def _described(data: bytes) -> None:
    found = parse_description(data, PATH)
    if found.boxes is not None:
        _finite(found.boxes.center)
    assert len(found.cameras) == len(found.sizes)


def _finite(value: torch.Tensor) -> None:
    assert bool(torch.isfinite(value).all())


def _discard(value: object) -> None:
    assert value is not None
