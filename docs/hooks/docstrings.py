"""Turns the docstrings' plain marks into the site's: references, code blocks, and arguments that share a line.

An extension of griffe, which reads the sources for mkdocstrings without importing them. A docstring says
````MPCAgent```` for a reader of the source; the site makes a link of it where the name stands on one of its pages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

# Modules that stand on an API page, where references can lead.
SHOWN = {
    module
    for page in (Path(__file__).parent.parent / "api").glob("*.md")
    for module in re.findall(r"^::: ([\w.]+)", page.read_text(), re.MULTILINE)
}


class Docstrings(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called once, when all of jepa_rl has been read."""
        names = dict(public_names(pkg))
        for thing in everything(pkg):
            if thing.docstring is not None:
                own = arguments(thing)
                known = {name: path for name, path in names.items() if name not in own}
                thing.docstring.value = rewritten(thing.docstring.value, known)


def everything(thing: griffe.Object) -> Iterator[griffe.Object]:
    yield thing
    for member in thing.members.values():
        if isinstance(member, griffe.Object):
            yield from everything(member)


def public_names(pkg: griffe.Module) -> Iterator[tuple[str, str]]:
    """What a docstring may call a thing, and the path under which the site knows it."""
    for module in everything(pkg):
        if not isinstance(module, griffe.Module) or module.path not in SHOWN:
            continue
        own = [name for name, member in module.members.items() if not member.is_alias]
        for name in map(str, module.exports or own):
            member = module.members.get(name)
            target = resolved(member)
            shown = isinstance(target, griffe.Class | griffe.Function) and target.docstring is not None
            if not shown or name.startswith("_"):
                continue
            yield name, target.path
            yield f"{module.path}.{name}", target.path
            for method in target.members.values() if isinstance(target, griffe.Class) else ():
                if (
                    isinstance(method, griffe.Function)
                    and method.docstring
                    and not method.name.startswith("_")
                ):
                    yield f"{name}.{method.name}", method.path


def arguments(thing: griffe.Object) -> set[str]:
    """Names that mean an argument in this docstring, whatever else is called so."""
    made = thing.members.get("__init__") if isinstance(thing, griffe.Class) else thing
    own = {p.name for p in made.parameters} if isinstance(made, griffe.Function) else set()
    return own | (set(thing.members) if isinstance(thing, griffe.Class) else set())


def resolved(member: griffe.Object | griffe.Alias | None) -> griffe.Object | griffe.Alias | None:
    """What an imported name stands for; None for what griffe does not see, such as results of calls."""
    try:
        return member.final_target if isinstance(member, griffe.Alias) else member
    except griffe.AliasResolutionError:
        return None


def rewritten(text: str, names: dict[str, str]) -> str:
    text = re.sub(r"(?<=\S)::$", ":", text, flags=re.MULTILINE)
    text = re.sub(r"^::$\n?", "", text, flags=re.MULTILINE)
    text = "\n".join(line for each in text.splitlines() for line in shared(each))

    def linked(found: re.Match[str]) -> str:
        path = names.get(found[1])
        return f"[`{found[1]}`][{path}]" if path else found[0]

    return re.sub(r"``([\w.]+)``", linked, text)


def shared(line: str) -> list[str]:
    """``low, high: bounds`` once for each argument, as the parser of sections wants it."""
    found = re.fullmatch(r"( +)(\w+(?:, \w+)+): (.*)", line)
    return [f"{found[1]}{name}: {found[3]}" for name in found[2].split(", ")] if found else [line]
