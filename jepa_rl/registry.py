"""Encoders, dynamics and objectives by name. A decorator registers your own.

::

    @register_encoder("mine")
    class MyEncoder(nn.Module): ...

    WorldModelConfig(spec, encoder="mine", encoder_options={...})

A checkpoint holds the names and not the code: import the module that registers yours before loading.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from torch import nn

Part = TypeVar("Part", bound=type[nn.Module])


class Registry:
    """Classes of one kind of part, by name.

    Args:
        kind: with its article, for error messages, such as "an encoder".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, type[nn.Module]] = {}

    def register(self, name: str) -> Callable[[Part], Part]:
        """A decorator that registers a class as ``name``.

        Raises:
            ValueError: if another class has this name already. The same class from the same module may be
                registered again, as when a notebook cell is run twice.
        """

        def add(part: Part) -> Part:
            known = self._parts.get(name)
            if known is not None and _place(known) != _place(part):
                raise ValueError(
                    f"there is already {self.kind} {name!r}, {_place(known)}; register {_place(part)} under "
                    "another name"
                )
            self._parts[name] = part
            return part

        return add

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def check(self, name: str, home: str | None = None) -> None:
        """Raises ValueError unless ``name`` is registered.

        Args:
            name: of a part.
            home: the module that registered it when a file was written.
        """
        if name in self._parts:
            return
        fix = (
            f"import {home}, which registers it, first (nothing in a file is executed)"
            if home
            else f"register yours with @register_{self.kind.split()[-1]}({name!r})"
        )
        raise ValueError(f"there is no {self.kind.split()[-1]} {name!r}, only {sorted(self._parts)}; {fix}")

    def home(self, name: str) -> str:
        """The module that registers ``name``."""
        return self._parts[name].__module__

    def build(self, name: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> nn.Module:
        """An instance of the part ``name``.

        Args:
            name: of the part.
            options: the user's arguments for its constructor.
            known: arguments that come from the spec and the other parts, such as channels, size and frames; a
                constructor is passed those that it has parameters for.

        Raises:
            ValueError: for an unknown name, options that the constructor does not take, or that contradict ``known``.
        """
        self.check(name)
        part = self._parts[name]
        parameters = inspect.signature(part.__init__).parameters
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        accepted = [n for n, p in parameters.items() if n != "self" and p.kind not in _VARIADIC]
        given = {n: value for n, value in known.items() if n in accepted}
        for option, value in options.items():
            if option in given and given[option] != value:
                raise ValueError(
                    f"{self.kind} {name!r} gets {option}={given[option]!r} from the spec, the options say {value!r}; "
                    "leave it out"
                )
            if option not in accepted and not takes_any:
                raise ValueError(
                    f"{self.kind} {name!r} takes no option {option!r}, only "
                    f"{sorted(set(accepted) - given.keys())}"
                )
        return part(**given, **{n: value for n, value in options.items() if n not in given})


_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def _place(part: type) -> str:
    return f"{part.__module__}.{part.__qualname__}"


ENCODERS = Registry("an encoder")
DYNAMICS = Registry("dynamics")
OBJECTIVES = Registry("an objective")

register_encoder = ENCODERS.register
register_dynamics = DYNAMICS.register
register_objective = OBJECTIVES.register
