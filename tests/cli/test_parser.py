"""Options that only a verb knows are taken out before argparse sees them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lidarssl.cli.arguments import build_parser
from lidarssl.cli.parser import at_least
from lidarssl.errors import ConfigError

KNOWN = ["slidr_minkunet_synthetic", "--run", "runs/x", "--quiet"]
PASSED = st.sampled_from(
    [
        (["--training.steps", "3"], ["--training.steps=3"]),
        (["--seed", "-1"], ["--seed=-1"]),
        (["--training={steps: 3, log_every: 1}"], ["--training={steps: 3, log_every: 1}"]),
        (["--method.backbone", "{a: b}"], ["--method.backbone={a: b}"]),
        (["--run.x=1"], ["--run.x=1"]),
    ]
)


@given(st.lists(PASSED, max_size=4), st.integers(0, 2))
def test_where_an_option_stands_does_not_matter(
    passed: list[tuple[list[str], list[str]]], place: int
) -> None:
    """Between any two words that argparse knows, a flag and its value not torn apart."""
    before = KNOWN[: (0, 1, 3)[place]]
    words = ["pretrain", *before, *(w for typed, _ in passed for w in typed), *KNOWN[len(before) :]]
    parser = build_parser()
    verb, known, options = parser.split(words)
    assert verb.prog == "lidarssl pretrain"
    assert known == ["pretrain", *KNOWN]
    assert options == [word for _, tied in passed for word in tied]
    arguments = parser.parse_args(known)
    assert arguments.recipe == KNOWN[0]
    assert str(arguments.run) == "runs/x"


def test_an_option_without_a_value_is_left_to_the_verb() -> None:
    words = ["probe", "name", "--probe.steps", "--seeds", "2"]
    _, known, options = build_parser().split(words)
    assert known == ["probe", "name", "--seeds", "2"]
    assert options == ["--probe.steps"]


def test_verbs_that_take_no_options_keep_every_word() -> None:
    _, known, options = build_parser().split(["report", "run", "--foo", "x"])
    assert (known, options) == (["report", "run", "--foo", "x"], [])


def test_nothing_is_abbreviated() -> None:
    """``--seed`` of a recipe must not become ``--seeds`` of the verb."""
    _, known, options = build_parser().split(["probe", "name", "--seed", "2"])
    assert options == ["--seed=2"]
    assert build_parser().parse_args(known).seeds == 1


@pytest.mark.parametrize("text", ["1", "17"])
def test_whole_numbers(text: str) -> None:
    assert at_least(1)(text) == int(text)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "abc", "", "9" * 30, "\u0663"])
def test_no_whole_numbers(text: str) -> None:
    parser = build_parser()
    with pytest.raises(ConfigError, match="is not a whole number of 1 or more"):
        parser.parse_args(["probe", "name", f"--seeds={text}"])
