"""Untrained policies for collecting data. They act on batches; their randomness comes from a generator passed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jepa_rl.types import ActionSpec

# (observations of n environments, generator) -> actions (n, a), (n,) or (n, choices), in the environment's units.
Policy = Callable[[Any, np.random.Generator], np.ndarray]


class RandomPolicy:
    """Independent, uniformly distributed actions: ``action_space.sample()`` for a batch.

    Args:
        action: the action space (``jepa_rl.spaces.action_spec``).
        num_envs: number of environments.
    """

    def __init__(self, action: ActionSpec, num_envs: int) -> None:
        self.action, self.num_envs = action, num_envs

    def __call__(self, observations: Any, rng: np.random.Generator) -> np.ndarray:
        return _uniform(self.action, self.num_envs, rng)


class SmoothRandomPolicy:
    """Temporally correlated random actions: independent ones cancel out and explore little.

    Continuous actions follow an Ornstein-Uhlenbeck process (Uhlenbeck & Ornstein, 1930; as exploration
    noise: Lillicrap et al., 2016, section 7) with mean 0 in the range [-1, 1] of the bounds::

        x' = r x + sqrt(1 - r^2) std e,     e ~ N(0, 1),     r = exp(-1 / time_constant)

    clipped to the bounds, so that with a large ``std`` most actions lie at a bound. Discrete actions are repeated with
    probability r and otherwise resampled.

    Args:
        action: the action space (``jepa_rl.spaces.action_spec``).
        num_envs: number of environments.
        time_constant: environment steps after which the correlation of actions has fallen to 1 / e.
        std: standard deviation of the process, in units where the bounds are -1 and 1.

    Raises:
        ValueError: if an argument is not positive.
    """

    def __init__(
        self, action: ActionSpec, num_envs: int, time_constant: float = 10.0, std: float = 1.0
    ) -> None:
        for name, value in (("num_envs", num_envs), ("time_constant", time_constant), ("std", std)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self.action, self.num_envs = action, num_envs
        self.time_constant, self.std = time_constant, std
        self._last: np.ndarray | None = None

    def reset(self) -> None:
        """Forget the last actions; ``collect`` calls this before the first step."""
        self._last = None

    def __call__(self, observations: Any, rng: np.random.Generator) -> np.ndarray:
        keep = np.exp(-1.0 / self.time_constant)
        if self.action.kind == "discrete":
            fresh = _uniform(self.action, self.num_envs, rng)
            kept = (rng.random(self.num_envs) < keep).reshape(-1, *[1] * len(self.action.shape))
            self._last = fresh if self._last is None else np.where(kept, self._last, fresh)
            return self._last
        noise = self.std * rng.standard_normal((self.num_envs, self.action.size))
        first = self._last is None
        self._last = noise if first else keep * self._last + np.sqrt(1.0 - keep**2) * noise
        return self.action.decode(self._last)


def _uniform(action: ActionSpec, n: int, rng: np.random.Generator) -> np.ndarray:
    if action.choices:
        starts, choices = np.array(action.starts, np.int64), np.array(action.choices, np.int64)
        return rng.integers(starts, starts + choices, size=(n, len(starts)))
    if action.kind == "discrete":
        return rng.integers(action.start, action.start + action.size, size=n)
    return action.decode(rng.uniform(-1.0, 1.0, (n, action.size)))
