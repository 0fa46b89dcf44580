"""The index of an episode store: a file with one JSON line per episode, and arrays of what has been read from it."""

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
    """The committed episodes.

    Args:
        path: the file.

    Attributes:
        lengths: environment steps of each, int64 ``(episodes,)``.
        terminated, truncated: how each ended, bool ``(episodes,)``.
        step_starts: row of each episode's first step, int64 ``(episodes,)``.
        metadata: of each, a list of dicts.
        size: bytes of the lines that have been read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.lengths = self.step_starts = np.zeros(0, np.int64)
        self.terminated = self.truncated = np.zeros(0, bool)
        self.metadata: list[dict[str, Any]] = []

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
        """Adds a line per episode and syncs it to disk."""
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
        raise ValueError(
            f"{self.path} line {number + 1} is damaged: {line[:80]!r}; restore it from a copy, or "
            "collect again"
        )


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
