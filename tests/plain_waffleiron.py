"""WaffleIron on padded clouds, channels first, in plain convolutions and batch norms.

An implementation apart from that of the library, with the names and shapes of published files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grids = Sequence[tuple[int, int]]
GRIDS = ((4, 4), (4, 2), (4, 2))


def normalized(norm: nn.Module, values: Tensor, real: Tensor | None) -> Tensor:
    """Norm over the channels (axis 1); with ``real`` (B, N), over the real points alone."""
    if isinstance(norm, nn.LayerNorm):
        layered: Tensor = norm(values.transpose(1, 2)).transpose(1, 2)
        return layered
    if real is None:
        whole: Tensor = norm(values)
        return whole
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked += 1
    rows = values.movedim(1, -1)
    mask = real > 0
    out = torch.zeros_like(rows)
    flat = rows[mask].reshape(-1, rows.shape[-1])
    flat = F.batch_norm(
        flat, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training,
        norm.momentum or 0.0, norm.eps,
    )  # fmt: skip
    out[mask] = flat.view(-1, *rows.shape[2:])
    return out.movedim(-1, 1)


def taken(values: Tensor, index: Tensor) -> Tensor:
    """(B, C, N) at (B, M) -> (B, C, M)."""
    return values.gather(2, index[:, None].expand(-1, values.shape[1], -1))


class PlainEmbedding(nn.Module):
    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(inputs)
        self.conv1 = nn.Conv1d(inputs, channels, 1)
        self.conv2 = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
        )
        self.final = nn.Conv1d(2 * channels, channels, 1)

    def forward(self, feat: Tensor, neighbours: Tensor, real: Tensor | None) -> Tensor:
        feat = normalized(self.norm, feat, real)
        pairs = [taken(feat, near) - feat for near in neighbours[:, 1:].unbind(1)]
        around = normalized(self.conv2[0], torch.stack(pairs, 3), real)
        around = normalized(self.conv2[2], self.conv2[1](around), real)
        around = self.conv2[4](self.conv2[3](around)).max(3).values
        embedded: Tensor = self.final(torch.cat([self.conv1(feat), around], 1))
        return embedded


class PlainMix(nn.Module):
    """Either mix: a norm, two convolutions, a scale."""

    def __init__(self, channels: int, norm: str, activation: str, spatial: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels) if norm == "batch" else nn.LayerNorm(channels)
        active: nn.Module = nn.ReLU() if activation == "relu" else nn.GELU()
        if spatial:
            first, second = (
                nn.Conv2d(channels, channels, 3, padding=1, groups=channels) for _ in range(2)
            )
            self.ffn = nn.Sequential(first, active, second)
        else:
            one, two = (nn.Conv1d(channels, channels, 1) for _ in range(2))
            self.mlp = nn.Sequential(one, active, two)
        self.scale = nn.Conv1d(channels, channels, 1, groups=channels, bias=False)


class PlainMixes(nn.Module):
    def __init__(self, channels: int, depth: int, norm: str, activation: str) -> None:
        super().__init__()
        self.channel_mix = nn.ModuleList(
            PlainMix(channels, norm, activation, False) for _ in range(depth)
        )
        self.spatial_mix = nn.ModuleList(
            PlainMix(channels, norm, activation, True) for _ in range(depth)
        )


class PlainWaffleIron(nn.Module):
    def __init__(
        self, inputs: int, channels: int, depth: int, norm: str, activation: str, grids: Grids,
        head: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.grids = grids
        self.embed = PlainEmbedding(inputs, channels)
        self.waffleiron = PlainMixes(channels, depth, norm, activation)
        if head is not None:
            self.classif = head

    def forward(
        self, feat: Tensor, cells: Tensor, occupied: Tensor, neighbours: Tensor, masked: bool
    ) -> Tensor:
        """(B, C_in, N), (B, P, N), (B, N), (B, K + 1, N) -> (B, C, N)."""
        real = occupied if masked else None
        tokens = self.embed(feat, neighbours, real)
        for layer, channel_mix in enumerate(self.waffleiron.channel_mix):
            plane = layer % len(self.grids)
            spatial_mix = self.waffleiron.spatial_mix[layer]
            tokens = tokens + self.spatial(
                spatial_mix, tokens, cells[:, plane], occupied, plane, real
            )
            mix: Any = channel_mix
            tokens = tokens + mix.scale(mix.mlp(normalized(mix.norm, tokens, real)))
        return tokens

    def spatial(
        self, mix: Any, tokens: Tensor, cells: Tensor, occupied: Tensor, plane: int,
        real: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Means of the cells by a dense matrix of which token is in which cell."""
        rows, columns = self.grids[plane]
        member = F.one_hot(cells, rows * columns).to(tokens) * occupied[:, :, None]
        share = member / (member.sum(1, keepdim=True) + 1e-6)
        maps = normalized(mix.norm, tokens, real) @ share
        maps = mix.ffn(maps.view(*maps.shape[:2], rows, columns)).flatten(2)
        return taken(mix.scale(maps), cells)


def a_head(kind: str, channels: int, values: int = 5) -> nn.Module | None:
    """The published heads: of a class or teacher, of ScaLR+, of ScaLR's downstream tasks."""
    if kind == "linear":
        return nn.Conv1d(channels, values, 1)
    if kind == "mlp":
        return nn.Sequential(nn.Conv1d(channels, 7, 1), nn.ReLU(), nn.Conv1d(7, values, 1))
    if kind == "norm":
        return nn.Sequential(nn.BatchNorm1d(channels), nn.Conv1d(channels, values, 1))
    return None


def published(
    channels: int = 6, depth: int = 2, norm: str = "layer", head: str = "none", inputs: int = 5
) -> dict[str, Tensor]:
    torch.manual_seed(channels + 10 * depth)
    module = a_head(head, channels)
    network = PlainWaffleIron(inputs, channels, depth, norm, "relu", GRIDS, module)
    return {
        key: torch.randn_like(value) if value.is_floating_point() else value + 7
        for key, value in network.state_dict().items()
    }


def same(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
