"""The whole story in minutes: a world, a teacher, a student without labels, and its worth."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lidarssl.datasets.synthetic import Synthetic
from lidarssl.datasets.world.config import LidarConfig, SplitConfig, WorldConfig, camera_rig
from lidarssl.experiments.downstream import DESCRIPTIONS, add_downstream_pictures
from lidarssl.experiments.labelled import Labelled, labelled_frames, lookup_confusion
from lidarssl.experiments.pictures import PictureBook, picture_frame
from lidarssl.experiments.pretrain import add_pretraining_pictures, train_student
from lidarssl.experiments.record import Recorder, architecture, load_backbone
from lidarssl.experiments.scoring import class_row, efficiency_row
from lidarssl.experiments.teacher import score_teacher, train_teacher
from lidarssl.images.unet import SmallUNet
from lidarssl.metrics.segmentation import iou_report
from lidarssl.prepare.superpixels import prepare_superpixels
from lidarssl.recipes.kinds import PretrainRecipe, ProbeRecipe
from lidarssl.recipes.schema import LoadedRecipe, load
from lidarssl.report.build import build_report
from lidarssl.report.schema import LOOK_UP, RANDOM_INIT, Protocol, ProtocolNote, Results
from lidarssl.tasks.image_labels import predict_labels
from lidarssl.tasks.probe import probe_task
from lidarssl.tasks.semantic import SemanticSegmentation, adapt_batch_norm, evaluate
from lidarssl.wording import counted

PRETRAIN_RECIPE = "slidr_minkunet_synthetic"
PROBE_RECIPE = "probe_minkunet_synthetic"
STUDENT = "SLidR"
CPU = torch.device("cpu")

NOTES = (
    "The images are taught by a small encoder trained here on the image labels of other "
    "synthetic scenes: a stand-in for a foundation model, whose weights cannot be assumed offline.",
    "The lidar network saw no label while it was pretrained. The scenes of teacher, pretraining "
    "and test are disjoint.",
    "One seed on a toy world: it shows that the machinery works, not which method is better. "
    "benchmarks/label_efficiency.py repeats the comparison with three seeds.",
)

QUICK_NOTE = (
    "A quick run on a tiny world: it shows that everything works here. Its numbers mean nothing."
)


@dataclass(frozen=True)
class DemoSettings:
    """How big the demo is.

    Attributes:
        seed: of the world, the weights and every draw.
        steps: of pretraining.
        teacher_steps: of the stand-in image encoder.
        workers: processes that generate and load.
        world: size of the synthetic world; None = the default of ``WorldConfig``.
        probe_steps: of the linear probes.
        image_size: (height, width) that the image encoder sees while it teaches.
    """

    seed: int = 0
    steps: int = 400
    teacher_steps: int = 300
    workers: int = 2
    world: WorldConfig | None = None
    probe_steps: int = 400
    image_size: tuple[int, int] = (128, 256)

    @classmethod
    def quick(cls, seed: int = 0, workers: int = 1) -> DemoSettings:
        """Everything the demo does, on a tiny world and for a few steps."""
        splits = (
            SplitConfig("teacher", scenes=2, frames=1),
            SplitConfig("train", scenes=4, frames=1),
            SplitConfig("val", scenes=2, frames=1),
        )
        lidar = LidarConfig(beams=16, azimuth_steps=180)
        world = WorldConfig(seed, splits, lidar, camera_rig(2, height=64, width=128))
        return cls(seed, 4, 4, workers, world, probe_steps=20, image_size=(64, 128))

    @property
    def is_quick(self) -> bool:
        return self == self.quick(self.seed, self.workers)


@dataclass(frozen=True)
class Demo:
    """A demo under way.

    Attributes:
        run: its folder.
        settings: see there.
        progress: show progress bars.
    """

    run: Path
    settings: DemoSettings
    progress: bool

    @property
    def world(self) -> Path:
        return self.run / "world"

    @property
    def teacher(self) -> Path:
        return self.run / "teacher.safetensors"

    @property
    def command(self) -> str:
        settings = self.settings
        size = "--quick" if settings.is_quick else f"--steps {settings.steps}"
        return f"lidarssl demo --run {self.run} --seed {settings.seed} {size}"

    def pretraining(self) -> LoadedRecipe:
        """The shipped recipe, pointed at this folder."""
        return load(
            PRETRAIN_RECIPE,
            [
                f"--dataset.root={self.world}",
                f"--method.image_encoder.weights={self.teacher}",
                f"--method.superpixels.folder={self.run / 'superpixels'}",
                f"--method.augmentation.image_size={list(self.settings.image_size)}",
                f"--training.steps={self.settings.steps}",
                f"--training.seed={self.settings.seed}",
            ],
        )

    def probe(self) -> LoadedRecipe:
        """The shipped probe with a fresh random backbone."""
        return load(
            PROBE_RECIPE,
            [
                f"--dataset.root={self.world}",
                f"--seed={self.settings.seed}",
                f"--probe.steps={self.settings.probe_steps}",
            ],
        )


@dataclass(frozen=True)
class Verdict:
    """What the probes found.

    Attributes:
        frames: labelled and held-out frames.
        tasks: probed networks by name.
        matrices: confusion matrices by name, the look-up's among them.
    """

    frames: Labelled
    tasks: dict[str, SemanticSegmentation]
    matrices: dict[str, Tensor]


def run_demo(run: Path, settings: DemoSettings, progress: bool = True) -> Path:
    """Generate, teach, pretrain, probe, report.

    Returns:
        The report; beside it ``metrics.json``, ``student.safetensors`` and the world.
    """
    demo = Demo(run, settings, progress)
    (run / "metrics.jsonl").unlink(missing_ok=True)
    title = "SLidR on a synthetic driving world"
    if settings.is_quick:
        title += ": a quick run, whose numbers mean nothing"
    recorder = Recorder(run, title, demo.command, settings.seed, "")
    recorder.notes.extend([QUICK_NOTE, *NOTES] if settings.is_quick else NOTES)
    with recorder.stage("world", "streets, a lidar and three cameras, ray-cast"):
        world = settings.world or WorldConfig(seed=settings.seed)
        dataset = Synthetic.generate(demo.world, world, settings.workers, progress)
    with recorder.stage("teacher", "an image encoder trained on labels of other scenes"):
        train_teacher(
            dataset,
            demo.teacher,
            steps=settings.teacher_steps,
            seed=settings.seed,
            progress=progress,
            run=run,
        )
    with recorder.stage("superpixels", "SLIC outlines of every training image"):
        prepare_superpixels(
            dataset,
            "train",
            run / "superpixels",
            segments=100,
            sigma=1.0,
            workers=settings.workers,
            progress=progress,
        )
    loaded = demo.pretraining()
    recorder.recipe = loaded.resolved
    with recorder.stage("pretrain", "SLidR: the lidar network learns from images, no label"):
        recipe: PretrainRecipe = loaded.recipe
        train_student(recipe, loaded.resolved, run, progress=progress, append_metrics=True)
    with recorder.stage("probe", "a linear classifier on frozen features, and the baselines"):
        verdict = judge(demo)
    with recorder.stage("report", "scores and pictures"):
        write_metrics(demo, dataset, verdict)
        results(demo, recipe, dataset, verdict).save(run)
    return build_report(run)


def judge(demo: Demo) -> Verdict:
    """Probe the student and a random network on the same frames; the look-up beside them."""
    recipe: ProbeRecipe = demo.probe().recipe
    frames = labelled_frames(
        recipe.dataset,
        recipe.train_split,
        recipe.val_split,
        recipe.label_skip,
        recipe.workers,
        recipe.eval_batch_size,
    )
    tasks = {name: probe_network(demo, name, frames) for name in (STUDENT, RANDOM_INIT)}
    matrices = {
        name: evaluate(
            task,
            frames.batches(frames.val, task.backbone),
            CPU,
            frames.val_batches,
            demo.progress,
        )
        for name, task in tasks.items()
    }
    return Verdict(frames, tasks, matrices | {LOOK_UP: lookup_confusion(frames)})


def probe_network(demo: Demo, name: str, frames: Labelled) -> SemanticSegmentation:
    """Fit a linear classifier on the student's features, or on those of a random network."""
    loaded = demo.probe()
    recipe: ProbeRecipe = loaded.recipe
    backbone = recipe.backbone
    if name == RANDOM_INIT:
        few = frames.train[: recipe.adapt_frames]
        adapt_batch_norm(backbone, frames.batches(few, backbone), CPU)
    else:
        load_backbone(backbone, demo.run, architecture(backbone, loaded.resolved, "backbone"))
    return probe_task(
        backbone,
        frames.batches(frames.train, backbone),
        len(frames.dataset.classes),
        recipe.probe,
        CPU,
        torch.Generator().manual_seed(demo.settings.seed),
        demo.progress,
    )


def results(demo: Demo, recipe: PretrainRecipe, dataset: Synthetic, verdict: Verdict) -> Results:
    """Scores and pictures for the report."""
    book, frames = PictureBook(demo.run, dataset), verdict.frames
    add_pretraining_pictures(recipe, book, features=False)
    frame = picture_frame(dataset, frames.val[0], recipe.val_split)
    image = frame.cameras[0].image
    assert image is not None
    encoder = SmallUNet(num_classes=len(dataset.classes), weights=demo.teacher)
    predicted = predict_labels(encoder, image[None].float() / 255)[0]
    book.add_image_labels(frame, predicted)
    for name, task in verdict.tasks.items():
        add_downstream_pictures(task, frames, recipe.val_split, book, name, CPU)
    rows = [
        (name, Protocol.LOOKUP if name == LOOK_UP else Protocol.PROBE, matrix)
        for name, matrix in verdict.matrices.items()
    ]
    return Results(
        f"{counted(len(frames.val), 'held-out frame')} of the synthetic world, "
        f"{len(dataset.classes) - 1} classes",
        protocols=(ProtocolNote(Protocol.PROBE, DESCRIPTIONS[Protocol.PROBE], demo.command),),
        efficiency=tuple(efficiency_row(name, p, frames, [matrix]) for name, p, matrix in rows),
        classes=tuple(class_row(name, p, frames, matrix) for name, p, matrix in rows),
        pictures=tuple(book.records),
    )


def write_metrics(demo: Demo, dataset: Synthetic, verdict: Verdict) -> None:
    """``metrics.json``: what a program needs to know of the demo."""
    names, count = dataset.classes.names, len(verdict.frames.val)
    scores = {
        name: iou_report(matrix).to_json(names, count) for name, matrix in verdict.matrices.items()
    }
    content = {
        "probe": {"slidr": scores[STUDENT], "random_init": scores[RANDOM_INIT]},
        "look_up": scores[LOOK_UP],
        "teacher_image_miou": score_teacher(dataset, "val", demo.teacher).miou,
        "labelled_frames": len(verdict.frames.train),
        "frames": count,
        "seed": demo.settings.seed,
    }
    (demo.run / "metrics.json").write_text(json.dumps(content, indent=1))
