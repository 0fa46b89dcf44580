"""Joint-embedding prediction with an anti-collapse term: LeWorldModel, EB-JEPA, and a moving-average target."""

from __future__ import annotations

import copy
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.objectives import terms
from jepa_rl.objectives.base import Objective, checked_loss, each, inputs_of_norm
from jepa_rl.objectives.inverse import ActionReader
from jepa_rl.registry import register_objective
from jepa_rl.types import Batch, World, WorldSpec

Target = Literal["online", "stop_gradient", "ema"]


@register_objective("jepa")
class JEPA(Objective):
    r"""A weighted sum of terms over encoded windows :math:`z_0 .. z_h`; a weight of 0 leaves a term out.

    .. math:: L = \lambda_p L_{dynamics}(z, a) + \lambda_s SIGReg(z) + \lambda_v V(z) + \lambda_c C(z)
              + \lambda_t \|z_{i+1} - z_i\|^2 + \lambda_a L_{inverse}(z_i, z_{i+1}, a_i) + \lambda_k S(z)

    Args:
        latent_dim, spec, encoder: the world model's.
        prediction: weight of the dynamics' loss, by default the open-loop rollout's error against the encoded future.
        sigreg: isotropic Gaussian latents (LeJEPA, LeWorldModel).
        variance, covariance, time_similarity, inverse_dynamics: the PLDM / EB-JEPA family.
        straightness: straight latent paths.
        target: what the prediction is compared with: the same encoder with gradient (``"online"``, needs an
            anti-collapse term), without gradient (``"stop_gradient"``), or its moving average (``"ema"``, as in I-JEPA
            and V-JEPA).
        ema_decay: of the moving average, per update.
        projections: random directions of SIGReg per update.

    Raises:
        ValueError: for weights that are negative, not finite or all 0, and other settings that make no sense.
    """

    def __init__(
        self,
        latent_dim: int,
        spec: WorldSpec,
        encoder: nn.Module,
        prediction: float = 1.0,
        sigreg: float = 0.5,
        variance: float = 0.0,
        covariance: float = 0.0,
        time_similarity: float = 0.0,
        inverse_dynamics: float = 0.0,
        straightness: float = 0.0,
        target: Target = "online",
        ema_decay: float = 0.996,
        projections: int = 64,
    ) -> None:
        super().__init__()
        self.weights = {
            "prediction": prediction, "sigreg": sigreg, "variance": variance, "covariance": covariance,
            "time_similarity": time_similarity, "straightness": straightness, "inverse_dynamics": inverse_dynamics,
        }  # fmt: skip
        if not all(0 <= w < float("inf") for w in self.weights.values()) or not any(self.weights.values()):
            raise ValueError(
                f"objective weights must be finite, at least 0 and not all 0, got {self.weights}"
            )
        if projections < 1:
            raise ValueError(f"projections must be at least 1, got {projections}")
        if target not in get_args(Target):
            raise ValueError(f"target must be 'online', 'stop_gradient' or 'ema', got {target!r}")
        if not 0.0 <= ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie in [0, 1), got {ema_decay}")
        self.spec, self.target, self.ema_decay, self.projections = spec, target, ema_decay, projections
        if inverse_dynamics:
            self.inverse = ActionReader(latent_dim, spec)
        if target == "ema":
            self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)

    def loss(
        self, world: World, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.loss``. Windows that run over an episode's end are left out."""
        batch = batch.whole()
        with inputs_of_norm(world.encoder) as features:
            z = world.encode_windows(batch.observations)
        found = self._terms(world, batch, z, features[-1] if features else z, generator)
        return torch.stack([self.weights[name] * value for name, value in found.items()]).sum(), found

    def _terms(
        self,
        world: World,
        batch: Batch,
        z: Float[Tensor, "b t d"],
        features: Tensor,
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        """The terms, not weighted.

        Args:
            world, batch, generator: as for ``loss``.
            z: latents of the windows.
            features: what the encoder's batch norm was given, or ``z``.
        """
        w, shaped = self.weights, self.shaped(z)
        path = torch.cat([z[:, :1], self._targets(z, batch)], dim=1)
        found = self._prediction(world, path, batch, generator)
        if w["sigreg"]:
            found["sigreg"] = terms.sigreg(shaped.transpose(0, 1), generator, self.projections)
        if w["variance"]:
            # After a batch norm every standard deviation is 1: the term acts on the norm's input.
            found["variance"] = terms.variance(features)
        if w["covariance"]:
            found["covariance"] = terms.covariance(shaped)
        if w["time_similarity"]:
            found["time_similarity"] = terms.time_similarity(shaped)
        if w["straightness"]:
            found["straightness"] = terms.straightness(shaped)
        if w["inverse_dynamics"]:
            found["inverse_dynamics"] = self.inverse.error(z, batch.actions)
        return found

    def shaped(self, z: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """The part of the latents that the anti-collapse terms act on: all of it. Override it for latents whose parts
        repeat each other, such as those of stacked frames side by side."""
        return z

    def _prediction(
        self, world: World, path: Float[Tensor, "b t d"], batch: Batch, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        """The dynamics' loss on the first latent and the targets, by its name."""
        if self.training:
            world.dynamics.follow(path.detach(), batch.actions)
        error, _ = checked_loss(world.dynamics.loss(path, batch.actions, generator), "loss of the dynamics")
        return {"prediction": error}

    def _targets(self, z: Float[Tensor, "b t d"], batch: Batch) -> Float[Tensor, "b h d"]:
        """Targets of the predictions of states 1 to h."""
        if self.target == "online":
            return z[:, 1:]
        if self.target == "stop_gradient":
            return z[:, 1:].detach()
        later = each(batch.observations, lambda x: x[:, 1:].flatten(0, 1))
        with torch.no_grad():
            return self.target_encoder(later).view_as(z[:, 1:])

    @torch.no_grad()
    def after_update(self, world: World) -> None:
        """Updates the target encoder, an exponential moving average of the encoder."""
        if self.target != "ema":
            return
        follow_weights(self.target_encoder, world.encoder, self.ema_decay)


@torch.no_grad()
def follow_weights(target: nn.Module, online: nn.Module, decay: float | Tensor) -> None:
    """Updates ``target``, a moving average of the weights of ``online``; buffers are copied.

    Args:
        target, online: modules of the same architecture.
        decay: share that ``target`` keeps, a number or a scalar.
    """
    for average, weight in zip(target.parameters(), online.parameters(), strict=True):
        average.lerp_(weight, 1.0 - decay)
    for copied, buffer in zip(target.buffers(), online.buffers(), strict=True):
        copied.copy_(buffer)


# -- the papers' weights, on the scale of our terms ---------------------------------------------------

LEWM, EB_JEPA, EMA = "lewm", "eb_jepa", "ema"


@register_objective(LEWM)
class LeWorldModel(JEPA):
    """LeWorldModel (Maes et al. 2026, arXiv:2603.19312): prediction and SIGReg.

    Its weight is 0.09 for a statistic that is multiplied by the batch of 128; ours is not, so that it is 11.5 here.

    Args:
        latent_dim, spec, encoder: the world model's.
        options: further or other weights of ``JEPA``.
    """

    def __init__(self, latent_dim: int, spec: WorldSpec, encoder: nn.Module, **options: Any) -> None:
        super().__init__(latent_dim, spec, encoder, **{"sigreg": 11.5} | options)


@register_objective(EB_JEPA)
class EBJEPA(JEPA):
    """EB-JEPA's configuration for two rooms, the objective of PLDM (Sobal et al. 2025, arXiv:2502.14819).

    Its covariance of 8 is averaged over the d (d - 1) off-diagonal entries; ours is their sum divided by d.

    Args:
        latent_dim, spec, encoder: the world model's.
        options: further or other weights of ``JEPA``.
    """

    def __init__(self, latent_dim: int, spec: WorldSpec, encoder: nn.Module, **options: Any) -> None:
        weights = {"sigreg": 0.0, "variance": 16.0, "covariance": 8.0 / max(1, latent_dim - 1)}
        weights |= {"time_similarity": 12.0, "inverse_dynamics": 1.0}
        super().__init__(latent_dim, spec, encoder, **weights | options)


@register_objective(EMA)
class MovingTarget(JEPA):
    """Prediction of a moving average of the encoder (I-JEPA, V-JEPA), and nothing else.

    Args:
        latent_dim, spec, encoder: the world model's.
        options: further or other weights of ``JEPA``.
    """

    def __init__(self, latent_dim: int, spec: WorldSpec, encoder: nn.Module, **options: Any) -> None:
        defaults: dict[str, Any] = {"sigreg": 0.0, "target": "ema"}
        super().__init__(latent_dim, spec, encoder, **defaults | options)
