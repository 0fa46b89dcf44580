"""What the distracting wrappers share: draws the distractors of any number of environments at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from jaxtyping import Int, UInt8

from jepa_rl.envs.wrappers.textures import (
    ANGLES,
    FAMILIES,
    SATURATIONS,
    Split,
    Textures,
    commonest_colours,
    hue_of,
    random_shares,
    recolour,
)
from jepa_rl.spaces import env_spaces, pixel_space

Array = np.ndarray
Colours = Sequence[Sequence[int]]
Every = Literal["episode", "step"]
GOAL_TIMES = 1000  # the background of a goal picture is that of a random time below this, in steps
OWN = 0xD157  # keeps the generators of distractors apart from those of environments with the same seed


@dataclass(frozen=True)
class Looks:
    """The arguments of ``Distract``, which explains them."""

    background: str | Colours | None
    recolour: str | Sequence[int] | None
    recolour_every: Every
    split: Split
    tolerance: int
    brightness: float
    goal: str

    def __post_init__(self) -> None:
        if self.split not in FAMILIES:
            raise ValueError(f"split must be 'train' or 'test', got {self.split!r}")
        if self.recolour_every not in get_args(Every):
            raise ValueError(f"recolour_every must be 'episode' or 'step', got {self.recolour_every!r}")
        whole = isinstance(self.tolerance, int)
        if not whole or not 0 <= self.tolerance <= 255 or not 0.0 < self.brightness <= 1.0:
            raise ValueError(
                "tolerance must be a whole number from 0 to 255 and brightness lie in (0, 1], got "
                f"tolerance={self.tolerance} and brightness={self.brightness}"
            )
        if self.goal not in ("distracted", "clean"):
            raise ValueError(f"goal must be 'distracted' or 'clean', got {self.goal!r}")
        if self.background is None and self.recolour is None:
            raise ValueError("background=None and recolour=None leave nothing to do; leave Distract out")


class Distractor:
    """Draws the distractors of ``n`` environments; what ``Distract`` and ``VectorDistract`` share.

    Args:
        env: environment or vector environment, whose pictures are checked.
        n: number of environments.
        looks: what is drawn.
    """

    def __init__(self, env: gym.Env | VectorEnv, n: int, looks: Looks) -> None:
        observation, _, self.frames = env_spaces(env)
        pixels = pixel_space(observation)
        if isinstance(observation, spaces.Dict) and "goal" in observation.spaces:
            raise ValueError(
                "the observation already holds the goal picture, which would stay clean; put GoalObservation around "
                "Distract, not inside it"
            )
        if pixels.shape[0] % self.frames:
            raise ValueError(f"{pixels.shape[0]} channels are not {self.frames} stacked frames (metadata)")
        self.channels, self.sides, self.looks = pixels.shape[0] // self.frames, pixels.shape[1:], looks
        self._given, self._colour = self._colours(looks.background), self._chosen(looks.recolour)
        self._rngs = [np.random.default_rng() for _ in range(n)]
        self._textures = Textures.none(n, self.channels)
        self._behind = np.zeros((n, 1 if self._given is None else len(self._given), self.channels), np.uint8)
        self._colouring, self._times = np.zeros((2, n), np.uint64), np.zeros(n, np.int64)
        self._goal_times, self._stale = np.zeros(n, np.int64), np.ones(n, bool)
        self._clean_goals = self._drawn_goals = np.zeros((n, 0, *self.sides), np.uint8)

    def _colours(self, background: str | Colours | None) -> UInt8[Array, "m c"] | None:
        """The background's colours, or None if they are to be found in the pictures or not needed."""
        if background is None or (isinstance(background, str) and background == "commonest"):
            return None
        colours = np.asarray(background) if not isinstance(background, str) else np.zeros(0)
        wrong = colours.ndim != 2 or colours.shape[1] != self.channels or not len(colours)
        if wrong or colours.dtype.kind not in "iu" or ((colours < 0) | (colours > 255)).any():
            raise ValueError(
                "background must be 'commonest', None, or a list of colours of the picture's "
                f"{self.channels} channels each, whole numbers from 0 to 255, got {background!r}"
            )
        return colours.astype(np.uint8)

    def _chosen(self, recolours: str | Sequence[int] | None) -> Sequence[int] | None:
        """The colour whose hue is rotated, or None for all."""
        if recolours is None:
            return None
        if self.channels != 3:
            raise ValueError(
                f"recolour needs RGB pictures, got {self.channels} channels in a frame; only colours have a hue: "
                "leave recolour out"
            )
        if isinstance(recolours, str):
            if recolours != "all":
                raise ValueError(f"recolour must be None, 'all' or an RGB colour, got {recolours!r}")
            return None
        hue_of(recolours)
        return recolours

    def seed(self, row: int, seed: int | None) -> None:
        """Starts the generator of one environment anew, unless ``seed`` is None."""
        if seed is not None:
            self._rngs[row] = np.random.default_rng([seed, OWN])

    def begin(self, rows: Int[Array, " m"], pictures: UInt8[Array, "m p y x"]) -> None:
        """Draws the distractors of new episodes.

        Args:
            rows: the environments that have begun one.
            pictures: their first pictures.
        """
        for row in rows.tolist():
            rng = self._rngs[row]
            self._textures.draw_anew(row, rng, self.looks.split, self.looks.brightness)
            self._colouring[:, row] = rng.integers(2**63, size=2)
            self._goal_times[row] = rng.integers(GOAL_TIMES)
        self._times[rows], self._stale[rows] = 0, True
        if self._given is not None:
            self._behind[rows] = self._given
        elif self.looks.background is not None and len(rows):
            self._behind[rows, 0] = commonest_colours(pictures[:, -self.channels :])

    def tick(self) -> None:
        """One step of all environments."""
        self._times += 1

    def draw(self, rows: Int[Array, " m"], pictures: UInt8[Array, "m p y x"]) -> UInt8[Array, "m p y x"]:
        """Observations with their distractors; every frame of a stack with the background of its own time."""
        ago = np.arange(self.frames - 1, -1, -1)
        return self._draw(rows, pictures, np.maximum(self._times[rows, None] - ago, 0))

    def goals(self, rows: Int[Array, " m"], goals: Any) -> dict[str, UInt8[Array, "m g y x"]]:
        """Goal pictures as entries of ``info``: ``goal``, ``clean_goal``, ``distracted_goal``."""
        clean = np.asarray(goals)
        fits = clean.ndim == 4 and clean.dtype == np.uint8 and clean.shape[2:] == self.sides
        if not fits or clean.shape[1] not in (self.channels, self.channels * self.frames):
            raise ValueError(
                f"info['goal'] must be uint8 of shape {(self.channels, *self.sides)}, like one frame of the pixels, or "
                f"a stack of {self.frames}, got {clean.dtype} {clean.shape[1:]}"
            )
        if clean.shape[1] != self._clean_goals.shape[1]:
            self._clean_goals = np.zeros((len(self._stale), *clean.shape[1:]), np.uint8)
            self._drawn_goals, self._stale[:] = self._clean_goals.copy(), True
        # Most goals stay the same for an episode and are drawn once.
        new = self._stale[rows] | (clean != self._clean_goals[rows]).any(axis=(1, 2, 3))
        if new.any():
            which = rows[new]
            times = np.repeat(self._goal_times[which, None], clean.shape[1] // self.channels, axis=1)
            self._clean_goals[which] = clean[new]
            self._drawn_goals[which] = self._draw(which, clean[new], times)
            self._stale[which] = False
        drawn = self._drawn_goals[rows]
        chosen = drawn if self.looks.goal == "distracted" else clean
        return {"goal": chosen.copy(), "clean_goal": clean.copy(), "distracted_goal": drawn}

    def _draw(
        self, rows: Int[Array, " m"], pictures: UInt8[Array, "m p y x"], times: Int[Array, "m k"]
    ) -> UInt8[Array, "m p y x"]:
        shape = (*times.shape, self.channels, *self.sides)
        frames = drawn = pictures.reshape(shape)
        if self.looks.recolour is not None:
            drawn = self._recoloured(rows, frames, times)
        if self.looks.background is None:
            return drawn.reshape(pictures.shape)
        covered = np.zeros((*times.shape, 1, *self.sides), bool)
        for colour in self._behind[rows].swapaxes(0, 1):
            low = np.maximum(colour, self.looks.tolerance) - self.looks.tolerance
            width = np.minimum(colour, 255 - self.looks.tolerance) + self.looks.tolerance - low
            # Bytes wrap round: what lies below ``low`` ends up above ``width``.
            near = frames - low[:, None, :, None, None] <= width[:, None, :, None, None]
            covered |= near.all(axis=2, keepdims=True)
        texture = self._textures.rows(rows).at(times, *self.sides)
        return np.where(covered, texture, drawn).reshape(pictures.shape)

    def _recoloured(
        self, rows: Int[Array, " m"], frames: UInt8[Array, "m k c y x"], times: Int[Array, "m k"]
    ) -> UInt8[Array, "m k c y x"]:
        if self.looks.recolour_every == "episode":
            times = np.zeros_like(times)
        angles, saturations = (
            low + (high - low) * random_shares(keys[rows], times)
            for keys, (low, high) in zip(
                self._colouring, (ANGLES[self.looks.split], SATURATIONS[self.looks.split]), strict=True
            )
        )
        return recolour(frames, angles, self._colour, saturations)
