"""Every data pipeline: ms per sample on one core, stage by stage.

Usage: python benchmarks/loaders.py [--repeats 15] [--json FILE] [--only WORD ...]

A sample is what a loader worker does: read and decode the files, the method's transforms, collate
a batch of one, and what the backbone can do without its weights. A total counts what the loaders
of the published code did on the same frames: decoding, augmentation, matches, voxels, queries,
neighbours. Kernel maps and the supports of queries, which the published code makes in the training
step, stand apart. Recipes are the shipped ones with small networks; changed are the place of the
data, its splits, and for SLidR the folder of superpixels, which are made first at a quarter of the
size. Times are CPU time of one thread with the files in the cache, medians over samples with draws
of their own, freed memory kept as loader workers keep it (--fresh-memory: not). Fast forms are
compared with plain ones in the same run.

Real frames below LIDARSSL_DATA (default ../shared/data), else a made-up scan without images.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from measuring import Figure, argument_parser, data_folder, made_up_scan, report

from lidarssl.backbones.base import Backbone
from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.backbones.voxelize import voxelize_batch
from lidarssl.batching import collate
from lidarssl.datasets.base import Dataset, describe_missing
from lidarssl.datasets.semantic_kitti import LEARNING_MAP
from lidarssl.frame import Field, FrameId
from lidarssl.geometry.decimation import decimate
from lidarssl.geometry.voxels import cell_coordinates, voxelize
from lidarssl.prepare.superpixels import prepare_superpixels
from lidarssl.recipes.schema import build_dataset, load
from lidarssl.training.loading import FrameSource
from lidarssl.training.memory import keep_freed_memory
from lidarssl.transforms.base import Transform, sample_generator
from lidarssl.transforms.images import decoded

T = TypeVar("T")
SUPERPIXEL_SCALE = 0.25
STAGES = {
    "load": "read and decode", "MatchPixels": "match pixels", "OneCamera": "one camera",
    "KeepMatched": "visible points", "KeepNearest": "nearest points", "ResizeWhole": "resize image",
    "ResizedCrop": "crop and resize images", "Superpixels": "read superpixels",
    "DropCuboids": "drop a cuboid", "FlipImages": "mirror images", "Thin": "thin",
    "Decimate": "thin", "MakeQueries": "make queries", "LimitPoints": "limit points",
    "FindSupports": "supports of the queries", "RotateZ": "turn", "CropBox": "field of view",
    "FlipAxes": "mirror", "FlipOne": "mirror", "ScalePoints": "scale",
}  # fmt: skip
APART = ("supports of the queries", "voxels and kernel maps")
VIT = (
    "--method.backbone.depth=1", "--method.backbone.channels=16",
    "--method.image_encoder.architecture=dinov2_vits14", "--method.image_encoder.weights=null",
)  # fmt: skip
NUSCENES = ("--dataset.version=v1.0-mini", "--train_split=mini_train", "--val_split=mini_val")


@dataclass(frozen=True)
class Pipeline:
    """A shipped recipe on one dataset.

    Attributes:
        name, recipe: of the figure, of the file.
        folder: of the real frames.
        options: what is changed in the recipe.
        at_most: ms, the target.
        reference: ms of the published code's loader on another machine.
    """

    name: str
    recipe: str
    folder: str
    options: tuple[str, ...]
    at_most: float
    reference: float


PIPELINES = (
    Pipeline(
        "SLidR nuScenes, 6 cameras + superpixels", "slidr_minkunet_nuscenes", "nuscenes",
        (*NUSCENES, "--method.image_encoder.weights=null"), 95, 273,
    ),
    Pipeline("ScaLR nuScenes", "scalr_waffleiron_nuscenes", "nuscenes", NUSCENES + VIT, 20, 60),
    Pipeline(
        "ScaLR SemanticKITTI", "scalr_waffleiron_semantic_kitti", "semantic_kitti", VIT, 60, 159
    ),
    Pipeline("ALSO SemanticKITTI", "also_minkunet_semantic_kitti", "semantic_kitti", (), 35, 100),
    Pipeline("ALSO nuScenes", "also_minkunet_nuscenes", "nuscenes", NUSCENES, 9, 26),
    Pipeline(
        "SLidR downstream SemanticKITTI", "finetune_minkunet_semantic_kitti_1", "semantic_kitti",
        (), 10, 20.4,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Decoding:
    """Frames of a dataset as its methods ask for them."""

    dataset: str
    folder: str
    split: str
    fields: Field
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        parts = ["points"] if self.dataset != "acdc" else []
        parts += [str(one.name).lower().replace("_", " ") for one in self.fields]
        variant = " ".join(word.partition("=")[2] for word in self.options if "sensor" in word)
        return f"{self.dataset} {variant} ".replace("  ", " ") + f"({', '.join(parts)})"


_MINI = ("--version=v1.0-mini",)
DECODINGS = (
    Decoding("nuscenes", "nuscenes", "mini_train", Field.NONE, _MINI),
    Decoding("nuscenes", "nuscenes", "mini_train", Field.SEMANTIC | Field.BOXES, _MINI),
    Decoding("nuscenes", "nuscenes", "mini_train", Field.IMAGES, _MINI),
    Decoding("semantic_kitti", "semantic_kitti", "train", Field.NONE),
    Decoding("semantic_kitti", "semantic_kitti", "train", Field.SEMANTIC),
    Decoding("semantic_kitti", "semantic_kitti", "train", Field.IMAGES),
    Decoding("kitti_object", "kitti", "train", Field.NONE),
    Decoding("kitti_object", "kitti", "train", Field.IMAGES | Field.BOXES),
    Decoding("pandaset", "pandaset", "train", Field.NONE, ("--sensor=pandar64",)),
    Decoding("pandaset", "pandaset", "train", Field.SEMANTIC, ("--sensor=pandar64",)),
    Decoding("pandaset", "pandaset", "train", Field.IMAGES, ("--sensor=pandar64",)),
    Decoding("pandaset", "pandaset", "train", Field.IMAGES, ("--sensor=pandar_gt",)),
    Decoding("a2d2", "a2d2/camera_lidar", "all", Field.NONE),
    Decoding("a2d2", "a2d2/camera_lidar", "all", Field.IMAGES),
    Decoding("acdc", "acdc", "train", Field.IMAGES | Field.IMAGE_LABELS),
)


class Clock:
    """CPU ms of every stage, a column of samples each."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}

    def __call__(self, stage: str, work: Callable[[], T]) -> T:
        start = time.process_time()
        done = work()
        self.spent.setdefault(stage, []).append(1000 * (time.process_time() - start))
        return done

    def median(self, stage: str) -> float:
        return statistics.median(self.spent[stage])

    def total(self, apart: Sequence[str]) -> float:
        """Median over samples of the sum of the stages that count."""
        counted = [spent for stage, spent in self.spent.items() if stage not in apart]
        return statistics.median(map(sum, zip(*counted, strict=True)))


@dataclass(frozen=True)
class Parts:
    """What a trainer would load with."""

    dataset: Dataset
    ids: list[FrameId]
    fields: Field
    missing: Sequence[str]
    transforms: Sequence[Transform]
    backbone: Backbone
    seed: int

    @classmethod
    def of(cls, pipeline: Pipeline, root: Path, options: Sequence[str]) -> Parts:
        words = [f"--dataset.root={root / pipeline.folder}", *pipeline.options, *options]
        recipe = load(pipeline.recipe, words).recipe
        labelled = hasattr(recipe, "task")
        learner = recipe.task if labelled else recipe.method
        ids = recipe.dataset.frames(recipe.train_split)
        fields = Field.SEMANTIC if labelled else learner.needs
        return cls(
            recipe.dataset,
            # The published loaders were timed on these scans.
            [frame for frame in ids if frame.sequence == "00"] or ids,
            fields,
            describe_missing(fields, recipe.dataset.provides(recipe.train_split)),
            learner.transforms(True),
            learner.backbone,
            recipe.training.seed,
        )

    def sample(self, epoch: int, clock: Clock) -> None:
        row, fields = epoch % len(self.ids), self.fields | Field.UNDECODED
        frame = clock(STAGES["load"], lambda: self.dataset.load(self.ids[row], fields))
        rng = sample_generator(self.seed, epoch, row)
        for step in self.transforms:
            before = frame
            stage = STAGES[type(step).__name__]
            frame = clock(stage, lambda step=step, before=before: step(before, rng))  # type: ignore[misc]
        whole = clock("decode what is left", lambda: decoded(frame))
        batch = clock("collate", lambda: collate([whole]))
        backbone = self.backbone
        if isinstance(backbone, MinkUNet):
            clock("voxels", lambda: voxelize_batch(batch.points, backbone.grid))
            clock("voxels and kernel maps", lambda: backbone.prepare(batch.points))
        else:
            clock("neighbours and cells", lambda: backbone.prepare(batch.points))
        if epoch == 0:
            source = FrameSource(self.dataset, self.ids, self.fields, self.transforms, self.seed)
            same("a sample of the trainer", whole.points, source.load(epoch, row).points)


def pipeline_figures(
    pipeline: Pipeline, root: Path, options: Sequence[str], repeats: int
) -> Iterator[Figure]:
    parts, warm, clock = Parts.of(pipeline, root, options), Clock(), Clock()
    if parts.missing:
        return
    with torch.no_grad():
        parts.sample(0, warm)
        for epoch in range(1, repeats + 1):
            parts.sample(epoch, clock)
    most = sorted(set(clock.spent) - set(APART), key=clock.median)[-2:][::-1]
    yield Figure(
        pipeline.name, clock.total(APART), "ms", at_most=pipeline.at_most,
        limit=f"{', '.join(most)}; published code elsewhere {pipeline.reference:g}",
    )  # fmt: skip
    for stage in clock.spent:
        note = "not counted" if stage in APART else ""
        yield Figure(f"  {stage}", clock.median(stage), "ms", limit=note)


def decoding_figures(decoding: Decoding, root: Path, repeats: int) -> Iterator[Figure]:
    words = [f"--root={root / decoding.folder}", *decoding.options]
    dataset = build_dataset(decoding.dataset, words)
    if describe_missing(decoding.fields, dataset.provides(decoding.split)):
        return
    ids, clock = dataset.frames(decoding.split), Clock()
    dataset.load(ids[0], decoding.fields)
    for sample in range(repeats):
        frame = ids[sample % len(ids)]
        clock("load", lambda frame=frame: dataset.load(frame, decoding.fields))  # type: ignore[misc]
    yield Figure(f"read {decoding.name}", clock.median("load"), "ms")


def block_figures(root: Path, repeats: int) -> Iterator[Figure]:
    """Building blocks beside their plain forms, on a scan of SemanticKITTI."""
    dataset = build_dataset("semantic_kitti", [f"--root={root / 'semantic_kitti'}"])
    first = dataset.frames("train")[0]
    points = dataset.load(first, Field.NONE).points
    path = next(Path(root).rglob(f"{first.sequence}/labels/{first.token}.label"))
    raw = np.fromfile(path, "<u4") & 0xFFFF

    def plain_voxels() -> tuple[np.ndarray, ...]:
        cells = cell_coordinates(points, "also", 0.05).numpy()
        return np.unique(cells, axis=0, return_index=True, return_inverse=True)

    def plain_cells() -> np.ndarray:
        cells = (points / torch.tensor(0.05)).floor().long().numpy()
        return np.unique(cells, axis=0, return_index=True)[1]

    fast, (_, index, inverse) = voxelize(points, "also", 0.05), plain_voxels()
    same("voxels", fast.index, torch.from_numpy(index))
    same("voxels of points", fast.inverse, torch.from_numpy(inverse).reshape(-1))
    same("thinned points", decimate(points, 0.05), torch.from_numpy(plain_cells()))
    labels = dataset.load(first, Field.SEMANTIC).semantic
    plain_labels = np.vectorize(LEARNING_MAP.__getitem__)
    same("labels", labels, torch.from_numpy(plain_labels(raw)))
    yield beside("voxels of a scan", lambda: voxelize(points, "also", 0.05), plain_voxels, repeats)
    yield beside("one point per cell", lambda: decimate(points, 0.05), plain_cells, repeats)
    yield beside(
        "read a scan with labels; plain maps them one by one",
        lambda: dataset.load(first, Field.SEMANTIC),
        lambda: (dataset.load(first, Field.NONE), plain_labels(raw)),
        repeats,
    )


def beside(
    name: str, ours: Callable[[], object], plain: Callable[[], object], repeats: int
) -> Figure:
    """Median of a form beside that of a plain one, taking turns."""
    clock = Clock()
    for _ in range(repeats):
        clock("ours", ours)
        clock("plain", plain)
    return Figure(name, clock.median("ours"), "ms", beside=clock.median("plain"))


def same(what: str, found: torch.Tensor | None, expected: torch.Tensor) -> None:
    if found is None or not torch.equal(found, expected):
        sys.exit(f"{what}: the fast form differs from the plain one")


def made_up_kitti(folder: Path) -> Path:
    """One scan in the layout of SemanticKITTI, without images."""
    for sequence in ("00", "08"):
        place = folder / "semantic_kitti" / "dataset" / "sequences" / sequence
        scan = made_up_scan().numpy().astype("<f4")
        labels = np.random.default_rng(0).choice([10, 40, 50, 70], len(scan)).astype("<u4")
        for name, content in (("velodyne/000000.bin", scan), ("labels/000000.label", labels)):
            (place / name).parent.mkdir(parents=True)
            content.tofile(place / name)
    return folder


def measure(root: Path, scratch: Path, only: Sequence[str], repeats: int) -> Iterator[Figure]:
    def wanted(name: str, folder: str) -> bool:
        chosen = not only or any(word.lower() in name.lower() for word in only)
        return chosen and (root / folder).is_dir()

    for pipeline in PIPELINES:
        if not wanted(pipeline.name, pipeline.folder):
            continue
        options = []
        if pipeline.name.startswith("SLidR nuScenes"):
            dataset = build_dataset("nuscenes", [f"--root={root / 'nuscenes'}"])
            prepare_superpixels(
                dataset, "mini_train", scratch, scale=SUPERPIXEL_SCALE, progress=False
            )
            options = [
                f"--method.superpixels.folder={scratch}",
                f"--method.superpixels.scale={SUPERPIXEL_SCALE}",
            ]
        yield from pipeline_figures(pipeline, root, options, repeats)
    if wanted("blocks", "semantic_kitti"):
        yield from block_figures(root, repeats)
    for decoding in DECODINGS:
        if wanted(f"read {decoding.name}", decoding.folder):
            yield from decoding_figures(decoding, root, repeats)


def main() -> None:
    options = argument_parser(__doc__, repeats=15, threads=1)
    options.add_argument("--only", nargs="+", default=[], help="words of the names to measure")
    options.add_argument("--fresh-memory", action="store_true", help="not as loader workers do")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    if not arguments.fresh_memory:
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        root, source = data_folder(), "real frames"
        if not root.is_dir():
            root, source = made_up_kitti(Path(scratch)), "a made-up scan, without images"
        superpixels = Path(scratch) / "superpixels"
        figures = list(measure(root, superpixels, arguments.only, arguments.repeats))
    report("CPU ms per sample", figures, arguments.json, arguments.threads, data=source)


if __name__ == "__main__":
    main()
