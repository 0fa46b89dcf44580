"""A ring of rows in which whole episodes lie, and their files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from jepa_rl.files import load_tensors, naming, save_tensors
from jepa_rl.memory import available_memory, check_memory


class EpisodeRing:
    """Rows of the same columns in which episodes lie one after the other; the oldest make room for new ones.

    An episode of T steps takes T + 1 rows. After ``keep_in`` every episode that is added is also a file, which a crash
    leaves whole.

    Args:
        columns: shape and dtype of one row of each, by name; ``reward`` is among them.
        capacity: rows.

    Attributes:
        columns: arrays (capacity, ...) by name.
        episodes: int64 (episodes, 2): first row and steps of each, oldest first.
        head: the row that is written next.
        stored: episodes since the beginning, those that made room included.
        folder: where every episode is a file, too; None: nowhere.

    Raises:
        ValueError: if the rows are larger than memory.
    """

    def __init__(self, columns: Mapping[str, tuple[tuple[int, ...], Any]], capacity: int) -> None:
        _check_memory(
            capacity, sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in columns.values())
        )
        self.capacity = capacity
        self.columns = {name: np.zeros((capacity, *shape), dtype) for name, (shape, dtype) in columns.items()}
        self.episodes = np.zeros((0, 2), np.int64)
        self.head = 0
        self.stored = 0
        self.folder: Path | None = None

    def __len__(self) -> int:
        """Steps of finished episodes."""
        return int(self.episodes[:, 1].sum())

    def _row(
        self, first: Int64[np.ndarray, " ..."] | np.int64, offset: Int64[np.ndarray, " ..."]
    ) -> np.ndarray:
        return (first + offset) % self.capacity

    def _append(self, columns: dict[str, np.ndarray]) -> None:
        count = len(columns["reward"])
        self._make_room(count)
        rows = (self.head + np.arange(count)) % self.capacity
        for name, values in columns.items():
            self.columns[name][rows] = values
        self.episodes = np.concatenate([self.episodes, [[self.head, count - 1]]])
        self.head = int((self.head + count) % self.capacity)
        self.stored += 1

    def _file(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:08d}.safetensors"

    def _make_room(self, rows: int) -> None:
        """Forget the oldest episodes that lie where the next ``rows`` rows will be written."""
        while len(self.episodes):
            used = int((self.episodes[:, 1] + 1).sum())
            if used + rows <= self.capacity:
                return
            self.episodes = self.episodes[1:]

    # -- files --------------------------------------------------------------------------------------

    def save(self, path: str | Path, episodes: slice = slice(None)) -> None:
        """Writes (some of) the episodes to one safetensors file; atomic."""
        table = self.episodes[episodes]
        rows = [self._row(first, np.arange(steps + 1)) for first, steps in table]
        chosen = np.concatenate([*rows, np.zeros(0, np.int64)])
        tensors = {name: torch.from_numpy(part[chosen]) for name, part in self.columns.items()}
        tensors["steps"] = torch.from_numpy(table[:, 1].copy())
        save_tensors(path, "replay", tensors, {"rows": self._layout()})

    def load(self, path: str | Path, replace: bool = False) -> None:
        """Adds the episodes of a file that ``save`` wrote, or holds them in place of its own; nothing is executed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or its observations or actions are of other shapes. Nothing has changed then.
        """
        found = self._read(path)
        if replace:
            self._clear()
        for columns in found:
            self._append(columns)

    def _read(self, path: str | Path) -> list[dict[str, np.ndarray]]:
        """The columns of each episode in a file."""
        tensors, header = load_tensors(path, ("replay",))
        with naming(path, "does not describe a replay of this version"):
            if header["rows"] != self._layout():
                raise ValueError(
                    f"{path} holds {header['rows']}, this replay {self._layout()}: use the environment it is from"
                )
            columns = {name: tensors[name].numpy() for name in self.columns}
            lengths = self._lengths(path, tensors["steps"].numpy()) + 1
            for name, values in columns.items():
                shape, dtype = (int(lengths.sum()), *self.columns[name].shape[1:]), self.columns[name].dtype
                if (values.shape, values.dtype) != (shape, dtype):
                    raise ValueError(
                        f"{name} should be {dtype} {shape}, and is {values.dtype} {values.shape}"
                    )
        parts = {name: np.split(values, np.cumsum(lengths)[:-1]) for name, values in columns.items()}
        return [{name: values[i] for name, values in parts.items()} for i in range(len(lengths))]

    def _lengths(self, path: str | Path, steps: np.ndarray) -> Int64[np.ndarray, " episodes"]:
        """Steps of each episode in a file, once they are found to be possible."""
        if steps.ndim != 1 or steps.dtype != np.int64 or (len(steps) and steps.min() < 1):
            raise ValueError(f"the lengths of its episodes are {steps.dtype} {steps.tolist()}")
        if len(steps) and steps.max() >= self.capacity:
            raise ValueError(
                f"{path} holds an episode of {steps.max() + 1} rows, this replay {self.capacity}: raise buffer_size"
            )
        return steps

    def keep_in(self, folder: str | Path) -> None:
        """Writes every episode, those held now and all later ones, to a file of its own in this folder."""
        self.folder = Path(folder)
        for i in range(len(self.episodes)):
            self.save(self._file(self.stored - len(self.episodes) + i), slice(i, i + 1))

    def numbers(self) -> list[int]:
        """Numbers of the episodes that are held, counted from the first ever stored; their files are named by them."""
        return list(range(self.stored - len(self.episodes), self.stored))

    def restore(self, folder: str | Path, numbers: Iterable[int]) -> None:
        """Holds exactly these episodes of a folder that ``keep_in`` filled, and keeps later ones there, too.

        Raises:
            ValueError, FileNotFoundError: as ``load``; nothing has changed then.
        """
        numbers, before = list(numbers), self.folder
        self.folder = Path(folder)
        try:
            for number in numbers:  # read twice: all of it is whole, or nothing changes
                self._read(self._file(number))
        except (ValueError, OSError):
            self.folder = before
            raise
        self._clear()
        for number in numbers:
            self.load(self._file(number))
        self.stored = numbers[-1] + 1 if numbers else 0

    def _clear(self) -> None:
        self.episodes, self.head = self.episodes[:0], 0

    def drop_files(self, before: int) -> None:
        """Deletes the files of episodes with numbers below ``before``."""
        assert self.folder is not None
        for path in self.folder.glob("*.safetensors"):
            if path.stem.isdecimal() and int(path.stem) < before:
                path.unlink()

    def _layout(self) -> dict[str, Any]:
        return {name: [list(part.shape[1:]), part.dtype.str] for name, part in self.columns.items()}


def _check_memory(capacity: int, row: int) -> None:
    most = int(0.8 * available_memory() / row)
    remedy = f"set buffer_size to at most {most:,}, or show smaller pictures (PixelObservation(size=...))"
    check_memory(f"a replay of {capacity:,} rows of {row:,} bytes", capacity * row, remedy)
