"""Reacher, a goal picture 25 steps ahead, for the head-to-head: the protocol of goal_planning.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import goal_planning
import gymnasium as gym
import numpy as np
from _h2h_tasks import Seen, Task, collect_rest
from goal_planning import PoseReachingPolicy, make_env, reached

from jepa_rl import EpisodeStore
from jepa_rl.agents import CEM
from jepa_rl.envs import world_spec
from jepa_rl.envs.policies import Policy
from jepa_rl.envs.wrappers.pictures import resize

PROTOCOL = goal_planning.Args(frames=1)
DATA = {"episodes": PROTOCOL.train_episodes, "steps": PROTOCOL.train_steps}
AHEAD = PROTOCOL.goal_steps  # environment steps from start to goal
# At least one joint has to turn by half a radian: random torques reach three of ten nearer goals.
NEAR = replace(PROTOCOL, tolerance=0.5)
FRAMES = 2  # the speed is their difference


def collect_play(folder: Path, seed: int, settings: dict[str, Any]) -> EpisodeStore:
    """Scripted play from pose to random pose; the world model never reads the joints."""

    def begin() -> tuple[gym.vector.VectorEnv, Policy]:
        venv = gym.vector.SyncVectorEnv([partial(make_env, PROTOCOL, settings["steps"])] * 4)
        return venv, PoseReachingPolicy(world_spec(venv).action, [env.unwrapped for env in venv.envs])

    return collect_rest(folder, settings["episodes"], 10_000 * seed, begin, ("qpos",))


def describe(column: Callable[[str], np.ndarray]) -> np.ndarray:
    return truth(column("qpos"))


def truth(angles: np.ndarray) -> np.ndarray:
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


class Arms:
    """See ``_h2h_tasks.Worlds``. Success: at some step every joint within the tolerance of the goal's.

    One simulation serves all episodes: for each of its steps it is put into the state of an episode, without the
    solver's memory of the step before, for all arms alike.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.env: Any = make_env(PROTOCOL)
        self.world: Any = self.env.unwrapped
        self.action = world_spec(self.env).action
        begun = [self._begin(seed) for seed in seeds]
        self.state, self.target, self.pixels, self.angles, self.goal_pixels, self.goal_angles = (
            np.stack(part) for part in zip(*begun, strict=True)
        )
        self.success = np.zeros(len(seeds), bool)

    def _begin(self, seed: int) -> tuple[np.ndarray, ...]:
        """A start and, ``AHEAD`` steps of play later, a goal that is not near the start."""
        rng = np.random.default_rng(seed)
        pixels, info = self.env.reset(seed=seed)
        policy = PoseReachingPolicy(self.action, [self.world])
        frames, angles, states = [pixels], [info["qpos"]], [self.world.get_state()]
        first = int(rng.integers(3, DATA["steps"] - AHEAD))
        while True:
            pixels, _, _, _, info = self.env.step(policy(None, rng)[0])
            frames.append(pixels)
            angles.append(info["qpos"])
            states.append(self.world.get_state())
            start = len(frames) - 1 - AHEAD
            if start >= first and not reached(NEAR, angles[start], angles[-1]):
                shown = slice(start + 1 - FRAMES, start + 1)
                place = self.target_place().copy()
                return (
                    states[start],
                    place,
                    np.stack(frames[shown]),
                    np.stack(angles[shown]),
                    pixels,
                    angles[-1],
                )

    def target_place(self) -> np.ndarray:
        """Where the task's own target is drawn, which plays no part here: a view of the simulation."""
        return self.world.physics.named.model.geom_pos["target"]

    def seen(self, rows: np.ndarray) -> Seen:
        return Seen(self.pixels[rows], truth(self.angles[rows]))

    def goals(self) -> Seen:
        return Seen(self.goal_pixels[:, None], truth(self.goal_angles)[:, None])

    def step(self, rows: np.ndarray, actions: np.ndarray, watched: bool) -> None:
        physics = self.world.physics
        for row, action in zip(rows, actions, strict=True):
            self.target_place()[:] = self.target[row]
            physics.set_state(self.state[row])
            physics.data.qacc_warmstart[:] = 0
            physics.after_reset()
            self.world._env.step(action.astype(np.float64))
            self.state[row], angles = physics.get_state(), physics.position().copy()
            self.success[row] |= reached(PROTOCOL, angles, self.goal_angles[row])
            if watched:
                self.angles[row] = np.concatenate([self.angles[row, 1:], angles[None]])
                self.pixels[row] = np.concatenate([self.pixels[row, 1:], self._picture()[None]])

    def _picture(self) -> np.ndarray:
        """As ``make_env`` shows it, uint8 (1, 64, 64)."""
        grey = cv2.cvtColor(self.world._picture(128), cv2.COLOR_RGB2GRAY)[..., None]
        return resize(grey, 64).transpose(2, 0, 1)

    def close(self) -> None:
        self.env.close()


TASK = Task(
    name="reacher",
    frames=FRAMES,
    block=5,
    budget=PROTOCOL.budget,
    make_planner=lambda futures: CEM(5, samples=128, elites=16, iterations=5, init_std=1.0, futures=futures),
    reduce="sum",
    futures=2,
    settings=DATA,
    collect=collect_play,
    describe=describe,
    names=("sin shoulder", "sin wrist", "cos shoulder", "cos wrist"),
    begin=Arms,
    encoded=600,
    steps=6,
)
