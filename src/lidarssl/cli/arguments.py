"""The verbs of the command line and their arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lidarssl import __version__
from lidarssl.cli import verbs
from lidarssl.cli.calibrate_arguments import add_calibrate
from lidarssl.cli.export_arguments import add_export
from lidarssl.cli.groups import Verbs, add_quiet, open_dataset
from lidarssl.cli.parser import Parser, at_least
from lidarssl.cli.prepare_arguments import add_prepare
from lidarssl.cli.shard_arguments import add_shard

START = """\
start here:
  lidarssl demo                                  the whole story on a synthetic world, in minutes
  lidarssl recipes                               every experiment that ships with the package
  lidarssl data check semantic_kitti --root DIR  is your copy of a dataset whole?
  lidarssl pretrain RECIPE --dataset.root DIR    pretrain a network
  lidarssl probe RECIPE --checkpoint RUN         what are its features worth?
  lidarssl calibrate RUN                         how do lidar and camera stand? (a run of NCLR)
  lidarssl convert FILE                          whose weights are these? and to another library
  lidarssl doctor                                what is installed, what is missing

`lidarssl VERB --help` explains a verb with examples.
exit codes: 0 done, 1 `data check` or `doctor` found something, 2 bad input, 130 stopped
"""
RECIPE_KEYS = (
    "Every key of the recipe can be given too, e.g. --dataset.root DIR --training.steps 100;\n"
    "`lidarssl recipes NAME --keys` lists them."
)
SHIFT_NOTE = """
With --shift other options go to that dataset, as in `lidarssl data check`; its name and --help list
them. Keys of the recipe that start with --dataset., --task. or --training. still go to the recipe.
Runs of one pretraining method are its seeds: their mean, spread and interval are told."""
CONVERT_NOTE = """\
Reads files of lidarssl, SLidR, PPKT, OLIVINE, ALSO, NCLR, BEVContrast, SegContrast, mmdetection3d,
OpenPCDet, WaffleIron and ScaLR, and vision transformers of timm, DINO, transformers, CLCP, LIP-Loc
and mmsegmentation; nothing in a file is ever run. Formats:
  lidarssl     safetensors with a card, for `lidarssl probe` and `finetune`
  torchsparse  for the downstream code of ALSO, NCLR and BEVContrast
  minkowski    for the downstream code of SLidR and OLIVINE
  segcontrast  for SegContrast's network on MinkowskiEngine
  openpcdet    for SECOND and PV-RCNN of OpenPCDet, checked key by key
  waffleiron   for the code of WaffleIron and ScaLR
  timm         an image encoder as the state dict of timm's network
  transformers an image encoder as a folder for from_pretrained
Other options are arguments of the network, for --to lidarssl, e.g. --voxel_size 0.1."""


def build_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="lidarssl",
        description="Pretrain lidar backbones and image encoders on unlabelled driving data, "
        "and prove what the pretraining is worth.",
        epilog=START,
    )
    parser.add_argument("--version", action="version", version=f"lidarssl {__version__}")
    top = Verbs(parser, "verbs", "VERB")
    _add_demo(top)
    _add_recipes(top)
    _add_data(top)
    add_prepare(top)
    _add_pretrain(top)
    _add_probe(top)
    _add_finetune(top)
    _add_evaluate(top)
    _add_report(top)
    _add_view(top)
    add_calibrate(top)
    _add_convert(top)
    add_export(top)
    _add_hub(top)
    top.add(
        "doctor", "what is installed, what is missing, what to type", verbs.doctor,
        "lidarssl doctor",
    )  # fmt: skip
    return parser


def _add_demo(top: Verbs) -> None:
    parser = top.add(
        "demo", "generate a world, pretrain, probe, report: in minutes", verbs.demo,
        "lidarssl demo\nlidarssl demo --quick --run runs/quick    does it run here? in seconds",
    )  # fmt: skip
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="run folder")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of everything random")
    parser.add_argument("--steps", type=at_least(1), default=400, help="pretraining steps")
    parser.add_argument("--workers", type=at_least(1), default=2, help="processes")
    parser.add_argument(
        "--quick", action="store_true",
        help="a tiny world and a few steps: tests the installation, its numbers mean nothing",
    )  # fmt: skip
    add_quiet(parser)


def _add_recipes(top: Verbs) -> None:
    parser = top.add(
        "recipes", "list the shipped experiments, or show one", verbs.recipes,
        "lidarssl recipes\nlidarssl recipes slidr_minkunet_nuscenes\n"
        "lidarssl recipes slidr_minkunet_nuscenes --keys\n"
        "lidarssl recipes slidr_minkunet_nuscenes > mine.yaml     to start one of your own",
    )  # fmt: skip
    parser.add_argument("name", nargs="?", help="show this recipe's YAML")
    parser.add_argument("--keys", action="store_true", help="explain every key it accepts")


def _add_data(top: Verbs) -> None:
    actions = top.parent(
        "data", "check, describe, pack or synthesize a dataset", "actions", "ACTION"
    )
    check = open_dataset(
        actions, "check", "load every frame and say what is wrong", verbs.data_check,
        "lidarssl data check semantic_kitti --root data/semantic_kitti\n"
        "lidarssl data check nuscenes --root data/nuscenes --version v1.0-mini --split mini_train",
    )  # fmt: skip
    stats = open_dataset(
        actions, "stats", "points, ranges, intensities, classes, images", verbs.data_stats,
        "lidarssl data stats folder --root logs --limit 100",
    )  # fmt: skip
    for parser in (check, stats):
        parser.add_argument("--limit", type=at_least(1), help="so many frames, evenly spread")
        parser.add_argument("--json", action="store_true", help="print JSON")
        add_quiet(parser)
    check.add_argument("--workers", type=at_least(0), default=2, help="threads")
    add_shard(actions)
    world = actions.open(
        "synthesize", "write a synthetic driving world to disk", verbs.data_synthesize,
        "lidarssl data synthesize data/world\n"
        "lidarssl data synthesize data/world --weathers fog night rain snow\n"
        "lidarssl data synthesize data/world --seed 1 --lidar.beams 64 "
        "--splits '[{name: train, scenes: 10, frames: 2}]'",
        "Other options describe the world; --help lists them.",
        verbs.describe_world, "output",
    )  # fmt: skip
    world.add_argument("output", type=Path, help="folder of the new dataset")
    world.add_argument(
        "--layout", choices=("nuscenes", "semantic_kitti"), default="nuscenes",
        help="semantic_kitti: by default eleven drives with 64 beams and one camera",
    )  # fmt: skip
    world.add_argument(
        "--weathers", nargs="+", choices=("fog", "night", "rain", "snow"), metavar="WEATHER",
        help="show the scenes of val again in these (fog, night, rain, snow), as splits val_fog, "
        "...: equal streets, objects, drives and labels, other images and lidar returns. A folder "
        "that holds the world without them is completed",
    )  # fmt: skip
    world.add_argument("--workers", type=at_least(0), default=2, help="processes")
    add_quiet(world)


def _add_pretrain(top: Verbs) -> None:
    parser = _open_recipe(
        top, "pretrain", "pretrain a network on unlabelled frames", verbs.pretrain,
        "lidarssl pretrain slidr_minkunet_nuscenes --dataset.root data/nuscenes --dry-run\n"
        "lidarssl pretrain slidr_minkunet_nuscenes --dataset.root data/nuscenes --run runs/slidr\n"
        "lidarssl pretrain slidr_minkunet_nuscenes --dataset.root data/nuscenes --run runs/slidr "
        "--resume\n"
        "lidarssl pretrain clcp_vit_synthetic --dataset.root data/world --run runs/clcp",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="a few steps: shapes, memory, time estimate"
    )


def _add_probe(top: Verbs) -> None:
    parser = _open_recipe(
        top, "probe", "judge frozen features with a linear classifier", verbs.probe,
        "lidarssl probe probe_minkunet_synthetic --checkpoint runs/slidr --run runs/slidr_probe\n"
        "lidarssl probe probe_minkunet_synthetic --checkpoint runs/slidr --seeds 3",
    )  # fmt: skip
    _add_checkpoint(parser)
    parser.add_argument(
        "--no-baseline", dest="baseline", action="store_false",
        help="with a checkpoint: do not probe the untrained network beside it",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=at_least(1), default=1, help="repeat with so many seeds: mean and spread"
    )


def _add_finetune(top: Verbs) -> None:
    parser = _open_recipe(
        top, "finetune", "train all weights on a fraction of the labels", verbs.finetune,
        "lidarssl finetune finetune_minkunet_nuscenes_1 --dataset.root data/nuscenes "
        "--checkpoint runs/slidr\n"
        "lidarssl finetune finetune_minkunet_nuscenes_also --dataset.root data/nuscenes "
        "--checkpoint runs/also --label_skip 100",
    )  # fmt: skip
    _add_checkpoint(parser)


def _add_evaluate(top: Verbs) -> None:
    parser = top.open(
        "evaluate", "score probed or finetuned runs on a split, or under other weather",
        verbs.evaluate,
        "lidarssl evaluate runs/slidr_probe --split val --protocol slidr\n"
        "lidarssl evaluate runs/vit --shift acdc --root data/acdc\n"
        "lidarssl evaluate runs/clcp_0 runs/clcp_1 runs/random_0 runs/random_1 "
        "--shift synthetic --root data/weather",
        f"{RECIPE_KEYS}\n{SHIFT_NOTE}",
        verbs.describe_shift, "shift",
    )  # fmt: skip
    parser.add_argument("run", type=Path, nargs="+", help="run folder; several with --shift")
    parser.add_argument("--split", help="default: the recipe's val_split; with --shift: val")
    parser.add_argument(
        "--names",
        nargs="+",
        metavar="NAME",
        help="with --shift: a name for the pretraining of each run, in their order; runs of one "
        "name are its seeds (default: what the checkpoints tell, e.g. clcp)",
    )
    parser.add_argument(
        "--shift", metavar="NAME",
        help="a dataset with the same classes: score image segmentations on each of its "
        "conditions, as fog and night, beside the dataset they were trained on",
    )  # fmt: skip
    parser.add_argument(
        "--protocol",
        default="nan",
        help="mIoU variant: nan (default), slidr, also, also_stats, scalr, "
        "semantic_kitti_api, nuscenes_devkit",
    )
    parser.add_argument(
        "--points", default="all",
        help="all (default) points of a scan count; decimated: only those that are left when it "
        "is thinned as in training; nearest: all, each with the class of the nearest of these",
    )  # fmt: skip
    parser.add_argument(
        "--votes", type=at_least(1), default=1,
        help="see every scan so often, turned, mirrored and scaled, and sum the softmax "
        "(default: 1, the scan as it is)",
    )  # fmt: skip
    parser.add_argument(
        "--votes-drop-path", action="store_true",
        help="each vote leaves out mixes of the backbone at random, as the published code",
    )  # fmt: skip
    add_quiet(parser)


def _add_report(top: Verbs) -> None:
    parser = top.add(
        "report", "write report.html of a run folder again", verbs.report,
        "lidarssl report runs/demo\n"
        "lidarssl report runs/ppkt_probe --compare runs/slidr_probe --output comparison.html",
    )  # fmt: skip
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--compare", type=Path, nargs="+", help="other runs, side by side")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/comparison.html"), help="of a comparison"
    )


def _add_view(top: Verbs) -> None:
    parser = top.add(
        "view", "what a pretraining makes of held-out scans, in the 3-D viewer", verbs.view,
        "lidarssl view runs/also --frames 3",
    )  # fmt: skip
    parser.add_argument("run", type=Path, help="run folder of `lidarssl pretrain`")
    parser.add_argument("--frames", type=at_least(1), default=1, help="how many (default: 1)")


def _add_convert(top: Verbs) -> None:
    parser = top.open(
        "convert", "weights of any library: what they are, and as files of another", verbs.convert,
        "lidarssl convert weights.ckpt                      what is in it?\n"
        "lidarssl convert weights.ckpt --to lidarssl --output weights.safetensors --like RECIPE\n"
        "lidarssl convert weights.ckpt --to lidarssl --output weights.safetensors "
        "--rule also --voxel_size 0.1 --inputs.columns [intensity]\n"
        "lidarssl convert runs/also --to torchsparse --output also_minkunet.ckpt\n"
        "lidarssl convert runs/second --to openpcdet --output second.pth\n"
        "lidarssl convert runs/clcp --to timm --output vit_small.pth\n"
        "lidarssl convert runs/clcp --to transformers --output vit_small",
        CONVERT_NOTE,
    )  # fmt: skip
    parser.add_argument("source", type=Path, help="weights file of any origin, or run folder")
    parser.add_argument(
        "--to",
        choices=(
            "lidarssl", "torchsparse", "minkowski", "segcontrast", "openpcdet", "waffleiron",
            "timm", "transformers",
        ),
        help="format of the output; without it the file is only described",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="file (or folder) to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")
    parser.add_argument("--like", metavar="RECIPE", help="the weights are for its network")
    parser.add_argument("--prefix", help="of the network's names, when the file has several")
    parser.add_argument(
        "--heads", type=at_least(1),
        help="attention heads of an image encoder whose width is no multiple of 64",
    )  # fmt: skip
    layouts = ("KRSC", "RSKC", "RSCK")
    parser.add_argument(
        "--spconv-layout", choices=layouts, help="of the source, when it does not tell"
    )
    parser.add_argument(
        "--output-layout", choices=layouts, default="KRSC",
        help="of openpcdet files: RSCK for spconv 1.x (default: KRSC, for 2.x)",
    )  # fmt: skip
    parser.add_argument("--licence", help="for the card: licence of the weights")
    parser.add_argument(
        "--data", action="append", help="for the card: data they saw, e.g. nuscenes/train; repeat"
    )


def _add_hub(top: Verbs) -> None:
    push = top.add(
        "push", "upload weights with their card to the Hugging Face Hub", verbs.push,
        "lidarssl push runs/also OWNER/also-minkunet-kitti --licence cc-by-nc-sa-4.0",
        "Needs `pip install 'lidarssl[hub]'` and `hf auth login`.",
    )  # fmt: skip
    push.add_argument("source", type=Path, help="run folder, or weights of lidarssl")
    push.add_argument("repository", help="owner/name; made when it does not exist")
    push.add_argument("--licence", help="of the weights, for card and page")
    push.add_argument("--private", action="store_true", help="a new repository only you can see")
    pull = top.add(
        "pull", "download weights with their card from the Hugging Face Hub", verbs.pull,
        "lidarssl pull OWNER/also-minkunet-kitti --output weights\n"
        "lidarssl probe RECIPE --checkpoint weights",
        "Needs `pip install 'lidarssl[hub]'`.",
    )  # fmt: skip
    pull.add_argument("repository", help="owner/name")
    pull.add_argument("--output", type=Path, required=True, help="folder of the weights")
    pull.add_argument("--revision", help="branch, tag or commit (default: the newest)")
    pull.add_argument("--overwrite", action="store_true", help="replace weights that are there")


def _open_recipe(
    group: Verbs, name: str, summary: str, run: Callable[..., int | None], examples: str
) -> Parser:
    parser = group.open(name, summary, run, examples, RECIPE_KEYS)
    parser.add_argument("recipe", help="name (see `lidarssl recipes`) or YAML file")
    parser.add_argument("--run", type=Path, help="run folder (default: runs/<recipe>)")
    parser.add_argument("--resume", action="store_true", help="continue a run that was stopped")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a finished run that the folder holds"
    )
    add_quiet(parser)
    return parser


def _add_checkpoint(parser: Parser) -> None:
    parser.add_argument(
        "--checkpoint", type=Path,
        help="weights file or run folder; without it: random initialisation",
    )  # fmt: skip
