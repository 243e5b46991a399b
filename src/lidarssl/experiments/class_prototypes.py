"""Points over an image by the class whose distribution is nearest, as OLIVINE compares them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lidarssl.errors import DataError
from lidarssl.experiments.pictures import point_features
from lidarssl.frame import Camera, Frame
from lidarssl.methods.olivine import Olivine
from lidarssl.prepare.previews import class_colours
from lidarssl.report.class_prototypes import ClassPrototypes
from lidarssl.report.figures import CameraLabels
from lidarssl.transforms.base import Compose, Transform
from lidarssl.transforms.images import image_of, image_size
from lidarssl.transforms.paired import MatchPixels, matches_of
from lidarssl.transforms.thinning import CropCylinder
from lidarssl.transforms.weak_labels import WeakLabels, read_weak_labels, weak_label_path


def olivine_classes(method: Olivine, frame: Frame) -> ClassPrototypes | CameraLabels | None:
    """What the classes of the weak labels are to a trained OLIVINE.

    Args:
        method: trained, on the CPU.
        frame: with images; the camera is the one with most matches.

    Returns:
        The weak labels alone where no class has a distribution yet, or the run has none; None
        without those either.
    """
    seen = _as_in_training(method, frame)
    matches = matches_of(seen)
    counts = torch.bincount(matches.image, minlength=len(seen.cameras))
    number = int(counts.argmax())
    camera, pairs = seen.cameras[number], matches[matches.image == number]
    labels, names = weak_labels_of(camera, method.weak_labels), method.weak_labels.classes
    pixels = None if labels is None else labels.numpy()
    image = image_of(camera).numpy()
    colors = np.round(255 * np.array(class_colours(len(names)))).astype(np.uint8)
    prototypes, shown = method.prototypes, ("unknown", *names)
    if not bool(prototypes.seen().any()):
        return None if pixels is None else CameraLabels(image, pixels, colors, shown)
    features = _semantic_features(method, seen)[pairs.point]
    nearest = nearest_classes(features, prototypes.directions(), prototypes.seen())
    return ClassPrototypes(
        image, pairs.row.numpy(), pairs.col.numpy(), nearest.numpy(),
        prototypes.kappas().numpy(), prototypes.weight.numpy(), colors, shown, pixels,
    )  # fmt: skip


def nearest_classes(features: Tensor, directions: Tensor, seen: Tensor) -> Tensor:
    """Class of the direction with the largest cosine to each feature.

    Args:
        features: (M, C) of any length; without a direction where they are 0 or not finite.
        directions: (K, C) unit vectors.
        seen: (K,) bool, directions that may be chosen.

    Returns:
        (M,) int64 in 1 .. K; 0 for a feature without a direction, or where none may be chosen.
    """
    if not bool(seen.any()):
        return torch.zeros(len(features), dtype=torch.int64)
    cosine = (features @ directions.T).masked_fill(~seen, -torch.inf)
    known = torch.isfinite(features).all(1) & features.any(1)
    return torch.where(known, 1 + cosine.argmax(1), 0)


def weak_labels_of(camera: Camera, weak_labels: WeakLabels) -> Tensor | None:
    """(H, W) uint8 class + 1 of every pixel, or None where the folder has no good file of it.

    Training reads the labels of its own frames; of others there may be none.
    """
    try:
        path = weak_label_path(weak_labels.folder, camera)
        return read_weak_labels(path, image_size(camera), weak_labels.settings)
    except DataError:
        return None


def _as_in_training(method: Olivine, frame: Frame) -> Frame:
    """The points that the student is given, matched with the images as they are."""
    view = method.augmentation
    steps: list[Transform] = [] if view.cylinder is None else [CropCylinder(*view.cylinder)]
    steps.append(MatchPixels(view.min_depth, allow_none=True))
    return Compose(steps)(replace(frame, matches=None), np.random.default_rng(0))


@torch.no_grad()
def _semantic_features(method: Olivine, frame: Frame) -> Tensor:
    """(N, embedding) of every point at the level of classes."""
    return method.embed(point_features(method.backbone, frame, torch.device("cpu")))[1]
