"""Every limit names arguments that exist, accepts the defaults and refuses something."""

from __future__ import annotations

from typing import Any

import pytest

from lidarssl.backbones.waffleiron import WaffleIron
from lidarssl.errors import ConfigError
from lidarssl.images.mask_transformer import MaskTransformerShape
from lidarssl.methods.also import ScanSampling
from lidarssl.methods.nclr import Nclr
from lidarssl.methods.nclr_settings import CalibrationView, PoseTerm, TermWeights, TokenSampling
from lidarssl.methods.scalr import Scalr, ViewAugmentation
from lidarssl.recipes.keys import REQUIRED, Section, arguments
from lidarssl.recipes.kinds import KINDS
from lidarssl.recipes.limits import LIMITS, RECIPE_LIMITS, check_limits
from lidarssl.tasks.augmentation import PointAugmentation
from lidarssl.tasks.image_augmentation import ImageAugmentation
from lidarssl.tasks.probe import LinearProbe
from lidarssl.tasks.sliding_window import SlidingWindow
from lidarssl.training.optimizer import Optimizer
from lidarssl.training.settings import Training
from lidarssl.transforms.displacement import Displacement
from lidarssl.transforms.mixing import ScanMixing
from lidarssl.transforms.occupancy import SupportSearch

ALL = [(cls, name) for cls, limits in LIMITS.items() for name in limits]


@pytest.mark.parametrize(("cls", "name"), ALL)
def test_defaults_are_allowed(cls: type, name: str) -> None:
    argument = arguments(cls)[name]
    allowed, _ = LIMITS[cls][name]
    assert argument.default in (REQUIRED, None) or allowed(argument.default)


def test_limits_of_recipes_are_those_of_their_arguments() -> None:
    known = {name for cls in KINDS.values() for name in arguments(cls)}
    assert set(RECIPE_LIMITS) <= known


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (Training, "batch_size", 0), (Training, "steps", 0), (Training, "epochs", -1),
        (Training, "seed", -1), (Training, "workers", -1), (Training, "log_every", 0),
        (Training, "devices", 0), (Training, "precision", "8"), (Optimizer, "lr", 0.0),
        (Training, "precision", "64-true"), (Training, "precision", "bf16-true"),
        (ScanSampling, "num_queries", 2), (ScanSampling, "voxel_size", 0.0),
        (PointAugmentation, "voxel_size", -0.1), (PointAugmentation, "max_points", 0),
        (PointAugmentation, "scale", (0.0, 1.1)), (PointAugmentation, "scale", (1.1, 0.9)),
        (Optimizer, "layer_decay", 0.0), (Optimizer, "layer_decay", 1.01),
        (ScanMixing, "scale", (1.1, 0.9)), (ScanMixing, "polar_probability", 1.5),
        (ScanMixing, "max_instances", -1),
        (SupportSearch, "radius", 0.0), (Optimizer, "lr", float("inf")),
        (Optimizer, "momentum", 1.5), (LinearProbe, "rows", 0),
        (Scalr, "hidden", 0), (ViewAugmentation, "image_size", (0, 448)),
        (ViewAugmentation, "max_points", 0), (ViewAugmentation, "flip", 1.5),
        (ViewAugmentation, "scale", (0.0, 1.1)), (ViewAugmentation, "min_depth", -1.0),
        (Nclr, "temperature", 0.0), (Nclr, "num_matches", 0), (CalibrationView, "stride", 0),
        (CalibrationView, "image_size", (0, 416)), (CalibrationView, "mirror_probability", -0.5),
        (CalibrationView, "min_depth", -1.0), (Displacement, "spread", -1.0),
        (Displacement, "max_angle", 181.0), (TokenSampling, "number", 0), (PoseTerm, "start", 1.1),
        (PoseTerm, "keypoints", 5), (PoseTerm, "temperature", 0.0), (PoseTerm, "enough", 1),
        (PoseTerm, "thresholds", ()), (PoseTerm, "thresholds", (0.9, 1.5)),
        (TermWeights, "pose", -1.0),
        (MaskTransformerShape, "layers", 0), (MaskTransformerShape, "drop_path", 1.0),
        (ImageAugmentation, "crop", (0, 224)), (ImageAugmentation, "ratio", (2.0, 0.5)),
        (ImageAugmentation, "cat_max_ratio", 1.5), (ImageAugmentation, "base_height", 0),
        (ImageAugmentation, "hue", 0.6), (SlidingWindow, "stride", (168, 0)),
        (SlidingWindow, "height", 0),
        (WaffleIron, "depth", 0), (WaffleIron, "voxel_size", 0.0), (WaffleIron, "drop_path", 1.0),
    ],
)  # fmt: skip
def test_senseless_values_are_refused(cls: type, name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        check_limits(Section("here", cls, cls, {name: value}))
    assert caught.value.field == f"here.{name}"
    assert caught.value.remedy


def test_null_has_no_limit() -> None:
    check_limits(Section("here", Training, Training, {"steps": None}))
