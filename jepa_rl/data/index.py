"""The index of an episode store: a file with one JSON line per episode, and arrays of what has been read from it."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jepa_rl.data import index_cache
from jepa_rl.data.episode import Episode
from jepa_rl.data.index_cache import Entries

# Lines that are parsed again at every opening rather than cached: fewer than LEAST, or than one in SHARE of the cached
# ones. So a cache is written seldom enough to cost nothing, and parsing stays a matter of milliseconds.
LEAST, SHARE = 2048, 16


class EpisodeIndex:
    """The committed episodes.

    Args:
        path: the file.

    Attributes:
        lengths: environment steps of each, int64 ``(episodes,)``.
        terminated, truncated: how each ended, bool ``(episodes,)``.
        step_starts: row of each episode's first step, int64 ``(episodes,)``.
        size: bytes of the lines that have been read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cache = path.with_suffix(".cache")
        self._cached = 0  # episodes in the cache
        self._entries, self._digest = Entries.make(), index_cache.new_digest()
        self.step_starts = np.zeros(0, np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """See the class."""
        return self._entries.lengths

    @property
    def terminated(self) -> np.ndarray:
        """See the class."""
        return self._entries.terminated

    @property
    def truncated(self) -> np.ndarray:
        """See the class."""
        return self._entries.truncated

    @property
    def size(self) -> int:
        """See the class."""
        return self._entries.size

    def read(self, check: Callable[[int, int], None], warn: bool = False) -> bool:
        """Reads the lines that were added since the last call.

        Args:
            check: called with the new totals ``(steps, episodes)`` before anything changes here; it may raise.
            warn: whether to warn of an unfinished last line. It was never committed and is left out.

        Returns:
            Whether there were any new lines.

        Raises:
            ValueError: if a finished line is damaged.
        """
        entries, digest, cached = self._entries, self._digest.copy(), self._cached
        if not len(entries) and (found := index_cache.load(self._cache, self.path)):
            entries, digest = found
            cached = len(entries)
        ends: list[int] = []
        rows: list[tuple[int, bool, bool]] = []
        unfinished = False
        with open(self.path, "rb") as file:
            file.seek(entries.size)
            for line in file:
                unfinished = not line.endswith(b"\n")
                if not unfinished:
                    entry = self._parse(line, len(entries) + len(rows))
                    rows.append((entry["length"], bool(entry["terminated"]), bool(entry["truncated"])))
                    ends.append(len(line))
                    digest.update(line)
        if unfinished and warn:
            warnings.warn(
                f"{self.path} ends in an unfinished line (a crash while writing); it is dropped", stacklevel=5
            )
        if rows:
            entries += Entries.make(entries.size + np.cumsum(ends), *zip(*rows, strict=True))
        if len(entries) == len(self._entries):
            return False
        check(int(entries.lengths.sum()), len(entries))
        self._entries, self._digest, self._cached = entries, digest, cached
        self.step_starts = np.cumsum(entries.lengths) - entries.lengths
        self._save_cache()
        return True

    def metadata(self, i: int) -> dict[str, Any]:
        """What the line of episode ``i`` says of the whole episode.

        Raises:
            ValueError: if the line has been damaged since it was read.
        """
        return self._line(i)["metadata"]

    def _line(self, i: int) -> dict[str, Any]:
        start = int(self._entries.ends[i - 1]) if i else 0
        with open(self.path, "rb") as file:
            file.seek(start)
            return self._parse(file.read(int(self._entries.ends[i]) - start), i)

    def checksum(self, i: int) -> int | None:
        """Of the columns of episode ``i``; None where its line, of version 0.1.0, does not say. Raises as
        ``metadata``."""
        return self._line(i).get("data")

    def commit(self, episodes: Iterable[Episode], checksums: Iterable[int]) -> None:
        """Adds a line per episode, with the checksum of its columns, and syncs it to disk."""
        lines = [
            sealed(
                {
                    "length": len(episode),
                    "terminated": episode.terminated,
                    "truncated": episode.truncated,
                    "metadata": dict(episode.metadata),
                    "data": checksum,
                }
            )
            for episode, checksum in zip(episodes, checksums, strict=True)
        ]
        write_at(self.path, self.size, ["".join(f"{line}\n" for line in lines).encode()])

    def _save_cache(self) -> None:
        if len(self._entries) - self._cached < max(LEAST, self._cached // SHARE):
            return
        with contextlib.suppress(OSError):  # a full or read-only disk: the store works without a cache
            index_cache.save(self._cache, self._entries, self._digest)
        # Also where it could not be written: no need to try at every append.
        self._cached = len(self._entries)

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            return _checked(line)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(
                f"{self.path} line {number + 1} is damaged ({error}): {line[:80]!r}; restore it from a copy, or "
                "collect again"
            ) from error


REQUIRED = {"length", "terminated", "truncated", "metadata"}
LONGEST = 2**40  # steps of an episode that a line may tell
_SEAL = ', "line": '  # stands before the checksum of a line


def sealed(facts: dict[str, Any]) -> str:
    """One line of JSON that ends in its own checksum (CRC-32)."""
    text = json.dumps(facts)[:-1]
    return f"{text}{_SEAL}{zlib.crc32(text.encode())}}}"


def _checked(line: bytes) -> dict[str, Any]:
    """What a line says. Lines of version 0.1.0 have no checksums."""
    entry = json.loads(line)
    if unknown := entry.keys() - REQUIRED - {"data", "line"}:
        raise ValueError(f"unknown entries {sorted(unknown)}; upgrade jepa-rl if a newer version wrote them")
    text, _, _ = line.rpartition(_SEAL.encode())
    if ("data" in entry or "line" in entry) and entry["line"] != zlib.crc32(text):
        raise ValueError("its checksum does not fit")
    kinds = {"length": int, "terminated": bool, "truncated": bool, "metadata": dict}
    if wrong := [name for name, kind in kinds.items() if type(entry[name]) is not kind]:
        raise TypeError(f"{wrong} are of another type")
    if not 1 <= entry["length"] < LONGEST:
        raise ValueError(f"an episode cannot have {entry['length']} steps")
    return entry


def write_at(path: Path, start: int, blocks: Iterable[bytes | memoryview]) -> None:
    """Replaces what a file holds from some byte on, and syncs it to disk.

    Args:
        path: the file.
        start: the first byte that is replaced.
        blocks: what is written there, one after the other.
    """
    with open(path, "r+b", buffering=0) as file:
        file.truncate(start)
        file.seek(start)
        for block in blocks:
            rest = memoryview(block)
            while len(rest):  # an unbuffered write may write less than it was given
                rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
