"""What the Triton kernels derive from a kernel map: once per map, on its device."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lidarssl.sparse.pairs import KernelMap

LARGEST_TILE = 1024
"""Rows of the largest tile, the interpreter's; others are smaller powers of two."""
NONE = -1
_NAME, _WORD = "triton", 62


@dataclass
class TileWeights:
    """Which weights of each part have a pair in a tile of rows.

    Attributes:
        listed: (G, T, K) int32, those of each tile first, the rest without meaning.
        counts: (G, T) int32, how many these are.
    """

    listed: Tensor
    counts: Tensor


@dataclass
class Layout:
    """Tables of rows to read, the weights being cut into G parts with an order of rows each.

    In a part there are fewer sets of weights, and so more rows of the same one; but every part
    after the first reads and writes the sums again.

    Attributes:
        parts: first weight of each part, and K.
        order: (G, N_out) int32, the output row at each position of the sorted order of a part.
        table: (K, N_out rounded up to the largest tile) int32, the input row of each weight at
            each position of its part; -1 = none.
    """

    parts: tuple[int, ...]
    order: Tensor
    table: Tensor
    _tiles: dict[int, TileWeights] = field(default_factory=dict)

    def tiles(self, rows: int) -> TileWeights:
        """The weights of each tile of ``rows`` successive positions."""
        if rows not in self._tiles:
            present = (self.table.unflatten(1, (-1, rows)) != NONE).any(2).t()
            weight = torch.arange(present.shape[1], device=present.device)
            of_part = torch.stack(
                [
                    present & (weight >= first) & (weight < end)
                    for first, end in itertools.pairwise(self.parts)
                ]
            ).to(torch.uint8)
            listed = of_part.argsort(dim=2, descending=True, stable=True)
            self._tiles[rows] = TileWeights(listed.int(), of_part.sum(2, dtype=torch.int32))
        return self._tiles[rows]


@dataclass
class Chunks:
    """The pairs of every weight in pieces of about one length.

    Attributes:
        start, stop: (J,) int32, first pair of each piece and one past its last.
        first: (K + 1,) int32; the pieces of weight k are first[k] .. first[k + 1] - 1.
    """

    start: Tensor
    stop: Tensor
    first: Tensor


@dataclass
class Plan:
    """One direction of a kernel map.

    Attributes:
        pairs: (2, P) int32 rows read and rows written, weight after weight, the identity's too.
        counts: pairs of each of the K weights.
        rows_out: N_out.
    """

    pairs: Tensor
    counts: tuple[int, ...]
    rows_out: int
    _layouts: dict[int, Layout] = field(default_factory=dict)
    _chunks: dict[int, Chunks] = field(default_factory=dict)

    @classmethod
    def of(cls, kernel_map: KernelMap) -> Plan:
        """The plan of a map, made when first asked for."""
        key = (_NAME, kernel_map.is_transposed)
        if key not in kernel_map.plans:
            kernel_map.plans[key] = cls(
                _all_pairs(kernel_map), tuple(kernel_map.pairs_per_weight()), kernel_map.rows_out
            )
        plan: Plan = kernel_map.plans[key]
        return plan

    def layout(self, parts: int) -> Layout:
        """Tables for weights cut into so many parts of about one size."""
        if parts not in self._layouts:
            weights = len(self.counts)
            bounds = tuple(weights * part // parts for part in range(parts + 1))
            self._layouts[parts] = _layout(self, bounds)
        return self._layouts[parts]

    def chunks(self, length: int) -> Chunks:
        """Pieces of at most ``length`` pairs."""
        if length not in self._chunks:
            starts: list[int] = []
            stops: list[int] = []
            first = [0]
            for start, stop in itertools.pairwise(_ends(self.counts)):
                starts += range(start, stop, length)
                stops += [min(at + length, stop) for at in range(start, stop, length)]
                first.append(len(starts))
            numbers = self.pairs.new_tensor([*starts, *stops, *first])
            count = len(starts)
            self._chunks[length] = Chunks(*numbers.split([count, count, len(first)]))
        return self._chunks[length]


def _all_pairs(kernel_map: KernelMap) -> Tensor:
    pairs = torch.stack([kernel_map.in_row.int(), kernel_map.out_row.int()])
    if kernel_map.identity is None:
        return pairs
    before = sum(kernel_map.counts[: kernel_map.identity])
    own = torch.arange(kernel_map.rows_out, dtype=torch.int32, device=pairs.device)
    return torch.cat([pairs[:, :before], own.expand(2, -1), pairs[:, before:]], 1)


def _ends(counts: Sequence[int]) -> list[int]:
    return [0, *itertools.accumulate(counts)]


def _layout(plan: Plan, parts: tuple[int, ...]) -> Layout:
    device, rows, ends = plan.pairs.device, plan.rows_out, _ends(plan.counts)
    padded = -(-rows // LARGEST_TILE) * LARGEST_TILE
    table = torch.full((len(plan.counts), padded), NONE, dtype=torch.int32, device=device)
    orders = []
    for first, end in itertools.pairwise(parts):
        counts = plan.counts[first:end]
        read, written = plan.pairs[:, ends[first] : ends[end]]
        weight_of = torch.repeat_interleave(
            torch.arange(end - first, device=device),
            torch.tensor(counts, device=device),
            output_size=sum(counts),
        )
        order = _sorted_by_weights(counts, weight_of, written, rows)
        position = torch.empty_like(order)
        position[order] = torch.arange(rows, device=device)
        table[first + weight_of, position[written]] = read
        orders.append(order.int())
    return Layout(parts, torch.stack(orders), table)


def _sorted_by_weights(
    counts: Sequence[int], weight_of: Tensor, written: Tensor, rows: int
) -> Tensor:
    """(N_out,) int64 output rows, such that neighbours in the order have like sets of weights.

    Each row is a mask of the weights it has, rare weights being the high bits. Rows are sorted
    by the place of their mask in the Gray code, where successive masks differ in few bits. Full
    rows come first: the longest tiles start first. Of more than 62 weights the rarest share a
    bit, which costs time and no correctness.

    Args:
        counts: pairs of each weight.
        weight_of: (P,) int64 weight of each pair.
        written: (P,) int32 row that each pair writes.
        rows: N_out.
    """
    frequent_first = sorted(range(len(counts)), key=lambda weight: -counts[weight])
    bit_of = [0] * len(counts)
    for rank, weight in enumerate(frequent_first):
        bit_of[weight] = 1 << min(rank, _WORD - 1)
    flags = weight_of.new_tensor(bit_of)[weight_of]
    mask = flags.new_zeros(rows).index_add_(0, written, flags)
    return _gray_place(mask).argsort(descending=True, stable=True)


def _gray_place(code: Tensor) -> Tensor:
    """Which place a word of bits has in the Gray code: bit i is the parity of bits i and up."""
    for shift in (1, 2, 4, 8, 16, 32):
        code = code ^ (code >> shift)
    return code
