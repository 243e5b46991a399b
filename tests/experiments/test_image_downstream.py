"""Image segmentation from a recipe to a run folder, on labelled images in memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from image_toys import NAMES, Weathers, recipe_file, scene, true_confusion, true_miou
from lidarssl import checkpoints
from lidarssl.errors import ConfigError, DataError
from lidarssl.experiments.downstream import evaluate_run, recipe_of, run_downstream
from lidarssl.experiments.image_downstream import (
    CONFUSIONS_FILE,
    judged_recipe,
    load_confusions,
    position_confusion,
)
from lidarssl.experiments.labelled import IMAGE_FIELDS, labelled_frames
from lidarssl.experiments.record import TASK_FILE
from lidarssl.recipes.schema import LoadedRecipe, load
from lidarssl.report.schema import PIXEL_POSITION, RANDOM_INIT, Protocol, Results


def loaded(folder: Path, *words: str, **changes: object) -> LoadedRecipe:
    folder.mkdir(parents=True, exist_ok=True)
    return load(str(recipe_file(folder, **changes)), words)


def finetune(run: Path, *words: str, **options: object) -> Path:
    recipe = loaded(run.parent, *words)
    run_downstream(recipe, "finetune", run, progress=False, **options)  # type: ignore[arg-type]
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune(tmp_path_factory.mktemp("runs") / "toy")


def predictions(run: Path, split: str = "val") -> list[tuple[np.ndarray, np.ndarray]]:
    """(prediction, truth) of every frame, by the saved weights."""
    recipe = judged_recipe(run, recipe_of(run))
    found = []
    for frame in recipe.dataset.frames(split):
        image, labels = scene(frame)
        pixels = torch.from_numpy(image).float() / 255
        found.append((recipe.task.eval().predict(pixels[None])[0].numpy(), labels))
    return found


def test_scores_are_those_of_the_saved_task(run: Path) -> None:
    matrices = [true_confusion(*pair) for pair in predictions(run)]
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics) == [RANDOM_INIT, PIXEL_POSITION]
    assert metrics[RANDOM_INIT]["confusion"] == sum(matrices).tolist()
    assert metrics[RANDOM_INIT]["miou"] == pytest.approx(true_miou(sum(matrices)))
    assert metrics[RANDOM_INIT]["frames"] == 6
    stored = load_confusions(run, len(NAMES))
    assert stored is not None
    assert np.array_equal(stored.numpy(), np.stack(matrices))


def test_it_learns_what_the_place_does_not_tell(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics[RANDOM_INIT]["miou"] > 0.8
    assert metrics[RANDOM_INIT]["miou"] > metrics[PIXEL_POSITION]["miou"] + 0.1
    assert metrics[PIXEL_POSITION]["per_class"]["ball"]["iou"] == 0


def test_report_has_both_rows_and_a_picture_in_four_parts(run: Path) -> None:
    results = Results.load(run)
    protocols = {row.method: row.protocol for row in results.efficiency}
    assert protocols == {RANDOM_INIT: Protocol.FINETUNE, PIXEL_POSITION: Protocol.LOOKUP}
    assert results.evaluated_on == "6 frames of weathers/val, 3 classes"
    (picture,) = results.pictures
    drawn = sorted((run / picture.file).parent.glob("*.png"))
    assert len(drawn) == 4
    page = (run / "report.html").read_text()
    assert "most often at its place" in page
    assert "height, range and intensity" not in page


def test_the_card_is_that_of_the_encoder(run: Path) -> None:
    card = checkpoints.load(run / TASK_FILE).card
    assert card.architecture.class_path == "image_toys.Patches"
    assert card.architecture.init_args == {"width": 16, "weights": None}
    assert card.recipe == RANDOM_INIT


def test_evaluation_repeats_the_score_and_counts_pixels(run: Path) -> None:
    shown = evaluate_run(run, progress=False)
    matrix = sum(true_confusion(*pair) for pair in predictions(run))
    assert f"{100 * true_miou(matrix):5.1f}  mIoU (nan)" in shown
    assert "pixels" in shown.splitlines()[0]
    assert f"{int(matrix[3].sum()):,}" in shown
    train = sum(true_confusion(*pair) for pair in predictions(run, "train"))
    assert f"{100 * true_miou(train):5.1f}  mIoU" in evaluate_run(run, "train", progress=False)


@pytest.mark.parametrize("option", [{"points": "nearest"}, {"votes": 3}])
def test_options_of_scans_are_refused(run: Path, option: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="segments images") as caught:
        evaluate_run(run, progress=False, **option)  # type: ignore[arg-type]
    assert caught.value.field in ("--points", "--votes")


def test_position_baseline_against_counting_by_hand() -> None:
    dataset = Weathers(count=5)
    frames = labelled_frames(dataset, "train", "val", 1, 0, 2, IMAGE_FIELDS)
    counts = np.zeros((16, 32, len(NAMES)), dtype=int)
    for frame in dataset.frames("train"):
        for (row, col), label in np.ndenumerate(scene(frame)[1]):
            counts[row, col, label] += 1
    counts[..., 0] = 0
    table = counts.argmax(2)
    table[counts.sum(2) == 0] = counts.sum((0, 1)).argmax()
    expected = sum(true_confusion(table, scene(frame)[1]) for frame in dataset.frames("val"))
    assert np.array_equal(position_confusion(frames).numpy(), expected)


def test_resumed_equals_never_stopped(tmp_path: Path) -> None:
    whole = finetune(tmp_path / "whole", "--training.steps=6")
    parts = finetune(tmp_path / "parts", "--training.steps=3")
    finetune(tmp_path / "parts", "--training.steps=6", resume=True)
    one, other = (checkpoints.load(run / TASK_FILE).state for run in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_frozen_encoder_keeps_the_weights_of_its_checkpoint(run: Path, tmp_path: Path) -> None:
    probed = tmp_path / "probed"
    recipe = loaded(tmp_path, "--training.steps=5", freeze=True)
    run_downstream(recipe, "probe", probed, run / TASK_FILE, progress=False)
    before, after = (checkpoints.load(each / TASK_FILE).state for each in (run, probed))
    encoder = [name for name in before if name.startswith("encoder.")]
    assert len(encoder) == 4
    assert all(torch.equal(before[name], after[name]) for name in encoder)
    assert not torch.equal(*(state["head.linear.weight"] for state in (before, after)))
    rows = {row.method: row.protocol for row in Results.load(probed).efficiency}
    assert rows == {RANDOM_INIT: Protocol.PROBE, PIXEL_POSITION: Protocol.LOOKUP}


def test_weights_of_the_recipe_name_the_method_and_may_be_gone_later(tmp_path: Path) -> None:
    encoder = {"class_path": "image_toys.Patches", "init_args": {"weights": "gone/imagenet.pth"}}
    recipe = loaded(tmp_path, "--training.steps=2", encoder=encoder)
    run_downstream(recipe, "finetune", tmp_path / "run", progress=False)
    assert Results.load(tmp_path / "run").efficiency[0].method == "imagenet"
    again = judged_recipe(tmp_path / "run", recipe_of(tmp_path / "run"))
    assert "weights: null" not in recipe.resolved
    assert again.task.encoder.out_channels == 16


def test_folders_are_protected(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a finished run"):
        run_downstream(loaded(tmp_path), "finetune", run, progress=False)
    other = loaded(tmp_path, "--task.average=all")
    with pytest.raises(ConfigError, match=r"started with task\.average"):
        run_downstream(other, "finetune", run, resume=True, progress=False)


@pytest.mark.parametrize(
    ("words", "changes", "field"),
    [
        (["--dataset.labelled=false"], {}, "image_labels"),
        (["--task.num_classes=5"], {}, "task.num_classes"),
        ([], {"freeze": True}, "task.freeze"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, words: list[str], changes: dict[str, object], field: str
) -> None:
    recipe = loaded(tmp_path, *words, **changes)
    with pytest.raises(ConfigError) as caught:
        run_downstream(recipe, "finetune", tmp_path / "run", progress=False)
    assert caught.value.field == field
    assert caught.value.remedy


def test_damaged_confusions_are_named(run: Path, tmp_path: Path) -> None:
    assert load_confusions(tmp_path, 4) is None
    with pytest.raises(DataError, match="of 5 classes") as caught:
        load_confusions(run, 5)
    assert caught.value.path == run / CONFUSIONS_FILE
    (tmp_path / CONFUSIONS_FILE).write_bytes((run / CONFUSIONS_FILE).read_bytes()[:40])
    with pytest.raises(DataError):
        load_confusions(tmp_path, 4)
