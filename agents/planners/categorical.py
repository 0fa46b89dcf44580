"""The cross-entropy method for discrete actions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from jepa_rl.agents.planners.base import Incumbent, best_of, check_settings, pose
from jepa_rl.heads import gumbel, one_hot
from jepa_rl.risk import Risk, expected_cost
from jepa_rl.types import Cost, Dynamics, Plan

MOST_UNIFORM = 0.2  # share of a distribution that the floors may make up


@dataclass(frozen=True)
class CategoricalCEM:
    """Cross-entropy method over sequences of choices (De Boer et al. 2005, section 2).

    Every place in the plan holds a distribution over the choices; each iteration draws plans from it
    and sets it to how often the elites took each choice. Returned is the cheaper of the likeliest
    plan and the best one seen. Actions are one-hot, "b h a".

    Attributes:
        horizon: actions in a plan, in latent steps.
        choices: discrete actions of the environment; a latent step of several environment steps has
            ``action_dim = block * choices``. A tuple: several unlike choices beside each other, as many as it
            has entries. None: one choice among all components.
        smoothing: share of the old distribution that survives a refit.
        min_probability: floor of every choice's probability, against freezing too early; lower where there are so many
            that the floors would add up to more than ``MOST_UNIFORM``.
        futures: futures drawn for each candidate where the dynamics draw any.
        risk: costs "b n" of the futures -> "b", see ``jepa_rl.risk``.

    Raises:
        ValueError, TypeError: for settings that make no sense.
    """

    horizon: int
    samples: int = 256
    elites: int = 32
    iterations: int = 6
    choices: int | tuple[int, ...] | None = None
    smoothing: float = 0.1
    min_probability: float = 0.02
    futures: int = 1
    risk: Risk = expected_cost

    def __post_init__(self) -> None:
        check_settings(self)
        if self.choices is not None and min(_as_tuple(self.choices), default=0) < 1:
            raise ValueError(f"choices must be at least 1 or None, got {self.choices}")

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
        """See ``jepa_rl.types.Planner``. Raises ValueError for arguments of the wrong shape or not
        finite, and if ``choices`` does not divide the width of an action."""
        problem, start = pose(self, dynamics, cost, z, warm_start, generator, proposals)
        groups = self._groups(start.shape[-1])
        probability = _mix_in_uniform(start.clamp_min(0.0), groups, (0.5,) * len(groups))
        floors = tuple(min(MOST_UNIFORM, self.min_probability * c) for c in groups)
        best = Incumbent()
        for _ in range(self.iterations):
            candidates = problem.with_proposals(_draw(probability, groups, self.samples, generator))
            costs = problem.costs(candidates)
            elites, elite_costs = best_of(candidates, costs, self.elites)
            best.offer(elites[:, 0], elite_costs[:, 0])
            probability = torch.lerp(elites.mean(1), probability, self.smoothing)
            probability = _mix_in_uniform(probability, groups, floors)
        likeliest = torch.cat([one_hot(part) for part in probability.split(groups, -1)], -1)
        return problem.finish(torch.stack([likeliest, best.actions], dim=1), candidates, costs)

    def _groups(self, width: int) -> tuple[int, ...]:
        """Number of options of each choice in an action of ``width`` components."""
        if isinstance(self.choices, tuple):
            if sum(self.choices) != width:
                raise ValueError(
                    f"choices={self.choices} are {sum(self.choices)} components, actions have {width}"
                )
            return self.choices
        choices = self.choices or width
        if width % choices:
            raise ValueError(f"choices={choices} does not divide the action width {width}")
        return (choices,) * (width // choices)


def _as_tuple(choices: int | tuple[int, ...]) -> tuple[int, ...]:
    return choices if isinstance(choices, tuple) else (choices,)


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
