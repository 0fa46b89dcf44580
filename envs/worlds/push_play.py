"""Data for Push: a scripted policy that pushes the block about, and a measure of what its episodes cover."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from jepa_rl.data import EpisodeStore
from jepa_rl.envs.worlds.push import PushEnv, PushVectorEnv
from jepa_rl.envs.worlds.push_rules import BLOCK_RANGE, HALF, MAX_STEP, RADIUS, PushState, behind

CLEAR = HALF * np.sqrt(2) + RADIUS  # an agent this far from the block's middle does not touch it
CELLS = 8  # cells a side, into which the block's part of the table is divided


class PushPlay:
    """Walks round the block to a random side, pushes it for a while in a random direction, and begins again.

    A policy for ``collect``: independent random moves hardly ever touch the block. It reads the state of the
    environments, not their pictures, so that it must be given those that are collected from::

        env = PushVectorEnv(16)
        collect(env, "runs/push", policy=PushPlay(env), episodes=400, extras=("state", "pushed"), seed=0)

    Args:
        env: ``PushVectorEnv`` or ``PushEnv``, wrapped or not.
        push: range of the lengths of pushes in steps; uniform.
        noise: standard deviation of what is added to both parts of every action, which span [-1, 1].
        wander: probability that a new push is a walk to a random place of the table instead.

    Raises:
        TypeError: if the environment is not Push in this process.
        ValueError: for a range or a probability that is none.
    """

    def __init__(
        self,
        env: gym.Env | gym.vector.VectorEnv,
        push: tuple[int, int] = (3, 12),
        noise: float = 0.3,
        wander: float = 0.1,
    ) -> None:
        if not isinstance(env.unwrapped, PushEnv | PushVectorEnv):
            raise TypeError(f"PushPlay needs a PushEnv or PushVectorEnv in this process, got {env}")
        if not 1 <= push[0] <= push[1] or noise < 0 or not 0 <= wander <= 1:
            raise ValueError(
                "push must be a range of at least 1 step, noise at least 0 and wander a probability, got "
                f"push={push}, noise={noise}, wander={wander}"
            )
        self._env: Any = env.unwrapped
        self.push, self.noise, self.wander = push, noise, wander
        self.reset()

    def reset(self) -> None:
        """Forget all plans; ``collect`` calls this before the first step."""
        self._left = np.zeros(0, np.int64)

    def __call__(self, observations: Any, rng: np.random.Generator) -> np.ndarray:
        state: PushState = self._env.state
        n = len(state.now)
        if len(self._left) != n:
            self._left, self._walking = np.zeros(n, np.int64), np.zeros(n, bool)
            self._way, self._place = np.zeros((n, 2)), np.zeros((n, 2))
        self._plan_anew((self._left <= 0) | (state.steps == 0), rng)
        agent, block, angle = state.now[:, :2], state.now[:, 2:4], state.now[:, 4]
        wanted = np.where(self._walking[:, None], self._place, behind(block, angle, self._way))
        aligned = ~self._walking & (np.linalg.norm(wanted - agent, axis=1) < 0.5 * MAX_STEP)
        pushing = aligned | (~self._walking & self._pushing(agent, block))
        self._left -= pushing | self._walking
        move = np.where(pushing[:, None], self._way, _round(agent, block, wanted) / MAX_STEP)
        return np.clip(move + self.noise * rng.standard_normal((n, 2)), -1.0, 1.0).astype(np.float32)

    def _pushing(self, agent: np.ndarray, block: np.ndarray) -> np.ndarray:
        """Whether the agent is close behind the block already, so that it need not line up again."""
        offset = block - agent
        along = (offset * self._way).sum(axis=1)
        across = np.abs(offset[:, 0] * self._way[:, 1] - offset[:, 1] * self._way[:, 0])
        return (along > 0) & (along < CLEAR + 0.5 * MAX_STEP) & (across < 0.5 * HALF)

    def _plan_anew(self, rows: np.ndarray, rng: np.random.Generator) -> None:
        """Draws a new push, or a walk, where ``rows``."""
        n = len(rows)
        angle = rng.uniform(-np.pi, np.pi, n)
        self._way[rows] = np.stack([np.cos(angle), np.sin(angle)], axis=1)[rows]
        self._place[rows] = rng.uniform(0.0, 1.0, (n, 2))[rows]
        self._walking[rows] = (rng.random(n) < self.wander)[rows]
        self._left[rows] = rng.integers(self.push[0], self.push[1] + 1, n)[rows]


def _round(agent: np.ndarray, block: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The next move towards a place, round the block where it stands in the way; ``(n, 2)``."""
    straight = wanted - agent
    far = np.linalg.norm(straight, axis=1, keepdims=True)
    ahead = straight / np.maximum(far, 1e-9)
    to_block = block - agent
    along = (to_block * ahead).sum(axis=1, keepdims=True)
    side = ahead[:, :1] * to_block[:, 1:] - ahead[:, 1:] * to_block[:, :1]
    blocked = (along > 0) & (along < far + HALF) & (np.abs(side) < CLEAR)
    # Along the circle around the block, on the side of the place; outwards where it is too near.
    distance = np.maximum(np.linalg.norm(to_block, axis=1, keepdims=True), 1e-9)
    out = -to_block / distance
    turn = np.where(side >= 0, 1.0, -1.0)
    tangent = np.concatenate([-out[:, 1:], out[:, :1]], axis=1) * turn
    circle = MAX_STEP * tangent + np.clip(1.1 * CLEAR - distance, -MAX_STEP, MAX_STEP) * out
    return np.where(blocked, circle, straight)


@dataclass(frozen=True)
class PushCoverage:
    """What a store's episodes of Push show.

    Attributes:
        pushed: share of the steps that moved the block.
        visited: share of the cells of the block's part of the table (8 x 8) in which its middle has been.
        turned: mean turn of the block in an episode, radians.
        moved: mean distance of the block's middle between the start and the end of an episode, table widths.
    """

    pushed: float
    visited: float
    turned: float
    moved: float


def push_coverage(store: EpisodeStore) -> PushCoverage:
    """Measures what a store covers that was collected with ``extras=("state", "pushed")``.

    Raises:
        ValueError: if the store is empty or lacks these extras.
    """
    missing = {"state", "pushed"} - set(store.layout.extras)
    if missing or not len(store):
        raise ValueError(
            f"{store.path} must hold episodes with the extras 'state' and 'pushed', got {len(store)} episodes with "
            f"{sorted(store.layout.extras)}; collect(..., extras=('state', 'pushed'))"
        )
    pushed, cells, turned, moved = [], set(), [], []
    for index in range(len(store)):
        episode = store.episode(index)
        state = episode.extras["state"].astype(np.float64)
        pushed.append(episode.extras["pushed"][1:])  # of the steps; the first frame is that of the reset
        place = (state[:, 2:4] - BLOCK_RANGE[0]) / (BLOCK_RANGE[1] - BLOCK_RANGE[0])
        cells |= set(map(tuple, np.clip(np.floor(place * CELLS), 0, CELLS - 1).astype(int)))
        turned.append(np.abs(state[-1, 4] - state[0, 4]))
        moved.append(np.linalg.norm(state[-1, 2:4] - state[0, 2:4]))
    return PushCoverage(
        float(np.concatenate(pushed).mean()),
        len(cells) / CELLS**2,
        float(np.mean(turned)),
        float(np.mean(moved)),
    )
