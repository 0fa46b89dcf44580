"""TableEdge, whose futures fork: a hard push near the edge may throw the object off. For the head-to-head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from _h2h_tasks import Seen, Task, collect_rest

from jepa_rl import EpisodeStore
from jepa_rl.agents import CEM
from jepa_rl.envs import RandomPolicy, world_spec
from jepa_rl.envs.policies import Policy
from jepa_rl.envs.worlds import table_edge_rules as rules
from jepa_rl.envs.worlds.table_edge import TableEdgeEnv

DATA = {"episodes": 20_000, "steps": 4}
REACHED = 0.06  # table widths: the object touches the goal's middle


def make_world(steps: int) -> gym.Env:
    return gym.wrappers.TimeLimit(TableEdgeEnv(anywhere=True), steps)


def collect_play(folder: Path, seed: int, settings: dict[str, Any]) -> EpisodeStore:
    """Random pushes from anywhere, as examples/branching_futures.py collects them."""

    def begin() -> tuple[gym.vector.VectorEnv, Policy]:
        venv = gym.vector.SyncVectorEnv([partial(make_world, settings["steps"])] * 16)
        return venv, RandomPolicy(world_spec(venv).action, venv.num_envs)

    return collect_rest(folder, settings["episodes"], 200_000 * seed, begin, ("position", "fallen"))


def describe(column: Callable[[str], np.ndarray]) -> np.ndarray:
    return truth(column("position"), column("fallen").reshape(-1))


def truth(position: np.ndarray, fallen: np.ndarray) -> np.ndarray:
    return np.concatenate([position, fallen[:, None]], axis=1).astype(np.float32)


class Tables:
    """See ``_h2h_tasks.Worlds``. Success: at the goal in some step, and not fallen."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.rngs = [np.random.default_rng(seed) for seed in seeds]
        places = [rules.start_and_goal(rng, None, None, anywhere=False) for rng in self.rngs]
        self.position, self.goal = (np.stack(part) for part in zip(*places, strict=True))
        self.fallen = np.zeros(len(seeds), bool)
        self.success = np.zeros(len(seeds), bool)

    def seen(self, rows: np.ndarray) -> Seen:
        at, lies = self.position[rows], self.fallen[rows]
        return Seen(rules.draw(at, lies, self.goal[rows])[:, None], truth(at, lies)[:, None])

    def goals(self) -> Seen:
        """The object at the goal, which it hides."""
        standing = np.zeros_like(self.fallen)
        return Seen(rules.draw(self.goal, standing, self.goal)[:, None], truth(self.goal, standing)[:, None])

    def step(self, rows: np.ndarray, actions: np.ndarray, watched: bool) -> None:
        uniform = np.array([self.rngs[row].random() for row in rows])
        shake = np.stack([self.rngs[row].standard_normal(2) for row in rows])
        self.position[rows], self.fallen[rows] = rules.outcome(
            self.position[rows], self.fallen[rows], actions.astype(np.float64), uniform, shake
        )
        near = np.linalg.norm(self.position - self.goal, axis=1) <= REACHED
        self.success |= near & ~self.fallen

    def close(self) -> None:
        pass


TASK = Task(
    name="table_edge",
    frames=1,
    block=1,
    budget=20,
    make_planner=lambda futures: CEM(6, samples=96, elites=12, iterations=4, init_std=0.4, futures=futures),
    reduce="sum",
    futures=8,
    settings=DATA,
    collect=collect_play,
    describe=describe,
    names=("x", "y", "fallen"),
    begin=Tables,
    encoded=12000,
    steps=4,
)
