"""What the columns of an episode store are: the content of its ``store.json``."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jepa_rl.data.episode import Episode
from jepa_rl.files import naming
from jepa_rl.types import ActionSpec, as_tuples

FORMAT = "jepa-rl episode store"
VERSION = 1


@dataclass(frozen=True)
class Column:
    """One column of a store.

    Attributes:
        file: its name in the store's folder.
        shape, dtype: of one row.
        per_frame: whether an episode of T steps has T + 1 rows, one for each frame, or T, one for each step.
    """

    file: str
    shape: tuple[int, ...]
    dtype: np.dtype
    per_frame: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def rows(self, steps: int, episodes: int) -> int:
        """How many rows ``episodes`` of ``steps`` environment steps in all take."""
        return steps + episodes if self.per_frame else steps


@dataclass(frozen=True)
class Layout:
    """What ``store.json`` holds.

    Attributes:
        frame_shape: ``(c, y, x)`` of one single frame.
        action: the action space of one environment step.
        frames: how many frames an observation stacks when windows are read.
        extras: name of each further column to (shape of a row, dtype).

    Raises:
        ValueError: for shapes, names or dtypes that a store cannot hold.
    """

    frame_shape: tuple[int, int, int]
    action: ActionSpec
    frames: int = 1
    extras: Mapping[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if len(self.frame_shape) != 3 or min(self.frame_shape) < 1:
            raise ValueError(f"frame_shape must be (c, y, x) of one frame, got {self.frame_shape}")
        if self.frames < 1:
            raise ValueError(f"frames must be at least 1, got {self.frames}")
        for name, (shape, dtype) in self.extras.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"the extra column {name!r} needs a name of letters, digits and underscores")
            if name in ("frames", "actions", "rewards"):
                raise ValueError(f"an extra column cannot be called {name!r}; that column is there already")
            if np.dtype(dtype).kind not in "biuf" or 0 in shape:
                raise ValueError(f"extra {name!r} must hold numbers or booleans, got {dtype} {shape}")

    @staticmethod
    def make(
        frame_shape: Sequence[int],
        action: ActionSpec,
        frames: int = 1,
        extras: Mapping[str, Sequence[Any]] | None = None,
        source: str = "",
    ) -> Layout:
        """A layout from anything that reads as sizes and dtypes, such as lists; equal layouts compare equal.

        Args:
            frame_shape, action, frames, extras: see the class.

        Raises:
            ValueError: as the class.
        """
        rows = {
            name: (tuple(int(n) for n in shape), np.dtype(dtype).newbyteorder("<").str)
            for name, (shape, dtype) in (extras or {}).items()
        }
        channels, height, width = (int(n) for n in frame_shape)
        return Layout((channels, height, width), action, int(frames), rows, source)

    def columns(self) -> dict[str, Column]:
        """All columns by name."""
        action_dtype = "<i8" if self.action.kind == "discrete" else "<f4"
        columns = {
            "frames": Column("frames.bin", self.frame_shape, np.dtype(np.uint8), True),
            "actions": Column("actions.bin", self.action.shape, np.dtype(action_dtype), False),
            "rewards": Column("rewards.bin", (), np.dtype("<f4"), False),
        }
        for name, (shape, dtype) in self.extras.items():
            columns[name] = Column(f"extra.{name}.bin", shape, np.dtype(dtype), True)
        return columns

    def check(self, episode: Episode) -> None:
        """Raises ValueError unless the episode's columns are those of this layout."""
        if episode.extras.keys() != self.extras.keys():
            raise ValueError(
                f"the store has extras {sorted(self.extras)}, the episode has {sorted(episode.extras)}"
            )
        for name, column in self.columns().items():
            rows = episode.column(name)
            if rows.shape[1:] != column.shape or not np.can_cast(rows.dtype, column.dtype, "safe"):
                raise ValueError(
                    f"{name} of the store have rows of shape {column.shape} and dtype {column.dtype}, "
                    f"the episode's have {rows.shape[1:]} and {rows.dtype}"
                )
        self.action.encode(episode.actions)  # raises for a choice that does not exist

    def to_json(self) -> str:
        """The text of ``store.json``."""
        header = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(header | {"checksum": _checksum(header)}, indent=2, sort_keys=True)

    @staticmethod
    def from_json(text: str | bytes, path: Path) -> Layout:
        """The layout in the text of ``store.json``. Files of version 0.1.0 have no checksum.

        Args:
            text: of the file.
            path: of the file; for messages.

        Raises:
            ValueError: if the text is damaged, foreign, or from a newer version.
        """
        with naming(path, "is damaged; restore it from a copy"):
            header = json.loads(text)
            if not isinstance(header, dict) or header.get("format") != FORMAT:
                raise ValueError(
                    f"{path} does not belong to a {FORMAT}; open a folder that collect or "
                    "EpisodeStore.create wrote"
                )
            if header.get("version") != VERSION:
                raise ValueError(
                    f"{path} has format version {header.get('version')}, this jepa-rl reads version {VERSION}; "
                    "upgrade jepa-rl"
                )
            checksum = header.pop("checksum", None)
            if checksum is not None and checksum != _checksum(header):
                raise ValueError("its checksum does not fit its content")
            del header["format"], header["version"]
            action = ActionSpec(**as_tuples(header.pop("action")))
            return Layout.make(action=action, **header)


def _checksum(header: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(header, sort_keys=True).encode())
