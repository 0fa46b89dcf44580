"""Pickles read as data: what they name, and what they would call, without importing or calling any of it."""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


class PickleError(ValueError):
    """A pickle that is damaged, or uses something that those of settings do not use."""


@dataclass(eq=False)
class Named:
    """A class or function that a pickle names; nothing is imported.

    Attributes:
        path: module and name, joined by a dot.
    """

    path: str


@dataclass(eq=False)
class Call:
    """An object that unpickling would make by a call; nothing is called.

    Attributes:
        function: what would be called, or whose ``__new__`` would be.
        args: its arguments.
        state: what the object's ``__setstate__`` or ``__dict__`` would then be given; None for nothing.
        items: what would be appended to the object.
        pairs: what would be set in it by key.
    """

    function: Any
    args: tuple[Any, ...]
    state: Any = None
    items: list[Any] = field(default_factory=list)
    pairs: list[tuple[Any, Any]] = field(default_factory=list)


def called(function: Any) -> PickleError:
    """The refusal of a call."""
    path = function.path if isinstance(function, Named) else "something that it made itself"
    if path.startswith("cloudpickle."):
        return PickleError(f"it holds the code of a function or class ({path})")
    return PickleError(f"it calls {path}")


def read_pickle(data: bytes) -> Any:
    """The content of a pickle of protocol 4 or 5, as cloudpickle writes them.

    Args:
        data: the pickle.

    Returns:
        None, bools, numbers, texts, bytes, lists, tuples, dicts, sets, and ``Named`` and ``Call`` for all else.

    Raises:
        PickleError: if it is damaged, or uses other operations.
    """
    machine = _Machine()
    try:
        for operation, argument, _ in pickletools.genops(data):
            step = STEPS.get(operation.name)
            if step is None:
                raise PickleError(f"its pickle uses {operation.name}, which settings do not need")
            step(machine, argument)
        (found,) = machine.stack
    except (ValueError, TypeError, IndexError, KeyError) as error:
        if isinstance(error, PickleError):
            raise
        raise PickleError(f"its pickle is damaged ({error!r})") from error
    return found


class _Machine:
    """The stack of a pickle, the stacks below its marks, and its memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        found, self.stack = self.stack, self.below.pop()
        return found

    def take(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise PickleError("its pickle is damaged (values are missing)")
        found = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return tuple(found)

    def named(self) -> None:
        module, name = self.take(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise PickleError("its pickle names something by no text")
        self.push(Named(f"{module}.{name}"))

    def drop(self) -> None:
        """Calls whose result is dropped are made for what they do, such as those that finish a function."""
        dropped = self.pop()
        if isinstance(dropped, Call):
            raise called(dropped.function)

    def call(self) -> None:
        function, args = self.take(2)
        if not isinstance(args, tuple):
            raise PickleError("its pickle calls something with no tuple of arguments")
        self.push(Call(function, args))

    def build(self) -> None:
        state, made = self.pop(), self.stack[-1]
        if not isinstance(made, Call) or made.state is not None:
            raise PickleError("its pickle gives a state to something that takes none")
        made.state = state

    def append(self, values: list[Any]) -> None:
        into = self.stack[-1]
        (into.items if isinstance(into, Call) else _expect(into, list)).extend(values)

    def set(self, values: list[Any]) -> None:
        into, pairs = self.stack[-1], list(zip(values[::2], values[1::2], strict=True))
        if isinstance(into, Call):
            into.pairs.extend(pairs)
        else:
            _expect(into, dict).update(pairs)

    def add(self, values: list[Any]) -> None:
        _expect(self.stack[-1], set).update(values)


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise PickleError(f"its pickle fills a {type(value).__name__} as if it were a {kind.__name__}")
    return value


def _value(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


def _nothing(machine: _Machine, argument: Any) -> None:
    """Marks of the format, which carry no value."""


# What each operation does. STACK_GLOBAL, which imports, REDUCE and NEWOBJ, which call, and BUILD only note it here.
STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
         "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        _value,
    ),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_SET": lambda m, _: m.push(set()),
    "POP": lambda m, _: m.drop(),
    "MARK": lambda m, _: m.mark(),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_mark())),
    "TUPLE1": lambda m, _: m.push(m.take(1)),
    "TUPLE2": lambda m, _: m.push(m.take(2)),
    "TUPLE3": lambda m, _: m.push(m.take(3)),
    "FROZENSET": lambda m, _: m.push(frozenset(m.pop_mark())),
    "APPEND": lambda m, _: m.append([m.pop()]),
    "APPENDS": lambda m, _: m.append(m.pop_mark()),
    "SETITEM": lambda m, _: m.set(list(m.take(2))),
    "SETITEMS": lambda m, _: m.set(m.pop_mark()),
    "ADDITEMS": lambda m, _: m.add(m.pop_mark()),
    "MEMOIZE": lambda m, _: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    "BINPUT": lambda m, at: m.memo.__setitem__(at, m.stack[-1]),
    "LONG_BINPUT": lambda m, at: m.memo.__setitem__(at, m.stack[-1]),
    "BINGET": lambda m, at: m.push(m.memo[at]),
    "LONG_BINGET": lambda m, at: m.push(m.memo[at]),
    "STACK_GLOBAL": lambda m, _: m.named(),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
}  # fmt: skip
