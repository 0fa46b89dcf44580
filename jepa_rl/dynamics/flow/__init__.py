"""Rectified flow over paths of latents: several futures, each drawn in a few evaluations of a small transformer."""

from jepa_rl.dynamics.flow.dynamics import FlowDynamics
from jepa_rl.dynamics.flow.proposals import FlowProposals
from jepa_rl.dynamics.flow.schedule import FEW_EVALUATIONS, jump, levels_of, schedule, shifted
from jepa_rl.dynamics.flow.settings import FlowNetwork, FlowSampling, FlowTraining

__all__ = [
    "FEW_EVALUATIONS",
    "FlowDynamics",
    "FlowNetwork",
    "FlowProposals",
    "FlowSampling",
    "FlowTraining",
    "jump",
    "levels_of",
    "schedule",
    "shifted",
]
