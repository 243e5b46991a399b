"""Pickles that would run something, run for ever or fill the memory: refused, with nothing run."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lidarssl.datasets.pickle_records import OPERATION_LIMIT
from lidarssl.datasets.table_pickles import parse_pickled_table, parse_table
from lidarssl.errors import DataError
from pandaset_files import (
    build,
    call,
    document,
    name,
    table_bytes,
    value,
)

PATH = Path("07.pkl.gz")
FRAME = name("pandas.core.frame", "DataFrame")


class Command:
    """What an attacker's pickle does: run a command as soon as it is loaded."""

    def __init__(self, called: Callable[..., Any], *arguments: Any) -> None:
        self.called, self.arguments = called, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.called, self.arguments


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("called", [os.system, eval, exec, getattr, __import__])
def test_a_pickle_that_would_run_something_is_refused(
    tmp_path: Path, protocol: int, called: Callable[..., Any]
) -> None:
    mark = tmp_path / "ran"
    arguments: dict[Any, tuple[Any, ...]] = {
        os.system: (f"touch '{mark}'",),
        eval: (f"open({str(mark)!r}, 'w')",),
        exec: (f"open({str(mark)!r}, 'w')",),
        getattr: (os, "system"),
        __import__: ("antigravity",),
    }
    if called is getattr:
        data = document(call(name("builtins", "getattr"), name("os", "path"), value("join")))
    else:
        data = pickle.dumps([1, Command(called, *arguments[called])], protocol)
    for content in (data, frame_around(data)):
        with pytest.raises(DataError, match="nothing was run") as error:
            parse_table(gzip.compress(content), PATH)
        assert called.__name__ in str(error.value)
        assert error.value.path == PATH
        assert "publisher" in str(error.value.remedy)
    assert not mark.exists()
    if called in (os.system, eval, exec):
        pickle.loads(data)
        assert mark.exists(), "the same bytes do run where pickles are trusted"


def frame_around(data: bytes) -> bytes:
    """A good table with the instructions of another pickle after its columns."""
    content = data[2:-1]
    if data[1] >= 4 and content[:1] == pickle.FRAME:
        content = content[9:]
    good = table_bytes({"x": np.zeros(2)})
    return pickle.PROTO + bytes([max(data[1], 3)]) + good[2:-1] + content + pickle.STOP


FORBIDDEN = [
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("builtins", "eval"),
    ("__builtin__", "getattr"),
    ("builtins", "bytearray"),
    ("subprocess", "Popen"),
    ("functools", "partial"),
    ("operator", "attrgetter"),
    ("copyreg", "_reconstructor"),
    ("importlib", "import_module"),
    ("pandas", "read_pickle"),
    ("pandas", "DataFrame.query"),
    ("pandas", "io.common.os.system"),
    ("numpy", "load"),
    ("numpy", "ndarray.tofile"),
    ("numpy.testing._private.utils", "runstring"),
    ("_codecs", "decode"),
    ("lidarssl.datasets.files", "read_bytes"),
    ("", ""),
]


@pytest.mark.parametrize(("module", "attribute"), FORBIDDEN)
def test_every_other_name_is_refused(module: str, attribute: str) -> None:
    stacked = value(module) + value(attribute) + pickle.STACK_GLOBAL
    for named in (name(module, attribute), stacked):
        for content in (named, call(named, value("id")), build(call(named), value(()))):
            with pytest.raises(DataError, match="names") as error:
                parse_pickled_table(document(content, 4), PATH)
            assert f"{module}.{attribute}" in str(error.value)


@pytest.mark.parametrize(
    "instruction",
    [
        pickle.PERSID + b"1\n",
        value("1") + pickle.BINPERSID,
        pickle.EXT1 + b"\x01",
        pickle.EXT2 + b"\x01\x00",
        pickle.EXT4 + b"\x01\x00\x00\x00",
        pickle.INST + b"os\nsystem\n",
        pickle.MARK + name("pandas", "DataFrame") + pickle.OBJ,
        pickle.NEWOBJ_EX,
        pickle.NEXT_BUFFER,
        pickle.READONLY_BUFFER,
        pickle.INT + b"1\n",
        pickle.STRING + b"'a'\n",
        pickle.UNICODE + b"a\n",
        pickle.LONG4 + b"\x01\x00\x00\x00\x01",
        value(1) + pickle.DUP,
        pickle.EMPTY_SET,
        b"\xff",
    ],
)
def test_instructions_that_no_table_needs_are_refused(instruction: bytes) -> None:
    with pytest.raises(DataError, match=r"instruction \(byte"):
        parse_pickled_table(document(instruction), PATH)


@pytest.mark.parametrize("start", [b"", b"\x80", b"(lp0\n.", b"\x80\x01N.", b"\x80\x06N.", b"N."])
def test_other_protocols_are_refused(start: bytes) -> None:
    with pytest.raises(DataError, match="protocol 2 to 5"):
        parse_pickled_table(start, PATH)


DEPTH = 100_000
HOSTILE = {
    "tuples": pickle.NONE + pickle.TUPLE1 * DEPTH,
    "lists": pickle.EMPTY_LIST * DEPTH + pickle.APPEND * (DEPTH - 1),
    "marks": pickle.MARK * DEPTH,
    "calls": FRAME + pickle.BINPUT + b"\x00" + value(1)
    + (pickle.TUPLE1 + pickle.BINGET + b"\x00" + value(1) + pickle.TUPLE2) * DEPTH,
    "a frame of nested calls": FRAME + pickle.BINPUT + b"\x00" + pickle.EMPTY_TUPLE
    + pickle.REDUCE + (pickle.BINPUT + b"\x01" + pickle.TUPLE1 + pickle.BINPUT + b"\x01"
    + pickle.BINGET + b"\x00" + pickle.BINGET + b"\x01" + pickle.REDUCE) * DEPTH,
    "a key of nested tuples": pickle.EMPTY_DICT + pickle.NONE + pickle.TUPLE1 * DEPTH
    + pickle.NONE + pickle.SETITEM,
    "a shape of nested tuples": FRAME + pickle.EMPTY_TUPLE + pickle.REDUCE + pickle.EMPTY_DICT
    + value("_mgr") + pickle.NONE + pickle.TUPLE1 * DEPTH + pickle.SETITEM + pickle.BUILD,
    "a list in itself": pickle.EMPTY_LIST + pickle.BINPUT + b"\x00" + pickle.BINGET + b"\x00"
    + pickle.APPEND,
    "a memo of four billion": pickle.NONE + pickle.LONG_BINPUT + b"\xff" * 4 + pickle.LONG_BINGET
    + b"\xff" * 4 + pickle.TUPLE2,
    "an absent memo": pickle.BINGET + b"\x07",
    "bytes of an exabyte": pickle.BINBYTES8 + struct.pack("<Q", 2**60),
    "text of an exabyte": pickle.BINUNICODE8 + struct.pack("<Q", 2**64 - 1),
    "a buffer of an exabyte": pickle.BYTEARRAY8 + struct.pack("<Q", 2**63),
    "too many instructions": pickle.NONE * (OPERATION_LIMIT + 1),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickles_are_refused(case: str) -> None:
    with pytest.raises(DataError):
        parse_pickled_table(document(HOSTILE[case], 4), PATH)
