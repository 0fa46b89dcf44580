"""Two Rooms with a roof over the wall and its door, under which the dot cannot be seen; needs no OpenGL."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from jepa_rl.envs.worlds.batched import RulesEnv, RulesVectorEnv
from jepa_rl.envs.worlds.two_rooms import display
from jepa_rl.envs.worlds.two_rooms_rules import (
    BORDER,
    DOT_STD,
    SIZE,
    TwoRoomsCore,
    TwoRoomsState,
    draw_dots,
    draw_walls,
)

ROOF = 96  # grey of the roof in the second channel; walls, drawn on top of it, are 255
ROOF_RANGE = (8.0, 20.0)  # pixels: widths that leave room for the dot on both sides of every wall
VISIBLE = 2 * DOT_STD  # pixels from the roof's edge at which (almost) the whole dot is seen


class RoofedRoomsCore(TwoRoomsCore):
    """The rules: those of Two Rooms, seen from above a roof.

    Args:
        roof: its width in pixels; its middle is the wall.
        wall, door: as for ``TwoRoomsCore``.
    """

    def __init__(self, roof: float = 16.0, wall: float | None = None, door: float | None = None) -> None:
        if not ROOF_RANGE[0] <= roof <= ROOF_RANGE[1]:
            raise ValueError(f"roof must be a width within {list(ROOF_RANGE)} pixels, got {roof}")
        super().__init__("sparse", "different", wall, door)
        self.roof, self.clear = roof, roof / 2 + VISIBLE

    def sample(
        self, rng: np.random.Generator, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        layout, position, goal = super().sample(rng, options)
        if abs(goal[0] - layout[0]) < self.clear:
            raise ValueError(
                f"the goal {goal.tolist()} must be seen in its picture: x at least {self.clear} pixels from the wall "
                f"at {layout[0]:.1f}, where the roof ends"
            )
        return layout, position, goal

    def draw_layout(self, layout: np.ndarray) -> np.ndarray:
        walls = draw_walls(layout)
        inside = slice(BORDER, SIZE - BORDER)
        shade = np.where(self._covered(layout), np.uint8(ROOF), np.uint8(0))[:, None]
        walls[:, inside] = np.maximum(walls[:, inside], shade)
        return walls

    def draw_dots(self, position: np.ndarray, layout: np.ndarray) -> np.ndarray:
        return draw_dots(position) * ~self._covered(layout)[:, None]

    def _covered(self, layout: np.ndarray) -> np.ndarray:
        """Columns under the roof, bool ``(n, 64)``."""
        return np.abs(np.arange(SIZE) - layout[:, :1]) <= self.roof / 2

    def info(self, state: TwoRoomsState) -> dict[str, np.ndarray]:
        hidden = np.abs(state.position[:, 0] - state.layout[:, 0]) <= self.roof / 2
        return super().info(state) | {"hidden": hidden}


class RoofedRoomsEnv(RulesEnv[TwoRoomsState]):
    """``jepa_rl/RoofedRooms-v0``: Two Rooms, but the dot is out of sight under a roof over the wall and its door.

    Movement, actions, reward and ``info`` are those of ``TwoRoomsEnv`` with its default arguments; start and goal lie
    in different rooms, both in sight. The roof is a grey strip in the second channel, through which the wall and its
    door can be seen and the dot cannot: on its way to the goal the dot's middle is hidden for at least ``roof`` / 2.45
    steps (about seven by default), in most of which no picture says where it is. ``info`` also holds ``hidden``:
    whether the dot's middle is under the roof. ``render()`` shows the dot there.

    Args:
        roof: its width in pixels, 8 to 20.
        wall: x of the wall, or None for random.
        door: y of the door's middle, or None for random.
        render_mode: None or ``"rgb_array"``.

    ``reset(options=...)`` takes ``start``, ``goal`` (x, y), ``wall`` and ``door``; the start may lie under the roof.
    """

    def __init__(
        self,
        roof: float = 16.0,
        wall: float | None = None,
        door: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(RoofedRoomsCore(roof, wall, door), display, render_mode)


class RoofedRoomsVectorEnv(RulesVectorEnv[TwoRoomsState]):
    """Many Roofed Rooms stepped as one array; the same rules as ``RoofedRoomsEnv``.

    Args:
        num_envs: number of worlds.
        max_episode_steps: truncation limit.
        autoreset_mode: Gymnasium's NEXT_STEP (default), SAME_STEP or DISABLED.
        roof, wall, door, render_mode: as for ``RoofedRoomsEnv``.
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int | None = 200,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        roof: float = 16.0,
        wall: float | None = None,
        door: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        core = RoofedRoomsCore(roof, wall, door)
        super().__init__(core, display, num_envs, max_episode_steps, autoreset_mode, render_mode)
