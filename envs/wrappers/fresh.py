"""Last observations of episodes that are not overwritten when the environment resets itself."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from jepa_rl.envs.wrappers.pixels import PixelObservation
from jepa_rl.envs.wrappers.warn import warn_caller


class FreshObservation(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Copies every observation, for environments that reuse one array for all of them."""

    def __init__(self, env: gym.Env) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return _copied(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, *rest = self.env.step(action)
        return _copied(observation), *rest


def keep_last_observations(venv: Any) -> bool:
    """Makes the environments of an in-process vector environment return copies of their observations.

    When an episode ends, Gymnasium's SAME_STEP autoreset and Stable-Baselines3's VecEnvs keep the last observation and
    reset the environment at once. An environment that reuses one array then overwrites the last observation with the
    next episode's first.

    Args:
        venv: Gymnasium vector environment or Stable-Baselines3 ``VecEnv``; one whose environments run in other
            processes, or that does not consist of single environments, is not changed.

    Returns:
        Whether the environments return copies now.
    """
    envs = getattr(venv.unwrapped, "envs", None)
    if not isinstance(envs, list) or not all(isinstance(env, gym.Env) for env in envs):
        return False
    for i, env in enumerate(envs):
        if not isinstance(env, PixelObservation | FreshObservation):
            envs[i] = FreshObservation(env)
    return True


class LastObservationCheck:
    """Detects last observations that were overwritten by the next episode's first."""

    def __init__(self) -> None:
        self._warned = False

    def check(self, last: Any, first: Any, row: int) -> None:
        """Compares an episode's last pixels with the first ones of the next.

        Args:
            last, first: pixels, or Dicts with them under ``"pixels"``.
            row: number of the environment.

        Raises:
            ValueError: if both share memory.

        Warns:
            UserWarning: once, if they are equal.
        """
        if isinstance(last, dict):
            last, first = last["pixels"], first["pixels"]
        fix = "let it return copies, or wrap each of its environments in PixelObservation"
        if np.shares_memory(last, first):
            raise ValueError(
                f"the last observation of an episode in environment {row} shares its memory with the first one of the "
                f"next, which has overwritten it; {fix}"
            )
        if not self._warned and np.array_equal(last, first):
            self._warned = True
            warn_caller(
                f"the last observation of an episode in environment {row} equals the first one of the next; if the "
                f"environment writes its observations into one array, {fix}"
            )


def _copied(observation: Any) -> Any:
    if isinstance(observation, np.ndarray):
        return observation.copy()
    if isinstance(observation, dict):
        return {name: _copied(part) for name, part in observation.items()}
    if isinstance(observation, tuple):
        return tuple(_copied(part) for part in observation)
    return observation
