"""Pickles read as data: what one would call is written down, and nothing is called.

A pickle is a program for a small stack machine whose instructions may import any name and call it
with any arguments. The machine here has only the instructions that arrange values. The others
leave a ``Record`` of what would have been called; a name outside the given list ends the reading.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

OPERATION_LIMIT = 1_000_000
PROTOCOLS = range(2, 6)
_REMEDY = "get the file again, or write it with pandas.DataFrame.to_pickle"


class MalformedPickle(ValueError):
    """What is wrong with a pickle; ``remedy`` tells what to do about it."""

    def __init__(self, problem: str, remedy: str = _REMEDY) -> None:
        super().__init__(problem)
        self.remedy = remedy


@dataclass(frozen=True)
class Symbol:
    """An importable name that a pickle refers to.

    Attributes:
        role: what the list of admitted names calls it.
    """

    role: str


@dataclass(eq=False)
class Record:
    """A call that a pickle asks for.

    Attributes:
        role: of the name that would be called.
        arguments: as given.
        state: what would be handed to ``__setstate__``, or None.
    """

    role: str
    arguments: tuple[Any, ...]
    state: Any = None


def read_records(data: bytes, admitted: Mapping[tuple[str, str], str]) -> Any:
    """The value of a pickle of protocol 2 to 5, with a ``Record`` for each call.

    Time and memory are bounded: by a limit on the instructions, and by ``data``, which holds every
    string once. Keys of dictionaries are strings.

    Args:
        data: the pickle.
        admitted: (module, name) -> role.

    Raises:
        MalformedPickle: another protocol, truncated, an instruction or a name that is not
            admitted, or an instruction that meets operands of the wrong kind.
    """
    if data[:1] != pickle.PROTO or len(data) < 2 or data[1] not in PROTOCOLS:
        raise MalformedPickle("is not a pickle of protocol 2 to 5")
    machine = _Machine(data, admitted)
    for _ in range(OPERATION_LIMIT):
        code = machine.take(1)
        if code == pickle.STOP:
            return machine.result()
        operation = _OPERATIONS.get(code)
        if operation is None:
            raise MalformedPickle(f"has an instruction (byte {code[0]}) that no table needs")
        operation(machine)
    raise MalformedPickle(f"has more than {OPERATION_LIMIT} instructions")


class _Machine:
    def __init__(self, data: bytes, admitted: Mapping[tuple[str, str], str]) -> None:
        self.data = data
        self.admitted = admitted
        self.position = 2
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        taken = self.data[self.position : self.position + size]
        if len(taken) < size:
            raise MalformedPickle("is truncated")
        self.position += size
        return taken

    def number(self, layout: str) -> Any:
        """The next value of a ``struct`` layout."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, size: int) -> str:
        return _decoded(self.take(size))

    def line(self) -> str:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise MalformedPickle("is truncated")
        line = self.text(end - self.position)
        self.position = end + 1
        return line

    def pop(self) -> Any:
        if not self.stack:
            raise MalformedPickle("takes a value from an empty stack")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.below:
            raise MalformedPickle("has no mark where one is needed")
        items, self.stack = self.stack, self.below.pop()
        return items

    def top(self, kind: type) -> Any:
        """The value on top, which must be a ``kind``."""
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise MalformedPickle(f"fills what is not a {kind.__name__.lower()}")
        return self.stack[-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def result(self) -> Any:
        if self.below or len(self.stack) != 1 or self.position != len(self.data):
            raise MalformedPickle("does not end with its only value")
        return self.stack[0]


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedPickle("holds text that is not UTF-8") from error


def _constant(machine: _Machine, value: Any) -> None:
    machine.push(value)


def _number(machine: _Machine, layout: str) -> None:
    machine.push(machine.number(layout))


def _long(machine: _Machine) -> None:
    machine.push(int.from_bytes(machine.take(machine.number("<B")), "little", signed=True))


def _text(machine: _Machine, layout: str) -> None:
    machine.push(machine.text(machine.number(layout)))


def _bytes(machine: _Machine, layout: str) -> None:
    machine.push(machine.take(machine.number(layout)))


def _tuple(machine: _Machine, size: int) -> None:
    machine.push(tuple([machine.pop() for _ in range(size)][::-1]))


def _marked_tuple(machine: _Machine) -> None:
    machine.push(tuple(machine.pop_to_mark()))


def _empty_list(machine: _Machine) -> None:
    machine.push([])


def _empty_dict(machine: _Machine) -> None:
    machine.push({})


def _mark(machine: _Machine) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _append(machine: _Machine) -> None:
    value = machine.pop()
    machine.top(list).append(value)


def _appends(machine: _Machine) -> None:
    items = machine.pop_to_mark()
    machine.top(list).extend(items)


def _set_item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    _fill(machine, [key, value])


def _set_items(machine: _Machine) -> None:
    _fill(machine, machine.pop_to_mark())


def _fill(machine: _Machine, items: list[Any]) -> None:
    # Only strings are keys: the hash of a deeply nested tuple would exhaust the C stack.
    if len(items) % 2 or not all(isinstance(key, str) for key in items[::2]):
        raise MalformedPickle("has a dictionary whose keys are not strings")
    machine.top(dict).update(zip(items[::2], items[1::2], strict=True))


def _put(machine: _Machine, layout: str) -> None:
    machine.memo[machine.number(layout)] = machine.top(object)


def _memoize(machine: _Machine) -> None:
    machine.memo[len(machine.memo)] = machine.top(object)


def _get(machine: _Machine, layout: str) -> None:
    index = machine.number(layout)
    if index not in machine.memo:
        raise MalformedPickle(f"refers to a value {index} that it does not have")
    machine.push(machine.memo[index])


def _frame(machine: _Machine) -> None:
    machine.number("<Q")


def _global(machine: _Machine) -> None:
    module, name = machine.line(), machine.line()
    machine.push(_symbol(machine, module, name))


def _stack_global(machine: _Machine) -> None:
    name, module = machine.pop(), machine.pop()
    machine.push(_symbol(machine, module, name))


def _symbol(machine: _Machine, module: Any, name: Any) -> Symbol:
    if not isinstance(module, str) or not isinstance(name, str):
        raise MalformedPickle("names a class by something that is not text")
    role = machine.admitted.get((module, name))
    if role is None:
        raise MalformedPickle(
            f"names {f'{module}.{name}'[:200]!r}, which is no part of a table; nothing was run",
            remedy="do not open this file with another program: it may run code. Get the "
            "publisher's file, or write plain columns with pandas.DataFrame.to_pickle",
        )
    return Symbol(role)


def _call(machine: _Machine) -> None:
    arguments, called = machine.pop(), machine.pop()
    if not isinstance(called, Symbol) or not isinstance(arguments, tuple):
        raise MalformedPickle("calls what is not a name, or with arguments that are not a tuple")
    machine.push(Record(called.role, arguments))


def _build(machine: _Machine) -> None:
    state = machine.pop()
    record = machine.top(Record)
    if record.state is not None:
        raise MalformedPickle("sets the state of an object twice")
    record.state = state


_Operation = Callable[[_Machine], None]
_OPERATIONS: dict[bytes, _Operation] = {
    pickle.NONE: partial(_constant, value=None),
    pickle.NEWTRUE: partial(_constant, value=True),
    pickle.NEWFALSE: partial(_constant, value=False),
    pickle.EMPTY_TUPLE: partial(_constant, value=()),
    pickle.BININT: partial(_number, layout="<i"),
    pickle.BININT1: partial(_number, layout="<B"),
    pickle.BININT2: partial(_number, layout="<H"),
    pickle.BINFLOAT: partial(_number, layout=">d"),
    pickle.LONG1: _long,
    pickle.SHORT_BINUNICODE: partial(_text, layout="<B"),
    pickle.BINUNICODE: partial(_text, layout="<I"),
    pickle.BINUNICODE8: partial(_text, layout="<Q"),
    pickle.SHORT_BINBYTES: partial(_bytes, layout="<B"),
    pickle.BINBYTES: partial(_bytes, layout="<I"),
    pickle.BINBYTES8: partial(_bytes, layout="<Q"),
    pickle.BYTEARRAY8: partial(_bytes, layout="<Q"),
    pickle.TUPLE1: partial(_tuple, size=1),
    pickle.TUPLE2: partial(_tuple, size=2),
    pickle.TUPLE3: partial(_tuple, size=3),
    pickle.TUPLE: _marked_tuple,
    pickle.EMPTY_LIST: _empty_list,
    pickle.EMPTY_DICT: _empty_dict,
    pickle.MARK: _mark,
    pickle.APPEND: _append,
    pickle.APPENDS: _appends,
    pickle.SETITEM: _set_item,
    pickle.SETITEMS: _set_items,
    pickle.BINPUT: partial(_put, layout="<B"),
    pickle.LONG_BINPUT: partial(_put, layout="<I"),
    pickle.MEMOIZE: _memoize,
    pickle.BINGET: partial(_get, layout="<B"),
    pickle.LONG_BINGET: partial(_get, layout="<I"),
    pickle.FRAME: _frame,
    pickle.GLOBAL: _global,
    pickle.STACK_GLOBAL: _stack_global,
    pickle.NEWOBJ: _call,
    pickle.REDUCE: _call,
    pickle.BUILD: _build,
}
