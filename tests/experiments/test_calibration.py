"""Calibration of a run, whose network knows the truth, errs or guesses; and its report."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from experiments.calibration_oracle import Errors, dataset, frame, knowing
from lidarssl.errors import ConfigError
from lidarssl.experiments import calibration
from lidarssl.experiments.calibration import CalibrationOptions, InitialPose, calibrate_run
from lidarssl.experiments.calibration_pictures import MIN_DEPTH, overlay
from lidarssl.experiments.calibration_solving import (
    SOLVERS,
    Solver,
    SolverSettings,
)
from lidarssl.experiments.method_pictures import add_method_pictures
from lidarssl.experiments.pictures import PictureBook
from lidarssl.frame import Field
from lidarssl.geometry.poses import geodesic_angle, planar_motion
from lidarssl.methods.nclr import Nclr
from lidarssl.recipes.kinds import PretrainRecipe
from lidarssl.report import figures
from lidarssl.report.calibration_record import CalibrationRecord
from lidarssl.training.settings import Training
from lidarssl.transforms.displacement import Displacement


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
def trained(monkeypatch: pytest.MonkeyPatch) -> Any:
    """In the place of the network of every run; pictures take time."""
    monkeypatch.setattr(calibration, "PICTURED_FRAMES", 0)
    displaced = Displacement(spread=2.0, limit=4.0)
    oracle = knowing(Errors(noise=0.2, wrong=0.2), displacement=displaced)
    monkeypatch.setattr(
        calibration, "trained_nclr", lambda run, overrides: (recipe(oracle), oracle)
    )
    return oracle


def calibrated(folder: Path, **options: Any) -> CalibrationRecord:
    return calibrate_run(folder, CalibrationOptions(**options), progress=False, command="again")


def test_a_run_is_calibrated_and_told(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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


def test_the_initial_error_is_the_displacement(trained: Any, tmp_path: Path) -> None:
    initial = InitialPose(angle=-30.0, shift=(3.0, 4.0))
    record = calibrated(tmp_path, frames=1, initial=initial)
    for image in record.images:
        assert image.before.rotation == pytest.approx(30)
        assert image.before.euler == pytest.approx(30)
        assert image.before.translation == pytest.approx(5)
        assert np.allclose(image.displacement, planar_motion([3, 4], math.radians(-30)))


def test_what_lies_out_of_reach_is_not_found(trained: Any, tmp_path: Path) -> None:
    far = {"frames": 1, "initial": InitialPose(angle=20.0, shift=(5.5, 0.0))}
    short = calibrated(tmp_path, **far, solver=SolverSettings(reach_shift=4.0))
    assert all(image.after is None or image.after.translation > 1 for image in short.images)
    # Farther than training displaces, but given: it is within reach.
    assert calibrated(tmp_path, **far).after.success == 1.0
    near = calibrated(tmp_path, **far, solver=SolverSettings(reach_angle=10.0, reach_shift=6.0))
    assert all(image.after is None or image.after.rotation > 9 for image in near.images)


def test_a_rig_is_calibrated(trained: Any, tmp_path: Path) -> None:
    """The second camera alone would not be."""
    trained.errors.lost = (1,)
    alone = calibrated(tmp_path, frames=2)
    assert [image.found is None for image in alone.images] == [False, True] * 2
    record = calibrated(tmp_path, frames=2, rig=True)
    assert record.after.success == 1.0
    for front, left in zip(record.images[::2], record.images[1::2], strict=True):
        assert front.after is not None
        assert left.after is not None
        assert front.frame == left.frame
        assert front.after.rotation == pytest.approx(left.after.rotation, abs=1e-6)
        assert front.after.translation == pytest.approx(left.after.translation, abs=1e-6)


@pytest.mark.parametrize("solver", [one for one in SOLVERS if one != "search"])
def test_a_rig_is_searched_alone(solver: Solver) -> None:
    with pytest.raises(ConfigError, match=f"{solver} looks at one camera at a time") as caught:
        CalibrationOptions(solver=SolverSettings(solver), rig=True)
    assert caught.value.field == "--rig, --solver"
    assert caught.value.remedy == "take --solver search, or leave --rig out"


@pytest.mark.parametrize("solver", SOLVERS)
def test_it_is_told_that_height_and_tilt_were_not_sought(
    trained: Any, tmp_path: Path, solver: Solver
) -> None:
    record = calibrated(tmp_path, frames=1, solver=SolverSettings(solver))
    told = any("Height and tilt are those of the dataset" in note for note in record.notes)
    assert told is (solver in ("planar", "search"))
    assert record.solver == solver


def test_no_displacement_starts_at_the_calibration(trained: Any, tmp_path: Path) -> None:
    record = calibrated(tmp_path, frames=2, initial=InitialPose(angle=0.0))
    assert record.before.success == 1.0
    assert record.after == record.displaced


def test_draws_depend_on_seed_and_frame_alone(trained: Any, tmp_path: Path) -> None:
    first, again, other = (calibrated(tmp_path, frames=2, seed=seed) for seed in (0, 0, 1))
    assert first.images == again.images
    assert first.images[0].displacement != first.images[2].displacement
    assert first.images[0].displacement == first.images[1].displacement
    assert first.images[0].displacement != other.images[0].displacement


def test_draws_are_those_of_training_or_narrower() -> None:
    wide = knowing(displacement=Displacement(spread=2.0, limit=5.0, max_angle=90.0))
    assert InitialPose().drawn_from(wide) == wide.view.displacement
    narrow = InitialPose(max_angle=5.0, spread=0.0)
    for number in range(20):
        motion = narrow.motion(wide, 0, number)
        assert float(motion[:3, 3].norm()) == 0
        turned = geodesic_angle(motion[:3, :3], torch.eye(3))
        assert float(turned.rad2deg()) <= 5


def test_a_given_pose_lies_within_the_reach_of_the_search() -> None:
    method = knowing()
    farthest = InitialPose(30.0, (3.0, -40.0)).farthest(method)
    assert (farthest.max_angle, farthest.limit) == (180.0, 40.0)
    assert InitialPose().farthest(method) == method.view.displacement


def test_given_and_drawn_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match="either given or drawn"):
        InitialPose(angle=3.0, spread=1.0)


def test_failures_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guessing = knowing(Errors(wrong=1.0), displacement=Displacement(spread=2.0, limit=4.0))
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


def test_a_run_folder_is_not_written_over(trained: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("kind: pretrain")
    with pytest.raises(ConfigError, match="holds a run"):
        calibrate_run(tmp_path, CalibrationOptions(), output=tmp_path)


def test_the_report_of_a_pretraining_shows_the_calibration(tmp_path: Path) -> None:
    book = PictureBook(tmp_path, dataset())
    add_method_pictures(knowing(), frame(), book)
    assert [Path(one.file).stem for one in book.records] == ["calibration_front", "overlap_front"]
    for one in book.records:
        assert len(figures.load(tmp_path / one.file).panels()) == 3
    empty = PictureBook(tmp_path, dataset())
    add_method_pictures(knowing(), replace(frame(), cameras=()), empty)
    assert empty.records == []
