"""Roofed Rooms: Two Rooms, but the dot is out of sight under a roof over the wall and its door. For the head-to-head.

One picture does not tell the state: at full speed the dot is out of sight for up to five steps (the roof is 16 pixels
wide, of which the edge of the dot shows 2.6 on either side; a step is 2.45 pixels), and all pictures of these steps
are the same. Frames side by side tell where it went under the roof, and how long ago. With the true state, of which the
dot's place is struck out wherever pictures hide it, 1, 2, 4 and 6 frames lead to 0.32, 0.68, 0.93 and 0.98 of the goals
(point dynamics, 60 tuning episodes, seed 0; the whole state: 1.00). Four are taken: objectives that look at stacks of
frames learn from fewer windows, the more frames these have. A dot that waits there is lost for every arm but ``state``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _h2h_tasks import Seen, Task, collect_rest
from _h2h_two_rooms import Rooms, describe
from gymnasium.vector import VectorEnv

from jepa_rl import EpisodeStore
from jepa_rl.agents import TreeSearch
from jepa_rl.envs import RoofedRoomsVectorEnv, SmoothRandomPolicy, world_spec
from jepa_rl.envs.policies import Policy
from jepa_rl.envs.worlds.roofed_rooms import RoofedRoomsCore

DATA = {"episodes": 2000, "steps": 80}
FRAMES = 4


def collect_play(folder: Path, seed: int, settings: dict[str, Any]) -> EpisodeStore:
    """Smooth random play. Starts are in sight, so that episodes are twice as long as those of Two Rooms: a quarter of
    them passes the door."""

    def begin() -> tuple[VectorEnv, Policy]:
        venv = RoofedRoomsVectorEnv(min(64, settings["episodes"]), max_episode_steps=settings["steps"])
        return venv, SmoothRandomPolicy(world_spec(venv).action, venv.num_envs, time_constant=8.0)

    return collect_rest(folder, settings["episodes"], 100_000 * seed, begin, ("position", "door"))


class RoofedRooms(Rooms):
    """See ``_h2h_tasks.Worlds``. Before the first step the dot stood where it starts."""

    core_type = RoofedRoomsCore

    def __init__(self, seeds: Sequence[int]) -> None:
        super().__init__(seeds)
        now = super().seen(np.arange(len(seeds)))
        self.last = Seen(now.pixels.repeat(FRAMES, 1), now.state.repeat(FRAMES, 1))

    def seen(self, rows: np.ndarray) -> Seen:
        return Seen(self.last.pixels[rows], self.last.state[rows])

    def step(self, rows: np.ndarray, actions: np.ndarray, watched: bool) -> None:
        super().step(rows, actions, watched)
        now, last = super().seen(rows), self.last
        last.pixels[rows] = np.concatenate([last.pixels[rows, 1:], now.pixels], axis=1)
        last.state[rows] = np.concatenate([last.state[rows, 1:], now.state], axis=1)


TASK = Task(
    name="roofed_rooms",
    frames=FRAMES,
    block=5,
    budget=200,
    make_planner=lambda futures: TreeSearch(12, step_cost=0.006),
    reduce="last",
    futures=1,
    settings=DATA,
    collect=collect_play,
    describe=describe,
    names=("x", "y", "wall", "door"),
    begin=RoofedRooms,
    encoded=2000,
    steps=6,
)
