"""Everything that steps an optimiser: the loop, the optimisers, exact resume, and what is trained by them."""

from jepa_rl.training.config import TrainConfig
from jepa_rl.training.contracts import Fingerprinted, Sampler, Trainable
from jepa_rl.training.inverse import train_inverse_model
from jepa_rl.training.joint import JointConfig, JointEncoder
from jepa_rl.training.loop import Evaluate, Evaluation, TrainResult, fit
from jepa_rl.training.optimisers import descend
from jepa_rl.training.proposals import fit_flow_proposals
from jepa_rl.training.refine import REFINE, refine_dynamics
from jepa_rl.training.temporal import train_temporal_distance

__all__ = [
    "REFINE",
    "Evaluate",
    "Evaluation",
    "Fingerprinted",
    "JointConfig",
    "JointEncoder",
    "Sampler",
    "TrainConfig",
    "TrainResult",
    "Trainable",
    "descend",
    "fit",
    "fit_flow_proposals",
    "refine_dynamics",
    "train_inverse_model",
    "train_temporal_distance",
]
