"""Planners that search in learned dynamics, and agents."""

from jepa_rl.agents.curiosity import curious_agent
from jepa_rl.agents.evaluation import EvaluationCallback, play_episodes
from jepa_rl.agents.inverse import InverseModelAgent, fit_inverse_model
from jepa_rl.agents.mpc import MPCAgent, MPCState
from jepa_rl.agents.planners import (
    CEM,
    ICEM,
    MPPI,
    BasePlanner,
    CategoricalCEM,
    FlowPlanner,
    GradientPlanner,
    SamplingPlanner,
    TreeSearch,
)
from jepa_rl.agents.sb3.droq import DropoutDQNPolicy, DroQPolicy
from jepa_rl.agents.sb3.grow import Grown, grow
from jepa_rl.agents.sb3.jepa_mpc import JEPAMPC, JEPAMPCPolicy, ResumableRun, jepa_mpc_preset
from jepa_rl.agents.sb3.joint import JEPADQN, JEPAPPO, JEPASAC, JEPATD3, jepa_policy_kwargs
from jepa_rl.dynamics.flow.proposals import FlowProposals
from jepa_rl.inverse import InverseModel
from jepa_rl.training.proposals import fit_flow_proposals

__all__ = [
    "CEM",
    "ICEM",
    "JEPADQN",
    "JEPAMPC",
    "JEPAMPCPolicy",
    "JEPAPPO",
    "JEPASAC",
    "JEPATD3",
    "MPPI",
    "BasePlanner",
    "CategoricalCEM",
    "DroQPolicy",
    "DropoutDQNPolicy",
    "EvaluationCallback",
    "FlowPlanner",
    "FlowProposals",
    "GradientPlanner",
    "Grown",
    "InverseModel",
    "InverseModelAgent",
    "MPCAgent",
    "MPCState",
    "ResumableRun",
    "SamplingPlanner",
    "TreeSearch",
    "curious_agent",
    "fit_flow_proposals",
    "fit_inverse_model",
    "grow",
    "jepa_mpc_preset",
    "jepa_policy_kwargs",
    "play_episodes",
]
