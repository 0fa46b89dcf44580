"""Wrappers that distract: a moving background, and other colours in every episode."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from jepa_rl.acting import scalar_reward
from jepa_rl.envs.wrappers.autoreset import autoreset_mode, final_observations, reset_rows, with_final
from jepa_rl.envs.wrappers.distractor import Colours, Distractor, Every, Looks
from jepa_rl.envs.wrappers.fresh import keep_last_observations
from jepa_rl.envs.wrappers.textures import Split
from jepa_rl.spaces import one_seed_each


class Distract(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """Pictures with a moving background, other colours in every episode, or both.

    What shows the colour of the background is covered by a drifting texture; everything else stays. Backgrounds for
    training (soft waves, stripes) and for tests (checkerboards, lattices of dots) have nothing in common. Recolouring
    turns hues at constant luma, in every episode or every step anew: for training by at most 119 degrees, with a random
    share of the saturation, for tests by 179 to 181 degrees. Both have a generator of their own, seeded at
    ``reset(seed=...)``: with the same seed the environment does what it does without the wrapper.

    ``info["goal"]``, where there is one, has the episode's colours and background, those that vary at some other
    time; ``info`` also holds ``clean_goal`` and ``distracted_goal``. Put ``GoalObservation`` outside, and
    ``ActionRepeat`` outside, so that backgrounds move between the frames of a stack::

        env = Distract(PixelObservation(gym.make("jepa_rl/Push-v0"), frames=2), recolour="all", split="test")

    Args:
        env: an environment with uint8 pixels ``(frames * c, y, x)``, or a Dict of them under ``"pixels"``.
        background: ``"commonest"`` (the commonest colour of an episode's first picture), a list of colours (of as many
            values as a frame has channels), or None for no moving background.
        recolour: ``"all"``, one RGB colour whose hue alone is turned (see ``recolour``), or None.
        recolour_every: ``"episode"``, or ``"step"``: colours that nobody can predict.
        split: ``"train"`` or ``"test"``.
        tolerance: how far each channel of a pixel may be from the background's colour.
        brightness: of the texture, as a share of 255.
        goal: what ``info["goal"]`` is: ``"distracted"`` or ``"clean"``.

    Raises:
        ValueError: if the observation has no such pixels, holds the goal already, or an argument does not fit; while
            running, if ``info["goal"]`` does not look like the pixels.
    """

    def __init__(
        self,
        env: gym.Env,
        background: str | Colours | None = "commonest",
        recolour: str | Sequence[int] | None = None,
        recolour_every: Every = "episode",
        split: Split = "train",
        tolerance: int = 12,
        brightness: float = 0.6,
        goal: str = "distracted",
    ) -> None:
        looks = Looks(background, recolour, recolour_every, split, tolerance, brightness, goal)
        gym.utils.RecordConstructorArgs.__init__(self, **asdict(looks))
        gym.Wrapper.__init__(self, env)
        self._distractor = Distractor(env, 1, looks)
        self._row, self._ended = np.array([0]), False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._distractor.seed(0, seed)
        return self._start(observation), self._with_goals(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._ended:  # an environment that resets itself: this is the first picture of a new episode
            observation = self._start(observation)
        else:
            self._distractor.tick()
            observation = self._draw(observation)
        self._ended = bool(terminated or truncated)
        return observation, scalar_reward(reward), terminated, truncated, self._with_goals(info)

    def _start(self, observation: Any) -> Any:
        self._ended = False
        self._distractor.begin(self._row, _pixels(observation)[None])
        return self._draw(observation)

    def _draw(self, observation: Any) -> Any:
        return _with_pixels(observation, self._distractor.draw(self._row, _pixels(observation)[None])[0])

    def _with_goals(self, info: dict[str, Any]) -> dict[str, Any]:
        if "goal" not in info:
            return info
        goals = self._distractor.goals(self._row, np.asarray(info["goal"])[None])
        return info | {name: pictures[0] for name, pictures in goals.items()}


class VectorDistract(VectorWrapper):
    """``Distract`` for vector environments: all pictures at once, in every autoreset mode.

    With the same seed it shows what ``Distract`` shows around each environment. Around a vector environment that
    consists of single ones (``SyncVectorEnv``), stores do not record it: put ``Distract`` around each of these instead.

    Args:
        env: vector environment with uint8 pixels ``(frames * c, y, x)``, or Dicts with them under ``"pixels"``.
        background, recolour, recolour_every, split, tolerance, brightness, goal: as for ``Distract``.

    Raises:
        ValueError: as ``Distract``; if the environment's metadata has no autoreset mode.
    """

    def __init__(
        self,
        env: VectorEnv,
        background: str | Colours | None = "commonest",
        recolour: str | Sequence[int] | None = None,
        recolour_every: Every = "episode",
        split: Split = "train",
        tolerance: int = 12,
        brightness: float = 0.6,
        goal: str = "distracted",
    ) -> None:
        super().__init__(env)
        self._mode = autoreset_mode(env)
        self._looks = Looks(background, recolour, recolour_every, split, tolerance, brightness, goal)
        self._distractor = Distractor(env, self.num_envs, self._looks)
        self._rows, self._ended = np.arange(self.num_envs), np.zeros(self.num_envs, bool)
        if self._mode is AutoresetMode.SAME_STEP:
            keep_last_observations(env)

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """That of the environment, with this wrapper recorded as ``Distract``."""
        if self.env.spec is None:
            return None
        entry = f"{Distract.__module__}:{Distract.__name__}"
        spec = deepcopy(self.env.spec)
        spec.additional_wrappers += (WrapperSpec(Distract.class_name(), entry, asdict(self._looks)),)
        return spec

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        mask = reset_rows(options, self.num_envs)
        observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        seeds = one_seed_each(seed, self.num_envs)
        for row in np.flatnonzero(mask).tolist():
            self._distractor.seed(row, seeds[row])
        self._start(observations, mask)
        self._ended[mask] = False
        return self._draw(observations), self._with_goals(infos, self._rows)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        ended = np.logical_or(terminated, truncated)
        self._distractor.tick()
        if self._mode is AutoresetMode.SAME_STEP:
            if ended.any():
                infos = self._with_final(infos, ended)
            self._start(observations, ended)
        elif self._mode is AutoresetMode.NEXT_STEP:
            self._start(observations, self._ended)
        self._ended = ended
        infos = self._with_goals(infos, self._rows)
        return self._draw(observations), rewards, terminated, truncated, infos

    def _start(self, observations: Any, which: np.ndarray) -> None:
        rows = np.flatnonzero(which)
        self._distractor.begin(rows, _pixels(observations)[rows])

    def _draw(self, observations: Any) -> Any:
        return _with_pixels(observations, self._distractor.draw(self._rows, _pixels(observations)))

    def _with_goals(self, infos: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
        if "goal" not in infos:
            return infos
        goals: dict[str, Any] = {}
        for name, pictures in self._distractor.goals(rows, infos["goal"][rows]).items():
            goals[name] = np.zeros((self.num_envs, *pictures.shape[1:]), np.uint8)
            goals[name][rows] = pictures
            goals[f"_{name}"] = infos.get("_goal", np.ones(self.num_envs, bool))
        return infos | goals

    def _with_final(self, infos: dict[str, Any], ended: np.ndarray) -> dict[str, Any]:
        """The last observations and goals of the episodes that have ended, with their own distractors."""
        rows, last = np.flatnonzero(ended), final_observations(infos, ended)
        drawn = self._distractor.draw(rows, np.stack([_pixels(observation) for observation in last]))
        infos = with_final(infos, ended, map(_with_pixels, last, drawn))
        if "final_info" in infos:
            infos["final_info"] = self._with_goals(infos["final_info"], rows)
        return infos


def _pixels(observation: Any) -> np.ndarray:
    return observation["pixels"] if isinstance(observation, dict) else observation


def _with_pixels(observation: Any, pixels: np.ndarray) -> Any:
    return {**observation, "pixels": pixels} if isinstance(observation, dict) else pixels
