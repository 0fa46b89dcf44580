"""Ray: the same episodes and results as without it, also where a process is killed, and refusals in words."""

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("ray")

from jepa_rl.cluster import Parcel, ray_running
from jepa_rl.data import EpisodeStore
from jepa_rl.envs import collect, collect_on_ray


@pytest.fixture(scope="module", autouse=True)
def ray():
    """One Ray for all tests of this file."""
    with ray_running(cpus=2) as running:
        yield running


class Dial(gym.Env):
    """A dial that actions turn and pictures show. Length and start of an episode are drawn at its reset.

    ``killed``: a file; the process that plays the third step of the episode of seed 12 makes it and dies, if it is not
    there yet. ``broken``: the seed of an episode that raises an error.
    """

    observation_space = gym.spaces.Box(0, 255, (3, 8, 8), np.uint8)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, killed=None, broken=None):
        self.killed, self.broken = killed, broken

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps = seed, 0
        self.length, self.angle = int(self.np_random.integers(4, 9)), float(self.np_random.random())
        return self.picture(), {"angle": self.angle}

    def step(self, action):
        self.steps += 1
        self.angle += float(action[0])
        if self.seed == 12 and self.steps == 3 and self.killed is not None and not self.killed.exists():
            self.killed.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        if self.seed == self.broken:
            raise ArithmeticError("the dial came off")
        over = self.steps == self.length
        return self.picture(), self.angle, over, False, {"angle": self.angle}

    def picture(self):
        return np.full((3, 8, 8), round(self.angle * 40) % 256, np.uint8)


def episodes_of(store):
    return [store.episode(i) for i in range(len(store))]


def assert_equal_stores(one, other):
    assert one.layout == other.layout and len(one) == len(other)
    for name in ("frames.bin", "actions.bin", "rewards.bin", "extra.angle.bin", "episodes.jsonl"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes(), name


@pytest.mark.parametrize("steps", [None, 30])
def test_the_same_episodes_as_without_ray_although_an_actor_is_killed(tmp_path, steps):
    without = EpisodeStore.open
    for k in range(6):
        without = collect(Dial(), tmp_path / "without", episodes=1, seed=10 + k, extras=["angle"], progress=False)
        if steps is not None and without.num_steps >= steps:
            break
    killed = tmp_path / "killed" if steps is None else None
    found = collect_on_ray(
        partial(Dial, killed), tmp_path / "with", episodes=6 if steps is None else None, steps=steps, seed=10,
        extras=["angle"], actors=2, progress=False,
    )  # fmt: skip
    assert steps is not None or int(killed.read_text()) != os.getpid()
    assert_equal_stores(without, found)
