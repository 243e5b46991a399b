from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lidarssl.errors import DataError
from lidarssl.report import strict_json


class Fruit(enum.StrEnum):
    APPLE = "apple"
    PEAR = "pear"


@dataclasses.dataclass(frozen=True)
class Inner:
    count: int
    weight: float | None


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    fruit: Fruit
    flag: bool
    inner: tuple[Inner, ...]
    words: dict[str, str]


GOOD = Outer("a", Fruit.PEAR, True, (Inner(1, 2.5), Inner(2, None)), {"k": "v"})

inners = st.builds(
    Inner,
    st.integers(-(2**60), 2**60),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
outers = st.builds(
    Outer,
    st.text(),
    st.sampled_from(Fruit),
    st.booleans(),
    st.lists(inners, max_size=3).map(tuple),
    st.dictionaries(st.text(), st.text(), max_size=3),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "fruit", "flag", "inner", "words", "x"]), inner)
    ),
    max_leaves=8,
)


@given(outers)
def test_what_is_written_is_read_back(value: Outer) -> None:
    text = json.dumps(strict_json.encode(value))
    assert strict_json.decode(Outer, json.loads(text), "") == value


def test_file_round_trip(tmp_path: Path) -> None:
    strict_json.write(tmp_path / "deep" / "a.json", GOOD)
    assert strict_json.read(tmp_path / "deep" / "a.json", Outer) == GOOD
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.json"]


@given(json_values)
def test_any_json_is_an_outer_or_a_data_error(value: object) -> None:
    with contextlib.suppress(DataError):
        assert isinstance(strict_json.decode(Outer, value, ""), Outer)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": 3}, "name"),
        ({"fruit": "plum"}, "fruit"),
        ({"fruit": ["apple"]}, "fruit"),
        ({"flag": 1}, "flag"),
        ({"inner": [{"count": True, "weight": 1}]}, "inner[0].count"),
        ({"inner": [{"count": 1}]}, "inner[0].weight"),
        ({"inner": [{"count": 1, "weight": float("nan")}]}, "inner[0].weight"),
        ({"inner": [{"count": 1, "weight": 10**400}]}, "inner[0].weight"),
        ({"words": {"k": None}}, "words.k"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_wrong_value_is_named_with_its_file(
    tmp_path: Path, change: dict[str, object], field: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({**strict_json.encode(GOOD), **change}))
    with pytest.raises(DataError) as caught:
        strict_json.read(path, Outer)
    assert caught.value.field == field
    assert caught.value.path == path


@pytest.mark.parametrize("text", ["", "{", "\udcff", "[" * 100_000, "[]", '{"name": "a"}'])
def test_a_file_that_is_no_record_is_a_data_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"a\.json"):
        strict_json.read(path, Outer)


def test_a_folder_and_a_missing_file_are_data_errors(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(DataError):
            strict_json.read(path, Outer)


def test_a_file_beyond_the_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict_json.write(tmp_path / "a.json", GOOD)
    monkeypatch.setattr(strict_json, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="larger than"):
        strict_json.read(tmp_path / "a.json", Outer)


def test_nan_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="None"):
        strict_json.write(tmp_path / "a.json", Inner(1, float("nan")))
    assert not list(tmp_path.iterdir())
