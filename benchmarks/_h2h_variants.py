"""Tasks with other pictures: a moving background, or other colours in every step. For the head-to-head.

Of a variant the pictures alone differ: for equal seeds play, starts, goals and true states are those of the plain task.
Data have the backgrounds or hues of training (``jepa_rl.envs.Distract``), paired episodes those of tests, which have
nothing in common with them. A goal picture has the hue or background of some other time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from _h2h_tasks import Seen, Task, Worlds

from jepa_rl import Episode, EpisodeStore
from jepa_rl.envs import recolour
from jepa_rl.envs.wrappers.distractor import Distractor, Looks
from jepa_rl.envs.wrappers.textures import ANGLES, Split

# Arguments of ``Distract``.
KINDS: dict[str, dict[str, Any]] = {
    "moving": {"background": "commonest", "recolour": None, "recolour_every": "episode"},
    "recolour": {"background": None, "recolour": "all", "recolour_every": "step"},
}
MANY = 64  # episodes written at a time


def variant(task: Task, kind: str) -> Task:
    """The task with other pictures.

    Args:
        task: the plain one.
        kind: in ``KINDS``.
    """
    return replace(
        task,
        name=f"{task.name}_{kind}",
        settings=task.settings | {"pictures": KINDS[kind]},
        collect=partial(collect_redrawn, task, kind),
        begin=partial(Redrawn, task, kind),
        violations=None if task.violations is None else partial(violations, task.violations, task, kind),
    )


class Pictures:
    """Draws the distractors of ``n`` episodes.

    Args:
        kind: in ``KINDS``.
        split: of the backgrounds or hues.
        seeds: of the episodes.
        first: their first pictures, "n k c y x"; the oldest of the k frames is that of time 0.
    """

    def __init__(self, kind: str, split: Split, seeds: Sequence[int], first: np.ndarray) -> None:
        n, frames, channels, *sides = first.shape
        shown: gym.Env = gym.Env()
        shown.observation_space = gym.spaces.Box(0, 255, (frames * channels, *sides), np.uint8)
        shown.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        shown.metadata = {"frames": frames}
        looks = Looks(**KINDS[kind], split=split, tolerance=12, brightness=0.6, goal="distracted")
        self.distractor, self.every = Distractor(shown, n, looks), np.arange(n)
        for row, seed in enumerate(seeds):
            self.distractor.seed(row, seed)
        self.distractor.begin(self.every, first.reshape(n, -1, *sides))
        self.pass_steps(frames - 1)

    def pass_steps(self, steps: int) -> None:
        for _ in range(steps):
            self.distractor.tick()

    def draw(self, rows: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """Pictures "m k c y x" of the episodes ``rows``, the newest of the k frames now."""
        return self.distractor.draw(rows, pixels.reshape(len(rows), -1, *pixels.shape[3:])).reshape(
            pixels.shape
        )

    def goals(self, pixels: np.ndarray) -> np.ndarray:
        """Goal pictures "n 1 c y x" of all episodes."""
        return self.distractor.goals(self.every, pixels[:, 0])["goal"][:, None]


# -- data ---------------------------------------------------------------------------------------------


def collect_redrawn(task: Task, kind: str, folder: Path, seed: int, settings: dict[str, Any]) -> EpisodeStore:
    """The plain task's episodes with other pictures; goes on where a stopped run was."""
    plain = task.collect(folder.with_name("plain"), seed, settings)
    layout = plain.layout
    store = EpisodeStore.create(
        folder, layout.frame_shape, layout.action, extras=layout.extras, exist_ok=True
    )
    for begin in range(len(store), len(plain), MANY):
        some = range(begin, min(begin + MANY, len(plain)))
        store.append_many(redrawn(plain, some, kind, 100_000 * seed))
    plain.close()
    shutil.rmtree(plain.path)
    return store


def redrawn(plain: EpisodeStore, indices: Sequence[int], kind: str, first: int) -> Iterator[Episode]:
    """Episodes of a store with distractors of their own; ``first``: seed of those of episode 0."""
    for i in indices:
        episode = plain.episode(i)
        # All frames as one stack.
        frames = np.asarray(episode.frames)[None]
        yield replace(
            episode, frames=Pictures(kind, "train", [first + i], frames).draw(np.zeros(1, int), frames)[0]
        )


# -- paired episodes ----------------------------------------------------------------------------------


class Redrawn:
    """The worlds of the plain task, whose pictures alone differ; see ``_h2h_tasks.Worlds``."""

    def __init__(self, task: Task, kind: str, seeds: Sequence[int]) -> None:
        self.worlds: Worlds = task.begin(seeds)
        self.pictures = Pictures(kind, "test", seeds, self.worlds.seen(np.arange(len(seeds))).pixels)

    def seen(self, rows: np.ndarray) -> Seen:
        seen = self.worlds.seen(rows)
        return replace(seen, pixels=self.pictures.draw(rows, seen.pixels))

    def goals(self) -> Seen:
        goals = self.worlds.goals()
        return replace(goals, pixels=self.pictures.goals(goals.pixels))

    def step(self, rows: np.ndarray, actions: np.ndarray, watched: bool) -> None:
        self.worlds.step(rows, actions, watched)
        self.pictures.pass_steps(1)

    @property
    def success(self) -> np.ndarray:
        return self.worlds.success

    def close(self) -> None:
        self.worlds.close()


# -- surprise -----------------------------------------------------------------------------------------

Kinds = dict[str, tuple[Seen, np.ndarray, Seen]]


def violations(plain: Callable[[int], Kinds], task: Task, kind: str, count: int) -> Kinds:
    """Those of the plain task, with backgrounds or hues of training: what surprises shall be the step.

    Where hues differ, ``"recolour"`` are ordinary steps at whose end the picture has a hue of tests: at least 60
    degrees from the one before and from all of training.
    """
    kinds = plain(count)
    every, first = np.arange(count), kinds["ordinary"][0].pixels
    pictures = Pictures(kind, "train", list(range(count)), first)
    before = {name: pictures.draw(every, now.pixels) for name, (now, _, _) in kinds.items()}
    pictures.pass_steps(task.block)
    after = {name: pictures.draw(every, then.pixels) for name, (_, _, then) in kinds.items()}
    if KINDS[kind]["recolour"] is not None:
        angles = np.random.default_rng(11).uniform(*ANGLES["test"], count)
        kinds["recolour"], before["recolour"] = kinds["ordinary"], before["ordinary"]
        after["recolour"] = recolour(
            kinds["ordinary"][2].pixels, np.broadcast_to(angles[:, None], (count, 1))
        )
    return {
        name: (replace(now, pixels=before[name]), actions, replace(then, pixels=after[name]))
        for name, (now, actions, then) in kinds.items()
    }
