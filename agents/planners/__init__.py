"""Planners: each searches for the action sequence of least cost, behind ``jepa_rl.types.Planner``."""

from jepa_rl.agents.planners.categorical import CategoricalCEM
from jepa_rl.agents.planners.cem import CEM
from jepa_rl.agents.planners.gradient import GradientPlanner
from jepa_rl.agents.planners.icem import ICEM
from jepa_rl.agents.planners.mppi import MPPI
from jepa_rl.agents.planners.tree import TreeSearch

__all__ = ["CEM", "ICEM", "MPPI", "CategoricalCEM", "GradientPlanner", "TreeSearch"]
