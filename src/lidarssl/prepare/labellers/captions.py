"""Class prompts as one caption of an open-vocabulary detector, and back from tokens to classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lidarssl.errors import ConfigError
from lidarssl.prepare.labellers.base import checked_classes

# Class -> prompt, in the order of the labels that the first release of OLIVINE was trained on.
GROUNDED_SAM_PROMPTS = {
    "barrier": "barrier",
    "bicycle": "bicycle",
    "bus": "bus",
    "car": "car",
    "motorcycle": "motorcycle",
    "pedestrian": "pedestrian",
    "traffic_cone": "traffic cone",
    "truck": "truck",
    "road": "road",
    "sidewalk": "sidewalk",
    "terrain": "terrain",
    "vegetation": "vegetation",
    "building": "building",
}
# The detector's text encoder starts a new phrase at these.
_SEPARATORS = ".?"

Prompts = Sequence[str] | Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Caption:
    """Prompts in one text.

    Attributes:
        text: prompts in lower case, each followed by a full stop.
        spans: of each prompt, its first character and the one after its last.
        labels: of each prompt, the label value of its class, from 1.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    labels: tuple[int, ...]


def prompts_by_class(prompts: Prompts | None) -> dict[str, list[str]]:
    """Every class with its prompts; a list names classes by their prompts.

    Args:
        prompts: None for ``GROUNDED_SAM_PROMPTS``.

    Raises:
        ConfigError: a list is empty or names a prompt twice.
    """
    chosen = GROUNDED_SAM_PROMPTS if prompts is None else prompts
    if not isinstance(chosen, Mapping):
        return {prompt: [prompt] for prompt in checked_classes(chosen)}
    return {
        name: [given] if isinstance(given, str) else list(given) for name, given in chosen.items()
    }


def build_caption(prompts: Mapping[str, Sequence[str]]) -> Caption:
    """The caption that asks for all classes at once.

    Raises:
        ConfigError: a prompt is empty, is there twice, or holds a character that separates
            prompts; a class has none.
    """
    text, spans, labels, seen = "", [], [], set()
    for label, (name, given) in enumerate(prompts.items(), start=1):
        if not given:
            raise ConfigError(f"class '{name}' has no prompt", field="prompts")
        for prompt in given:
            phrase = " ".join(prompt.lower().split())
            if not phrase or phrase in seen or any(mark in phrase for mark in _SEPARATORS):
                raise ConfigError(
                    f"'{prompt}' of class '{name}' cannot be a prompt",
                    field="prompts",
                    remedy="each prompt once, of words without full stop and question mark",
                )
            seen.add(phrase)
            start = len(text) + bool(text)
            text = f"{text} {phrase}." if text else f"{phrase}."
            spans.append((start, start + len(phrase)))
            labels.append(label)
    return Caption(text, tuple(spans), tuple(labels))


def token_labels(offsets: Sequence[Sequence[int]], caption: Caption) -> Tensor:
    """Which class every token of the caption speaks of.

    Args:
        offsets: of each token its first character and the one after its last; both 0 for tokens
            that stand for no text.
        caption: that was cut into the tokens.

    Returns:
        (T,) int64: label value, 0 for separators and for tokens that stand for no text.

    Raises:
        ConfigError: a prompt has no token.
    """
    found = torch.zeros(len(offsets), dtype=torch.int64)
    for (start, end), label in zip(caption.spans, caption.labels, strict=True):
        inside = [start <= low < high <= end for low, high in offsets]
        if not any(inside):
            raise ConfigError(
                f"the detector's tokenizer has no token for '{caption.text[start:end]}'",
                field="prompts",
            )
        found[torch.tensor(inside)] = label
    return found
