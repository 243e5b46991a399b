"""Values that have the right type and still make no sense."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lidarssl.backbones.minkunet import MinkUNet
from lidarssl.backbones.second import Second
from lidarssl.backbones.voxelnet import VoxelNet
from lidarssl.backbones.waffleiron import WaffleIron
from lidarssl.errors import ConfigError
from lidarssl.images.mask_transformer import MaskTransformerShape
from lidarssl.methods.also import Also, ScanSampling
from lidarssl.methods.clcp import Clcp, PairView
from lidarssl.methods.image_to_lidar import ImageToLidar, PairAugmentation
from lidarssl.methods.nclr import Nclr
from lidarssl.methods.nclr_settings import CalibrationView, PoseTerm, TokenSampling
from lidarssl.methods.nclr_settings import TermWeights as NclrWeights
from lidarssl.methods.olivine import BalancedSampling, Distributions, Olivine, TermWeights
from lidarssl.methods.ppkt import Ppkt
from lidarssl.methods.scalr import Scalr, ViewAugmentation
from lidarssl.recipes.keys import Section, sections
from lidarssl.tasks.augmentation import PointAugmentation
from lidarssl.tasks.image_augmentation import ImageAugmentation
from lidarssl.tasks.probe import LinearProbe
from lidarssl.tasks.sliding_window import SlidingWindow
from lidarssl.training.optimizer import Optimizer, Schedule
from lidarssl.training.settings import Training
from lidarssl.transforms.displacement import Displacement
from lidarssl.transforms.image_jitter import ImageJitter
from lidarssl.transforms.mixing import ScanMixing
from lidarssl.transforms.occupancy import SupportSearch

Rule = tuple[Callable[[Any], bool], str]


def at_least(low: int) -> Rule:
    return (lambda value: value >= low, f"{low} or more")


POSITIVE: Rule = (lambda value: 0 < value < math.inf, "a number above 0")
WEIGHT: Rule = (lambda value: 0 <= value < math.inf, "a number of 0 or more")
SHARE: Rule = (lambda value: 0 <= value <= 1, "a number from 0 to 1")
SIZES: Rule = (
    lambda value: all(0 < size < math.inf for size in _several(value)),
    "one or three numbers above 0",
)
FACTORS: Rule = (
    lambda value: 0 < value[0] <= value[1] < math.inf,
    "two numbers above 0, the smaller one first",
)
PIXELS: Rule = (lambda value: all(1 <= side <= 16_384 for side in value), "1 to 16384 pixels each")
SEED: Rule = (lambda value: 0 <= value < 2**63, "a whole number from 0 to 2^63 - 1")
GRIDS: Rule = (
    lambda value: all(1 <= side <= 4096 for grid in value for side in grid),
    "grids of 1 to 4096 cells a side",
)
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")

LIMITS: dict[type, dict[str, Rule]] = {
    Training: {
        "batch_size": at_least(1),
        "epochs": at_least(1),
        "steps": at_least(1),
        "seed": SEED,
        "workers": at_least(0),
        "prefetch": at_least(1),
        "nodes": at_least(1),
        "checkpoint_every": at_least(0),
        "log_every": at_least(1),
        "validate_every": at_least(0),
        "max_skipped": at_least(0),
        "devices": (lambda value: value not in (0, "0"), "auto, or 1 or more"),
        "precision": (lambda value: value in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
    },
    Optimizer: {
        "lr": POSITIVE,
        "head_lr": POSITIVE,
        "weight_decay": SHARE,
        "betas": (
            lambda value: all(0 <= beta < 1 for beta in value),
            "two numbers from 0 to below 1",
        ),
        "momentum": SHARE,
        "dampening": SHARE,
        "layer_decay": (lambda value: 0 < value <= 1, "a number above 0, up to 1"),
        "gradient_clip": POSITIVE,
    },
    Schedule: {
        "warmup": at_least(0),
        "cooldown": at_least(0),
        "timescale": POSITIVE,
        "final": SHARE,
        "start": SHARE,
        "period": POSITIVE,
        "period_factor": at_least(1),
        "power": POSITIVE,
    },
    LinearProbe: {
        "steps": at_least(1),
        "rows": at_least(1),
        "lr": POSITIVE,
        "weight_decay": at_least(0),
        "points_per_frame": at_least(0),
    },
    ImageToLidar: {"embedding": at_least(1), "temperature": POSITIVE},
    Ppkt: {"num_matches": at_least(1)},
    Olivine: {"num_matches": at_least(1)},
    BalancedSampling: {"bin_size": POSITIVE},
    Distributions: {
        "decay": (lambda value: 0 < value <= 1, "a number above 0, up to 1"),
        "warmup": at_least(0),
        "classes": at_least(1),
    },
    TermWeights: {"points": WEIGHT, "semantic": WEIGHT, "distribution": WEIGHT},
    Clcp: {"embedding": at_least(1), "temperature": POSITIVE},
    PairView: {
        "side": at_least(1),
        "image_size": PIXELS,
        "min_points": at_least(1),
        "min_depth": WEIGHT,
    },
    ImageJitter: {
        "probability": SHARE,
        "strength": SHARE,
        "hue": (lambda value: 0 <= value <= 0.5, "a number from 0 to 0.5"),
        "degrade": SHARE,
    },
    Nclr: {"embedding": at_least(1), "temperature": POSITIVE, "num_matches": at_least(1)},
    CalibrationView: {
        "image_size": PIXELS,
        "stride": at_least(1),
        "mirror_probability": SHARE,
        "min_depth": WEIGHT,
    },
    Displacement: {
        "spread": WEIGHT,
        "limit": WEIGHT,
        "max_angle": (lambda value: 0 <= value <= 180, "a number from 0 to 180 (degrees)"),
    },
    TokenSampling: {"number": at_least(1)},
    PoseTerm: {
        "start": SHARE,
        "keypoints": at_least(6),
        "temperature": POSITIVE,
        "translation": WEIGHT,
        "thresholds": (
            lambda value: bool(value) and all(0 <= one <= 1 for one in value),
            "one or more numbers from 0 to 1",
        ),
        "enough": at_least(2),
    },
    NclrWeights: {
        "contrast": WEIGHT,
        "fused": WEIGHT,
        "point_overlap": WEIGHT,
        "image_overlap": WEIGHT,
        "pose": WEIGHT,
    },
    Also: {
        "latent": at_least(1),
        "occupancy_weight": WEIGHT,
        "intensity_weight": WEIGHT,
        "intensity_scale": POSITIVE,
    },
    Scalr: {"hidden": at_least(1)},
    ViewAugmentation: {
        "image_size": PIXELS,
        "max_points": at_least(1),
        "flip": SHARE,
        "scale": FACTORS,
        "min_depth": at_least(0),
    },
    WaffleIron: {
        "channels": at_least(1),
        "depth": at_least(1),
        "neighbours": (lambda value: 1 <= value <= 256, "a whole number from 1 to 256"),
        "grids": GRIDS,
        "voxel_size": (lambda value: 1e-3 <= value <= 100, "a number from 0.001 to 100 (m)"),
        "drop_path": (lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    },
    MinkUNet: {"voxel_size": SIZES},
    VoxelNet: {"voxel_size": SIZES},
    Second: {"voxel_size": SIZES},
    ScanSampling: {
        "voxel_size": POSITIVE,
        "num_queries": at_least(3),
        "depth": POSITIVE,
        "max_points": at_least(1),
        "max_range": POSITIVE,
        "min_range": at_least(0),
        "max_height": POSITIVE,
    },
    SupportSearch: {"radius": POSITIVE, "limit": at_least(1)},
    PointAugmentation: {"voxel_size": POSITIVE, "max_points": at_least(1), "scale": FACTORS},
    ScanMixing: {"max_instances": at_least(0), "scale": FACTORS, "polar_probability": SHARE},
    PairAugmentation: {"image_size": PIXELS, "min_pairs": at_least(0), "min_depth": at_least(0)},
    MaskTransformerShape: {
        "layers": at_least(1),
        "heads": at_least(1),
        "width": at_least(1),
        "mlp_ratio": at_least(1),
        "drop_path": (lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    },
    ImageAugmentation: {
        "crop": PIXELS,
        "ratio": FACTORS,
        "base_height": at_least(1),
        "cat_max_ratio": SHARE,
        "flip": SHARE,
        "brightness": SHARE,
        "contrast": FACTORS,
        "saturation": FACTORS,
        "hue": (lambda value: 0 <= value <= 0.5, "a number from 0 to 0.5 (turns)"),
    },
    SlidingWindow: {
        "window": PIXELS,
        "stride": PIXELS,
        "height": at_least(1),
        "chunk": at_least(1),
    },
}
"""What the arguments of a class, and of the classes derived from it, may be."""

RECIPE_LIMITS: dict[str, Rule] = {
    "seed": SEED,
    "workers": at_least(0),
    "label_skip": at_least(1),
    "adapt_frames": at_least(1),
    "eval_batch_size": at_least(1),
}


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def check_limits(recipe: Section) -> None:
    """Refuse values of a recipe that make no sense.

    Args:
        recipe: its arguments have the right keys and types.

    Raises:
        ConfigError: names the key and what is allowed.
    """
    for section in sections(recipe):
        limits = dict(RECIPE_LIMITS) if not section.path else {}
        for cls, more in LIMITS.items():
            limits |= more if issubclass(section.cls, cls) else {}
        for name, (allowed, words) in limits.items():
            value = section.given.get(name)
            if value is not None and not allowed(value):
                raise ConfigError(
                    f"'{section.key(name)}' cannot be {value}",
                    field=section.key(name),
                    remedy=f"give {words}",
                )
