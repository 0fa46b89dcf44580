"""A corridor in which the left or the right door opens at random, late: bimodal futures; needs no OpenGL."""

from __future__ import annotations

from typing import Any, ClassVar

import cv2
import gymnasium as gym
import numpy as np

from jepa_rl.spaces import check_actions

SIZE = 64  # pixels
LENGTH = 12  # steps to the wall at the end
DECISION = 6  # steps until one of its doors opens
SPEED = 0.12  # sideways, in half corridor widths per step
DOOR = 0.6  # where the doors' middles are, to both sides
HALF_DOOR = 0.2
RADIUS = 0.09  # of the dot, as drawn
WALL = 10  # pixels from the top to the end's wall
ROW = 4  # pixels per step

Array = np.ndarray


def value(x: float | Array, step: int, side: int = 0, right: float = 0.5) -> Array:
    """Probability that the best play passes the wall (undiscounted), in closed form.

    Before the door opens the best is to be where both doors can still be reached; whoever has gone to one side by then
    passes with the probability of that side.

    Args:
        x: sideways position, -1 to 1.
        step: steps taken so far.
        side: -1 or 1 once the door is open, 0 before.
        right: probability that the right door opens.
    """
    x = np.asarray(x, np.float64)
    if side:
        return (np.abs(x - side * DOOR) <= HALF_DOOR + SPEED * (LENGTH - step) + 1e-9).astype(float)
    reach = HALF_DOOR + SPEED * (LENGTH - DECISION)
    freedom = SPEED * (DECISION - step)
    # Places at the decision from which the left door, both, or the right door are in reach.
    places = (
        (-DOOR - reach, DOOR - reach - 1e-9, 1 - right),
        (DOOR - reach, reach - DOOR, 1.0),
        (reach - DOOR + 1e-9, DOOR + reach, right),
    )
    worth = np.zeros_like(x)
    for low, high, chance in places:
        if low <= high:
            there = (x + freedom >= low - 1e-9) & (x - freedom <= high + 1e-9)
            worth = np.maximum(worth, there * chance)
    return worth


def draw(x: float, step: int, side: int) -> np.ndarray:
    """The corridor from above, uint8 ``(3, 64, 64)``.

    Args:
        x: sideways position of the dot, -1 to 1.
        step: steps taken so far.
        side: -1 or 1, the open door; 0: none is open yet.
    """
    across = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2.3 - 1.15  # the corridor's sides at -1 and 1
    y = np.arange(SIZE, dtype=np.float32)
    picture = np.full((3, SIZE, SIZE), 70.0, np.float32)
    picture[:, :, np.abs(across) > 1 + RADIUS] = 25.0
    picture[:, WALL - 3 : WALL] = np.array([160, 120, 60], np.float32)[:, None, None]
    for place in (-1, 1):
        door = np.abs(across - place * DOOR) <= HALF_DOOR
        colour = (90, 220, 90) if place == side else (200, 60, 50)
        picture[:, WALL - 3 : WALL, door] = np.array(colour, np.float32)[:, None, None]
    middle = WALL + ROW * (LENGTH - step) - 2.0
    away = np.hypot((across - x) * SIZE / 2.3, (y - middle)[:, None])
    cover = np.clip(RADIUS * SIZE / 2.3 - away + 0.5, 0.0, 1.0)
    picture += cover * (240.0 - picture)
    return picture.astype(np.uint8)


class ForkEnv(gym.Env[np.ndarray, np.ndarray]):
    """``jepa_rl/Fork-v0``: a dot runs down a corridor; half way one of two doors at its end opens, left or right.

    Observation: uint8 ``(3, 64, 64)``. Action: ``Box(-1, 1, (1,))``, the move to the side; the dot moves forward by
    itself, one row in every step. After 6 steps a door opens; after 12 the dot reaches the wall: the reward is 1 if it
    passes the door, and the episode terminates. Both doors can be reached from the middle, neither from the other side,
    so that the optimal policy waits in the middle (``fork.value``).

    ``info`` holds, for probes and scores only, ``position`` (x, steps taken) and ``side`` (-1, 0, 1).

    Args:
        right: probability that the right door opens.
        render_mode: None or ``"rgb_array"``.

    ``reset(options=...)`` takes ``x``, where the dot starts; random within 0.3 of the middle otherwise.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(self, right: float = 0.5, render_mode: str | None = None) -> None:
        if not 0.0 <= right <= 1.0:
            raise ValueError(f"right must be a probability, got {right}")
        self.observation_space = gym.spaces.Box(0, 255, (3, SIZE, SIZE), np.uint8)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.right, self.render_mode = right, render_mode
        self.steps = LENGTH  # none is under way

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - {"x"}:
            raise ValueError(f"unknown reset options {sorted(unknown)}; known: x")
        x = float(options.get("x", self.np_random.uniform(-0.3, 0.3)))
        if not -1.0 <= x <= 1.0:
            raise ValueError(f"options['x'] must lie in [-1, 1], got {x}")
        self.x, self.steps, self.side = x, 0, 0
        return self._observe(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        move = float(check_actions(action, (1,))[0])
        if self.steps >= LENGTH:
            raise gym.error.ResetNeeded("call reset() first: the episode is over, or none has begun")
        self.x = float(np.clip(self.x + SPEED * np.clip(move, -1.0, 1.0), -1.0, 1.0))
        self.steps += 1
        if self.steps == DECISION:
            self.side = 1 if self.np_random.random() < self.right else -1
        ended = self.steps == LENGTH
        passed = ended and abs(self.x - self.side * DOOR) <= HALF_DOOR
        return self._observe(), float(passed), ended, False, self._info()

    def _info(self) -> dict[str, Any]:
        return {"position": np.array([self.x, self.steps], np.float32), "side": self.side}

    def _observe(self) -> np.ndarray:
        return draw(self.x, self.steps, self.side)

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            return None
        return cv2.resize(
            self._observe().transpose(1, 2, 0), None, fx=6, fy=6, interpolation=cv2.INTER_NEAREST
        )
