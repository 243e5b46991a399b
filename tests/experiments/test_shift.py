"""Segmentations under other weather: every number against a recomputation of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from image_toys import (
    NAMES,
    Elsewhere,
    Untold,
    Weathers,
    recipe_file,
    scene,
    true_confusion,
    true_miou,
)
from lidarssl import checkpoints
from lidarssl.errors import ConfigError, DataError
from lidarssl.experiments.downstream import recipe_of, run_downstream
from lidarssl.experiments.image_downstream import CONFUSIONS_FILE, judged_recipe
from lidarssl.experiments.record import RECIPE_FILE, TASK_FILE
from lidarssl.experiments.shift import evaluate_shift
from lidarssl.experiments.shift_statistics import JudgedRun, method_gain, with_pooled
from lidarssl.frame import FrameId
from lidarssl.recipes.schema import load
from lidarssl.report.schema import RANDOM_INIT
from lidarssl.report.shift import SHIFT_FILE, ShiftResults

# Of Student's distribution at 97.5 %, from a printed table, by the number of runs.
QUANTILES = {2: 12.7062047, 3: 4.3026527}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Random encoders with seeds 0, 1, 2, and one called ``other`` with the same seeds."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = str(recipe_file(folder))
    runs = []
    for name in ("random", "other"):
        for seed in range(3):
            run = folder / f"{name}_{seed}"
            steps = 25 if name == "other" else 12
            words = [f"--training.seed={seed}", f"--training.steps={steps}"]
            run_downstream(load(recipe, words), "finetune", run, progress=False)
            if name == "other":
                called(run, "other")
            runs.append(run)
    return runs


def called(run: Path, method: str) -> None:
    """Say that the weights come from another method."""
    found = checkpoints.load(run / TASK_FILE)
    checkpoints.save(run / TASK_FILE, found.state, replace(found.card, recipe=method))


@pytest.fixture
def runs(trained: list[Path], tmp_path: Path) -> list[Path]:
    return [Path(shutil.copytree(run, tmp_path / run.name)) for run in trained]


def confusions(run: Path, frames: Sequence[FrameId]) -> np.ndarray:
    """(F, C, C) by the saved weights, frame by frame and pixel by pixel."""
    task = judged_recipe(run, recipe_of(run)).task.eval()
    found = []
    for frame in frames:
        image, labels = scene(frame)
        pixels = torch.from_numpy(image).float() / 255
        found.append(true_confusion(task.predict(pixels[None])[0].numpy(), labels))
    return np.stack(found)


def by_condition(results: ShiftResults, method: str) -> dict[str, object]:
    (one,) = (each for each in results.methods if each.method == method)
    return {score.condition: score for score in one.conditions}


def test_scores_of_a_run_on_its_own_kind_of_dataset(runs: list[Path]) -> None:
    """The source is the clear weather of the shift dataset, told first."""
    text = evaluate_shift(runs[:1], Weathers(count=5), progress=False)
    results = ShiftResults.load(runs[0])
    assert results.conditions == ("clear", "fog", "night", "all")
    assert results.source == "weathers/val, clear"
    found = by_condition(results, RANDOM_INIT)
    frames = Weathers(count=5).conditions("val")
    matrices = {name: confusions(runs[0], frames[name]) for name in ("clear", "fog", "night")}
    matrices["all"] = matrices["fog"] + matrices["night"]
    scores = {name: true_miou(each.sum(0)) for name, each in matrices.items()}
    for name, score in scores.items():
        assert found[name].miou.value == pytest.approx(score)  # type: ignore[attr-defined]
        assert found[name].runs == pytest.approx((score,))  # type: ignore[attr-defined]
        assert f"{100 * score:.1f}" in text
    assert found["clear"].relative is None  # type: ignore[attr-defined]
    for name in ("fog", "night", "all"):
        relative = found[name].relative.value  # type: ignore[attr-defined]
        assert relative == pytest.approx(scores[name] / scores["clear"])
    assert [found[name].frames for name in found] == [5, 5, 5, 10]  # type: ignore[attr-defined]


def test_intervals_of_one_run_are_those_of_a_bootstrap_by_hand(runs: list[Path]) -> None:
    """Scenes are drawn together in all conditions; 3 standard errors of a tail with 4000 draws."""
    evaluate_shift(runs[:1], Weathers(), progress=False)
    found = by_condition(ShiftResults.load(runs[0]), RANDOM_INIT)
    frames = Weathers().conditions("val")
    clear, night = (confusions(runs[0], frames[name]) for name in ("clear", "night"))
    rng = np.random.default_rng(3)
    drawn = [rng.integers(6, size=6) for _ in range(4000)]
    miou = [true_miou(night[rows].sum(0)) for rows in drawn]
    relative = [
        score / true_miou(clear[rows].sum(0)) for score, rows in zip(miou, drawn, strict=True)
    ]
    for values, estimate in ((miou, found["night"].miou), (relative, found["night"].relative)):  # type: ignore[attr-defined]
        low, high = np.quantile(values, [0.025, 0.975])
        spread = np.std(values)
        assert estimate.low == pytest.approx(low, abs=0.25 * spread)
        assert estimate.high == pytest.approx(high, abs=0.25 * spread)
        assert estimate.low < estimate.value < estimate.high
        assert estimate.spread is None


def test_equal_commands_give_equal_tables(runs: list[Path]) -> None:
    first = evaluate_shift(runs[:1], Weathers(), progress=False)
    assert evaluate_shift(runs[:1], Weathers(), progress=False) == first


def test_several_runs_are_the_seeds_of_their_method(runs: list[Path]) -> None:
    evaluate_shift(runs, Weathers(), progress=False)
    tables = [ShiftResults.load(run) for run in runs]
    results = tables[0]
    assert all(replace(one, pictures=()) == replace(results, pictures=()) for one in tables)
    assert [(one.method, one.seeds) for one in results.methods] == [
        ("other", (0, 1, 2)),
        (RANDOM_INIT, (0, 1, 2)),
    ]
    frames = Weathers().conditions("val")
    scores = {
        run.name: {
            name: true_miou(confusions(run, frames[name]).sum(0)) for name in ("clear", "fog")
        }
        for run in runs
    }
    random, other = (
        [scores[f"{name}_{seed}"] for seed in range(3)] for name in ("random", "other")
    )
    mine = by_condition(results, "other")["fog"]
    values = [one["fog"] for one in other]
    check(mine.miou, values)  # type: ignore[attr-defined]
    check(mine.relative, [one["fog"] / one["clear"] for one in other])  # type: ignore[attr-defined]
    (gain,) = results.gains
    assert (gain.method, gain.baseline, gain.pairs) == ("other", RANDOM_INIT, "seeds 0, 1, 2")
    fog = next(one for one in gain.conditions if one.condition == "fog")
    pairs = list(zip(other, random, strict=True))
    check(fog.miou, [one["fog"] - two["fog"] for one, two in pairs])
    check(
        fog.relative,
        [one["fog"] / one["clear"] - two["fog"] / two["clear"] for one, two in pairs],
    )


def check(estimate: object, values: list[float]) -> None:
    """Against the Student interval by a table."""
    half = QUANTILES[len(values)] * np.std(values, ddof=1) / np.sqrt(len(values))
    low, high = np.mean(values) - half, np.mean(values) + half
    expected = (np.mean(values), low, high, np.std(values, ddof=1))
    got = tuple(getattr(estimate, name) for name in ("value", "low", "high", "spread"))
    assert got == pytest.approx(expected)


def test_two_single_runs_are_compared_frame_by_frame(runs: list[Path]) -> None:
    evaluate_shift([runs[0], runs[3]], Weathers(), progress=False)
    (gain,) = ShiftResults.load(runs[0]).gains
    assert gain.pairs == "the frames of other_0 and random_0"
    frames = Weathers().conditions("val")["fog"]
    other, random = confusions(runs[3], frames), confusions(runs[0], frames)
    rng = np.random.default_rng(5)
    drawn = [rng.integers(6, size=6) for _ in range(4000)]
    values = [true_miou(other[rows].sum(0)) - true_miou(random[rows].sum(0)) for rows in drawn]
    fog = next(one.miou for one in gain.conditions if one.condition == "fog")
    low, high = np.quantile(values, [0.025, 0.975])
    assert fog.value == pytest.approx(true_miou(other.sum(0)) - true_miou(random.sum(0)))
    assert (fog.low, fog.high) == pytest.approx((low, high), abs=0.25 * float(np.std(values)))


def test_another_dataset_is_compared_with_the_stored_scores_of_the_run(runs: list[Path]) -> None:
    """Frames of a condition that are not as many as those of the source are drawn by themselves."""
    evaluate_shift(runs[:1], Elsewhere(), progress=False)
    results = ShiftResults.load(runs[0])
    assert results.conditions == ("weathers", "fog", "night", "all")
    assert (results.source, results.target) == ("weathers/val", "elsewhere/val")
    found = by_condition(results, RANDOM_INIT)
    metrics = json.loads((runs[0] / "metrics.json").read_text())
    source = metrics[RANDOM_INIT]["miou"]
    assert found["weathers"].miou.value == pytest.approx(source)  # type: ignore[attr-defined]
    frames = Elsewhere().conditions("val")
    pooled = sum(confusions(runs[0], frames[name]).sum(0) for name in ("fog", "night"))
    assert found["all"].frames == 10  # type: ignore[attr-defined]
    assert found["all"].relative.value == pytest.approx(true_miou(pooled) / source)  # type: ignore[attr-defined]


def test_what_was_stored_is_not_evaluated_again(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    load_frame = Weathers.load

    def watched(self: Weathers, frame: FrameId, *rest: object) -> object:
        seen.append(self.name)
        return load_frame(self, frame, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Weathers, "load", watched)
    evaluate_shift(runs[:1], Elsewhere(), progress=False)
    assert seen.count("weathers") == 1, "for its picture"
    stored = ShiftResults.load(runs[0])
    (runs[0] / CONFUSIONS_FILE).unlink()
    evaluate_shift(runs[:1], Elsewhere(), progress=False)
    assert seen.count("weathers") == 2 + 6
    assert ShiftResults.load(runs[0]) == stored


def test_a_dataset_that_tells_no_conditions_is_one(runs: list[Path]) -> None:
    evaluate_shift(runs[:1], Untold(count=3), progress=False)
    results = ShiftResults.load(runs[0])
    assert results.conditions == ("weathers", "all")
    score = true_miou(confusions(runs[0], Untold(count=3).frames("val")).sum(0))
    assert by_condition(results, RANDOM_INIT)["all"].miou.value == pytest.approx(score)  # type: ignore[attr-defined]
    assert not any(note.startswith("all:") for note in results.notes)


def test_one_frame_gives_no_interval(runs: list[Path]) -> None:
    text = evaluate_shift(runs[:1], Untold(count=1), progress=False)
    found = by_condition(ShiftResults.load(runs[0]), RANDOM_INIT)
    score = found["all"].miou  # type: ignore[attr-defined]
    assert score.value is not None
    assert score.low is None
    assert found["all"].relative.high is None  # type: ignore[attr-defined]
    assert found["weathers"].miou.low is not None  # type: ignore[attr-defined]
    assert "nan" not in text


def test_the_report_shows_tables_charts_and_a_row_per_weather(runs: list[Path]) -> None:
    evaluate_shift([runs[0], runs[3]], Weathers(), progress=False, command="lidarssl evaluate X")
    results = ShiftResults.load(runs[0])
    assert [picture.title for picture in results.pictures] == [
        f"Under shift: {name}" for name in ("clear", "fog", "night")
    ]
    page = (runs[0] / "report.html").read_text()
    for text in ("Under other weather and light", "Relative performance", "other minus random init",
                 "lidarssl evaluate X", "Under shift: night"):  # fmt: skip
        assert text in page
    assert len(list((runs[0] / "figures").glob("shift_*.png"))) == 9


def test_runs_that_differ_in_more_than_the_seed_are_told(runs: list[Path]) -> None:
    recipe = runs[1] / RECIPE_FILE
    recipe.write_text(recipe.read_text().replace("lr: 0.02", "lr: 0.05"))
    text = evaluate_shift(runs[:2], Weathers(), progress=False)
    assert "random_1 and random_0 were trained with different training.optimizer.lr." in text


def test_frozen_encoders_are_told_apart_and_compared_with_their_like(runs: list[Path]) -> None:
    for run in (runs[1], runs[4]):
        recipe = run / RECIPE_FILE
        recipe.write_text(recipe.read_text().replace("freeze: false", "freeze: true"))
    evaluate_shift([runs[0], runs[1], runs[3], runs[4]], Weathers(), progress=False)
    results = ShiftResults.load(runs[0])
    assert {one.method for one in results.methods} == {
        RANDOM_INIT, f"{RANDOM_INIT} (frozen)", "other", "other (frozen)"
    }  # fmt: skip
    assert {(gain.method, gain.baseline) for gain in results.gains} == {
        ("other", RANDOM_INIT),
        ("other (frozen)", f"{RANDOM_INIT} (frozen)"),
    }


def test_runs_with_one_seed_pair_with_no_other(runs: list[Path]) -> None:
    recipe = runs[1] / RECIPE_FILE
    recipe.write_text(recipe.read_text().replace("seed: 1", "seed: 0"))
    text = evaluate_shift([*runs[:2], *runs[3:5]], Weathers(), progress=False)
    assert "Runs of random init share a training.seed" in text
    assert ShiftResults.load(runs[0]).gains == ()


@pytest.mark.parametrize(
    ("shift", "split", "field", "said"),
    [
        (Weathers(labelled=False), "val", "image_labels", "does not provide"),
        (Weathers(), "test", "split", "no split 'test'"),
        (
            Weathers(names=("ignored", "grass", "stone", "ball")),
            "val",
            "--shift",
            "class 2 is 'brick' in 'weathers' and 'stone' in 'weathers'",
        ),
        (Weathers(names=NAMES[:3]), "val", "--shift", "class 3 is 'ball' .* and nothing"),
    ],
)
def test_a_dataset_that_does_not_fit(
    runs: list[Path], shift: Weathers, split: str, field: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        evaluate_shift(runs[:1], shift, split, progress=False)
    assert caught.value.field == field
    assert caught.value.remedy
    assert not (runs[0] / SHIFT_FILE).exists()


def test_runs_that_do_not_fit(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is given twice"):
        evaluate_shift([runs[0], runs[1] / ".." / runs[0].name], Weathers(), progress=False)
    with pytest.raises(DataError, match="no such run folder"):
        evaluate_shift([tmp_path / "none"], Weathers(), progress=False)
    recipe = runs[1] / RECIPE_FILE
    recipe.write_text(recipe.read_text().replace("val_split: val", "val_split: train"))
    with pytest.raises(
        ConfigError, match="weathers/val when it was trained, another on weathers/train"
    ):
        evaluate_shift(runs[:2], Weathers(), progress=False)
    (runs[2] / TASK_FILE).unlink()
    with pytest.raises(DataError, match="has not finished"):
        evaluate_shift([runs[2]], Weathers(), progress=False)
    recipe.write_text("kind: segmentation\n")
    with pytest.raises(ConfigError, match="kind 'segmentation', which segments no images"):
        evaluate_shift([runs[1]], Weathers(), progress=False)


def test_pooling_keeps_the_frames_of_a_scene_together() -> None:
    one, two, three = (torch.full((2, 3, 3), value) for value in (1, 10, 100))
    assert with_pooled({"clear": one, "fog": two}, paired=True).keys() == {"clear", "fog"}
    given = {"clear": one, "fog": two, "snow": three}
    assert torch.equal(with_pooled(given, paired=True)["all"], two + three)
    assert torch.equal(with_pooled(given, paired=False)["all"], torch.cat([two, three]))


@pytest.mark.parametrize(
    ("mine", "others", "pairs"),
    [
        ((0, 1, 2), (2, 1, 0), "seeds 0, 1, 2"),
        ((0, 1, 5), (1, 0, 7), "seeds 0, 1"),
        ((0, 1), (1, 2), None),
        ((0, 1), (0,), None),
        ((0, 0), (0, 1), None),
        ((4,), (9,), "the frames of a and b"),
    ],
)
def test_pairs(mine: tuple[int, ...], others: tuple[int, ...], pairs: str | None) -> None:
    matrices = {"clear": torch.eye(3, dtype=torch.int64)[None]}
    first, second = (
        [JudgedRun(name, name, seed, matrices) for seed in seeds]
        for name, seeds in (("a", mine), ("b", others))
    )
    gain = method_gain(first, second, {"clear": torch.ones(1, 1, dtype=torch.float64)})
    assert (None if gain is None else gain.pairs) == pairs


def test_names_tell_pretrainings_apart(runs: list[Path]) -> None:
    """Runs under one name are seeds; the table says so, unless names were given."""
    text = evaluate_shift(runs[3:5], Weathers(), progress=False)
    assert "The 2 runs named other count as seeds" in text
    names = ["one", "two"]
    text = evaluate_shift(runs[3:5], Weathers(), progress=False, names=names)
    results = ShiftResults.load(runs[3])
    assert [method.method for method in results.methods] == names
    assert [method.runs for method in results.methods] == [("other_0",), ("other_1",)]
    assert "count as seeds" not in text


def test_a_name_for_each_run(runs: list[Path]) -> None:
    with pytest.raises(ConfigError, match="1 name for 2 runs") as caught:
        evaluate_shift(runs[3:5], Weathers(), progress=False, names=["one"])
    assert caught.value.field == "--names"
