"""Buffers for the running episodes of a vector environment."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jepa_rl.acting import scalar_rewards
from jepa_rl.data import Episode
from jepa_rl.types import ActionSpec


class Recorder:
    """Holds the running episode of each of ``n`` environments; each call adds one step to all of them.

    The arrays are ``(n, capacity, ...)``; capacity doubles when an episode exceeds it, so that every episode is
    contiguous. They take ``n`` times the memory of the longest running episode.

    Args:
        rows: the first states: ``"frames"`` and the extras, each ``(n, ...)``.
        action: the action space.
        capacity: initial number of states for each environment.
    """

    def __init__(self, rows: Mapping[str, np.ndarray], action: ActionSpec, capacity: int = 128) -> None:
        n = len(rows["frames"])
        dtype = np.int64 if action.kind == "discrete" else np.float32
        self._states = {
            name: np.empty((n, capacity, *row.shape[1:]), row.dtype) for name, row in rows.items()
        }
        self._actions = np.empty((n, capacity, *action.shape), dtype)
        self._rewards = np.empty((n, capacity), np.float32)
        self._capacity = capacity
        self.lengths = np.zeros(n, np.int64)
        self.begin(np.ones(n, bool), rows)

    def begin(self, which: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        """Starts an episode in the environments ``which``, bool ``(n,)``, with the given first states."""
        for name, values in rows.items():
            self._states[name][which, 0] = values[which]
        self.lengths[which] = 0

    def step(
        self,
        which: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        rows: Mapping[str, np.ndarray],
    ) -> None:
        """Add a step to the environments ``which``: actions, rewards, and the states that they led to.

        Args:
            which: bool ``(n,)``; the rows of the others are not read.
            actions: ``(n, *action.shape)``, in the environments' own units.
            rewards: ``(n,)`` or ``(n, 1)``.
            rows: ``"frames"`` and the extras, each ``(n, ...)``.

        Raises:
            ValueError: if there is not one reward for each environment, a reward or an extra is NaN or infinite, or
                the shape of an extra changes.
            TypeError: if the dtype of an extra changes to one that its first values cannot hold.
        """
        rewards = scalar_rewards(rewards, len(which))
        _check_finite("reward", rewards, which)
        for name, values in rows.items():
            _check_like(name, values, self._states[name])
            _check_finite(name, values, which)
        envs = np.flatnonzero(which)
        at = self.lengths[envs]
        if len(envs) and at.max() + 2 > self._capacity:
            self._grow()
        self._actions[envs, at] = actions[envs]
        self._rewards[envs, at] = rewards[envs]
        for name, values in rows.items():
            self._states[name][envs, at + 1] = values[envs]
        self.lengths[envs] += 1

    def episode(self, env: int, terminated: bool, truncated: bool) -> Episode:
        """The episode of one environment so far, without copying: the next ``begin`` overwrites its arrays.

        Args:
            env: index of the environment.
            terminated, truncated: how the episode ended.
        """
        length = int(self.lengths[env])
        states = {name: values[env, : length + 1] for name, values in self._states.items()}
        frames = states.pop("frames")
        return Episode(
            frames, self._actions[env, :length], self._rewards[env, :length], terminated, truncated, states
        )

    def _grow(self) -> None:
        used, self._capacity = self._capacity, 2 * self._capacity

        def bigger(old: np.ndarray) -> np.ndarray:
            new = np.empty((len(old), self._capacity, *old.shape[2:]), old.dtype)
            new[:, :used] = old
            return new

        self._states = {name: bigger(values) for name, values in self._states.items()}
        self._actions, self._rewards = bigger(self._actions), bigger(self._rewards)


def _check_like(name: str, values: np.ndarray, column: np.ndarray) -> None:
    if values.shape[1:] != column.shape[2:]:
        raise ValueError(
            f"{name} had shape {column.shape[2:]} at reset and now has {values.shape[1:]}; "
            "let the environment give the same shape every time"
        )
    if not np.can_cast(values.dtype, column.dtype, "safe"):
        raise TypeError(
            f"{name} had dtype {column.dtype} at reset and now has {values.dtype}; "
            "let the environment give the same dtype every time"
        )


def _check_finite(name: str, values: np.ndarray, which: np.ndarray) -> None:
    """Raise ValueError if a value of the environments ``which`` is NaN or infinite."""
    if values.dtype.kind == "f" and not np.isfinite(values[which]).all():
        bad = [i for i in np.flatnonzero(which).tolist() if not np.isfinite(values[i]).all()]
        raise ValueError(
            f"{name} is NaN or infinite in environment(s) {bad}; the episodes under way are not stored, "
            "those that ended before are"
        )
