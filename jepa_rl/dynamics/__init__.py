"""Latents and actions to the next latents. ``@register_dynamics("mine")`` adds dynamics of yours."""

from jepa_rl.dynamics.base import Standardised, TrainableDynamics, energy_score, is_markov
from jepa_rl.dynamics.compiled import CompiledDynamics, captured
from jepa_rl.dynamics.ensemble import EnsembleDynamics
from jepa_rl.dynamics.flow import FlowDynamics, FlowNetwork, FlowSampling, FlowTraining, schedule
from jepa_rl.dynamics.held import HeldActions
from jepa_rl.dynamics.mixture import MixtureDynamics
from jepa_rl.dynamics.parallel import ParallelDynamics
from jepa_rl.dynamics.point import GRUDynamics, MLPDynamics, PointDynamics
from jepa_rl.dynamics.transformer import CausalTransformerDynamics
from jepa_rl.dynamics.two_scale import TwoScaleDynamics
from jepa_rl.registry import register_dynamics

__all__ = [
    "CausalTransformerDynamics",
    "CompiledDynamics",
    "EnsembleDynamics",
    "FlowDynamics",
    "FlowNetwork",
    "FlowSampling",
    "FlowTraining",
    "GRUDynamics",
    "HeldActions",
    "MLPDynamics",
    "MixtureDynamics",
    "ParallelDynamics",
    "PointDynamics",
    "Standardised",
    "TrainableDynamics",
    "TwoScaleDynamics",
    "captured",
    "energy_score",
    "is_markov",
    "register_dynamics",
    "schedule",
]
