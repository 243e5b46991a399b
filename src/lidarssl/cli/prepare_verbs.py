"""What each pass of `lidarssl prepare` does; it imports what it needs when it runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from lidarssl.errors import ConfigError

if TYPE_CHECKING:
    from lidarssl.images.base import ImageEncoder


def superpixels(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.prepare.superpixels import prepare_superpixels as run
    from lidarssl.recipes.schema import build_dataset

    shard = _shard(arguments.shard)
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
            shard=shard,
            overwrite=arguments.overwrite,
            progress=not arguments.quiet,
        )
    )


def image_features(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.prepare.image_features import prepare_image_features as run
    from lidarssl.recipes.schema import build_dataset
    from lidarssl.training.fit import choose_device

    shard = _shard(arguments.shard)
    described = [word for word in rest if word.startswith(("--encoder.", "--encoder="))]
    dataset = build_dataset(arguments.dataset, [word for word in rest if word not in described])
    encoder, options = _encoder(arguments, described)
    print(
        run(
            dataset,
            arguments.split,
            arguments.output,
            encoder,
            arguments.height,
            arguments.width,
            arguments=options,
            antialias=arguments.antialias,
            dtype=arguments.dtype,
            batch_size=arguments.batch_size,
            device=choose_device(arguments.accelerator),
            workers=arguments.workers,
            shard=shard,
            overwrite=arguments.overwrite,
            progress=not arguments.quiet,
        )
    )


def _encoder(
    arguments: argparse.Namespace, words: list[str]
) -> tuple[ImageEncoder, dict[str, Any]]:
    from lidarssl.recipes.schema import build_encoder

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
    encoder, options = build_encoder(words)
    if "weights" in options and options["weights"] is None:
        raise ConfigError(
            "the features of random weights teach nothing",
            field="--weights",
            remedy="give a weights file, a folder of save_pretrained, or a hub id",
        )
    return encoder, options


def instances(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.prepare.instances import prepare_instances as run
    from lidarssl.recipes.schema import build_dataset
    from lidarssl.transforms.mixing import OBJECTS

    shard = _shard(arguments.shard)
    print(
        run(
            build_dataset(arguments.dataset, rest),
            arguments.split,
            arguments.output,
            classes=arguments.classes or OBJECTS,
            min_points=arguments.min_points,
            unnumbered=arguments.unnumbered,
            workers=arguments.workers,
            shard=shard,
            overwrite=arguments.overwrite,
            progress=not arguments.quiet,
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
        print(f"image mIoU on {score.frames} frames: {100 * score.miou:.1f} %")
    print(arguments.output)


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(
            f"'{text}' is not i/n with i < n",
            field="--shard",
            remedy="e.g. 0/4, 1/4, 2/4 and 3/4 on four machines",
        )
    return int(index), int(count)
