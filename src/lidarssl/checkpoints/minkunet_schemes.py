"""Names of the modules of a MinkUNet or SPVCNN in each library, level by level."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from lidarssl.sparse.kernel import Convention

Names = tuple[str, str]  # of a convolution (or linear layer) and of its norm


class Naming(enum.StrEnum):
    """Whose names and kernel layouts a state dict has.

    ``minkowski``: ours, and Res16UNet of SLidR, PPKT, OLIVINE and NCLR.
    ``torchsparse``: MinkUNet and SPVCNN of ALSO, NCLR and BEVContrast.
    ``segcontrast``: SegContrast's network on MinkowskiEngine, as in NCLR and BEVContrast.
    ``mmdet3d_torchsparse``, ``mmdet3d_minkowski``, ``mmdet3d_spconv``: MinkUNet of
    mmdetection3d on three libraries; spconv there reads sites as (batch, x, y, z).
    """

    MINKOWSKI = "minkowski"
    TORCHSPARSE = "torchsparse"
    SEGCONTRAST = "segcontrast"
    MMDET3D_TORCHSPARSE = "mmdet3d_torchsparse"
    MMDET3D_MINKOWSKI = "mmdet3d_minkowski"
    MMDET3D_SPCONV = "mmdet3d_spconv"


OURS = Naming.MINKOWSKI


@dataclass(frozen=True)
class Scheme:
    """Names of the modules of a network.

    Attributes:
        stem: names of the i-th pair of the stem.
        down: names of the pair that leads to encoder level i.
        up: names of the pair that leads to decoder level i of so many.
        block: name of block b of level i; decoder levels follow the encoder's, so many.
        inside: names of the three pairs of a block: main branch, main branch, shortcut.
        heads: names that a head may have; the first is written.
        linear: a head is a linear layer instead of a 1x1x1 convolution.
        layout: of kernels; None = spconv's.
        norm: between the name of a norm and its parameters.
    """

    stem: Callable[[int], Names]
    down: Callable[[int], Names]
    up: Callable[[int, int], Names]
    block: Callable[[int, int, int], str]
    inside: tuple[Names, Names, Names]
    heads: tuple[str, ...]
    linear: bool = True
    layout: Convention | None = Convention.MINKOWSKI
    norm: str = "."

    def conv_key(self, name: str) -> str:
        return f"{name}.{'weight' if self.layout is None else 'kernel'}"

    def norm_key(self, name: str, parameter: str) -> str:
        return f"{name}{self.norm}{parameter}"


def _ours() -> Scheme:
    return Scheme(
        stem=lambda i: ("conv0p1s1" + f"_{i}" * (i > 0), "bn0" + f"_{i}" * (i > 0)),
        down=lambda i: (f"conv{i + 1}p{2**i}s2", f"bn{i + 1}"),
        up=lambda i, depth: (f"convtr{depth + i}p{2 ** (depth - i)}s2", f"bntr{depth + i}"),
        block=lambda i, depth, b: f"block{i + 1}.{b}",
        inside=(("conv1", "norm1"), ("conv2", "norm2"), ("downsample.0", "downsample.1")),
        heads=("final", "final_class_level"),
        linear=False,
        norm=".bn.",
    )


_NET = (("net.0", "net.1"), ("net.3", "net.4"), ("downsample.0", "downsample.1"))


def _staged(head: str, layout: Convention, norm: str) -> Scheme:
    """stem, stage1, ..., up1, ..."""
    return Scheme(
        stem=lambda i: (f"stem.{3 * i}", f"stem.{3 * i + 1}"),
        down=lambda i: (f"stage{i + 1}.0.net.0", f"stage{i + 1}.0.net.1"),
        up=lambda i, depth: (f"up{i + 1}.0.net.0", f"up{i + 1}.0.net.1"),
        block=lambda i, depth, b: (
            f"stage{i + 1}.{b + 1}" if i < depth else f"up{i - depth + 1}.1.{b}"
        ),
        inside=_NET,
        heads=(head,),
        layout=layout,
        norm=norm,
    )


def _mmdet3d(
    unit: str, inside: tuple[Names, Names, Names], layout: Convention | None, norm: str
) -> Scheme:
    """conv_input, encoder, decoder, with ``unit`` before the numbers of a unit's layers."""

    def pair(name: str) -> Names:
        return f"backbone.{name}.{unit}0", f"backbone.{name}.{unit}1"

    return Scheme(
        stem=lambda i: pair(f"conv_input.{i}"),
        down=lambda i: pair(f"encoder.{i}.0"),
        up=lambda i, depth: pair(f"decoder.{i}.0"),
        block=lambda i, depth, b: (
            f"backbone.encoder.{i}.{b + 1}" if i < depth else f"backbone.decoder.{i - depth}.1.{b}"
        ),
        inside=inside,
        heads=("decode_head.cls_seg", "decode_head.conv_seg"),
        layout=layout,
        norm=norm,
    )


SCHEMES = {
    Naming.MINKOWSKI: _ours(),
    Naming.TORCHSPARSE: _staged("classifier.0", Convention.TORCHSPARSE, "."),
    Naming.SEGCONTRAST: _staged("final.0", Convention.MINKOWSKI, ".bn."),
    Naming.MMDET3D_TORCHSPARSE: _mmdet3d("net.", _NET, Convention.TORCHSPARSE, "."),
    Naming.MMDET3D_MINKOWSKI: _mmdet3d(
        "net.",
        (("conv1", "norm1"), ("conv2", "norm2"), ("downsample.net.0", "downsample.net.1")),
        Convention.MINKOWSKI,
        ".bn.",
    ),
    Naming.MMDET3D_SPCONV: _mmdet3d(
        "", (("conv1", "bn1"), ("conv2", "bn2"), ("downsample.0", "downsample.1")), None, "."
    ),
}


@dataclass(frozen=True)
class Plan:
    """How many of everything a network has.

    Attributes:
        stem: convolutions of the stem.
        depth: levels of the encoder, and of the decoder.
        blocks: of each encoder, then of each decoder level.
        points: layers of the point branch.
    """

    stem: int
    depth: int
    blocks: tuple[int, ...]
    points: int


def plan_of(state: Mapping[str, Tensor], scheme: Scheme) -> Plan:
    """Count the modules of a state dict up to the first that is missing."""

    def count(convs: Iterable[str]) -> int:
        there = (scheme.conv_key(conv) in state for conv in convs)
        return sum(1 for _ in itertools.takewhile(bool, there))

    numbers = itertools.count
    depth = count(scheme.down(i)[0] for i in numbers())
    conv1 = scheme.inside[0][0]
    blocks = [
        count(f"{scheme.block(level, depth, b)}.{conv1}" for b in numbers())
        for level in range(2 * depth)
    ]
    points = (f"point_transforms.{i}.0.weight" in state for i in numbers())
    return Plan(
        stem=count(scheme.stem(i)[0] for i in numbers()),
        depth=depth,
        blocks=tuple(blocks),
        points=sum(1 for _ in itertools.takewhile(bool, points)),
    )


def pairs(plan: Plan, scheme: Scheme) -> Iterator[Names]:
    """Convolution and norm of every pair of the plan, always in the same order."""
    for i in range(plan.stem):
        yield scheme.stem(i)
    for level, count in enumerate(plan.blocks):
        encoder = level < plan.depth
        yield scheme.down(level) if encoder else scheme.up(level - plan.depth, plan.depth)
        for b in range(count):
            name = scheme.block(level, plan.depth, b)
            yield from ((f"{name}.{conv}", f"{name}.{norm}") for conv, norm in scheme.inside)
