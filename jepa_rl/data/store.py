"""A folder of episodes that can outgrow memory and never loses a finished episode to a crash.

Layout: one flat, append-only file of rows per column, read through memory maps, and an index::

    store.json      format version, frame shape, frames to stack, action space, extra columns
    frames.bin      uint8 (T + 1, c, y, x) per episode      extra.<name>.bin   (T + 1, ...) per episode
    actions.bin     (T, a) or (T,) per episode              rewards.bin        float32 (T,) per episode
    episodes.jsonl  one line per episode: length, terminated, truncated, metadata, checksums
    episodes.cache  what the first lines of a long index say, as arrays; see ``index_cache``

The index line is the commit: columns are written and synced to disk first, the line after them. Bytes
beyond what the index counts belong to an append that never finished; they are ignored and overwritten.
"""

from __future__ import annotations

import errno
import os
import warnings
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from jepa_rl.data.episode import Episode
from jepa_rl.data.index import EpisodeIndex, write_at
from jepa_rl.data.layout import Column, Layout
from jepa_rl.data.mapped import map_rows, prefetch
from jepa_rl.data.view import EpisodeView
from jepa_rl.files import lock, naming, unlock, write_atomic
from jepa_rl.types import ActionSpec, WorldSpec

_HEADER, _INDEX = "store.json", "episodes.jsonl"


class EpisodeStore:
    """Episodes in a folder; see the module. ``create`` and ``open`` make one.

    Many may read at a time, and one may write: the first ``append`` takes the lock, ``close`` gives it back.
    ``refresh`` shows a reader what a writer in another process has added meanwhile. A pickled store is its
    path, so that data-loader workers open their own.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        """Use :meth:`create` or :meth:`open`."""
        self.path = path
        self.layout = layout
        self._columns = layout.columns()
        self._maps: dict[str, np.ndarray] = {}
        self._lock: IO[str] | None = None
        self._owner: int | None = None  # the process that took the lock
        self._index = EpisodeIndex(path / _INDEX)
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
        source: str = "",
        exist_ok: bool = False,
    ) -> EpisodeStore:
        """Make an empty store in the folder ``path``.

        Args:
            path: of the folder; it is made if it is missing.
            frame_shape: ``(c, y, x)`` of one single frame.
            action: the action space of one environment step.
            frames: how many frames an observation stacks (applied when reading).
            extras: further columns per frame, name to (shape of a row, dtype).
            source: how the environment is made, see ``WorldSpec``.
            exist_ok: open a store that is already there, if it has the same layout.

        Raises:
            FileExistsError: if the folder holds a store and ``exist_ok`` is false.
            ValueError: if it holds a store of another layout, or for shapes, names or dtypes that no store can hold.
        """
        path = Path(path)
        layout = Layout.make(frame_shape, action, frames, extras, source)
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
        write_atomic(
            path / _HEADER, layout.to_json().encode()
        )  # last: a folder with a header is a whole store
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
        return cls(path, Layout.from_json((path / _HEADER).read_bytes(), path / _HEADER))

    def __reduce__(self) -> tuple:
        return EpisodeStore.open, (self.path.absolute(),)

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
        return self._index.lengths

    @property
    def terminated(self) -> np.ndarray:
        """Whether the environment ended each episode, bool ``(episodes,)``."""
        return self._index.terminated

    @property
    def num_steps(self) -> int:
        """Environment steps of all episodes together."""
        return int(self._index.lengths.sum())

    @property
    def spec(self) -> WorldSpec:
        """The stacked observation and the action space."""
        c, y, x = self.layout.frame_shape
        layout = self.layout
        return WorldSpec((layout.frames * c, y, x), layout.frames, layout.action, source=layout.source)

    @property
    def step_starts(self) -> np.ndarray:
        """Row of each episode's first step in ``actions``; its first frame is at that + episode number."""
        return self._index.step_starts

    def column(self, name: str) -> np.ndarray:
        """All rows of ``"frames"``, ``"actions"``, ``"rewards"`` or of an extra: a read-only memory map."""
        if name not in self._columns:
            raise ValueError(f"the store has no column {name!r}, only {list(self._columns)}")
        if name not in self._maps:
            self._maps[name] = self._map(self._columns[name])
        return self._maps[name]

    def episode(self, i: int) -> Episode:
        """A copy of episode ``i``.

        Raises:
            IndexError: if there is no such episode.
            ValueError: if a column holds what no episode can, such as NaN.
        """
        i = range(len(self))[i]
        steps = slice(int(self.step_starts[i]), int(self.step_starts[i] + self._index.lengths[i]))
        frames = slice(steps.start + i, steps.stop + i + 1)
        for name, column in self._columns.items():
            rows = frames if column.per_frame else steps
            prefetch(self.column(name), np.array(rows.start), rows.stop - rows.start)
        with naming(self.path, f"holds an episode, number {i}, that was damaged"):
            return Episode(
                np.array(self.column("frames")[frames]),
                np.array(self.column("actions")[steps]),
                np.array(self.column("rewards")[steps]),
                bool(self._index.terminated[i]),
                bool(self._index.truncated[i]),
                {name: np.array(self.column(name)[frames]) for name in self.layout.extras},
                self._index.metadata(i),
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
        self._read_index()

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
            self.layout.check(episode)
        if not episodes:
            return
        self._take_lock()
        self._read_index()  # what another writer, or an interrupted append of ours, has committed
        try:
            for name, column in self._columns.items():
                blocks = (_as_bytes(episode.column(name), column) for episode in episodes)
                write_at(self.path / column.file, self._size(column), blocks)
            self._index.commit(episodes, [self._checksum(episode) for episode in episodes])
        except OSError as error:
            self._roll_back()
            raise OSError(
                error.errno,
                f"could not write {len(episodes)} episode(s) to {self.path}: {error.strerror}; "
                f"the {len(self)} stored before are intact",
            ) from error
        self._read_index()

    def verify(self) -> None:
        """Read everything once and compare it with the checksums that were written with it.

        Reading by windows does not: it would have to read whole episodes. Episodes of version 0.1.0 have no
        checksums and pass.

        Raises:
            ValueError: if a column of an episode is not what was stored; the message names the episode.

        Warns:
            UserWarning: if columns hold more than the index counts: an append did not finish, which does no harm, or
                lines of the index were lost.
        """
        for i in range(len(self)):
            there = self._index.checksum(i)
            if there is not None and there != self._checksum(self.episode(i)):
                raise ValueError(
                    f"{self.path} holds other rows in episode {i} than were stored: a file was damaged; restore it "
                    f"from a copy, or leave the episode out with store.view(...)"
                )
        for column in self._columns.values():
            if (self.path / column.file).stat().st_size > self._size(column):
                warnings.warn(
                    f"{self.path / column.file} holds more than the {len(self)} episodes of the index: an append did "
                    "not finish (the next one overwrites it), or the index lost lines",
                    stacklevel=2,
                )
                return

    def _checksum(self, episode: Episode) -> int:
        """CRC-32 of all columns of an episode."""
        found = 0
        for name, column in sorted(self._columns.items()):
            found = zlib.crc32(_as_bytes(episode.column(name), column), found)
        return found

    def close(self) -> None:
        """Give back the writer's lock and the memory maps; reading or appending again takes them again."""
        self._maps = {}
        if self._lock is not None:
            if self._owner == os.getpid():
                unlock(self._lock)
            self._lock.close()
            self._lock = None

    def _roll_back(self) -> None:
        os.truncate(self._index.path, self._index.size)
        for column in self._columns.values():
            os.truncate(self.path / column.file, self._size(column))

    def _take_lock(self) -> None:
        if self._lock is not None and self._owner == os.getpid():
            return
        file = open(self.path / "lock", "a")  # noqa: SIM115  (held until close, or until nobody has the store)
        if not lock(file):
            file.close()
            raise OSError(errno.EAGAIN, f"another writer has {self.path} open; close it first")
        self._lock, self._owner = file, os.getpid()  # a forked child has to ask for a lock of its own

    # -- index and maps ----------------------------------------------------------------------------

    def _read_index(self, warn: bool = False) -> None:
        if self._index.read(self._check_sizes, warn):
            self._maps = {}

    def _check_sizes(self, steps: int, episodes: int) -> None:
        for column in self._columns.values():
            file, rows = self.path / column.file, column.rows(steps, episodes)
            size = file.stat().st_size if file.exists() else 0
            if size < rows * column.row_bytes:
                raise ValueError(
                    f"{file} is too short: the index counts {rows} rows ({rows * column.row_bytes} bytes), "
                    f"the file has {size} bytes; restore it from a copy, or collect again"
                )

    def _size(self, column: Column) -> int:
        """Bytes of the column that belong to committed episodes."""
        return column.rows(self.num_steps, len(self)) * column.row_bytes

    def _map(self, column: Column) -> np.ndarray:
        shape = (column.rows(self.num_steps, len(self)), *column.shape)
        if 0 in shape:  # an empty file cannot be mapped
            return np.zeros(shape, column.dtype)
        return map_rows(self.path / column.file, column.dtype, shape)


def _as_bytes(rows: np.ndarray, column: Column) -> memoryview:
    return np.ascontiguousarray(rows, column.dtype).reshape(-1).view(np.uint8).data
