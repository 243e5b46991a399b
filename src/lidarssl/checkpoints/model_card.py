"""The page that people see of weights on a hub: Markdown made from the card."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import yaml
from torch import Tensor

from lidarssl.checkpoints.card import Card

# Licences that the hub knows by name; others are "other" with a name of their own.
_KNOWN_LICENCES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0",
}  # fmt: skip
_UNSTATED = "not stated"
_IMAGES = "lidarssl.images."


def model_card(card: Card, state: Mapping[str, Tensor], repository: str) -> str:
    """Markdown with a YAML header.

    Args:
        card: of the weights.
        state: the weights.
        repository: where they can be pulled from.
    """
    header = yaml.safe_dump(_header(card), sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n" + "\n".join(_body(card, state, repository)) + "\n"


def _header(card: Card) -> dict[str, object]:
    licence = card.licence.strip()
    header: dict[str, object] = {"library_name": "lidarssl"}
    if licence.lower() in _KNOWN_LICENCES:
        header["license"] = licence.lower()
    else:
        header |= {"license": "other", "license_name": licence or _UNSTATED}
    kind = "image-feature-extraction" if _is_image_encoder(card) else "point-cloud"
    return header | {"tags": ["lidar", kind, "self-supervised-learning"]}


def _is_image_encoder(card: Card) -> bool:
    return card.architecture.class_path.startswith(_IMAGES)


def _body(card: Card, state: Mapping[str, Tensor], repository: str) -> Iterator[str]:
    name = _plain(card.architecture.class_path.rpartition(".")[2])
    images = _is_image_encoder(card)
    what, part = ("an image encoder", "encoder") if images else ("a lidar backbone", "backbone")
    parameters = sum(value.numel() for key, value in state.items() if not _is_statistic(key))
    yield f"# {name}" + (f", pretrained with {_plain(card.recipe)}" if card.recipe else "")
    yield ""
    yield f"Weights of {what}: {parameters:,} parameters, safetensors with a card inside."
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| architecture | `{_plain(card.architecture.class_path)}` |"
    yield f"| method | {_plain(card.recipe) or _UNSTATED} |"
    yield f"| data | {', '.join(map(_plain, card.data)) or _UNSTATED} |"
    yield f"| steps | {card.step or _UNSTATED} |"
    yield f"| licence | {_plain(card.licence) or _UNSTATED} |"
    yield f"| written by | lidarssl {_plain(card.version)} |"
    yield ""
    yield from _scores(card)
    yield "## Use"
    yield ""
    yield "```bash"
    yield f"lidarssl pull {repository} --output weights"
    yield "lidarssl convert weights"
    if images and name == "ViT":
        yield "lidarssl convert weights --to transformers --output vit"
    yield f"lidarssl {'finetune' if images else 'probe'} RECIPE --checkpoint weights"
    yield "```"
    yield ""
    yield f"The {part} of RECIPE must have these arguments:"
    yield ""
    yield "```yaml"
    node = {"class_path": name, "init_args": _lists(card.architecture.init_args)}
    yield yaml.safe_dump(node, sort_keys=False, default_flow_style=None).rstrip()
    yield "```"
    yield ""
    yield "The licence of the training data may restrict what the weights may be used for."


def _scores(card: Card) -> Iterator[str]:
    if not card.metrics:
        return
    yield "## Scores"
    yield ""
    yield "| metric | value |"
    yield "|---|---|"
    for metric, value in card.metrics.items():
        yield f"| {_plain(metric)} | {'undefined' if value is None else f'{value:.6g}'} |"
    yield ""


def _is_statistic(key: str) -> bool:
    return key.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")


def _lists(value: object) -> object:
    """Tuples as lists, which plain YAML has a form for."""
    if isinstance(value, Mapping):
        return {str(key): _lists(inner) for key, inner in value.items()}
    return [_lists(inner) for inner in value] if isinstance(value, list | tuple) else value


def _plain(text: str) -> str:
    """Text that stays in its cell."""
    return re.sub(r"[\s|`<>]+", " ", text).strip()
