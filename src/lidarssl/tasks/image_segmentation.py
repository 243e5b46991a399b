"""Semantic segmentation of images: finetune an image encoder, or probe a frozen one.

Source: the finetuning with Segmenter (Strudel et al., ICCV 2021) on Cityscapes, sliding windows
at test time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lidarssl.distributed import all_reduce_sum
from lidarssl.errors import ConfigError, DataError, unknown_name
from lidarssl.frame import Batch, Field, StepOutput
from lidarssl.images.base import ImageEncoder
from lidarssl.images.mask_transformer import (
    LinearPixelHead,
    MaskTransformer,
    MaskTransformerShape,
)
from lidarssl.losses.pixel_cross_entropy import Average, pixel_cross_entropy
from lidarssl.metrics.segmentation import confusion
from lidarssl.tasks.image_augmentation import ImageAugmentation
from lidarssl.tasks.sliding_window import SlidingWindow
from lidarssl.transforms.base import Transform
from lidarssl.wording import counted

Head = Literal["segmenter", "linear"]


class ImageSegmentation(nn.Module):
    """A head on the map of an image encoder.

    Args:
        encoder: pretrained or not.
        num_classes: train classes, the ignored class 0 included.
        freeze: probe: the encoder stays in eval mode and gets no gradient.
        head: ``segmenter``, a mask transformer; ``linear``, one layer on every cell, the cheaper
            probe.
        mask_transformer: its shape; None = the published one.
        augmentation: of the training images; None = the published one.
        inference: how whole images are predicted; None = the published windows.
        average: of the loss, over the ``labelled`` pixels or over ``all`` of them, as published.

    Raises:
        ConfigError: the encoder is frozen and should train; the head does not exist or does not
            fit; there are fewer than two classes beside the ignored one.
    """

    needs = Field.IMAGES | Field.IMAGE_LABELS

    def __init__(
        self,
        encoder: ImageEncoder,
        num_classes: int,
        freeze: bool = False,
        head: Head = "segmenter",
        mask_transformer: MaskTransformerShape | None = None,
        augmentation: ImageAugmentation | None = None,
        inference: SlidingWindow | None = None,
        average: Average = "labelled",
    ) -> None:
        super().__init__()
        _check(encoder, num_classes, freeze)
        self.encoder, self.num_classes, self.freeze = encoder, num_classes, freeze
        self.average: Average = average
        self.augmentation = augmentation or ImageAugmentation()
        self.inference = inference or SlidingWindow()
        self.head = _head(head, encoder.out_channels, num_classes - 1, mask_transformer)
        if freeze:
            self.encoder.requires_grad_(False)
            self.train(self.training)

    def train(self, mode: bool = True) -> ImageSegmentation:
        super().train(mode)
        if self.freeze:
            self.encoder.eval()
        return self

    def transforms(self, training: bool) -> Sequence[Transform]:
        """Crops of one size in training; an evaluation is about whole images."""
        mean = torch.as_tensor(self.encoder.mean)
        return self.augmentation.transforms(mean) if training else []

    def logits(self, images: Tensor) -> Tensor:
        """Scores of every pixel, of images that are seen at once.

        Args:
            images: (I, 3, H, W) RGB in [0, 1].

        Returns:
            (I, num_classes - 1, H, W), the scores of the classes from 1 on.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            features = self.encoder(images)
        return enlarge(self.head(features), self.encoder.stride, images.shape[-2:])

    def training_step(self, batch: Batch, generator: torch.Generator) -> StepOutput:
        """Loss of a batch; the arguments are those of a method.

        Raises:
            DataError: the batch has no images or labels, or a label of no class.
        """
        images, labels = images_and_labels(batch)
        if int(labels.max()) >= self.num_classes:
            raise DataError(
                f"class {int(labels.max())} of {self.num_classes} "
                f"(frames {', '.join(map(str, batch.ids))})",
                field="labels",
                remedy="choose the dataset that this task was made for",
            )
        logits = self.logits(images)
        loss = pixel_cross_entropy(logits, labels, self.average)
        with torch.no_grad():
            right = all_reduce_sum(((logits.argmax(1) + 1 == labels) & (labels > 0)).sum())
            labelled = all_reduce_sum((labels > 0).sum())
        return StepOutput(loss, {"accuracy": right / labelled.clamp(min=1)})

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Class of every pixel, the ignored class 0 is never predicted.

        Args:
            images: (I, 3, H, W) RGB in [0, 1], any size.

        Returns:
            (I, H, W) int64.
        """
        return self.inference.logits(images, self.logits).argmax(1) + 1


def enlarge(scores: Tensor, stride: int, size: Sequence[int]) -> Tensor:
    """Scores of cells brought to the pixels of the images, bilinearly.

    Where the last cells reach over the border of the image, so do their scores, which are cut.

    Args:
        scores: (I, K, h, w), a cell is ``stride`` pixels wide.
        size: (H, W) of the images.

    Returns:
        (I, K, H, W).
    """
    rows, columns = scores.shape[-2:]
    full = F.interpolate(
        scores, (rows * stride, columns * stride), mode="bilinear", align_corners=False
    )
    return full[..., : size[0], : size[1]]


def images_and_labels(batch: Batch) -> tuple[Tensor, Tensor]:
    """Images (I, 3, H, W) and labels (I, H, W) of a batch.

    Raises:
        DataError: it lacks one of them.
    """
    if batch.images is None or batch.image_labels is None:
        raise DataError(
            f"frames {', '.join(map(str, batch.ids))} have no images with labels",
            field="images" if batch.images is None else "labels",
            remedy="choose a dataset and split whose images have labels",
        )
    return batch.images, batch.image_labels


def evaluate_images(
    task: ImageSegmentation,
    batches: Iterable[Batch],
    device: torch.device,
    total: int | None = None,
    progress: bool = True,
) -> Tensor:
    """Confusion matrix of every frame, over the pixels of all of its images.

    Args:
        task: see there.
        batches: of whole images.
        device: where it runs.
        total: number of batches, for the bar.
        progress: show a bar.

    Returns:
        (F, C, C) int64, frames in the order of the batches, rows ground truth, columns prediction.

    Raises:
        DataError: there is no frame, or one without images and labels.
    """
    task.to(device).eval()
    matrices: list[Tensor] = []
    with torch.inference_mode():
        for batch in tqdm(batches, "evaluate", total, disable=not progress, leave=False):
            images, labels = images_and_labels(batch)
            assert batch.frame_of_image is not None
            predicted = task.predict(images.to(device)).cpu()
            labels, frame_of_image = labels.cpu(), batch.frame_of_image.cpu()
            for frame in range(len(batch.ids)):
                mine = frame_of_image == frame
                matrices.append(confusion(predicted[mine], labels[mine], task.num_classes))
    if not matrices:
        raise DataError("there is no frame to evaluate", remedy="choose a split that has frames")
    return torch.stack(matrices)


def _head(
    kind: str, channels: int, num_classes: int, shape: MaskTransformerShape | None
) -> nn.Module:
    if kind == "segmenter":
        return MaskTransformer(channels, num_classes, shape)
    if kind != "linear":
        raise unknown_name("task.head", kind, ("segmenter", "linear"))
    if shape is not None:
        raise ConfigError(
            "a linear head has no mask transformer",
            field="task.mask_transformer",
            remedy="leave it out, or set task.head to segmenter",
        )
    return LinearPixelHead(channels, num_classes)


def _check(encoder: ImageEncoder, num_classes: int, freeze: bool) -> None:
    if num_classes < 3:
        raise ConfigError(
            f"{counted(num_classes, 'class', 'classes')}, the ignored one included: there is "
            "nothing to tell apart",
            field="task.num_classes",
            remedy="use a dataset with two or more classes beside the ignored one",
        )
    if encoder.frozen and not freeze:
        raise ConfigError(
            "the encoder is frozen, and the task would train it",
            field="task.encoder.frozen",
            remedy="set task.encoder.frozen to false, or task.freeze to true for a probe",
        )
