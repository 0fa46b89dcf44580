"""Latents and actions to the next latents."""

from jepa_rl.dynamics.compiled import CompiledDynamics, captured
from jepa_rl.dynamics.held import HeldActions
from jepa_rl.dynamics.point import GRUDynamics, MLPDynamics, PointDynamics, SimplexDynamics, simplex
from jepa_rl.dynamics.transformer import CausalTransformerDynamics

__all__ = [
    "CausalTransformerDynamics",
    "GRUDynamics",
    "CompiledDynamics",
    "HeldActions",
    "MLPDynamics",
    "PointDynamics",
    "SimplexDynamics",
    "captured",
    "simplex",
]
