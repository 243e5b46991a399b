"""The command line: one verb = one short function; heavy imports stay inside the verbs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lidarssl import __version__
from lidarssl.errors import ConfigError, DataError

EPILOG = """\
start here:
  lidarssl demo                                  the whole story on a synthetic world, in minutes
  lidarssl recipes                               every experiment that ships with the package
  lidarssl data check semantic_kitti --root DIR  is your copy of a dataset whole?
  lidarssl pretrain RECIPE --dataset.root DIR    pretrain a backbone
  lidarssl probe RECIPE --checkpoint FILE        what are its features worth?
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; bad input is one message on stderr and exit code 2, never a traceback."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(words)
    if rest and not getattr(arguments, "overrides", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        run: Callable[[argparse.Namespace, list[str]], int | None] = arguments.run_verb
        return run(arguments, rest) or 0
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped; a run in progress continues with --resume", file=sys.stderr)
        return 130
    return 2


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lidarssl",
        description="Pretrain lidar backbones on unlabelled driving data, "
        "and prove what the pretraining is worth.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lidarssl {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_demo(verbs)
    _add_recipes(verbs)
    _add_data(verbs)
    _add_prepare(verbs)
    _add_pretrain(verbs)
    _add_downstream(verbs, "probe", "judge frozen features with a linear classifier", probe)
    _add_downstream(verbs, "finetune", "train all weights on a fraction of the labels", finetune)
    _add_evaluate(verbs)
    _add_report(verbs)
    _verb(verbs, "doctor", "what is installed, what is missing, what to type", doctor)
    return parser


def demo(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.demo import DemoSettings, run_demo

    settings = DemoSettings(seed=arguments.seed, steps=arguments.steps, workers=arguments.workers)
    page = run_demo(arguments.run, settings, progress=not arguments.quiet)
    print(f"report: {page}")


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
    report = check(dataset, arguments.split, arguments.limit, arguments.workers)
    print(report.to_json() if arguments.json else report)
    return 0 if report.ok else 1


def data_stats(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.datasets.inspect import stats
    from lidarssl.recipes.schema import build_dataset

    report = stats(build_dataset(arguments.dataset, rest), arguments.split, arguments.limit)
    print(report.to_json() if arguments.json else report)


def data_synthesize(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.datasets.world.kitti_writer import write_semantic_kitti
    from lidarssl.datasets.world.nuscenes_writer import write_nuscenes
    from lidarssl.recipes.schema import build_world

    world = build_world(rest)
    if arguments.layout == "nuscenes":
        write_nuscenes(world, arguments.output, workers=arguments.workers)
    else:
        write_semantic_kitti(world, arguments.output, workers=arguments.workers)
    print(f"{arguments.output}: {sum(s.scenes * s.frames for s in world.splits)} frames")


def prepare_superpixels(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.prepare.superpixels import prepare_superpixels as run
    from lidarssl.recipes.schema import build_dataset

    print(
        run(
            build_dataset(arguments.dataset, rest),
            arguments.split,
            arguments.output,
            segments=arguments.segments,
            compactness=arguments.compactness,
            sigma=arguments.sigma,
            scale=arguments.scale,
            workers=arguments.workers,
            shard=_shard(arguments.shard),
            overwrite=arguments.overwrite,
        )
    )


def prepare_teacher(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.experiments.teacher import score_teacher, train_teacher
    from lidarssl.recipes.schema import build_dataset

    dataset = build_dataset(arguments.dataset, rest)
    train_teacher(
        dataset, arguments.output, arguments.split, arguments.steps, seed=arguments.seed
    )
    if arguments.score_split:
        score = score_teacher(dataset, arguments.score_split, arguments.output)
        print(f"image mIoU on {score.frames} frames: {100 * score.miou:.1f} %")
    print(arguments.output)


def pretrain(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.experiments.pretrain import dry_run, pretrain_recipe
    from lidarssl.recipes.schema import load

    if arguments.dry_run:
        print(dry_run(load(arguments.recipe, rest, kinds=("pretrain",))))
        return
    run = arguments.run or Path("runs") / Path(arguments.recipe).stem
    recipe = load(arguments.recipe, rest, kinds=("pretrain",))
    page = pretrain_recipe(recipe, run, arguments.resume, not arguments.quiet, _command())
    print(f"student: {run / 'student.safetensors'}\nreport: {page}")


def probe(arguments: argparse.Namespace, rest: list[str]) -> None:
    _downstream(arguments, rest, "probe", ("probe", "segmentation"))


def finetune(arguments: argparse.Namespace, rest: list[str]) -> None:
    _downstream(arguments, rest, "finetune", ("segmentation",))


def _downstream(
    arguments: argparse.Namespace, rest: list[str], verb: str, kinds: tuple[str, ...]
) -> None:
    from lidarssl.experiments.downstream import run_downstream
    from lidarssl.recipes.schema import load

    recipe = load(arguments.recipe, rest, kinds=kinds)
    run = arguments.run or Path("runs") / f"{Path(arguments.recipe).stem}_{verb}"
    page = run_downstream(
        recipe, verb, run, arguments.checkpoint, arguments.resume, not arguments.quiet, _command()
    )
    print(f"report: {page}")


def evaluate(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.experiments.downstream import evaluate_run

    print(evaluate_run(arguments.run, arguments.split, arguments.protocol, rest))


def report(arguments: argparse.Namespace, rest: list[str]) -> None:
    if arguments.compare:
        from lidarssl.report.compare import build_comparison

        print(build_comparison([arguments.run, *arguments.compare], arguments.output))
        return
    from lidarssl.report.build import build_report

    print(build_report(arguments.run))


def doctor(arguments: argparse.Namespace, rest: list[str]) -> int:
    from lidarssl.experiments.doctor import examine

    findings = examine()
    print(findings)
    return 0 if findings.healthy else 1


def _verb(
    verbs: argparse._SubParsersAction, name: str, summary: str, run: Callable
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + "."
    )
    parser.set_defaults(run_verb=run)
    return parser


def _add_demo(verbs: argparse._SubParsersAction) -> None:
    parser = _verb(verbs, "demo", "generate a world, pretrain, probe, report: in minutes", demo)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="run folder")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--steps", type=int, default=400, help="pretraining steps")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _add_recipes(verbs: argparse._SubParsersAction) -> None:
    parser = _verb(verbs, "recipes", "list the shipped experiments, or show one", recipes)
    parser.add_argument("name", nargs="?", help="show this recipe's YAML")
    parser.add_argument("--keys", action="store_true", help="list every key it accepts")


def _add_data(verbs: argparse._SubParsersAction) -> None:
    parent = verbs.add_parser("data", help="check, describe or synthesize a dataset")
    actions = parent.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = _verb(actions, "check", "load every frame and say what is wrong", data_check)
    stats = _verb(actions, "stats", "points, ranges, intensities, classes, images", data_stats)
    for parser in (check, stats):
        _dataset_arguments(parser)
        parser.add_argument("--limit", type=int, help="only so many frames, evenly spread")
        parser.add_argument("--json", action="store_true", help="print JSON")
    check.add_argument("--workers", type=int, default=2, help="processes")
    world = _verb(actions, "synthesize", "write a synthetic driving world to disk", data_synthesize)
    world.set_defaults(overrides=True)
    world.add_argument("output", type=Path, help="folder of the new dataset")
    world.add_argument("--layout", choices=("nuscenes", "semantic_kitti"), default="nuscenes")
    world.add_argument("--workers", type=int, default=2, help="processes")
    world.epilog = (
        "Every other option describes the world, e.g. --seed 1 --lidar.beams 64 "
        "--splits '[{name: train, scenes: 10, frames: 2}]'."
    )


def _add_prepare(verbs: argparse._SubParsersAction) -> None:
    parent = verbs.add_parser("prepare", help="offline passes over a dataset, resumable")
    actions = parent.add_subparsers(title="passes", metavar="PASS", required=True)
    parser = _verb(actions, "superpixels", "SLIC superpixels of every image", prepare_superpixels)
    _dataset_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder of the PNG files")
    parser.add_argument("--segments", type=int, default=150, help="superpixels asked for per image")
    parser.add_argument("--compactness", type=float, default=6.0, help="of SLIC")
    parser.add_argument("--sigma", type=float, default=3.0, help="px, Gaussian before SLIC")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="0.25: segment quarter-size images"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--shard", default="0/1", help="i/n: the i-th of n machines, from 0")
    parser.add_argument("--overwrite", action="store_true", help="redo files that exist")
    teacher = _verb(
        actions, "teacher", "train a small image encoder on image labels", prepare_teacher
    )
    _dataset_arguments(teacher, split="teacher")
    teacher.add_argument("--output", type=Path, required=True, help=".safetensors file")
    teacher.add_argument("--steps", type=int, default=400, help="of training")
    teacher.add_argument("--seed", type=int, default=0, help="of weights and draws")
    teacher.add_argument("--score-split", help="print its image mIoU on this split")


def _add_pretrain(verbs: argparse._SubParsersAction) -> None:
    parser = _verb(verbs, "pretrain", "pretrain a backbone on unlabelled frames", pretrain)
    _recipe_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="one step: shapes, memory, time estimate"
    )


def _add_downstream(
    verbs: argparse._SubParsersAction,
    name: str,
    summary: str,
    run: Callable[..., None],
) -> None:
    parser = _verb(verbs, name, summary, run)
    _recipe_arguments(parser)
    parser.add_argument(
        "--checkpoint", type=Path, help="pretrained weights; without: random initialisation"
    )


def _add_evaluate(verbs: argparse._SubParsersAction) -> None:
    parser = _verb(verbs, "evaluate", "score a probed or finetuned run on a split", evaluate)
    parser.set_defaults(overrides=True)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--split", help="default: the recipe's val_split")
    parser.add_argument(
        "--protocol",
        default="nan",
        help="mIoU variant: nan (default), slidr, also, scalr, semantic_kitti_api, nuscenes_devkit",
    )


def _add_report(verbs: argparse._SubParsersAction) -> None:
    parser = _verb(verbs, "report", "write report.html of a run folder again", report)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--compare", type=Path, nargs="+", help="other runs, side by side")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/comparison.html"), help="of a comparison"
    )


def _dataset_arguments(parser: argparse.ArgumentParser, split: str = "train") -> None:
    parser.set_defaults(overrides=True)
    parser.add_argument("dataset", help="semantic_kitti, nuscenes, folder or synthetic")
    parser.add_argument("--split", default=split, help=f"of the dataset (default: {split})")
    parser.epilog = "Every other option goes to the dataset, e.g. --root DIR --version v1.0-mini."


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(overrides=True)
    parser.add_argument("recipe", help="name (see `lidarssl recipes`) or YAML file")
    parser.add_argument("--run", type=Path, help="run folder (default: runs/<recipe>)")
    parser.add_argument("--resume", action="store_true", help="continue a run that was stopped")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.epilog = (
        "Every key of the recipe can be overridden, e.g. --dataset.root DIR --training.steps 100; "
        "`lidarssl recipes NAME --keys` lists them."
    )


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(f"'{text}' is not i/n with i < n", field="--shard", remedy="e.g. 0/4")
    return int(index), int(count)


def _command() -> str:
    import shlex

    return shlex.join(["lidarssl", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
