"""Several environment steps for one action."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym

from jepa_rl.acting import scalar_reward


class ActionRepeat(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Repeats every action and sums the rewards; stops at the end of the episode.

    Under Gymnasium's ``Autoreset`` the step that resets is not repeated.

    Put it around the pixel wrapper to stack the frames of single environment steps; inside it to stack, and render,
    only the frames after each repeated action.

    Args:
        env: the environment.
        repeat: steps per action.

    Raises:
        ValueError: if ``repeat`` is less than 1; while running, if a reward is not one number.
    """

    def __init__(self, env: gym.Env, repeat: int) -> None:
        if repeat < 1:
            raise ValueError(f"repeat must be at least 1, got {repeat}")
        gym.utils.RecordConstructorArgs.__init__(self, repeat=repeat)
        super().__init__(env)
        self.repeat = repeat
        self._ended = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._ended = False
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(1 if self._ended else self.repeat):
            observation, reward, terminated, truncated, info = self.env.step(action)
            total += scalar_reward(reward)
            if terminated or truncated:
                break
        self._ended = bool(terminated or truncated)
        return observation, total, terminated, truncated, info
