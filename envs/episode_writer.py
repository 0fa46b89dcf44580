"""Writing collected episodes to their store while more are played."""

from __future__ import annotations

import time
from collections.abc import Iterable

from jepa_rl.data import Episode, EpisodeStore

# Seconds between writes: each waits for the disk several times, which for short episodes took longer than playing them.
WRITE_EVERY = 2.0


class EpisodeWriter:
    """Appends episodes to a store every two seconds and at the end, also after an error or Ctrl-C.

    A context manager; its end gives back the writer's lock, and the store can still be used.

    Args:
        store: where they go.
    """

    def __init__(self, store: EpisodeStore) -> None:
        self._store, self._written = store, time.monotonic()
        self._waiting: list[Episode] = []

    def __enter__(self) -> EpisodeWriter:
        return self

    def add(self, episodes: Iterable[Episode]) -> None:
        """Takes episodes, or none, and writes those that wait if it is time."""
        self._waiting += episodes
        if time.monotonic() - self._written > WRITE_EVERY:
            self._write()

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        self._store.append_many(waiting)
        self._written = time.monotonic()

    def __exit__(self, *_: object) -> None:
        try:
            self._write()
        finally:
            self._store.close()
