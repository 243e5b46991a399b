"""Masks of boxes by the Segment Anything family: SAM, SAM-HQ and SAM 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl.errors import ConfigError
from lidarssl.prepare.labellers.pretrained import (
    input_size,
    load_model,
    read_model_type,
    read_preprocessing,
)

# A video model holds the image model under the same names.
_CLASSES = {
    "sam": "SamModel",
    "sam_hq": "SamHQModel",
    "sam2": "Sam2Model",
    "sam2_video": "Sam2Model",
}


class BoxMasks(nn.Module):
    """One mask for each box of an image.

    SAM and SAM-HQ see the image with its long side at 1024 px, then padded to a square; SAM 2 sees
    it stretched to a square.

    Attributes:
        side: px of the square.
        preprocessing: statistics that images are normalised with.

    Args:
        source: folder of ``save_pretrained`` or hub id.
        threshold: of the mask logit, above which a pixel belongs to the object.
        chunk: boxes at once, which bounds the memory.

    Raises:
        ConfigError: it cannot be read, or is another kind of network.
        DataError: weights are missing.
    """

    def __init__(self, source: str | Path, threshold: float = 0.0, chunk: int = 32) -> None:
        super().__init__()
        kind = read_model_type(source, "segmenter")
        if kind not in _CLASSES:
            raise ConfigError(
                f"'{source}' is a network of type '{kind}', not one of {', '.join(_CLASSES)}",
                field="segmenter",
                remedy="e.g. facebook/sam-vit-base or facebook/sam2.1-hiera-tiny",
            )
        if chunk < 1:
            raise ConfigError(f"chunks of {chunk} boxes", field="chunk", remedy="try 32")
        self.model = load_model(_CLASSES[kind], source, "segmenter")
        self.preprocessing = read_preprocessing(source, "segmenter")
        self.kind, self.threshold, self.chunk = kind, threshold, chunk
        config = self.model.config
        part = config.prompt_encoder_config if self.stretches else config.vision_config
        self.side = int(part.image_size)

    @property
    def stretches(self) -> bool:
        """Whether images lose their aspect instead of being padded."""
        return self.kind.startswith("sam2")

    def forward(self, image: Tensor, boxes: Tensor) -> Iterator[Tensor]:
        """Masks, a few boxes at a time.

        Args:
            image: (3, H, W) RGB in [0, 1].
            boxes: (N, 4) left, top, right, bottom, px.

        Yields:
            (n, H, W) bool for the next n boxes.
        """
        if not len(boxes):
            return
        height, width = image.shape[-2:]
        rows, columns = self._inner_size(height, width)
        seen = self.preprocessing(image[None], (rows, columns))
        embedded = self._embed(F.pad(seen, (0, self.side - columns, 0, self.side - rows)))
        scale = boxes.new_tensor([columns / width, rows / height]).repeat(2)
        for some in (boxes * scale).split(self.chunk):
            output = self.model(input_boxes=some[None], multimask_output=False, **embedded)
            logits = output.pred_masks[0, :, :1]
            yield self.at_image_size(logits, height, width)[:, 0] > self.threshold

    def at_image_size(self, logits: Tensor, height: int, width: int) -> Tensor:
        """(n, 1, h, w) mask logits of the square -> (n, 1, height, width) of the image."""
        if not self.stretches:
            rows, columns = self._inner_size(height, width)
            square = F.interpolate(logits, (self.side, self.side), mode="bilinear")
            logits = square[..., :rows, :columns]
        return F.interpolate(logits, (height, width), mode="bilinear")

    def _inner_size(self, height: int, width: int) -> tuple[int, int]:
        """Of the image inside the square."""
        if self.stretches:
            return self.side, self.side
        return input_size(height, width, {"longest_edge": self.side})

    def _embed(self, pixels: Tensor) -> dict[str, Any]:
        """The arguments by which the model is told of an image, once for all of its boxes."""
        if self.stretches:
            return {"image_embeddings": self.model.get_image_embeddings(pixels)}
        seen = self.model.vision_encoder(pixels)
        embedded = {"image_embeddings": seen.last_hidden_state}
        if self.kind == "sam_hq":
            embedded["intermediate_embeddings"] = seen.intermediate_embeddings
        return embedded
