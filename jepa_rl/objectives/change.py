"""Latent consistency that asks for what changes and for what actions change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa_rl import distributed
from jepa_rl.batches import whole_rows
from jepa_rl.checks import check_not_negative
from jepa_rl.encoders.base import runs_of, windows_of
from jepa_rl.objectives.augment import shifted, with_shifted_future
from jepa_rl.objectives.base import SharedStatistics, Unrolled, future_of, step_weights, weighted_mean
from jepa_rl.objectives.consistency import Consistency
from jepa_rl.objectives.inverse import ActionReader
from jepa_rl.registry import register_objective
from jepa_rl.types import Batch, World, WorldSpec

SMALLEST_SPREAD = 0.05
"""Added to the standard deviation of a dimension's changes. Latents themselves have a standard deviation of 1."""


@register_objective("change")
class Change(Consistency):
    r"""``Consistency``, and predictions of changes in units of their own spread, and of the actions behind them.

    .. math:: L = L_{consistency} + \lambda_c \sum_i w_i \|(\hat z_i - z_0 - sg(z_i - z_0)) / \sigma\|^2
              + \lambda_a L_{inverse}(z_i, z_{i+1}, a_i)

    with :math:`\sigma` the standard deviation, over the batch, of each dimension's changes; actions are predicted in
    windows that end before their episode does. What never moves in an episode, a goal for instance, is the easiest to
    predict, and consistency alone prefers it: of dm_control's reacher the latents knew the target and not the elbow.
    Changes leave it out, and divided by their spread small ones count as much as large ones. Models that predict
    differences are common in control (PETS, Chua et al. 2018, arXiv:1805.12114); the inverse dynamics are those of PLDM
    (Sobal et al. 2025, arXiv:2502.14819) and ICM (Pathak et al. 2017, arXiv:1705.05363). Their gradient passes through
    both latents, so that all states of a window are encoded with a gradient, and with the same random shift.

    Args:
        latent_dim, spec: the world model's.
        change, inverse_dynamics: weights of the new terms.
        inverse_states: successive states from which an action is read, see ``ActionReader``.
        options: of ``Consistency``.

    Raises:
        ValueError: for a weight below 0, fewer than two ``inverse_states`` or windows that are shorter; and as
            ``Consistency``.
    """

    def __init__(
        self,
        latent_dim: int,
        spec: WorldSpec,
        change: float = 1.0,
        inverse_dynamics: float = 4.0,
        inverse_states: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_not_negative(change=change, inverse_dynamics=inverse_dynamics)
        self.weights |= {"change": change, "inverse_dynamics": inverse_dynamics}
        if inverse_dynamics:
            self.inverse = ActionReader(latent_dim, spec, inverse_states)

    def unroll(self, world: World, batch: Batch, generator: torch.Generator | None = None) -> Unrolled:
        """See ``Objective.unroll``. All states of a window are shifted alike; ``batch.future`` is shifted by itself."""
        rows, h = batch.actions.shape[:2]
        seen = shifted(runs_of(world.encoder, batch.observations), self.shift, generator)
        shared = SharedStatistics(world.encoder)
        # By the statistics of all states, with a gradient through them: as constants, those of the first states made
        # losses on later ones ask for larger features, though latents do not depend on the features' scale.
        with shared.measured(rows * (h + 1)):
            states = windows_of(world.encoder, seen, h + 1)
        targets = states[:, 1:].detach()
        with torch.no_grad(), shared.used():
            future = future_of(world, with_shifted_future(batch, self.shift, generator), targets)
        path = world.dynamics.rollout(states[:, 0], batch.actions, generator=generator)[:, 0]
        return Unrolled(path, targets, future, batch.observations, states)

    def shape(
        self,
        world: World,
        batch: Batch,
        unrolled: Unrolled,
        decay: float,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.shape``."""
        loss, found = super().shape(world, batch, unrolled, decay, generator)
        states = unrolled.states
        assert states is not None, "unroll of this objective keeps the states"
        moved = unrolled.targets - states[:, :1].detach()
        spread = distributed.std(moved.flatten(0, 1)) + SMALLEST_SPREAD
        predicted = unrolled.path[:, 1:] - unrolled.path[:, :1]
        error = ((predicted - moved) / spread).square().mean(-1)
        more = {"change": weighted_mean(error, step_weights(batch, decay))}
        if self.weights["inverse_dynamics"]:
            rows = whole_rows(batch.valid, least=1)
            whole = slice(None) if rows is None else rows
            more["inverse_dynamics"] = self.inverse.error(states[whole], batch.actions[whole])
        total = loss + torch.stack([self.weights[name] * value for name, value in more.items()]).sum()
        return total, found | more
