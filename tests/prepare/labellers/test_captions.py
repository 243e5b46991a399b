"""Prompts to a caption, tokens of the caption to classes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lidarssl.errors import ConfigError
from lidarssl.prepare.labellers.captions import (
    GROUNDED_SAM_PROMPTS,
    build_caption,
    prompts_by_class,
    token_labels,
)

pytest.importorskip("transformers", exc_type=ImportError)

# The caption of the published script, where blanks after a full stop make no difference.
PUBLISHED = (
    "barrier.bicycle.bus.car.motorcycle.pedestrian.traffic cone.truck.road.sidewalk.terrain."
    "vegetation.building."
)
word = st.text("abcXYZ", min_size=1, max_size=5)
phrase = st.lists(word, min_size=1, max_size=3).map(" ".join)


def test_the_default_asks_what_was_published():
    assert build_caption(prompts_by_class(None)).text.replace(". ", ".") == PUBLISHED
    assert list(GROUNDED_SAM_PROMPTS)[6] == "traffic_cone"


@settings(deadline=None)
@given(st.lists(phrase, min_size=1, max_size=6, unique_by=str.lower))
def test_spans_lead_back_to_the_prompts(prompts: list[str]):
    caption = build_caption(prompts_by_class(prompts))
    assert [caption.text[slice(*span)] for span in caption.spans] == [p.lower() for p in prompts]
    assert caption.labels == tuple(range(1, len(prompts) + 1))
    assert caption.text.count(".") == len(prompts)


def test_several_prompts_of_a_class_share_its_label():
    asked = prompts_by_class({"person": ["pedestrian", "Man "], "car": "car"})
    caption = build_caption(asked)
    assert (caption.text, caption.labels) == ("pedestrian. man. car.", (1, 1, 2))


@pytest.mark.parametrize(
    "prompts", [[""], ["car. bus"], ["car?"], {"a": ["x"], "b": ["X"]}, {"a": []}]
)
def test_prompts_that_cannot_be_told_apart_are_refused(prompts):
    with pytest.raises(ConfigError, match="prompt"):
        build_caption(prompts_by_class(prompts))


def test_tokens_of_a_real_tokenizer(tmp_path: Path):
    from prepare.labellers.tiny_models import save_tokenizer

    caption = build_caption(prompts_by_class(["car", "traffic cone", "pedestrian"]))
    encoded = save_tokenizer(tmp_path)(caption.text, return_offsets_mapping=True)
    labels = token_labels(encoded["offset_mapping"], caption)
    # [CLS] car . traffic cone . ped ##estrian . [SEP]
    assert labels.tolist() == [0, 1, 0, 2, 2, 0, 3, 3, 0, 0]


def test_a_prompt_without_token_is_refused():
    caption = build_caption(prompts_by_class(["car", "bus"]))
    with pytest.raises(ConfigError, match="no token for 'bus'"):
        token_labels([(0, 0), (0, 3), (3, 4), (0, 0)], caption)
