"""Checkpoints that ship with the package, each with a card that says where it comes from.

``WorldModel.load("hub:two-rooms")``: ``"hub:" + name`` stands wherever the path of a world model is taken (``wrap``,
``MPCAgent``, ``JEPAMPC.from_weights``, ...). ``names()`` lists what there is, ``card(name)`` describes it. Files are
safetensors: no code in them is executed. docs/hub.md says what each holds.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

PREFIX = "hub:"
FOLDER = Path(__file__).resolve().parent
SUFFIX = ".safetensors"

__all__ = ["FOLDER", "PREFIX", "Card", "Score", "card", "is_name", "names", "path", "resolve"]


@dataclass(frozen=True)
class Score:
    """What a checkpoint reached.

    Attributes:
        measure: what is counted, with its unit.
        mean: over the episodes.
        low, high: 95% interval of the mean over episodes, for this one training seed.
        episodes: how many.
    """

    measure: str
    mean: float
    low: float
    high: float
    episodes: int


@dataclass(frozen=True)
class Card:
    """Where a checkpoint comes from.

    Attributes:
        name: of the checkpoint.
        holds: parts of the file.
        data: what it learned from.
        training_seeds: of data and weights; the first reporting seed of the benchmark, named before it was run.
        commit: of the code that trained it.
        score: what it reached; None for a development file, which is replaced before a release.
        protocol: how the score was measured.
        recipe: command that makes it again.
        versions: of Python and the packages that it was trained with.
        sha256: of the file.
        note: anything else a user should know.
    """

    name: str
    holds: str
    data: str
    training_seeds: tuple[int, ...]
    commit: str
    score: Score | None
    protocol: str
    recipe: str
    versions: dict[str, str]
    sha256: str
    note: str = ""


def names(folder: Path = FOLDER) -> list[str]:
    """The checkpoints in a folder, sorted; by default those that ship with the package."""
    return sorted(file.stem for file in folder.glob(f"*{SUFFIX}"))


def path(name: str, folder: Path = FOLDER) -> Path:
    """The file of a checkpoint, compared with its card.

    Args:
        name: one of ``names()``; ``"hub:"`` before it may stand or not.
        folder: of checkpoints and cards.

    Raises:
        ValueError: if there is no such checkpoint, its card is missing or damaged, or the file is not the card's.
    """
    found = card(name, folder)
    file = folder / f"{found.name}{SUFFIX}"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != found.sha256:
        raise ValueError(
            f"{file} is not the checkpoint of its card: expected sha256 {found.sha256}, got {digest}; reinstall "
            "jepa-rl, or make file and card again (make hub)"
        )
    return file


def card(name: str, folder: Path = FOLDER) -> Card:
    """The card of a checkpoint. Arguments and errors are those of ``path``; the file's content is not compared."""
    name = name.removeprefix(PREFIX)
    if name not in names(folder):
        known = [PREFIX + other for other in names(folder)]
        raise ValueError(
            f"there is no checkpoint {PREFIX + name!r}; choose one of {known}, or give the path of a file of your own"
        )
    file = folder / f"{name}.json"
    if not file.is_file():
        raise ValueError(
            f"the checkpoint {PREFIX + name!r} has no card: {file} is missing; reinstall jepa-rl, or make both again "
            "(make hub)"
        )
    try:
        return _read(json.loads(file.read_text(encoding="utf-8")), name)
    except (TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} is no card of this version ({error}); reinstall jepa-rl, or make it again (make hub)"
        ) from error


def _read(data: dict[str, Any], name: str) -> Card:
    known = {field.name for field in fields(Card)}
    if unknown := sorted(data.keys() - known):
        raise ValueError(f"unknown entries {unknown}")
    if data.get("name") != name:
        raise ValueError(f"it is the card of {data.get('name')!r}")
    _check_texts(data)
    score = None if data.get("score") is None else Score(**data["score"])
    return Card(**data | {"training_seeds": tuple(data.get("training_seeds", ())), "score": score})


def _check_texts(data: dict[str, Any]) -> None:
    texts = ("name", "holds", "data", "commit", "protocol", "recipe", "sha256", "note")
    if wrong := [name for name in texts if not isinstance(data.get(name, ""), str)]:
        raise ValueError(f"the entries {wrong} are no texts")


def is_name(path: str | Path) -> bool:
    """Whether a path is the name of a checkpoint of the package: it begins with ``"hub:"``."""
    return str(path).startswith(PREFIX)


def resolve(path_or_name: str | Path) -> Path:
    """The file of ``"hub:two-rooms"``; any other path as it is.

    Raises:
        ValueError: as ``path``.
    """
    return path(str(path_or_name)) if is_name(path_or_name) else Path(path_or_name)
