"""What each verb does; it imports what it needs when it runs."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lidarssl.errors import ConfigError, DataError
from lidarssl.wording import counted

if TYPE_CHECKING:
    from lidarssl.datasets.base import Dataset


def demo(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.demo import QUICK_NOTE, DemoSettings, run_demo
    from lidarssl.experiments.scoring import outcome

    settings = DemoSettings(seed=arguments.seed, steps=arguments.steps, workers=arguments.workers)
    if arguments.quick:
        settings = DemoSettings.quick(arguments.seed, arguments.workers)
    page = run_demo(arguments.run, settings, progress=not arguments.quiet)
    print(f"{QUICK_NOTE if arguments.quick else outcome(arguments.run)}\nreport: {page}")


def recipes(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.recipes import catalogue

    if arguments.name is None:
        print(catalogue.table())
    elif arguments.keys:
        print(catalogue.keys(arguments.name))
    else:
        print(catalogue.text(arguments.name))


def data_check(arguments: argparse.Namespace, rest: list[str]) -> int:
    from lidarssl.datasets.inspect import check
    from lidarssl.recipes.schema import build_dataset

    dataset = build_dataset(arguments.dataset, rest)
    report = check(
        dataset, _split(dataset, arguments), arguments.limit, arguments.workers,
        not arguments.quiet,
    )  # fmt: skip
    print(report.to_json() if arguments.json else report)
    return 0 if report.ok else 1


def _split(dataset: Dataset, arguments: argparse.Namespace) -> str:
    """The split asked for; of a dataset with a single split, that one."""
    asked: str = arguments.split
    only = len(dataset.splits) == 1 and asked == "train"
    return dataset.splits[0] if only else asked


def data_stats(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.datasets.inspect import stats
    from lidarssl.recipes.schema import build_dataset

    dataset = build_dataset(arguments.dataset, rest)
    report = stats(
        dataset, _split(dataset, arguments), arguments.limit, progress=not arguments.quiet
    )
    print(report.to_json() if arguments.json else report)


def data_synthesize(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.datasets.world.config import WorldConfig
    from lidarssl.datasets.world.kitti_writer import SEQUENCES, write_semantic_kitti
    from lidarssl.datasets.world.nuscenes_writer import write_nuscenes
    from lidarssl.recipes.schema import build_world

    progress = not arguments.quiet
    if arguments.layout == "nuscenes":
        world = build_world(rest)
        if arguments.weathers:
            world = world.repeated("val", arguments.weathers)
        splits = world.splits
        write_nuscenes(world, arguments.output, workers=arguments.workers, progress=progress)
    else:
        if arguments.weathers:
            raise ConfigError(
                "SemanticKITTI has no sequences for scenes that are repeated",
                field="--weathers",
                remedy="leave --layout out, or write to another folder a world of "
                "--splits '[{name: val, scenes: 1, frames: 4, weather: fog}]'",
            )
        world = build_world(rest, WorldConfig.kitti())
        splits = tuple(split for split in world.splits if split.name in SEQUENCES)
        write_semantic_kitti(world, arguments.output, arguments.workers, progress)
    frames = sum(split.scenes * split.frames for split in splits)
    print(f"{arguments.output}: {counted(frames, 'frame')}")


def pretrain(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.experiments.pretrain import dry_run, pretrain_recipe
    from lidarssl.recipes.schema import load

    recipe = load(arguments.recipe, rest, kinds=("pretrain",))
    _say_when_crowded(recipe.recipe.training.workers, recipe.recipe.training.accelerator)
    if arguments.dry_run:
        print(dry_run(recipe))
        return
    run = arguments.run or Path("runs") / Path(arguments.recipe).stem
    done = pretrain_recipe(
        recipe, run, arguments.resume, not arguments.quiet, arguments.command, arguments.overwrite
    )
    print(*done.said, f"student: {run / 'student.safetensors'}", f"report: {done.report}", sep="\n")


def probe(arguments: argparse.Namespace, rest: list[str]) -> None:
    _downstream(arguments, rest, "probe", arguments.baseline, arguments.seeds)


def finetune(arguments: argparse.Namespace, rest: list[str]) -> None:
    _downstream(arguments, rest, "finetune", baseline=False, seeds=1)


def _downstream(
    arguments: argparse.Namespace, rest: list[str], verb: str, baseline: bool, seeds: int
) -> None:
    from lidarssl.experiments.downstream import run_downstream
    from lidarssl.experiments.scoring import outcome
    from lidarssl.recipes import files
    from lidarssl.recipes.schema import load

    kinds = files.TRAINED if verb == "finetune" else (*files.TRAINED, "probe")
    run = arguments.run or Path("runs") / Path(arguments.recipe).stem
    loaded = load(arguments.recipe, rest, kinds)
    if loaded.kind in files.TRAINED:
        training = loaded.recipe.training
        _say_when_crowded(training.workers, training.accelerator)
    page = run_downstream(
        loaded, verb, run, arguments.checkpoint, arguments.resume,
        not arguments.quiet, arguments.command, baseline, seeds, arguments.overwrite,
    )  # fmt: skip
    print(f"{outcome(run)}\nreport: {page}")


def _say_when_crowded(workers: int, accelerator: str) -> None:
    import torch

    from lidarssl.experiments.doctor import crowding
    from lidarssl.training.devices import choose_device

    said = crowding(workers, torch.get_num_threads(), os.cpu_count() or 1)
    if said and choose_device(accelerator).type == "cpu":
        print(said, file=sys.stderr)


def evaluate(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.experiments.downstream import evaluate_run

    if arguments.shift is not None:
        _evaluate_shift(arguments, rest)
        return
    if arguments.names:
        raise ConfigError(
            "names runs that are compared", field="--names", remedy="add --shift, or leave it out"
        )
    if len(arguments.run) > 1:
        raise ConfigError(
            f"{len(arguments.run)} runs are evaluated together",
            field="--shift",
            remedy="name a dataset to compare them on with --shift, or give one run",
        )
    print(
        evaluate_run(
            arguments.run[0], arguments.split, arguments.protocol, rest,
            not arguments.quiet, arguments.points, arguments.votes, arguments.votes_drop_path,
        )
    )  # fmt: skip


def _evaluate_shift(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.experiments.shift import evaluate_shift
    from lidarssl.recipes.schema import build_dataset

    for option, asked in (
        ("--protocol", arguments.protocol != "nan"),
        ("--points", arguments.points != "all"),
        ("--votes", arguments.votes > 1 or arguments.votes_drop_path),
    ):
        if asked:
            raise ConfigError(
                "does not go with --shift", field=option, remedy="leave one of them out"
            )
    of_recipe = [word for word in rest if word.startswith(_KEYS_OF_RECIPES)]
    dataset = build_dataset(arguments.shift, [word for word in rest if word not in of_recipe])
    print(
        evaluate_shift(
            arguments.run, dataset, arguments.split or "val", of_recipe,
            not arguments.quiet, arguments.command, arguments.names,
        )
    )  # fmt: skip


# What with --shift goes to the recipes of the runs; every other option goes to the dataset.
_KEYS_OF_RECIPES = ("--dataset.", "--task.", "--training.", "--eval_batch_size")


def view(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.experiments.viewing import view_run

    view_run(arguments.run, arguments.frames)


def report(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.report.schema import METRICS_FILE, RESULTS_FILE, RUN_FILE

    for run in (arguments.run, *(arguments.compare or ())):
        if run.is_dir() and not any(
            (run / name).is_file() for name in (RUN_FILE, RESULTS_FILE, METRICS_FILE)
        ):
            raise DataError(
                "holds no run",
                path=run,
                field=RUN_FILE,
                remedy="give a folder that `lidarssl pretrain`, `probe` or `finetune` has written",
            )
    if arguments.compare:
        from lidarssl.report.compare import build_comparison

        print(build_comparison([arguments.run, *arguments.compare], arguments.output))
        return
    from lidarssl.report.build import build_report

    print(build_report(arguments.run))


def convert(arguments: argparse.Namespace, rest: list[str]) -> None:
    if (arguments.to is None) != (arguments.output is None):
        raise ConfigError(
            "--to and --output belong together",
            field="--output" if arguments.output is None else "--to",
            remedy="give both to write a file, or none to see what is in SOURCE",
        )
    _refuse_idle(arguments.to, rest)
    from lidarssl.checkpoints.convert import Format
    from lidarssl.checkpoints.spconv_layouts import SpconvLayout
    from lidarssl.experiments import converting, converting_images
    from lidarssl.experiments.conversion import Wanted

    target = None if arguments.to is None else Format(arguments.to)
    asked = SpconvLayout(arguments.spconv_layout) if arguments.spconv_layout else None
    image = None
    if asked is None:
        image = converting_images.read(arguments.source, arguments.prefix, arguments.heads, target)
    if image is None and arguments.heads is not None:
        rest = [*rest, f"--heads={arguments.heads}"]  # an argument of lidar networks, too
        _refuse_idle(arguments.to, rest)
    network = image or converting.read(arguments.source, arguments.prefix, asked)
    say = converting_images if image is not None else converting
    print(say.description(network))
    if target is None:
        return
    wanted = Wanted(
        target, arguments.output, arguments.like, rest, SpconvLayout(arguments.output_layout),
        arguments.overwrite, arguments.licence, arguments.data,
    )  # fmt: skip
    print(say.convert(network, wanted))


def _refuse_idle(target: str | None, rest: list[str]) -> None:
    """Refuse arguments of a network that is not written."""
    if target is None and rest:
        raise ConfigError(
            f"{rest[0].partition('=')[0]} describes a file to write",
            field="--to",
            remedy="add --to and --output, or leave it out to see what is in SOURCE",
        )


def push(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.experiments.sharing import push as run

    print(run(arguments.source, arguments.repository, arguments.licence, arguments.private))


def pull(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.experiments.sharing import pull as run

    print(run(arguments.repository, arguments.output, arguments.revision, arguments.overwrite))


def doctor(arguments: argparse.Namespace, rest: list[str]) -> int:
    from lidarssl.experiments.doctor import examine

    findings = examine()
    print(findings)
    return 0 if findings.healthy else 1


def describe_world(output: str | None) -> str:
    """The options of a synthetic world, for ``--help``."""
    from lidarssl.recipes.schema import describe_world

    return describe_world()


def describe_shift(name: str | None) -> str:
    """The options of the dataset of ``--shift``, for ``--help``."""
    from lidarssl.cli.groups import describe_dataset

    return describe_dataset(name) if name else "The options of --shift NAME: give it before --help."
