"""What shapes the latent space: prediction and anti-collapse terms, and weighted sums of them."""

from jepa_rl.objectives.objective import EB_JEPA, EMA, LEWM, Objective
from jepa_rl.objectives.terms import (
    covariance,
    inverse_dynamics,
    prediction,
    sigreg,
    straightness,
    time_similarity,
    variance,
)

__all__ = [
    "EB_JEPA",
    "EMA",
    "LEWM",
    "Objective",
    "covariance",
    "inverse_dynamics",
    "prediction",
    "sigreg",
    "straightness",
    "time_similarity",
    "variance",
]
