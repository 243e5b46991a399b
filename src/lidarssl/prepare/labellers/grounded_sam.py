"""Open-vocabulary labels: boxes that a caption finds, each filled by its mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lidarssl.errors import ConfigError
from lidarssl.prepare.labellers.base import Labeller, as_unit_float, by_size
from lidarssl.prepare.labellers.boxes import corners_of, nms
from lidarssl.prepare.labellers.captions import build_caption, prompts_by_class, token_labels
from lidarssl.prepare.labellers.pretrained import (
    input_size,
    load_model,
    load_tokenizer,
    read_model_type,
    read_preprocessing,
    source_name,
)
from lidarssl.prepare.labellers.segment_anything import BoxMasks

PaintOrder = Literal["by_score", "by_box_order"]
_DETECTORS = ("grounding-dino", "mm-grounding-dino")


@dataclass(frozen=True)
class Detections:
    """What was found in an image, in the detector's order.

    Attributes:
        boxes: (N, 4) left, top, right, bottom, px.
        scores: (N,) highest probability of a token of the class.
        labels: (N,) int64 label values, from 1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class GroundedSam(Labeller):
    """GroundingDINO finds boxes of named classes, SAM, SAM-HQ or SAM 2 fills them.

    The labels of OLIVINE's first release (Zhang and Hou, NeurIPS 2024) were made this way, with
    GroundingDINO SwinT-OGC and SAM-HQ ViT-H. ``nms=None, paint="by_box_order"`` paints as the
    published script does. The class of a box is that of its best token, found by its place in the
    caption; the script compares the text of the phrase and stops at one that it does not know.
    Pixels of no mask are unpainted here, and class "background" there.

    Args:
        detector: folder written by ``save_pretrained``, or hub id, of a GroundingDINO.
        segmenter: the same of a SAM, SAM-HQ or SAM 2.
        prompts: what to look for; a mapping gives each class one prompt or several, a list names
            the classes by their prompts; None for the 13 classes of the published labels.
        box_threshold: a box needs a token of the caption with a higher probability.
        text_threshold: its class needs a token with a higher probability.
        nms: IoU above which the worse of two boxes of one class goes. At 0.7 repeats of one object
            go, which only cost time, and neighbours in a row of cars stay. None keeps all boxes.
        paint: ``by_score``, the best box is painted last and wins where masks overlap;
            ``by_box_order``, the last box in the detector's order wins.
        mask_threshold: of the mask logit.
        short_side, long_side: px that the detector sees the image at: the short side, unless the
            long one came to more.
        chunk: boxes that are filled at once.

    Raises:
        ConfigError: a network cannot be read or is of another kind, or a prompt cannot be used.
        DataError: weights are missing, or a path does not exist.
    """

    def __init__(
        self,
        detector: str | Path,
        segmenter: str | Path,
        prompts: list[str] | dict[str, str | list[str]] | None = None,
        box_threshold: float = 0.25,
        text_threshold: float = 0.25,
        nms: float | None = 0.7,
        paint: PaintOrder = "by_score",
        mask_threshold: float = 0.0,
        short_side: int = 800,
        long_side: int = 1333,
        chunk: int = 32,
    ) -> None:
        asked = prompts_by_class(prompts)
        _check(paint, short_side, long_side)
        _check_shares(box_threshold=box_threshold, text_threshold=text_threshold, nms=nms)
        arguments: dict[str, Any] = {
            "detector": source_name(detector),
            "segmenter": source_name(segmenter),
            "prompts": asked,
            "box_threshold": box_threshold,
            "text_threshold": text_threshold,
            "nms": nms,
            "paint": paint,
            "mask_threshold": mask_threshold,
            "short_side": short_side,
            "long_side": long_side,
        }
        super().__init__(tuple(asked), arguments)
        self.caption = build_caption(asked)
        self.box_threshold, self.text_threshold = box_threshold, text_threshold
        self.nms, self.paint = nms, paint
        self.size = {"shortest_edge": short_side, "longest_edge": long_side}
        self.detector = _load_detector(detector)
        self.preprocessing = read_preprocessing(detector, "detector")
        self.text, self.token_labels = self._tokens(load_tokenizer(detector, "detector"))
        self.masks = BoxMasks(segmenter, mask_threshold, chunk)
        self.freeze()

    @torch.no_grad()
    def label(self, images: Sequence[Tensor]) -> list[Tensor]:
        labels: list[Tensor] = [torch.empty(0)] * len(images)
        for group in by_size(images):
            batch = torch.stack([as_unit_float(images[index], self.device) for index in group])
            for index, image, found in zip(group, batch, self.detect(batch), strict=True):
                labels[index] = self.fill(image, found)
        return labels

    def detect(self, images: Tensor) -> list[Detections]:
        """What is in each of (I, 3, H, W) images, RGB in [0, 1]."""
        height, width = images.shape[-2:]
        pixels = self.preprocessing(images, input_size(height, width, self.size))
        text = {
            name: row.to(pixels.device).expand(len(images), -1) for name, row in self.text.items()
        }
        output = self.detector(pixel_values=pixels, **text)
        scale = pixels.new_tensor([width, height, width, height])
        return [
            select_boxes(
                logits.sigmoid(), corners_of(boxes) * scale, self.token_labels.to(pixels.device),
                self.box_threshold, self.text_threshold, self.nms,
            )
            for logits, boxes in zip(output.logits, output.pred_boxes, strict=True)
        ]  # fmt: skip

    def fill(self, image: Tensor, found: Detections) -> Tensor:
        """(H, W) labels of an image, mask by mask in painting order."""
        order = painting_order(found.scores, self.paint)
        chunks = self.masks(image, found.boxes[order])
        return painted(chunks, found.labels[order], *image.shape[-2:]).cpu()

    def _tokens(self, tokenizer: Any) -> tuple[dict[str, Tensor], Tensor]:
        """The caption as the detector reads it, and the class of every token."""
        encoded = tokenizer(self.caption.text, return_offsets_mapping=True)
        most = self.detector.config.max_text_len
        if len(encoded["input_ids"]) > most:
            raise ConfigError(
                f"the prompts make {len(encoded['input_ids'])} tokens, the detector reads {most}",
                field="prompts",
                remedy="leave prompts out, or label in two passes",
            )
        names = ("input_ids", "token_type_ids", "attention_mask")
        text = {name: torch.tensor([encoded[name]]) for name in names if name in encoded}
        return text, token_labels(encoded["offset_mapping"], self.caption)


def select_boxes(
    probabilities: Tensor,
    boxes: Tensor,
    token_labels: Tensor,
    box_threshold: float,
    text_threshold: float,
    nms_threshold: float | None,
) -> Detections:
    """The boxes that show a class.

    Args:
        probabilities: (Q, L) that box q shows token l; L may exceed the tokens there are.
        boxes: (Q, 4) left, top, right, bottom.
        token_labels: (T,) int64 label value of each token, 0 = of no class.
        box_threshold: what the best token, whichever, has to exceed.
        text_threshold: what the best token of the class has to exceed.
        nms_threshold: IoU of boxes of one class; None = no suppression.
    """
    of_class = torch.where(token_labels > 0, probabilities[:, : len(token_labels)], -1.0)
    scores, best = of_class.max(1)
    kept = (probabilities.amax(1) > box_threshold) & (scores > text_threshold)
    found = Detections(boxes[kept], scores[kept], token_labels[best[kept]])
    if nms_threshold is None:
        return found
    index = nms(found.boxes, found.scores, nms_threshold, found.labels).sort().values
    return Detections(found.boxes[index], found.scores[index], found.labels[index])


def painting_order(scores: Tensor, paint: PaintOrder) -> Tensor:
    """Indices in the order of painting: what comes later covers what came before."""
    if paint == "by_box_order":
        return torch.arange(len(scores), device=scores.device)
    return torch.argsort(scores, stable=True)


def painted(chunks: Iterable[Tensor], values: Tensor, height: int, width: int) -> Tensor:
    """(height, width) int64 labels: 0, covered by one mask after the other.

    Args:
        chunks: together N masks, each chunk (n, height, width) bool.
        values: (N,) int64 label value of every mask.
    """
    labels = values.new_zeros(height, width)
    value = iter(values.tolist())
    for masks in chunks:
        for mask in masks:
            labels[mask] = next(value)
    return labels


def _check(paint: str, short_side: int, long_side: int) -> None:
    if paint not in ("by_score", "by_box_order"):
        raise ConfigError(f"'{paint}' is neither 'by_score' nor 'by_box_order'", field="paint")
    if not 1 <= short_side <= long_side:
        raise ConfigError(
            f"a short side of {short_side} px and a long side of {long_side} px",
            field="short_side",
            remedy="try 800 and 1333",
        )


def _check_shares(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(
                f"{value} is no number from 0 to 1", field=name, remedy="try 0.25 (nms: 0.7)"
            )


def _load_detector(source: str | Path) -> Any:
    kind = read_model_type(source, "detector")
    if kind not in _DETECTORS:
        raise ConfigError(
            f"'{source}' is a network of type '{kind}', not one of {', '.join(_DETECTORS)}",
            field="detector",
            remedy="e.g. IDEA-Research/grounding-dino-tiny",
        )
    return load_model("AutoModelForZeroShotObjectDetection", source, "detector")
