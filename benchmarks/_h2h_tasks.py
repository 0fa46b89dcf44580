"""What a task of the head-to-head is, and the closed loop that all arms are played in.

A task collects episodes of random or scripted play, and begins paired episodes: equal seeds give equal starts, goals
and worlds for every arm. An entry in ``TASKS`` names the module of a task; it is imported when it is played. One in
``VARIANTS`` is a task with other pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from jepa_rl import EpisodeStore
from jepa_rl.costs import Distance, GoalCost
from jepa_rl.dynamics import HeldActions, MLPDynamics, ParallelDynamics, TwoScaleDynamics
from jepa_rl.envs import collect
from jepa_rl.envs.policies import Policy
from jepa_rl.types import Dynamics, Planner

# By name, the module that holds a task as ``TASK``, and others of its code.
TASKS: dict[str, tuple[str, ...]] = {
    "two_rooms": ("_h2h_two_rooms",),
    "reacher": ("_h2h_reacher",),
    "table_edge": ("_h2h_table_edge",),
    "push": ("_h2h_push",),
    "roofed_rooms": ("_h2h_roofed_rooms", "_h2h_two_rooms"),
}
# By name, the plain task and what is other about the pictures (``_h2h_variants.KINDS``).
VARIANTS = {
    "two_rooms_moving": ("two_rooms", "moving"),
    "reacher_moving": ("reacher", "moving"),
    "push_recolour": ("push", "recolour"),
}
TIER_A = ("two_rooms", "reacher", "table_edge")
# First seeds of paired episodes; training draws its seeds below.
REPORT, TUNE = 8_000_000, 7_000_000


@dataclass(frozen=True)
class Seen:
    """What worlds show, newest last; encoders of pictures read ``pixels``, the ceiling reads ``state``."""

    pixels: np.ndarray  # uint8 (n, k, c, y, x)
    state: np.ndarray  # float32 (n, k, s)


class Worlds(Protocol):
    """Paired episodes side by side."""

    def seen(self, rows: np.ndarray) -> Seen:
        """The last k frames of the worlds ``rows``."""
        ...

    def goals(self) -> Seen:
        """What success looks like, one frame of each world."""
        ...

    def step(self, rows: np.ndarray, actions: np.ndarray, watched: bool) -> None:
        """One environment step of the worlds ``rows``; ``watched``: their pictures will be asked for."""
        ...

    @property
    def success(self) -> np.ndarray:
        """Which have succeeded so far, bool ``(n,)``."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: in ``TASKS``.
        frames: k, that make a state.
        block: environment steps of a latent step.
        budget: environment steps of an episode.
        make_planner: how many futures the planner averages over -> the planner.
        reduce: of ``GoalCost``.
        futures: that plans are priced by, where the dynamics draw several.
        settings: of the data, for the cache.
        collect: (folder, seed, settings) -> the episodes.
        describe: columns of the store -> true state of every frame, float32 ``(rows, s)``; for probes, and for the
            arm that is given it.
        names: of its components.
        begin: seeds -> worlds.
        steps: latent steps of the windows that dynamics learn on.
        encoded: training episodes that dynamics learn on; encoders learn from all.
        violations: count -> by name, steps (what is seen before, the actions, what is seen after), ``"ordinary"`` ones
            and impossible ones; None where there are none.
    """

    name: str
    frames: int
    block: int
    budget: int
    make_planner: Callable[[int], Planner]
    reduce: Any
    futures: int
    settings: dict[str, Any]
    collect: Callable[[Path, int, dict[str, Any]], EpisodeStore]
    describe: Callable[[Callable[[str], np.ndarray]], np.ndarray]
    names: tuple[str, ...]
    begin: Callable[[Sequence[int]], Worlds]
    steps: int
    encoded: int
    violations: Callable[[int], dict[str, tuple[Seen, np.ndarray, Seen]]] | None = None

    @property
    def code(self) -> tuple[str, ...]:
        """The files that decide what its data are."""
        plain, kind = plain_of(self.name)
        modules = TASKS[plain] if kind is None else (*TASKS[plain], "_h2h_variants")
        return tuple(f"benchmarks/{module}.py" for module in modules)


def collect_rest(
    folder: Path,
    episodes: int,
    first: int,
    begin: Callable[[], tuple[VectorEnv, Policy]],
    extras: tuple[str, ...],
) -> EpisodeStore:
    """Collects episodes; those that a stopped run has stored are kept.

    Args:
        folder: of the store.
        episodes: how many there are in the end.
        first: seed of the first.
        begin: makes the worlds and what plays in them, if any episode is missing.
        extras: that are stored, too.
    """
    there = len(EpisodeStore.open(folder)) if (folder / "store.json").exists() else 0
    if there >= episodes:
        return EpisodeStore.open(folder)
    venv, policy = begin()
    store = collect(
        venv,
        folder,
        policy=policy,
        episodes=episodes - there,
        seed=first + there,
        extras=extras,
        progress=False,
    )
    venv.close()
    return store


def task_of(name: str) -> Task:
    """Raises ValueError for an unknown name."""
    plain, kind = plain_of(name)
    if plain not in TASKS:
        raise ValueError(f"there is no task {name!r}; choose of {[*TASKS, *VARIANTS]}")
    task: Task = import_module(TASKS[plain][0]).TASK
    return task if kind is None else import_module("_h2h_variants").variant(task, kind)


def plain_of(name: str) -> tuple[str, str | None]:
    """The plain task of a variant, and what is other about its pictures; a task itself and None."""
    return VARIANTS.get(name, (name, None))


class Reader(Protocol):
    """Frames to latents, see ``_h2h_spaces.Space``."""

    def read(self, seen: Seen) -> Tensor: ...


@torch.no_grad()
def play(
    task: Task,
    space: Reader,
    dynamics: Dynamics,
    seeds: Sequence[int],
    noise: int,
    search: dict[str, Any] | None = None,
) -> list[int]:
    """Success (0 or 1) of every paired episode.

    All worlds that go on are planned for in one call; every plan is followed for one block. Dynamics with a distance
    ``away`` are planned in by that price.

    Args:
        task: is played.
        space: reads frames.
        dynamics: roll its latents out, ``task.block`` actions a step.
        seeds: of the episodes.
        noise: seed of the searches.
        search: changes to the task's.
    """
    worlds = task.begin(seeds)
    planning = Planning.of(task, space, dynamics, worlds, search)
    warm = planning.warm(len(seeds))
    for decision in range(task.budget // task.block):
        rows = np.flatnonzero(~worlds.success)
        if not rows.size:
            break
        z = space.read(worlds.seen(rows)).flatten(1)
        generator = torch.Generator().manual_seed(1000 * noise + decision)
        plan = planning.plan(rows, z, warm[rows], generator)
        warm[rows] = torch.cat([plan[:, 1:], plan[:, -1:]], dim=1)
        actions = plan[:, 0].clamp(-1, 1).numpy()
        for left in reversed(range(task.block)):
            going = ~worlds.success[rows]
            worlds.step(rows[going], actions[going], watched=left < task.frames)
    found = worlds.success.astype(int).tolist()
    worlds.close()
    return found


class Planning(NamedTuple):
    """How worlds are planned in: by which search, on which dynamics, towards what."""

    planner: Planner
    held: HeldActions
    goal: Tensor
    reduce: Any
    away: Distance

    @classmethod
    def of(
        cls, task: Task, space: Reader, dynamics: Dynamics, worlds: Worlds, search: dict[str, Any] | None
    ) -> Planning:
        """For the arguments see ``play``."""
        goal = space.read(worlds.goals())  # n 1 w
        away: Distance = getattr(dynamics, "away", newest_frame(goal.shape[-1]))
        goal = goal.expand(-1, task.frames, -1).flatten(1)
        planner = searching(task, task.futures if draws_futures(dynamics) else 1, search)
        return cls(planner, HeldActions(dynamics, task.block), goal, task.reduce, away)

    def warm(self, n: int) -> Tensor:
        """Plans to begin with."""
        return torch.zeros(n, self.planner.horizon, self.held.action_dim)

    def plan(self, rows: np.ndarray, z: Tensor, warm: Tensor, generator: torch.Generator) -> Tensor:
        """Actions of the plans for the worlds ``rows``."""
        cost = GoalCost(self.goal[rows], self.reduce, self.away)
        return self.planner.plan(self.held, cost, z, warm, generator).actions


def searching(task: Task, futures: int, search: dict[str, Any] | None = None) -> Planner:
    """The task's planner with changes."""
    planner: Any = task.make_planner(futures)
    return replace(planner, **(search or {}))


def newest_frame(width: int) -> Distance:
    """Root mean squared difference of the newest frames' latents, which are ``width`` wide: it has the same scale for
    every width."""

    def distance(latents: Tensor, goal: Tensor) -> Tensor:
        return (latents[..., -width:] - goal[..., -width:]).square().mean(-1).sqrt()

    return distance


def draws_futures(dynamics: Any) -> bool:
    """Whether they are no point predictor."""
    points = MLPDynamics, ParallelDynamics, TwoScaleDynamics
    return not isinstance(getattr(dynamics, "dynamics", dynamics), points)
