"""Planners: each searches for the action sequence of least cost, behind ``jepa_rl.types.Planner``.

One of your own subclasses ``BasePlanner``, or ``SamplingPlanner`` where it draws candidates and refits to the best.
"""

from jepa_rl.agents.planners.base import BasePlanner, Problem, make_problem
from jepa_rl.agents.planners.categorical import CategoricalCEM
from jepa_rl.agents.planners.cem import CEM
from jepa_rl.agents.planners.flow import FlowPlanner
from jepa_rl.agents.planners.gradient import GradientPlanner
from jepa_rl.agents.planners.icem import ICEM
from jepa_rl.agents.planners.mppi import MPPI
from jepa_rl.agents.planners.sampling import SamplingPlanner
from jepa_rl.agents.planners.saved import PLANNERS, planner_from, planner_settings
from jepa_rl.agents.planners.tree import TreeSearch

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "PLANNERS",
    "BasePlanner",
    "CategoricalCEM",
    "FlowPlanner",
    "GradientPlanner",
    "Problem",
    "SamplingPlanner",
    "TreeSearch",
    "make_problem",
    "planner_from",
    "planner_settings",
]
