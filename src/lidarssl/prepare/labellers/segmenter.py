"""Closed-set labels: a segmentation network that was trained on labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lidarssl.errors import ConfigError, unknown_name
from lidarssl.prepare.labellers.base import Labeller, as_unit_float, by_size
from lidarssl.prepare.labellers.pretrained import (
    input_size,
    load_model,
    load_tokenizer,
    read_model_type,
    read_preprocessing,
    source_name,
)

# Networks that answer with queries: a class and a mask each.
_QUERY_NETWORKS = ("mask2former", "maskformer", "oneformer")
# Deepest stride of their backbones: their authors pad images to a multiple of it.
_STRIDE = 32
# Queries whose masks are enlarged at once, which bounds the memory.
_CHUNK = 16


class UniversalSegmenter(Labeller):
    """Mask2Former, MaskFormer, OneFormer, or any semantic segmenter (SegFormer, UperNet, ...).

    One forward pass for an image, where ``GroundedSam`` needs two networks and a mask per box; but
    the classes are those the network was trained on. EoMT, which cuts images into windows, is not
    supported.

    Args:
        model: folder written by ``save_pretrained``, or hub id.
        classes: source class -> class of the labels, several may share one; the pixels of classes
            that are left out stay unpainted. None for the network's own.
        threshold: pixels whose best class has a lower score stay unpainted. The score is a
            probability, of networks with queries the sum over queries of class probability times
            mask probability, which is near 1 where one query is sure.
        size: what the network sees: the short side, or rows and columns, px. None for what the
            folder's preprocessor_config.json says, without one the images' own size. Folders often
            say a small square, whatever the network was trained on.

    Raises:
        ConfigError: the network cannot be read, a class does not exist, or the size is none.
        DataError: weights are missing, or a path does not exist.
    """

    values: Tensor

    def __init__(
        self,
        model: str | Path,
        classes: dict[str, str] | None = None,
        threshold: float = 0.0,
        size: int | tuple[int, int] | None = None,
    ) -> None:
        kind = read_model_type(model, "model")
        queries = kind in _QUERY_NETWORKS
        auto = "Universal" if queries else "Semantic"
        network = load_model(f"AutoModelFor{auto}Segmentation", model, "model")
        source = [network.config.id2label[index] for index in range(network.config.num_labels)]
        chosen = {name: name for name in source} if classes is None else dict(classes)
        preprocessing = read_preprocessing(model, "model")
        rule = preprocessing.size if size is None else size_rule(size)
        arguments = {
            "model": source_name(model),
            "classes": chosen,
            "threshold": threshold,
            "size": rule,
        }
        super().__init__(tuple(dict.fromkeys(chosen.values())), arguments)
        self.register_buffer("values", values_of(source, chosen), persistent=False)
        self.network, self.preprocessing, self.rule = network, preprocessing, rule
        self.queries, self.threshold = queries, threshold
        self.inputs = _task(network, model) if kind == "oneformer" else {}
        self.freeze()

    @torch.no_grad()
    def label(self, images: Sequence[Tensor]) -> list[Tensor]:
        labels: list[Tensor] = [torch.empty(0)] * len(images)
        for group in by_size(images):
            batch = torch.stack([as_unit_float(images[index], self.device) for index in group])
            for index, (score, best) in zip(group, self.predict(batch), strict=True):
                labels[index] = torch.where(score < self.threshold, 0, self.values[best]).cpu()
        return labels

    def predict(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of each of (I, 3, H, W) images: (H, W) score and index of the best source class."""
        height, width = images.shape[-2:]
        size = (height, width) if self.rule is None else input_size(height, width, self.rule)
        pixels = self.preprocessing(images, size)
        if not self.queries:
            logits = self.network(pixel_values=pixels).logits
            return [best_of_logits(one, height, width) for one in logits]
        rows, columns = size
        inputs = {
            name: row.to(pixels.device).expand(len(images), -1) for name, row in self.inputs.items()
        }
        mask = torch.ones_like(pixels[:, 0], dtype=torch.int64)
        padding = (0, -columns % _STRIDE, 0, -rows % _STRIDE)
        output = self.network(
            pixel_values=F.pad(pixels, padding), pixel_mask=F.pad(mask, padding), **inputs
        )
        answers = zip(output.class_queries_logits, output.masks_queries_logits, strict=True)
        found = []
        for class_logits, mask_logits in answers:
            scores = semantic_scores(class_logits, mask_logits, size)
            score, best = F.interpolate(scores[None], (height, width), mode="bilinear")[0].max(0)
            found.append((score, best))
        return found


def semantic_scores(class_logits: Tensor, mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores of classes from queries (Cheng et al., CVPR 2022).

    The sum over queries of class probability times mask probability, at the size of the network's
    input; the last class is "no object" and counts for nothing.

    Args:
        class_logits: (Q, C + 1).
        mask_logits: (Q, h, w), which also cover the padding to a multiple of 32 px.
        size: rows and columns of the input without padding.

    Returns:
        (C, *size).
    """
    weights = class_logits.softmax(-1)[:, :-1]
    padded = tuple(-(-side // _STRIDE) * _STRIDE for side in size)
    scores = weights.new_zeros(weights.shape[1], *size)
    for some, masks in zip(weights.split(_CHUNK), mask_logits.split(_CHUNK), strict=True):
        enlarged = F.interpolate(masks[None], padded, mode="bilinear")[0, :, : size[0], : size[1]]
        scores += torch.einsum("qc,qhw->chw", some, enlarged.sigmoid())
    return scores


def best_of_logits(logits: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """(height, width) probability and index of the best class of (C, h, w) logits."""
    enlarged = F.interpolate(logits[None], (height, width), mode="bilinear")[0]
    best, index = enlarged.max(0)
    return (best - enlarged.logsumexp(0)).exp(), index


def values_of(source: Sequence[str], classes: Mapping[str, str]) -> Tensor:
    """(len(source),) int64 label value of every source class, 0 where it is left out.

    Raises:
        ConfigError: ``classes`` names a class that is not a source class.
    """
    for name in classes:
        if name not in source:
            raise unknown_name("source class", name, source)
    targets = list(dict.fromkeys(classes.values()))
    return torch.tensor(
        [targets.index(classes[name]) + 1 if name in classes else 0 for name in source]
    )


def size_rule(size: int | Sequence[int]) -> dict[str, int]:
    """The rule of ``input_size`` for a short side, or for rows and columns."""
    sides = [size] if isinstance(size, int) else list(size)
    if len(sides) > 2 or not sides or min(sides) < 1:
        raise ConfigError(
            f"{size} is no size", field="size", remedy="a short side, or rows and columns, px"
        )
    return dict(
        zip(("height", "width") if len(sides) == 2 else ("shortest_edge",), sides, strict=True)
    )


def _task(network: Any, source: str | Path) -> dict[str, Tensor]:
    """What OneFormer has to be told: which of its tasks to do."""
    tokenizer = load_tokenizer(source, "model")
    length = network.config.task_seq_len
    encoded = tokenizer(
        "the task is semantic", padding="max_length", max_length=length, truncation=True
    )
    # The published code fills up with 0, whatever the tokenizer's own padding is.
    tokens = torch.tensor([encoded["input_ids"]]) * torch.tensor([encoded["attention_mask"]])
    return {"task_inputs": tokens}
