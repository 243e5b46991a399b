"""Find the vision transformer in a checkpoint of any origin, and write it for other libraries.

What :mod:`lidarssl.checkpoints.networks` and :mod:`lidarssl.checkpoints.convert` are to lidar
networks. Files of timm, DINO, DINOv2, DINOv3 and transformers are read, those of the trainers of
CLCP and LIP-Loc and of mmsegmentation, and students and tasks of this library.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lidarssl.checkpoints.card import Card
from lidarssl.checkpoints.convert import Format, write_foreign
from lidarssl.checkpoints.files import card_of
from lidarssl.errors import ConfigError, DataError
from lidarssl.images.vit import STATISTICS, filled_model
from lidarssl.images.vit_architectures import ARCHITECTURES, TIMM_ARCHITECTURES, ViTArchitecture
from lidarssl.images.vit_files import FoundViT, find_vit, shape_of, to_timm
from lidarssl.images.weights import CONTAINERS as IMAGE_CONTAINERS
from lidarssl.images.weights import check_shapes, quiet_transformers
from lidarssl.replacing import replacing
from lidarssl.weights import (
    CONTAINERS,
    WEIGHTS_FILE,
    read_content,
    read_safetensors,
    state_of,
    weights_file,
)

CLASS_PATH = "lidarssl.images.vit.ViT"
CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"
# A file of a lidar network alone has to be recognised as one without an image encoder.
_CONTAINERS = (*IMAGE_CONTAINERS, *(name for name in CONTAINERS if name not in IMAGE_CONTAINERS))
_FINAL_NORM = ("norm.weight", "norm.bias")
# Prefixes of trainers that normalise by the statistics of ImageNet.
_IMAGENET_PREFIXES = ("image_encoder.model.", "backbone.timm_model.")


@dataclass(frozen=True)
class ImageNetwork:
    """A vision transformer as it came out of a file, whole.

    Attributes:
        shape: its architecture.
        state: its tensors under the names of ``shape.shapes()``; without the final norm where
            ``final_norm`` is False.
        path: the file.
        source: whose file it is, in words.
        final_norm: whether it was trained with its final norm.
        normalization: of the images that it was trained on, ``imagenet`` or ``half``; empty when
            the file does not tell.
        entry: where in the file the tensors were, e.g. ``state_dict``; empty at the top.
        prefix: what stood before every name.
        left_out: what else the file holds: name of the part -> what it is.
        card: of a file that lidarssl wrote.
    """

    shape: ViTArchitecture
    state: Mapping[str, Tensor]
    path: Path
    source: str
    final_norm: bool = True
    normalization: str = ""
    entry: str = ""
    prefix: str = ""
    left_out: Mapping[str, str] = field(default_factory=dict)
    card: Card | None = None


def read_image_network(
    path: str | Path, prefix: str | None = None, heads: int | None = None
) -> ImageNetwork | None:
    """Read the vision transformer of any file; nothing in it is run.

    Args:
        path: a weights file, or a folder with ``model.safetensors`` (and ``config.json``).
        prefix: of its names, for files with several; None = the one there is.
        heads: of attention, which no tensor tells, where neither card nor ``config.json`` does;
            None = heads of 64 channels.

    Returns:
        None where the file holds none.

    Raises:
        DataError: no readable weights file, or not all of the network is there.
        ConfigError: several networks, or a number of heads that no file tells.
    """
    path = weights_file(path)
    tensors, entry, beside, card = _read(path)
    try:
        found = find_vit(tensors, prefix)
        if found is None:
            return None
        settings = _settings(card)
        shape = _shape(found, settings, path, heads)
    except DataError as error:
        raise type(error)(
            error.problem, path=error.path or path, field=error.field, remedy=error.remedy
        ) from error
    final_norm = settings is None or settings.final_norm
    expected = {k: size for k, size in shape.shapes().items() if final_norm or k not in _FINAL_NORM}
    check_shapes(found.state, expected, path)
    others = [*found.heads, *(key for key in tensors if not key.startswith(found.prefix))]
    return ImageNetwork(
        shape=shape,
        state=found.state,
        path=path,
        source=_source(found, card),
        final_norm=final_norm,
        normalization=settings.normalization if settings else _normalization(found, shape, path),
        entry=entry,
        prefix=found.prefix,
        left_out=beside | _groups(others),
        card=card,
    )


@dataclass(frozen=True)
class ViTSettings:
    """What the arguments of a ``ViT`` say of its weights and of what they mean.

    Attributes:
        shape: its architecture.
        final_norm, normalization: as resolved by ``ViT``.
    """

    shape: ViTArchitecture
    final_norm: bool
    normalization: str

    def plain(self) -> dict[str, Any]:
        """As plain JSON values, one a difference."""
        rest = {"final_norm": self.final_norm, "normalization": self.normalization}
        return asdict(self.shape) | rest


def settings_of(init_args: Mapping[str, Any]) -> ViTSettings:
    """The settings in the constructor arguments of a ``ViT``.

    Args:
        init_args: plain values, as in a card or a recipe.

    Raises:
        DataError: they are of no ``ViT``.
    """
    named = init_args.get("architecture", "dino_vits16")
    try:
        shape = ARCHITECTURES[named] if isinstance(named, str) else ViTArchitecture(**named)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise _unknown("architecture", named) from error
    usual = "half" if isinstance(named, str) and named in TIMM_ARCHITECTURES else "imagenet"
    normalization = init_args.get("normalization") or usual
    if normalization not in list(STATISTICS):
        raise _unknown("normalization", normalization)
    return ViTSettings(shape, bool(init_args.get("final_norm", True)), normalization)


def _unknown(name: str, value: object) -> DataError:
    return DataError(
        f"the card tells of a vision transformer that is not known here: {str(value)[:80]}",
        field=name,
        remedy="the card may come from a newer lidarssl: update it",
    )


def unlike(shape: ViTArchitecture, wanted: ViTArchitecture) -> list[str]:
    """What keeps a network from being of another shape, in words; epsilons are not compared."""
    # The positions of DINOv3 are of no size.
    ignored = {"norm_eps"} | ({"image_size"} if shape.family == "dinov3" else set())
    found, asked = asdict(shape), asdict(wanted)
    names = (name for name in found if name not in ignored and found[name] != asked[name])
    return [f"{name} {found[name]}, not {asked[name]}" for name in names]


def write_timm(network: ImageNetwork, path: Path) -> None:
    """The state dict of timm's ``VisionTransformer`` without head, whole or not at all.

    Args:
        path: of ``torch.save``, or a ``.safetensors`` file.

    Raises:
        ConfigError: timm has no such network.
    """
    check_image_format(network, Format.TIMM)
    state = to_timm(network.state)
    if path.suffix != ".safetensors":
        write_foreign(path, state)
        return
    from safetensors.torch import save_file

    # Parts of one tensor share its memory, which the format refuses.
    owned = {
        key: value.clone(memory_format=torch.contiguous_format) for key, value in state.items()
    }
    with replacing(path, durable=True) as partial:
        save_file(owned, partial, metadata={"format": "pt"})


def write_transformers(network: ImageNetwork, folder: Path) -> tuple[str, ...]:
    """What ``save_pretrained`` of transformers writes, file by file, the weights last.

    Args:
        folder: exists, or its parent does.

    Returns:
        Names of the files; that of the image processor only where the normalisation is known.

    Raises:
        ConfigError: transformers has no such network.
    """
    check_image_format(network, Format.TRANSFORMERS)
    folder.mkdir(exist_ok=True)
    model = filled_model(network.shape, network.state, network.path)
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as name:
        partial = Path(name)
        with quiet_transformers():
            model.save_pretrained(partial)
        if network.normalization:
            processor = json.dumps(_processor(network), indent=2)
            (partial / PROCESSOR_FILE).write_text(processor + "\n", encoding="utf-8")
        names = sorted(file.name for file in partial.iterdir())
        for file in sorted(names, key=lambda one: one == WEIGHTS_FILE):
            (partial / file).replace(folder / file)
    return tuple(names)


def check_image_format(network: ImageNetwork, target: Format) -> None:
    """Refuse a format whose library has no such network.

    Raises:
        ConfigError: names the formats that are left.
    """
    family, left = network.shape.family, [Format.LIDARSSL]
    left += [] if family == "dinov3" or not network.final_norm else [Format.TIMM]
    left += [Format.TRANSFORMERS] if network.final_norm else []
    if target in left:
        return
    what = "vision transformer" + ("" if network.final_norm else " without its final norm")
    what = "DINOv3 of these names" if target is Format.TIMM and family == "dinov3" else what
    raise ConfigError(
        f"the networks that '{target}' files are for have no {what}",
        path=network.path,
        field="--to",
        remedy=f"for this network: --to {', '.join(left)}",
    )


def _processor(network: ImageNetwork) -> dict[str, Any]:
    """How transformers prepares images as the network was trained to see them."""
    mean, std = STATISTICS[network.normalization]
    side = network.shape.image_size
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def _settings(card: Card | None) -> ViTSettings | None:
    if card is None or card.architecture.class_path != CLASS_PATH:
        return None
    return settings_of(card.architecture.init_args)


def _read(path: Path) -> tuple[dict[str, Tensor], str, dict[str, str], Card | None]:
    """Tensors of a file, the entry that holds them, what stands beside it, and its card."""
    if path.suffix == ".safetensors":
        tensors, texts = read_safetensors(path)
        return state_of(tensors, path, _CONTAINERS), "", {}, card_of(texts, path)
    content: Mapping[str, Any] = read_content(path)
    tensors = state_of(content, path, _CONTAINERS)
    way: list[str] = []
    beside: dict[str, str] = {}
    for name in _CONTAINERS:
        if isinstance(content.get(name), Mapping):
            others = (other for other in content if other != name)
            beside |= {_shown(other): _kind(content[other]) for other in others}
            way.append(name)
            content = content[name]
    return tensors, ".".join(way), beside, None


def _kind(value: object) -> str:
    return f"{len(value)} entries" if isinstance(value, Mapping | list) else "a value"


def _shape(
    found: FoundViT, settings: ViTSettings | None, path: Path, heads: int | None
) -> ViTArchitecture:
    if settings is not None:
        # Compared before anything is made of a size that the card alone claims.
        different = unlike(shape_of(found.state, settings.shape.heads), settings.shape)
        if different:
            raise DataError(
                f"is not what its card says: it has {'; '.join(different)}",
                field="architecture",
                remedy="one of the two was changed by hand: ask its authors for both",
            )
        return settings.shape
    config = _beside(path, CONFIG_FILE) if found.naming == "transformers" else {}
    told, norm_eps = config.get("num_attention_heads"), config.get("layer_norm_eps")
    return shape_of(
        found.state,
        told if isinstance(told, int) else heads,
        norm_eps if isinstance(norm_eps, float) else None,
    )


def _normalization(found: FoundViT, shape: ViTArchitecture, path: Path) -> str:
    """What trainer, family, or the settings of an image processor beside the weights tell."""
    if found.prefix in _IMAGENET_PREFIXES or shape.family != "dino":
        return "imagenet"
    if found.naming != "transformers":
        return ""
    processor = _beside(path, PROCESSOR_FILE)
    told = [processor.get("image_mean"), processor.get("image_std")]
    known = (name for name, both in STATISTICS.items() if [list(one) for one in both] == told)
    return next(known, "")


def _beside(path: Path, name: str) -> Mapping[str, Any]:
    """Settings that ``save_pretrained`` writes beside weights; empty where they are absent."""
    file = path.parent / name
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be read ({error})", path=file, remedy="copy it again") from error
    return content if isinstance(content, Mapping) else {}


def _source(found: FoundViT, card: Card | None) -> str:
    if card is not None:
        return "lidarssl"
    said = {
        "image_encoder.model.": "the trainer of CLCP",
        "backbone.timm_model.": "mmsegmentation on timm",
    }
    if found.prefix in said:
        return said[found.prefix]
    if found.naming == "transformers":
        return "transformers"
    return "timm, or the original authors, whose names are the same"


def _groups(others: Iterable[str]) -> dict[str, str]:
    """Tensors by the first parts of their names."""
    count = Counter(_shown(name.split(".")[0]) for name in others)
    return {name: f"{number} tensor{'s' * (number != 1)}" for name, number in count.items()}


def _shown(name: object) -> str:
    """A name of the file that stays on its line."""
    return "".join(one if one.isprintable() else "?" for one in str(name)[:40])
