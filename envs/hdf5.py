"""Episodes to and from one HDF5 file of flat columns, as stable-worldmodel and LeWorldModel keep theirs.

Needs ``pip install "jepa-rl[offline]"``. Every column has one row per frame; ``ep_len`` and ``ep_offset`` say which
rows are an episode's. An episode of T steps has T + 1 rows::

    row           0        1      ...   T - 1      T
    pixels        first    after action 0  ...     last
    action        action 0 action 1 ...   action T - 1   NaN (0 for integers): none
    reward        NaN      of action 0     ...     of action T - 1
    terminated    False    False    ...            whether the environment ended the episode
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jepa_rl.data import Episode, Episodes, EpisodeStore
from jepa_rl.data.layout import Layout
from jepa_rl.envs.importing import (
    ActionRange,
    appears_whole,
    check_room,
    exported_layout,
    extra_names,
    naming_episode,
    resized,
    write_store,
)
from jepa_rl.memory import check_memory
from jepa_rl.spaces import channels_first
from jepa_rl.types import ActionSpec

if TYPE_CHECKING:
    import h5py

_LAYOUT = "jepa_rl"  # attribute of a file that to_hdf5 wrote: the store's layout
_METADATA = "jepa_rl_metadata"  # column: JSON in the first row of an episode, else empty
_OWN = ("pixels", "action", "reward", "terminated", "truncated", "ep_len", "ep_offset", _METADATA)


def to_hdf5(episodes: Episodes, file: str | Path) -> None:
    """Write episodes as one HDF5 file; pictures without loss, extras as columns of their names.

    Episodes are written one by one, so the store may be larger than memory.

    Args:
        episodes: a store, or a view of it.
        file: to write, ``.h5``.

    Raises:
        ImportError: if h5py is not installed.
        FileExistsError: if ``file`` is there already.
        ValueError: if there are no episodes, or an extra has the name of another column. Nothing half-written stays.
    """
    h5py, file = _h5py(), Path(file)
    layout = exported_layout(episodes)
    if taken := sorted(set(_OWN) & layout.extras.keys()):
        raise ValueError(f"the extras {taken} have names of other columns of the file; rename them")
    with appears_whole(file) as part, h5py.File(part, "w", libver="latest") as out:
        out.attrs[_LAYOUT] = layout.to_json()
        start, lengths = 0, []
        for i in range(len(episodes)):
            episode = episodes.episode(i)
            for name, rows in _columns(episode).items():
                if name not in out:
                    dtype = h5py.string_dtype() if name == _METADATA else rows.dtype
                    shape = rows.shape[1:]
                    chunks = (1, *shape) if name == "pixels" else (1024, *shape)
                    out.create_dataset(name, (0, *shape), dtype, maxshape=(None, *shape), chunks=chunks)
                out[name].resize(start + len(rows), 0)
                out[name][start:] = rows
            lengths.append(len(episode) + 1)
            start += lengths[-1]
        out["ep_len"] = np.array(lengths, np.int32)
        out["ep_offset"] = np.cumsum(lengths, dtype=np.int64) - lengths


def from_hdf5(
    file: str | Path,
    store: str | Path,
    *,
    pixels: str = "pixels",
    extras: Sequence[str] = (),
    action: ActionSpec | None = None,
    size: int | None = None,
    frames: int | None = None,
) -> EpisodeStore:
    """Read an HDF5 file of flat columns into a new episode store.

    Rewards are 0 where the file has no column ``reward``. Where it has no column ``truncated``, episodes that did not
    terminate were truncated.

    Args:
        file: to read.
        store: folder of the new store.
        pixels: column of the uint8 pictures, ``(y, x, c)`` or ``(c, y, x)``.
        extras: numeric columns to keep; a file of ``to_hdf5`` brings its own.
        action: the action space (default: as exported, otherwise from the smallest to the largest action in the file).
        size: resize the pictures to ``(size, size)`` (area interpolation).
        frames: frames that an observation will stack (default: as exported, otherwise 1).

    Returns:
        The store, opened.

    Raises:
        ImportError: if h5py is not installed.
        FileNotFoundError: if there is no such file.
        FileExistsError: if ``store`` is there already.
        TypeError, ValueError: if the file is damaged, columns are missing, of the wrong length or dtype, lie in other
            files (links, virtual and external datasets), or values are NaN or infinite. Nothing half-written stays.
    """
    h5py, file, path = _h5py(), Path(file), Path(store)
    if not file.is_file():
        raise FileNotFoundError(f"no HDF5 file at {file}")
    with appears_whole(path) as part:
        try:
            source = h5py.File(file, "r")
        except OSError as error:
            raise ValueError(f"{file} is truncated or no HDF5 file ({error}); copy it again") from error
        with source:
            own = _exported(source, file)
            names = extra_names(extras or (own.extras if own else ()))
            columns = _Columns(source, file, pixels, names, last=own is not None)
            columns.check_room(path, size)
            spec = action or (own.action if own else columns.actions())
            write_store(
                part,
                columns.episodes(spec, size),
                spec,
                frames or (own.frames if own else 1),
                file,
                own.source if own else "",
            )
    return EpisodeStore.open(path)


class _Columns:
    """The columns of an open file, checked.

    Args:
        source, file: the open file and its path.
        pixels: name of the pictures.
        extras: names of further columns, to their names in the store.
        last: the channels of pictures are known to come last; otherwise their shape says where they are.
    """

    def __init__(
        self, source: h5py.File, file: Path, pixels: str, extras: dict[str, str], last: bool = False
    ) -> None:
        self._source, self._file, self._pixels, self._extras = source, file, pixels, extras
        self._names, self._last = set(source), last  # names alone: `in source` would follow links
        names = [pixels, "action", *extras]
        names += [name for name in ("reward", "terminated", "truncated") if name in self._names]
        self._columns = {name: self._column(name) for name in names}
        self.lengths, self.offsets = (self._small(name) for name in ("ep_len", "ep_offset"))
        self._check_index()
        found = self._columns[pixels]
        if found.dtype != np.uint8 or found.ndim not in (3, 4):
            raise TypeError(
                f"{file}: {pixels} must be uint8 pictures, got {found.dtype} of shape {found.shape}"
            )
        if self._columns["action"].ndim > 2:
            raise ValueError(
                f"{file}: action must have shape (rows, size), got {self._columns['action'].shape}"
            )

    def check_room(self, folder: Path, size: int | None) -> None:
        """Raises ValueError where declared sizes do not fit here."""
        shape = self._columns[self._pixels].shape[1:]
        pixels = int(np.prod(shape, dtype=np.float64)) if size is None else 4 * size * size
        rest = sum(
            int(np.prod(c.shape[1:], dtype=np.float64)) * c.dtype.itemsize for c in self._columns.values()
        )
        check_room(str(self._file), folder, self.lengths, pixels + rest)

    def actions(self) -> ActionSpec:
        """The action space that the file's actions span."""
        seen = ActionRange()
        for i in range(len(self.lengths)):
            seen.see(self._actions(i))
        return seen.spec()

    def episodes(self, action: ActionSpec, size: int | None) -> Iterator[Episode]:
        """Every episode of the file."""
        for i in range(len(self.lengths)):
            ended = bool(self._rows("terminated", i)[-1]) if "terminated" in self._columns else False
            cut = bool(self._rows("truncated", i)[-1]) if "truncated" in self._columns else not ended
            actions = self._actions(i)
            with naming_episode(i, self._file):
                episode = Episode(
                    resized(self._pictures(i), size),
                    actions.reshape(len(actions), *action.shape) if actions.dtype.kind in "iu" else actions,
                    _flat(self._rows("reward", i))[1:]
                    if "reward" in self._columns
                    else np.zeros(len(actions)),
                    ended,
                    cut,
                    {name: self._rows(key, i) for key, name in self._extras.items()},
                    self._metadata(i),
                )
            yield episode

    def _pictures(self, i: int) -> np.ndarray:
        pictures = self._rows(self._pixels, i)
        if pictures.ndim == 3:
            return pictures[:, None]
        _, first, middle, last = pictures.shape
        here = not self._last and channels_first((first, middle, last))
        return pictures if here else pictures.transpose(0, 3, 1, 2)

    def _rows(self, name: str, i: int) -> np.ndarray:
        start = int(self.offsets[i])
        try:
            return self._columns[name][start : start + int(self.lengths[i])]
        except OSError as error:
            raise ValueError(
                f"{self._file}: {name} of episode {i} cannot be read ({error}); copy it again"
            ) from error

    def _actions(self, i: int) -> np.ndarray:
        rows = self._rows("action", i)[:-1]  # the last leads nowhere
        if rows.dtype.kind in "iu":
            return _flat(rows)
        return rows[:, None] if rows.ndim == 1 else rows

    def _metadata(self, i: int) -> dict[str, Any]:
        if _METADATA not in self._names:
            return {}
        _check_here(self._source, _METADATA, self._file)
        text = self._source[_METADATA].asstr()[int(self.offsets[i])]
        found = json.loads(text or "{}")
        if not isinstance(found, dict):
            raise ValueError(f"{_METADATA} must hold JSON objects, got {text[:80]!r}")
        return found

    def _column(self, name: str) -> h5py.Dataset:
        if name not in self._names:
            raise ValueError(f"{self._file} has no column {name!r}; it has {sorted(self._names)}")
        _check_here(self._source, name, self._file)
        found = self._source[name]
        if not hasattr(found, "dtype") or found.dtype.kind not in "biuf" or not found.ndim:
            kind = getattr(found, "dtype", "a group")
            raise TypeError(f"{self._file}: column {name!r} must hold numbers or booleans, got {kind}")
        return found

    def _small(self, name: str) -> np.ndarray:
        found = self._column(name)
        if found.ndim != 1 or found.dtype.kind not in "iu":
            raise ValueError(f"{self._file}: {name} must be integers of shape (episodes,), got {found.shape}")
        check_memory(f"{name} of {self._file}", 8 * found.size, "is its declared size true?")
        return found[:].astype(np.int64)

    def _check_index(self) -> None:
        lengths, offsets, file = self.lengths, self.offsets, self._file
        if not len(lengths):
            raise ValueError(f"{file} has no episodes")
        if len(lengths) != len(offsets):
            raise ValueError(f"{file}: ep_len has {len(lengths)} episodes, ep_offset {len(offsets)}")
        if (lengths < 2).any():
            i = int(np.argmax(lengths < 2))
            raise ValueError(f"{file}: episode {i} has {lengths[i]} row(s); a step needs at least two")
        ends = offsets + lengths
        if offsets.min() < 0 or (offsets[1:] < ends[:-1]).any():
            raise ValueError(f"{file}: ep_offset does not say one episode after the other")
        for name, column in self._columns.items():
            if len(column) < ends[-1]:
                raise ValueError(f"{file}: {name} has {len(column)} rows, the episodes need {ends[-1]}")


def _columns(episode: Episode) -> dict[str, np.ndarray]:
    """The rows of an episode as the file holds them."""
    actions, rows = episode.actions, len(episode) + 1
    none = np.full_like(actions[:1], np.nan if actions.dtype.kind == "f" else 0)
    ends = np.zeros((2, rows), bool)
    ends[:, -1] = episode.terminated, episode.truncated
    notes = np.full(rows, "", object)
    notes[0] = json.dumps(dict(episode.metadata))
    return {
        "pixels": episode.frames.transpose(0, 2, 3, 1),
        "action": np.concatenate([actions, none]),
        "reward": np.concatenate([np.full(1, np.nan, np.float32), episode.rewards]),
        "terminated": ends[0],
        "truncated": ends[1],
        **episode.extras,
        _METADATA: notes,
    }


def _exported(source: h5py.File, file: Path) -> Layout | None:
    """The layout of the store that the file was exported from; None for other people's files."""
    text = source.attrs.get(_LAYOUT)
    return Layout.from_json(text, file) if isinstance(text, str) else None


def _check_here(source: h5py.File, name: str, file: Path) -> None:
    """Raises ValueError for a column whose values lie in another file, or may."""
    h5py = _h5py()
    if not isinstance(source.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{file}: {name!r} is a link, which may lead to other files; copy the column here")
    found = source[name]
    if isinstance(found, h5py.Dataset) and (found.is_virtual or found.external):
        raise ValueError(
            f"{file}: {name!r} keeps its values in other files, which are not read; copy them here"
        )


def _flat(rows: np.ndarray) -> np.ndarray:
    """Rows of one number each as shape ``(rows,)``; others as they are."""
    return rows.reshape(len(rows)) if rows.size == len(rows) else rows


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError('h5py is not installed; pip install "jepa-rl[offline]"') from error
    return h5py
