"""The passes of `lidarssl prepare` and their arguments."""

from __future__ import annotations

import os
from pathlib import Path

from lidarssl.cli import prepare_verbs
from lidarssl.cli.groups import Verbs, add_quiet, describe_dataset, open_dataset
from lidarssl.cli.parser import Parser, at_least


def add_prepare(top: Verbs) -> None:
    """The verb `prepare`."""
    passes = top.parent("prepare", "offline passes over a dataset, resumable", "passes", "PASS")
    _add_superpixels(passes)
    _add_image_features(passes)
    _add_weak_labels(passes)
    _add_teacher(passes)
    _add_instances(passes)


def _add_superpixels(passes: Verbs) -> None:
    parser = open_dataset(
        passes, "superpixels", "SLIC superpixels of every image", prepare_verbs.superpixels,
        "lidarssl prepare superpixels nuscenes --root data/nuscenes --version v1.0-trainval "
        "--output superpixels",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="folder of the files")
    parser.add_argument(
        "--segments", type=at_least(1), default=150, help="superpixels asked for per image"
    )
    parser.add_argument("--compactness", type=float, default=6.0, help="of SLIC")
    parser.add_argument("--sigma", type=float, default=3.0, help="px, Gaussian before SLIC")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="0.25: segment quarter-size images"
    )
    parser.add_argument(
        "--format", choices=("runs", "png"), default="runs",
        help="of the files: runs are read in a tenth of the time, everything else reads png",
    )  # fmt: skip
    add_pass_options(parser)


def _add_image_features(passes: Verbs) -> None:
    parser = open_dataset(
        passes, "image-features", "feature maps that a frozen image encoder makes of every image",
        prepare_verbs.image_features,
        "lidarssl prepare image-features nuscenes --root data/nuscenes --version v1.0-trainval "
        "--output features --architecture dinov2_vitl14 --weights dinov2_vitl14_pretrain.pth "
        "--encoder.final_norm false\n"
        "lidarssl prepare image-features synthetic --root data/world --output features "
        "--encoder.class_path SmallUNet --weights teacher.safetensors",
        "Options --encoder.KEY are those of `method.image_encoder` in a recipe. ",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="folder of the maps")
    parser.add_argument("--architecture", metavar="NAME", help="of ViT, e.g. dinov2_vitl14")
    parser.add_argument("--weights", help="of the encoder: file, folder or hub id")
    parser.add_argument(
        "--height", type=at_least(1), default=224, help="px that images are resized to (224)"
    )
    parser.add_argument("--width", type=at_least(1), default=448, help="px (448)")
    parser.add_argument(
        "--no-antialias", dest="antialias", action="store_false",
        help="do not smooth images before they are reduced",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=("float16", "float32"), default="float16", help="of the maps"
    )
    _add_network_options(parser, 8, "encoder")
    add_pass_options(parser, workers=2, of_workers="processes that load images")


def _add_weak_labels(passes: Verbs) -> None:
    nuscenes = "lidarssl prepare weak-labels nuscenes --root data/nuscenes --version v1.0-trainval"
    parser = open_dataset(
        passes, "weak-labels", "weak class labels of the pixels of every image",
        prepare_verbs.weak_labels,
        f"{nuscenes} --output weak_labels --labeller GroundedSam "
        "--labeller.detector IDEA-Research/grounding-dino-tiny "
        "--labeller.segmenter facebook/sam-vit-base\n"
        f"{nuscenes} --output weak_labels --labeller UniversalSegmenter "
        "--labeller.model facebook/mask2former-swin-large-cityscapes-semantic\n"
        "lidarssl prepare weak-labels synthetic --root data/world --output weak_labels "
        "--labeller SmallUNetLabeller --labeller.weights teacher.safetensors\n"
        f"{nuscenes} --output weak_labels --camseg data/nuscenes/camseg --classes seem",
        "--labeller NAME chooses what labels, --labeller.KEY are its arguments, listed by --help. ",
        describe=_describe_labellers,
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="folder of the PNG files")
    parser.add_argument(
        "--camseg", type=Path, metavar="DIR",
        help="import the labels that OLIVINE's authors distribute for nuScenes instead",
    )  # fmt: skip
    parser.add_argument(
        "--classes", metavar="ORDER", help="of --camseg: seem, grounded_sam, or a JSON file"
    )
    parser.add_argument(
        "--preview-every", type=at_least(0), default=100, metavar="N",
        help="draw one of every N images with its labels (100; 0 = none)",
    )  # fmt: skip
    _add_network_options(parser, 4, "labeller")
    add_pass_options(parser, workers=2, of_workers="processes that load images")


def _describe_labellers(dataset: str | None) -> str:
    from lidarssl.prepare.labellers.base import Labeller
    from lidarssl.recipes.schema import describe_part

    return f"{describe_part('labeller', Labeller)}\n\n{describe_dataset(dataset)}"


def _add_instances(passes: Verbs) -> None:
    parser = open_dataset(
        passes, "instances", "objects of labelled scans, to put into others",
        prepare_verbs.instances,
        "lidarssl prepare instances semantic_kitti --root data/semantic_kitti --output instances\n"
        "lidarssl prepare instances semantic_poss --root data/poss --output instances "
        "--classes person rider bike",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="folder of the bank")
    parser.add_argument(
        "--classes", nargs="+", metavar="CLASS",
        help="names (default: bicycle motorcycle other-vehicle person bicyclist)",
    )  # fmt: skip
    parser.add_argument(
        "--min-points", type=at_least(1), default=6, help="leave out objects with fewer"
    )
    parser.add_argument(
        "--unnumbered", action="store_true",
        help="points of a class without an instance are one more, as in WaffleIron's code",
    )  # fmt: skip
    add_pass_options(parser)


def _add_teacher(passes: Verbs) -> None:
    parser = open_dataset(
        passes, "teacher", "train a small image encoder on image labels", prepare_verbs.teacher,
        "lidarssl prepare teacher synthetic --root data/world --output teacher.safetensors "
        "--score-split val",
        split="teacher",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help=".safetensors file")
    parser.add_argument("--steps", type=at_least(1), default=400, help="of training")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of weights and draws")
    parser.add_argument("--workers", type=at_least(0), default=1, help="loader processes")
    parser.add_argument("--score-split", help="print its image mIoU on this split")
    add_quiet(parser)


def _add_network_options(parser: Parser, batch_size: int, of: str) -> None:
    """What every pass understands that runs a network over images."""
    parser.add_argument(
        "--batch-size", type=at_least(1), default=batch_size, help=f"images at once ({batch_size})"
    )
    parser.add_argument(
        "--accelerator", choices=("auto", "cpu", "cuda", "mps"), default="auto",
        help=f"device of the {of}",
    )  # fmt: skip


def add_pass_options(
    parser: Parser, workers: int | None = None, of_workers: str = "processes"
) -> None:
    """What every resumable pass understands; by default a worker for each core."""
    default = workers or os.cpu_count() or 1
    parser.add_argument("--workers", type=at_least(0), default=default, help=of_workers)
    parser.add_argument("--shard", default="0/1", help="i/n: the i-th of n machines, from 0")
    parser.add_argument("--overwrite", action="store_true", help="redo files that exist")
    add_quiet(parser)
