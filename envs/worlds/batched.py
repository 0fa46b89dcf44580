"""Gymnasium's two interfaces to a world whose rules step any number of episodes as one array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from jepa_rl.spaces import check_actions, one_seed_each


class Steps(Protocol):
    """What every state has: how many steps each episode has taken, int ``(n,)``."""

    steps: np.ndarray


State = TypeVar("State", bound=Steps)


class Rules(Protocol[State]):
    """A world's rules; the first axis of every array is the episode.

    Attributes:
        pixels: space of one observation, uint8 ``(c, y, x)``.
        actions: space of one action, a flat Box.
    """

    pixels: gym.spaces.Box
    actions: gym.spaces.Box

    def new_state(self, n: int) -> State:
        """Room for ``n`` episodes."""

    def begin(
        self,
        state: State,
        rows: np.ndarray,
        rngs: list[np.random.Generator],
        options: dict[str, Any] | None = None,
    ) -> None:
        """Starts new episodes in these rows, in place; one generator for each of them."""

    def advance(self, state: State, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One step of all episodes, in place; returns rewards and successes, each ``(n,)``."""

    def observe(self, state: State) -> np.ndarray:
        """Pixels of all episodes, uint8 ``(n, c, y, x)``."""

    def info(self, state: State) -> dict[str, np.ndarray]:
        """``goal``, ``success`` and what probes and scores need, one row for each episode."""


# A picture of one episode for display, uint8 (y, x, 3), from the state of all and the episode's row.
Display = Callable[[State, int], np.ndarray]


class RulesEnv(gym.Env[np.ndarray, np.ndarray], Generic[State]):
    """One episode at a time; reaching the goal terminates it.

    Args:
        core: the rules.
        display: draws what ``render()`` returns.
        render_mode: None or ``"rgb_array"``.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(self, core: Rules[State], display: Display[State], render_mode: str | None) -> None:
        self.core, self._display, self.render_mode = core, display, render_mode
        self.observation_space, self.action_space = core.pixels, core.actions
        self._state: State | None = None

    @property
    def state(self) -> State:
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
        actions = check_actions(action, self.core.actions.shape)
        reward, success = self.core.advance(self.state, actions[None])
        return self.core.observe(self.state)[0], float(reward[0]), bool(success[0]), False, self._info()

    def render(self) -> np.ndarray | None:
        return None if self.render_mode is None else self._display(self.state, 0)


class RulesVectorEnv(gym.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray], Generic[State]):
    """Many episodes stepped as one array; the same rules as ``RulesEnv``.

    Args:
        core, display, render_mode: as for ``RulesEnv``.
        num_envs: number of worlds.
        max_episode_steps: truncation limit (Gymnasium's TimeLimit does not reach into vector environments).
        autoreset_mode: Gymnasium's NEXT_STEP, SAME_STEP or DISABLED.
    """

    metadata: ClassVar[dict[str, Any]] = dict(RulesEnv.metadata)

    def __init__(
        self,
        core: Rules[State],
        display: Display[State],
        num_envs: int,
        max_episode_steps: int | None,
        autoreset_mode: AutoresetMode | str,
        render_mode: str | None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.core, self._display = core, display
        self.num_envs, self.max_episode_steps, self.render_mode = num_envs, max_episode_steps, render_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.single_observation_space, self.single_action_space = core.pixels, core.actions
        self.observation_space = gym.vector.utils.batch_space(core.pixels, num_envs)
        self.action_space = gym.vector.utils.batch_space(core.actions, num_envs)
        self._rngs = [np.random.default_rng() for _ in range(num_envs)]
        self._state: State | None = None
        self._ended = np.zeros(num_envs, bool)

    @property
    def state(self) -> State:
        if self._state is None:
            raise gym.error.ResetNeeded("call reset() before using the environment")
        return self._state

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        options = dict(options or {})
        rows = np.flatnonzero(options.pop("reset_mask", np.ones(self.num_envs, bool)))
        seeds = one_seed_each(seed, self.num_envs)
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
        actions = check_actions(actions, (self.num_envs, *self.core.actions.shape))
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
        return tuple(self._display(self.state, row) for row in range(self.num_envs))
