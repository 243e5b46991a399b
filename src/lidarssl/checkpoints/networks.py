"""Find the lidar network in a checkpoint of any origin, and say what else the file holds.

Files differ in four ways: the entry of the file that holds the tensors (``state_dict``,
``model_points``), the prefix that trainers put before names (``encoder.``, ``model.``), the
names themselves, and the layout of kernels. A network is known by its first convolution, whose
name tells prefix and naming at once; the rest follows. What comes out has the names and layouts
of the backbones of this library.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lidarssl.checkpoints import minkunet_names as names
from lidarssl.checkpoints import waffleiron_names
from lidarssl.checkpoints.card import Card
from lidarssl.checkpoints.files import card_of
from lidarssl.checkpoints.minkunet_names import Naming
from lidarssl.checkpoints.openpcdet import PLANE, TRUNK
from lidarssl.checkpoints.spconv_layouts import (
    SpconvLayout,
    convert_layout,
    is_kernel,
    recognise_layout,
)
from lidarssl.errors import ConfigError, DataError
from lidarssl.weights import CONTAINERS, read_content, read_safetensors, state_of, weights_file
from lidarssl.wording import counted

# Parts that belong to a pretraining task or a detector, whatever network they stand beside.
HEADS = ("final", "final_class_level", "final_norm", "classifier", "decode_head")
OPENPCDET, VOXELNET, WAFFLEIRON = "openpcdet", "voxelnet", "waffleiron"
_SAID = {
    Naming.MINKOWSKI: "MinkowskiEngine (lidarssl, SLidR, PPKT, OLIVINE)",
    Naming.TORCHSPARSE: "torchsparse (ALSO, NCLR, BEVContrast)",
    Naming.SEGCONTRAST: "MinkowskiEngine, names of SegContrast",
    Naming.MMDET3D_TORCHSPARSE: "mmdetection3d on torchsparse",
    Naming.MMDET3D_MINKOWSKI: "mmdetection3d on MinkowskiEngine",
    Naming.MMDET3D_SPCONV: "mmdetection3d on spconv",
    OPENPCDET: "spconv, names of OpenPCDet (SECOND, PV-RCNN, ALSO)",
    VOXELNET: "spconv, names of OpenPCDet's 3-D backbone (SLidR, OLIVINE)",
}


@dataclass(frozen=True)
class _Mark:
    """How a network is known.

    Attributes:
        key: of its first convolution.
        naming: of its keys.
        parts: what its keys start with; () = all that is not a head.
    """

    key: str
    naming: str
    parts: tuple[str, ...] = ()


_MARKS = (
    _Mark("conv0p1s1.kernel", Naming.MINKOWSKI),
    _Mark("stem.0.kernel", Naming.TORCHSPARSE),
    _Mark("backbone.conv_input.0.net.0.kernel", Naming.MMDET3D_TORCHSPARSE, ("backbone.",)),
    _Mark("backbone.conv_input.0.0.weight", Naming.MMDET3D_SPCONV, ("backbone.",)),
    _Mark("backbone_3d.conv_input.0.weight", OPENPCDET, (TRUNK, PLANE)),
    _Mark("conv_input.0.weight", VOXELNET),
    _Mark(waffleiron_names.ANCHOR, WAFFLEIRON, waffleiron_names.PARTS),
)


@dataclass(frozen=True)
class Network:
    """A lidar network as it came out of a file.

    Attributes:
        kind: ``MinkUNet``, ``Spvcnn``, ``VoxelNet``, ``Second`` or ``WaffleIron``.
        naming: whose names and layouts the file has.
        state: its weights under the names and in the layouts of this library, heads left out.
        path: the file.
        entry: where in the file the tensors were, e.g. ``state_dict``; empty at the top.
        prefix: what stood before every name.
        layout: of spconv weights; None without any.
        left_out: what else the file holds: name of the part -> what it is.
        config: the settings stored with it; empty when there are none.
        card: of a file that lidarssl wrote.
        head: published with the network and written with it again; only of a ``WaffleIron``.
    """

    kind: str
    naming: str
    state: Mapping[str, Tensor]
    path: Path
    entry: str = ""
    prefix: str = ""
    layout: SpconvLayout | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    card: Card | None = None
    head: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """Whose file it is, in words."""
        if self.naming == WAFFLEIRON and not self.card:
            return waffleiron_names.origin(self.state, self.head)
        layout = f", layout {self.layout}" if self.layout else ""
        return ("lidarssl" if self.card else _SAID[self.naming]) + layout


def read_network(
    path: str | Path, prefix: str | None = None, layout: SpconvLayout | None = None
) -> Network:
    """Read the lidar network of any file.

    Args:
        path: a weights file, or a folder with ``model.safetensors``.
        prefix: of its names, for files with several networks; None = the only one there is.
        layout: of spconv weights, for files that do not tell; None = see what the file tells.

    Raises:
        DataError: no readable weights file, or no lidar network in it; nothing in it is run.
        ConfigError: several networks, or a layout that the file does not tell.
    """
    path = weights_file(path)
    if path.suffix == ".safetensors":
        tensors, texts = read_safetensors(path)
        state, entry, left_out, config = state_of(tensors, path), "", dict[str, str](), {}
        card = card_of(texts, path)
    else:
        with warnings.catch_warnings():
            # Of torch, about pickles of other programs; what is wrong with one is said below.
            warnings.simplefilter("ignore", UserWarning)
            content = read_content(path)
        state, (entry, left_out), card = state_of(content, path), _beside(content), None
        config = content.get("config", {})
    found = find_network(state, path, prefix, layout)
    return replace(
        found,
        entry=entry,
        left_out=left_out | dict(found.left_out),
        config=config if isinstance(config, Mapping) else {},
        card=card,
    )


def find_network(
    state: Mapping[str, Tensor],
    path: Path,
    prefix: str | None = None,
    layout: SpconvLayout | None = None,
) -> Network:
    """The lidar network among the tensors of a file; see :func:`read_network`."""
    mark, prefix = _find(state, path, prefix)
    _refuse_empty(state, path)
    own = {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
    network = {
        name: value
        for name, value in own.items()
        if (name.startswith(mark.parts) if mark.parts else name.split(".")[0] not in HEADS)
    }
    head: dict[str, Tensor] = {}
    if mark.naming == WAFFLEIRON:
        network, head = _with_head(own)
    others = [name for name in own if name not in network and name not in head]
    others += [name for name in state if not name.startswith(prefix)]
    naming, found = mark.naming, None
    if any(is_kernel(name, value.shape) for name, value in network.items()):
        shapes = {name: tuple(value.shape) for name, value in network.items()}
        found = layout or recognise_layout(shapes, path)
        network = convert_layout(network, found, SpconvLayout.KRSC)
    if naming == OPENPCDET and not any(name.startswith(PLANE) for name in network):
        network = {name.removeprefix(TRUNK): value for name, value in network.items()}
    elif naming not in (OPENPCDET, VOXELNET, WAFFLEIRON):
        naming, network = _named(network, path)
    return Network(
        kind=kind_of(network),
        naming=naming,
        state=network,
        path=path,
        prefix=prefix,
        layout=found,
        left_out=_groups(others, state),
        head=head,
    )


def kind_of(keys: Iterator[str] | Mapping[str, Any]) -> str:
    """The class that has these keys, one of those of ``Network.kind``.

    Returns:
        Its name; empty when it is none of them.
    """
    known = set(keys)
    if "conv0p1s1.kernel" in known:
        return "Spvcnn" if "point_transforms.0.0.weight" in known else "MinkUNet"
    if "conv_input.0.weight" in known:
        return "VoxelNet"
    if waffleiron_names.ANCHOR in known:
        return "WaffleIron"
    return "Second" if f"{TRUNK}conv_input.0.weight" in known else ""


def _with_head(own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A WaffleIron, and its head if that is one of the published ones."""
    state, head = waffleiron_names.from_published(own)
    network = {key: value for key, value in state.items() if key.startswith(waffleiron_names.PARTS)}
    return network, head if waffleiron_names.head_in_words(head) else {}


def _refuse_empty(state: Mapping[str, Tensor], path: Path) -> None:
    """A tensor without values may claim any width, which something would be built for."""
    for name, value in state.items():
        if value.numel() == 0:
            raise DataError(
                f"'{name[:80]}' has the shape {tuple(value.shape)}, which holds nothing",
                path=path,
                field=name[:80],
                remedy="download the file again, or check how it was saved",
            )


def _named(state: Mapping[str, Tensor], path: Path) -> tuple[Naming, dict[str, Tensor]]:
    """The naming of a MinkUNet or SPVCNN, and its weights in ours."""
    try:
        naming = names.recognise(state)
        return naming, names.to_ours(state, naming)
    except DataError as error:
        raise type(error)(
            error.problem, path=path, field=error.field, remedy=error.remedy
        ) from error


def _find(state: Mapping[str, Tensor], path: Path, prefix: str | None) -> tuple[_Mark, str]:
    """The mark that the file has, and what stands before it."""
    for mark in _MARKS:
        found = sorted(
            name.removesuffix(mark.key)
            for name in state
            if name == mark.key or name.endswith(f".{mark.key}")
        )
        if prefix is not None:
            found = [one for one in found if one == prefix]
        if len(found) > 1:
            raise ConfigError(
                f"holds {len(found)} networks, under the prefixes "
                + ", ".join(f"'{one[:40]}'" for one in found[:6]),
                path=path,
                field="--prefix",
                remedy="say which one to take with --prefix",
            )
        if found:
            return mark, found[0]
    raise DataError(
        f"holds no lidar network that is known here{_under(prefix)}: its tensors are "
        + _listed(_groups(list(state), state)),
        path=path,
        remedy="known are MinkUNet, SPVCNN, VoxelNet, SECOND and WaffleIron, under the names of "
        "SLidR, OLIVINE, ALSO, NCLR, SegContrast, mmdetection3d, OpenPCDet and ScaLR",
    )


def _under(prefix: str | None) -> str:
    return "" if prefix is None else f" under the prefix '{prefix}'"


def _beside(content: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The entry that holds the tensors, and what stands beside it on the way there."""
    way: list[str] = []
    left_out: dict[str, str] = {}
    level: Mapping[str, Any] = content
    for name in CONTAINERS:
        if isinstance(level.get(name), Mapping):
            left_out |= _entries(level, name)
            way.append(name)
            level = level[name]
    left_out |= {
        _shown(name): f"a {type(value).__name__}"
        for name, value in level.items()
        if not isinstance(value, Tensor)
    }
    return ".".join(way), left_out


def _entries(level: Mapping[str, Any], taken: str) -> dict[str, str]:
    return {
        _shown(name): f"{len(value)} entries" if isinstance(value, Mapping | list) else "a value"
        for name, value in level.items()
        if name != taken
    }


def _groups(others: Sequence[str], state: Mapping[str, Tensor]) -> dict[str, str]:
    """Tensors by the first parts of their names."""
    count = Counter(_shown(name.split(".")[0]) for name in others)
    return {name: counted(number, "tensor") for name, number in count.items()}


def _shown(name: object) -> str:
    """A name of the file that stays on its line."""
    return "".join(one if one.isprintable() else "?" for one in str(name)[:40])


def _listed(parts: Mapping[str, str], most: int = 8) -> str:
    shown = [f"{name} ({what})" for name, what in list(parts.items())[:most]]
    return ", ".join(shown) + (", ..." if len(parts) > most else "")
