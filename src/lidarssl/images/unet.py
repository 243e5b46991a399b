"""A small convolutional encoder that trains in minutes on a CPU: the demo's teacher."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl.errors import ConfigError, DataError
from lidarssl.images.frozen import FreezableEncoder
from lidarssl.images.weights import check_shapes
from lidarssl.replacing import replacing
from lidarssl.weights import read_safetensors

_CHANNELS = (24, 48, 96, 128)  # at strides 2, 4, 8, 16
_DILATIONS = ((1,), (1, 1), (2, 2), (2, 4))  # of the convolutions after the strided one
_HEADER = "lidarssl.SmallUNet"  # entry of the safetensors header that holds the architecture
_REMEDY = (
    "`lidarssl demo` makes runs/demo/teacher.safetensors, `lidarssl prepare teacher` any other; "
    "`--method.image_encoder.weights null` pretrains with a random one"
)


@dataclass(frozen=True)
class SmallUNetShape:
    """What the header of a file says of the network in it.

    Attributes:
        out_channels, num_classes: see ``SmallUNet``.
        classes: names of the classes, the ignored one first; empty = not told.
    """

    out_channels: int
    num_classes: int | None
    classes: tuple[str, ...] = ()


class SmallUNet(FreezableEncoder):
    """U-Net of plain 3x3 convolutions, 0.95 million parameters, features at stride 2.

    The features are what comes before the classifier, standardised per channel once
    ``fit_feature_statistics`` has seen images (identity before).

    Args:
        out_channels: width of the features.
        num_classes: classes of the pixel classifier; None for an encoder without one.
        weights: file written by ``save``, of the same ``out_channels`` and, unless
            ``num_classes`` is None, the same classes; None for random weights.
        frozen: no parameter trains.

    Attributes:
        classes: names of the classes, the ignored one first, that ``save`` writes and ``weights``
            may tell; empty = not known.

    Raises:
        ConfigError: the file holds another architecture.
        DataError: the file is damaged or was not written by ``save``.
    """

    classes: tuple[str, ...] = ()
    feature_mean: Tensor
    feature_std: Tensor

    def __init__(
        self,
        out_channels: int = 64,
        num_classes: int | None = None,
        weights: str | Path | None = None,
        frozen: bool = True,
    ) -> None:
        super().__init__(out_channels, stride=2, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        self.num_classes = num_classes
        self.down = nn.ModuleList(
            _level(before, after, dilations)
            for before, after, dilations in zip(
                (3, *_CHANNELS), _CHANNELS, _DILATIONS, strict=False
            )
        )
        self.up = nn.ModuleList(
            _convolution(coarse + fine, fine) for fine, coarse in pairwise(_CHANNELS)
        )
        self.head = nn.Sequential(
            nn.Conv2d(_CHANNELS[0], out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, groups=out_channels, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.Conv2d(out_channels, out_channels, 1),
        )
        self.classifier = None if num_classes is None else nn.Conv2d(out_channels, num_classes, 1)
        self.register_buffer("feature_mean", torch.zeros(out_channels, 1, 1))
        self.register_buffer("feature_std", torch.ones(out_channels, 1, 1))
        if weights is not None:
            self._load(Path(weights))
        if frozen:
            self.freeze()

    def features(self, images: Tensor) -> Tensor:
        return (self._raw_features(images) - self.feature_mean) / self.feature_std

    def logits(self, images: Tensor) -> Tensor:
        """Class scores, to train the encoder with.

        Args:
            images: (I, 3, H, W) RGB in [0, 1].

        Returns:
            (I, num_classes, H / 2, W / 2), sizes rounded up.

        Raises:
            ConfigError: the encoder has no classifier.
        """
        if self.classifier is None:
            raise ConfigError("this encoder has no classifier", remedy="give it num_classes")
        scores: Tensor = self.classifier(
            F.relu(self._raw_features((images - self.mean) / self.std))
        )
        return scores

    @torch.inference_mode()
    def labels(self, images: Tensor, threshold: float = 0.0) -> Tensor:
        """Class of every pixel, in eval mode; the ignored class 0 is never predicted.

        Args:
            images: (I, 3, H, W) RGB in [0, 1].
            threshold: pixels whose class is less probable than that, among the others, are 0.

        Returns:
            (I, H, W) int64.

        Raises:
            ConfigError: the encoder has no classifier.
        """
        logits = self.logits(images)[:, 1:]
        full = F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
        best, label = full.max(1)
        if threshold > 0:
            sure = torch.exp(best - full.logsumexp(1)) >= threshold
            return torch.where(sure, label + 1, 0)
        return label + 1

    @torch.no_grad()
    def fit_feature_statistics(self, batches: Iterable[Tensor]) -> None:
        """Standardise every feature channel over some images, in eval mode.

        Raw features share a common direction, which a student would learn first and which
        says nothing about the scene.

        Args:
            batches: of images, (I, 3, H, W) RGB in [0, 1]; at least one.

        Raises:
            DataError: there is no image.
        """
        was_training = self.training
        self.eval()
        total = torch.zeros(self.out_channels, dtype=torch.float64, device=self.mean.device)
        squares, cells = total.clone(), 0
        for images in batches:
            raw = self._raw_features((images - self.mean) / self.std).double()
            total += raw.sum((0, 2, 3))
            squares += raw.square().sum((0, 2, 3))
            cells += raw.numel() // self.out_channels
        self.train(was_training)
        if cells == 0:
            raise DataError("no image to take feature statistics of")
        mean = total / cells
        deviation = (squares / cells - mean.square()).clamp_(min=0).sqrt_()
        deviation = torch.where(deviation > 1e-6, deviation, 1.0)  # a dead channel stays at 0
        self.feature_mean.copy_(mean.view(-1, 1, 1))
        self.feature_std.copy_(deviation.view(-1, 1, 1))

    def save(self, path: str | Path) -> None:
        """Write the weights as safetensors, with the architecture in the header."""
        from safetensors.torch import save_file

        shape = SmallUNetShape(self.out_channels, self.num_classes, self.classes)
        header = json.dumps(asdict(shape))
        # Files hold tensors in their plain layout, whatever memory format they train in.
        state = {key: value.detach().contiguous() for key, value in self.state_dict().items()}
        with replacing(Path(path)) as partial:
            save_file(state, partial, metadata={_HEADER: header})

    def _raw_features(self, images: Tensor) -> Tensor:
        maps = []
        for level in self.down:
            images = level(images)
            maps.append(images)
        coarse = maps[-1]
        for fine, merge in zip(reversed(maps[:-1]), reversed(list(self.up)), strict=True):
            enlarged = F.interpolate(
                coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False
            )
            coarse = merge(torch.cat([enlarged, fine], dim=1))
        features: Tensor = self.head(coarse)
        return features

    def _load(self, path: Path) -> None:
        if not path.exists():
            raise DataError("no such weights file", path=path, field="weights", remedy=_REMEDY)
        state, metadata = read_safetensors(path)
        header = _parse_header(metadata, path)
        asked = SmallUNetShape(self.out_channels, self.num_classes)
        if self.num_classes is None:
            state = {k: v for k, v in state.items() if not k.startswith("classifier.")}
            header = replace(header, num_classes=None, classes=())
        self.classes = header.classes
        if replace(header, classes=()) != asked:
            raise ConfigError(
                f"{path}: holds {replace(header, classes=())}, but {asked} was asked for",
                remedy="ask for the numbers of the file",
            )
        expected = {key: tuple(value.shape) for key, value in self.state_dict().items()}
        check_shapes(state, expected, path)
        self.load_state_dict(state)


def _level(before: int, after: int, dilations: Sequence[int]) -> nn.Sequential:
    rest = (_convolution(after, after, dilation=dilation) for dilation in dilations)
    return nn.Sequential(_convolution(before, after, stride=2), *rest)


def _convolution(before: int, after: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


def read_shape(path: Path) -> SmallUNetShape:
    """What a file of ``SmallUNet.save`` holds.

    Raises:
        DataError: the file is damaged or was not written by ``save``.
    """
    return _parse_header(read_safetensors(path)[1], path)


def _parse_header(metadata: Mapping[str, str], path: Path) -> SmallUNetShape:
    try:
        header = json.loads(metadata[_HEADER])
        count, names = header["num_classes"], header.get("classes", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("names that are no texts")
        shape = SmallUNetShape(
            int(header["out_channels"]), None if count is None else int(count), tuple(names)
        )
        if len(names) not in (0, shape.num_classes):
            raise ValueError("names of other classes")
        return shape
    except (
        KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError,
    ) as error:  # fmt: skip
        raise DataError(
            "was not written by SmallUNet.save",
            path=path,
            field=_HEADER,
            remedy="give a file of SmallUNet.save",
        ) from error
