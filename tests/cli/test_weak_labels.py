"""`lidarssl prepare weak-labels` as a user types it, rightly and wrongly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import Command, Outcome, Tiny
from dataset_files import write_nuscenes
from lidarssl.datasets.synthetic import Synthetic
from lidarssl.frame import Field
from lidarssl.images.unet import SmallUNet, read_shape
from lidarssl.transforms.paired import MatchPixels
from lidarssl.transforms.weak_labels import WeakLabels
from prepare.labellers.tiny_models import save_grounding_dino, save_mask2former, save_sam


def words(tiny: Tiny, output: Path, *more: object) -> list[object]:
    return [
        "prepare", "weak-labels", "synthetic", "--root", tiny.world, "--output", output,
        "--workers", 0, "--quiet", *more,
    ]  # fmt: skip


def unet(weights: Path) -> list[object]:
    return ["--labeller", "SmallUNetLabeller", "--labeller.weights", weights]


def test_a_teacher_labels_the_world(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    weights, folder = tmp_path / "teacher.safetensors", tmp_path / "weak"
    trained = command(
        "prepare", "teacher", "synthetic", "--root", tiny.world, "--output", weights,
        "--steps", 1, "--workers", 0, "--quiet",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    dataset = Synthetic(tiny.world)
    assert read_shape(weights).classes == tuple(dataset.classes.names)
    line = words(tiny, folder, *unet(weights))
    first = command(*line, "--shard", "0/2")
    assert first.code == 0, first.err
    assert "2 images labelled, 0 kept" in first.out
    assert "2 images labelled, 2 kept" in command(*line).out
    assert "0 images labelled, 4 kept" in command(*line).out
    assert "4 images labelled, 0 kept" in command(*line, "--overwrite", "--batch-size", 3).out
    rng = np.random.default_rng(0)
    frame = MatchPixels()(dataset.load(dataset.frames("train")[0], Field.IMAGES), rng)
    transform = WeakLabels(folder)
    assert transform.classes == tuple(dataset.classes.names[1:])
    label = transform(frame, rng).matches.label
    assert 1 <= int(label.min()) <= int(label.max()) <= len(transform.classes)
    previews = list((folder / "previews").iterdir())
    assert len(previews) == 2  # the first image of each of the runs that labelled any
    assert Image.open(previews[0]).size[0] > 1000
    names = '["' + '", "'.join(f"n{k}" for k in range(13)) + '"]'
    refuses(command(*line, f"--labeller.classes={names}"), "made with other settings", "classes")


def refuses(done: Outcome, *parts: str) -> None:
    assert done.code == 2, done.out
    for part in parts:
        assert part in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ([], ["--labeller", "--camseg", "GroundedSam"]),
        (["--labeller", "GroundedSAM"], ["did you mean 'GroundedSam'", "SmallUNetLabeller"]),
        (["--labeller", "SmallUNetLabeller"], ["labeller.weights"]),
        (["--labeller.weights", "x"], ["which Labeller", "labeller.class_path"]),
        (["--labeller", "SmallUNetLabeller", "--labeller.weights", "no.st"], ["no.st"]),
        (["--labeller", "GroundedSam", "--labeller.detectr", "x"], ["labeller.detector"]),
        (["--labeller", "SmallUNetLabeller", "--camseg", "x"], ["two sources", "--camseg"]),
        (["--camseg", "x"], ["--classes", "seem"]),
        (["--camseg", "x", "--classes", "seem"], ["no such folder", "camseg"]),
        (["--labeller", "SmallUNetLabeller", "--classes", "seem"], ["belongs to --camseg"]),
        (["--shard", "2/2"], ["--shard", "0/4"]),
        (["--preview-every", "-1"], ["0 or more"]),
    ],
)
def test_mistakes(
    more: list[str], parts: list[str], command: Command, tiny: Tiny, tmp_path: Path
) -> None:
    refuses(command(*words(tiny, tmp_path / "weak", *more)), *parts)
    assert not (tmp_path / "weak").exists()


def test_a_teacher_without_names_or_classes(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    assert command(*words(tiny, tmp_path / "a", *unet(tiny.teacher), "--split", "val")).code == 0
    assert WeakLabels(tmp_path / "a").classes[-1] == "class_13"
    SmallUNet().save(tmp_path / "plain.safetensors")
    done = command(*words(tiny, tmp_path / "b", *unet(tmp_path / "plain.safetensors")))
    refuses(done, "no classifier", "plain.safetensors")


def test_camseg(command: Command, tmp_path: Path) -> None:
    root = write_nuscenes(tmp_path / "nuscenes")
    for name in [*(root / "samples").glob("CAM_*/*.jpg")]:
        path = tmp_path / "camseg" / name.parent.name / f"{name.stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full(Image.open(name).size[::-1], 13, np.uint8)).save(path)
    line = [
        "prepare", "weak-labels", "nuscenes", "--root", root, "--split", "mini_val",
        "--cameras", "[CAM_FRONT, CAM_BACK]", "--quiet",
        "--output", tmp_path / "weak", "--camseg", tmp_path / "camseg", "--workers", 0,
    ]  # fmt: skip
    done = command(*line, "--classes", "grounded_sam")
    assert done.code == 0, done.err
    assert "4 images imported" in done.out
    transform = WeakLabels(tmp_path / "weak")
    assert transform.classes[13] == "building"
    refuses(command(*line, "--classes", "seem"), "other settings", "classes")


def test_networks_of_transformers(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    classes = "{car: car, road: ground, sidewalk: ground}"
    mask2former = save_mask2former(tmp_path / "mask2former", ["car", "road", "sidewalk", "sky"])
    done = command(
        *words(tiny, tmp_path / "a", "--labeller", "UniversalSegmenter"), "--split", "val",
        "--labeller.model", mask2former, "--labeller.classes", classes,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "2 images labelled" in done.out
    assert WeakLabels(tmp_path / "a").classes == ("car", "ground")
    dino, sam = save_grounding_dino(tmp_path / "dino"), save_sam(tmp_path / "sam")
    done = command(
        *words(tiny, tmp_path / "b", "--labeller", "GroundedSam"), "--split", "val",
        "--labeller.detector", dino, "--labeller.segmenter", sam, "--labeller.prompts",
        "{car: car, person: [pedestrian, man]}", "--labeller.box_threshold", 0.1,
        "--labeller.short_side", 32, "--labeller.long_side", 64,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "2 images labelled" in done.out
    assert WeakLabels(tmp_path / "b").classes == ("car", "person")
    assert len(list((tmp_path / "b").glob("*.png"))) == 2


def test_help_names_the_options_of_dataset_and_labellers(command: Command) -> None:
    shown = command("prepare", "weak-labels", "synthetic", "--help").out
    for part in ("--root", "--labeller.detector", "--labeller.model", "--labeller.weights"):
        assert part in shown
    assert "IDEA-Research/grounding-dino-tiny" in shown
