"""The rules of TableEdge: pushing, slipping and drawing for any number of tables at once, in pure NumPy.

Lengths are in table widths: the table is ``0 <= x <= 1`` (its edge at 1) and ``0 <= y <= 1``; ``x`` to the right, ``y``
downwards. What may happen to a push is known in closed form, so that tests and an oracle can ask for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

SIZE = 64  # pixels
TABLE = 50  # pixels: columns and rows of the table; the rest is floor
TOP = 7  # pixels above the table
MAX_STEP = 0.12  # how far a full push moves the object
NOISE = 0.01  # standard deviation of every moved coordinate, for a full push
ZONE = 0.3  # width of the strip along the edge where objects may slip
GENTLE = 0.35  # pushes up to this strength never make it slip
RADIUS = 0.06  # of the object, as drawn
BORDER = 0.05  # the object stays as far from the table's other sides
START = ((0.1, 0.45), (0.15, 0.85))  # ranges of x and y
ANYWHERE = ((BORDER, 1.0), (BORDER, 1 - BORDER))
NEAR_EDGE = 0.5  # share of the episodes from anywhere that start in the zone all the same
GOAL = ((0.86, 0.93), (0.15, 0.85))
FALLEN = 1.14  # x where a fallen object lies

Array = np.ndarray


def on_table(name: str, value: Any) -> Float[Array, 2]:
    """Raises ValueError for what is no place on the table."""
    array = np.asarray(value, np.float64)
    if array.shape != (2,) or not ((array >= BORDER) & (array <= [1.0, 1 - BORDER])).all():
        raise ValueError(
            f"{name} must be (x, y) with x in [{BORDER}, 1] and y in [{BORDER}, {1 - BORDER}] table widths, "
            f"got {value!r}"
        )
    return array


def start_and_goal(
    rng: np.random.Generator, options: dict[str, Any] | None, goal: Float[Array, 2] | None, anywhere: bool
) -> tuple[Float[Array, 2], Float[Array, 2]]:
    """Where an episode begins and wants to go: ``options`` of ``reset`` first, then ``goal``, chance last.

    Raises:
        ValueError: for unknown options, or places off the table.
    """
    options = options or {}
    if unknown := set(options) - {"start", "goal"}:
        raise ValueError(f"unknown reset options {sorted(unknown)}; known: start, goal")
    start = rng.uniform(*np.transpose(ANYWHERE if anywhere else START))
    if anywhere and rng.random() < NEAR_EDGE:
        start[0] = rng.uniform(1 - ZONE, 1.0)
    drawn = rng.uniform(*np.transpose(GOAL))
    if "start" in options:
        start = on_table("start", options["start"])
    if "goal" in options:
        return start, on_table("goal", options["goal"])
    return start, drawn if goal is None else goal


def strength(push: Float[Array, "*b 2"]) -> Float[Array, "*b"]:
    """Length of a push, at most 1."""
    return np.minimum(np.linalg.norm(np.clip(push, -1.0, 1.0), axis=-1), 1.0)


def landing(position: Float[Array, "*b 2"], push: Float[Array, "*b 2"]) -> Float[Array, "*b 2"]:
    """Where a push takes the object if nothing slips and nothing shakes: a low rim stops it at the edge."""
    push = np.clip(push, -1.0, 1.0)
    push = push / np.maximum(np.linalg.norm(push, axis=-1, keepdims=True), 1.0)
    to = position + MAX_STEP * push
    return np.clip(to, BORDER, [1.0, 1 - BORDER])


def fall_probability(position: Float[Array, "*b 2"], push: Float[Array, "*b 2"]) -> Float[Array, "*b"]:
    """How likely the object is to slip over the rim: how near the edge it lands, times how hard it was pushed.

    ``step((x' - (1 - ZONE)) / ZONE) * step((u - GENTLE) / (1 - GENTLE))`` for a push of strength ``u`` that lands at
    ``x'``, with the smooth step ``s * s * (3 - 2 s)`` of ``s`` clipped to [0, 1].
    """
    near = _smooth_step((landing(position, push)[..., 0] - (1 - ZONE)) / ZONE)
    return near * _smooth_step((strength(push) - GENTLE) / (1 - GENTLE))


def _smooth_step(s: Float[Array, "*b"]) -> Float[Array, "*b"]:
    s = np.clip(s, 0.0, 1.0)
    return s * s * (3 - 2 * s)


def reward(position: Float[Array, "*b 2"], fallen: Bool[Array, "*b"], goal: Float[Array, "*b 2"]) -> Array:
    """Of being there for one step: 1 at the goal, falling to 0 at a distance of 0.8; nothing for what has fallen."""
    distance = np.linalg.norm(position - goal, axis=-1)
    return np.where(fallen, 0.0, np.clip(1.0 - distance / 0.8, 0.0, 1.0))


def outcome(
    position: Float[Array, "*b 2"],
    fallen: Bool[Array, "*b"],
    push: Float[Array, "*b 2"],
    luck: Float[Array, "*b"],
    shake: Float[Array, "*b 2"],
) -> tuple[Float[Array, "*b 2"], Bool[Array, "*b"]]:
    """Next position, and whether it has fallen by then; what has fallen stays where it is.

    Args:
        position, fallen, push: of each object.
        luck: uniform in [0, 1); it slips where this is below ``fall_probability``.
        shake: standard normal.
    """
    to = landing(position, push)
    falls = luck < fall_probability(position, push)
    # Shaking alone throws nothing over the edge, so that the probability of falling is exactly the one above.
    shaken = np.clip(to + NOISE * strength(push)[..., None] * shake, BORDER, [1.0, 1 - BORDER])
    lying = np.stack([np.full(to.shape[:-1], FALLEN), to[..., 1]], axis=-1)
    moved = np.where(falls[..., None], lying, shaken)
    return np.where(fallen[..., None], position, moved), fallen | falls


def draw(
    position: Float[Array, "n 2"], fallen: Bool[Array, " n"], goal: Float[Array, "n 2"]
) -> UInt8[Array, "n 3 64 64"]:
    """Seen from above: brown table, dark floor, green goal, red object; blue once it has fallen."""
    grid = np.arange(SIZE, dtype=np.float32)
    x, y = grid / TABLE, (grid - TOP) / TABLE
    scene = np.empty((len(position), 3, SIZE, SIZE), np.float32)
    on_table = (y[:, None] >= 0) & (y[:, None] <= 1) & (x <= 1)
    scene[:] = np.where(on_table, _colour(170, 130, 90), _colour(40, 40, 50))
    shapes = (
        (_disc(goal, x, y, RADIUS), _colour(60, 190, 80)),
        (_disc(position, x, y, RADIUS) * ~fallen[:, None, None], _colour(225, 50, 50)),
        (_disc(position, x, y, 0.7 * RADIUS) * fallen[:, None, None], _colour(70, 110, 235)),
    )
    for cover, colour in shapes:
        scene += cover[:, None] * (colour - scene)
    return scene.astype(np.uint8)


def _colour(*rgb: int) -> Float[Array, "3 1 1"]:
    return np.array(rgb, np.float32)[:, None, None]


def _disc(centre: Float[Array, "n 2"], x: Array, y: Array, radius: float) -> Float[Array, "n y x"]:
    """Share of each pixel that a disc covers, its rim one pixel wide."""
    away = np.hypot(x - centre[:, 0, None, None], y[:, None] - centre[:, 1, None, None])
    return np.clip((radius - away) * TABLE + 0.5, 0.0, 1.0).astype(np.float32)


class TableEdgeDynamics:
    """The true world as ``Dynamics``, for an oracle: its latents are x, y and whether it has fallen, "b 3"."""

    latent_dim, action_dim = 3, 2

    def rollout(
        self,
        z: Float[torch.Tensor, "b 3"],
        actions: Float[torch.Tensor, "b h 2"],
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[torch.Tensor, "b n h+1 3"]:
        """Futures drawn at random; see ``jepa_rl.types.Dynamics``."""
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        state, taken = z.double().numpy(), actions.double().numpy()
        position = np.repeat(state[:, None, :2], futures, axis=1)
        fallen = np.repeat(state[:, None, 2] > 0.5, futures, axis=1)
        path = [np.concatenate([position, fallen[..., None]], axis=-1)]
        for push in taken.swapaxes(0, 1):
            # One draw for all rows (common random numbers): cost differences come from the plans.
            luck, shake = rng.random(futures), rng.standard_normal((futures, 2))
            position, fallen = outcome(position, fallen, push[:, None], luck, shake)
            path.append(np.concatenate([position, fallen[..., None]], axis=-1))
        return torch.from_numpy(np.stack(path, axis=2)).to(z)
