"""What acts: planners that search in the learned dynamics, and the agents built on them."""

from jepa_rl.agents.categorical import CategoricalCEM
from jepa_rl.agents.cem import CEM
from jepa_rl.agents.gradient import GradientPlanner
from jepa_rl.agents.icem import ICEM
from jepa_rl.agents.inverse import InverseModel, InverseModelAgent, fit_inverse_model
from jepa_rl.agents.jepa_mpc import JEPAMPC, ResumableRun
from jepa_rl.agents.mpc import MPCAgent, MPCState
from jepa_rl.agents.mppi import MPPI
from jepa_rl.agents.proposals import FlowPlanner, FlowProposals, fit_flow_proposals
from jepa_rl.agents.tree import TreeSearch

__all__ = [
    "CEM",
    "ICEM",
    "JEPAMPC",
    "MPPI",
    "CategoricalCEM",
    "FlowPlanner",
    "FlowProposals",
    "GradientPlanner",
    "InverseModel",
    "InverseModelAgent",
    "MPCAgent",
    "MPCState",
    "ResumableRun",
    "TreeSearch",
    "fit_flow_proposals",
    "fit_inverse_model",
]
