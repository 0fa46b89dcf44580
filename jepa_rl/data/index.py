"""The index of an episode store: one JSON line per episode, and what is known from the lines read so far."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jepa_rl.data.episode import Episode


class EpisodeIndex:
    """The committed episodes: ``lengths`` int64, ``terminated`` and ``truncated`` bool, each ``(episodes,)``.

    Also ``step_starts`` int64 ``(episodes,)``, the row of each episode's first step, and ``metadata`` (list).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0  # bytes of the lines that were read
        self.lengths = self.step_starts = np.zeros(0, np.int64)
        self.terminated = self.truncated = np.zeros(0, bool)
        self.metadata: list[dict[str, Any]] = []

    def read(self, check: Callable[[int, int], None], warn: bool = False) -> bool:
        """Read the lines behind those that are known; returns whether there were any.

        An unfinished last line was never committed: it is left out, with a warning if ``warn``.
        ``check(steps, episodes)`` may raise before anything is taken over.

        Raises:
            ValueError: if a finished line is damaged.
        """
        with open(self.path, "rb") as file:
            file.seek(self.size)
            *lines, unfinished = file.read().split(b"\n")
        if unfinished and warn:
            warnings.warn(
                f"{self.path} ends in an unfinished line (a crash while writing); it is dropped", stacklevel=5
            )
        if not lines:
            return False
        entries = [self._parse(line, len(self.lengths) + i) for i, line in enumerate(lines)]
        lengths = np.append(self.lengths, np.array([entry["length"] for entry in entries], np.int64))
        check(int(lengths.sum()), len(lengths))
        self.lengths, self.step_starts = lengths, np.cumsum(lengths) - lengths
        self.terminated = np.append(self.terminated, [bool(entry["terminated"]) for entry in entries])
        self.truncated = np.append(self.truncated, [bool(entry["truncated"]) for entry in entries])
        self.metadata += [entry["metadata"] for entry in entries]
        self.size += sum(len(line) + 1 for line in lines)
        return True

    def commit(self, episodes: Iterable[Episode]) -> None:
        """Add a line per episode and sync it to disk."""
        lines = [
            json.dumps(
                {
                    "length": len(episode),
                    "terminated": episode.terminated,
                    "truncated": episode.truncated,
                    "metadata": dict(episode.metadata),
                }
            )
            for episode in episodes
        ]
        write_at(self.path, self.size, ["".join(f"{line}\n" for line in lines).encode()])

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            entry = json.loads(line)
            if entry["length"] >= 1 and entry.keys() >= {"terminated", "truncated", "metadata"}:
                return entry
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        raise ValueError(f"{self.path} line {number + 1} is damaged: {line[:80]!r}")


def write_at(path: Path, start: int, blocks: Iterable[bytes | memoryview]) -> None:
    """Replace what the file holds from byte ``start`` on, and sync it to disk."""
    with open(path, "r+b", buffering=0) as file:
        file.truncate(start)
        file.seek(start)
        for block in blocks:
            rest = memoryview(block)
            while len(rest):  # an unbuffered write may write less than it was given
                rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
