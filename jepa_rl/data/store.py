"""A folder of episodes that can outgrow memory and never loses a finished episode to a crash.

Layout: one flat, append-only file of rows per column, read through memory maps, and an index::

    store.json      format version, frame shape, frames to stack, action space, extra columns
    frames.bin      uint8 (T + 1, c, y, x) per episode      extra.<name>.bin   (T + 1, ...) per episode
    actions.bin     (T, a) or (T,) per episode              rewards.bin        float32 (T,) per episode
    episodes.jsonl  one line per episode: length, terminated, truncated, metadata

The index line is the commit: columns are written and synced to disk first, the line after them. Bytes
beyond what the index counts belong to an append that never finished; they are ignored and overwritten.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jepa_rl.data.episode import Episode
from jepa_rl.data.layout import Column, Layout, extra_column
from jepa_rl.data.view import EpisodeView
from jepa_rl.types import ActionSpec, WorldSpec

_HEADER, _INDEX = "store.json", "episodes.jsonl"


class EpisodeStore:
    """Many readers, one writer at a time (the first ``append`` takes the lock, ``close`` gives it back).

    ``refresh`` shows a reader what a writer in another process has added meanwhile. Pickling a store keeps
    its path, so data-loader workers open their own.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        """Use :meth:`create` or :meth:`open`."""
        self.path = path
        self.layout = layout
        self._columns = layout.columns()
        self._maps: dict[str, np.ndarray] = {}
        self._lock: int | None = None
        self._forget()
        self._read_index(warn=True)

    # -- making and opening ------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | Path,
        frame_shape: tuple[int, int, int],
        action: ActionSpec,
        *,
        frames: int = 1,
        extras: Mapping[str, tuple[tuple[int, ...], Any]] | None = None,
        exist_ok: bool = False,
    ) -> EpisodeStore:
        """Make an empty store in the folder ``path``.

        Args:
            frame_shape: ``(c, y, x)`` of one single frame.
            frames: how many frames an observation stacks (applied when reading).
            extras: further columns per frame, name to (shape of a row, dtype).
            exist_ok: open a store that is already there, if it has the same layout.

        Raises:
            FileExistsError: if the folder holds a store and ``exist_ok`` is false.
            ValueError: if it holds a store of another layout, or an argument makes no sense.
        """
        path = Path(path)
        layout = Layout.make(frame_shape, action, frames, extras)
        if (path / _HEADER).exists():
            if not exist_ok:
                raise FileExistsError(f"{path} already holds a store; open it, or pass exist_ok=True")
            store = cls.open(path)
            if store.layout != layout:
                raise ValueError(f"{path} holds a store with {store.layout}, asked for {layout}")
            return store
        path.mkdir(parents=True, exist_ok=True)
        for column in layout.columns().values():
            (path / column.file).touch()
        (path / _INDEX).touch()
        _write_atomic(path / _HEADER, layout.to_json())  # last: a folder with a header is a whole store
        return cls(path, layout)

    @classmethod
    def open(cls, path: str | Path) -> EpisodeStore:
        """Open the store in the folder ``path``.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged, foreign, or written by a newer version.
        """
        path = Path(path)
        if not (path / _HEADER).is_file():
            raise FileNotFoundError(f"no episode store at {path}: {_HEADER} is missing")
        return cls(path, Layout.from_json((path / _HEADER).read_text(), path / _HEADER))

    def __reduce__(self) -> tuple:
        return EpisodeStore.open, (self.path,)

    def __enter__(self) -> EpisodeStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- reading -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Episodes."""
        return len(self.lengths)

    def __repr__(self) -> str:
        return f"EpisodeStore({str(self.path)!r}, episodes={len(self)}, steps={self.num_steps})"

    @property
    def lengths(self) -> np.ndarray:
        """Environment steps of each episode, int64 ``(episodes,)``."""
        return self._lengths

    @property
    def terminated(self) -> np.ndarray:
        """Whether the environment ended each episode, bool ``(episodes,)``."""
        return self._terminated

    @property
    def num_steps(self) -> int:
        return int(self._lengths.sum())

    @property
    def spec(self) -> WorldSpec:
        """The stacked observation and the action space."""
        c, y, x = self.layout.frame_shape
        return WorldSpec((self.layout.frames * c, y, x), self.layout.frames, self.layout.action)

    @property
    def step_starts(self) -> np.ndarray:
        """Row of each episode's first step in ``actions``; its first frame is at that + episode number."""
        return np.cumsum(self._lengths) - self._lengths

    def column(self, name: str) -> np.ndarray:
        """All rows of ``"frames"``, ``"actions"``, ``"rewards"`` or of an extra: a read-only memory map."""
        key = name if name in self._columns else extra_column(name)
        if key not in self._columns:
            raise ValueError(f"the store has no column {name!r}; its extras are {sorted(self.layout.extras)}")
        if key not in self._maps:
            self._maps[key] = self._map(self._columns[key])
        return self._maps[key]

    def episode(self, i: int) -> Episode:
        """A copy of episode ``i``."""
        i = range(len(self))[i]
        steps = slice(int(self.step_starts[i]), int(self.step_starts[i] + self._lengths[i]))
        frames = slice(steps.start + i, steps.stop + i + 1)
        return Episode(
            np.array(self.column("frames")[frames]),
            np.array(self.column("actions")[steps]),
            np.array(self.column("rewards")[steps]),
            bool(self._terminated[i]),
            bool(self._truncated[i]),
            {name: np.array(self.column(extra_column(name))[frames]) for name in self.layout.extras},
            self._metadata[i],
        )

    def view(self, indices: Iterable[int] | None = None) -> EpisodeView:
        """Some of the episodes (all of them by default), without copying."""
        chosen = range(len(self)) if indices is None else indices
        return EpisodeView(self, np.fromiter(chosen, np.int64))

    def split(self, fraction: float, seed: int) -> tuple[EpisodeView, EpisodeView]:
        """Two disjoint views of whole episodes: (training, held out); ``fraction`` of them are held out."""
        return self.view().split(fraction, seed)

    def refresh(self) -> None:
        """See the episodes that were added since the store was opened."""
        self._read_index(warn=False)

    # -- writing -----------------------------------------------------------------------------------

    def append(self, episode: Episode) -> None:
        """Add one episode; when this returns it is on disk. See :meth:`append_many`."""
        self.append_many([episode])

    def append_many(self, episodes: Iterable[Episode]) -> None:
        """Add episodes, synced to disk once. Either all are added, or none.

        Raises:
            ValueError: if an episode does not fit the store's layout.
            OSError: if the disk is full or another process is writing; the store stays as it was.
        """
        episodes = list(episodes)
        for episode in episodes:
            self._check_fits(episode)
        if not episodes:
            return
        self._take_lock()
        try:
            for name, column in self._columns.items():
                self._write(column, [_rows(episode, name) for episode in episodes])
            self._commit(episodes)
        except OSError as error:
            self._roll_back()
            raise OSError(
                error.errno,
                f"could not write {len(episodes)} episode(s) to {self.path}: {error.strerror}; "
                f"the {len(self)} stored before are intact",
            ) from error
        self._read_index(warn=False)

    def close(self) -> None:
        """Give back the writer's lock and the memory maps."""
        self._maps.clear()
        if self._lock is not None:
            import fcntl

            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = None

    def _write(self, column: Column, rows: list[np.ndarray]) -> None:
        start = column.rows(self.num_steps, len(self)) * column.row_bytes
        with open(self.path / column.file, "r+b", buffering=0) as file:
            file.truncate(start)
            file.seek(start)
            for block in rows:
                _write_all(file, np.ascontiguousarray(block, column.dtype))
            os.fsync(file.fileno())

    def _commit(self, episodes: list[Episode]) -> None:
        lines = "".join(
            json.dumps(
                {
                    "length": len(episode),
                    "terminated": episode.terminated,
                    "truncated": episode.truncated,
                    "metadata": dict(episode.metadata),
                }
            )
            + "\n"
            for episode in episodes
        )
        with open(self.path / _INDEX, "r+b", buffering=0) as file:
            file.truncate(self._index_bytes)
            file.seek(self._index_bytes)
            _write_all(file, np.frombuffer(lines.encode(), np.uint8))
            os.fsync(file.fileno())

    def _roll_back(self) -> None:
        os.truncate(self.path / _INDEX, self._index_bytes)
        for column in self._columns.values():
            os.truncate(self.path / column.file, column.rows(self.num_steps, len(self)) * column.row_bytes)

    def _take_lock(self) -> None:
        if self._lock is not None:
            return
        import fcntl  # POSIX only; reading works everywhere

        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise OSError(error.errno, f"another writer has {self.path} open; close it first") from error
        self._lock = lock
        self._read_index(warn=False)  # another writer may have added episodes before we held the lock

    def _check_fits(self, episode: Episode) -> None:
        rows = {"frames": episode.frames, "actions": episode.actions, "rewards": episode.rewards}
        rows |= {extra_column(name): values for name, values in episode.extras.items()}
        if rows.keys() != self._columns.keys():
            raise ValueError(
                f"the store {self.path} has extras {sorted(self.layout.extras)}, "
                f"the episode has {sorted(episode.extras)}"
            )
        for name, column in self._columns.items():
            shape, dtype = rows[name].shape[1:], rows[name].dtype
            if shape != column.shape or not np.can_cast(dtype, column.dtype, "same_kind"):
                raise ValueError(
                    f"{name} of the store {self.path} have rows of shape {column.shape} and dtype "
                    f"{column.dtype}, the episode's have {shape} and {dtype}"
                )
        self.layout.action.encode(episode.actions)  # raises for a choice out of range

    # -- index and maps ----------------------------------------------------------------------------

    def _forget(self) -> None:
        self._index_bytes = 0
        self._lengths = np.zeros(0, np.int64)
        self._terminated = np.zeros(0, bool)
        self._truncated = np.zeros(0, bool)
        self._metadata: list[dict] = []

    def _read_index(self, warn: bool) -> None:
        """Read the lines behind those that are known. An unfinished last line was never committed."""
        with open(self.path / _INDEX, "rb") as file:
            file.seek(self._index_bytes)
            *lines, torn = file.read().split(b"\n")
        if torn and warn:
            warnings.warn(
                f"{self.path / _INDEX} ends in an unfinished line (a crash while writing); it is dropped",
                stacklevel=4,
            )
        if not lines:
            return
        entries = [self._parse(line, len(self) + i) for i, line in enumerate(lines)]
        lengths = np.concatenate([self._lengths, np.array([entry["length"] for entry in entries], np.int64)])
        for column in self._columns.values():
            self._check_size(column, column.rows(int(lengths.sum()), len(lengths)))
        self._lengths = lengths
        self._terminated = np.append(self._terminated, [bool(entry["terminated"]) for entry in entries])
        self._truncated = np.append(self._truncated, [bool(entry["truncated"]) for entry in entries])
        self._metadata += [entry["metadata"] for entry in entries]
        self._index_bytes += sum(len(line) + 1 for line in lines)
        self._maps = {}

    def _parse(self, line: bytes, number: int) -> dict:
        try:
            entry = json.loads(line)
            if entry["length"] >= 1 and entry.keys() >= {"terminated", "truncated", "metadata"}:
                return entry
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        raise ValueError(f"{self.path / _INDEX} line {number + 1} is damaged: {line[:80]!r}")

    def _check_size(self, column: Column, rows: int) -> None:
        file = self.path / column.file
        size = file.stat().st_size if file.exists() else 0
        if size < rows * column.row_bytes:
            raise ValueError(
                f"{file} is too short: the index counts {rows} rows ({rows * column.row_bytes} bytes), "
                f"the file has {size} bytes; restore it from a copy, or collect again"
            )

    def _map(self, column: Column) -> np.ndarray:
        shape = (column.rows(self.num_steps, len(self)), *column.shape)
        if 0 in shape:  # an empty file cannot be mapped
            return np.zeros(shape, column.dtype)
        return np.asarray(np.memmap(self.path / column.file, column.dtype, "r", shape=shape))


def _rows(episode: Episode, name: str) -> np.ndarray:
    is_extra = name.startswith("extra.")
    return episode.extras[name.removeprefix("extra.")] if is_extra else getattr(episode, name)


def _write_all(file: Any, block: np.ndarray) -> None:
    """An unbuffered write may write less than it was given."""
    rest = memoryview(block.reshape(-1).view(np.uint8))
    while len(rest):
        rest = rest[file.write(rest) :]


def _write_atomic(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    with open(part, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
