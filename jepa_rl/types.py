"""Shape letters, time alignment and the contracts of all parts; specs and batches are imported from their files.

Shape letters, used in every annotation and docstring::

    b  batch, or environments           n  futures (samples of what may happen)
    s  candidate plans, p proposed ones h  planning steps
    t  states along a path, t = h + 1   d  latent width
    a  action width                     k  stacked frames
    c y x  image channels, rows, columns

Time alignment: index 0 is *now*, and action i leads from state i to state i + 1::

    pixels   p0 ----- p1 ----- p2 ----- p3        t = 4
    latents  z0 ----- z1 ----- z2 ----- z3        t = 4
    actions      a0 ----- a1 ----- a2             h = 3
    rewards      r0 ----- r1 ----- r2             h = 3   (r0 is paid for a0 in state 0)

One *latent step* may span several environment steps (an action block): then ``a0`` is the
concatenation of ``block`` environment actions and ``p1`` is the picture ``block`` steps after ``p0``.

Actions inside the modelling room are always float vectors: continuous actions scaled to [-1, 1],
discrete actions one-hot. ``ActionSpec.encode`` and ``ActionSpec.decode`` convert, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from jepa_rl.batches import Batch, ControlBatch, on_device, rows_of
from jepa_rl.specs import JSON, OBSERVATION, ActionSpec, Observations, WorldSpec, as_tuples

__all__ = [
    "JSON", "OBSERVATION", "ActionKind", "ActionSpec", "Batch", "ControlBatch", "Cost", "Dynamics", "Encoder",
    "Imagination", "Metrics", "Observations", "Plan", "Planner", "World", "WorldSpec", "as_tuples", "on_device",
    "rows_of",
]  # fmt: skip

Metrics = dict[str, float]


@dataclass(frozen=True)
class Plan:
    """Everything a planner saw; it never prints, plots or logs.

    Attributes:
        actions: the chosen plan, model actions.
        cost: its cost.
        candidates: the last iteration's candidate plans (None where a planner keeps none).
        candidate_costs: their costs.
        branches: the futures the dynamics predict for the chosen plan, index 0 is now.
    """

    actions: Float[Tensor, "b h a"]
    cost: Float[Tensor, " b"]
    candidates: Float[Tensor, "b s h a"] | None
    candidate_costs: Float[Tensor, "b s"] | None
    branches: Float[Tensor, "b n h+1 d"]


@runtime_checkable
class Encoder(Protocol):
    """Pixels to one latent vector. Anything with this shape of ``encode`` serves the wrappers."""

    latent_dim: int

    def encode(self, pixels: UInt8[Tensor, "b c y x"]) -> Float[Tensor, "b d"]: ...


@runtime_checkable
class Dynamics(Protocol):
    """What happens next. Point dynamics answer ``n = 1``; sampling dynamics draw ``futures``.

    Dynamics that remember more of the past than the newest latent set ``markov = False`` (see
    ``jepa_rl.dynamics.is_markov``): rolling them out in two parts is not rolling them out at once.
    """

    @property
    def latent_dim(self) -> int: ...

    @property
    def action_dim(self) -> int: ...

    def rollout(
        self,
        z: Float[Tensor, "b d"],
        actions: Float[Tensor, "b h a"],
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Latents "b n h+1 d"; ``[:, :, 0]`` is ``z`` itself."""
        ...


class World(Protocol):
    """What an objective sees of the world model that it trains."""

    spec: WorldSpec
    latent_dim: int
    action_dim: int
    encoder: Any
    dynamics: Any

    def encode(self, observations: Observations) -> Float[Tensor, "b d"]: ...

    def encode_windows(self, observations: Observations) -> Float[Tensor, "b t d"]: ...

    def rollout(
        self,
        z: Float[Tensor, "b d"],
        actions: Float[Tensor, "b h a"],
        *,
        futures: int = 1,
        generator: torch.Generator | None = None,
    ) -> Tensor: ...


@runtime_checkable
class Imagination(Protocol):
    """What a dream environment and a return need of a world with reward."""

    def reward(self, z: Float[Tensor, "b d"], action: Float[Tensor, "b a"]) -> Float[Tensor, " b"]: ...

    def alive(self, z: Float[Tensor, "b d"]) -> Float[Tensor, " b"]: ...


# latents "b n t d", actions "b t-1 a" -> costs "b n"; lower is better.
Cost = Callable[[Tensor, Tensor], Tensor]


# What a planner searches among.
ActionKind = Literal["continuous", "discrete", "any"]


@runtime_checkable
class Planner(Protocol):
    """Searches for the action sequence of least cost. Holds settings only: no state between calls.

    ``jepa_rl.agents.planners.BasePlanner`` gives all of this but ``horizon`` and ``plan``.

    Attributes:
        horizon: latent steps of a plan.
        actions: the kind of actions that it searches among: vectors in [-1, 1] ("continuous"), one-hot choices
            ("discrete"), or either ("any").
        futures: drawn for each candidate plan.
        risk: costs "b n" of the futures -> "b", see ``jepa_rl.risk``.
    """

    @property
    def horizon(self) -> int: ...

    @property
    def actions(self) -> ActionKind: ...

    @property
    def futures(self) -> int: ...

    @property
    def risk(self) -> Callable[[Tensor], Tensor]: ...

    def check(self, spec: WorldSpec, dynamics: Dynamics) -> None:
        """Raises ValueError unless the planner fits the actions of ``spec`` and the dynamics it will plan in."""
        ...

    def plan(
        self,
        dynamics: Dynamics,
        cost: Cost,
        z: Float[Tensor, "b d"],
        warm_start: Float[Tensor, "b h a"] | None = None,
        generator: torch.Generator | None = None,
        proposals: Float[Tensor, "b p h a"] | None = None,
    ) -> Plan:
        """``warm_start`` is where the search begins; ``proposals`` are ``p`` plans that compete in it."""
        ...
