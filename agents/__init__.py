"""What acts: planners that search in the learned dynamics, and the agents built on them."""

from jepa_rl.agents.evaluation import EvaluationCallback, play_episodes
from jepa_rl.agents.inverse import InverseModel, InverseModelAgent, fit_inverse_model
from jepa_rl.agents.mpc import MPCAgent, MPCState
from jepa_rl.agents.planners.categorical import CategoricalCEM
from jepa_rl.agents.planners.cem import CEM
from jepa_rl.agents.planners.gradient import GradientPlanner
from jepa_rl.agents.planners.icem import ICEM
from jepa_rl.agents.planners.mppi import MPPI
from jepa_rl.agents.planners.tree import TreeSearch
from jepa_rl.agents.proposals import FlowPlanner, FlowProposals, fit_flow_proposals
from jepa_rl.agents.sb3.jepa_mpc import JEPAMPC, JEPAMPCPolicy, ResumableRun, jepa_mpc_preset

__all__ = [
    "CEM",
    "ICEM",
    "JEPAMPC",
    "JEPAMPCPolicy",
    "MPPI",
    "CategoricalCEM",
    "EvaluationCallback",
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
    "jepa_mpc_preset",
    "play_episodes",
]
