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
        kind: what they are: "encoder", "dynamics" or "objective".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, type[nn.Module]] = {}

    def register(self, name: str) -> Callable[[Part], Part]:
        """A decorator that registers a class as ``name``.

        Raises:
            TypeError: if ``name`` is not a text, or what is decorated is not a subclass of ``nn.Module``.
            ValueError: if another class has this name already. The same class from the same module may come again, as
                when a notebook cell is run twice.
        """
        if not isinstance(name, str):
            raise TypeError(
                f'a name is missing: write @register_{self.kind}("mine") above the class, got {name!r}'
            )

        def add(part: Part) -> Part:
            if not (isinstance(part, type) and issubclass(part, nn.Module)):
                raise TypeError(f"{self.kind} {name!r} must be a subclass of torch.nn.Module, got {part!r}")
            known = self._parts.get(name)
            if known is not None and _place(known) != _place(part):
                raise ValueError(
                    f"the {self.kind} {name!r} is {_place(known)} already; register {_place(part)} under another name"
                )
            self._parts[name] = part
            return part

        return add

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def check(self, name: str, home: str | None = None) -> None:
        """Whether ``name`` is registered.

        Args:
            name: of a part.
            home: the module that registered it when a file was written.

        Raises:
            TypeError: if it is not a text.
            ValueError: if it is not registered, with the import or the decorator that is missing.
        """
        if not isinstance(name, str):
            raise TypeError(
                f"{self.kind} must be a registered name, one of {sorted(self._parts)}, got {_kind_of(name)}; "
                f"@register_{self.kind} gives a class a name, {self.kind}_options are its arguments"
            )
        if name in self._parts:
            return
        fix = (
            f"import {home}, which registers it, first (nothing in a file is executed)"
            if home
            else f"import the module that registers it, with @register_{self.kind}({name!r}), first"
        )
        raise ValueError(f"there is no {self.kind} {name!r}, only {sorted(self._parts)}; {fix}")

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
            TypeError: for options that are no dict by name.
            ValueError: for an unknown name, options that the constructor does not take or misses, or one that
                contradicts what is known.
        """
        self.check(name)
        if not isinstance(options, Mapping):
            raise TypeError(
                f"{self.kind}_options must be a dict of constructor arguments, got {_kind_of(options)}"
            )
        part = self._parts[name]
        accepted, takes_any = _arguments(part)
        given = {n: value for n, value in known.items() if n in accepted}
        for option, value in options.items():
            if option in given and given[option] != value:
                raise ValueError(
                    f"{self.kind} {name!r} gets {option}={given[option]!r} from the spec or from the configuration, "
                    f"the options say {value!r}; leave it out"
                )
            if option not in accepted and not takes_any:
                raise ValueError(self._takes_no(name, option, accepted - known.keys()))
        try:
            return part(**given, **{n: value for n, value in options.items() if n not in given})
        except TypeError as error:
            handed_on = set().union(*(_arguments(base)[0] for base in part.__mro__[:-1]))
            if takes_any and (unknown := [option for option in options if option not in handed_on]):
                raise ValueError(self._takes_no(name, unknown[0], handed_on - known.keys())) from error
            raise ValueError(
                f"{self.kind} {name!r} cannot be built with {self.kind}_options={dict(options)}: {error}"
            ) from error

    def _takes_no(self, name: str, option: str, accepted: set[str]) -> str:
        return f"{self.kind} {name!r} takes no option {option!r}, only {sorted(accepted)}"


_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def _arguments(part: type) -> tuple[set[str], bool]:
    """Names of the constructor's arguments, and whether it takes any other by name (``**options``)."""
    parameters = inspect.signature(part.__init__).parameters  # type: ignore[misc]
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return {n for n, p in parameters.items() if n != "self" and p.kind not in _VARIADIC}, takes_any


def _place(part: type) -> str:
    return f"{part.__module__}.{part.__qualname__}"


def _kind_of(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


ENCODERS = Registry("encoder")
DYNAMICS = Registry("dynamics")
OBJECTIVES = Registry("objective")

register_encoder = ENCODERS.register
register_dynamics = DYNAMICS.register
register_objective = OBJECTIVES.register
