"""The loop of the planners that sample: draw candidates, price them, refit to the cheapest, repeat."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.agents.planners.base import (
    BasePlanner,
    best_of,
    check_common,
    check_elites,
    make_problem,
    pick,
)
from jepa_rl.risk import Risk, expected_cost
from jepa_rl.types import Cost, Dynamics, Plan

# What candidates are drawn from.
State = TypeVar("State")


@dataclass(frozen=True)
class SamplingPlanner(BasePlanner, Generic[State]):
    """Base of searches by sampling; a subclass says how candidates are drawn and what the elites change.

    Attributes:
        horizon: actions in a plan, in latent steps.
        samples: candidates that are drawn in an iteration.
        elites: the cheapest candidates, which the next iteration is fitted to.
        iterations: refits.
        futures: futures drawn for each candidate where the dynamics draw any.
        risk: costs "b n" of the futures -> "b", see ``jepa_rl.risk``.

    Raises:
        ValueError, TypeError: for settings that make no sense.
    """

    horizon: int
    samples: int = 256
    elites: int = 32
    iterations: int = 6
    _: KW_ONLY
    futures: int = 1
    risk: Risk = expected_cost

    def __post_init__(self) -> None:
        check_common(self, "samples", "elites", "iterations")
        check_elites(self.elites, self.samples)

    def begin(self, start: Float[Tensor, "b h a"]) -> State:
        """What the first candidates are drawn from, given the plan that the search starts from."""
        raise NotImplementedError

    def propose(
        self, state: State, iteration: int, generator: torch.Generator | None
    ) -> Float[Tensor, "b s h a"]:
        """Candidates of an iteration, counted from 0."""
        raise NotImplementedError

    def refit(self, state: State, elites: Float[Tensor, "b k h a"], costs: Float[Tensor, "b k"]) -> State:
        """What the next candidates are drawn from, given the cheapest ones (cheapest first) and their costs."""
        raise NotImplementedError

    def answers(self, state: State, best: Float[Tensor, "b h a"]) -> list[Float[Tensor, "b h a"]]:
        """Plans of which the cheapest is returned; ``best`` is the cheapest candidate of all iterations."""
        raise NotImplementedError

    @torch.no_grad()
    def plan(
        self,
        dynamics: Dynamics,
        cost: Cost,
        z: Float[Tensor, "b d"],
        warm_start: Float[Tensor, "b h a"] | None = None,
        generator: torch.Generator | None = None,
        proposals: Float[Tensor, "b p h a"] | None = None,
    ) -> Plan:
        """See ``jepa_rl.types.Planner``. Raises ValueError for arguments of the wrong shape or not finite."""
        problem, start = make_problem(self, dynamics, cost, z, warm_start, generator, proposals)
        state, best = self.begin(start), Incumbent()
        for iteration in range(self.iterations):
            candidates = problem.with_proposals(self.propose(state, iteration, generator))
            costs = problem.costs(candidates)
            elites, elite_costs = best_of(candidates, costs, self.elites)
            best.offer(elites[:, 0], elite_costs[:, 0])
            state = self.refit(state, elites, elite_costs)
        choices = torch.stack(self.answers(state, best.actions), dim=1)
        return problem.finish(choices, candidates, costs)

    def explore(self, plan: Plan, generator: torch.Generator | None) -> Float[Tensor, "b h a"]:
        """A plan to follow for exploration: one of the best eighth of a search's candidates.

        Args:
            plan: what a search of this planner returned.
            generator: of the choice, which each environment makes for itself.
        """
        assert plan.candidates is not None and plan.candidate_costs is not None, "of another planner"
        count = max(1, self.samples // 8)
        best, _ = best_of(plan.candidates, plan.candidate_costs, count)
        return pick(best, torch.randint(count, (len(best),), generator=generator, device=best.device))


class Gaussian(NamedTuple):
    """Independent normal distributions of the actions of a plan."""

    mean: Float[Tensor, "b h a"]
    std: Float[Tensor, "b h a"]


class Incumbent:
    """The cheapest plan seen so far, one for each environment; empty until the first offer."""

    def __init__(self) -> None:
        self._best: tuple[Tensor, Tensor] | None = None

    @property
    def actions(self) -> Float[Tensor, "b h a"]:
        assert self._best is not None, "asked for the best plan before any was offered"
        return self._best[0]

    def offer(self, actions: Float[Tensor, "b h a"], cost: Float[Tensor, " b"]) -> None:
        """Keeps a plan where it is cheaper than the one so far."""
        if self._best is None:
            self._best = actions, cost
            return
        old_actions, old_cost = self._best
        better = cost < old_cost
        self._best = (
            torch.where(better[:, None, None], actions, old_actions),
            torch.where(better, cost, old_cost),
        )


def perturb(
    mean: Float[Tensor, "b h a"], std: Float[Tensor, "b h a"], noise: Float[Tensor, "s h a"]
) -> Float[Tensor, "b s h a"]:
    """Candidates ``mean + std * noise`` inside [-1, 1]; the first one is the mean itself.

    All environments share one draw of noise, so that the plan for one does not depend on which
    others are planned for beside it.
    """
    candidates = torch.addcmul(mean[:, None], std[:, None], noise).clamp_(-1.0, 1.0)
    candidates[:, 0] = mean
    return candidates
