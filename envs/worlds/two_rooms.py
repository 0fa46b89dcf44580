"""Two rooms and a door: a dot moves to the place that a goal picture shows; needs no OpenGL."""

from __future__ import annotations

from typing import Any, ClassVar

import cv2
import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from jepa_rl.envs.worlds.two_rooms_rules import SIZE, Reward, Start, TwoRoomsCore, TwoRoomsState
from jepa_rl.spaces import check_actions

PIXELS = gym.spaces.Box(0, 255, (2, SIZE, SIZE), np.uint8)
ACTIONS = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)


def picture(pixels: np.ndarray, goal_image: np.ndarray, scale: int = 6) -> np.ndarray:
    """A picture for display, uint8 ``(64 * scale, 64 * scale, 3)``: walls grey, goal green, dot red.

    Args:
        pixels: uint8 ``(2, 64, 64)``, dot and walls.
        goal_image: uint8 ``(2, 64, 64)``, goal and walls.
        scale: magnification.
    """
    canvas = np.full((SIZE, SIZE, 3), 255.0)
    canvas -= pixels[1][..., None] / 255.0 * np.array([150, 150, 150])
    canvas -= goal_image[0][..., None] / 255.0 * np.array([215, 60, 180])
    canvas -= pixels[0][..., None] / 255.0 * np.array([30, 220, 220])
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)


class TwoRoomsEnv(gym.Env[np.ndarray, np.ndarray]):
    """``jepa_rl/TwoRooms-v0``: steer a dot through the door to the goal.

    Observation: uint8 ``(2, 64, 64)``, dot and walls. Action: ``Box(-1, 1, (2,))``, one unit is 2.45 pixels.
    Reward: 1 on reaching the goal (within 3 pixels), which ends the episode; ``reward="dense"`` adds the progress in
    pixels / 64. The wall and the door are random per episode unless given. ``info`` holds ``goal`` (a uint8
    picture like the observation) and, for probes and scores only, ``position``, ``goal_position``, ``door``
    (wall x and door y) and ``success``.

    Args:
        reward: ``"sparse"`` or ``"dense"``.
        start: ``"different"`` puts start and goal in different rooms, ``"any"`` anywhere free.
        wall: x of the wall, or None for random.
        door: y of the door's middle, or None for random.
        render_mode: None or ``"rgb_array"``.

    ``reset(options=...)`` takes ``start``, ``goal`` (x, y), ``wall`` and ``door``.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(
        self,
        reward: Reward = "sparse",
        start: Start = "different",
        wall: float | None = None,
        door: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.core = TwoRoomsCore(reward, start, wall, door)
        self.observation_space, self.action_space = PIXELS, ACTIONS
        self.render_mode = render_mode
        self._state: TwoRoomsState | None = None

    @property
    def state(self) -> TwoRoomsState:
        if self._state is None:
            raise gym.error.ResetNeeded("call reset() before using the environment")
        return self._state

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {name: value[0] for name, value in self.core.info(self.state).items()}
        return info | {"success": bool(info["success"])}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        state = self.core.new_state(1)
        self.core.begin(state, np.array([0]), [self.np_random], options)
        self._state = state
        return self.core.observe(state)[0], self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        actions = check_actions(action, (2,))
        reward, success = self.core.advance(self.state, actions[None])
        return self.core.observe(self.state)[0], float(reward[0]), bool(success[0]), False, self._info()

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            return None
        return picture(self.core.observe(self.state)[0], self.state.goal_image[0])


class TwoRoomsVectorEnv(gym.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """Many Two Rooms worlds stepped as one array; the same rules as ``TwoRoomsEnv``.

    Args:
        num_envs: number of worlds.
        max_episode_steps: truncation limit (Gymnasium's TimeLimit does not reach into vector environments).
        autoreset_mode: Gymnasium's NEXT_STEP (default), SAME_STEP or DISABLED.
        reward, start, wall, door, render_mode: as for ``TwoRoomsEnv``.
    """

    metadata: ClassVar[dict[str, Any]] = dict(TwoRoomsEnv.metadata)

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = 200,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        reward: Reward = "sparse",
        start: Start = "different",
        wall: float | None = None,
        door: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.core = TwoRoomsCore(reward, start, wall, door)
        self.num_envs, self.max_episode_steps, self.render_mode = num_envs, max_episode_steps, render_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**TwoRoomsEnv.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space, self.single_action_space = PIXELS, ACTIONS
        self.observation_space = gym.vector.utils.batch_space(PIXELS, num_envs)
        self.action_space = gym.vector.utils.batch_space(ACTIONS, num_envs)
        self._rngs = [np.random.default_rng() for _ in range(num_envs)]
        self._state: TwoRoomsState | None = None
        self._ended = np.zeros(num_envs, bool)

    @property
    def state(self) -> TwoRoomsState:
        if self._state is None:
            raise gym.error.ResetNeeded("call reset() before using the environment")
        return self._state

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        options = dict(options or {})
        rows = np.flatnonzero(options.pop("reset_mask", np.ones(self.num_envs, bool)))
        seeds = (
            [None if seed is None else seed + i for i in range(self.num_envs)]
            if not isinstance(seed, list)
            else seed
        )
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must be an int or {self.num_envs} values, got {len(seeds)}")
        for row in rows:
            if seeds[row] is not None:
                self._rngs[row] = np.random.default_rng(seeds[row])
        state = self.core.new_state(self.num_envs) if self._state is None else self._state
        self.core.begin(state, rows, [self._rngs[row] for row in rows], options)
        self._state = state
        self._ended[rows] = False
        return self.core.observe(state), self._info()

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = self.core.info(self.state)
        return info | {f"_{name}": np.ones(self.num_envs, bool) for name in info}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        actions = check_actions(actions, (self.num_envs, 2))
        state = self.state
        if self.autoreset_mode is AutoresetMode.DISABLED and self._ended.any():
            raise gym.error.ResetNeeded("an episode has ended; reset it with options={'reset_mask': ...}")
        waiting = np.flatnonzero(self._ended)  # NEXT_STEP: these rows reset now and ignore their action
        rewards, terminated = self.core.advance(state, actions)
        truncated = np.zeros(self.num_envs, bool)
        if self.max_episode_steps is not None:
            truncated = (state.steps >= self.max_episode_steps) & ~terminated
        if waiting.size:
            self._begin(waiting)
            rewards[waiting], terminated[waiting], truncated[waiting] = 0.0, False, False
        ended = terminated | truncated
        info = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and ended.any():
            rows = np.flatnonzero(ended)
            final_obs = np.full(self.num_envs, None, dtype=object)
            observations = self.core.observe(state)
            final_obs[rows] = [observations[row] for row in rows]
            final_info = self._info()
            info = {"final_obs": final_obs, "_final_obs": ended.copy()}
            info |= {"final_info": final_info, "_final_info": ended.copy()}
            self._begin(rows)
        self._ended = ended if self.autoreset_mode is not AutoresetMode.SAME_STEP else np.zeros_like(ended)
        return self.core.observe(state), rewards, terminated, truncated, self._info() | info

    def _begin(self, rows: np.ndarray) -> None:
        self.core.begin(self.state, rows, [self._rngs[row] for row in rows])

    def render(self) -> tuple[np.ndarray, ...] | None:
        if self.render_mode is None:
            return None
        pixels = self.core.observe(self.state)
        return tuple(picture(p, g) for p, g in zip(pixels, self.state.goal_image, strict=True))
