"""Rectified flow over paths of latents: several futures, each drawn in a few evaluations of a small transformer."""

from jepa_rl.dynamics.flow.dynamics import FEW_EVALUATIONS, FlowDynamics, schedule

__all__ = ["FEW_EVALUATIONS", "FlowDynamics", "schedule"]
