"""`lidarssl calibrate` as a user types it, on a run of two steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from commands import Command, Tiny, small
from dataset_files import write_semantic_kitti
from lidarssl.report.calibration_record import CalibrationRecord
from lidarssl.report.schema import Results


@pytest.fixture(scope="module")
def run(command: Command, tiny: Tiny) -> Path:
    """NCLR after two steps."""
    folder = tiny.folder / "nclr"
    done = command(
        "pretrain", "nclr_minkunet_synthetic", "--run", folder, "--quiet",
        f"--dataset.root={tiny.world}", f"--method.image_encoder.weights={tiny.teacher}",
        "--method.view.image_size=[32,64]", "--method.sampling.number=256",
        "--training.steps=2", "--training.workers=0", "--training.accelerator=cpu",
        *small("method.backbone"),
    )  # fmt: skip
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def calibrated(command: Command, run: Path) -> tuple[str, CalibrationRecord]:
    """What is printed and recorded."""
    words = ("--frames", 5, "--seed", 3, "--joint")
    done = command("calibrate", run, *words)
    assert done.code == 0, done.err
    assert "calibrate:" in done.err, "a bar"
    return done.out, CalibrationRecord.load(run / "calibration")


def test_every_image_of_the_held_out_split(calibrated: tuple[str, CalibrationRecord]) -> None:
    text, record = calibrated
    assert (record.dataset, record.split, record.frames, record.seed) == ("synthetic", "val", 1, 3)
    assert [image.camera for image in record.images] == ["CAM_FRONT", "CAM_BACK"]
    assert [joint.camera for joint in record.joint] == ["CAM_FRONT", "CAM_BACK"]
    assert "synthetic/val: 2 images of 1 frame; initial pose drawn" in text
    assert "rotation error, median" in text
    assert "as in the literature" in text
    assert "CAM_BACK, one pose from 1 frame" in text


def test_the_report_lies_in_the_run(run: Path, calibrated: tuple[str, CalibrationRecord]) -> None:
    text, record = calibrated
    page = run / "calibration" / "report.html"
    assert text.endswith(f"report: {page}\n")
    assert record.command == f"lidarssl calibrate {run} --frames 5 --seed 3 --joint"
    assert record.command in page.read_text()
    pictures = [path.name for path in (run / "calibration" / "figures").glob("*.png")]
    assert {"calibration_CAM_FRONT_0.png", "overlap_CAM_BACK_2.png"} <= set(pictures)
    assert page.read_text().count("<img") == len(pictures)
    assert json.loads((run / "calibration" / "calibration.json").read_text())["solver"] == "search"


def test_the_report_of_the_pretraining_shows_one(run: Path) -> None:
    files = [picture.file for picture in Results.load(run).pictures]
    assert "figures/calibration_CAM_FRONT.npz" in files
    assert "figures/overlap_CAM_FRONT.npz" in files
    assert "Calibration of CAM_FRONT" in (run / "report.html").read_text()


@pytest.mark.parametrize("solver", ["robust", "planar", "epnp"])
def test_another_solver_split_pose_and_folder(
    command: Command, run: Path, tmp_path: Path, solver: str
) -> None:
    done = command(
        "calibrate", run, "--solver", solver, "--split", "train", "--frames", 1, "--angle", -8,
        "--shift", 0.3, -0.4, "--output", tmp_path / "out", "--quiet",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.err == ""
    record = CalibrationRecord.load(tmp_path / "out")
    assert (record.solver, record.split, record.frames) == (solver, "train", 1)
    for image in record.images:
        assert image.before.rotation == pytest.approx(8)
        assert image.before.translation == pytest.approx(0.5)
    assert "turned by -8 degrees after a step of (0.3, -0.4) m" in done.out


def test_a_rig_is_searched_as_far_as_told(command: Command, run: Path, tmp_path: Path) -> None:
    done = command(
        "calibrate", run, "--rig", "--reach-angle", 30, "--reach-shift", 3, "--angle", 8,
        "--output", tmp_path, "--quiet",
    )  # fmt: skip
    assert done.code == 0, done.err
    record = CalibrationRecord.load(tmp_path)
    assert (record.solver, len(record.images)) == ("search", 2)
    assert "solver search" in done.out
    assert "only heading, x and y were sought" in done.out
    # A network of two steps may fail; what it finds is one motion within the reach.
    found = [image.displaced.rotation for image in record.images if image.displaced]
    assert len(found) in (0, 2)
    assert all(turned <= 30 + 8 + 1e-3 for turned in found)
    assert found == pytest.approx(found[:1] * len(found), abs=1e-4)


def test_help_tells_of_the_search(command: Command) -> None:
    shown = " ".join(command("calibrate", "--help").out.split())
    for words in (
        "--reach-angle DEG of search (default: as far as training turns a scan)",
        "--reach-shift M of search, along x and y (default: as far as training moves a scan)",
        "--rig search one motion for all cameras of a frame",
        "search heading, x and y, up to --reach-angle and --reach-shift",
        "(default: search)",
        "lidarssl calibrate runs/nclr --frames 100 --rig",
    ):
        assert words in shown


def test_frames_of_another_dataset(command: Command, run: Path, tmp_path: Path) -> None:
    root = write_semantic_kitti(tmp_path / "data")
    done = command(
        "calibrate", run, "--dataset.class_path", "SemanticKitti", "--dataset.root", root,
        "--split", "train", "--frames", 1, "--output", tmp_path / "out", "--quiet",
    )  # fmt: skip
    assert done.code == 0, done.err
    record = CalibrationRecord.load(tmp_path / "out")
    assert record.dataset == "semantic_kitti"
    assert {image.camera for image in record.images} == {"image_2"}


def test_draws_can_be_narrowed(command: Command, run: Path, tmp_path: Path) -> None:
    done = command(
        "calibrate", run, "--max-angle", 5, "--spread", 0, "--output", tmp_path, "--quiet"
    )
    assert done.code == 0, done.err
    record = CalibrationRecord.load(tmp_path)
    assert all(image.before.rotation <= 5 for image in record.images)
    assert all(image.before.translation == 0 for image in record.images)


def test_a_run_that_was_stopped_is_used_and_told(
    command: Command, run: Path, tmp_path: Path
) -> None:
    stopped = tmp_path / "stopped"
    (stopped / "checkpoints").mkdir(parents=True)
    for name in ("recipe.yaml", "checkpoints/last.ckpt"):
        shutil.copy(run / name, stopped / name)
    done = command("calibrate", stopped, "--quiet")
    assert done.code == 0, done.err
    assert "has not finished" in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--frames", "0"), "not a whole number of 1 or more"),
        (("--frames", "many"), "not a whole number of 1 or more"),
        (("--angle", "nan"), "'nan' is not a finite number"),
        (("--shift", "1", "inf"), "'inf' is not a finite number"),
        (("--shift", "1"), "expected 2 arguments"),
        (("--threshold", "0"), "'0' is not above 0"),
        (("--overlap", "1.5"), "'1.5' is not from 0 to 1"),
        (("--max-angle", "200"), "180 is every direction"),
        (("--spread", "-1"), "a finite number from 0"),
        (("--angle", "3", "--spread", "1"), "either given or drawn"),
        (("--solver", "plannar"), "choose from 'search', 'robust', 'planar', 'epnp'"),
        (("--rig", "--solver", "robust"), "take --solver search, or leave --rig out"),
        (("--reach-angle", "-3"), "'-3' is not above 0"),
        (("--reach-shift", "0"), "'0' is not above 0"),
        (("--reach-shift", "far"), "'far' is not a finite number"),
        (("--reach_angle", "30"), "did you mean '--reach-angle'?"),
        (("--threshold", "3"), "the solver search does not use --threshold"),
        (("--overlap", "0.3"), "the solver search does not use --overlap"),
        (("--solver", "epnp", "--overlap", "0.3"), "the solver epnp does not use --overlap"),
        (("--solver", "robust", "--reach-angle", "9"), "does not use --reach-angle"),
        (("--split", "vall"), "split"),
        (("--max_angle", "3"), "did you mean '--max-angle'?"),
        (("--dataset.rot", "x"), "dataset.root"),
        (("--method.embedding", "32"), "leave out --method options"),
    ],
)
def test_bad_options_name_the_remedy(
    command: Command, run: Path, words: tuple[str, ...], said: str
) -> None:
    done = command("calibrate", run, "--quiet", *words)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert said in done.err


def test_a_dataset_without_images_is_refused(command: Command, run: Path, tmp_path: Path) -> None:
    root = write_semantic_kitti(tmp_path)
    for folder in root.rglob("image_2"):
        shutil.rmtree(folder)
    done = command(
        "calibrate", run, "--dataset.class_path", "SemanticKitti", "--dataset.root", root,
        "--split", "train", "--quiet",
    )  # fmt: skip
    assert done.code == 2
    assert "needs images" in done.err


def test_a_run_of_another_method_or_kind_is_refused(
    command: Command, pretrained: Path, probed: Path
) -> None:
    other = command("calibrate", pretrained, "--quiet")
    assert other.code == 2
    assert "is a run of the method Slidr" in other.err
    assert "with the method Nclr" in other.err
    judged = command("calibrate", probed, "--quiet")
    assert judged.code == 2
    assert "is no pretraining" in judged.err
    assert "with the method Nclr" in judged.err


def test_no_run_and_an_untrained_one_are_refused(
    command: Command, run: Path, tmp_path: Path
) -> None:
    missing = command("calibrate", tmp_path / "nowhere", "--quiet")
    assert missing.code == 2
    assert "no such run folder" in missing.err
    assert "holds no run" in command("calibrate", tmp_path, "--quiet").err
    shutil.copy(run / "recipe.yaml", tmp_path)
    untrained = command("calibrate", tmp_path, "--quiet")
    assert untrained.code == 2
    assert "has no checkpoint" in untrained.err
    assert "--resume" in untrained.err


def test_the_report_of_a_run_is_not_replaced(command: Command, run: Path) -> None:
    before = (run / "report.html").read_bytes()
    done = command("calibrate", run, "--output", run, "--quiet")
    assert done.code == 2
    assert "--output" in done.err
    assert (run / "report.html").read_bytes() == before
