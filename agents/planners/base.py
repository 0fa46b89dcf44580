"""What all planners share: the contract with its defaults, one planning problem, and checks of settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepa_rl.risk import Risk, expected_cost
from jepa_rl.types import ActionKind, Cost, Dynamics, Plan, Planner, WorldSpec

# Numbers in the imagined paths that are held at once: 512 MB of float32.
PATHS_AT_ONCE = 2**27


class BasePlanner:
    """Base of planners: a subclass gives ``horizon`` and ``plan``, and what else differs from these defaults.

    ::

        class Still(BasePlanner):
            horizon = 5

            def plan(self, dynamics, cost, z, warm_start=None, generator=None, proposals=None):
                problem, start = make_problem(self, dynamics, cost, z, warm_start, generator, proposals)
                actions = torch.zeros_like(start)[:, None]
                return problem.finish(actions, actions, problem.costs(actions))

    See ``jepa_rl.types.Planner`` for the attributes.
    """

    horizon: int
    actions: ClassVar[ActionKind] = "any"
    futures: int = 1
    risk: Risk = staticmethod(expected_cost)

    def check(self, spec: WorldSpec, dynamics: Dynamics) -> None:
        """Whether the planner fits a world.

        Args:
            spec: of the world; its ``action`` is that of one environment step.
            dynamics: what it will plan in; their actions are those of one latent step.

        Raises:
            ValueError: if it does not, with what to use instead.
        """
        if self.actions not in ("any", spec.action.kind):
            fitting = {"discrete": "CategoricalCEM", "continuous": "CEM"}[spec.action.kind]
            raise ValueError(
                f"{type(self).__name__} does not fit {spec.action.kind} actions; use {fitting}, which does"
            )


@dataclass(frozen=True, eq=False)
class Problem:
    """What one call of ``plan`` is about; it prices candidates and finishes the plan.

    Attributes:
        future_generator: draws the futures. All candidates of an iteration share its draws (common random numbers), so
            that cost differences come from the plans. They are redrawn in every iteration, so that a search cannot
            overfit one draw (the optimizer's curse: on TableEdge with the true dynamics a search with one draw for all
            iterations falls three times as often).
        proposals: plans from elsewhere (a policy, a sampler) that compete with those of the search.
    """

    dynamics: Dynamics
    cost: Cost
    z: Float[Tensor, "b d"]
    futures: int
    risk: Risk
    future_generator: torch.Generator | None
    proposals: Float[Tensor, "b p h a"] | None = None

    def with_proposals(self, candidates: Float[Tensor, "b s h a"]) -> Float[Tensor, "b _ h a"]:
        """The candidates, followed by the proposals where there are any."""
        return candidates if self.proposals is None else torch.cat([candidates, self.proposals], dim=1)

    def rollout(self, candidates: Float[Tensor, "b s h a"]) -> tuple[Tensor, Tensor]:
        """Latents "b*s n t d" and costs "b s" of the candidates of all environments, in one call of the dynamics.

        Raises:
            ValueError: if the cost or the risk answers in another shape than its contract's.
        """
        b, s = candidates.shape[:2]
        rows = candidates.flatten(0, 1)
        z = self.z.repeat_interleave(s, dim=0)
        latents = self.dynamics.rollout(z, rows, futures=self.futures, generator=self.future_generator)
        futures = self.cost(latents, rows)
        check_answer("cost", futures, "(rows, futures)", tuple(latents.shape[:2]))
        costs = self.risk(futures)
        check_answer("risk", costs, "(rows,)", (b * s,))
        return latents, costs.view(b, s)

    def costs(self, candidates: Float[Tensor, "b s h a"]) -> Float[Tensor, "b s"]:
        """Costs of the candidates; see ``comparable``.

        Where all paths together exceed ``PATHS_AT_ONCE``, candidates are priced in chunks that share their futures.
        """
        b, s, h, _ = candidates.shape
        size = s * self.futures * (h + 1) * self.z.shape[1]
        chunks = min(s, -(-b * size // PATHS_AT_ONCE))
        if chunks == 1:
            return comparable(self.rollout(candidates)[1])
        before = None if self.future_generator is None else self.future_generator.get_state()
        costs = []
        for part in candidates.chunk(chunks, dim=1):
            if self.future_generator is not None and before is not None:
                self.future_generator.set_state(before)
            costs.append(self.rollout(part)[1])
        return comparable(torch.cat(costs, dim=1))

    def finish(self, choices: Float[Tensor, "b s h a"], candidates: Tensor, costs: Tensor) -> Plan:
        """The cheapest of ``choices``, which are rolled out once more.

        Args:
            choices: plans that may be returned.
            candidates, costs: the candidates "b s h a" of the search's last iteration and their costs "b s".
        """
        latents, choice_costs = self.rollout(choices)
        choice_costs = without_nan(choice_costs)
        best = choice_costs.argmin(1)
        return Plan(
            actions=pick(choices, best),
            cost=pick(choice_costs, best),
            candidates=candidates,
            candidate_costs=costs,
            branches=pick(latents.unflatten(0, choices.shape[:2]), best),
        )


def make_problem(
    planner: Planner,
    dynamics: Dynamics,
    cost: Cost,
    z: Float[Tensor, "b d"],
    warm_start: Float[Tensor, "b h a"] | None,
    generator: torch.Generator | None,
    proposals: Float[Tensor, "b p h a"] | None = None,
) -> tuple[Problem, Float[Tensor, "b h a"]]:
    """Checks the arguments of ``plan``.

    Args:
        planner: whose horizon, futures and risk are used.
        dynamics, cost, z, warm_start, generator, proposals: as ``plan`` was given them.

    Returns:
        The problem, and the plan "b h a" to start the search from: the warm start, or zeros if there is none.

    Raises:
        ValueError: for latents, a warm start or proposals of the wrong shape, or with NaN or infinite values.
    """
    if z.ndim != 2 or not z.shape[0] or z.shape[1] != dynamics.latent_dim:
        raise ValueError(
            f"z must have shape (environments, {dynamics.latent_dim}), got {tuple(z.shape)}; "
            "one environment is a batch of one: z[None]"
        )
    if not torch.isfinite(z).all():
        raise ValueError("z holds NaN or infinite values; check the observation and the encoder")
    shape = (z.shape[0], planner.horizon, dynamics.action_dim)
    if warm_start is None:
        start = z.new_zeros(shape)
    elif tuple(warm_start.shape) != shape:
        raise ValueError(
            f"warm_start must have shape (environments, horizon, action_dim) = {shape}, "
            f"got {tuple(warm_start.shape)}; shift the old plan and repeat its last action"
        )
    elif not torch.isfinite(warm_start).all():
        raise ValueError("warm_start holds NaN or infinite values; pass None to start afresh")
    else:
        start = warm_start.to(z).clamp(-1.0, 1.0)
    if proposals is not None:
        if proposals.ndim != 4 or (proposals.shape[0], *proposals.shape[2:]) != shape:
            raise ValueError(
                f"proposals must have shape (environments, proposals, horizon, action_dim) = ({shape[0]}, p, "
                f"{shape[1]}, {shape[2]}), got {tuple(proposals.shape)}"
            )
        if not torch.isfinite(proposals).all():
            raise ValueError("proposals hold NaN or infinite values; check the policy that made them")
        proposals = proposals.to(z).clamp(-1.0, 1.0)
    future_generator = generator  # a single future of dynamics that draw is repeatable, too
    if planner.futures > 1:
        seed = int(torch.randint(2**62, (), generator=generator, device=z.device))
        future_generator = torch.Generator(z.device).manual_seed(seed)
    problem = Problem(dynamics, cost, z, planner.futures, planner.risk, future_generator, proposals)
    return problem, start


# -- costs and candidates -----------------------------------------------------------------------------


def check_answer(kind: str, answer: object, axes: str, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless a cost or a risk answered a tensor of this shape."""
    found = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
    if found != shape:
        raise ValueError(f"a {kind} must answer a tensor {axes} = {shape}, got {found}")


def comparable(costs: Float[Tensor, "b s"]) -> Float[Tensor, "b s"]:
    """Costs of the candidates of each environment, +inf where the dynamics or the cost gave NaN.

    Raises:
        ValueError: if all candidates of an environment cost NaN.
    """
    lost = torch.isnan(costs).all(1)
    if lost.any():
        raise ValueError(
            f"every candidate plan costs NaN for environments {lost.nonzero().flatten().tolist()}: the "
            "dynamics or the cost diverged; check that the model was trained on this environment, or "
            "shorten the horizon"
        )
    return without_nan(costs)


def without_nan(costs: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """A candidate whose cost is NaN is worse than any other: +inf."""
    return costs.masked_fill(torch.isnan(costs), torch.inf)


def best_of(
    candidates: Float[Tensor, "b s h a"], costs: Float[Tensor, "b s"], k: int
) -> tuple[Float[Tensor, "b k h a"], Float[Tensor, "b k"]]:
    """The ``k`` cheapest candidates of each environment and their costs, cheapest first."""
    least, index = costs.topk(k, dim=1, largest=False)
    return take(candidates, index), least


def take(values: Tensor, index: Int[Tensor, "b k"]) -> Tensor:
    """``values[i, index[i, j]]``, "b k ...", of values "b s ..."."""
    return values[torch.arange(len(index), device=index.device)[:, None], index]


def pick(values: Tensor, index: Int[Tensor, " b"]) -> Tensor:
    """``values[i, index[i]]``, "b ...", of values "b s ..."."""
    return values[torch.arange(len(index), device=index.device), index]


# -- checks of settings ---------------------------------------------------------------------------------


def check_common(planner: Planner, *counts: str) -> None:
    """The settings that all planners have.

    Args:
        planner: whose settings they are.
        counts: names of further settings that are whole numbers of at least 1.

    Raises:
        ValueError: naming the setting, its value and what it must be.
        TypeError: if a count is not an int, or the risk is not callable.
    """
    for name in ("horizon", "futures", *counts):
        value = getattr(planner, name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not callable(planner.risk):
        raise TypeError(f"risk must be a callable from costs (b, n) to (b,), got {planner.risk!r}")


def check_elites(elites: int, samples: int) -> None:
    """Raises ValueError unless ``elites`` can be chosen among ``samples`` and have a spread."""
    if not 2 <= elites <= samples:
        raise ValueError(
            f"elites must lie in [2, samples={samples}], got {elites}: "
            "a spread needs two plans, and elites are chosen among the samples"
        )
