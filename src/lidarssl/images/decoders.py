"""From the coarse feature map of an encoder to unit features of pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lidarssl.errors import ConfigError


def sample_upsampled(
    features: Tensor, image: Tensor, row: Tensor, col: Tensor, size: tuple[int, int]
) -> Tensor:
    """Values that the enlarged map would have at some pixels, without enlarging it.

    Equal to ``F.interpolate(features, size, mode="bilinear", align_corners=True)`` indexed at
    ``[image, :, row, col]``, for the memory of the pixels asked for.

    Args:
        features: (I, C, h, w).
        image, row, col: (M,) int64, pixels of the enlarged map.
        size: (H, W) of the enlarged map.

    Returns:
        (M, C), with gradients to ``features``.
    """
    images, channels, height, width = features.shape
    cells = features.permute(0, 2, 3, 1).reshape(images * height * width, channels)
    top, bottom, down = _neighbours(row, height, size[0], features.dtype)
    left, right, across = _neighbours(col, width, size[1], features.dtype)

    def at(y: Tensor, x: Tensor) -> Tensor:
        return cells.index_select(0, (image * height + y) * width + x)

    upper = torch.lerp(at(top, left), at(top, right), across)
    lower = torch.lerp(at(bottom, left), at(bottom, right), across)
    return torch.lerp(upper, lower, down)


def _neighbours(
    pixel: Tensor, cells: int, pixels: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The two cells around each pixel and the weight of the second, (M, 1)."""
    # Whole numbers: exact where a pixel falls on a cell, and no float64 for devices without it.
    intervals = max(pixels - 1, 1)
    scaled = pixel * (cells - 1 if pixels > 1 else 0)
    first = scaled // intervals
    second = (first + 1).clamp_(max=cells - 1)
    weight = (scaled % intervals).to(torch.float32) / intervals
    return first, second, weight.to(dtype).unsqueeze(1)


class UpsampledHead(nn.Module):
    """1x1 convolutions, each followed by bilinear enlargement and unit length per pixel.

    The trained image-side head of PPKT and SLidR (one), and of OLIVINE (two: point level and
    class level). Corners are aligned when enlarging.

    Args:
        in_channels: width of the encoder's map.
        out_channels: width of the embedding.
        scale: enlargement, the stride of the encoder.
        heads: number of independent projections.
        normalize: divide every pixel's feature by its L2 norm (at least 1e-12).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        scale: int,
        heads: int = 1,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if scale < 1 or heads < 1:
            raise ConfigError(f"scale {scale} and heads {heads} must be at least 1")
        self.projections = nn.ModuleList(
            nn.Conv2d(in_channels, out_channels, 1) for _ in range(heads)
        )
        self.scale, self.normalize = scale, normalize

    def forward(self, features: Tensor, head: int = 0) -> Tensor:
        """Features of every pixel.

        Args:
            features: (I, in_channels, h, w).
            head: which projection.

        Returns:
            (I, out_channels, h * scale, w * scale).
        """
        return self.enlarged(self.projected(features, head))

    def projected(self, features: Tensor, head: int = 0) -> Tensor:
        """The part that trains: (I, in_channels, h, w) -> (I, out_channels, h, w)."""
        projected: Tensor = self.projections[head](features)
        return projected

    def enlarged(self, projected: Tensor) -> Tensor:
        """The part without weights: (I, out_channels, h, w) -> pixels, see ``forward``."""
        pixels = F.interpolate(
            projected, size=self._size(projected), mode="bilinear", align_corners=True
        )
        return F.normalize(pixels, dim=1) if self.normalize else pixels

    def sample(
        self, features: Tensor, image: Tensor, row: Tensor, col: Tensor, head: int = 0
    ) -> Tensor:
        """Features of some pixels only: ``forward(features, head)[image, :, row, col]``.

        Args:
            features: (I, in_channels, h, w).
            image, row, col: (M,) int64.
            head: which projection.

        Returns:
            (M, out_channels).
        """
        projected = self.projected(features, head)
        pixels = sample_upsampled(projected, image, row, col, self._size(features))
        return F.normalize(pixels, dim=1) if self.normalize else pixels

    def _size(self, features: Tensor) -> tuple[int, int]:
        return features.shape[-2] * self.scale, features.shape[-1] * self.scale
