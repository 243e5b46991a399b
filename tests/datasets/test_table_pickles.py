"""Tables that pandas pickled: equal to what pandas reads; what is no such table is refused."""

from __future__ import annotations

import gzip
import io
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lidarssl.datasets import table_pickles
from lidarssl.datasets.table_pickles import Table, parse_pickled_table, parse_table, read_table
from lidarssl.errors import DataError
from pandaset_files import (
    Layout,
    array,
    build,
    call,
    document,
    frame,
    group,
    labels,
    mapping,
    name,
    places,
    rows,
    sequence,
    table_bytes,
    table_file,
    value,
)

PATH = Path("07.pkl.gz")
COLUMNS = {
    "x": np.array([1.5, -2.0, 1e300]),
    "d": np.array([0, 1, -7]),
    "y": np.array([0.0, 4.0, 2.0]),
    "label": ["Car", None, "Zürich"],
    "moves": np.array([True, False, True]),
    "other": ["-", math.nan, 3],
}


def assert_same(table: Table, truth: dict[str, Any]) -> None:
    assert list(table) == list(truth)
    for key, column in truth.items():
        expected = column if isinstance(column, np.ndarray) else np.array(column, object)
        assert table[key].dtype == expected.dtype
        # NaN is not itself, and in a column of objects numpy takes it at its word.
        if expected.dtype == object:
            assert list(map(repr, table[key])) == list(map(repr, expected))
        else:
            np.testing.assert_array_equal(table[key], expected)


@pytest.mark.parametrize("layout", ["old", "new"])
def test_columns_come_back(layout: Layout) -> None:
    assert_same(parse_pickled_table(table_bytes(COLUMNS, layout), PATH), COLUMNS)
    assert_same(parse_table(table_file(COLUMNS, layout), PATH), COLUMNS)


def test_an_empty_table_has_its_columns() -> None:
    columns = {"class": np.zeros(0, np.int64), "label": np.zeros(0, object)}
    assert_same(parse_pickled_table(table_bytes(columns), PATH), columns)


def test_arrays_by_columns_and_of_foreign_byte_order() -> None:
    """numpy stores the bytes of a transposed table as they lie, and a flag."""
    table = np.arange(6, dtype=">f4").reshape(2, 3)
    axes = [labels(["a", "b"]), rows(3)]
    by_rows = array(table)
    by_columns = array(table.T.copy(), (2, 3))
    last = by_columns.rindex(pickle.NEWFALSE)
    by_columns = by_columns[:last] + pickle.NEWTRUE + by_columns[last + 1 :]
    for content in (by_rows, by_columns):
        read = parse_pickled_table(document(frame(axes, [(content, places([0, 1]))], "old")), PATH)
        np.testing.assert_array_equal(np.stack(list(read.values())), table)


@pytest.mark.parametrize("layout", ["old", "new"])
def test_pandas_reads_the_files_of_these_tests(layout: Layout) -> None:
    pandas = pytest.importorskip("pandas")
    read = pandas.read_pickle(io.BytesIO(table_bytes(COLUMNS, layout)), compression=None)
    assert_same({key: read[key].to_numpy() for key in read}, COLUMNS)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_pandas_writes_is_read(protocol: int, data: st.DataObject) -> None:
    pandas = pytest.importorskip("pandas")
    count = data.draw(st.integers(0, 5))
    kinds = {
        "float": st.floats(width=64),
        "int": st.integers(-(2**63), 2**63 - 1),
        "bool": st.booleans(),
        "text": st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    }
    types = {"float": "float64", "int": "int64", "bool": "bool", "text": "object"}
    chosen = data.draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=6))
    truth = {
        f"{place}.{kind}": np.array(
            data.draw(st.lists(kinds[kind], min_size=count, max_size=count)), types[kind]
        )
        for place, kind in enumerate(chosen)
    }
    written = pandas.DataFrame(truth)
    written.index.name = data.draw(st.sampled_from([None, "index"]))
    stream = io.BytesIO()
    written.to_pickle(stream, compression=None, protocol=protocol)
    assert_same(parse_pickled_table(stream.getvalue(), PATH), truth)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_text_and_chosen_rows_of_pandas(protocol: int) -> None:
    """Selected rows keep an axis of numbers; blocks lie by columns; text has a type of its own."""
    pandas = pytest.importorskip("pandas")
    written = pandas.DataFrame({"x": [1.0, 2, 3], "label": ["a", "b", "c"], "y": [4.0, 5, 6]})
    written["text"] = written["label"].astype(pandas.StringDtype("python", na_value=math.nan))
    written = written[written["x"] != 2]
    stream = io.BytesIO()
    written.to_pickle(stream, compression="gzip", protocol=protocol)
    read = parse_table(stream.getvalue(), PATH)
    assert list(read) == ["x", "label", "y", "text"]
    assert [column.tolist() for column in read.values()] == [
        [1, 3], ["a", "c"], [4, 6], ["a", "c"],
    ]  # fmt: skip


@pytest.mark.real
def test_official_files_read_as_pandas_reads_them(data_root: Path) -> None:
    pandas = pytest.importorskip("pandas")
    paths = sorted((data_root / "pandaset").glob("*/*/**/*.pkl.gz"))
    assert len(paths) == 9
    for path in paths:
        truth = pandas.read_pickle(path)
        assert_same(read_table(path), {key: truth[key].to_numpy() for key in truth})


def test_pandas_is_not_needed(tmp_path: Path) -> None:
    path = tmp_path / "07.pkl.gz"
    path.write_bytes(table_file(COLUMNS))
    program = (
        "import sys; sys.modules['pandas'] = None\n"
        "from pathlib import Path\n"
        "from lidarssl.datasets.table_pickles import read_table\n"
        f"print(*read_table(Path({str(path)!r})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == list(COLUMNS)


RANGE = name("pandas.core.indexes.range", "RangeIndex")
INDEX = name("pandas.core.indexes.base", "Index")
NEW_INDEX = name("pandas.core.indexes.base", "_new_Index")
FRAME = name("pandas.core.frame", "DataFrame")
ENCODE = name("_codecs", "encode")
NDARRAY, DTYPE = name("numpy", "ndarray"), name("numpy", "dtype")
RECONSTRUCT = name("numpy.core.multiarray", "_reconstruct")
BUFFER = name("numpy.core.numeric", "_frombuffer")
SLICE = name("builtins", "slice")
ONE = array(np.array([[1.0, 2.0]]))
AXES = (labels(["a"]), rows(2))
MANAGER = name("pandas.core.internals.managers", "BlockManager")
F8 = ("f8", "<")


def _with(values: bytes = ONE, where: bytes | None = None, axes: Any = AXES) -> bytes:
    return frame(axes, [(values, places([0]) if where is None else where)], "old")


def _dtype(code: Any, order: Any, *more: Any) -> bytes:
    made = call(DTYPE, value(code), value(False), value(True))
    return build(made, value((3, order, *(more or (None, None, None)), -1, -1, 0)))


def _array_of(dtype: bytes, shape: Any = (1, 2), content: bytes | None = None) -> bytes:
    start = call(RECONSTRUCT, NDARRAY, value((0,)), value(b"b"))
    payload = value(bytes(16)) if content is None else content
    return build(start, group(value(1), value(shape), dtype, value(False), payload))


def _axis(**content: Any) -> bytes:
    return call(NEW_INDEX, RANGE, mapping(**{key: value(part) for key, part in content.items()}))


ODD = {
    "nothing": value(None),
    "a list": sequence(value(1)),
    "a class": FRAME,
    "frame of arguments": call(FRAME, value("x")),
    "frame of a frame": build(call(FRAME), _with()),
    "frame without blocks": build(call(FRAME), mapping(_mgr=value(1))),
    "frame of an array": build(call(FRAME), mapping(_mgr=ONE)),
    "state twice": build(_with(), mapping(_mgr=value(1))),
    "state of a class": build(FRAME, mapping(_mgr=value(1))),
    "call of an array": call(ONE, value(1)),
    "call of a call": call(call(FRAME), value(1)),
    "arguments in a list": FRAME + sequence() + pickle.REDUCE,
    "numbers in the place of blocks": build(
        call(FRAME),
        mapping(_mgr=call(MANAGER, value(1), value(1))),
    ),
    "array of a frame": _with(build(call(RECONSTRUCT, FRAME, value((0,)), value(b"b")), value(()))),
    "array of a slice": _with(call(SLICE, value(0), value(1), value(1))),
    "array of too many arguments": _with(call(RECONSTRUCT, *(value(1),) * 9)),
    "array without content": _with(call(RECONSTRUCT, NDARRAY, value((0,)), value(b"b"))),
    "array of 7 bytes": _with(_array_of(_dtype(*F8), (1, 2), value(bytes(7)))),
    "array of text": _with(_array_of(_dtype(*F8), (1, 2), value("x" * 16))),
    "array of numbers in a list": _with(_array_of(_dtype(*F8), (1, 2), value([1, 2]))),
    "array of three dimensions": _with(_array_of(_dtype(*F8), (1, 1, 2))),
    "array of minus one rows": _with(_array_of(_dtype(*F8), (-1, -2))),
    "array of true rows": _with(_array_of(_dtype(*F8), (True, 2))),
    "array of endless rows": _with(_array_of(_dtype(*F8), (2**31 - 1, 2**31 - 1))),
    "shape of text": _with(_array_of(_dtype(*F8), ("1", "2"))),
    "buffer of arguments": _with(call(BUFFER, value(bytes(16)))),
    "buffer of a type": _with(call(BUFFER, *map(value, (bytes(16), "f8", (1, 2), "C")))),
    "structured type": _with(_array_of(_dtype("V16", "|", None, ("a",), None))),
    "numbers with fields": _with(_array_of(_dtype("f8", "<", None, ("a",), None))),
    "subarray": _with(_array_of(_dtype("f8", "<", ("f8", (2,)), None, None))),
    "dates": _with(_array_of(_dtype("M8", "<"))),
    "long text": _with(_array_of(_dtype("U2", "<"))),
    "type of a type": _with(_array_of(_dtype((1, 2), "<"))),
    "order of a list": _with(_array_of(_dtype("f8", ["<"]))),
    "type without state": _with(_array_of(call(DTYPE, value("f8")))),
    "objects as bytes": _with(_array_of(_dtype("O8", "|"))),
    "objects of a class": _with(_array_of(_dtype("O8", "|"), (1, 2), sequence(FRAME, FRAME))),
    "objects of objects": _with(_array_of(_dtype("O8", "|"), (1, 2), value([(1,), [2]]))),
    "objects of a list in itself": _with(
        _array_of(_dtype("O8", "|"), (1, 2), pickle.EMPTY_LIST + pickle.BINPUT + b"\x00"
        + pickle.MARK + (pickle.BINGET + b"\x00") * 2 + pickle.APPENDS)
    ),
    "rot13": _with(_array_of(_dtype(*F8), (1, 2), call(ENCODE, value("x"), value("rot13")))),
    "bytes above 255": _with(
        _array_of(_dtype(*F8), (1, 2), call(ENCODE, value("Ā" * 16), value("latin1")))
    ),
    "encode without encoding": _with(_array_of(_dtype(*F8), (1, 2), call(ENCODE, value("x")))),
    "slice of text": _with(where=call(SLICE, value("a"), value("b"), value("c"))),
    "slice of step 0": _with(where=call(SLICE, value(0), value(1), value(0))),
    "slice of two": _with(where=call(SLICE, value(0), value(1))),
    "slice of nothing": _with(where=call(SLICE, value(5), value(6), value(1))),
    "place 7": _with(where=array(np.array([7]))),
    "place minus one": _with(where=array(np.array([-1]))),
    "place one half": _with(where=array(np.array([0.5]))),
    "two places": _with(where=array(np.array([0, 0]))),
    "place of text": _with(where=value("x")),
    "range of floats": _with(axes=(AXES[0], _axis(start=0.0, stop=2.0, step=1.0))),
    "range of step 0": _with(axes=(AXES[0], _axis(start=0, stop=2, step=0))),
    "range without end": _with(axes=(AXES[0], _axis(start=0, step=1))),
    "range of three": _with(axes=(AXES[0], rows(3))),
    "endless range": _with(axes=(AXES[0], rows(2**31 - 1))),
    "axis of a frame": _with(axes=(AXES[0], call(NEW_INDEX, FRAME, mapping(data=ONE)))),
    "axis of a table": _with(axes=(AXES[0], call(NEW_INDEX, INDEX, mapping(data=ONE)))),
    "axis without content": _with(axes=(AXES[0], call(NEW_INDEX, INDEX))),
    "axis of text": _with(axes=(AXES[0], value("x"))),
    "one axis": _with(axes=(AXES[0],)),
    "numbered columns": _with(axes=(rows(1), rows(2))),
    "columns named by numbers": _with(
        axes=(call(NEW_INDEX, INDEX, mapping(data=array(np.array([1])))), rows(2))
    ),
    "columns named by nothing": _with(
        axes=(call(NEW_INDEX, INDEX, mapping(data=array(np.array([None])))), rows(2))
    ),
    "two columns of one name": frame(
        (labels(["a", "a"]), rows(2)), [(ONE, places([0])), (ONE, places([1]))], "old"
    ),
    "a column in the place of another": frame(AXES, [(ONE, places([0]))] * 2, "new"),
    "a column too few": _with(axes=(labels(["a", "b"]), rows(2))),
    "names in a dictionary of numbers": pickle.EMPTY_DICT
    + pickle.MARK + value(1) + value(2) + pickle.SETITEMS,
    "half a pair": pickle.EMPTY_DICT + pickle.MARK + value("a") + pickle.SETITEMS,
    "an item of a class": FRAME + value("a") + value(1) + pickle.SETITEM,
    "two values": value(1) + value(2),
    "no value": b"",
    "an open mark": pickle.MARK + _with(),
    "items without a mark": pickle.EMPTY_LIST + pickle.APPENDS,
    "an empty stack": pickle.TUPLE3,
    "memo of nothing": pickle.BINPUT + b"\x00",
    "a class named by numbers": value(1) + value(2) + pickle.STACK_GLOBAL,
    "text that is not text": pickle.SHORT_BINUNICODE + b"\x02\xff\xfe",
    "a class in no line": pickle.GLOBAL + b"os",
    "a class that is not text": pickle.GLOBAL + b"\xff\n\xfe\n",
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_odd_arguments_are_refused(case: str) -> None:
    with pytest.raises(DataError, match="is not a table of plain columns: it ") as error:
        parse_pickled_table(document(ODD[case]), PATH)
    assert error.value.path == PATH
    assert error.value.remedy


@pytest.mark.parametrize("kind", ["numbers", "bytes of text", "objects"])
def test_a_small_file_does_not_become_a_large_table(kind: str) -> None:
    """A thousand columns that are one and the same megabyte, or so."""
    count = 100_000
    content = {
        "numbers": array(np.zeros((1, count))),
        "bytes of text": _array_of(
            _dtype(*F8), (1, count), call(ENCODE, value("\0" * 8 * count), value("latin1"))
        ),
        "objects": array(np.full((1, count), None, object)),
    }[kind]
    get = pickle.BINGET + b"\x00"
    blocks = [(content + pickle.BINPUT + b"\x00", places([0]))]
    blocks += [(get, places([number])) for number in range(1, 1000)]
    axes = [labels([f"c{number}" for number in range(1000)]), rows(count)]
    with pytest.raises(DataError, match="more cells than it has content"):
        parse_pickled_table(document(frame(axes, blocks, "old")), PATH)


def test_truncated_files_are_refused_at_every_length() -> None:
    packed, plain = table_file(COLUMNS), table_bytes(COLUMNS)
    for end in range(len(packed)):
        with pytest.raises(DataError, match=r"07\.pkl\.gz: is not a whole gzip file"):
            parse_table(packed[:end], PATH)
    for end in range(len(plain)):
        with pytest.raises(DataError, match=r"07\.pkl\.gz: is not a table"):
            parse_pickled_table(plain[:end], PATH)


def test_every_flipped_byte_of_an_archive_is_noticed() -> None:
    packed, refused = table_file(COLUMNS), 0
    for place in range(10, len(packed)):
        spoilt = packed[:place] + bytes([packed[place] ^ 1]) + packed[place + 1 :]
        # The last byte of the compressed data ends in bits of no meaning.
        try:
            assert_same(parse_table(spoilt, PATH), COLUMNS)
        except DataError:
            refused += 1
    assert refused >= len(packed) - 11


def test_archives_are_unpacked_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    good = table_file(COLUMNS)
    monkeypatch.setattr(table_pickles, "SIZE_LIMIT", 100_000)
    assert_same(parse_table(good, PATH), COLUMNS)
    for size in (100_001, 5_000_000):
        with pytest.raises(DataError, match="unpacks to more than 100000 bytes"):
            parse_table(gzip.compress(bytes(size)), PATH)
    with pytest.raises(DataError, match="after the end"):
        parse_table(good + good, PATH)


def test_files_are_read_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "07.pkl.gz"
    path.write_bytes(table_file(COLUMNS))
    assert_same(read_table(path), COLUMNS)
    monkeypatch.setattr(table_pickles, "COMPRESSED_LIMIT", 100)
    with pytest.raises(DataError, match="at most 100 are read"):
        read_table(path)
    path.unlink()
    with pytest.raises(DataError, match="not found") as error:
        read_table(path, "unpack it")
    assert error.value.remedy == "unpack it"
