"""Pictures of what a segmentation says of an image."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lidarssl.datasets.base import Dataset
from lidarssl.errors import DataError
from lidarssl.experiments.labelled import IMAGE_FIELDS
from lidarssl.experiments.pictures import PictureBook, slug
from lidarssl.frame import FrameId
from lidarssl.report.image_segmentation import ConditionPrediction, ImagePrediction
from lidarssl.report.schema import Section
from lidarssl.tasks.image_segmentation import ImageSegmentation

MAX_WIDTH = 1024
"""Of a picture, in pixels; every n-th pixel of a wider image is shown."""

Figure = Callable[..., ImagePrediction]


def image_prediction(
    task: ImageSegmentation,
    dataset: Dataset,
    frame: FrameId,
    device: torch.device,
    figure: Figure = ImagePrediction,
) -> ImagePrediction:
    """Truth and prediction of the first camera of a frame.

    Args:
        figure: the class of the picture.

    Raises:
        DataError: the frame has no image with labels.
    """
    cameras = dataset.load(frame, IMAGE_FIELDS).cameras
    if not cameras or cameras[0].image is None or cameras[0].labels is None:
        raise DataError(f"{frame} has no image with labels", field="image_labels")
    image, labels = cameras[0].image, cameras[0].labels
    step = -(-image.shape[2] // MAX_WIDTH)
    predicted = predict_image(task, image, device)
    return figure(
        image[:, ::step, ::step].numpy(),
        predicted[::step, ::step].numpy(),
        labels[::step, ::step].numpy(),
        np.array(dataset.classes.colors),
        dataset.classes.names,
    )


@torch.no_grad()
def predict_image(task: ImageSegmentation, image: Tensor, device: torch.device) -> Tensor:
    """Class of every pixel, (H, W) int64 on the CPU.

    Args:
        image: (3, H, W) RGB, uint8 or float in [0, 1].
    """
    pixels = image.float() / 255 if image.dtype == torch.uint8 else image
    task.to(device).eval()
    return task.predict(pixels[None].to(device))[0].cpu()


def add_image_prediction(
    book: PictureBook,
    task: ImageSegmentation,
    frame: FrameId,
    name: str,
    device: torch.device,
) -> None:
    """A held-out image, its truth, prediction and mistakes."""
    book.add(
        f"prediction_{slug(name)}",
        image_prediction(task, book.dataset, frame, device),
        f"Prediction: {name}",
        f"Image {frame}. Mistakes at the borders of objects are normal; whole objects in red are "
        "not.",
        Section.PREDICTIONS,
    )


def add_condition(
    book: PictureBook,
    task: ImageSegmentation,
    frame: FrameId,
    condition: str,
    device: torch.device,
) -> None:
    """An image under one weather or light."""
    book.add(
        f"shift_{slug(condition)}",
        image_prediction(task, book.dataset, frame, device, ConditionPrediction),
        f"Under shift: {condition}",
        f"Image {frame}.",
        Section.PREDICTIONS,
    )
