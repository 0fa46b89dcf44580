"""A table, an object on it, and a goal near the edge, where hard pushes may make it fall; needs no OpenGL."""

from __future__ import annotations

from typing import Any, ClassVar

import cv2
import gymnasium as gym
import numpy as np

from jepa_rl.envs.worlds import table_edge_rules as rules
from jepa_rl.spaces import check_actions


class TableEdgeEnv(gym.Env[np.ndarray, np.ndarray]):
    """``jepa_rl/TableEdge-v0``: push the object to the goal; near the edge, gently.

    Observation: uint8 ``(3, 64, 64)``, the table from above. Action: ``Box(-1, 1, (2,))``, a push along x and y of
    strength at most 1, which moves the object by up to 0.12 table widths; a low rim stops it at the edge. Within 0.3
    of the edge a push slips with a probability that grows with its strength and nearness
    (``table_edge_rules.fall_probability``); pushes of strength 0.35 or less never do. A fallen object stays where it
    is, and all further rewards are 0. Reward: 1 in every step at the goal, falling linearly to 0 at a distance of
    0.8. Episodes are cut off after 40 steps, never terminated.

    ``info`` holds, for probes and scores only, ``position`` (x, y), ``fallen`` and ``goal_position``.

    Args:
        goal: (x, y) on the table, or None for random near the edge.
        anywhere: True: episodes start anywhere on the table, half of them near the edge, to collect data for a world
            model. False: all start away from the edge.
        render_mode: None or ``"rgb_array"``.

    ``reset(options=...)`` takes ``start`` and ``goal`` (x, y).
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(
        self,
        goal: tuple[float, float] | None = None,
        anywhere: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.observation_space = gym.spaces.Box(0, 255, (3, rules.SIZE, rules.SIZE), np.uint8)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.anywhere, self.render_mode = anywhere, render_mode
        self._goal = None if goal is None else rules.on_table("goal", goal)
        self._position: np.ndarray | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._position, self.goal = rules.start_and_goal(self.np_random, options, self._goal, self.anywhere)
        self.fallen = False
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        push = check_actions(action, (2,))
        uniform, shake = self.np_random.random(1), self.np_random.standard_normal((1, 2))
        lies = np.array([self.fallen])
        position, fallen = rules.outcome(self.position[None], lies, push[None], uniform, shake)
        self._position, self.fallen = position[0], bool(fallen[0])
        paid = rules.reward(position, fallen, self.goal[None])
        return self._observe(), float(paid[0]), False, False, self._info()

    @property
    def position(self) -> np.ndarray:
        if self._position is None:
            raise gym.error.ResetNeeded("call reset() before using the environment")
        return self._position

    def _observe(self) -> np.ndarray:
        return rules.draw(self.position[None], np.array([self.fallen]), self.goal[None])[0]

    def _info(self) -> dict[str, Any]:
        return {
            "position": self.position.astype(np.float32),
            "fallen": self.fallen,
            "goal_position": self.goal.astype(np.float32),
        }

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            return None
        image = self._observe().transpose(1, 2, 0)
        return cv2.resize(image, None, fx=6, fy=6, interpolation=cv2.INTER_NEAREST)
