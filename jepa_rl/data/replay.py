"""Replay of whole episodes, each frame stored once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Real
from torch import Tensor

from jepa_rl.data.ring import EpisodeRing
from jepa_rl.data.stacking import stack_frames
from jepa_rl.types import OBSERVATION, ControlBatch

Observations = dict[str, np.ndarray]


class Described(Protocol):
    """An array by shape and dtype, such as a Gymnasium ``Box``."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...


class EpisodeReplay(EpisodeRing):
    """A ring of transitions in which episodes lie one after the other.

    An episode of T steps takes T + 1 rows: its states, and in each row but the last the step that was taken
    there. Of stacked frames only the newest is stored; windows stack them again. Episodes are sampled when
    they are over; those that never end are cut into pieces of ``longest`` steps (the first stacks of a piece repeat its
    first frame, as a reset does). After ``keep_in`` every episode that ends is also a file, which a crash leaves whole.

    Args:
        space: of one observation, by name.
        action_dim: width of a model action.
        capacity: rows. The oldest episodes make room for new ones.
        frames: how many frames are stacked in observations of three dimensions (the first axis holds them), the same
            number in all of them.
        num_envs: how many environments add their steps side by side.
        longest: steps.

    Raises:
        ValueError: if the capacity is too small or larger than memory, or the channels are not ``frames`` frames.
    """

    def __init__(
        self,
        space: Mapping[str, Described],
        action_dim: int,
        capacity: int,
        frames: int = 1,
        num_envs: int = 1,
        longest: int = 1000,
    ) -> None:
        for name, box in space.items():
            if len(box.shape) == 3 and box.shape[0] % frames:
                raise ValueError(
                    f"{name} has {box.shape[0]} channels, which cannot be split into {frames} "
                    "frames; say how many are stacked"
                )
        pictures = {box.shape[0] for box in space.values() if len(box.shape) == 3}
        if frames > 1 and len(pictures) > 1:
            raise ValueError(
                f"pictures have {sorted(pictures)} channels, so they cannot all be stacks of {frames} frames; leave one"
            )
        if capacity < 2 * num_envs:
            raise ValueError(
                f"capacity must be at least {2 * num_envs} rows, two for each environment, got {capacity}; "
                "raise buffer_size"
            )
        self.space, self.frames = dict(space), frames
        self.longest = min(longest, capacity - 1)
        columns: dict[str, tuple[tuple[int, ...], Any]] = {
            f"observation.{name}": (self._stored(box), box.dtype) for name, box in space.items()
        }
        columns |= {
            "action": ((action_dim,), np.float32),
            "reward": ((), np.float32),
            "terminated": ((), bool),
        }
        super().__init__(columns, capacity)
        self._running: list[list[tuple]] = [[] for _ in range(num_envs)]

    def add(
        self,
        observations: Observations,
        actions: Float[np.ndarray, "n a"],
        rewards: Real[np.ndarray, " n"],
        next_observations: Observations,
        terminated: Bool[np.ndarray, " n"],
        over: Bool[np.ndarray, " n"],
    ) -> None:
        """One step of every environment; where it is ``over``, ``next_observations`` is the episode's last.

        Raises:
            ValueError: for NaN or infinite rewards, actions or observations, or stacks that do not hold the frames of
                the steps before; nothing is stored then.
        """
        seen = (*observations.items(), *next_observations.items())
        for name, value in (("rewards", rewards), ("actions", actions), *seen):
            if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
                raise ValueError(
                    f"{name} hold NaN or infinite values: {value[~np.isfinite(value)][:5]}; check the environment"
                )
        for name, box in self.space.items():
            if len(box.shape) == 3 and self.frames > 1:
                new = box.shape[0] // self.frames
                if not np.array_equal(observations[name][~over, new:], next_observations[name][~over, :-new]):
                    raise ValueError(
                        f"{name} must stack the frames of the last {self.frames} steps, but its older frames are not "
                        "those of the step before; put the wrapper that stacks them around all others "
                        "(PixelObservation(ActionRepeat(env, n)))"
                    )
        for i, steps in enumerate(self._running):
            state = {name: self._newest(name, value[i]) for name, value in observations.items()}
            steps.append((state, actions[i].copy(), float(rewards[i]), bool(terminated[i])))
            if over[i] or len(steps) == self.longest:
                self._store(steps, {k: self._newest(k, v[i]) for k, v in next_observations.items()})
                self._running[i] = []

    def sample(
        self,
        batch_size: int,
        steps: int,
        rng: np.random.Generator,
        n_step: int | None = None,
        discount: float = 1.0,
    ) -> ControlBatch:
        """Windows that start at any step of any finished episode, each step equally likely.

        Args:
            batch_size: windows.
            steps: of each.
            rng: draws them.
            n_step: how many steps from its start the returns of a window reach; at least ``steps``, the default.
            discount: of one step.

        Raises:
            ValueError: if no episode has ended yet.
        """
        if not len(self):
            raise ValueError(
                "no episode has ended yet: there is nothing to learn from; add steps until one ends, "
                "or cut() the running ones"
            )
        reach = steps if n_step is None else n_step
        ends = np.cumsum(self.episodes[:, 1])
        draw = rng.integers(ends[-1], size=batch_size)
        episode = np.searchsorted(ends, draw, side="right")
        first, length = self.episodes[episode].T
        start = draw - (ends[episode] - length)
        offset = start[:, None] + np.arange(reach + 1)
        within = offset[:, :-1] < length[:, None]
        offset = np.minimum(offset, length[:, None])
        at = self._row(first[:, None], offset)
        rewards = self.columns["reward"][at[:, :-1]] * within
        terminated = self.columns["terminated"][at[:, :-1]] & within

        distance = np.maximum(within.sum(1, keepdims=True) - np.arange(steps), 0)

        states, last = offset[:, : steps + 1], offset[:, -1:]
        future = None
        if reach > steps:
            future = {name: value[:, 0] for name, value in self._observations(first, last).items()}
        now = at[:, :steps]
        return ControlBatch(
            observations=self._tensors(self._observations(first, states)),
            actions=torch.from_numpy(self.columns["action"][now]),
            rewards=torch.from_numpy(rewards[:, :steps]),
            terminated=torch.from_numpy(terminated[:, :steps]),
            valid=torch.from_numpy(within[:, :steps]),
            returns=torch.from_numpy(discounted(rewards, discount)[:, :steps].astype(np.float32)),
            discounts=torch.from_numpy((discount**distance).astype(np.float32)),
            ended=torch.from_numpy(terminated.any(1)),
            future=None if future is None else self._tensors(future),
        )

    def _tensors(self, observations: Observations) -> Tensor | dict[str, Tensor]:
        """Tensors by name; the only one alone."""
        found = {name: torch.from_numpy(value) for name, value in observations.items()}
        return found[OBSERVATION] if found.keys() == {OBSERVATION} else found

    def _observations(self, first: Int64[np.ndarray, " b"], offset: Int64[np.ndarray, "b t"]) -> Observations:
        """Observations at the given steps of the episodes that begin in rows ``first``, frames stacked."""
        found = {}
        for name, box in self.space.items():
            part = self.columns[f"observation.{name}"]
            if len(box.shape) == 3:
                found[name] = stack_frames(part, first, offset, self.frames)
            else:
                found[name] = part[self._row(first[:, None], offset)]
        return found

    def rewards(self) -> Iterator[Float[np.ndarray, " t"]]:
        """Rewards of each finished episode, the oldest first."""
        for first, length in self.episodes:
            yield self.columns["reward"][self._row(first, np.arange(length))]

    def cut(self, observations: Observations) -> None:
        """Stores running episodes as if they were cut off now; ``observations`` are the newest, "n ..."."""
        for i, steps in enumerate(self._running):
            if steps:
                self._store(
                    steps, {name: self._newest(name, value[i]) for name, value in observations.items()}
                )
                self._running[i] = []

    def forget_running(self) -> None:
        """Drops the steps of episodes that are not over."""
        self._running = [[] for _ in self._running]

    def restore(self, folder: str | Path, numbers: Iterable[int]) -> None:
        """As ``EpisodeRing.restore``; running episodes are forgotten."""
        super().restore(folder, numbers)
        self.forget_running()

    # -- rows ---------------------------------------------------------------------------------------

    def _stored(self, box: Described) -> tuple[int, ...]:
        shape = tuple(box.shape)
        return (shape[0] // self.frames, *shape[1:]) if len(shape) == 3 else shape

    def _newest(self, name: str, value: np.ndarray) -> np.ndarray:
        shape = self.space[name].shape
        return np.array(value[-(shape[0] // self.frames) :] if len(shape) == 3 else value)

    def _store(self, steps: list[tuple], last: Observations) -> None:
        """The steps of one environment, and the observation that they ended in, become an episode."""
        states = [*(step[0] for step in steps), last]
        columns = {f"observation.{name}": np.stack([state[name] for state in states]) for name in self.space}
        for name, values in zip(
            ("action", "reward", "terminated"), zip(*(s[1:] for s in steps), strict=True), strict=True
        ):
            columns[name] = np.stack([*values, np.zeros_like(values[-1])])
        self._append(columns)
        if self.folder is not None:
            self.save(self._file(self.stored - 1), slice(-1, None))


def discounted(rewards: Float[np.ndarray, "*b t"], discount: float) -> Float[np.ndarray, "*b t"]:
    """Discounted sum of the rewards from each step on; float64."""
    returns, total = np.zeros(rewards.shape), np.zeros(rewards.shape[:-1])
    for t in reversed(range(rewards.shape[-1])):
        total = rewards[..., t] + discount * total
        returns[..., t] = total
    return returns
