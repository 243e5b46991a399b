"""A ResNet at rest, with every batch norm folded into the convolution before it.

In eval mode a batch norm is one multiplication and one addition per channel, which the weights of
the convolution can take over: the same map up to rounding, without the passes over memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Pixels of the images that a CPU works on together: more would only need more memory.
_PIXELS_AT_ONCE = 2**17


@dataclass(frozen=True)
class FoldedConvolution:
    """A convolution and the batch norm after it: (I, C, h, w) -> (I, D, h', w')."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @classmethod
    def of(cls, layer: Any) -> FoldedConvolution:
        """From a layer of transformers' ResNet, whose activation is left out."""
        convolution, norm = layer.convolution, layer.normalization
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight = convolution.weight * scale.view(-1, 1, 1, 1)
        return cls(
            weight.contiguous(memory_format=torch.channels_last),
            norm.bias - norm.running_mean * scale,
            convolution.stride,
            convolution.padding,
            convolution.dilation,
        )

    def __call__(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.weight, self.bias, self.stride, self.padding, self.dilation)


@dataclass(frozen=True)
class FoldedBlock:
    """A basic or bottleneck block; without a shortcut its input is added as it is."""

    layers: Sequence[FoldedConvolution]
    shortcut: FoldedConvolution | None

    def __call__(self, images: Tensor) -> Tensor:
        *first, last = self.layers
        inside = images
        for layer in first:
            inside = layer(inside).relu_()
        residual = images if self.shortcut is None else self.shortcut(images)
        return last(inside).add_(residual).relu_()


@dataclass(frozen=True)
class FoldedResNet:
    """The maps of a ``ResNetModel`` of transformers in eval mode, for no gradient."""

    stem: FoldedConvolution
    pool: nn.Module
    blocks: Sequence[FoldedBlock]

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any) -> FoldedResNet:
        blocks = [block for stage in model.encoder.stages for block in stage.layers]
        return cls(
            FoldedConvolution.of(model.embedder.embedder),
            model.embedder.pooler,
            [
                FoldedBlock(
                    [FoldedConvolution.of(layer) for layer in block.layer],
                    None
                    if isinstance(block.shortcut, nn.Identity)
                    else FoldedConvolution.of(block.shortcut),
                )
                for block in blocks
            ],
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Last feature map, (I, 3, H, W) normalised images -> (I, C, h, w), channels last."""
        images = images.contiguous(memory_format=torch.channels_last)
        height, width = images.shape[-2:]
        together = max(1, _PIXELS_AT_ONCE // max(1, height * width))
        if images.device.type != "cpu" or len(images) <= together:
            return self._maps(images)
        first = self._maps(images[:together])
        # Joined in place: all maps and then their concatenation would be twice the memory.
        joined = torch.empty(
            (len(images), *first.shape[1:]),
            dtype=first.dtype,
            device=first.device,
            memory_format=torch.channels_last,
        )
        joined[:together] = first
        for start in range(together, len(images), together):
            some = slice(start, start + together)
            joined[some] = self._maps(images[some])
        return joined

    def _maps(self, images: Tensor) -> Tensor:
        maps = self.pool(self.stem(images).relu_())
        for block in self.blocks:
            maps = block(maps)
        return maps


class Folding:
    """The folded form of a model, made again when a tensor of the model has changed.

    A change is another tensor, dtype or memory, or a write that PyTorch counts; it counts none
    that goes through ``tensor.data``. Copies and pickles of a model carry nothing of it.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[Tensor, int]] = []
        self._folded: FoldedResNet | None = None

    def of(self, model: nn.Module) -> FoldedResNet:
        tensors = [*model.parameters(), *model.buffers()]
        if any(tensor.is_inference() for tensor in tensors):  # their writes are not counted
            return FoldedResNet.of(model)
        if self._folded is None or not self._up_to_date(tensors):
            self._folded = FoldedResNet.of(model)
            # An alias keeps the memory from being given to another tensor.
            self._seen = [(tensor.detach(), tensor._version) for tensor in tensors]
        return self._folded

    def _up_to_date(self, tensors: Sequence[Tensor]) -> bool:
        return len(tensors) == len(self._seen) and all(
            now._version == version
            and now.data_ptr() == then.data_ptr()
            and now.dtype == then.dtype
            and now.device == then.device
            for now, (then, version) in zip(tensors, self._seen, strict=True)
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Folding:
        return Folding()

    def __reduce__(self) -> tuple[type[Folding], tuple[()]]:
        return Folding, ()


def at_rest(model: nn.Module, images: Tensor) -> bool:
    """Whether only the output of a model matters: no gradient, no statistics, no hooks."""
    if torch.compiler.is_compiling():
        return False
    recorded: Iterable[Tensor] = (images, *model.parameters())
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in recorded):
        return False
    return not any(
        module.training or module._forward_hooks or module._forward_pre_hooks
        for module in model.modules()
    )
