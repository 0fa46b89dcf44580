"""Attitudes to risk: costs "b n" of the futures of a plan to the one number "b" that plans are compared by.

A planner takes any of them as ``risk``; futures are drawn by the dynamics and all count the same.
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
    """The risk-neutral choice: the mean over the futures."""
    return costs.mean(-1)


def worst_case(costs: Float[Tensor, "b n"]) -> Float[Tensor, " b"]:
    """The costliest of the futures."""
    return costs.amax(-1)


@dataclass(frozen=True)
class CVaR:
    """Conditional value at risk: the mean of the costliest share ``alpha`` of the futures.

    Rockafellar and Uryasev (2000). Where ``alpha * n`` is no whole number the last of them counts in part, so that the
    value is continuous in ``alpha``; 1 is the mean, and down from ``1 / n`` it is the worst case.

    Raises:
        ValueError: for ``alpha`` outside (0, 1].
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
    """``log(mean(exp(aversion * cost))) / aversion``: near 0 the mean, the larger the nearer to the worst case.

    Howard and Matheson (1972). ``aversion`` is in units of 1 / cost; negative values seek risk.

    Raises:
        ValueError: for an aversion that is 0 or not finite.
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
    """``risk`` of the plans that cost more than ``limit`` with at most ``probability``; all others lose to them.

    "Falls with a probability of at most 0.1": let the cost add 1,000 to futures with a fall, and
    ``ChanceConstraint(limit=500, probability=0.1)`` forbids what falls more often. Among plans that break the
    constraint, the one that does so least often is the best.

    Args:
        limit: costs above it count as the event.
        probability: largest share of futures with the event.
        risk: of the plans that keep to it.
        penalty: what breaking it costs, more than any risk may be.

    Raises:
        ValueError: for a probability outside [0, 1).
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
    """A risk of this module as JSON, for ``load_risk``; None for any other."""
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
        KeyError: there is no risk of that name.
    """
    options = {
        key: load_risk(value) if key == "risk" else value for key, value in settings.items() if key != "name"
    }
    found = RISKS[settings["name"]]
    return found(**options) if isinstance(found, type) else found
