"""Costs of plans: goal distance, action penalty and weighted sums of them.

A cost is any callable ``cost(latents "b n t d", actions "b h a") -> "b n"``; lower is better.

Rows: a planner evaluates the candidate plans of all environments in one call, so that the first axis
of both arguments holds ``b * s`` rows, the ``s`` candidates of one environment next to each other.
A cost with one goal (or other datum) per environment reshapes the rows to ``(b, s)`` with ``b`` the
number of goals: see ``per_environment``.

A cost with a goal latent has it as its attribute ``goal``; planners that need a goal read it (``goal_of``). A cost that
knows what every plan costs at least has that number as its attribute ``least`` (``least_of``); a search may stop when
nothing that it has not tried can be better.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.types import Cost

Distance = Callable[[Tensor, Tensor], Tensor]


def euclidean(latents: Float[Tensor, "*b d"], goal: Float[Tensor, "*#b d"]) -> Float[Tensor, "*b"]:
    """Euclidean distance; its gradient is zero, not NaN, where the two are equal."""
    return torch.linalg.vector_norm(latents - goal, dim=-1)


def mean_squared(latents: Float[Tensor, "*b d"], goal: Float[Tensor, "*#b d"]) -> Float[Tensor, "*b"]:
    """Squared difference, averaged over the latent's components."""
    return (latents - goal).square().mean(-1)


DISTANCES: dict[str, Distance] = {"l2": euclidean, "mse": mean_squared}


def per_environment(rows: Tensor, environments: int) -> Tensor:
    """Rows ``(b * s, ...)`` as ``(b, s, ...)``, a view; see "Rows" at the top of the module.

    Raises:
        ValueError: if the rows cannot be split evenly over the environments.
    """
    if rows.shape[0] % environments:
        raise ValueError(
            f"{rows.shape[0]} rows cannot be split over {environments} goals; give one goal for all, "
            "or exactly one for each environment that is planned for"
        )
    return rows.unflatten(0, (environments, -1))


@runtime_checkable
class HasGoal(Protocol):
    """A cost with a goal.

    Attributes:
        goal: one goal latent for each environment, or a single row for all; None if there is none.
    """

    @property
    def goal(self) -> Float[Tensor, "b d"] | None: ...


def goal_of(cost: Cost) -> Float[Tensor, "b d"] | None:
    """The goal of a cost, or None."""
    return cost.goal if isinstance(cost, HasGoal) else None


def least_of(cost: Cost | Distance) -> float:
    """What every plan costs at least, as the cost says by its attribute ``least``; minus infinity if it does not."""
    return float(getattr(cost, "least", -math.inf))


class Composable:
    """Base class of costs: adds the operators ``a + b`` and ``weight * a``."""

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        raise NotImplementedError

    def __add__(self, other: Cost) -> WeightedSum:
        return WeightedSum((self, other), (1.0, 1.0))

    def __mul__(self, weight: float) -> WeightedSum:
        return WeightedSum((self,), (float(weight),))

    __rmul__ = __mul__


@dataclass(frozen=True, eq=False)
class GoalCost(Composable):
    """Distance of the imagined latents to a goal latent.

    Attributes:
        goal: one goal latent for each environment, or a single row for all.
        reduce: ``"sum"`` over the states after now (reaching early and staying is cheaper), or the
            ``"last"`` state alone.
        distance: ``"l2"``, ``"mse"``, or a callable ``(latents "... d", goal "... d") -> "..."`` whose
            two arguments broadcast against each other.

    Raises:
        ValueError: for a goal that is no finite float matrix, or an unknown reduce or distance.
    """

    goal: Float[Tensor, "b d"]
    reduce: Literal["sum", "last"] = "sum"
    distance: Literal["l2", "mse"] | Distance = "l2"

    def __post_init__(self) -> None:
        if not isinstance(self.goal, Tensor) or self.goal.ndim != 2 or not self.goal.is_floating_point():
            found = (
                (tuple(self.goal.shape), self.goal.dtype)
                if isinstance(self.goal, Tensor)
                else type(self.goal)
            )
            raise ValueError(f"goal must be a float tensor of shape (environments, latent_dim), got {found}")
        if not self.goal.shape[0] or not torch.isfinite(self.goal).all():
            raise ValueError("goal must hold at least one row and only finite values; check the goal image")
        if self.reduce not in ("sum", "last"):
            raise ValueError(f"reduce must be 'sum' or 'last', got {self.reduce!r}")
        if not callable(self.distance) and self.distance not in DISTANCES:
            raise ValueError(
                f"distance must be one of {sorted(DISTANCES)} or a callable, got {self.distance!r}"
            )

    @property
    def least(self) -> float:
        """0; of a distance of one's own what it says by its attribute ``least``."""
        return least_of(self.distance) if callable(self.distance) else 0.0

    def __call__(self, latents: Float[Tensor, "b n t d"], actions: Tensor) -> Float[Tensor, "b n"]:
        if latents.shape[-1] != self.goal.shape[-1]:
            raise ValueError(
                f"goal is {self.goal.shape[-1]} wide but the latents are {latents.shape[-1]} wide; encode the goal "
                "with the world model that plans"
            )
        distance = self.distance if callable(self.distance) else DISTANCES[self.distance]
        # The present state adds the same to every candidate, so it is left out of the sum.
        reached = latents[:, :, -1:] if self.reduce == "last" else latents[:, :, 1:]
        goal = self.goal.to(latents)[:, None, None, None]  # b 1 1 1 d
        return distance(per_environment(reached, self.goal.shape[0]), goal).sum(-1).flatten(0, 1)


@dataclass(frozen=True)
class ActionPenalty(Composable):
    """``weight`` times the squared norm of the actions, summed over the plan."""

    weight: float = 1.0

    @property
    def least(self) -> float:
        """0, unless the weight rewards actions."""
        return 0.0 if self.weight >= 0 else -math.inf

    def __call__(
        self, latents: Float[Tensor, "b n t d"], actions: Float[Tensor, "b h a"]
    ) -> Float[Tensor, "b n"]:
        return (self.weight * actions.square().sum((-2, -1)))[:, None].expand(-1, latents.shape[1])


@dataclass(frozen=True)
class Disagreement(Composable):
    """Minus the variance of the futures, averaged over the states after now and over the latent's components.

    Plans of low cost lead to where the members of an ensemble disagree, that is where the data are few (Pathak et al.
    2019, arXiv:1906.04161; planned for as in Plan2Explore, Sekar et al. 2020, arXiv:2005.05960).

    Raises:
        ValueError: when called with a single future.
    """

    def __call__(self, latents: Float[Tensor, "b n t d"], actions: Tensor) -> Float[Tensor, "b n"]:
        futures = latents.shape[1]
        if futures < 2:
            raise ValueError(
                "disagreement needs several futures, got 1; plan with CEM(..., futures=5) in an EnsembleDynamics"
            )
        variance = latents[:, :, 1:].var(1, correction=0).mean((1, 2))
        return -variance[:, None].expand(-1, futures)


@dataclass(frozen=True, eq=False)
class WeightedSum(Composable):
    """``sum_i weights[i] * costs[i]``; the result of ``+`` and ``*`` on costs."""

    costs: tuple[Cost, ...]
    weights: tuple[float, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.costs or len(self.costs) != len(self.weights):
            raise ValueError(
                f"expected one weight for each cost, got {len(self.costs)} and {len(self.weights)}"
            )
        wrong = [cost for cost in self.costs if not callable(cost)]
        if wrong:
            raise TypeError(f"a cost is a callable (latents, actions) -> 'b n', got {wrong[0]!r}")

    @property
    def goal(self) -> Float[Tensor, "b d"] | None:
        """The goal of the first cost in the sum that has one."""
        return next((goal for goal in map(goal_of, self.costs) if goal is not None), None)

    @property
    def least(self) -> float:
        """The sum of what its parts cost at least; unknown where a weight is negative."""
        if min(self.weights) < 0:
            return -math.inf
        return sum(w * least_of(cost) for w, cost in zip(self.weights, self.costs, strict=True) if w)

    def __call__(
        self, latents: Float[Tensor, "b n t d"], actions: Float[Tensor, "b h a"]
    ) -> Float[Tensor, "b n"]:
        terms = [w * cost(latents, actions) for w, cost in zip(self.weights, self.costs, strict=True)]
        return torch.stack(terms).sum(0)
