"""Objectives: the losses that shape the latent space. ``@register_objective("mine")`` adds your own."""

from jepa_rl.objectives.augment import random_shift, shifted
from jepa_rl.objectives.base import Objective, Unrolled
from jepa_rl.objectives.consistency import Consistency
from jepa_rl.objectives.dense import DenseJEPA
from jepa_rl.objectives.jepa import EB_JEPA, EMA, JEPA, LEWM
from jepa_rl.objectives.reconstruction import Reconstruction
from jepa_rl.objectives.terms import (
    covariance,
    inverse_dynamics,
    prediction,
    sigreg,
    straightness,
    time_similarity,
    variance,
)
from jepa_rl.registry import register_objective

__all__ = [
    "EB_JEPA",
    "EMA",
    "JEPA",
    "LEWM",
    "Consistency",
    "DenseJEPA",
    "Objective",
    "Reconstruction",
    "Unrolled",
    "covariance",
    "inverse_dynamics",
    "prediction",
    "random_shift",
    "register_objective",
    "shifted",
    "sigreg",
    "straightness",
    "time_similarity",
    "variance",
]
