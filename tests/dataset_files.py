"""Tiny datasets in their official layouts, and encoders of point files, written from scratch."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from lidarssl.datasets import nuscenes_tables as tables

POINTS = 50
HEIGHT, WIDTH = 36, 48
CALIB = (
    "P0: 40 0 24 0 0 40 18 0 0 0 1 0\n"
    "P2: 40 0 24 4 0 40 18 0 0 0 1 0.5\n"
    "P3: 40 0 24 -20 0 40 18 0 0 0 1 0\n"
    "Tr: 0 -1 0 0.1 0 0 -1 0.2 1 0 0 0.3\n"
)
IDENTITY = "1 0 0 0 0 1 0 0 0 0 1 0\n"
FOLDER_CALIBRATION = {
    "cameras": {
        "front": {
            "intrinsics": [[40, 0, 24], [0, 40, 18], [0, 0, 1]],
            "camera_from_lidar": [[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]],
        }
    }
}


def scene_points(seed: int, columns: int) -> np.ndarray:
    """Points ahead of, beside and behind the lidar, (POINTS, columns) float32."""
    rng = np.random.default_rng(seed)
    table = np.zeros((POINTS, columns), np.float32)
    table[:, :2] = rng.uniform(-20, 20, (POINTS, 2))
    table[:, 2] = rng.uniform(-2, 1, POINTS)
    table[:, 3] = rng.uniform(0, 1, POINTS)
    if columns > 4:
        table[:, 4] = rng.integers(0, 32, POINTS)
    # One point straight ahead along each axis, so that every camera sees something.
    table[:4, :3] = [(9, 0, 0), (0, 9, 0), (-9, 0, 0), (0, -9, 0)]
    return table


def image_bytes(seed: int, kind: str = "PNG", height: int = HEIGHT, width: int = WIDTH) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encode_image(pixels, kind)


def encode_image(pixels: np.ndarray, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_semantic_kitti(
    root: Path, scans: tuple[tuple[str, int], ...] = (("00", 3), ("01", 2), ("08", 2))
) -> Path:
    """Two cameras, labels of raw class 10 (instances 1 and 2) and 40, identity poses."""
    for sequence, count in scans:
        folder = root / "dataset" / "sequences" / sequence
        write(folder / "calib.txt", CALIB)
        write(folder / "poses.txt", IDENTITY * count)
        for scan in range(count):
            name = f"{scan:06d}"
            write(folder / "velodyne" / f"{name}.bin", scene_points(scan, 4).tobytes())
            labels = np.full(POINTS, 40, "<u4")
            labels[:20] = 10 + (1 << 16)
            labels[20:30] = 10 + (2 << 16)
            write(folder / "labels" / f"{name}.label", labels.tobytes())
            for camera in ("image_2", "image_3"):
                write(folder / camera / f"{name}.png", image_bytes(scan))
    return root


def write_folder(root: Path) -> Path:
    """Two sequences in two splits, one camera, labels, poses."""
    classes = {"names": ["ignored", "car", "road"], "map": {"10": "car", "40": "road"}}
    write(root / "calibration.json", json.dumps(FOLDER_CALIBRATION))
    write(root / "classes.json", json.dumps(classes))
    write(root / "splits.json", json.dumps({"train": ["monday"], "val": ["tuesday"]}))
    for sequence, count in (("monday", 3), ("tuesday", 2)):
        folder = root / sequence
        write(folder / "poses.txt", IDENTITY * count)
        for sweep in range(count):
            name = f"{sweep:04d}"
            write(folder / "lidar" / f"{name}.bin", scene_points(sweep, 4).tobytes())
            labels = np.where(np.arange(POINTS) < 20, 10 + (1 << 16), 40).astype("<u4")
            write(folder / "labels" / f"{name}.label", labels.tobytes())
            write(folder / "images" / "front" / f"{name}.jpg", image_bytes(sweep, "JPEG"))
    return root


POSS_CELLS = 40 * 1800


def write_semantic_poss(
    root: Path, scans: tuple[tuple[str, int], ...] = (("00", 3), ("01", 2), ("03", 2))
) -> Path:
    """Labels of raw class 7 (instances 1 and 2) and 22, one point in every 100th cell."""
    for sequence, count in scans:
        folder = root / "dataset" / "sequences" / sequence
        write(folder / "calib.txt", CALIB)
        write(folder / "poses.txt", IDENTITY * count)
        for scan in range(count):
            name = f"{scan:06d}"
            points = scene_points(scan, 4) * np.array([1, 1, 1, 255], np.float32)
            write(folder / "velodyne" / f"{name}.bin", points.tobytes())
            labels = np.full(POINTS, 22, "<u4")
            labels[:20] = 7 + (1 << 16)
            labels[20:30] = 7 + (2 << 16)
            write(folder / "labels" / f"{name}.label", labels.tobytes())
            write(folder / "tag" / f"{name}.tag", tag_bytes())
    return root


def tag_bytes() -> bytes:
    """Cells 0, 100, 200, ... hold a point: 18 in each of the first beams."""
    tag = np.zeros(POSS_CELLS, np.uint8)
    tag[: 100 * POINTS : 100] = 1
    return tag.tobytes()


def write_semantic_stf(
    root: Path, scans: tuple[tuple[str, int], ...] = (("train", 3), ("val", 2), ("test", 1))
) -> Path:
    """Every raw label 0..20 in turn; intensities 0..255."""
    for split, count in scans:
        for scan in range(count):
            name = f"2018-02-04_11-34-{scan:02d}_00600"
            points = scene_points(scan, 5) * np.array([1, 1, 1, 255, 1], np.float32)
            write(root / split / "velodyne" / f"{name}.bin", points.tobytes())
            labels = (np.arange(POINTS) % 21).astype("<u4")
            write(root / split / "labels" / f"{name}.label", labels.tobytes())
    return root


DAPS_SEQUENCES = (("38-18_7_72_90", 3), ("42-48_10_78_90", 2), ("44-18_11_15_32", 1))


def write_daps3d(root: Path, scans: tuple[tuple[str, int], ...] = DAPS_SEQUENCES) -> Path:
    """Labels of raw classes 30 and 40, with something in their upper half; half of it no echo."""
    for sequence, count in scans:
        folder = root / "DAPS-2" / "data" / sequence
        for scan in range(count):
            points = scene_points(scan, 4)
            points[25:] = 0
            labels = np.zeros(POINTS, "<u4")
            labels[:10], labels[10:25] = 30 + (5 << 16), 40
            write(folder / "clouds" / f"{scan:06d}.bin", points.tobytes())
            write(folder / "labels" / f"{scan:06d}.label", labels.tobytes())
    return root


KITTI_360_TO_VELO = "0 0 1 0.3 -1 0 0 0.1 0 -1 0 -0.2\n"
KITTI_360_TO_POSE = "image_00: 0 0 1 1.5 1 0 0 0 0 1 0 1\nimage_01: 0 0 1 1.5 1 0 0 0.6 0 1 0 1\n"
KITTI_360_PERSPECTIVE = (
    "calib_time: 01-Jan-2013 00:00:00\ncorner_dist: 9.95e-02\nS_00: 1408 376\n"
    "R_rect_00: 1 0 0 0 1 0 0 0 1\nP_rect_00: 40 0 24 0 0 40 18 0 0 0 1 0\n"
    "R_rect_01: 1 0 0 0 1 0 0 0 1\nP_rect_01: 40 0 24 -24 0 40 18 0 0 0 1 0\n"
)


def write_kitti_360(
    root: Path, scans: tuple[tuple[str, int], ...] = (("0000", 5), ("0003", 30), ("0008", 0))
) -> Path:
    """Scans from the given number of each drive on: three of train, two of val, one of test."""
    write(root / "calibration" / "calib_cam_to_velo.txt", KITTI_360_TO_VELO)
    write(root / "calibration" / "calib_cam_to_pose.txt", KITTI_360_TO_POSE)
    write(root / "calibration" / "perspective.txt", KITTI_360_PERSPECTIVE)
    for (drive, first), count in zip(scans, (3, 2, 1), strict=True):
        sequence = f"2013_05_28_drive_{drive}_sync"
        numbers = range(first, first + count)
        poses = "".join(f"{number} 1 0 0 {number} 0 1 0 0 0 0 1 0\n" for number in numbers)
        write(root / "data_poses" / sequence / "poses.txt", poses)
        for number in numbers:
            write(
                root / f"data_3d_raw/{sequence}/velodyne_points/data/{number:010d}.bin",
                scene_points(number, 4).tobytes(),
            )
            for camera in ("image_00", "image_01"):
                write(
                    root / f"data_2d_raw/{sequence}/{camera}/data_rect/{number:010d}.png",
                    image_bytes(number),
                )
    return root


NUSCENES_SCENES = (("scene-0061", 3), ("scene-0655", 2), ("scene-0103", 2))
NUSCENES_CATEGORIES = ("noise", "vehicle.car", "flat.driveable_surface")


def write_nuscenes(
    root: Path,
    scenes: tuple[tuple[str, int], ...] = NUSCENES_SCENES,
    cameras: tuple[str, ...] = ("CAM_FRONT", "CAM_BACK"),
    version: str = "v1.0-mini",
    panoptic: bool = True,
) -> Path:
    """Key frames with lidarseg, panoptic and one car box 5 m ahead of the lidar."""
    rows: dict[type, list[tables.TableRow]] = {kind: [] for kind in _KINDS}
    channels = ("LIDAR_TOP", *cameras)
    for channel in channels:
        lidar = channel == "LIDAR_TOP"
        rows[tables.Sensor].append(
            tables.Sensor(f"s-{channel}", channel, "lidar" if lidar else "camera")
        )
        intrinsics = () if lidar else ((40.0, 0.0, 24.0), (0.0, 40.0, 18.0), (0.0, 0.0, 1.0))
        rows[tables.CalibratedSensor].append(
            tables.CalibratedSensor(
                f"c-{channel}", f"s-{channel}", (0.0, 0.0, 1.8), _MOUNT[channel], intrinsics
            )
        )
    for index, name in enumerate(NUSCENES_CATEGORIES):
        rows[tables.Category].append(tables.Category(f"category-{index}", name, "", index))
    rows[tables.Instance].append(tables.Instance("instance-0", "category-1"))
    number = 0
    for scene, count in scenes:
        first = number
        rows[tables.Scene].append(
            tables.Scene(
                f"t-{scene}", "log", count, f"sample-{first}", f"sample-{first + count - 1}", scene
            )
        )
        for number in range(first, first + count):
            last = number == first + count - 1
            rows[tables.Sample].append(
                tables.Sample(
                    f"sample-{number}",
                    number,
                    "",
                    "" if last else f"sample-{number + 1}",
                    f"t-{scene}",
                )
            )
            _write_sample(root, version, rows, number, channels, panoptic)
        number = first + count
    for kind, content in rows.items():
        if content or kind is not tables.Panoptic:
            text = json.dumps([asdict(row) for row in content])
            write(root / version / f"{kind.table}.json", text)
    return root


_KINDS = (
    tables.Scene,
    tables.Sample,
    tables.SampleData,
    tables.EgoPose,
    tables.CalibratedSensor,
    tables.Sensor,
    tables.Category,
    tables.Instance,
    tables.SampleAnnotation,
    tables.LidarSeg,
    tables.Panoptic,
)
# ego_from_sensor: the lidar looks along +x of the ego vehicle with x right, y forward.
_MOUNT = {
    "LIDAR_TOP": (0.5**0.5, 0.0, 0.0, -(0.5**0.5)),
    "CAM_FRONT": (0.5, -0.5, 0.5, -0.5),
    "CAM_BACK": (0.5, -0.5, -0.5, 0.5),
}


def _write_sample(
    root: Path,
    version: str,
    rows: dict[type, list[tables.TableRow]],
    number: int,
    channels: tuple[str, ...],
    panoptic: bool,
) -> None:
    for channel in channels:
        token = f"{channel}-{number}"
        lidar = channel == "LIDAR_TOP"
        filename = f"samples/{channel}/{number}" + (".pcd.bin" if lidar else ".jpg")
        rows[tables.EgoPose].append(
            tables.EgoPose(f"e-{token}", number, (1.0, 0.0, 0.0, 0.0), (1000.0 + number, 20.0, 0.0))
        )
        rows[tables.SampleData].append(
            tables.SampleData(
                token,
                f"sample-{number}",
                f"e-{token}",
                f"c-{channel}",
                number,
                "pcd" if lidar else "jpg",
                True,
                HEIGHT,
                WIDTH,
                filename,
            )
        )
        content = scene_points(number, 5).tobytes() if lidar else image_bytes(number, "JPEG")
        write(root / filename, content)
    token = f"LIDAR_TOP-{number}"
    raw = (np.arange(POINTS) % 3).astype(np.uint8)
    name = f"lidarseg/{version}/{token}_lidarseg.bin"
    write(root / name, raw.tobytes())
    rows[tables.LidarSeg].append(tables.LidarSeg(token, token, name))
    rows[tables.SampleAnnotation].append(
        tables.SampleAnnotation(
            f"a-{number}",
            f"sample-{number}",
            "instance-0",
            "4",
            (),
            (1005.0 + number, 20.0, 1.8),
            (2.0, 4.0, 1.5),
            (1.0, 0.0, 0.0, 0.0),
        )
    )
    if panoptic:
        name = f"panoptic/{version}/{token}_panoptic.npz"
        write(root / name, panoptic_bytes(raw))
        rows[tables.Panoptic].append(tables.Panoptic(token, token, name))


def panoptic_bytes(raw: np.ndarray) -> bytes:
    """Points of category 1 belong to its instance 7."""
    stream = io.BytesIO()
    np.savez_compressed(stream, data=(raw.astype(np.uint16) * 1000 + 7 * (raw == 1)).astype("u2"))
    return stream.getvalue()


def npy_bytes(table: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, table)
    return stream.getvalue()


def pcd_bytes(table: np.ndarray, encoding: str) -> bytes:
    """x y z intensity float32, ring uint16."""
    record = np.dtype([(n, "<f4") for n in ("x", "y", "z", "intensity")] + [("ring", "<u2")])
    rows = np.zeros(len(table), record)
    for index, name in enumerate(record.names or ()):
        rows[name] = table[:, index]
    header = (
        "# .PCD v0.7\nVERSION 0.7\nFIELDS x y z intensity ring\nSIZE 4 4 4 4 2\nTYPE F F F F U\n"
        f"COUNT 1 1 1 1 1\nWIDTH {len(table)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\n"
        f"POINTS {len(table)}\nDATA {encoding}\n"
    ).encode()
    if encoding == "binary":
        return header + rows.tobytes()
    if encoding == "binary_compressed":
        flat = b"".join(rows[name].tobytes() for name in record.names or ())
        packed = lzf_literals(flat)
        return header + struct.pack("<II", len(packed), len(flat)) + packed
    lines = ("{:.9g} {:.9g} {:.9g} {:.9g} {}".format(*row) for row in rows.tolist())
    return header + "\n".join(lines).encode() + b"\n"


def lzf_literals(data: bytes) -> bytes:
    """A valid LZF stream; runs of one byte become references, the rest literals."""
    out = bytearray()
    position = 0
    while position < len(data):
        run = 1
        while position + run < len(data) and run < 200 and data[position + run] == data[position]:
            run += 1
        if run >= 10:
            out += bytes([0, data[position], 7 << 5, run - 1 - 9, 0])
        else:
            run = min(32, run)
            out += bytes([run - 1]) + data[position : position + run]
        position += run
    return bytes(out)


def ply_bytes(table: np.ndarray, encoding: str) -> bytes:
    """x y z float, intensity double, ring uchar; a face element follows."""
    order = ">" if encoding == "binary_big_endian" else "<"
    record = np.dtype(
        [(n, order + "f4") for n in ("x", "y", "z")] + [("intensity", order + "f8"), ("ring", "u1")]
    )
    rows = np.zeros(len(table), record)
    for index, name in enumerate(record.names or ()):
        rows[name] = table[:, index]
    header = (
        f"ply\nformat {encoding} 1.0\ncomment made for a test\nelement vertex {len(table)}\n"
        "property float x\nproperty float y\nproperty float z\nproperty double intensity\n"
        "property uchar ring\nelement face 1\nproperty list uchar int vertex_indices\nend_header\n"
    ).encode()
    if encoding == "ascii":
        lines = ("{:.9g} {:.9g} {:.9g} {:.17g} {}".format(*row) for row in rows.tolist())
        return header + "\n".join(lines).encode() + b"\n3 0 1 2\n"
    return header + rows.tobytes() + struct.pack(order + "Biii", 3, 0, 1, 2)
