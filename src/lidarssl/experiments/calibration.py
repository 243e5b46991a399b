"""`lidarssl calibrate`: the pose between a lidar and its cameras, found by a trained NCLR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lidarssl.errors import ConfigError, DataError
from lidarssl.experiments.calibration_pictures import add_calibration_pictures
from lidarssl.experiments.calibration_record import extrinsics, image_record, summaries
from lidarssl.experiments.calibration_solving import (
    Pose,
    Sighting,
    SolverSettings,
    sightings,
    solve,
    solve_jointly,
    solve_rig,
)
from lidarssl.experiments.pictures import PictureBook
from lidarssl.experiments.pretrain import picture_split
from lidarssl.experiments.record import RECIPE_FILE, STUDENT_FILE
from lidarssl.experiments.viewing import trained_recipe
from lidarssl.frame import Field, FrameId
from lidarssl.geometry.poses import planar_motion
from lidarssl.methods.nclr import Nclr
from lidarssl.metrics.registration import registration_errors, summarise
from lidarssl.recipes import files
from lidarssl.recipes.kinds import PretrainRecipe
from lidarssl.recipes.overrides import split_words
from lidarssl.report.calibration_page import write_report
from lidarssl.report.calibration_record import CalibrationRecord, ImageRecord, JointRecord
from lidarssl.report.schema import RUN_FILE
from lidarssl.training.devices import choose_device
from lidarssl.training.requirements import check_needs
from lidarssl.transforms.base import sample_generator
from lidarssl.transforms.displacement import Displacement

PICTURED_FRAMES, PICTURED_CAMERAS = 3, 2
"""The first ones are shown in the report."""

CHECKPOINT_FILE = Path("checkpoints") / "last.ckpt"

_TOO_FEW = (
    " Too few points that the network is sure of, or that agree: train longer, or take --solver "
    "search."
)
_NEEDS_NCLR = "calibrate needs a run of `lidarssl pretrain` with the method Nclr"


@dataclass(frozen=True)
class InitialPose:
    """How wrong the initial pose of a frame is.

    Attributes:
        angle: degrees, by which every scan is turned; None = drawn.
        shift: m, along x and y, by which every scan is moved before; None = drawn.
        max_angle, spread: of the draws; None = those of the method's training.
    """

    angle: float | None = None
    shift: tuple[float, float] | None = None
    max_angle: float | None = None
    spread: float | None = None

    def __post_init__(self) -> None:
        fixed = self.angle is not None or self.shift is not None
        if fixed and (self.max_angle is not None or self.spread is not None):
            raise ConfigError(
                "an initial pose is either given or drawn",
                field="--angle, --shift, --max-angle, --spread",
                remedy="--angle and --shift give one for all frames, --max-angle and --spread "
                "restrict the draw",
            )

    def motion(self, method: Nclr, seed: int, number: int) -> Tensor:
        """(4, 4) displaced_from_lidar of a frame."""
        if self.angle is not None or self.shift is not None:
            return planar_motion(self.shift or (0.0, 0.0), math.radians(self.angle or 0.0))
        return self.drawn_from(method).draw(sample_generator(seed, 0, number))

    def drawn_from(self, method: Nclr) -> Displacement:
        """The distribution of the draws."""
        given = {"max_angle": self.max_angle, "spread": self.spread}
        changes = {name: value for name, value in given.items() if value is not None}
        return replace(method.view.displacement, **changes)

    def farthest(self, method: Nclr) -> Displacement:
        """As far as training displaces, and as far as a given pose is wrong."""
        trained = method.view.displacement
        return replace(
            trained,
            max_angle=min(max(trained.max_angle, abs(self.angle or 0.0)), 180.0),
            limit=max(trained.limit, *map(abs, self.shift or (0.0,))),
        )

    def in_words(self, method: Nclr) -> str:
        """For the reader."""
        if self.angle is not None or self.shift is not None:
            x, y = self.shift or (0.0, 0.0)
            return f"turned by {self.angle or 0:g} degrees after a step of ({x:g}, {y:g}) m"
        drawn = self.drawn_from(method)
        return (
            f"drawn for every frame: turned by up to {drawn.max_angle:g} degrees after a step of "
            f"standard deviation {drawn.spread:g} m along x and y"
        )


@dataclass(frozen=True)
class CalibrationOptions:
    """What a user asks for.

    Attributes:
        split: of the dataset; None = the held-out one.
        frames: number of them, evenly spread over the split.
        initial: see there.
        solver: see there.
        joint: also one pose of every camera from all frames.
        rig: the cameras of a frame keep their places to each other; ``search`` alone.
        seed: of the draws.
    """

    split: str | None = None
    frames: int = 20
    initial: InitialPose = field(default_factory=InitialPose)
    solver: SolverSettings = field(default_factory=SolverSettings)
    joint: bool = False
    rig: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rig and self.solver.solver != "search":
            raise ConfigError(
                f"the solver {self.solver.solver} looks at one camera at a time",
                field="--rig, --solver",
                remedy="take --solver search, or leave --rig out",
            )

    def poses(self, of_frame: Sequence[Sighting], method: Nclr) -> list[Pose]:
        """The pose of every image of a frame."""
        if self.rig:
            return solve_rig(of_frame, self.solver.reach)
        return [
            solve(one, self.solver, method.pose, torch.Generator().manual_seed(self.seed))
            for one in of_frame
        ]


def calibrate_run(
    run: Path,
    options: CalibrationOptions,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    progress: bool = True,
    command: str = "",
) -> CalibrationRecord:
    """Find the poses of cameras with the network of a run, and write a report.

    Args:
        run: folder of `lidarssl pretrain` with the method Nclr.
        options: what is asked.
        overrides: command line words for the recipe, e.g. of another dataset.
        output: folder of ``calibration.json`` and ``report.html``; None = ``calibration`` in the
            run's.
        progress: show a bar.
        command: what repeats it.

    Raises:
        ConfigError: unknown split, or a method or output folder that does not fit.
        DataError: no trained run, or a bad frame.
    """
    output = output or run / "calibration"
    _refuse_run_folder(output)
    recipe, method = trained_nclr(run, overrides)
    farthest = options.initial.farthest(method)
    options = replace(options, solver=options.solver.reaching(farthest))
    dataset, split = recipe.dataset, options.split or picture_split(recipe)
    check_needs(method.needs, dataset, split, "calibration")
    chosen = _spread(dataset.frames(split), options.frames, f"{dataset.name}/{split}")
    device, book = choose_device(recipe.training.accelerator), PictureBook(output, dataset)
    images: list[ImageRecord] = []
    of_camera: dict[str, list[Sighting]] = {}
    for number, frame in enumerate(tqdm(chosen, "calibrate", disable=not progress, leave=False)):
        loaded = dataset.load(frame, Field.IMAGES)
        motion = options.initial.motion(method, options.seed, number)
        of_frame = sightings(method, loaded, motion, device)
        for one, pose in zip(of_frame, options.poses(of_frame, method), strict=True):
            camera = loaded.cameras[one.camera].name
            images.append(image_record(str(frame), camera, one, pose))
            if options.joint:
                of_camera.setdefault(camera, []).append(one)
            if number < PICTURED_FRAMES and one.camera < PICTURED_CAMERAS:
                part = book.of_part(f"frame {number + 1}") if len(chosen) > 1 else book
                add_calibration_pictures(loaded, one, pose, part)
    record = CalibrationRecord(
        command=command, run=str(run), dataset=dataset.name, split=split, frames=len(chosen),
        solver=options.solver.solver, initial=options.initial.in_words(method),
        seed=options.seed, notes=_notes(run, options, images),
        **summaries(images),
        joint=tuple(
            joint_record(camera, together, options, method)
            for camera, together in of_camera.items()
        ),
        images=tuple(images),
    )  # fmt: skip
    record.save(output)
    write_report(record, book.records, output)
    return record


def trained_nclr(run: Path, overrides: Sequence[str] = ()) -> tuple[PretrainRecipe, Nclr]:
    """The recipe of a run and its trained method.

    Args:
        run: its folder.
        overrides: command line words for the recipe.

    Raises:
        ConfigError: a word that the recipe does not know, or that changes the network.
        DataError: the folder holds no run of the method Nclr, or nothing trained.
    """
    path = run / RECIPE_FILE
    if path.is_file() and files.read(path)["kind"] != "pretrain":
        raise DataError("is no pretraining", path=run, remedy=_NEEDS_NCLR)
    if path.is_file() and not (run / CHECKPOINT_FILE).is_file():
        raise DataError(
            "the run has not been trained yet: it has no checkpoint",
            path=run / CHECKPOINT_FILE,
            remedy="let `lidarssl pretrain` finish; it goes on with --resume",
        )
    recipe = trained_recipe(run, _afresh(path, overrides))
    if not isinstance(recipe.method, Nclr):
        name = type(recipe.method).__name__
        raise DataError(f"is a run of the method {name}", path=run, remedy=_NEEDS_NCLR)
    return recipe, recipe.method


def _afresh(path: Path, overrides: Sequence[str]) -> list[str]:
    """The words, such that another dataset does not inherit what was set for the recipe's.

    Args:
        path: of the recipe of a run, which spells out every argument.
        overrides: command line words.
    """
    words = []
    for key, value in split_words(overrides):
        named = key in ("dataset", "dataset.class_path") and not value.startswith("{")
        if named and path.is_file():
            before = str(files.read(path)["dataset"]["class_path"])
            if value.rpartition(".")[2] != before.rpartition(".")[2]:
                key, value = "dataset", f"{{class_path: {value}}}"
        words.append(f"--{key}={value}")
    return words


def _refuse_run_folder(output: Path) -> None:
    if any((output / name).exists() for name in (RUN_FILE, RECIPE_FILE)):
        raise ConfigError(
            "holds a run, whose report would be replaced",
            path=output,
            field="--output",
            remedy="choose another folder",
        )


def _spread(ids: Sequence[FrameId], number: int, where: str) -> list[FrameId]:
    """So many of the frames, evenly spread."""
    if not ids:
        raise DataError(
            f"{where} has no frames", field="--split", remedy="choose another split, or its root"
        )
    if number < 1:
        raise ConfigError(f"{number} frames", field="--frames", remedy="give 1 or more")
    step = len(ids) / min(number, len(ids))
    return [ids[int(place * step)] for place in range(min(number, len(ids)))]


def joint_record(
    camera: str, together: Sequence[Sighting], options: CalibrationOptions, method: Nclr
) -> JointRecord:
    """One pose of a camera from several frames.

    Args:
        camera: its name.
        together: of its images.
        options: of the calibration.
        method: trained.
    """
    generator = torch.Generator().manual_seed(options.seed)
    pose = solve_jointly(together, options.solver, method.pose, generator)
    truth = torch.stack([one.calibration for one in together])
    errors = registration_errors(pose.matrix.expand_as(truth), truth)
    valid = torch.full((len(together),), pose.valid)
    return JointRecord(
        camera, len(together), extrinsics(pose.matrix) if pose.valid else None,
        summarise(errors, valid), int(pose.used.sum()), pose.inliers,
    )  # fmt: skip


def _notes(
    run: Path, options: CalibrationOptions, images: Sequence[ImageRecord]
) -> tuple[str, ...]:
    """What a reader should know."""
    notes = []
    if not (run / STUDENT_FILE).is_file():
        notes.append("The run has not finished: the network is that of its last checkpoint.")
    if options.solver.solver in ("planar", "search"):
        notes.append(
            "Height and tilt are those of the dataset's calibration: only heading, x and y were "
            "sought."
        )
    failed = sum(image.found is None for image in images)
    if failed:
        notes.append(
            f"{failed} of {len(images)} registrations failed: they count as no success, and are "
            "left out of medians and means."
            + ("" if options.solver.solver == "search" else _TOO_FEW)
        )
    return tuple(notes)
