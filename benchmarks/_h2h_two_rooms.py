"""Two Rooms, random wall and door, start and goal in different rooms, for the head-to-head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _h2h_tasks import Seen, Task, collect_rest
from gymnasium.vector import VectorEnv

from jepa_rl import EpisodeStore
from jepa_rl.agents import TreeSearch
from jepa_rl.envs import SmoothRandomPolicy, world_spec
from jepa_rl.envs.policies import Policy
from jepa_rl.envs.worlds import two_rooms_rules as rules
from jepa_rl.envs.worlds.two_rooms import TwoRoomsVectorEnv
from jepa_rl.envs.worlds.two_rooms_rules import TwoRoomsCore

DATA = {"episodes": 4000, "steps": 40}


def collect_play(folder: Path, seed: int, settings: dict[str, Any]) -> EpisodeStore:
    """Smooth random play, as examples/quickstart.py collects it; starts anywhere."""

    def begin() -> tuple[VectorEnv, Policy]:
        venv = TwoRoomsVectorEnv(
            min(64, settings["episodes"]), max_episode_steps=settings["steps"], start="any"
        )
        return venv, SmoothRandomPolicy(world_spec(venv).action, venv.num_envs, time_constant=8.0)

    return collect_rest(folder, settings["episodes"], 100_000 * seed, begin, ("position", "door"))


def describe(column: Callable[[str], np.ndarray]) -> np.ndarray:
    return np.concatenate([column("position"), column("door")], axis=1).astype(np.float32)


class Rooms:
    """See ``_h2h_tasks.Worlds``."""

    core_type: type[TwoRoomsCore] = TwoRoomsCore

    def __init__(self, seeds: Sequence[int]) -> None:
        self.core = self.core_type()
        self.state = self.core.new_state(len(seeds))
        rngs = [np.random.default_rng(seed) for seed in seeds]
        self.core.begin(self.state, np.arange(len(seeds)), rngs)
        self.success = np.zeros(len(seeds), bool)

    def seen(self, rows: np.ndarray) -> Seen:
        truth = np.concatenate([self.state.position, self.state.layout], axis=1).astype(np.float32)
        return Seen(self.core.observe(self.state)[rows, None], truth[rows, None])

    def goals(self) -> Seen:
        truth = np.concatenate([self.state.goal, self.state.layout], axis=1).astype(np.float32)
        return Seen(self.state.goal_image[:, None], truth[:, None])

    def step(self, rows: np.ndarray, actions: np.ndarray, watched: bool) -> None:
        every = np.zeros((len(self.success), 2))  # a step of nothing moves no dot
        every[rows] = actions
        self.success |= self.core.advance(self.state, every)[1]

    def close(self) -> None:
        pass


def violations(count: int) -> dict[str, tuple[Seen, np.ndarray, Seen]]:
    """Latent steps that can happen, and that cannot: the dot is elsewhere (a fifth of the room away or more), behind
    the wall that it was pushed against, or gone. Ordinary ones, too: stopped by the wall, and through a door, at places
    of wall and door as in data (``door``) or beyond all of them (``new_door``)."""
    rng = np.random.default_rng(7)
    layout = np.stack([rng.uniform(*rules.WALL_RANGE, count), rng.uniform(*rules.DOOR_RANGE, count)], axis=1)
    at = np.stack([rules.sample_position(rng, row, None) for row in layout])
    actions = rng.uniform(-1, 1, (count, 2))
    ordinary = after(at, layout, actions)
    away = np.stack([elsewhere(rng, row, place) for row, place in zip(layout, ordinary, strict=True)])
    # Against the wall, away from the door; then on its other side, as if there were none.
    side = rng.choice([-1.0, 1.0], count)
    wall = layout[:, 0] + side * (rules.BLOCKED + rng.uniform(0, 3, count))
    high = np.where(layout[:, 1] > rules.SIZE / 2, layout[:, 1] - 15, layout[:, 1] + 15)
    before_wall = np.stack([wall, np.clip(high, rules.LOW, rules.HIGH)], axis=1)
    push = np.stack([-side, rng.uniform(-0.3, 0.3, count)], axis=1)
    through = np.clip(before_wall + TASK.block * rules.MAX_STEP * push, rules.LOW, rules.HIGH)
    gone = np.full_like(ordinary, -100.0)  # drawn outside the picture
    steps = {
        "ordinary": (layout, at, actions, ordinary), "teleport": (layout, at, actions, away),
        "wall": (layout, before_wall, push, through), "vanish": (layout, at, actions, gone),
        "stopped_by_the_wall": (layout, before_wall, push, after(before_wall, layout, push)),
    }  # fmt: skip
    beyond = np.stack(
        [outside(rng, rules.WALL_RANGE, 2, 6, count), outside(rng, rules.DOOR_RANGE, 1, 4, count)], 1
    )
    straight = np.stack([-side, np.zeros(count)], axis=1)
    for name, places in (("door", layout), ("new_door", beyond)):
        before = places + np.stack([side * (rules.BLOCKED + 1), np.zeros(count)], axis=1)
        steps[name] = (places, before, straight, after(before, places, straight))
    return {
        name: (shown(here, places), np.tile(action, (1, TASK.block)), shown(there, places))
        for name, (places, here, action, there) in steps.items()
    }


def outside(
    rng: np.random.Generator, bounds: tuple[float, float], least: float, most: float, count: int
) -> np.ndarray:
    """Numbers below or above the bounds, by ``least`` to ``most``."""
    by = rng.uniform(least, most, count)
    return np.where(rng.random(count) < 0.5, bounds[0] - by, bounds[1] + by)


def after(at: np.ndarray, layout: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Where the dots are a latent step later."""
    for _ in range(TASK.block):
        at = rules.move(at, layout, action)
    return at


def elsewhere(rng: np.random.Generator, layout: np.ndarray, place: np.ndarray) -> np.ndarray:
    while True:
        found = rules.sample_position(rng, layout, None)
        if np.linalg.norm(found - place) >= 0.2 * (rules.HIGH - rules.LOW) + TASK.block * rules.MAX_STEP:
            return found


def shown(at: np.ndarray, layout: np.ndarray) -> Seen:
    pixels = np.stack([rules.draw_dots(at), rules.draw_walls(layout)], axis=1)
    return Seen(pixels[:, None], np.concatenate([at, layout], axis=1).astype(np.float32)[:, None])


TASK = Task(
    name="two_rooms",
    frames=1,
    block=5,
    budget=100,
    make_planner=lambda futures: TreeSearch(12, step_cost=0.006),
    reduce="last",
    futures=1,
    settings=DATA,
    collect=collect_play,
    describe=describe,
    names=("x", "y", "wall", "door"),
    begin=Rooms,
    encoded=2000,
    steps=6,
    violations=violations,
)
