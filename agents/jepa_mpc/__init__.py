"""JEPA model-predictive control from reward, online."""

from jepa_rl.agents.jepa_mpc.algorithm import JEPAMPC
from jepa_rl.agents.jepa_mpc.model import ControlModel, ModelConfig, ReturnCost
from jepa_rl.agents.jepa_mpc.policy import JEPAMPCPolicy
from jepa_rl.agents.jepa_mpc.resume import ResumableRun

__all__ = ["JEPAMPC", "ControlModel", "JEPAMPCPolicy", "ModelConfig", "ResumableRun", "ReturnCost"]
