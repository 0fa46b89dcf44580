"""Replay of whole episodes, each frame stored once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float, Int64

Observations = dict[str, np.ndarray]


class Windows(NamedTuple):
    """Windows of consecutive steps; see the time alignment in ``jepa_rl.types``.

    Attributes:
        observations: by name, "b t ..." with ``t = h + 1``, in the environment's dtype.
        actions: model actions.
        rewards: of each step.
        terminated: whether the episode ended there, not by a time limit.
        valid: False behind the end of an episode, where the last state is repeated.
    """

    observations: Observations
    actions: Float[np.ndarray, "b h a"]
    rewards: Float[np.ndarray, "b h"]
    terminated: Bool[np.ndarray, "b h"]
    valid: Bool[np.ndarray, "b h"]


class EpisodeReplay:
    """A ring of transitions in which episodes lie one after the other.

    An episode of T steps takes T + 1 rows: its states, and in each row but the last the step that was taken
    there. Of stacked frames only the newest is stored; windows stack them again. Episodes are sampled when
    they are over; those that never end are cut into pieces of ``longest`` steps.

    Args:
        space: of one observation, by name.
        action_dim: width of a model action.
        capacity: rows. The oldest episodes make room for new ones.
        frames: how many frames are stacked in observations of three dimensions (the first axis holds them).
        num_envs: how many environments add their steps side by side.
        longest: steps.

    Raises:
        ValueError: if the capacity is too small, or the channels are not ``frames`` frames.
    """

    def __init__(
        self,
        space: dict[str, spaces.Box],
        action_dim: int,
        capacity: int,
        frames: int = 1,
        num_envs: int = 1,
        longest: int = 1000,
    ) -> None:
        for name, box in space.items():
            if len(box.shape) == 3 and box.shape[0] % frames:
                raise ValueError(f"{name} has {box.shape[0]} channels, which are not {frames} frames")
        if capacity < 2 * num_envs:
            raise ValueError(f"capacity must be at least {2 * num_envs}, got {capacity}")
        self.space, self.frames, self.capacity = space, frames, capacity
        self.longest = min(longest, capacity - 1)
        self.rows = {name: np.zeros((capacity, *self._stored(box)), box.dtype) for name, box in space.items()}
        self.actions = np.zeros((capacity, action_dim), np.float32)
        self.rewards = np.zeros(capacity, np.float32)
        self.terminated = np.zeros(capacity, bool)
        self.episodes = np.zeros((0, 2), np.int64)  # first row and steps of each, oldest first
        self.head = 0  # the row that is written next
        self._running: list[list[tuple]] = [[] for _ in range(num_envs)]

    def __len__(self) -> int:
        """Steps of finished episodes."""
        return int(self.episodes[:, 1].sum())

    def add(
        self,
        observations: Observations,
        actions: Float[np.ndarray, "n a"],
        rewards: Float[np.ndarray, " n"],
        next_observations: Observations,
        terminated: Bool[np.ndarray, " n"],
        over: Bool[np.ndarray, " n"],
    ) -> None:
        """One step of every environment; where it is ``over``, ``next_observations`` is the episode's last.

        Raises:
            ValueError: for NaN or infinite rewards, actions or observations; nothing is stored then.
        """
        for name, value in (("rewards", rewards), ("actions", actions), *next_observations.items()):
            if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
                raise ValueError(
                    f"{name} hold NaN or infinite values: {value[~np.isfinite(value)][:5]}; check the environment"
                )
        for i, steps in enumerate(self._running):
            state = {name: self._newest(name, value[i]) for name, value in observations.items()}
            steps.append((state, actions[i].copy(), float(rewards[i]), bool(terminated[i])))
            if over[i] or len(steps) == self.longest:
                self._store(steps, {k: self._newest(k, v[i]) for k, v in next_observations.items()})
                self._running[i] = []

    def sample(self, batch_size: int, steps: int, rng: np.random.Generator) -> Windows:
        """Windows that start anywhere in any finished episode.

        Raises:
            ValueError: if no episode has ended yet.
        """
        if not len(self.episodes):
            raise ValueError("no episode has ended yet: there is nothing to learn from")
        ends = np.cumsum(self.episodes[:, 1])
        draw = rng.integers(ends[-1], size=batch_size)
        episode = np.searchsorted(ends, draw, side="right")
        first, length = self.episodes[episode].T
        start = draw - (ends[episode] - length)
        offset = start[:, None] + np.arange(steps + 1)
        valid = offset[:, :-1] < length[:, None]
        offset = np.minimum(offset, length[:, None])
        at = self._row(first[:, None], offset)
        past = np.maximum(offset[..., None] - np.arange(self.frames)[::-1], 0)
        stacks = self._row(first[:, None, None], past)
        observations = {}
        for name, part in self.rows.items():
            if len(self.space[name].shape) == 3:
                gathered = part[stacks]  # b t k c y x
                observations[name] = gathered.reshape(*at.shape, *self.space[name].shape)
            else:
                observations[name] = part[at]
        now = at[:, :-1]
        return Windows(
            observations, self.actions[now], self.rewards[now], self.terminated[now] & valid, valid
        )

    # -- rows ---------------------------------------------------------------------------------------

    def _stored(self, box: spaces.Box) -> tuple[int, ...]:
        shape = tuple(box.shape)
        return (shape[0] // self.frames, *shape[1:]) if len(shape) == 3 else shape

    def _newest(self, name: str, value: np.ndarray) -> np.ndarray:
        shape = self.space[name].shape
        return np.array(value[-(shape[0] // self.frames) :] if len(shape) == 3 else value)

    def _row(self, first: Int64[np.ndarray, ...], offset: Int64[np.ndarray, ...]) -> np.ndarray:
        return (first + offset) % self.capacity

    def _store(self, steps: list[tuple], last: Observations) -> None:
        count = len(steps)
        rows = (self.head + np.arange(count + 1)) % self.capacity
        self._make_room(count + 1)
        for name, part in self.rows.items():
            part[rows] = [*(step[0][name] for step in steps), last[name]]
        self.actions[rows[:-1]] = [step[1] for step in steps]
        self.rewards[rows[:-1]] = [step[2] for step in steps]
        self.terminated[rows[:-1]] = [step[3] for step in steps]
        self.episodes = np.concatenate([self.episodes, [[self.head, count]]])
        self.head = int((self.head + count + 1) % self.capacity)

    def _make_room(self, rows: int) -> None:
        """Forget the oldest episodes that lie where the next ``rows`` rows will be written."""
        while len(self.episodes):
            used = int((self.episodes[:, 1] + 1).sum())
            if used + rows <= self.capacity:
                return
            self.episodes = self.episodes[1:]


def by_name(observation: Any) -> dict[str, Any]:
    """A Dict observation as it is, any other under the name ``observation``."""
    return dict(observation) if isinstance(observation, dict) else {"observation": observation}
