"""Two rooms and a door: a dot moves to the place that a goal picture shows; needs no OpenGL."""

from __future__ import annotations

import cv2
import numpy as np
from gymnasium.vector import AutoresetMode

from jepa_rl.envs.worlds.batched import RulesEnv, RulesVectorEnv
from jepa_rl.envs.worlds.two_rooms_rules import SIZE, Reward, Start, TwoRoomsCore, TwoRoomsState, draw_dots


def picture(pixels: np.ndarray, goal_image: np.ndarray, scale: int = 6) -> np.ndarray:
    """A picture for display, uint8 ``(64 * scale, 64 * scale, 3)``: walls grey, goal green, dot red.

    Args:
        pixels: uint8 ``(2, 64, 64)``, dot and walls.
        goal_image: uint8 ``(2, 64, 64)``, goal and walls.
        scale: magnification.
    """
    canvas = np.full((SIZE, SIZE, 3), 255.0)
    canvas -= pixels[1][..., None] / 255.0 * np.array([150, 150, 150])
    canvas -= goal_image[0][..., None] / 255.0 * np.array([215, 60, 180])
    canvas -= pixels[0][..., None] / 255.0 * np.array([30, 220, 220])
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)


def display(state: TwoRoomsState, row: int) -> np.ndarray:
    """``picture`` of one of many worlds."""
    dot = draw_dots(state.position[row : row + 1])
    return picture(np.concatenate([dot, state.walls[row : row + 1]]), state.goal_image[row])


class TwoRoomsEnv(RulesEnv[TwoRoomsState]):
    """``jepa_rl/TwoRooms-v0``: steer a dot through the door to the goal.

    Observation: uint8 ``(2, 64, 64)``, dot and walls. Action: ``Box(-1, 1, (2,))``, one unit is 2.45 pixels.
    Reward: 1 on reaching the goal (within 3 pixels), which ends the episode; ``reward="dense"`` adds the progress in
    pixels / 64. The wall and the door are random per episode unless given. ``info`` holds ``goal`` (a uint8
    picture like the observation) and, for probes and scores only, ``position``, ``goal_position``, ``door``
    (wall x and door y) and ``success``.

    Args:
        reward: ``"sparse"`` or ``"dense"``.
        start: ``"different"`` puts start and goal in different rooms, ``"any"`` anywhere free.
        wall: x of the wall, or None for random.
        door: y of the door's middle, or None for random.
        render_mode: None or ``"rgb_array"``.

    ``reset(options=...)`` takes ``start``, ``goal`` (x, y), ``wall`` and ``door``.
    """

    def __init__(
        self,
        reward: Reward = "sparse",
        start: Start = "different",
        wall: float | None = None,
        door: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(TwoRoomsCore(reward, start, wall, door), display, render_mode)


class TwoRoomsVectorEnv(RulesVectorEnv[TwoRoomsState]):
    """Many Two Rooms worlds stepped as one array; the same rules as ``TwoRoomsEnv``.

    Args:
        num_envs: number of worlds.
        max_episode_steps: truncation limit (Gymnasium's TimeLimit does not reach into vector environments).
        autoreset_mode: Gymnasium's NEXT_STEP (default), SAME_STEP or DISABLED.
        reward, start, wall, door, render_mode: as for ``TwoRoomsEnv``.
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = 200,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        reward: Reward = "sparse",
        start: Start = "different",
        wall: float | None = None,
        door: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        core = TwoRoomsCore(reward, start, wall, door)
        super().__init__(core, display, num_envs, max_episode_steps, autoreset_mode, render_mode)
