"""Pickled tables written instruction by instruction, and a tiny PandaSet made of them."""

from __future__ import annotations

import gzip
import json
import math
import pickle
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dataset_files import POINTS, image_bytes, scene_points, write

PANDASET_CAMERAS = {
    "back_camera": 180.0,
    "front_camera": 0.0,
    "front_left_camera": 45.0,
    "front_right_camera": -45.0,
    "left_camera": 90.0,
    "right_camera": -90.0,
}
LIFT = 1.6
Layout = Literal["old", "new"]


def value(item: Any) -> bytes:
    """Instructions that push a plain value."""
    if item is None or isinstance(item, bool):
        return {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[item]
    if isinstance(item, int):
        return pickle.BININT + struct.pack("<i", item)
    if isinstance(item, float):
        return pickle.BINFLOAT + struct.pack(">d", item)
    if isinstance(item, str):
        return pickle.BINUNICODE + struct.pack("<I", len(item.encode())) + item.encode()
    if isinstance(item, bytes):
        return pickle.BINBYTES + struct.pack("<I", len(item)) + item
    if isinstance(item, tuple):
        return group(*map(value, item))
    return sequence(*map(value, item))


def group(*parts: bytes) -> bytes:
    """A tuple."""
    return pickle.MARK + b"".join(parts) + pickle.TUPLE


def sequence(*parts: bytes) -> bytes:
    """A list."""
    return pickle.EMPTY_LIST + pickle.MARK + b"".join(parts) + pickle.APPENDS


def mapping(**parts: bytes) -> bytes:
    """A dictionary."""
    items = b"".join(value(key) + part for key, part in parts.items())
    return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS


def name(module: str, attribute: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{attribute}\n".encode()


def call(called: bytes, *arguments: bytes) -> bytes:
    return called + group(*arguments) + pickle.REDUCE


def build(made: bytes, state: bytes) -> bytes:
    return made + state + pickle.BUILD


def document(content: bytes, protocol: int = 3) -> bytes:
    return pickle.PROTO + bytes([protocol]) + content + pickle.STOP


def array(items: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    """An array as numpy pickles it; ``shape`` may lie about it."""
    text = items.dtype == object
    code, order = ("O8", "|") if text else (items.dtype.str[1:], items.dtype.str[0])
    dtype = build(
        call(name("numpy", "dtype"), value(code), value(False), value(True)),
        value((3, order, None, None, None, -1, -1, 63 if text else 0)),
    )
    start = call(
        name("numpy.core.multiarray", "_reconstruct"),
        name("numpy", "ndarray"), value((0,)), value(b"b"),
    )  # fmt: skip
    content = value(items.ravel().tolist()) if text else value(items.tobytes())
    state = group(value(1), value(shape or items.shape), dtype, value(False), content)
    return build(start, state)


def labels(names: Sequence[str]) -> bytes:
    """The axis of columns."""
    kind = name("pandas.core.indexes.base", "Index")
    data = array(np.array(list(names), object))
    return call(_new_index(), kind, mapping(data=data, name=value(None)))


def rows(count: int) -> bytes:
    """The axis of rows."""
    kind = name("pandas.core.indexes.range", "RangeIndex")
    parts = {"name": None, "start": 0, "stop": count, "step": 1}
    return call(_new_index(), kind, mapping(**{key: value(part) for key, part in parts.items()}))


def _new_index() -> bytes:
    return name("pandas.core.indexes.base", "_new_Index")


def places(columns: Sequence[int]) -> bytes:
    """A slice of one column, or an array of several."""
    if len(columns) > 1:
        return array(np.array(columns, np.int64))
    return call(name("builtins", "slice"), *map(value, (columns[0], columns[0] + 1, 1)))


def frame(axes: Sequence[bytes], blocks: Sequence[tuple[bytes, bytes]], layout: Layout) -> bytes:
    """A DataFrame of (values, places), as pandas below 1.3 or today's pickles it."""
    manager = name("pandas.core.internals.managers", "BlockManager")
    made = name("pandas.core.frame", "DataFrame") + pickle.EMPTY_TUPLE + pickle.NEWOBJ
    if layout == "new":
        unpickle = name("pandas._libs.internals", "_unpickle_block")
        parts = [call(unpickle, *block, value(2)) for block in blocks]
        state = {"_mgr": call(manager, group(*parts), sequence(*axes))}
    else:
        parts = [mapping(values=values, mgr_locs=where) for values, where in blocks]
        content = mapping(axes=sequence(*axes), blocks=sequence(*parts))
        extra = pickle.EMPTY_DICT + value("0.14.1") + content + pickle.SETITEM
        nothing = sequence()
        state = {
            "_data": build(
                manager + pickle.EMPTY_TUPLE + pickle.NEWOBJ,
                group(sequence(*axes), nothing, nothing, extra),
            )
        }
    return build(made, mapping(**state, _typ=value("dataframe"), _metadata=sequence()))


def table_bytes(columns: Mapping[str, Any], layout: Layout = "old") -> bytes:
    """A pickled DataFrame; columns of one type share a block, as in pandas."""
    arrays = {key: _column(content) for key, content in columns.items()}
    count = len(next(iter(arrays.values())))
    types = list(dict.fromkeys(column.dtype for column in arrays.values()))
    blocks = []
    for dtype in types:
        held = [place for place, key in enumerate(arrays) if arrays[key].dtype == dtype]
        block = np.stack([list(arrays.values())[place] for place in held])
        blocks.append((array(block), places(held)))
    return document(frame([labels(list(arrays)), rows(count)], blocks, layout))


def _column(content: Any) -> np.ndarray:
    return content if isinstance(content, np.ndarray) else np.array(content, object)


def table_file(columns: Mapping[str, Any], layout: Layout = "old") -> bytes:
    return gzip.compress(table_bytes(columns, layout), 1, mtime=0)


def heading(degrees: float) -> np.ndarray:
    """(w, x, y, z) of a turn about z."""
    half = math.radians(degrees) / 2
    return np.array([math.cos(half), 0, 0, math.sin(half)])


def multiply(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Product of two quaternions."""
    (a, *p), (b, *q) = first, second
    vector = a * np.array(q) + b * np.array(p) + np.cross(p, q)
    return np.array([a * b - np.dot(p, q), *vector])


def turn(quaternion: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, 3) turned by a quaternion: v + 2 w (q x v) + 2 q x (q x v)."""
    w, axis = quaternion[0], quaternion[1:]
    crossed = np.cross(axis, vectors)
    return vectors + 2 * w * crossed + 2 * np.cross(axis, crossed)


# A camera that looks along the car's y: a quarter turn about x takes its axes x right, y down,
# z forward to x right, y forward, z up.
_FORWARD = np.array([math.sqrt(0.5), -math.sqrt(0.5), 0, 0])


def car_pose(frame_number: int) -> tuple[np.ndarray, np.ndarray]:
    """Position and heading of the car: it turns and moves on."""
    return np.array([100.0 + frame_number, -50.0, 2.0]), heading(30.0 + frame_number)


def pose_entry(position: np.ndarray, quaternion: np.ndarray) -> dict[str, dict[str, float]]:
    return {
        "position": dict(zip("xyz", position.tolist(), strict=True)),
        "heading": dict(zip("wxyz", quaternion.tolist(), strict=True)),
    }


def sensor_points(seed: int, device: int) -> np.ndarray:
    """x, y, z in the lidar frame and intensity 0..255; the second lidar sees what is ahead."""
    points = scene_points(100 * device + seed, 4).astype(np.float64)
    points[:, 3] = np.floor(points[:, 3] * 255)
    if device == 1:
        points[:, 1] = np.abs(points[:, 1])
    return points


def raw_label(device: int) -> np.ndarray:
    """Cars (13), road (7) and nothing for Pandar64; buildings (41) and cones (34) for PandarGT."""
    high = np.where(np.arange(POINTS) < 20, 13, 7)
    high[-1] = 0
    return high if device == 0 else np.where(np.arange(POINTS) < 20, 41, 34)


def write_pandaset(root: Path, scans: Mapping[str, int] | None = None) -> Path:
    """Scene 001 and 002 of train (3 scans, 1), 003 of val (2), 004 without point labels (1)."""
    for scene, count in (scans or {"001": 3, "002": 1, "003": 2, "004": 1}).items():
        folder = root / scene
        latitude = 37.3 if scene == "003" else 37.7
        write(folder / "meta" / "gps.json", json.dumps([{"lat": latitude, "long": -122.4}]))
        poses = [pose_entry(*car_pose(number)) for number in range(count)]
        write(folder / "lidar" / "poses.json", json.dumps(poses))
        times = [1557539956.5 + 0.1 * number for number in range(count)]
        write(folder / "lidar" / "timestamps.json", json.dumps(times))
        for camera, degrees in PANDASET_CAMERAS.items():
            _write_camera(folder / "camera" / camera, degrees, count)
        for number in range(count):
            _write_scan(folder, number, times[number], labelled=scene != "004")
    return root


def _write_camera(folder: Path, degrees: float, count: int) -> None:
    poses = []
    for number in range(count):
        position, car = car_pose(number)
        position = position + np.array([0, 0, LIFT])
        poses.append(pose_entry(position, multiply(multiply(car, heading(degrees)), _FORWARD)))
        write(folder / f"{number:02d}.jpg", image_bytes(number, "JPEG"))
    write(folder / "poses.json", json.dumps(poses))
    write(folder / "intrinsics.json", json.dumps({"fx": 24.0, "fy": 24.5, "cx": 23.5, "cy": 17.5}))


def _write_scan(folder: Path, number: int, time: float, labelled: bool) -> None:
    # Rows of the two lidars lie mixed, so that a label in the wrong row shows.
    order = np.random.default_rng(number).permutation(2 * POINTS)
    points = np.concatenate([sensor_points(number, device) for device in (0, 1)])[order]
    device = np.repeat([0, 1], POINTS)[order]
    position, car = car_pose(number)
    world = turn(car, points[:, :3] + np.array([0, 0, LIFT])) + position
    columns = {
        **dict(zip("xyz", world.T.copy(), strict=True)),
        "i": points[:, 3].copy(),
        "t": time + 0.05 * device,
        "d": device,
    }
    write(folder / "lidar" / f"{number:02d}.pkl.gz", table_file(columns))
    raw = np.concatenate([raw_label(0), raw_label(1)])[order]
    annotations = folder / "annotations"
    if labelled:
        content = table_file({"class": raw}, "new")
        write(annotations / "semseg" / f"{number:02d}.pkl.gz", content)
    write(annotations / "cuboids" / f"{number:02d}.pkl.gz", table_file(cuboids(number)))


def cuboids(number: int) -> dict[str, Any]:
    """A car straight ahead, drawn for both lidars; a pedestrian drawn for each; a bird."""
    position, car = car_pose(number)
    centres = np.array([[0, 9, 0], [5, 5, 0], [5.2, 5, 0], [1, 1, 1]], np.float64)
    world = turn(car, centres + np.array([0, 0, LIFT])) + position
    return {
        "uuid": ["a", "b", "c", "d"],
        "label": ["Car", "Pedestrian", "Pedestrian with Object", "Animals - Bird"],
        "yaw": np.full(4, math.radians(30.0 + number + 10)),
        "stationary": np.array([True, False, False, False]),
        **dict(zip(("position.x", "position.y", "position.z"), world.T.copy(), strict=True)),
        "dimensions.x": np.full(4, 2.0),
        "dimensions.y": np.full(4, 4.0),
        "dimensions.z": np.full(4, 1.5),
        "attributes.object_motion": ["Parked", None, math.nan, "Moving"],
        "cuboids.sensor_id": np.array([-1, 0, 1, -1]),
    }
