"""Prediction of what a moving average of the encoder sees at every place of the picture."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from jepa_rl.checks import check_each, check_not_negative
from jepa_rl.encoders.base import tokens_of
from jepa_rl.objectives.jepa import JEPA, follow_weights
from jepa_rl.registry import register_objective
from jepa_rl.types import Batch, World, WorldSpec


@register_objective("dense")
class DenseJEPA(JEPA):
    r"""``JEPA``, and local features of the states, predicted from the latents of a rollout.

    .. math:: L = L_{JEPA} + \lambda_d \sum_{i=0}^h \|g(\hat z_i) - whiten(\bar f(o_i))\|^2 / (h + 1)

    with :math:`\bar f` the local features (``tokens``) of a moving average of the encoder, without gradient, and g a
    perceptron. A small thing that moves seldom has little weight in a latent that is predicted as a whole. Here each
    feature at each place is standardised over the batch, so that its places count as much as others. I-JEPA
    (Assran et al. 2023, arXiv:2301.08243) and V-JEPA (Bardes et al. 2024, arXiv:2404.08471) predict local features of
    a moving average; there from other places, here from the state.

    Args:
        latent_dim, spec, encoder: the world model's; the encoder needs a method ``tokens(pixels) -> "b l w"``.
        dense: weight of the new term.
        dense_decay: of the moving average, per update.
        width: hidden units of g.
        options: weights of ``JEPA``; SIGReg's is LeWorldModel's by default.

    Raises:
        ValueError: for a weight or width out of range, an encoder without ``tokens``, or more than one picture; and as
            ``JEPA``.
    """

    def __init__(
        self,
        latent_dim: int,
        spec: WorldSpec,
        encoder: nn.Module,
        dense: float = 4.0,
        dense_decay: float = 0.99,
        width: int = 256,
        **options: Any,
    ) -> None:
        super().__init__(latent_dim, spec, encoder, **{"sigreg": 11.5} | options)
        check_not_negative(dense=dense)
        check_each(lambda value: value >= 1, "be at least 1", width=width)
        check_each(lambda value: 0 <= value < 1, "lie in [0, 1)", dense_decay=dense_decay)
        if spec.pixels is None or spec.parts or not hasattr(encoder, "tokens"):
            raise ValueError(
                f"the objective 'dense' needs one picture and an encoder with tokens(pixels) -> (b, l, w), got "
                f"{dict(spec.shapes)} and {type(encoder).__name__}; use conv, frames, keypoints or vit, or another "
                "objective"
            )
        self.weights["dense"] = dense
        self.dense_decay = dense_decay
        self.local = copy.deepcopy(encoder).requires_grad_(False)
        with torch.no_grad():
            picture = torch.zeros(1, 1, *spec.pixels, dtype=torch.uint8)
            features = tokens_of(self.local.eval(), picture).numel()
        self.head = nn.Sequential(
            nn.Linear(latent_dim, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, features),
        )

    def train(self, mode: bool = True) -> DenseJEPA:
        """As in ``nn.Module``; the moving average stays in evaluation mode."""
        super().train(mode)
        self.local.eval()
        return self

    def _terms(
        self,
        world: World,
        batch: Batch,
        z: Float[Tensor, "b t d"],
        features: Tensor,
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        """See ``JEPA._terms``."""
        found = super()._terms(world, batch, z, features, generator)
        path = world.dynamics.rollout(z[:, 0], batch.actions, generator=generator)[:, 0]
        found["dense"] = (self.head(path.flatten(0, 1)) - self._seen(batch)).square().mean()
        return found

    @torch.no_grad()
    def _seen(self, batch: Batch) -> Float[Tensor, "n m"]:
        """Standardised local features of all states."""
        features = tokens_of(self.local, batch.pixels).flatten(0, 1).flatten(1)
        std = features.std(0)
        # Where nothing ever happens stays near 0 instead of becoming noise.
        return (features - features.mean(0)) / (std + 0.1 * std.mean() + 1e-6)

    def after_update(self, world: World) -> None:
        """Updates the moving averages."""
        super().after_update(world)
        follow_weights(self.local, world.encoder, self.dense_decay)
