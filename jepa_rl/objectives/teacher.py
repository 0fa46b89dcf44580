"""Prediction of a teacher's latents, of the next patch's embedding, and of latents without actions."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from jepa_rl.dynamics.base import TrainableDynamics
from jepa_rl.objectives.base import checked_loss
from jepa_rl.objectives.jepa import JEPA, follow_weights
from jepa_rl.objectives.masked import Schedule
from jepa_rl.objectives.schedule import DecaySchedule
from jepa_rl.objectives.tokens import TokenObjective
from jepa_rl.registry import register_objective
from jepa_rl.types import Batch, World, WorldSpec


@register_objective("teacher")
class TeacherJEPA(JEPA):
    r"""Latents of the next states as a moving average of the encoder sees them, from the first latent and the actions.

    .. math:: L = \sum_i \| \hat z_i - sg(\bar f(o_i)) \|^2 / h, \quad \hat z = rollout(f(o_0), a)

    This is BYOL (Grill et al. 2020, arXiv:2006.07733) with a world model for its predictor, as in BYOL-Explore
    (Guo et al. 2022, arXiv:2206.08332) and SPR (Schwarzer et al. 2021, arXiv:2007.05929). V-JEPA 2-AC (Assran et al.
    2025, arXiv:2506.09985) predicts such latents from actions, too, but over an encoder that was trained before, on
    masked video, and is frozen then; and its error is an L1 norm, of one step ahead and of two-step rollouts, where
    here it is the dynamics' own loss. It is ``ema`` with a decay that rises, and its teacher stays out of files.

    Args:
        latent_dim, spec, encoder: the world model's.
        ema: decay of the moving average at first, at last, and the updates in between (``DecaySchedule``).
        options: weights of ``JEPA``; SIGReg's is 0 by default.

    Raises:
        ValueError: as ``JEPA`` and ``DecaySchedule``, or for options that ``ema`` takes the place of.
    """

    copies: ClassVar = {"target_encoder": "encoder"}

    def __init__(
        self,
        latent_dim: int,
        spec: WorldSpec,
        encoder: nn.Module,
        ema: Schedule = (0.996, 1.0, 10_000),
        **options: Any,
    ) -> None:
        if given := sorted({"target", "ema_decay"} & options.keys()):
            raise ValueError(f"the objective 'teacher' takes ema=(start, end, updates) instead of {given}")
        super().__init__(latent_dim, spec, encoder, target="ema", **{"sigreg": 0.0} | options)
        self.schedule = DecaySchedule(*ema)

    def after_update(self, world: World) -> None:
        """Updates the teacher."""
        follow_weights(self.target_encoder, world.encoder, self.schedule.step())


@register_objective("action_free")
class ActionFreeJEPA(JEPA):
    """``JEPA`` that does not know the actions: a control that says what they do for the latent space.

    The encoder learns from what a copy of the dynamics of its own predicts with all actions 0. The world model's
    dynamics learn with the actions, on latents without a gradient, so that planners can use them. Were they one, the
    action 0 would mean two things.

    Args:
        latent_dim, spec, encoder: the world model's.
        world_dynamics: the world model's; their architecture is copied.
        dynamics: weight of their loss.
        options: weights and targets of ``JEPA``.

    Raises:
        ValueError: as ``JEPA``, or for inverse dynamics, which read actions.
    """

    copies: ClassVar = {"predictor": "dynamics"}

    def __init__(
        self,
        latent_dim: int,
        spec: WorldSpec,
        encoder: nn.Module,
        world_dynamics: TrainableDynamics,
        dynamics: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(latent_dim, spec, encoder, **options)
        self.weights["dynamics"] = dynamics
        if self.weights["inverse_dynamics"] or not 0 <= dynamics < float("inf"):
            raise ValueError(
                "action_free must not know the actions, so inverse_dynamics must be 0, and dynamics at least 0, got "
                f"{self.weights}"
            )
        self.predictor = copy.deepcopy(world_dynamics)

    def _prediction(
        self, world: World, path: Float[Tensor, "b t d"], batch: Batch, generator: torch.Generator | None
    ) -> dict[str, Tensor]:
        """See ``JEPA._prediction``."""
        without, still = torch.zeros_like(batch.actions), path.detach()
        if self.training:
            self.predictor.follow(still, without)
        error, _ = checked_loss(self.predictor.loss(path, without, generator), "loss of the dynamics")
        learned = super()._prediction(world, still, batch, generator)
        return {"prediction": error, "dynamics": learned["prediction"]}

    def after_update(self, world: World) -> None:
        """Moves what follows the weights."""
        super().after_update(world)
        self.predictor.after_update()


@register_objective("nepa")
class NextEmbedding(TokenObjective):
    r"""NEPA (Xu et al. 2025, arXiv:2512.16922): the next patch's embedding, from the patches before it.

    .. math:: L = - mean_t \cos (h(e_1 .. e_t)_t, sg(e_{t+1}))

    with e the embeddings of single patches, row by row, and h the causal transformer over them: the encoder itself,
    without a predictor. Positions enter h and not the targets. Actions and time are not used: every picture of a window
    counts as one. The paper's blocks have rotary positions, LayerScale, SwiGLU and normalised queries and keys; ours
    are the encoder's. The planner's latent, read from the outputs of h, stays causal, as it was trained: see
    ``TokenObjective``.

    Args:
        latent_dim, spec, encoder: the world model's; the encoder is ``"vit"`` with ``causal=True``.
        weights: ``dynamics`` and ``readout``, see ``TokenObjective``.

    Raises:
        ValueError: as ``TokenObjective``, or for an encoder that is not causal.
    """

    def __init__(self, latent_dim: int, spec: WorldSpec, encoder: nn.Module, **weights: float) -> None:
        super().__init__(latent_dim, spec, encoder, **weights)
        if not hasattr(encoder, "embeddings") or not getattr(encoder, "causal", False) or self.places < 2:
            raise ValueError(
                "the objective 'nepa' needs an encoder of embeddings that is causal and has two patches or more, got "
                f"{type(encoder).__name__} with {self.places}; use encoder='vit', encoder_options={{'causal': True}}"
            )

    def encoder_loss(
        self,
        world: World,
        pictures: UInt8[Tensor, "n c y x"],  # type: ignore[override]
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``EncoderObjective.encoder_loss``."""
        with torch.no_grad():
            following = world.encoder.embeddings(pictures)[:, 1:].float()
        found = world.encoder.tokens(pictures)[:, :-1]
        error = -F.cosine_similarity(found, following, dim=-1).mean()
        return error, {"prediction": error}
