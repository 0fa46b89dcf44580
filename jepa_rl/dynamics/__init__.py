"""Latents and actions to the next latents."""

from jepa_rl.dynamics.base import energy_score
from jepa_rl.dynamics.compiled import CompiledDynamics, captured
from jepa_rl.dynamics.ensemble import EnsembleDynamics
from jepa_rl.dynamics.flow import FlowDynamics, schedule
from jepa_rl.dynamics.guided import GuidedDynamics
from jepa_rl.dynamics.held import HeldActions
from jepa_rl.dynamics.mixture import MixtureDynamics
from jepa_rl.dynamics.point import GRUDynamics, MLPDynamics, PointDynamics, SimplexDynamics, simplex
from jepa_rl.dynamics.transformer import CausalTransformerDynamics

__all__ = [
    "CausalTransformerDynamics",
    "CompiledDynamics",
    "EnsembleDynamics",
    "FlowDynamics",
    "GRUDynamics",
    "GuidedDynamics",
    "HeldActions",
    "MLPDynamics",
    "MixtureDynamics",
    "PointDynamics",
    "SimplexDynamics",
    "captured",
    "energy_score",
    "schedule",
    "simplex",
]
