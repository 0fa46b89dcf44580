"""Latents and actions to the next latents."""

from jepa_rl.dynamics.point import GRUDynamics, MLPDynamics, PointDynamics
from jepa_rl.dynamics.transformer import CausalTransformerDynamics

__all__ = ["CausalTransformerDynamics", "GRUDynamics", "MLPDynamics", "PointDynamics"]
