"""Environments in other processes: one that dies or hangs ends a run in words."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Seconds that one step or reset of environments in other processes may take; those that take longer are ended.
STEP_LIMIT = 600.0
LOOK = 0.25  # seconds between two looks at whether all processes live


class Workers:
    """The processes of a vector environment, if it has any.

    Args:
        venv: Gymnasium vector environment or Stable-Baselines3 ``VecEnv``.
    """

    def __init__(self, venv: Any) -> None:
        processes = getattr(getattr(venv, "unwrapped", venv), "processes", None)
        self.processes: list[Any] = list(processes) if isinstance(processes, list | tuple) else []
        self.limit = STEP_LIMIT
        self.since: float | None = None  # when the step or reset under way began
        self.trouble = ""
        if self.processes:
            watch = threading.Thread(
                target=_watch, args=(weakref.ref(self),), daemon=True, name="jepa-rl workers"
            )
            watch.start()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """A step or a reset happens inside.

        Raises:
            RuntimeError: if a process ended, or did not answer within ``STEP_LIMIT``; it says which and how.
        """
        self.since = time.monotonic() if self.processes else None
        try:
            yield
        except (EOFError, BrokenPipeError, ConnectionError) as error:
            if not self.processes:
                raise
            # It takes a moment until a process that has closed its pipe is gone.
            until = time.monotonic() + 2.0
            while not self.look() and time.monotonic() < until:
                time.sleep(0.01)
            raise RuntimeError(self.trouble or self._ended()) from error
        finally:
            self.since = None

    def look(self) -> bool:
        """Whether a process ended or hangs; then all are ended.

        Forked processes hold each other's pipes open: without this, what waits for a dead one waits for ever.
        """
        if self.trouble or self.since is None:
            return bool(self.trouble)
        if not all(process.is_alive() for process in self.processes):
            self.trouble = self._ended()
        elif time.monotonic() - self.since > self.limit:
            self.trouble = (
                f"an environment's process did not answer within {self.limit:g} s, so that all of them were ended; "
                "look for what its step or reset waits for, or play it in this process (SyncVectorEnv, DummyVecEnv)"
            )
        if self.trouble:
            for process in self.processes:
                process.kill()
        return bool(self.trouble)

    def _ended(self) -> str:
        codes = {i: process.exitcode for i, process in enumerate(self.processes) if not process.is_alive()}
        return (
            f"an environment's process ended in the middle of a step or reset (exit codes by environment: {codes}; "
            "-9 is a kill, as by a system that is out of memory); play it in this process (SyncVectorEnv, DummyVecEnv) "
            "to see why, or start fewer"
        )


def _watch(workers: weakref.ref[Workers]) -> None:
    while (found := workers()) is not None and not found.look():
        pause = min(LOOK, found.limit / 4)
        del found  # otherwise this thread would keep it
        time.sleep(pause)
