"""Every verb as a user types it, on a tiny world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from commands import Command, Tiny
from lidarssl import __version__, checkpoints
from lidarssl.datasets.mixed import Mixed
from lidarssl.datasets.synthetic import Synthetic
from lidarssl.frame import Field
from lidarssl.images.unet import SmallUNet
from lidarssl.recipes.schema import load
from lidarssl.report.schema import LOOK_UP, RANDOM_INIT, Results, RunRecord
from pandaset_files import write_pandaset


def test_version(command: Command) -> None:
    assert command("--version").out == f"lidarssl {__version__}\n"


@pytest.mark.parametrize(
    "verb",
    [
        "demo", "recipes", "data check", "data stats", "data synthesize", "data shard",
        "prepare superpixels",
        "prepare image-features", "prepare weak-labels", "prepare instances", "prepare teacher",
        "pretrain", "probe", "finetune", "evaluate", "report", "calibrate", "doctor",
    ],
)  # fmt: skip
def test_help_explains_with_examples(command: Command, verb: str) -> None:
    shown = command(*verb.split(), "--help")
    assert shown.code == 0
    assert f"  lidarssl {verb}" in shown.out
    assert "examples:" in shown.out


def test_help_of_a_dataset_lists_its_options(command: Command) -> None:
    assert "--version = v1.0-mini" in command("data", "check", "nuscenes", "--help").out
    assert "add its name" in command("data", "check", "--help").out


def test_help_of_a_world_lists_its_options(command: Command) -> None:
    shown = command("data", "synthesize", "--help").out
    assert "--lidar.beams = 32" in shown
    assert "a spinning lidar" in shown.lower()


def test_recipes(command: Command) -> None:
    listed = command("recipes").out
    assert "slidr_minkunet_nuscenes " in listed
    assert "probe_minkunet_nuscenes " in listed
    shown = command("recipes", "slidr_minkunet_nuscenes").out
    assert "kind: pretrain" in shown
    assert "class_path: Slidr" in shown


def test_recipe_keys_explain_what_can_be_given(command: Command) -> None:
    shown = command("recipes", "slidr_minkunet_synthetic", "--keys").out
    assert "* --training.optimizer.lr = 0.004" in shown
    assert "* --method.temperature = 0.07" in shown
    assert "of the contrastive loss" in shown
    assert "--method.class_path may also be Also, Clcp, Nclr, Olivine, Ppkt, Scalr)" in shown
    assert "--method.backbone.checkpointing = false   (true or false)" in shown


def test_data_check_and_stats(command: Command, tiny: Tiny) -> None:
    checked = command("data", "check", "synthetic", "--root", tiny.world, "--workers", 0)
    assert checked.code == 0
    assert "2 checked, 0 bad" in checked.out
    stats = command("data", "stats", "synthetic", "--root", tiny.world, "--limit", 1, "--json")
    assert json.loads(stats.out)["frames"] == 1


def test_options_of_a_dataset_are_options_of_the_check(command: Command, tmp_path: Path) -> None:
    root = write_pandaset(tmp_path, {"001": 2, "003": 1})
    checked = command("data", "check", "pandaset", "--root", root, "--sensor", "pandar_gt")
    assert checked.code == 0, checked.err
    assert "2 checked, 0 bad" in checked.out
    assert "front_camera: " in checked.out
    assert "back_camera" not in checked.out
    wrong = command("data", "check", "pandaset", "--root", root, "--sensor", "pandar128")
    assert wrong.code == 2
    assert "pandar64" in wrong.err


def test_data_check_and_stats_can_be_quiet(command: Command, tiny: Tiny) -> None:
    for verb in ("check", "stats"):
        words = ("data", verb, "synthetic", "--root", tiny.world)
        loud, quiet = command(*words), command(*words, "--quiet")
        assert (quiet.code, quiet.out, quiet.err) == (0, loud.out, "")
        assert "frame/s" in loud.err


def test_data_check_counts_bad_frames(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    for path in tiny.world.rglob("*"):
        link = tmp_path / path.relative_to(tiny.world)
        if path.is_file():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    sweep = next((tmp_path / "samples" / "LIDAR_TOP").iterdir())
    sweep.unlink()
    checked = [
        command("data", "check", "synthetic", "--root", tmp_path, "--split", split)
        for split in ("teacher", "train", "val")
    ]
    assert sorted(one.code for one in checked) == [0, 0, 1]
    assert any(sweep.name in one.out for one in checked)


def test_options_may_stand_before_the_name(command: Command, tiny: Tiny) -> None:
    checked = command("data", "check", "--root", tiny.world, "--image_scale", 0.5, "synthetic")
    assert checked.code == 0, checked.err


def test_options_with_spaces_may_stand_before_the_name(command: Command, tmp_path: Path) -> None:
    splits = "--splits=[{name: train, scenes: 0, frames: 1}]"
    assert command("data", "synthesize", splits, tmp_path / "world").code == 0


def test_synthesize_in_the_layout_of_semantic_kitti(command: Command, tmp_path: Path) -> None:
    made = command(
        "data", "synthesize", tmp_path, "--layout", "semantic_kitti", "--workers", 1,
        "--splits", "[{name: train, scenes: 1, frames: 1}, {name: teacher, scenes: 1, frames: 1}]",
        "--lidar.azimuth_steps", 60, "--quiet",
    )  # fmt: skip
    assert made.code == 0, made.err
    assert made.out.endswith(": 1 frame\n")
    assert "image_2" in command("data", "check", "semantic_kitti", "--root", tmp_path).out


def test_prepare_superpixels_resumes(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    words = [
        "prepare", "superpixels", "synthetic", "--root", tiny.world, "--split", "val",
        "--output", tmp_path, "--segments", 10, "--workers", 0,
    ]  # fmt: skip
    assert "2 images segmented, 0 kept" in command(*words).out
    assert "0 images segmented, 2 kept" in command(*words).out
    assert "2 images segmented, 0 kept" in command(*words, "--overwrite").out


def test_prepare_teacher(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    output = tmp_path / "teacher.safetensors"
    done = command(
        "prepare", "teacher", "synthetic", "--root", tiny.world, "--output", output,
        "--steps", 1, "--workers", 0, "--score-split", "val", "--quiet",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "image mIoU on 1 frame:" in done.out
    assert SmallUNet(num_classes=14, weights=output).num_classes == 14


def test_pretrain_leaves_a_student_and_a_report(pretrained: Path) -> None:
    saved = checkpoints.load(pretrained / "student.safetensors")
    assert saved.card.step == 2
    assert saved.card.data == ("synthetic/train",)
    assert "<html" in (pretrained / "report.html").read_text()
    record = RunRecord.load(pretrained)
    assert record.command.startswith("lidarssl pretrain slidr_minkunet_synthetic --run")
    assert not record.notes


def two_worlds(tiny: Tiny, key: str) -> list[str]:
    """Words for a mixture of a world and of itself at half the size of its images."""
    return [
        f"--{key}a.class_path=Synthetic", f"--{key}a.root={tiny.world}",
        f"--{key}b=Synthetic", f"--{key}b.root={tiny.world}", f"--{key}b.image_scale=0.5",
    ]  # fmt: skip


def test_several_datasets_at_once(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    checked = command("data", "check", "mixed", *two_worlds(tiny, "datasets."), "--workers", 0)
    assert checked.code == 0, checked.err
    assert "mixed train: 4 frames in 4 sequences; 4 checked, 0 bad" in checked.out
    plain = [word for word in tiny.pretrain(tmp_path, "ppkt") if "--dataset.root" not in word]
    words = [
        *plain, "--dataset.class_path=Mixed", *two_worlds(tiny, "dataset.datasets."),
        "--dataset.weights={a: 1, b: 3}",
    ]  # fmt: skip
    done = command(*words)
    assert done.code == 0, done.err
    assert checkpoints.load(tmp_path / "student.safetensors").card.data == ("synthetic/train",)
    keys = command("recipes", tmp_path / "recipe.yaml", "--keys").out
    assert "* --dataset.datasets = {a, b}" in keys
    assert "* --dataset.datasets.b.image_scale = 0.5 " in keys
    again = load(str(tmp_path / "recipe.yaml"))
    assert again.resolved == (tmp_path / "recipe.yaml").read_text()
    mixed = again.recipe.dataset
    assert isinstance(mixed, Mixed)
    assert mixed.weights == {"a": 1, "b": 3}
    sizes = [mixed.load(frame).cameras[0].image for frame in mixed.frames("train")[1:3]]
    assert [image.shape[1:] for image in sizes if image is not None] == [(32, 64), (16, 32)]
    refused = command(*words, "--resume", "--dataset.weights=null")
    assert 'started with dataset.weights {"a": 1.0, "b": 3.0}, not null' in refused.err
    assert again.resolved == (tmp_path / "recipe.yaml").read_text()


def test_dry_run_writes_nothing(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    shown = command(*tiny.pretrain(tmp_path / "run", "ppkt"), "--dry-run")
    assert shown.code == 0, shown.err
    assert "GiB peak" in shown.out
    assert "2 steps, about" in shown.out
    assert not (tmp_path / "run").exists()


def test_resume_goes_on_where_the_run_ended(command: Command, tiny: Tiny, pretrained: Path) -> None:
    words = tiny.pretrain(pretrained)
    done = command(*words, "--resume", "--training.steps=3")
    assert done.code == 0, done.err
    assert checkpoints.load(pretrained / "student.safetensors").card.step == 3
    steps = [json.loads(row)["step"] for row in (pretrained / "metrics.jsonl").open()]
    assert steps == sorted(set(steps))


def test_probe_stands_beside_its_baselines(probed: Path) -> None:
    rows = {row.method: row for row in Results.load(probed).efficiency}
    assert list(rows) == ["slidr", RANDOM_INIT, LOOK_UP]
    assert [len(row.seeds) for row in rows.values()] == [2, 2, 1]
    assert len(set(rows[RANDOM_INIT].seeds)) == 2, "seeds must change the random weights"


def test_baseline_is_what_a_probe_without_checkpoint_finds(
    command: Command, tiny: Tiny, probed: Path, tmp_path: Path
) -> None:
    done = command(*tiny.probe(tmp_path), "--seed=1")
    assert done.code == 0, done.err
    alone, *_ = Results.load(tmp_path).efficiency
    beside = next(row for row in Results.load(probed).efficiency if row.method == RANDOM_INIT)
    assert alone.method == RANDOM_INIT
    assert alone.seeds[0] == beside.seeds[1]


def test_probe_without_baseline(
    command: Command, tiny: Tiny, pretrained: Path, tmp_path: Path
) -> None:
    done = command(*tiny.probe(tmp_path), "--checkpoint", pretrained, "--no-baseline")
    assert "random init " not in done.out
    assert [row.method for row in Results.load(tmp_path).efficiency] == ["slidr", LOOK_UP]


def test_evaluate_repeats_the_score(command: Command, probed: Path) -> None:
    again = command("evaluate", probed, "--quiet", "--workers", 0)
    assert again.code == 0, again.err
    # What is saved is the task of the first seed.
    first = Results.load(probed).efficiency[0].seeds[0]
    assert first is not None
    assert f"{100 * first:5.1f}  mIoU (nan)" in again.out


def test_evaluate_another_split_and_protocol(command: Command, probed: Path) -> None:
    other = command("evaluate", probed, "--quiet", "--split", "train", "--protocol", "slidr")
    assert "mIoU (slidr)" in other.out


def test_finetune_then_evaluate(
    command: Command, tiny: Tiny, pretrained: Path, tmp_path: Path
) -> None:
    done = command(*tiny.finetune(tmp_path), "--checkpoint", pretrained)
    assert done.code == 0, done.err
    assert "slidr" in done.out
    evaluated = command("evaluate", tmp_path, "--quiet")
    assert evaluated.code == 0, evaluated.err
    voted = command("evaluate", tmp_path, "--quiet", "--votes", 2)
    assert voted.code == 0, voted.err
    assert "2 votes on every scan" in voted.out
    assert scored_points(voted.out) == scored_points(evaluated.out) > 0


def scored_points(table: str) -> int:
    rows = table.split("\n\n")[0].splitlines()[1:]
    return sum(int(row.split()[-1].replace(",", "")) for row in rows)


def test_evaluate_thinned_scans_only_on_request(
    command: Command, tiny: Tiny, tmp_path: Path
) -> None:
    """Thinning is for training; what it leaves is scored when that is asked for."""
    thinned = ["--task.augmentation.voxel_size=1.0", "--task.augmentation.flip=x"]
    done = command(*tiny.finetune(tmp_path), *thinned)
    assert done.code == 0, done.err
    shown = {
        points: command("evaluate", tmp_path, "--quiet", "--points", points)
        for points in ("all", "decimated", "nearest")
    }
    assert {each.err for each in shown.values()} == {""}
    assert shown["all"].out == command("evaluate", tmp_path, "--quiet").out
    dataset = Synthetic(tiny.world)
    frame = dataset.load(dataset.frames("val")[0], Field.SEMANTIC)
    assert frame.semantic is not None
    labels = frame.semantic.numpy()
    cells = np.floor(frame.points.numpy())
    first = np.unique(cells, axis=0, return_index=True)[1]
    counts = {points: scored_points(each.out) for points, each in shown.items()}
    assert counts["all"] == counts["nearest"] == int((labels > 0).sum())
    assert counts["decimated"] == int((labels[first] > 0).sum()) < counts["all"]
    assert "only the points that are left count" in shown["decimated"].out
    assert "nearest" in shown["nearest"].out


def test_report_again_and_side_by_side(
    command: Command, probed: Path, pretrained: Path, tmp_path: Path
) -> None:
    page = probed / "report.html"
    page.unlink()
    assert command("report", probed).out == f"{page}\n"
    assert page.is_file()
    both = command("report", probed, "--compare", pretrained, "--output", tmp_path / "both.html")
    assert both.code == 0, both.err
    assert "Runs side by side" in (tmp_path / "both.html").read_text()


def test_doctor(command: Command) -> None:
    examined = command("doctor")
    assert examined.code == 0
    assert "sparse convolution" in examined.out


def test_quick_demo_says_that_its_numbers_mean_nothing(command: Command, tmp_path: Path) -> None:
    done = command("demo", "--quick", "--run", tmp_path, "--workers", 1, "--quiet")
    assert done.code == 0, done.err
    assert "numbers mean nothing" in done.out
    assert any("numbers mean nothing" in note for note in RunRecord.load(tmp_path).notes)
    assert set(json.loads((tmp_path / "metrics.json").read_text())) >= {"probe", "look_up"}
