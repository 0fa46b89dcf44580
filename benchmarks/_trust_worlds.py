"""Environments that play a script and remember what they showed: what wrappers should answer is read off the script."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

# Bounds and dtypes in which pictures come: (low, high, dtype).
SCALES = (
    (0, 255, np.uint8), (0, 1, np.float32), (-1, 1, np.float32), (-0.5, 0.5, np.float64), (0, 255, np.float32),
    (0, 255, np.int16), (0, 65535, np.uint16), (0, 1, np.float16),
)  # fmt: skip


@dataclass
class Look:
    """How true pictures, uint8 (y, x, c), become observations.

    Attributes:
        side: (y, x).
        channels: of one picture.
        layout: "yxc", "cyx", "yx" or, ``stacked`` pictures together, "kyxc" or "kcyx".
        scale: of ``SCALES``.
        stacked: pictures in one observation; the channels of what a wrapper sees are all of them.
    """

    side: tuple[int, int]
    channels: int
    layout: str
    scale: tuple[float, float, Any]
    stacked: int = 1

    @staticmethod
    def draw(rng: np.random.Generator) -> Look:
        side = tuple(int(n) for n in rng.integers(16, 40, 2))
        if rng.random() < 0.5:
            side = (side[0], side[0])
        layout = str(rng.choice(["yxc", "cyx", "yx", "kyxc", "kcyx"]))
        channels = 1 if layout == "yx" else int(rng.choice([1, 2, 3, 3, 4, 6]))
        stacked = int(rng.integers(1, 4)) if layout.startswith("k") else 1
        return Look((side[0], side[1]), channels, layout, SCALES[rng.integers(len(SCALES))], stacked)

    @property
    def space(self) -> spaces.Box:
        low, high, dtype = self.scale
        return spaces.Box(
            low, high, self.laid(np.zeros((*self.side, self.channels * self.stacked), np.uint8)).shape, dtype
        )

    def laid(self, picture: np.ndarray) -> np.ndarray:
        """The axes of the layout."""
        if self.layout == "yx":
            return picture[..., 0]
        if self.layout == "yxc":
            return picture
        if self.layout == "cyx":
            return picture.transpose(2, 0, 1)
        # The oldest picture's channels first.
        parts = picture.reshape(*self.side, self.stacked, self.channels)
        return parts.transpose((2, 0, 1, 3) if self.layout == "kyxc" else (2, 3, 0, 1))

    def shown(self, picture: np.ndarray) -> np.ndarray:
        """The observation of a true picture (y, x, stacked * c)."""
        low, high, dtype = self.scale
        values = low + self.laid(picture).astype(np.float64) * (high - low) / 255
        return (np.rint(values) if np.dtype(dtype).kind in "iu" else values).astype(dtype)


@dataclass
class Script:
    """What an environment shows, episode after episode.

    Attributes:
        lengths: steps of each episode; they are repeated when they are used up.
        terminates: whether it ends by termination.
        rng: draws pictures, states and rewards.
    """

    lengths: list[int]
    terminates: list[bool]
    rng: np.random.Generator
    episodes: list[dict[str, list[Any]]] = field(default_factory=list)

    @staticmethod
    def draw(rng: np.random.Generator, longest: int = 7) -> Script:
        count = int(rng.integers(1, 4))
        return Script(
            rng.integers(1, longest, count).tolist(), (rng.random(count) < 0.5).tolist(),
            np.random.default_rng(int(rng.integers(2**32))),
        )  # fmt: skip


class Scripted(gym.Env):
    """Plays a script; ``script.episodes`` keeps true pictures, states, rewards and the actions that it was given.

    Args:
        look: of the pictures.
        action: space of the actions.
        script: what happens.
        where: "observation", "dict" (under "image", with a "state" of two numbers and a number beside it) or "render".
        reward: makes an environment's reward of a float.
        spoil: called with each observation, may damage it.
        reuse: show all observations in one array.
        goal: gives ``info["goal"]``.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(
        self, look, action, script, where="observation", reward=float, spoil=None, reuse=False, goal=None
    ):
        self.look, self.action_space, self.script, self.where = look, action, script, where
        self.reward, self.spoil, self.reuse, self.goal = reward, spoil, reuse, goal
        self.state_space = spaces.Dict(
            {"place": spaces.Box(-9, 9, (2,), np.float64), "kind": spaces.Discrete(3)}
        )
        inside = {"image": look.space, **self.state_space.spaces}
        self.observation_space = {
            "observation": look.space, "dict": spaces.Dict(inside), "render": spaces.Box(-9, 9, (2,), np.float64),
        }[where]  # fmt: skip
        self.steps, self.kept = 0, None

    def _show(self):
        rng, episode = self.script.rng, self.script.episodes[-1]
        picture = rng.integers(0, 256, (*self.look.side, self.look.channels * self.look.stacked), np.uint8)
        if self.look.scale[2] == np.float16:
            picture = (picture // 85) * 85  # what halves of floats can tell apart exactly
        place, kind = rng.uniform(-9, 9, 2), int(rng.integers(3))
        episode["pictures"].append(picture)
        episode["places"].append(place)
        episode["kinds"].append(kind)
        shown = self.look.shown(picture)
        if self.spoil is not None:
            shown = self.spoil(shown)
        if self.reuse:
            if self.kept is None:
                self.kept = shown.copy()
            self.kept[...] = shown
            shown = self.kept
        return {
            "observation": shown, "dict": {"image": shown, "place": place, "kind": kind}, "render": place,
        }[self.where]  # fmt: skip

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.script.episodes.append(
            {"pictures": [], "places": [], "kinds": [], "rewards": [], "actions": [], "ends": []}
        )
        self.steps = 0
        return self._show(), self._info()

    def step(self, action):
        script, episode = self.script, self.script.episodes[-1]
        turn = (len(script.episodes) - 1) % len(script.lengths)
        self.steps += 1
        over = self.steps >= script.lengths[turn]
        reward = float(np.float32(script.rng.normal()))
        episode["rewards"].append(reward)
        episode["actions"].append(np.array(action))
        ends = over and script.terminates[turn], over and not script.terminates[turn]
        episode["ends"].append(ends)
        return self._show(), self.reward(reward), *ends, self._info()

    def _info(self):
        return {"goal": self.goal} if self.goal is not None else {}

    def render(self):
        return self.script.episodes[-1]["pictures"][-1]


class Sums:
    """An encoder whose latents are known: the sum of the pixels, the first and the last of them."""

    latent_dim = 3

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        flat = pixels.flatten(1).double()
        return torch.stack([flat.sum(1), flat[:, 0], flat[:, -1]], dim=1)

    @staticmethod
    def of(pixels: np.ndarray) -> np.ndarray:
        """Of one picture."""
        flat = pixels.reshape(-1).astype(np.float64)
        return np.array([flat.sum(), flat[0], flat[-1]], np.float32)


def draw_actions(rng: np.random.Generator) -> spaces.Space:
    """A space of actions of a kind that the library takes."""
    kind = rng.integers(4)
    if kind == 0:
        return spaces.Discrete(int(rng.integers(1, 6)), start=int(rng.integers(-3, 4)))
    if kind == 1:
        sizes = rng.integers(1, 5, int(rng.integers(1, 4)))
        return spaces.MultiDiscrete(sizes, start=rng.integers(-3, 4, len(sizes)))
    low = rng.uniform(-5, 4, int(rng.integers(1, 4)))
    high = low + rng.choice([1e-3, 0.5, 1.0, 10.0, 1e6], len(low))
    dtype = [np.float32, np.float64][rng.integers(2)]
    return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)
