"""Calibration by a network that knows the truth, by one that errs, and by one that guesses."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from lidarssl.errors import ConfigError, DataError
from lidarssl.experiments import calibration
from lidarssl.experiments.calibration import CalibrationOptions, InitialPose, calibrate_run
from lidarssl.experiments.calibration_pictures import MIN_DEPTH, overlay
from lidarssl.experiments.calibration_solving import (
    SOLVERS,
    Sighting,
    SolverSettings,
    sightings,
    solve,
    solve_jointly,
)
from lidarssl.experiments.method_pictures import add_method_pictures
from lidarssl.experiments.pictures import PictureBook
from lidarssl.frame import Batch, Field, Frame
from lidarssl.geometry.poses import geodesic_angle, invert_pose, planar_motion
from lidarssl.methods.nclr import Nclr
from lidarssl.methods.nclr_settings import CalibrationView, PoseTerm
from lidarssl.methods.soft_matching import ImageMatches
from lidarssl.recipes.schema import PretrainRecipe
from lidarssl.report import figures
from lidarssl.report.calibration_record import CalibrationRecord
from lidarssl.training.fit import Training
from lidarssl.transforms.displacement import Displacement
from lidarssl.transforms.grid_matches import grid_intrinsics
from methods.small import backbone, encoder
from toys import MemoryDataset

STRIDE, SIZE = 4, (96, 128)
CPU = torch.device("cpu")


@dataclass
class Errors:
    """What the oracle gets wrong.

    Attributes:
        noise: cells, standard deviation of every match.
        wrong: share of the points seen whose match is anywhere in the image.
        seen: overlap of the points seen.
    """

    noise: float = 0.0
    wrong: float = 0.0
    seen: float = 0.95


class Oracle(Nclr):
    """Reads the pose from the batch instead of finding it."""

    def __init__(self, errors: Errors | None = None, **view: Any) -> None:
        super().__init__(
            backbone(), encoder(), 8, view=CalibrationView(SIZE, STRIDE, **view), pose=PoseTerm()
        )
        self.errors, self.asked = errors or Errors(), list[Batch]()

    def match(self, batch: Batch) -> list[ImageMatches]:
        assert batch.images is not None
        assert batch.intrinsics is not None
        assert batch.camera_from_lidar is not None
        assert batch.frame_of_image is not None
        self.asked.append(batch)
        generator = torch.Generator().manual_seed(0)
        found = []
        for image, frame in enumerate(batch.frame_of_image.tolist()):
            points = batch.points.points[batch.points.batch == frame]
            lens = grid_intrinsics(batch.intrinsics[image], STRIDE, self.view.pixel_centers)
            pose = batch.camera_from_lidar[image]
            found.append(self._one(frame, points, pose, lens, generator))
        return found

    def _one(
        self, frame: int, points: Tensor, pose: Tensor, lens: Tensor, generator: torch.Generator
    ) -> ImageMatches:
        there = points @ pose[:3, :3].T + pose[:3, 3]
        height, width = (length // STRIDE for length in SIZE)
        ray = there @ lens.T
        pixel = ray[:, :2] / ray[:, 2:]
        inside = (there[:, 2] > 0.1) & (pixel >= -0.5).all(1)
        inside &= (pixel < torch.tensor([width, height]) - 0.5).all(1)
        pixel = pixel + self.errors.noise * torch.randn(pixel.shape, generator=generator)
        anywhere = torch.rand(pixel.shape, generator=generator) * torch.tensor([width, height])
        wrong = torch.rand(len(pixel), generator=generator) < self.errors.wrong
        pixel = torch.where((wrong | ~inside)[:, None], anywhere, pixel)
        overlap = torch.where(inside, self.errors.seen, 0.05)
        cells = torch.zeros(height, width)
        return ImageMatches(
            frame, points, overlap, pixel, torch.full_like(overlap, 0.5), cells, lens
        )


def dataset(cameras: int = 1) -> MemoryDataset:
    return MemoryDataset(6, points=1200, cameras=cameras)


def frame(number: int = 0, cameras: int = 1) -> Frame:
    memory = dataset(cameras)
    return memory.load(memory.frames("val")[number], Field.IMAGES)


def sighted(errors: Errors | None = None, motion: Tensor | None = None) -> Sighting:
    moved = planar_motion([3.0, -2.0], 2.0) if motion is None else motion
    return sightings(Oracle(errors), frame(), moved, CPU)[0]


def found(one: Sighting, **changes: Any) -> tuple[float, float, bool]:
    """Errors of the extrinsics in degrees and m, and whether there is a pose."""
    pose = solve(one, SolverSettings(**changes), PoseTerm(), torch.Generator().manual_seed(0))
    recovered = pose.matrix @ one.displacement
    turned = geodesic_angle(recovered[:3, :3], one.calibration[:3, :3]).rad2deg()
    return float(turned), float((recovered - one.calibration)[:3, 3].norm()), pose.valid


@pytest.mark.parametrize("solver", SOLVERS)
@settings(max_examples=8, deadline=None)
@given(x=st.floats(-15, 15), y=st.floats(-15, 15), angle=st.floats(-math.pi, math.pi))
def test_exact_matches_give_the_pose_back(solver: str, x: float, y: float, angle: float) -> None:
    one = sighted(motion=planar_motion([x, y], angle))
    turned, moved, valid = found(one, solver=solver)
    assert valid
    # Points and calibration of a batch are float32: 1e-6 of 15 m over 8 m.
    assert turned < 2e-3
    assert moved < 2e-3


def test_the_scan_is_displaced_and_nothing_of_the_calibration_is_told() -> None:
    motion, oracle, whole = planar_motion([3.0, -2.0], 2.0), Oracle(), frame()
    (one,) = sightings(oracle, whole, motion, CPU)
    expected = whole.points.double() @ motion[:3, :3].T + motion[:3, 3]
    assert torch.allclose(oracle.asked[0].points.points.double(), expected, atol=1e-5)
    assert torch.equal(one.calibration, whole.cameras[0].camera_from_lidar)
    assert torch.allclose(
        one.truth @ expected[0].new_tensor([*expected[0], 1.0]),
        one.calibration @ expected[0].new_tensor([*whole.points[0].double(), 1.0]),
        atol=1e-9,
    )


def test_truth_of_points_and_matches() -> None:
    """Of an exact network every point that it says is seen is, at distance 0."""
    one = sighted()
    assert torch.equal(one.seen, one.matches.overlap > 0.5)
    assert 0 < int(one.seen.sum()) < len(one.seen)
    assert float(one.distance[one.seen].max()) < 1e-3
    cells = torch.zeros_like(one.cells)
    at = one.matches.pixel[one.seen].round().long()
    cells[at[:, 1], at[:, 0]] = True
    assert int((cells != one.cells).sum()) <= 2, "a point on the border of two cells may differ"


def test_wrong_matches_are_left_out_by_robust_and_planar_alone() -> None:
    one = sighted(Errors(noise=0.3, wrong=0.4))
    for solver, degrees, metres in (("robust", 1.0, 0.3), ("planar", 0.5, 0.15)):
        turned, moved, valid = found(one, solver=solver)
        assert valid
        assert turned < degrees, solver
        assert moved < metres, solver
    turned, moved, _ = found(one, solver="epnp")
    assert turned > 2 or moved > 0.5


def test_planar_finds_a_motion_of_the_plane() -> None:
    one = sighted(Errors(noise=1.0, wrong=0.3))
    pose = solve(one, SolverSettings("planar"), PoseTerm(), torch.Generator().manual_seed(0))
    motion = invert_pose(one.calibration) @ pose.matrix
    assert torch.allclose(motion[2, :2], motion.new_zeros(2), atol=1e-9)
    assert torch.allclose(motion[:2, 2], motion.new_zeros(2), atol=1e-9)
    assert torch.allclose(motion[2, 2:], motion.new_tensor([1.0, 0.0]), atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_guesses_and_too_few_points_are_failures(solver: str) -> None:
    assert not found(sighted(Errors(wrong=1.0)), solver="robust")[2]
    nothing_seen = sighted(Errors(seen=0.05))
    assert not found(nothing_seen, solver=solver)[2]
    behind = replace(frame(), points=frame().points[:0], intensity=frame().intensity[:0])
    (empty,) = sightings(Oracle(), behind, planar_motion([1.0, 0.0], 1.0), CPU)
    assert not found(empty, solver=solver)[2]


def test_frames_together_are_better_than_alone() -> None:
    oracle = Oracle(Errors(noise=1.0, wrong=0.5))
    many = [
        sightings(oracle, frame(number), planar_motion([number - 3.0, 1.0], number), CPU)[0]
        for number in range(6)
    ]
    generator = torch.Generator().manual_seed(0)
    joint = solve_jointly(many, SolverSettings(), PoseTerm(), generator)
    assert joint.valid
    alone = np.mean([found(one)[0] for one in many])
    truth = many[0].calibration
    assert float(geodesic_angle(joint.matrix[:3, :3], truth[:3, :3]).rad2deg()) < alone
    assert float((joint.matrix - truth)[:3, 3].norm()) < 0.2


def test_frames_with_other_intrinsics_go_together() -> None:
    one = sighted()
    matches = one.matches
    lens = matches.intrinsics * matches.intrinsics.new_tensor([2.0, 3.0, 1.0])[:, None]
    other = replace(
        one,
        matches=replace(
            matches, intrinsics=lens, pixel=matches.pixel * matches.pixel.new_tensor([2.0, 3.0])
        ),
    )
    generator = torch.Generator().manual_seed(0)
    joint = solve_jointly([one, other], SolverSettings(), PoseTerm(), generator)
    assert joint.inliers == 2 * int(one.seen.sum())
    assert torch.allclose(joint.matrix, one.calibration, atol=2e-3)


def test_a_frame_without_cameras_is_named() -> None:
    bare = replace(frame(), cameras=())
    with pytest.raises(DataError, match=r"memory/val/0006 has no camera"):
        sightings(Oracle(), bare, torch.eye(4, dtype=torch.float64), CPU)


def test_the_overlay_is_the_projection_by_each_pose() -> None:
    whole, turned = frame(), planar_motion([0.5, 0.0], 0.1)
    camera = whole.cameras[0]
    truth = camera.camera_from_lidar
    figure = overlay(whole.points, camera, {"wrong": truth @ turned, "right": truth})
    assert figure.names == ("wrong", "right")
    for number, pose in enumerate((truth @ turned, truth)):
        own = figure.pose == number
        there = whole.points.double().numpy() @ pose[:3, :3].numpy().T + pose[:3, 3].numpy()
        there = there[there[:, 2] > MIN_DEPTH]
        pixel = there @ camera.intrinsics.numpy().T
        col, row = np.round(pixel[:, :2] / pixel[:, 2:]).T
        inside = {(r, c) for r, c in zip(row, col, strict=True) if 0 < r < 47 and 0 < c < 63}
        shown = set(zip(figure.row[own].tolist(), figure.col[own].tolist(), strict=True))
        assert inside <= shown


def recipe(method: Nclr, cameras: int = 2) -> PretrainRecipe:
    return PretrainRecipe(dataset(cameras), method, training=Training(accelerator="cpu"))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Oracle:
    """In the place of the network of every run; pictures take time."""
    monkeypatch.setattr(calibration, "PICTURED_FRAMES", 0)
    oracle = Oracle(Errors(noise=0.2, wrong=0.2))
    monkeypatch.setattr(
        calibration, "trained_nclr", lambda run, overrides: (recipe(oracle), oracle)
    )
    return oracle


def calibrated(folder: Path, **options: Any) -> CalibrationRecord:
    return calibrate_run(folder, CalibrationOptions(**options), progress=False, command="again")


def test_a_run_is_calibrated_and_told(
    trained: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "PICTURED_FRAMES", 1)
    record = calibrated(tmp_path, frames=3, joint=True)
    assert CalibrationRecord.load(tmp_path / "calibration") == record
    assert [image.camera for image in record.images] == ["front", "left"] * 3
    assert record.after.success == record.displaced.euler_success == 1.0
    assert record.after.failed == 0
    assert record.before.success == 0.0
    memory = dataset(2)
    for image, number in zip(record.images, (0, 0, 2, 2, 4, 4), strict=True):
        loaded = memory.load(memory.frames("val")[number], Field.IMAGES)
        camera = next(one for one in loaded.cameras if one.name == image.camera)
        assert image.frame == str(loaded.id)
        assert image.found is not None
        assert np.allclose(image.found.matrix, camera.camera_from_lidar, atol=0.1)
        w, *xyz = image.found.quaternion
        turn = Rotation.from_quat([*xyz, w]).as_matrix()
        assert np.allclose(turn, np.array(image.found.matrix)[:3, :3], atol=1e-9)
        assert image.found.translation == tuple(row[3] for row in image.found.matrix[:3])
    page = (tmp_path / "calibration" / "report.html").read_text()
    assert "100\N{NO-BREAK SPACE}% of 6 images calibrated" in page
    pictures = [path.stem for path in (tmp_path / "calibration" / "figures").glob("*.png")]
    assert sorted(pictures) == [
        f"frame_1_{kind}_{camera}_{panel}"
        for kind in ("calibration", "overlap")
        for camera in ("front", "left")
        for panel in range(3)
    ]
    assert page.count("<img") == len(pictures)
    assert [joint.frames for joint in record.joint] == [3, 3]
    assert all(joint.after.success == 1.0 for joint in record.joint)


def test_the_initial_error_is_the_displacement(trained: Oracle, tmp_path: Path) -> None:
    initial = InitialPose(angle=-30.0, shift=(3.0, 4.0))
    record = calibrated(tmp_path, frames=1, initial=initial)
    for image in record.images:
        assert image.before.rotation == pytest.approx(30)
        assert image.before.euler == pytest.approx(30)
        assert image.before.translation == pytest.approx(5)
        assert np.allclose(image.displacement, planar_motion([3, 4], math.radians(-30)))


def test_no_displacement_starts_at_the_calibration(trained: Oracle, tmp_path: Path) -> None:
    record = calibrated(tmp_path, frames=2, initial=InitialPose(angle=0.0))
    assert record.before.success == 1.0
    assert record.after == record.displaced


def test_draws_depend_on_seed_and_frame_alone(trained: Oracle, tmp_path: Path) -> None:
    first, again, other = (calibrated(tmp_path, frames=2, seed=seed) for seed in (0, 0, 1))
    assert first.images == again.images
    assert first.images[0].displacement != first.images[2].displacement
    assert first.images[0].displacement == first.images[1].displacement
    assert first.images[0].displacement != other.images[0].displacement


def test_draws_are_those_of_training_or_narrower() -> None:
    wide = Oracle(displacement=Displacement(spread=2.0, limit=5.0, max_angle=90.0))
    assert InitialPose().drawn_from(wide) == wide.view.displacement
    narrow = InitialPose(max_angle=5.0, spread=0.0)
    for number in range(20):
        motion = narrow.motion(wide, 0, number)
        assert float(motion[:3, 3].norm()) == 0
        turned = geodesic_angle(motion[:3, :3], torch.eye(3))
        assert float(turned.rad2deg()) <= 5


def test_given_and_drawn_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match="either given or drawn"):
        InitialPose(angle=3.0, spread=1.0)


def test_failures_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guessing = Oracle(Errors(wrong=1.0))
    monkeypatch.setattr(
        calibration, "trained_nclr", lambda run, overrides: (recipe(guessing), guessing)
    )
    record = calibrated(tmp_path, frames=1, joint=True)
    assert record.after.success == 0
    assert record.after.failed == 2
    assert [image.found for image in record.images] == [None, None]
    assert any("2 of 2 registrations failed" in note for note in record.notes)
    page = (tmp_path / "calibration" / "report.html").read_text()
    assert "No pose was found" in page
    assert page.count("<img") == 2 * (2 + 3), "nothing is shown where nothing was found"


def test_a_run_folder_is_not_written_over(trained: Oracle, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("kind: pretrain")
    with pytest.raises(ConfigError, match="holds a run"):
        calibrate_run(tmp_path, CalibrationOptions(), output=tmp_path)


def test_the_report_of_a_pretraining_shows_the_calibration(tmp_path: Path) -> None:
    book = PictureBook(tmp_path, dataset())
    add_method_pictures(Oracle(), frame(), book)
    assert [Path(one.file).stem for one in book.records] == ["calibration_front", "overlap_front"]
    for one in book.records:
        assert len(figures.load(tmp_path / one.file).panels()) == 3
    empty = PictureBook(tmp_path, dataset())
    add_method_pictures(Oracle(), replace(frame(), cameras=()), empty)
    assert empty.records == []
