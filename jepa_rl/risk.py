"""Risk measures: they reduce the costs "b n" of a plan's futures to the one number "b" by which plans are compared.

A planner takes any of them as ``risk``. The futures are samples of the dynamics, all of the same weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.types import JSON

Risk = Callable[[Tensor], Tensor]


def expected_cost(costs: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """Mean over the futures: risk-neutral."""
    return costs.mean(-1)


def worst_case(costs: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """Largest cost among the futures."""
    return costs.amax(-1)


@dataclass(frozen=True)
class CVaR:
    """Conditional value at risk: the mean cost of the worst share ``alpha`` of the futures.

    Rockafellar and Uryasev (2000). Where ``alpha * n`` is not a whole number, the least costly of them has a fractional
    weight, so that the value is continuous in ``alpha``. ``alpha=1`` is the mean; ``alpha <= 1 / n`` is the worst case.

    Attributes:
        alpha: share of the futures, in (0, 1].

    Raises:
        ValueError: if ``alpha`` lies outside (0, 1].
    """

    alpha: float = 0.25

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha <= 1.0:
            raise ValueError(f"alpha must lie in (0, 1], got {self.alpha}")

    def __call__(self, costs: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
        n = costs.shape[-1]
        share = max(self.alpha * n, 1.0)
        count = min(n, -int(-share // 1))
        weights = torch.ones(count, dtype=costs.dtype, device=costs.device)
        weights[-1] = share - (count - 1)
        return (costs.topk(count, dim=-1).values * weights).sum(-1) / share


@dataclass(frozen=True)
class Entropic:
    """Entropic risk ``log(mean(exp(aversion * cost))) / aversion`` (Howard and Matheson 1972).

    Approaches the mean as ``aversion`` goes to 0, and the worst case as it grows.

    Attributes:
        aversion: in units of 1 / cost; negative values are risk-seeking.

    Raises:
        ValueError: if ``aversion`` is 0 or not finite.
    """

    aversion: float = 1.0

    def __post_init__(self) -> None:
        if self.aversion == 0.0 or not abs(self.aversion) < float("inf"):
            raise ValueError(f"aversion must be finite and not 0 (use expected_cost), got {self.aversion}")

    def __call__(self, costs: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
        total = torch.logsumexp(self.aversion * costs, dim=-1)
        return (total - torch.log(torch.tensor(float(costs.shape[-1])))) / self.aversion


@dataclass(frozen=True)
class ChanceConstraint:
    """Plans whose cost exceeds ``limit`` in at most a share ``probability`` of the futures are compared by ``risk``.

    All other plans rank below them, ordered by how often they exceed the limit. Example: if the cost adds 1,000 to
    futures in which something falls, ``ChanceConstraint(limit=500, probability=0.1)`` prefers plans that make it fall
    with a probability of at most 0.1.

    Attributes:
        limit: cost above which a future violates the constraint.
        probability: largest accepted share of such futures, in [0, 1).
        risk: of the plans that satisfy the constraint.
        penalty: a plan that violates it counts as ``penalty * (1 + share)``; must exceed every value of ``risk``.

    Raises:
        ValueError: if ``probability`` lies outside [0, 1).
    """

    limit: float
    probability: float = 0.05
    risk: Risk = expected_cost
    penalty: float = 1e6

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability < 1.0:
            raise ValueError(f"probability must lie in [0, 1), got {self.probability}")

    def __call__(self, costs: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
        share = (costs > self.limit).to(costs.dtype).mean(-1)
        return torch.where(share > self.probability, self.penalty * (1 + share), self.risk(costs))


RISKS: dict[str, Any] = {
    "expected_cost": expected_cost, "worst_case": worst_case,
    "CVaR": CVaR, "Entropic": Entropic, "ChanceConstraint": ChanceConstraint,
}  # fmt: skip


def risk_settings(risk: Risk) -> JSON | None:
    """A risk measure of this module as JSON, for ``load_risk``; None for any other."""
    if RISKS.get(getattr(risk, "__name__", "")) is risk:
        return {"name": risk.__name__}
    name = type(risk).__name__
    if RISKS.get(name) is not type(risk):
        return None
    settings: dict[str, Any] = {"name": name} | dict(vars(risk))
    if "risk" in settings:
        settings["risk"] = risk_settings(settings["risk"])
    return None if "risk" in settings and settings["risk"] is None else settings


def load_risk(settings: JSON) -> Risk:
    """The inverse of ``risk_settings``.

    Raises:
        KeyError: if there is no risk measure of that name.
    """
    options = {
        key: load_risk(value) if key == "risk" else value for key, value in settings.items() if key != "name"
    }
    found = RISKS[settings["name"]]
    return found(**options) if isinstance(found, type) else found
