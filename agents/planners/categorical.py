"""The cross-entropy method for discrete actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.agents.planners.base import pick, take
from jepa_rl.agents.planners.sampling import SamplingPlanner
from jepa_rl.checks import check_each, is_share
from jepa_rl.heads import gumbel, one_hot
from jepa_rl.types import ActionKind, Dynamics, Plan, WorldSpec

MOST_UNIFORM = 0.2  # share of a distribution that the floors may make up


class Categorical(NamedTuple):
    """Independent distributions over the options of each choice in a plan; ``groups`` are the numbers of options."""

    probability: Float[Tensor, "b h a"]
    groups: tuple[int, ...]


@dataclass(frozen=True)
class CategoricalCEM(SamplingPlanner[Categorical]):
    """Cross-entropy method over sequences of choices (De Boer et al. 2005, section 2).

    Every place in the plan holds a distribution over the choices; each iteration draws plans from it
    and sets it to how often the elites took each choice. Returned is the cheaper of the likeliest
    plan and the best one seen. Actions are one-hot, "b h a".

    Attributes:
        horizon, samples, elites, iterations, futures, risk: see ``SamplingPlanner``.
        choices: discrete actions of the environment; a latent step of several environment steps has
            ``action_dim = block * choices``. A tuple: several unlike choices beside each other, as many as it
            has entries. None: one choice among all components.
        smoothing: share of the old distribution that survives a refit.
        min_probability: floor of every choice's probability, against freezing too early; lower where there are so many
            that the floors would add up to more than ``MOST_UNIFORM``.

    Raises:
        ValueError, TypeError: for settings that make no sense.
    """

    actions: ClassVar[ActionKind] = "discrete"

    choices: int | tuple[int, ...] | None = None
    smoothing: float = 0.1
    min_probability: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_each(is_share, "lie in [0, 1)", smoothing=self.smoothing, min_probability=self.min_probability)
        counts = self.choices if isinstance(self.choices, tuple) else (self.choices,)
        if self.choices is not None and min((n for n in counts if n is not None), default=0) < 1:
            raise ValueError(f"choices must be at least 1 or None, got {self.choices}")

    def check(self, spec: WorldSpec, dynamics: Dynamics) -> None:
        """See ``BasePlanner.check``. Raises ValueError too if ``choices`` are not the environment's."""
        super().check(spec, dynamics)
        width, single = dynamics.action_dim, spec.action.groups
        wanted = single * (width // spec.action.size)
        given = self.choices or width
        if (given if isinstance(given, tuple) else (given,) * (width // given)) != wanted:
            alone = len(single) == 1
            raise ValueError(
                f"the planner chooses among {given}, the environment takes {single[0] if alone else single} actions; "
                f"use CategoricalCEM(..., choices={single[0] if alone else wanted})"
            )

    def begin(self, start: Float[Tensor, "b h a"]) -> Categorical:
        """See ``SamplingPlanner``. Raises ValueError if ``choices`` does not divide the width of an action."""
        groups = self._groups(start.shape[-1])
        return Categorical(_mix_in_uniform(start.clamp_min(0.0), groups, (0.5,) * len(groups)), groups)

    def propose(
        self, state: Categorical, iteration: int, generator: torch.Generator | None
    ) -> Float[Tensor, "b s h a"]:
        return _draw(state.probability, state.groups, self.samples, generator)

    def refit(
        self, state: Categorical, elites: Float[Tensor, "b k h a"], costs: Float[Tensor, "b k"]
    ) -> Categorical:
        floors = tuple(min(MOST_UNIFORM, self.min_probability * options) for options in state.groups)
        probability = torch.lerp(elites.mean(1), state.probability, self.smoothing)
        return state._replace(probability=_mix_in_uniform(probability, state.groups, floors))

    def answers(self, state: Categorical, best: Float[Tensor, "b h a"]) -> list[Float[Tensor, "b h a"]]:
        likeliest = torch.cat([one_hot(part) for part in state.probability.split(state.groups, -1)], -1)
        return [likeliest, best]

    def explore(self, plan: Plan, generator: torch.Generator | None) -> Float[Tensor, "b h a"]:
        """See ``SamplingPlanner.explore``: one of the cheapest eighth, counted in *distinct* candidates.

        Most candidates of the last iteration are copies of one plan, and all of the cheapest eighth may be. Where fewer
        than an eighth of ``samples`` differ, it is one of their better half, which leaves out what is clearly bad.
        """
        assert plan.candidates is not None and plan.candidate_costs is not None, "of another planner"
        costs, order = plan.candidate_costs.sort(dim=1, stable=True)
        plans = take(plan.candidates, order)
        flat = plans.flatten(2)
        same = (flat[:, :, None] == flat[:, None]).all(-1)  # b s s
        first = ~same.tril(-1).any(2) & torch.isfinite(costs)  # the first of equal plans, cheapest first
        distinct = first.sum(1)
        count = torch.minimum((distinct // 2).clamp_min(2), distinct).clamp(1, max(1, self.samples // 8))
        chosen = torch.rand(len(plans), generator=generator, device=plans.device) * count
        rank = first.cumsum(1) - 1
        return pick(plans, (first & (rank == chosen.long()[:, None])).byte().argmax(1))

    def _groups(self, width: int) -> tuple[int, ...]:
        """Number of options of each choice in an action of ``width`` components."""
        if isinstance(self.choices, tuple):
            if sum(self.choices) != width:
                raise ValueError(
                    f"choices={self.choices} are {sum(self.choices)} components, actions have {width}; give the "
                    "options of each choice of the environment"
                )
            return self.choices
        choices = self.choices or width
        if width % choices:
            raise ValueError(
                f"choices={choices} does not divide the action width {width}; leave choices "
                "out, or give the environment's"
            )
        return (choices,) * (width // choices)


def _mix_in_uniform(
    weights: Float[Tensor, "*b a"], groups: tuple[int, ...], shares: tuple[float, ...]
) -> Float[Tensor, "*b a"]:
    """In each group a share of a uniform distribution and the rest of the weights; uniform where all are 0."""
    mixed = []
    for part, share in zip(weights.split(groups, -1), shares, strict=True):
        c, total = part.shape[-1], part.sum(-1, keepdim=True)
        given = torch.where(total > 0, part / total.clamp_min(1e-12), 1.0 / c)
        mixed.append((1.0 - share) * given + share / c)
    return torch.cat(mixed, -1)


def _draw(
    probability: Float[Tensor, "b h a"],
    groups: tuple[int, ...],
    samples: int,
    generator: torch.Generator | None,
) -> Float[Tensor, "b s h a"]:
    """One-hot draws by the Gumbel-max trick, one draw of noise for all environments; the mode first."""
    noise = gumbel((samples, *probability.shape[1:]), probability, generator)
    noise[0] = 0.0
    score = probability.log()[:, None] + noise
    return torch.cat([one_hot(part) for part in score.split(groups, -1)], -1)
