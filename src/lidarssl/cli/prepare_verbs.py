"""What each pass of `lidarssl prepare` does; it imports what it needs when it runs."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from lidarssl.errors import ConfigError
from lidarssl.wording import counted

if TYPE_CHECKING:
    from lidarssl.datasets.base import Dataset
    from lidarssl.images.base import ImageEncoder
    from lidarssl.prepare.passes import Summary


def superpixels(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.prepare.superpixels import prepare_superpixels as run
    from lidarssl.recipes.schema import build_dataset

    options = pass_options(arguments)
    print(
        run(
            build_dataset(arguments.dataset, rest),
            arguments.split,
            arguments.output,
            segments=arguments.segments,
            compactness=arguments.compactness,
            sigma=arguments.sigma,
            scale=arguments.scale,
            form=arguments.format,
            **options,
        )
    )


def image_features(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.prepare.image_features import prepare_image_features as run
    from lidarssl.recipes.schema import build_dataset
    from lidarssl.training.devices import choose_device

    options = pass_options(arguments)
    described, rest = _take("encoder", rest)
    dataset = build_dataset(arguments.dataset, rest)
    encoder, given = _encoder(arguments, described)
    print(
        run(
            dataset,
            arguments.split,
            arguments.output,
            encoder,
            arguments.height,
            arguments.width,
            arguments=given,
            antialias=arguments.antialias,
            dtype=arguments.dtype,
            batch_size=arguments.batch_size,
            device=choose_device(arguments.accelerator),
            **options,
        )
    )


def _encoder(
    arguments: argparse.Namespace, words: list[str]
) -> tuple[ImageEncoder, dict[str, Any]]:
    from lidarssl.images.base import ImageEncoder
    from lidarssl.recipes.schema import build_part

    name = arguments.architecture
    if name is not None:
        words = ["--encoder.class_path=ViT", f"--encoder.architecture={name}", *words]
    if not words:
        raise ConfigError(
            "does not say which image encoder to run",
            field="--architecture",
            remedy="e.g. --architecture dinov2_vitl14, or --encoder.class_path ResNet",
        )
    if arguments.weights is not None:
        words = [*words, f"--encoder.weights={arguments.weights}"]
    encoder, options = build_part("encoder", ImageEncoder, words)
    if "weights" in options and options["weights"] is None:
        raise ConfigError(
            "the features of random weights teach nothing",
            field="--weights",
            remedy="give a weights file, a folder of save_pretrained, or a hub id",
        )
    return encoder, options


def weak_labels(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.recipes.schema import build_dataset

    options = pass_options(arguments)
    described, rest = _take("labeller", rest)
    if (arguments.camseg is None) == (not described):
        raise ConfigError(
            "got two sources of labels" if described else "does not say what labels the images",
            field="--labeller, --camseg",
            remedy="give either a labeller, e.g. --labeller GroundedSam, or a folder with --camseg",
        )
    dataset = build_dataset(arguments.dataset, rest)
    if arguments.camseg is not None:
        print(_import_camseg(arguments, dataset, options))
    else:
        print(_label(arguments, dataset, described, options))


def _label(
    arguments: argparse.Namespace, dataset: Dataset, words: list[str], options: dict[str, Any]
) -> Summary:
    from lidarssl.prepare.labellers.base import Labeller
    from lidarssl.prepare.weak_labels import prepare_weak_labels
    from lidarssl.recipes.schema import build_part
    from lidarssl.training.devices import choose_device

    if arguments.classes is not None:
        raise ConfigError(
            "belongs to --camseg",
            field="--classes",
            remedy="labellers have options of their own for their classes; --help lists them",
        )
    labeller, _ = build_part("labeller", Labeller, words)
    return prepare_weak_labels(
        dataset, arguments.split, arguments.output, labeller,
        batch_size=arguments.batch_size, device=choose_device(arguments.accelerator),
        preview_every=arguments.preview_every, **options,
    )  # fmt: skip


def _import_camseg(
    arguments: argparse.Namespace, dataset: Dataset, options: dict[str, Any]
) -> Summary:
    from lidarssl.prepare.camseg import import_camseg

    if arguments.classes is None:
        raise ConfigError(
            "the files do not tell what their values mean",
            field="--classes",
            remedy="give seem, grounded_sam, or a JSON file with the class order",
        )
    return import_camseg(
        dataset, arguments.split, arguments.output, arguments.camseg, arguments.classes, **options
    )


def instances(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.prepare.instances import prepare_instances as run
    from lidarssl.recipes.schema import build_dataset
    from lidarssl.transforms.mixing import OBJECTS

    options = pass_options(arguments)
    print(
        run(
            build_dataset(arguments.dataset, rest),
            arguments.split,
            arguments.output,
            classes=arguments.classes or OBJECTS,
            min_points=arguments.min_points,
            unnumbered=arguments.unnumbered,
            **options,
        )
    )


def teacher(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.experiments.teacher import score_teacher, train_teacher
    from lidarssl.recipes.schema import build_dataset

    dataset = build_dataset(arguments.dataset, rest)
    if arguments.score_split:
        dataset.frames(arguments.score_split)
    train_teacher(
        dataset, arguments.output, arguments.split, arguments.steps, seed=arguments.seed,
        workers=arguments.workers, progress=not arguments.quiet,
    )  # fmt: skip
    if arguments.score_split:
        score = score_teacher(dataset, arguments.score_split, arguments.output)
        print(f"image mIoU on {counted(score.frames, 'frame')}: {100 * score.miou:.1f} %")
    print(arguments.output)


def _take(name: str, words: list[str]) -> tuple[list[str], list[str]]:
    """The options ``--NAME`` and ``--NAME.KEY``, and the others."""
    taken = [word for word in words if re.match(rf"--{name}([.=]|$)", word)]
    return taken, [word for word in words if word not in taken]


def pass_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What every resumable pass understands."""
    return {
        "workers": arguments.workers,
        "shard": _shard(arguments.shard),
        "overwrite": arguments.overwrite,
        "progress": not arguments.quiet,
    }


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(
            f"'{text}' is not i/n with i < n",
            field="--shard",
            remedy="e.g. 0/4, 1/4, 2/4 and 3/4 on four machines",
        )
    return int(index), int(count)
