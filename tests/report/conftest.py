"""A run folder such as a demo leaves, with a small invented street."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lidarssl.report import figures
from lidarssl.report.calibration import CalibrationOverlay, OverlapPrediction
from lidarssl.report.class_prototypes import ClassPrototypes
from lidarssl.report.distillation import DistilledFeatures
from lidarssl.report.image_segmentation import ConditionPrediction, ImagePrediction
from lidarssl.report.occupancy import FREE, FULL, UNKNOWN, OccupancySlices
from lidarssl.report.retrieval import RetrievedScans
from lidarssl.report.schema import (
    LOOK_UP,
    RANDOM_INIT,
    ClassTableRow,
    EfficiencyRow,
    PictureRecord,
    Protocol,
    ProtocolNote,
    Results,
    RunRecord,
    Section,
    Stage,
)

NAMES = ("ignored", "car", "road", "sidewalk", "terrain", "building", "vegetation", "pole", "sign")
COLORS = np.array(
    [
        (0, 0, 0),
        (90, 160, 255),
        (150, 100, 160),
        (230, 110, 220),
        (150, 200, 90),
        (235, 200, 80),
        (40, 160, 70),
        (230, 225, 160),
        (240, 60, 50),
    ]
)


def street(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) and classes (N,) of a road with kerbs, houses, cars and trees."""
    distance = 3 + 42 * rng.random(count) ** 1.6
    angle = rng.uniform(-np.pi, np.pi, count)
    x, y = distance * np.cos(angle), distance * np.sin(angle)
    z = np.full(count, -1.8) + 0.02 * rng.standard_normal(count)
    label = np.select([abs(y) < 5, abs(y) < 8, abs(y) < 15], [2, 3, 4], 5)
    wall = label == 5
    y[wall] = np.sign(y[wall]) * (15 + 0.3 * rng.random(int(wall.sum())))
    z[wall] = rng.uniform(-1.8, 6, int(wall.sum()))
    for center in range(-36, 40, 9):
        for kind, side, size in ((1, 4.0, 2.0), (6, 11.0, 1.8), (7, 6.0, 0.15)):
            near = (abs(x - center) < size) & (abs(abs(y) - side) < min(size, 0.9))
            label[near] = kind
            z[near] = rng.uniform(-1.5, {1: 0.0, 6: 3.0, 7: 4.0}[kind], int(near.sum()))
    return np.stack([x, y, z], 1).astype(np.float32), label


def camera_image(rng: np.random.Generator, height: int = 128, width: int = 256) -> np.ndarray:
    """(H, W, 3) uint8: sky, houses, road."""
    image = np.zeros((height, width, 3))
    rows = np.arange(height)[:, None]
    image[:] = (150, 190, 225)
    image[(rows > 35).repeat(width, 1)] = (170, 140, 120)
    image[(rows > 70).repeat(width, 1)] = (95, 98, 100)
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def efficiency() -> tuple[EfficiencyRow, ...]:
    probe, finetune = Protocol.PROBE, Protocol.FINETUNE
    return (
        EfficiencyRow("SLidR", probe, 0.01, (0.181, 0.19, 0.176), 1),
        EfficiencyRow("SLidR", probe, 0.1, (0.238, 0.251, 0.246), 12),
        EfficiencyRow("SLidR", probe, 0.5, (0.256, 0.28, 0.271), 60),
        EfficiencyRow("PPKT", probe, 0.01, (0.184, 0.171, 0.188), 1),
        EfficiencyRow("PPKT", probe, 0.1, (0.244, 0.24, 0.252), 12),
        EfficiencyRow("PPKT", probe, 0.5, (0.272, 0.279, 0.266), 60),
        EfficiencyRow(RANDOM_INIT, probe, 0.01, (0.081, 0.092, 0.079), 1),
        EfficiencyRow(RANDOM_INIT, probe, 0.1, (0.09, 0.103, 0.098), 12),
        EfficiencyRow(RANDOM_INIT, probe, 0.5, (0.095, 0.115, 0.1), 60),
        EfficiencyRow("SLidR", finetune, 0.01, (0.232, 0.207, 0.221), 1),
        EfficiencyRow("SLidR", finetune, 0.1, (0.285, 0.308, 0.29), 12),
        EfficiencyRow("PPKT", finetune, 0.01, (0.247, 0.21, None), 1),
        EfficiencyRow("PPKT", finetune, 0.1, (0.26, 0.27, 0.28), 12),
        EfficiencyRow(RANDOM_INIT, finetune, 0.01, (0.214, 0.199, 0.206), 1),
        EfficiencyRow(RANDOM_INIT, finetune, 0.1, (0.244, 0.251, 0.24), 12),
        EfficiencyRow(LOOK_UP, Protocol.LOOKUP, 0.01, (0.121,), 1),
        EfficiencyRow(LOOK_UP, Protocol.LOOKUP, 0.1, (0.188,), 12),
        EfficiencyRow(LOOK_UP, Protocol.LOOKUP, 0.5, (0.215,), 60),
    )


def class_rows(rng: np.random.Generator) -> tuple[ClassTableRow, ...]:
    names = NAMES[1:]
    ious = {
        "SLidR": (0.33, 0.71, 0.3, 0.41, 0.52, 0.48, 0.25, None),
        RANDOM_INIT: (0.1, 0.61, 0.02, 0.3, 0.36, 0.15, 0.005, None),
    }
    rows = []
    for method, iou in ious.items():
        counts = rng.integers(0, 300, (8, 8)) + np.diag(rng.integers(500, 5000, 8))
        rows.append(
            ClassTableRow(
                method,
                Protocol.PROBE,
                0.5,
                names,
                iou,
                tuple(counts.sum(1).tolist()),
                tuple(map(tuple, counts.tolist())),
            )
        )
    return tuple(rows)


def run_record() -> RunRecord:
    return RunRecord(
        name="demo",
        title="Image-to-lidar pretraining on a synthetic town",
        command="lidarssl demo --method slidr --seeds 3 --out runs/demo",
        created="2025-03-04T10:20:00+00:00",
        version="0.1.0",
        versions={"torch": "2.10.0", "numpy": "2.3.1", "python": "3.11.9"},
        seed=0,
        recipe="method: slidr\nbackbone:\n  voxel_size: 0.2  # m\n",
        device="cpu (2 threads)",
        wall_seconds=283.4,
        notes=("The world is synthetic: the numbers say nothing about a real sensor.",),
        stages=(
            Stage("prepare", 37.2, "240 frames of 140 scenes, superpixels"),
            Stage("teacher", 89.0, "image encoder trained on scenes that are used nowhere else"),
            Stage("pretrain/slidr", 95.1, "400 steps of 2 frames, no lidar label"),
            Stage("evaluate", 62.1, "probe, fine-tuning and look-up, three seeds each"),
        ),
    )


def occupancy(points: np.ndarray, rng: np.random.Generator) -> OccupancySlices:
    """Houses and trees as walls of full cells, predicted with mistakes near the street."""
    side = np.abs(np.linspace(-19.9, 19.9, 200))
    truth = np.select([side < 14.5, side < 15.5], [FREE, FULL], UNKNOWN)[None].repeat(200, 0)
    prediction = np.clip((truth == FULL) + 0.3 * rng.standard_normal((200, 200)), 0, 1)
    prediction[:, side < 8] = np.nan
    above = points + np.array([0, 0, 1.8])
    return OccupancySlices(np.array([1.0]), 0.2, 20.0, truth[None], prediction[None], above)


def write_figures(run: Path, rng: np.random.Generator) -> tuple[PictureRecord, ...]:
    points, truth = street(9000, rng)
    wrong = rng.random(len(truth)) < 0.12 + 0.2 * (np.abs(points[:, 0]) > 20)
    prediction = np.where(wrong, rng.integers(1, 9, len(truth)), truth)
    features = np.eye(9)[truth] @ rng.normal(size=(9, 16)) + 0.35 * rng.normal(size=(9000, 16))
    image = camera_image(rng)
    ahead = np.flatnonzero((points[:, 0] > 4) & (np.abs(points[:, 1]) < 0.9 * points[:, 0]))
    row = np.clip(54 - 128 * points[ahead, 2] / points[ahead, 0], 0, 127).astype(int)
    col = np.clip(128 - 128 * points[ahead, 1] / points[ahead, 0], 0, 255).astype(int)
    cells = np.arange(128)[:, None] // 18 * 20 + np.arange(256)[None] // 18
    bands = np.repeat(np.array([0, 5, 2]), [36, 35, 57])[:, None].repeat(256, 1)
    car = int(np.flatnonzero((truth == 1) & (points[:, 0] > 6))[0])
    made = (
        (
            figures.LidarOnImage(image, row, col, points[ahead, 0]),
            Section.INPUT,
            "Points in the image",
        ),
        (figures.SuperpixelOverlay(image, cells), Section.INPUT, "Superpixels"),
        (figures.CameraLabels(image, bands, COLORS, NAMES), Section.INPUT, "Teacher's classes"),
        (figures.BevScalar(points, points[:, 2], "height, m"), Section.INPUT, "One sweep"),
        (figures.FeaturePca(points, features), Section.FEATURES, "Main directions"),
        (figures.Similarity(points, features, car), Section.FEATURES, "Like this car"),
        (
            figures.Similarity(points, features, car, image, ahead, row, col),
            Section.FEATURES,
            "Like this car, in the camera too",
        ),
        (
            figures.BevPrediction(points, prediction, truth, COLORS, NAMES),
            Section.PREDICTIONS,
            "Probe of SLidR features, 50 % of the labels",
        ),
        (
            DistilledFeatures(image, row, col, features[ahead], features[ahead] + 0.5),
            Section.PREDICTIONS,
            "Features of the image encoder and of the points",
        ),
        (
            ClassPrototypes(
                image,
                row,
                col,
                prediction[ahead],
                np.linspace(60, 400, 8),
                np.array([0.6, 0.6, 0.6, 0.5, 0.6, 0.6, 0.3, 0.0]),
                COLORS,
                NAMES,
                bands,
            ),
            Section.FEATURES,
            "Classes of the weak labels",
        ),
        (occupancy(points, rng), Section.PREDICTIONS, "Space around the street"),
        (
            CalibrationOverlay(
                image,
                ("initial pose", "recovered"),
                np.repeat([0, 1], len(ahead)),
                np.tile(row, 2),
                np.concatenate([(col + 40) % 256, col]),
                np.tile(points[ahead, 0], 2),
            ),
            Section.PREDICTIONS,
            "Calibration of the front camera",
        ),
        (
            OverlapPrediction(
                points,
                np.clip(points[:, 0] / 20, 0, 1),
                points[:, 0] > 4,
                image,
                rng.random((32, 64)),
            ),
            Section.PREDICTIONS,
            "What lidar and camera both see",
        ),
        (
            RetrievedScans(
                np.stack([image, image[::-1]]),
                np.array([1, 3]),
                np.array([[0, 0, 1, 2], [1, 2, 0, 1]]),
                np.array([[0.9, 0.9, 0.5, 0.4], [0.4, 0.6, 0.5, 0.4]]),
                points[ahead],
                np.arange(len(ahead)) % 3,
                ("scene-1/7", "scene-2/3"),
                40,
            ),
            Section.FEATURES,
            "Images and the scans that they find",
        ),
        *(
            (
                kind(image, np.where(rng.random(bands.shape) < 0.2, 6, 5), bands, COLORS, NAMES),
                Section.PREDICTIONS,
                "Classes of an image",
            )
            for kind in (ImagePrediction, ConditionPrediction)
        ),
    )
    records = []
    for index, (figure, section, title) in enumerate(made):
        name = f"figures/{index}_{figure.kind}.npz"
        figure.save(run / name)
        caption = f"What to look for in {title.lower()}: edges of the road, and cars."
        records.append(PictureRecord(name, title, caption, section))
    return tuple(records)


def write_log(run: Path, rng: np.random.Generator) -> None:
    with (run / "metrics.jsonl").open("w") as file:
        for stage, start, end, steps in (
            ("teacher", 2.4, 0.9, 400),
            ("pretrain/slidr", 6.1, 4.35, 400),
            ("pretrain/ppkt", 7.85, 6.27, 400),
        ):
            for step in range(steps):
                loss = end + (start - end) * np.exp(-step / 90) + 0.08 * rng.standard_normal()
                line = {"stage": stage, "step": step, "epoch": step // 60, "loss": loss}
                file.write(json.dumps({**line, "lr": 4e-3 * (1 - step / steps)}) + "\n")


def write_run(run: Path) -> Path:
    """A complete run folder."""
    rng = np.random.default_rng(7)
    run.mkdir(parents=True, exist_ok=True)
    run_record().save(run)
    Results(
        evaluated_on="40 held-out frames of 40 scenes, 8 classes",
        protocols=(
            ProtocolNote(
                Protocol.PROBE,
                "Softmax regression on frozen features, standardised per channel; 400 steps.",
                "lidarssl evaluate runs/demo --protocol probe",
            ),
            ProtocolNote(
                Protocol.FINETUNE,
                "All weights, AdamW 6e-3 for every row, 150 steps.",
                "lidarssl evaluate runs/demo --protocol finetune",
            ),
        ),
        efficiency=efficiency(),
        classes=class_rows(rng),
        pictures=write_figures(run, rng),
    ).save(run)
    write_log(run, rng)
    return run


@pytest.fixture(scope="session")
def complete_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with everything in it; tests do not write into it."""
    return write_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Make a run folder without pictures, with any of its results replaced."""

    def make(**results: object) -> Path:
        run = tmp_path / "run"
        run.mkdir(exist_ok=True)
        run_record().save(run)
        values = {"evaluated_on": "4 frames", "efficiency": efficiency(), **results}
        Results(**values).save(run)  # type: ignore[arg-type]
        write_log(run, np.random.default_rng(0))
        return run

    return make
