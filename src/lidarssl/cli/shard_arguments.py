"""The verb `data shard`, its arguments and what it does."""

from __future__ import annotations

import argparse
from pathlib import Path

from lidarssl.cli.groups import Verbs, open_dataset
from lidarssl.cli.parser import at_least
from lidarssl.cli.prepare_arguments import add_pass_options
from lidarssl.cli.prepare_verbs import pass_options


def add_shard(actions: Verbs) -> None:
    """The verb `data shard`."""
    parser = open_dataset(
        actions, "shard", "pack a split into tar files to train from, also from object storage",
        shard,
        "lidarssl data shard semantic_kitti shards/kitti --root data/semantic_kitti\n"
        "lidarssl data shard nuscenes shards/nuscenes --root data/nuscenes --version v1.0-trainval "
        "--fields images --superpixels superpixels/nuscenes\n"
        "lidarssl data check shards --root https://HOST/BUCKET/nuscenes\n"
        "lidarssl pretrain RECIPE --dataset.class_path Shards "
        "--dataset.root https://HOST/BUCKET/nuscenes",
    )  # fmt: skip
    parser.add_argument("output", type=Path, help="folder of the shards; one for all splits")
    parser.add_argument(
        "--fields", nargs="+", metavar="FIELD",
        help="of images, image_labels, semantic, instance, boxes, pose (default: all there are)",
    )  # fmt: skip
    parser.add_argument(
        "--superpixels", type=Path, metavar="DIR",
        help="pack the files of `lidarssl prepare superpixels` too",
    )  # fmt: skip
    parser.add_argument(
        "--frames-per-shard", type=at_least(1), metavar="N",
        help="default: as many as make --shard-size",
    )  # fmt: skip
    parser.add_argument(
        "--shard-size", type=at_least(1), metavar="MIB",
        help="about (default: 256); not with --frames-per-shard",
    )  # fmt: skip
    add_pass_options(parser)


def shard(arguments: argparse.Namespace, rest: list[str]) -> None:
    from lidarssl.prepare.shards import pack_shards
    from lidarssl.recipes.schema import build_dataset

    options = pass_options(arguments)
    print(
        pack_shards(
            build_dataset(arguments.dataset, rest),
            arguments.split,
            arguments.output,
            fields=arguments.fields,
            superpixels=arguments.superpixels,
            frames_per_shard=arguments.frames_per_shard,
            shard_size=arguments.shard_size,
            **options,
        )
    )
