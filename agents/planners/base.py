"""What the planners share: one planning problem, and the pieces of a search by sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from jepa_rl.risk import Risk
from jepa_rl.types import Cost, Dynamics, Plan

# Numbers in the imagined paths that are held at once: 512 MB of float32.
PATHS_AT_ONCE = 2**27


@dataclass(frozen=True, eq=False)
class Problem:
    """What one call of ``plan`` is about; it prices candidates and finishes the plan.

    Attributes:
        luck: draws the futures. All candidates of an iteration meet the same
            ones (common random numbers): a difference of cost is one of plans. The next iteration meets new
            ones: a search that meets a few futures again and again finds the plans that happen to be lucky
            in them (the optimizer's curse; on TableEdge with the true dynamics it falls three times as often).
        proposals: plans from elsewhere (a policy, a sampler) that compete with those of the search.
    """

    dynamics: Dynamics
    cost: Cost
    z: Float[Tensor, "b d"]
    futures: int
    risk: Risk
    luck: torch.Generator | None
    proposals: Float[Tensor, "b p h a"] | None = None

    def with_proposals(self, candidates: Float[Tensor, "b s h a"]) -> Float[Tensor, "b s+p h a"]:
        """The proposals behind the candidates, where there are any."""
        return candidates if self.proposals is None else torch.cat([candidates, self.proposals], dim=1)

    def rollout(self, candidates: Float[Tensor, "b s h a"]) -> tuple[Tensor, Tensor]:
        """Latents "b*s n t d" and costs "b s" of the candidates of all environments in one call."""
        b, s = candidates.shape[:2]
        rows = candidates.flatten(0, 1)
        z = self.z.repeat_interleave(s, dim=0)
        latents = self.dynamics.rollout(z, rows, futures=self.futures, generator=self.luck)
        futures = self.cost(latents, rows)
        if futures.shape != latents.shape[:2]:
            raise ValueError(
                f"a cost must answer (rows, futures) = {tuple(latents.shape[:2])}, got {tuple(futures.shape)}"
            )
        costs = self.risk(futures)
        if costs.shape != (b * s,):
            raise ValueError(f"a risk must answer (rows,) = {(b * s,)}, got {tuple(costs.shape)}")
        return latents, costs.view(b, s)

    def costs(self, candidates: Float[Tensor, "b s h a"]) -> Float[Tensor, "b s"]:
        """Costs of the candidates; see ``comparable``.

        Where paths times futures are more than memory likes, candidates are priced in turns that meet the same luck.
        """
        b, s, h, _ = candidates.shape
        size = s * self.futures * (h + 1) * self.z.shape[1]
        turns = min(s, -(-b * size // PATHS_AT_ONCE))
        if turns == 1:
            return comparable(self.rollout(candidates)[1])
        before = None if self.luck is None else self.luck.get_state()
        costs = []
        for part in candidates.chunk(turns, dim=1):
            if self.luck is not None and before is not None:
                self.luck.set_state(before)
            costs.append(self.rollout(part)[1])
        return comparable(torch.cat(costs, dim=1))

    def finish(self, choices: Float[Tensor, "b s h a"], candidates: Tensor, costs: Tensor) -> Plan:
        """The cheapest of ``choices``; ``candidates`` and ``costs`` are what the search saw last."""
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


def pose(
    planner: Any,
    dynamics: Dynamics,
    cost: Cost,
    z: Float[Tensor, "b d"],
    warm_start: Float[Tensor, "b h a"] | None,
    generator: torch.Generator | None,
    proposals: Float[Tensor, "b p h a"] | None = None,
) -> tuple[Problem, Float[Tensor, "b h a"]]:
    """Check the arguments of ``plan``; the problem, and the plan to start the search from (zeros if none).

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
    luck = generator  # a single future of dynamics that draw is repeatable, too
    if planner.futures > 1:
        seed = int(torch.randint(2**62, (), generator=generator, device=z.device))
        luck = torch.Generator(z.device).manual_seed(seed)
    return Problem(dynamics, cost, z, planner.futures, planner.risk, luck, proposals), start


def check_settings(planner: Any) -> None:
    """The settings that planners have in common, checked by name where the planner has them.

    Raises:
        ValueError: naming the setting, its value and what it must be.
        TypeError: if a count is not an int.
    """
    values = vars(planner)
    for name in ("horizon", "samples", "elites", "iterations", "restarts", "width", "branches", "futures"):
        if name in values and (not isinstance(values[name], int) or isinstance(values[name], bool)):
            raise TypeError(f"{name} must be an int, got {values[name]!r}")
        if name in values and values[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {values[name]}")
    if "elites" in values and not 2 <= values["elites"] <= values["samples"]:
        raise ValueError(
            f"elites must lie in [2, samples={values['samples']}], got {values['elites']}: "
            "a spread needs two plans, and elites are chosen among the samples"
        )
    for name in ("init_std", "temperature", "learning_rate"):
        if name in values and not 0.0 < values[name] < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {values[name]}")
    if "min_std" in values and not 0.0 <= values["min_std"] <= values["init_std"]:
        raise ValueError(f"min_std must lie in [0, init_std={values['init_std']}], got {values['min_std']}")
    for name in ("momentum", "smoothing", "min_probability"):
        if name in values and not 0.0 <= values[name] < 1.0:
            raise ValueError(f"{name} must lie in [0, 1), got {values[name]}")
    if not callable(planner.risk):
        raise TypeError(f"risk must be a callable from costs (b, n) to (b,), got {planner.risk!r}")


def normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


def directions(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Actions "... a" in random directions, each of them at the bounds [-1, 1]."""
    drawn = normal(shape, like, generator)
    return drawn / drawn.abs().amax(-1, keepdim=True).clamp_min(1e-6)


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


class Incumbent:
    """The cheapest plan seen so far, one for each environment; empty until the first offer."""

    def __init__(self) -> None:
        self._best: tuple[Tensor, Tensor] | None = None

    @property
    def actions(self) -> Float[Tensor, "b h a"]:
        assert self._best is not None, "asked for the best plan before any was offered"
        return self._best[0]

    def offer(self, actions: Float[Tensor, "b h a"], cost: Float[Tensor, " b"]) -> None:
        if self._best is None:
            self._best = actions, cost
            return
        old_actions, old_cost = self._best
        better = cost < old_cost
        self._best = (
            torch.where(better[:, None, None], actions, old_actions),
            torch.where(better, cost, old_cost),
        )
