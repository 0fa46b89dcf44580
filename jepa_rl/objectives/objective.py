"""A weighted sum of terms: what a world model is trained to minimise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from jepa_rl.objectives import terms

Target = Literal["online", "stop_gradient", "ema"]


@dataclass(frozen=True)
class Objective:
    """Weights of the terms in ``jepa_rl.objectives.terms``; a weight of 0 leaves a term out.

    Attributes:
        prediction: of the open-loop rollout against the encoded future.
        sigreg: isotropic Gaussian latents (LeJEPA, LeWorldModel).
        variance, covariance, time_similarity, inverse_dynamics: the PLDM / EB-JEPA family.
        straightness: straight latent paths.
        target: what the prediction is compared with: the same encoder with gradient (``"online"``, needs an
            anti-collapse term), without gradient (``"stop_gradient"``), or its moving average (``"ema"``, as in
            I-JEPA and V-JEPA).
        ema_decay: of the moving average, per update.
        projections: random directions of SIGReg per update.
    """

    prediction: float = 1.0
    sigreg: float = 0.0
    variance: float = 0.0
    covariance: float = 0.0
    time_similarity: float = 0.0
    inverse_dynamics: float = 0.0
    straightness: float = 0.0
    target: Target = "online"
    ema_decay: float = 0.996
    projections: int = 64

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in TERMS}
        if not all(0 <= weight < float("inf") for weight in weights.values()) or not any(weights.values()):
            raise ValueError(f"objective weights must be finite, at least 0 and not all 0, got {weights}")
        if self.projections < 1:
            raise ValueError(f"projections must be at least 1, got {self.projections}")
        if self.target not in ("online", "stop_gradient", "ema"):
            raise ValueError(f"target must be 'online', 'stop_gradient' or 'ema', got {self.target!r}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")

    def __call__(
        self,
        latents: Tensor,
        prediction: Tensor,
        actions: tuple[Tensor, Tensor] | None,
        discrete: bool,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and terms.

        Args:
            latents: encoded windows "b t d".
            prediction: what the dynamics have to pay, such as ``terms.prediction`` of an open-loop rollout.
            actions: (actions guessed from neighbouring latents, true actions); needed by inverse dynamics.
            discrete: whether the actions are one-hot.
            generator: draws SIGReg's directions.
        """
        values = {"prediction": prediction}
        if self.sigreg:
            values["sigreg"] = terms.sigreg(latents.transpose(0, 1), generator, self.projections)
        if self.variance:
            values["variance"] = terms.variance(latents)
        if self.covariance:
            values["covariance"] = terms.covariance(latents)
        if self.time_similarity:
            values["time_similarity"] = terms.time_similarity(latents)
        if self.straightness:
            values["straightness"] = terms.straightness(latents)
        if self.inverse_dynamics:
            if actions is None:
                raise ValueError("the inverse-dynamics term needs guessed and true actions, got None")
            values["inverse_dynamics"] = terms.inverse_dynamics(*actions, discrete=discrete)
        total = torch.stack([getattr(self, name) * value for name, value in values.items()]).sum()
        return total, values


TERMS = (
    "prediction",
    "sigreg",
    "variance",
    "covariance",
    "time_similarity",
    "inverse_dynamics",
    "straightness",
)

# Starting values from the papers' configurations; the scale of SIGReg is that of our implementation.
LEWM = Objective(prediction=1.0, sigreg=0.5)
EB_JEPA = Objective(prediction=1.0, variance=16.0, covariance=8.0, time_similarity=12.0, inverse_dynamics=1.0)
EMA = Objective(prediction=1.0, target="ema")
