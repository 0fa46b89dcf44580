"""Everything that steps an optimiser: the loop, the optimisers, exact resume, and what is trained by them."""

from jepa_rl.training.loop import Evaluate, Evaluation, Sampler, Trainable, TrainConfig, TrainResult, fit
from jepa_rl.training.optimisers import descend
from jepa_rl.training.refine import REFINE, refine_dynamics

__all__ = [
    "REFINE",
    "Evaluate",
    "Evaluation",
    "Sampler",
    "TrainConfig",
    "TrainResult",
    "Trainable",
    "descend",
    "fit",
    "refine_dynamics",
]
