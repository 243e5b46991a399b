"""`lidarssl evaluate --shift`: segmentations under weather and light they were not trained in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from lidarssl import checkpoints
from lidarssl.datasets.base import Dataset
from lidarssl.errors import ConfigError
from lidarssl.experiments.downstream import recipe_of
from lidarssl.experiments.image_downstream import (
    evaluate_frames,
    initial_method,
    judged_recipe,
    load_confusions,
)
from lidarssl.experiments.image_pictures import add_condition
from lidarssl.experiments.labelled import IMAGE_FIELDS
from lidarssl.experiments.pictures import PictureBook
from lidarssl.experiments.record import RECIPE_FILE, TASK_FILE, differences
from lidarssl.experiments.shift_statistics import (
    RESAMPLES,
    JudgedRun,
    draw_frames,
    method_gain,
    method_scores,
    with_pooled,
)
from lidarssl.experiments.shift_text import shift_text
from lidarssl.frame import FrameId
from lidarssl.recipes import files
from lidarssl.recipes.kinds import ImageSegmentationRecipe
from lidarssl.report.build import build_report
from lidarssl.report.schema import MIOU_NAN
from lidarssl.report.scores import order_methods
from lidarssl.report.shift import POOLED, ShiftResults
from lidarssl.training.devices import choose_device
from lidarssl.training.requirements import check_needs
from lidarssl.wording import counted

CLEAR = "clear"
"""The condition that a method was trained in, of a dataset that also has others."""


@dataclass(frozen=True)
class ShiftedRun:
    """A finished run that is about to be judged.

    Attributes:
        path: of its folder.
        recipe: with the trained task.
        method: how its encoder was pretrained.
        pretrained: whether it was; else it has its first weights.
    """

    path: Path
    recipe: ImageSegmentationRecipe
    method: str
    pretrained: bool


@dataclass(frozen=True)
class Conditions:
    """What every run is judged on.

    Attributes:
        source: name of the condition that the others are compared with.
        own: it is the split that the runs were evaluated on; else it is a condition of ``frames``.
        frames: of the shift dataset, by condition.
        paired: frame i of every condition is of one scene.
    """

    source: str
    own: bool
    frames: Mapping[str, Sequence[FrameId]]
    paired: bool


def evaluate_shift(
    runs: Sequence[Path],
    shift: Dataset,
    split: str = "val",
    overrides: Sequence[str] = (),
    progress: bool = True,
    command: str = "",
    names: Sequence[str] | None = None,
) -> str:
    """Score finished image segmentations on each condition of a dataset, beside their own.

    ``shift.json`` and the report of every run then hold the table of all of them.

    Args:
        runs: folders; those of one pretraining method are its seeds.
        shift: a dataset with the classes of the runs.
        split: of it.
        overrides: command line words for the recipes of the runs.
        progress: show bars.
        command: what repeats the table.
        names: of the pretraining of each run, instead of those that the runs tell.

    Returns:
        The table as text, and where the reports are.

    Raises:
        ConfigError: a run segments no images, or the runs or the classes do not fit together.
        DataError: a folder holds no finished run, or a frame is bad.
    """
    opened = [_opened(run, overrides) for run in _once(runs)]
    loaded = _told_apart(opened) if names is None else _named(opened, names)
    check_needs(IMAGE_FIELDS, shift, split, "evaluation under shift", points=False)
    for run in loaded:
        _check_same(run.recipe, loaded[0].recipe, shift)
    conditions = conditions_of(loaded[0].recipe, shift, split)
    bar = tqdm(loaded, "runs", disable=not progress, leave=False)
    judged = [_judged(run, shift, conditions, not overrides, progress) for run in bar]
    results = _results(loaded, judged, shift, split, conditions, command)
    pages = [_write(run, results, shift, conditions) for run in loaded]
    return "\n\n".join([shift_text(results), "\n".join(f"report: {page}" for page in pages)])


def conditions_of(recipe: ImageSegmentationRecipe, shift: Dataset, split: str) -> Conditions:
    """What to judge on; a dataset that tells no conditions is one.

    Where the shift dataset is of the kind that the runs were trained on, its clear weather is the
    source; else that is the split that the runs were evaluated on.
    """
    found = shift.conditions(split) or {POOLED: shift.frames(split)}
    if type(shift) is not type(recipe.dataset) or CLEAR not in found or len(found) == 1:
        return Conditions(recipe.dataset.name, True, found, paired=False)
    first = {CLEAR: found[CLEAR], **found}
    return Conditions(CLEAR, False, first, len({len(frames) for frames in found.values()}) == 1)


def _once(runs: Sequence[Path]) -> list[Path]:
    known = set[Path]()
    for run in runs:
        if run.resolve() in known:
            raise ConfigError("is given twice", path=run, field="RUN", remedy="give it once")
        known.add(run.resolve())
    return list(runs)


def _opened(run: Path, overrides: Sequence[str]) -> ShiftedRun:
    path = recipe_of(run)
    kind = files.read(path)["kind"]
    if kind != "image_segmentation":
        raise ConfigError(
            f"is a run of kind '{kind}', which segments no images",
            path=run,
            field="--shift",
            remedy="give runs of image segmentation recipes (`lidarssl recipes` lists them)",
        )
    recipe = judged_recipe(run, path, overrides)
    method = checkpoints.load(run / TASK_FILE).card.recipe or run.name
    initial = initial_method(recipe.task, path.read_text())
    return ShiftedRun(run, recipe, method, method != initial)


def _told_apart(runs: Sequence[ShiftedRun]) -> list[ShiftedRun]:
    """Where some encoders were frozen and others not, their methods say which."""
    if len({run.recipe.task.freeze for run in runs}) == 1:
        return list(runs)
    return [
        replace(run, method=f"{run.method} (frozen)") if run.recipe.task.freeze else run
        for run in runs
    ]


def _named(runs: Sequence[ShiftedRun], names: Sequence[str]) -> list[ShiftedRun]:
    if len(names) != len(runs):
        raise ConfigError(
            f"{counted(len(names), 'name')} for {counted(len(runs), 'run')}",
            field="--names",
            remedy="give one for each, in their order; runs of one name are seeds",
        )
    return [replace(run, method=name) for run, name in zip(runs, names, strict=True)]


def _check_same(
    recipe: ImageSegmentationRecipe, first: ImageSegmentationRecipe, shift: Dataset
) -> None:
    """Refuse runs that were not trained on one dataset, and a shift with other classes."""
    sources = [f"{one.dataset.name}/{one.val_split}" for one in (first, recipe)]
    if sources[0] != sources[1]:
        raise ConfigError(
            f"one run was evaluated on {sources[0]} when it was trained, another on {sources[1]}",
            field="RUN",
            remedy="compare runs of one dataset",
        )
    own, others = recipe.dataset.classes.names, shift.classes.names
    for number in range(max(len(own), len(others))):
        mine, theirs = (
            f"'{names[number]}'" if number < len(names) else "nothing" for names in (own, others)
        )
        if mine != theirs:
            raise ConfigError(
                f"class {number} is {mine} in '{recipe.dataset.name}' and {theirs} in "
                f"'{shift.name}'",
                field="--shift",
                remedy="choose a dataset with the same classes in the same order",
            )


def _judged(
    run: ShiftedRun, shift: Dataset, conditions: Conditions, stored: bool, progress: bool
) -> JudgedRun:
    """A run under every condition; what it was evaluated on is not evaluated again."""
    recipe, matrices = run.recipe, dict[str, Tensor]()
    if conditions.own:
        found = load_confusions(run.path, len(recipe.dataset.classes)) if stored else None
        if found is None:
            own = recipe.dataset.frames(recipe.val_split)
            found = evaluate_frames(recipe, recipe.dataset, own, progress)
        matrices[conditions.source] = found
    for name, frames in conditions.frames.items():
        matrices[name] = evaluate_frames(recipe, shift, frames, progress)
    together = with_pooled(matrices, conditions.paired)
    return JudgedRun(run.path.name, run.method, recipe.training.seed, together)


def _results(
    loaded: Sequence[ShiftedRun],
    judged: Sequence[JudgedRun],
    shift: Dataset,
    split: str,
    conditions: Conditions,
    command: str,
) -> ShiftResults:
    """The statistics of all methods."""
    draws = draw_frames(judged[0].matrices, conditions.paired)
    order = order_methods(run.method for run in judged)
    groups = {name: [run for run in judged if run.method == name] for name in order}
    frozen = {run.method: run.recipe.task.freeze for run in loaded}
    initial = {frozen[run.method]: run.method for run in loaded if not run.pretrained}
    gains = [
        method_gain(runs, groups[initial[frozen[name]]], draws)
        for name, runs in groups.items()
        if frozen[name] in initial and name != initial[frozen[name]]
    ]
    recipe = loaded[0].recipe
    own = f"{recipe.dataset.name}/{recipe.val_split}"
    return ShiftResults(
        source=own if conditions.own else f"{shift.name}/{split}, {conditions.source}",
        target=f"{shift.name}/{split}",
        metric=MIOU_NAN,
        command=command,
        classes=shift.classes.names[1:],
        notes=(*_how_intervals(groups, conditions), *_cautions(loaded, groups)),
        methods=tuple(method_scores(runs, draws) for runs in groups.values()),
        gains=tuple(gain for gain in gains if gain is not None),
    )


def _how_intervals(
    groups: Mapping[str, Sequence[JudgedRun]], conditions: Conditions
) -> Iterator[str]:
    yield "Relative: mIoU divided by that of the source."
    if POOLED in next(iter(groups.values()))[0].matrices and len(conditions.frames) > 1:
        yield f"{POOLED}: one confusion matrix over all conditions but the source."
    counts = {len(runs) for runs in groups.values()}
    if 1 in counts:
        scenes = ", those of one scene together" if conditions.paired else ""
        yield (
            f"Of one run: 95 % percentile interval of {RESAMPLES} bootstrap resamples of the frames"
            f"{scenes}; how much another seed would change is not in it."
        )
    if counts - {1}:
        yield (
            "Of several runs: mean ± sample standard deviation, and the 95 % Student interval of "
            "the mean."
        )


def _cautions(
    loaded: Sequence[ShiftedRun], groups: Mapping[str, Sequence[JudgedRun]]
) -> Iterator[str]:
    for name, runs in groups.items():
        seeds = [run.seed for run in runs]
        if len(set(seeds)) < len(seeds):
            yield f"Runs of {name} share a training.seed: they pair with no other's."
        if len(runs) > 1 and any(run.pretrained and run.method == name for run in loaded):
            yield (
                f"The {len(runs)} runs named {name} count as seeds of one pretraining; runs do not "
                "tell how those differ: if they do, give --names."
            )
    first = files.read(loaded[0].path / RECIPE_FILE)
    for run in loaded[1:]:
        found = differences(first, files.read(run.path / RECIPE_FILE))
        keys = [key for key, _, _ in found if key != "training.seed"]
        if keys:
            names = f"{run.path.name} and {loaded[0].path.name}"
            yield f"{names} were trained with different {', '.join(keys)}."


def _write(
    run: ShiftedRun,
    results: ShiftResults,
    shift: Dataset,
    conditions: Conditions,
) -> Path:
    """``shift.json``, a picture of each condition, and the report, with its path."""
    recipe = run.recipe
    device = choose_device(recipe.training.accelerator)
    if conditions.own:
        book = PictureBook(run.path, recipe.dataset)
        frame = recipe.dataset.frames(recipe.val_split)[0]
        add_condition(book, recipe.task, frame, conditions.source, device)
        pictures = list(book.records)
    else:
        pictures = []
    book = PictureBook(run.path, shift)
    for name, frames in conditions.frames.items():
        add_condition(book, recipe.task, frames[0], name, device)
    replace(results, pictures=(*pictures, *book.records)).save(run.path)
    return build_report(run.path)
