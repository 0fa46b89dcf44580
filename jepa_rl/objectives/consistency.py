"""Latent consistency: predicted latents against encoded ones without a gradient, and an anti-collapse term."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from jepa_rl.batches import whole_rows
from jepa_rl.checks import check_not_negative
from jepa_rl.dynamics.base import TrainableDynamics
from jepa_rl.encoders.base import runs_of, windows_of
from jepa_rl.objectives import terms
from jepa_rl.objectives.augment import shifted, with_shifted_future
from jepa_rl.objectives.base import (
    Objective,
    SharedStatistics,
    Unrolled,
    checked_loss,
    each,
    future_of,
    step_weights,
    weighted_mean,
)
from jepa_rl.registry import register_objective
from jepa_rl.types import Batch, World

AntiCollapse = Literal["vicreg", "sigreg"]


@register_objective("consistency")
class Consistency(Objective):
    r"""JEPAMPC's objective beside reward and value (after TD-MPC2, Hansen et al. 2024, arXiv:2310.16828).

    .. math:: L = \lambda_p \sum_i w_i \|\hat z_i - sg(z_i)\|^2 + \lambda_a A(z_0)

    with :math:`\hat z` rolled out from the first state of a window, :math:`sg` without gradient, and A VICReg's
    variance and covariance, or SIGReg. TD-MPC2 prevents collapse by
    a simplex (SimNorm), which collapsed from pixels at the learning rates that a few thousand updates need
    (docs/lab-notes/control.md). Dynamics that define their own ``loss`` are trained by that instead.

    Args:
        consistency, anti_collapse: weights of the two terms.
        kind: of the anti-collapse term. On cartpole, probes read less from latents of SIGReg than from those of VICReg.
        shift: pixels that pictures are shifted by at random (DrQ's augmentation).

    Raises:
        ValueError: for an unknown kind, or a weight or shift below 0.
    """

    def __init__(
        self,
        consistency: float = 1.0,
        anti_collapse: float = 1.0,
        kind: AntiCollapse = "vicreg",
        shift: int = 3,
    ) -> None:
        super().__init__()
        if kind not in get_args(AntiCollapse):
            raise ValueError(f"kind must be one of {get_args(AntiCollapse)}, got {kind!r}")
        check_not_negative(consistency=consistency, anti_collapse=anti_collapse, shift=shift)
        self.weights = {"consistency": consistency, "anti_collapse": anti_collapse}
        self.kind, self.shift = kind, shift

    def loss(
        self, world: World, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.loss``; all steps have the same weight."""
        return self.shape(world, batch, self.unroll(world, batch, generator), 1.0, generator)

    def unroll(self, world: World, batch: Batch, generator: torch.Generator | None = None) -> Unrolled:
        """See ``Objective.unroll``. First and later states are shifted by different random amounts."""
        h, encoder = batch.actions.shape[1], world.encoder
        seen = world.spec.named(batch.observations)
        first = shifted(each(seen, lambda x: x[:, 0]), self.shift, generator)
        later = runs_of(encoder, world.spec.unnamed(each(seen, lambda x: x[:, 1:])))
        later = shifted(later, self.shift, generator)
        shared = SharedStatistics(encoder)
        with shared.measured(len(batch.actions)):
            z = world.encode(world.spec.unnamed(first))
        with torch.no_grad(), shared.used():
            targets = windows_of(encoder, later, h)
            future = future_of(world, with_shifted_future(batch, self.shift, generator), targets)
        path = world.dynamics.rollout(z, batch.actions, generator=generator)[:, 0]
        return Unrolled(path, targets, future, batch.observations)

    def shape(
        self,
        world: World,
        batch: Batch,
        unrolled: Unrolled,
        decay: float,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.shape``."""
        path, targets = unrolled.path, unrolled.targets
        z, dynamics = path[:, :1], world.dynamics
        if type(dynamics).loss is TrainableDynamics.loss:
            error = weighted_mean((path[:, 1:] - targets).square().mean(-1), step_weights(batch, decay))
        else:
            seen = torch.cat([z, targets], dim=1)
            if self.training:
                dynamics.follow(seen.detach(), batch.actions)
            rows = whole_rows(batch.valid, least=1)
            taken = batch.actions if rows is None else batch.actions[rows]
            answer = dynamics.loss(seen if rows is None else seen[rows], taken, generator)
            error, _ = checked_loss(answer, "loss of the dynamics")
        if self.kind == "sigreg":
            apart = terms.sigreg(z.transpose(0, 1), generator)
        else:
            # Behind a batch norm, too: where the variance before it is below the norm's epsilon, latents stay small.
            apart = terms.variance(z) + terms.VICREG_COVARIANCE * terms.covariance(z)
        found = {"consistency": error, "anti_collapse": apart}
        return torch.stack([self.weights[name] * value for name, value in found.items()]).sum(), found
