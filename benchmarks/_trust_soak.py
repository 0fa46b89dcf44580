"""A million environment steps through wrapper, planner and store; ten thousand resets with pictures.

Memory (of this process, after a tenth of the steps) and open files must not grow. The environments are small and many,
so that a million steps take minutes.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import torch
from _trust_runs import WORLD, warm
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from jepa_rl import EpisodeStore, WorldModel, WorldModelConfig
from jepa_rl.agents import CEM, MPCAgent
from jepa_rl.costs import GoalCost
from jepa_rl.envs import PixelObservation, VectorLatentObservation, collect
from jepa_rl.spaces import world_spec

ENVS, LENGTH, PIECE = 250, 50, 20_000  # environments, steps of an episode, steps of one call of collect
KEPT = 4  # stores that are kept before the oldest is deleted: the disk is not what is measured


class Spots(VectorEnv):
    """Many bright spots on 8 x 8 pixels that actions push about, all in one array; resets itself in the next step."""

    def __init__(self, count: int) -> None:
        self.num_envs = count
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "frames": 1}
        self.single_observation_space = gym.spaces.Box(0, 255, (1, 8, 8), np.uint8)
        self.single_action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, count)
        self.action_space = batch_space(self.single_action_space, count)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = self.np_random.uniform(0, 7, (self.num_envs, 2))
        self.left = self.np_random.integers(1, LENGTH + 1, self.num_envs)
        self.over = np.zeros(self.num_envs, bool)
        return self._see(), {}

    def step(self, actions):
        again = self.over
        new = self.np_random.uniform(0, 7, self.at.shape)
        self.at = np.where(again[:, None], new, np.clip(self.at + actions, 0, 7))
        self.left = np.where(again, LENGTH, self.left - 1)
        self.over = ~again & (self.left == 0)
        rewards = np.where(again, 0.0, -np.abs(self.at - 4).mean(1))
        return self._see(), rewards, np.zeros_like(again), self.over, {}

    def _see(self):
        pictures = np.zeros((self.num_envs, 1, 8, 8), np.uint8)
        cells = self.at.astype(int)
        pictures[np.arange(self.num_envs), 0, cells[:, 0], cells[:, 1]] = 255
        return pictures


def run(
    steps: int, folder: Path, known: dict[str, Any], keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Plays ``steps`` environment steps; half of them planned and stored, half of them encoded by the wrapper."""
    warm()
    shutil.rmtree(folder, ignore_errors=True)
    world = small_world()
    pieces = max(2, steps // PIECE)
    piece, found = steps // pieces, []
    for number in range(pieces):
        if number % 2:
            played = wrapped(world, piece)
        else:
            played = planned(world, piece, folder / str(number))
            shutil.rmtree(folder / str(number - 2 * KEPT), ignore_errors=True)
        found.append((played, *measured()))
    resets = max(20, steps // 100)
    before = measured()
    pictures(resets // 10)
    warmed = measured()
    pictures(resets - resets // 10)
    after = measured()
    warm_up = max(1, pieces // 10)
    memory = [row[1] for row in found]
    files = {row[2] for row in found[warm_up:]} | {warmed[1], after[1]}
    return {
        "soak_steps": sum(row[0] for row in found),
        "soak_growth_mib": round(max(memory[warm_up:]) - memory[warm_up], 2),
        "soak_open_files": sorted(files),
        "open_files_constant": len(files) == 1 and before[1] in files,
        "resets": resets,
        "resets_growth_mib": round(after[0] - warmed[0], 2),
        "memory_mib": [round(row, 1) for row in memory[:: max(1, pieces // 20)]],
    }


def measured() -> tuple[float, int]:
    """MiB of this process, and its open files."""
    gc.collect()
    process = psutil.Process()
    handles = process.num_handles if sys.platform == "win32" else process.num_fds
    return process.memory_info().rss / 2**20, handles()


def small_world() -> WorldModel:
    torch.manual_seed(0)
    options = {**WORLD, "encoder_options": {"widths": (4,)}}
    return WorldModel(WorldModelConfig(world_spec(Spots(1)), 4, **options)).eval()


def planned(world: WorldModel, steps: int, folder: Path) -> int:
    """Steps that CEM plans and ``collect`` stores."""
    agent = MPCAgent(world, CEM(horizon=3, samples=4, elites=2, iterations=1), cost=GoalCost, replan_every=3)
    agent.set_goal(np.full((1, 8, 8), 9, np.uint8))
    collect(Spots(ENVS), folder, policy=agent, steps=steps, seed=len(folder.name), progress=False)
    return EpisodeStore.open(folder).num_steps


def wrapped(world: WorldModel, steps: int) -> int:
    """Steps of random play through the latent wrapper."""
    env = VectorLatentObservation(Spots(ENVS), world, history=2)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(steps // ENVS):
        env.step(rng.uniform(-1, 1, (ENVS, 2)).astype(np.float32))
    env.close()
    return steps // ENVS * ENVS


def pictures(resets: int) -> None:
    """Resets of environments that draw; every hundredth is a new one."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    for number in range(resets):
        if number % 100 == 0:
            env = PixelObservation(gym.make("CartPole-v1", render_mode="rgb_array"), size=32, frames=2)
        env.reset(seed=number)
        env.step(env.action_space.sample())
        if number % 100 == 99 or number == resets - 1:
            env.close()
