"""The rules of Two Rooms: moving, drawing and sampling for any number of worlds at once, in pure NumPy.

The geometry follows the wall world of PLDM (Sobal et al. 2025, arXiv:2502.14819) and EB-JEPA: a 64 x 64
picture with the dot in the first channel and the walls in the second, a vertical wall with one door, and
steps of at most 2.45 pixels. Distances are in pixels, ``x`` to the right and ``y`` downwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch

SIZE = 64  # pixels
BORDER = 5  # pixels: the outer wall's inner edge
DOT_STD = 1.3  # pixels: width of the Gaussian blob
DOT_RADIUS = 1.5  # pixels: how near the dot's centre comes to a wall
WALL_HALF_WIDTH = 1.5  # pixels
DOOR_HALF_HEIGHT = 5.0  # pixels: as drawn; the dot's centre passes within DOOR_HALF_HEIGHT - DOT_RADIUS
WALL_RANGE = (20.0, 43.0)  # pixels: where the wall may stand
DOOR_RANGE = (12.0, 51.0)  # pixels: where the door's middle may be
MAX_STEP = 2.45  # pixels: longest move of one step
GOAL_RADIUS = 3.0  # pixels: a goal counts as reached within this distance

LOW, HIGH = BORDER + DOT_RADIUS, SIZE - 1 - BORDER - DOT_RADIUS
BLOCKED = WALL_HALF_WIDTH + DOT_RADIUS  # half width of the strip that the dot's centre cannot enter
PASSAGE = DOOR_HALF_HEIGHT - DOT_RADIUS  # half height of the gap in that strip

Start = Literal["different", "any"]
Reward = Literal["sparse", "dense"]


def move(position: np.ndarray, layout: np.ndarray, action: np.ndarray) -> np.ndarray:
    """One step of the world for any number of dots at once; dots slide along walls.

    Args:
        position: ``(..., 2)`` x and y, float.
        layout: ``(..., 2)`` wall x and door y.
        action: ``(..., 2)`` in [-1, 1]; times ``MAX_STEP``, shortened to ``MAX_STEP`` where longer.

    Returns:
        The next position ``(..., 2)``.
    """
    step = np.clip(action, -1.0, 1.0) * MAX_STEP
    step = step * np.minimum(1.0, MAX_STEP / np.maximum(np.linalg.norm(step, axis=-1, keepdims=True), 1e-6))
    x, y = position[..., 0], position[..., 1]
    wall, door = layout[..., 0], layout[..., 1]
    # x first, then y. MAX_STEP is below the strip's width, so no move jumps over it.
    new_x = np.clip(x + step[..., 0], LOW, HIGH)
    in_gap = np.abs(y - door) <= PASSAGE
    left, right = wall - BLOCKED, wall + BLOCKED
    new_x = np.where(~in_gap & (x <= left), np.minimum(new_x, left), new_x)
    new_x = np.where(~in_gap & (x >= right), np.maximum(new_x, right), new_x)
    new_y = np.clip(y + step[..., 1], LOW, HIGH)
    in_strip = (left < new_x) & (new_x < right)  # |new_x - wall| may round to less at the very edge
    new_y = np.where(in_strip, np.clip(new_y, door - PASSAGE, door + PASSAGE), new_y)
    return np.stack([new_x, new_y], axis=-1)


class TwoRoomsDynamics:
    """The true dynamics as ``Dynamics``, for an oracle: latents are x, y, wall and door, "b 4", in pixels.

    Args:
        block: environment steps in a latent step.
    """

    latent_dim = 4

    def __init__(self, block: int = 1) -> None:
        self.block, self.action_dim = block, 2 * block

    def rollout(
        self,
        z: torch.Tensor,
        actions: torch.Tensor,
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """States "b 1 h+1 4"; see ``jepa_rl.types.Dynamics``."""
        state, steps = z.double().numpy(), actions.double().numpy().reshape(len(z), -1, self.block, 2)
        position, layout, path = state[:, :2], state[:, 2:], [state]
        for block in steps.swapaxes(0, 1):
            for action in block.swapaxes(0, 1):
                position = move(position, layout, action)
            path.append(np.concatenate([position, layout], axis=1))
        return torch.from_numpy(np.stack(path, axis=1)[:, None]).to(z)


def draw_dots(position: np.ndarray) -> np.ndarray:
    """Gaussian blobs at ``position (n, 2)``: uint8 ``(n, 64, 64)``."""
    grid = np.arange(SIZE, dtype=np.float32)
    blobs = np.exp(-0.5 * ((grid - position[..., None].astype(np.float32)) / DOT_STD) ** 2)  # (n, 2, 64)
    return (255.0 * blobs[:, 1, :, None] * blobs[:, 0, None, :]).astype(np.uint8)


def draw_walls(layout: np.ndarray) -> np.ndarray:
    """Outer walls and the wall with its door for ``layout (n, 2)``: uint8 ``(n, 64, 64)``."""
    grid = np.arange(SIZE)
    column = np.abs(grid - layout[:, :1]) <= WALL_HALF_WIDTH  # (n, x)
    solid = np.abs(grid - layout[:, 1:]) > DOOR_HALF_HEIGHT  # (n, y)
    walls = solid[:, :, None] & column[:, None, :]
    for edge in (BORDER - 1, SIZE - BORDER):
        walls[:, edge, BORDER - 1 : SIZE - BORDER + 1] = True
        walls[:, BORDER - 1 : SIZE - BORDER + 1, edge] = True
    walls[:, : BORDER - 1] = walls[:, SIZE - BORDER + 1 :] = False
    return walls.astype(np.uint8) * 255


@dataclass
class TwoRoomsState:
    """Everything that changes, one row per world."""

    position: np.ndarray  # (n, 2)
    goal: np.ndarray  # (n, 2)
    layout: np.ndarray  # (n, 2) wall x, door y
    walls: np.ndarray  # (n, 64, 64) uint8, drawn once per episode
    goal_image: np.ndarray  # (n, 2, 64, 64) uint8
    steps: np.ndarray  # (n,) int

    def copy(self) -> TwoRoomsState:
        return replace(self, **{name: value.copy() for name, value in vars(self).items()})


def sample_position(
    rng: np.random.Generator, layout: np.ndarray, room: int | None, clear: float = BLOCKED
) -> np.ndarray:
    """A random position that is not inside a wall, x and y in pixels.

    Args:
        rng: draws it.
        layout: wall x and door y.
        room: 0: left, 1: right; None: anywhere, the doorway included.
        clear: pixels that a position in a room keeps from the middle of the wall.
    """
    wall, door = layout
    y = rng.uniform(LOW, HIGH)
    if room is None:
        x = rng.uniform(LOW, HIGH)
        if abs(x - wall) < BLOCKED:
            y = rng.uniform(door - PASSAGE, door + PASSAGE)
    else:
        x = rng.uniform(LOW, wall - clear) if room == 0 else rng.uniform(wall + clear, HIGH)
    return np.array([x, y])


def _check_position(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value, dtype=np.float64)
    if array.shape != (2,) or not ((array >= LOW) & (array <= HIGH)).all():
        raise ValueError(f"options[{name!r}] must be (x, y) within [{LOW}, {HIGH}], got {value!r}")
    return array


class TwoRoomsCore:
    """The rules of the single and the vectorised environment, see ``jepa_rl.envs.worlds.batched.Rules``."""

    pixels: gym.spaces.Box = gym.spaces.Box(0, 255, (2, SIZE, SIZE), np.uint8)
    actions: gym.spaces.Box = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    clear = BLOCKED  # pixels that starts and goals in different rooms keep from the middle of the wall

    def __init__(
        self,
        reward: Reward = "sparse",
        start: Start = "different",
        wall: float | None = None,
        door: float | None = None,
    ) -> None:
        if reward not in ("sparse", "dense"):
            raise ValueError(f"reward must be 'sparse' or 'dense', got {reward!r}")
        if start not in ("different", "any"):
            raise ValueError(f"start must be 'different' (rooms) or 'any', got {start!r}")
        for name, value, (low, high) in (("wall", wall, WALL_RANGE), ("door", door, DOOR_RANGE)):
            if value is not None and not low <= value <= high:
                raise ValueError(
                    f"{name} must be None (random) or within [{low}, {high}] pixels, got {value}"
                )
        self.reward, self.start, self.wall, self.door = reward, start, wall, door

    def sample(
        self, rng: np.random.Generator, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Layout, start and goal of one episode, each ``(2,)``."""
        options = options or {}
        unknown = set(options) - {"wall", "door", "start", "goal"}
        if unknown:
            raise ValueError(f"unknown reset options {sorted(unknown)}; known: wall, door, start, goal")
        wall = options.get("wall", self.wall)
        door = options.get("door", self.door)
        layout = np.array(
            [
                rng.uniform(*WALL_RANGE) if wall is None else float(wall),
                rng.uniform(*DOOR_RANGE) if door is None else float(door),
            ]
        )
        room = None if self.start == "any" else int(rng.integers(2))
        position = sample_position(rng, layout, room, self.clear)
        goal = sample_position(rng, layout, None if room is None else 1 - room, self.clear)
        if "start" in options:
            position = _check_position("start", options["start"])
        if "goal" in options:
            goal = _check_position("goal", options["goal"])
        return layout, position, goal

    def new_state(self, n: int) -> TwoRoomsState:
        empty = np.zeros((n, 2))
        images = np.zeros((n, 2, SIZE, SIZE), np.uint8)
        return TwoRoomsState(
            empty, empty.copy(), empty.copy(), images[:, 0].copy(), images, np.zeros(n, np.int64)
        )

    def begin(
        self,
        state: TwoRoomsState,
        rows: np.ndarray,
        rngs: list[np.random.Generator],
        options: dict[str, Any] | None = None,
    ) -> None:
        """Starts new episodes, in place.

        Args:
            state: is changed.
            rows: indices of the worlds to start.
            rngs: a generator for each of these.
            options: of ``reset``, see ``sample``.
        """
        episodes = [self.sample(rng, options) for rng in rngs]
        state.layout[rows], state.position[rows], state.goal[rows] = (
            np.stack(column) for column in zip(*episodes, strict=True)
        )
        state.walls[rows] = self.draw_layout(state.layout[rows])
        dots = self.draw_dots(state.goal[rows], state.layout[rows])
        state.goal_image[rows] = np.stack([dots, state.walls[rows]], axis=1)
        state.steps[rows] = 0

    def advance(self, state: TwoRoomsState, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Moves every dot, in place; returns rewards and successes ``(n,)``."""
        before = np.linalg.norm(state.position - state.goal, axis=-1)
        state.position = move(state.position, state.layout, actions)
        distance = np.linalg.norm(state.position - state.goal, axis=-1)
        success = distance <= GOAL_RADIUS
        state.steps += 1
        # Dense: pixels gained towards the goal (potential-based, so the best policy stays the same).
        reward = success.astype(np.float64) + ((before - distance) / SIZE if self.reward == "dense" else 0.0)
        return reward, success

    def observe(self, state: TwoRoomsState) -> np.ndarray:
        """Pixels uint8 ``(n, 2, 64, 64)``: dot, walls."""
        return np.stack([self.draw_dots(state.position, state.layout), state.walls], axis=1)

    def draw_layout(self, layout: np.ndarray) -> np.ndarray:
        """The second channel, uint8 ``(n, 64, 64)``."""
        return draw_walls(layout)

    def draw_dots(self, position: np.ndarray, layout: np.ndarray) -> np.ndarray:
        """The first channel, uint8 ``(n, 64, 64)``."""
        return draw_dots(position)

    def info(self, state: TwoRoomsState) -> dict[str, np.ndarray]:
        return {
            "goal": state.goal_image.copy(),
            "position": state.position.astype(np.float32),
            "goal_position": state.goal.astype(np.float32),
            "door": state.layout.astype(np.float32),
            "success": np.linalg.norm(state.position - state.goal, axis=-1) <= GOAL_RADIUS,
        }
