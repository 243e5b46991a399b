"""ResNet image encoders, plain or dilated, with the weights of the published teachers."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from lidarssl.errors import ConfigError, DataError, require
from lidarssl.images.folding import Folding, at_rest
from lidarssl.images.frozen import FreezableEncoder
from lidarssl.images.weights import OriginalLayout, build_encoder, find_network

# depth -> (block, blocks per stage, channels per stage)
_ARCHITECTURES: dict[int, tuple[str, list[int], list[int]]] = {
    18: ("basic", [2, 2, 2, 2], [64, 128, 256, 512]),
    34: ("basic", [3, 4, 6, 3], [64, 128, 256, 512]),
    50: ("bottleneck", [3, 4, 6, 3], [256, 512, 1024, 2048]),
    101: ("bottleneck", [3, 4, 23, 3], [256, 512, 1024, 2048]),
}
_TORCHVISION_ANCHOR = "conv1.weight"
# Classifier, MoCo and SwAV heads.
_TORCHVISION_HEADS = ("fc.", "projection_head.", "prototypes.")
_KINDS = {"conv": "convolution", "bn": "normalization"}


class ResNet(FreezableEncoder):
    """ResNet v1.5 (He et al. 2016; the stride of a bottleneck is in its 3x3 convolution).

    Args:
        depth: number of layers.
        weights: a file in the layout of torchvision, MoCo, SwAV, DINO, SLidR or transformers; a
            folder written by ``save_pretrained``; a hub id; None for random weights.
        dilated: replace the strides of stages 2 to 4 by dilation (stride 4 instead of 32), as
            SLidR does; bottleneck depths only.
        frozen: no parameter trains.

    Raises:
        ConfigError: the combination does not exist, or ``weights`` cannot be read.
        DataError: the weights file is unsafe, damaged or of another network.
    """

    def __init__(
        self,
        depth: Literal[18, 34, 50, 101] = 50,
        weights: str | Path | None = None,
        dilated: bool = False,
        frozen: bool = True,
    ) -> None:
        block, _, channels = _architecture(depth)
        if dilated and block != "bottleneck":
            raise ConfigError(
                f"a dilated ResNet-{depth} is not defined",
                field="dilated",
                remedy="use depth 50 or 101, or dilated: false",
            )
        super().__init__(out_channels=channels[-1], stride=4 if dilated else 32)
        self.model = _build(depth, weights)
        self._folding = Folding()
        if dilated:
            replace_stride_with_dilation(self.model)
        if frozen:
            self.freeze()

    def features(self, images: Tensor) -> Tensor:
        if self.frozen and at_rest(self.model, images):
            return self._folding.of(self.model)(images)
        return self.model(images).last_hidden_state


def _architecture(depth: int) -> tuple[str, list[int], list[int]]:
    if depth not in _ARCHITECTURES:
        raise ConfigError(
            f"no ResNet of depth {depth}",
            field="depth",
            remedy=f"one of {', '.join(map(str, _ARCHITECTURES))}",
        )
    return _ARCHITECTURES[depth]


def _build(depth: int, weights: str | Path | None) -> Any:
    transformers = require("transformers", "images")
    block, depths, channels = _architecture(depth)
    config = transformers.ResNetConfig(layer_type=block, depths=depths, hidden_sizes=channels)
    layout = OriginalLayout(
        partial(find_network, anchor=_TORCHVISION_ANCHOR, heads=_TORCHVISION_HEADS),
        shapes=lambda: _torchvision_shapes(transformers.ResNetModel(config)),
        to_transformers=lambda state: {transformers_key(key): state[key] for key in state},
    )
    return build_encoder(transformers.ResNetModel, config, weights, layout)


def _torchvision_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {torchvision_key(key): tuple(value.shape) for key, value in model.state_dict().items()}


def replace_stride_with_dilation(model: nn.Module) -> None:
    """Turn the strides of stages 2 to 4 into dilation: same weights, stride 4 instead of 32.

    The first block of a stage keeps the dilation of the stage before, the others double it
    (3x3 dilations 1 2 2 2, 2 4 4 4 4 4, 4 8 8 for 50 layers), as torchvision's option of the
    same name.

    Args:
        model: a transformers ``ResNetModel`` of bottlenecks, changed in place.
    """
    dilation = 1
    for stage in list(model.encoder.stages)[1:]:  # type: ignore[union-attr, arg-type]
        for index, block in enumerate(stage.layers):
            for convolution in block.modules():
                if isinstance(convolution, nn.Conv2d):
                    convolution.stride = (1, 1)
                    if convolution.kernel_size == (3, 3):
                        here = dilation if index == 0 else 2 * dilation
                        convolution.dilation = convolution.padding = (here, here)
        dilation *= 2


def transformers_key(key: str) -> str:
    """Key of transformers' ResNet for a key of torchvision's.

    Raises:
        DataError: the key is not of a torchvision ResNet encoder.
    """
    stem = re.fullmatch(r"(conv|bn)1\.(.+)", key)
    if stem:
        return f"embedder.embedder.{_KINDS[stem[1]]}.{stem[2]}"
    block = re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(.+)", key)
    if block is None:
        raise DataError(f"'{key}' is not a key of a torchvision ResNet", field=key)
    stage, index, layer, number, name = block.groups()
    if layer == "downsample.":
        place = "shortcut." + ("convolution", "normalization")[int(number)]
    else:
        place = f"layer.{int(number) - 1}.{_KINDS[layer]}"
    return f"encoder.stages.{int(stage) - 1}.layers.{index}.{place}.{name}"


def torchvision_key(key: str) -> str:
    """Key of torchvision's ResNet for a key of transformers'; inverse of ``transformers_key``.

    Raises:
        DataError: the key is not of a transformers ResNet encoder.
    """
    stem = re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(.+)", key)
    if stem:
        return f"{'conv1' if stem[1] == 'convolution' else 'bn1'}.{stem[2]}"
    block = re.fullmatch(
        r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d+)|shortcut)"
        r"\.(convolution|normalization)\.(.+)",
        key,
    )
    if block is None:
        raise DataError(f"'{key}' is not a key of a transformers ResNet", field=key)
    stage, index, place, kind, name = block.groups()
    if place is None:
        layer = f"downsample.{0 if kind == 'convolution' else 1}"
    else:
        layer = f"{'conv' if kind == 'convolution' else 'bn'}{int(place) + 1}"
    return f"layer{int(stage) + 1}.{index}.{layer}.{name}"
