"""Tiny ScribbleKITTI and RELLIS-3D in their official layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dataset_files import POINTS, scene_points, write, write_semantic_kitti

RELLIS_SCANS, RELLIS_LABELS = "os1_cloud_node_kitti_bin", "os1_cloud_node_semantickitti_label_id"
# Scans of each list, in no order.
RELLIS_LISTS = {
    "train": (("00001", 1), ("00000", 2), ("00000", 0)),
    "val": (("00000", 1), ("00002", 0)),
    "test": (("00001", 0),),
}
EMPTY = slice(10, 25)


def write_scribble_kitti(
    root: Path, scans: tuple[tuple[str, int], ...] = (("00", 3), ("01", 2), ("08", 2))
) -> Path:
    """SemanticKITTI with strokes over points 0-4 (class 10) and 40-49 (40) of training scans."""
    write_semantic_kitti(root, scans)
    strokes = np.zeros(POINTS, "<u4")
    strokes[:5] = 10 + (1 << 16)
    strokes[40:] = 40
    for sequence, count in scans:
        for scan in range(count if sequence != "08" else 0):
            folder = root / "dataset" / "sequences" / sequence / "scribbles"
            write(folder / f"{scan:06d}.label", strokes.tobytes())
    return root


def write_rellis(root: Path) -> Path:
    """Points 10-24 did not return; labels 3, then 0 for these, then 34 and 2 in the upper half."""
    for split, scans in RELLIS_LISTS.items():
        write(root / f"pt_{split}.lst", "".join(rellis_line(*scan) for scan in scans))
        for sequence, scan in scans:
            write_rellis_scan(root, sequence, scan)
    return root


def write_rellis_scan(root: Path, sequence: str, scan: int) -> None:
    points = scene_points(scan, 4)
    points[EMPTY] = 0
    labels = np.full(POINTS, 3, "<u4")
    labels[EMPTY] = 0
    labels[EMPTY.stop :] = 34 + (2 << 16)
    write(root / sequence / RELLIS_SCANS / f"{scan:06d}.bin", points.tobytes())
    write(root / sequence / RELLIS_LABELS / f"{scan:06d}.label", labels.tobytes())


def rellis_line(sequence: str, scan: int) -> str:
    return f"{sequence}/{RELLIS_SCANS}/{scan:06d}.bin {sequence}/{RELLIS_LABELS}/{scan:06d}.label\n"
