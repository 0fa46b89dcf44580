"""Observations that contain their goal."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from jepa_rl.acting import scalar_reward
from jepa_rl.spaces import pixel_space


class GoalObservation(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Observations become ``{"pixels": ..., "goal": ...}``, the goal taken from ``info["goal"]``.

    Policies get observations, but not ``info``. With the goal in the observation, goal-reaching agents work with
    Stable-Baselines3's VecEnvs, ``evaluate_policy`` and ``EvalCallback``. A goal of one frame is repeated if the
    observation stacks several. Other entries of a Dict observation are kept.

    Args:
        env: an environment with uint8 pixels ``(frames * c, y, x)``, or a Dict of them under ``"pixels"``,
            that gives a goal picture in ``info`` on every reset and step.

    Raises:
        ValueError: if the observation has no such pixels or already a goal; while running, if ``info`` has
            no goal, or one of another shape or dtype than the pixels.
    """

    def __init__(self, env: gym.Env) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._pixels = pixel_space(env.observation_space)
        self._frames = env.metadata.get("frames", 1)
        space = env.observation_space
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {"pixels": self._pixels}
        if "goal" in parts:
            raise ValueError(f"the observation already has a goal: {space}; leave GoalObservation out")
        self.observation_space = spaces.Dict({**parts, "goal": self._pixels})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._with_goal(observation, info), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_goal(observation, info), scalar_reward(reward), terminated, truncated, info

    def _with_goal(self, observation: Any, info: dict[str, Any]) -> dict[str, np.ndarray]:
        parts = observation if isinstance(observation, dict) else {"pixels": observation}
        return {**parts, "goal": self._goal(info)}

    def _goal(self, info: dict[str, Any]) -> np.ndarray:
        if "goal" not in info:
            raise ValueError(
                f"info must hold 'goal', a picture like the observation, on every reset and step; {self.env} "
                f"gave the keys {sorted(info)}"
            )
        goal, (channels, y, x) = np.asarray(info["goal"]), self._pixels.shape
        if goal.dtype == np.uint8 and goal.shape == (channels // self._frames, y, x):
            return np.tile(goal, (self._frames, 1, 1))
        if goal.dtype != np.uint8 or goal.shape != self._pixels.shape:
            raise ValueError(
                f"info['goal'] must be uint8 of shape {self._pixels.shape}, like the pixels, or one frame "
                f"{(channels // self._frames, y, x)} of them, got {goal.dtype} {goal.shape}; a PixelObservation "
                "between them must not resize or recolour"
            )
        return goal.copy()
